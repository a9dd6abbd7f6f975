/**
 * DeformConv: a convolution whose taps are moved by learned offsets and read between cells.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__DeformConv.html, https://arxiv.org/abs/1811.11168.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import { convShape, finishConv } from './conv.ts';
import type { EvaluateContext, OpDefinition } from './definition.ts';
import { floatsFor, floatsOf, optionalFloats } from './dense.ts';
import type { Floats } from './gemm.ts';
import { multiplyRows } from './gemm.ts';
import { writeNumbers } from './numbers.ts';
import { expectRank, opError } from './support.ts';
import type { Window } from './window.ts';
import { resolveWindow, windowAttributes } from './window.ts';

/** Value between cells of one plane; zero outside. */
function sample(
  data: Floats,
  start: number,
  height: number,
  width: number,
  y: number,
  x: number,
): number {
  if (y <= -1 || y >= height || x <= -1 || x >= width) return 0;
  const [y0, x0] = [Math.floor(y), Math.floor(x)];
  const [fy, fx] = [y - y0, x - x0];
  const at = (row: number, column: number): number =>
    row < 0 || row >= height || column < 0 || column >= width
      ? 0
      : (data[start + row * width + column] ?? 0);
  return (
    (1 - fy) * ((1 - fx) * at(y0, x0) + fx * at(y0, x0 + 1)) +
    fy * ((1 - fx) * at(y0 + 1, x0) + fx * at(y0 + 1, x0 + 1))
  );
}

/** rows[position, channel, tap] of one image, all channels. */
function gatherDeformed(
  context: EvaluateContext,
  image: number,
  window: Window,
  offsets: Floats,
  mask: Floats | undefined,
): Float64Array {
  const x = context.input(0);
  const data = floatsOf(x);
  const [, channels = 1, height = 1, width = 1] = x.shape;
  const offsetGroups = context.node.int('offset_group', 1);
  const [kernelWidth, taps] = [window.kernel[1] ?? 1, elementCount(window.kernel)];
  const [columns, count] = [window.output[1] ?? 1, elementCount(window.output)];
  const [strideY = 1, strideX = 1] = window.strides;
  const [dilationY = 1, dilationX = 1] = window.dilations;
  const [padY = 0, padX = 0] = window.padsBegin;
  const rows = new Float64Array(count * channels * taps);
  for (let position = 0; position < count; position++)
    for (let channel = 0; channel < channels; channel++)
      for (let tap = 0; tap < taps; tap++) {
        const group = Math.floor((channel * offsetGroups) / channels);
        const slot = (image * offsetGroups + group) * taps + tap;
        const y =
          Math.floor(position / columns) * strideY -
          padY +
          Math.floor(tap / kernelWidth) * dilationY +
          (offsets[2 * slot * count + position] ?? 0);
        const at =
          (position % columns) * strideX -
          padX +
          (tap % kernelWidth) * dilationX +
          (offsets[(2 * slot + 1) * count + position] ?? 0);
        const start = (image * channels + channel) * height * width;
        const weight = mask?.[slot * count + position] ?? 1;
        rows[(position * channels + channel) * taps + tap] =
          weight * sample(data, start, height, width, y, at);
      }
  return rows;
}

function evaluateDeformConv(context: EvaluateContext): Tensor[] {
  const { node } = context;
  const [x, w] = [context.input(0), context.input(1)];
  const [batch = 1, channels = 1, ...spatial] = x.shape;
  if (spatial.length !== 2) throw opError(context, `input has rank ${x.shape.length}, wanted 4`);
  const group = node.int('group', 1);
  const window = resolveWindow(
    windowAttributes(node, node.ints('kernel_shape') ?? w.shape.slice(2)),
    spatial,
  );
  const [taps, count] = [elementCount(window.kernel), elementCount(window.output)];
  const [outputs, perGroup] = [w.shape[0] ?? 1, channels / group];
  if (w.shape[1] !== perGroup)
    throw opError(context, `input has ${channels} channels, weights ${w.shape[1]} x ${group}`);
  const [weights, offsets] = [floatsOf(w), floatsOf(context.input(2))];
  const mask = optionalFloats(context.inputs[4]);
  const values = floatsFor(x.dtype, batch * outputs * count);
  const rowLength = perGroup * taps;
  const perOutput = outputs / group;
  for (let image = 0; image < batch; image++) {
    const rows = gatherDeformed(context, image, window, offsets, mask);
    for (let g = 0; g < group; g++) {
      // the rows of one group, contiguous
      const part = new Float64Array(count * rowLength);
      for (let position = 0; position < count; position++) {
        const from = position * channels * taps + g * rowLength;
        part.set(rows.subarray(from, from + rowLength), position * rowLength);
      }
      multiplyRows(
        perOutput,
        count,
        rowLength,
        { data: weights, offset: g * perOutput * rowLength },
        { data: part, offset: 0 },
        { data: values, offset: (image * outputs + g * perOutput) * count },
      );
    }
  }
  finishConv(node, values, outputs, count, optionalFloats(context.inputs[3]));
  return [writeNumbers(x.dtype, [batch, outputs, ...window.output], values)];
}

/** Inputs: x, w, offsets [N, groups * taps * 2, H', W'] as (y, x) pairs, bias?, mask?. */
const deformConv: OpDefinition = {
  op: 'DeformConv',
  domain: '',
  inputs: [3, 5],
  outputs: [1, 1],
  infer(context) {
    expectRank(context, 'X', context.input(0).shape, 4);
    const shape = convShape(context, context.input(0), context.input(1));
    return [{ dtype: context.input(0).dtype, shape }];
  },
  evaluate: evaluateDeformConv,
};

/** Deformable convolution. */
export const deformConvOps: readonly OpDefinition[] = [deformConv];
