/**
 * Rows that a unit is multiplied with, from the value its node reads: rows of tokens as they are; of a
 * convolution the patches under its filter, one row a position and group.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import type { Node } from '../ir/graph.ts';
import type { WeightSite } from '../passes/weight-sites.ts';

/** Positions of one image that a convolution is looked at, at most; more say little new. */
const MOST_POSITIONS = 256;

/**
 * Rows [tokens, columns] of a site.
 *
 * @param input - what the node reads, f32
 * @param random - numbers in 0..1, to choose positions of convolutions
 */
export function rowsOfSite(site: WeightSite, input: Tensor, random: () => number): Float32Array {
  const data = floatsOf(input, site.node);
  return site.kind === 'convolution' ? patches(site, data, input.shape, random) : data;
}

function floatsOf({ dtype, data }: Tensor, node: Node): Float32Array {
  if (data instanceof Float32Array) return data;
  throw new FettleError('OP_UNSUPPORTED', `${node.describe()} multiplies ${dtype} values.`, {
    at: { node: node.name, dtype },
    fix: 'Export the model with f32 activations, or compile without calibration.',
  });
}

/** Padding at the start of each axis. */
function startPads(node: Node, spatial: readonly number[], filter: readonly number[]): number[] {
  const auto = node.string('auto_pad', 'NOTSET');
  if (auto === 'NOTSET' || auto === 'VALID')
    return (
      (auto === 'NOTSET' ? node.ints('pads') : undefined)?.slice(0, spatial.length) ??
      spatial.map(() => 0)
    );
  const strides = node.ints('strides') ?? spatial.map(() => 1);
  const dilations = node.ints('dilations') ?? spatial.map(() => 1);
  return spatial.map((size, axis) => {
    const stride = strides[axis] ?? 1;
    const extent = ((filter[axis] ?? 1) - 1) * (dilations[axis] ?? 1) + 1;
    const total = Math.max(0, (Math.ceil(size / stride) - 1) * stride + extent - size);
    return auto === 'SAME_UPPER' ? Math.floor(total / 2) : Math.ceil(total / 2);
  });
}

function patches(
  { node, shape, convolutionGroups: groups, columns }: WeightSite,
  data: Float32Array,
  inputShape: readonly number[],
  random: () => number,
): Float32Array {
  const [batch = 1, channels = 1, ...given] = inputShape;
  // one axis is an image of one row
  const [height = 1, width = 1] = given.length === 1 ? [1, ...given] : given;
  const two = (values: readonly number[] | undefined, absent: number): [number, number] => {
    const [a = absent, b = absent] = values ?? [];
    return given.length === 1 ? [absent, a] : [a, b];
  };
  const filter = shape.slice(2);
  const [kh, kw] = two(filter, 1);
  const [sh, sw] = two(node.ints('strides'), 1);
  const [dh, dw] = two(node.ints('dilations'), 1);
  const [top, left] = two(startPads(node, given, filter), 0);
  const output = node.output(0).shape?.map(Number) ?? [];
  const [outHeight = 1, outWidth = 1] =
    given.length === 1 ? [1, ...output.slice(2)] : output.slice(2);
  const perGroup = channels / groups;
  const positions = outHeight * outWidth;
  const chosen = choose(positions, Math.max(1, Math.ceil(MOST_POSITIONS / groups)), random);
  const rows = new Float32Array(batch * chosen.length * groups * columns);
  let at = 0;
  for (let item = 0; item < batch; item++)
    for (const position of chosen) {
      const y = Math.floor(position / outWidth) * sh - top;
      const x = (position % outWidth) * sw - left;
      for (let channel = 0; channel < groups * perGroup; channel++) {
        const plane = (item * channels + channel) * height * width;
        for (let i = 0; i < kh; i++)
          for (let j = 0; j < kw; j++, at++) {
            const [row, column] = [y + i * dh, x + j * dw];
            if (row >= 0 && row < height && column >= 0 && column < width)
              rows[at] = data[plane + row * width + column] ?? 0;
          }
      }
    }
  return rows;
}

/** Some of `count` places, each as likely; all of them when they are few. */
function choose(count: number, most: number, random: () => number): readonly number[] {
  if (count <= most) return Array.from({ length: count }, (_, index) => index);
  // one of each of `most` equal stretches
  return Array.from({ length: most }, (_, index) =>
    Math.floor(((index + random()) * count) / most),
  );
}
