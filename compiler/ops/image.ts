/**
 * Sampling and boxes: GridSample, AffineGrid, CenterCropPad, NonMaxSuppression.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__GridSample.html, AffineGrid, CenterCropPad,
 * NonMaxSuppression; spatial transformers after https://arxiv.org/abs/1506.02025.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import type { EvaluateContext, OpDefinition } from './definition.ts';
import { floatsFor, floatsOf, integersOf, spanOf } from './dense.ts';
import type { Floats } from './gemm.ts';
import { gatherElements, readNumbers, readScalar, writeNumbers } from './numbers.ts';
import { stridesOf } from './shapes.ts';
import { expectRank, normalizeAxes, opError } from './support.ts';

type Interpolation = 'nearest' | 'linear' | 'cubic';

/** How positions outside of an axis are treated. */
interface GridAxis {
  readonly size: number;
  readonly padding: string;
  readonly low: number;
  readonly high: number;
}

/** Mirrors a position into `low` … `high`. */
function reflect(x: number, low: number, high: number): number {
  const range = high - low;
  if (range <= 0) return low;
  const distance = x < low ? low - x : x > high ? x - high : 0;
  if (distance === 0) return x;
  const turns = Math.floor(distance / range);
  const rest = distance - turns * range;
  return x < low === (turns % 2 === 0) ? low + rest : high - rest;
}

/** The cell a whole position reads, or -1 for zero. */
function cellOf({ size, padding, low, high }: GridAxis, x: number): number {
  if (x >= 0 && x < size) return x;
  if (padding === 'border') return Math.min(size - 1, Math.max(0, x));
  return padding === 'reflection' ? Math.round(reflect(x, low, high)) : -1;
}

/** Cells and weights that a position on one axis is interpolated from. */
function tapsOf(
  axis: GridAxis,
  mode: Interpolation,
  position: number,
): { readonly cells: number[]; readonly weights: number[] } {
  const outside = position < axis.low || position > axis.high;
  let x = mode === 'nearest' ? roundEven(position) : position;
  // a cubic kernel keeps its position and clamps its taps, as PyTorch does
  if (outside && axis.padding === 'border' && mode !== 'cubic')
    x = Math.min(axis.size - 1, Math.max(0, x));
  if (outside && axis.padding === 'reflection') x = reflect(x, axis.low, axis.high);
  if (mode === 'nearest') return { cells: [cellOf(axis, roundEven(x))], weights: [1] };
  const left = Math.floor(x);
  const ratio = x - left;
  const weights = mode === 'linear' ? [1 - ratio, ratio] : cubicWeights(ratio);
  const start = mode === 'linear' ? left : left - 1;
  return { cells: weights.map((_, i) => cellOf(axis, start + i)), weights };
}

function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  return rest < 0.5 || (rest === 0.5 && floor % 2 === 0) ? floor : floor + 1;
}

/** Keys' kernel with a = -0.75, as PyTorch uses. */
function cubicWeights(ratio: number): number[] {
  const a = -0.75;
  return [1 + ratio, ratio, 1 - ratio, 2 - ratio].map((x) =>
    x <= 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : ((a * x - 5 * a) * x + 8 * a) * x - 4 * a,
  );
}

function interpolationOf(context: EvaluateContext): Interpolation {
  const mode = context.node.string('mode', 'linear');
  if (mode === 'bilinear' || mode === 'linear') return 'linear';
  if (mode === 'bicubic' || mode === 'cubic') return 'cubic';
  if (mode === 'nearest') return 'nearest';
  throw opError(context, `unknown mode "${mode}"`);
}

/** Inputs: x [N, C, ...spatial], grid [N, ...output, axes]; the last spatial axis comes first in it. */
const gridSample: OpDefinition = {
  op: 'GridSample',
  domain: '',
  inputs: [2, 2],
  outputs: [1, 1],
  infer(context) {
    const [x, grid] = [context.input(0), context.input(1)];
    if (x.shape === undefined || grid.shape === undefined) return [{ dtype: x.dtype }];
    if (x.shape.length !== grid.shape.length)
      throw opError(context, `input has rank ${x.shape.length} and grid ${grid.shape.length}`);
    return [{ dtype: x.dtype, shape: [...x.shape.slice(0, 2), ...grid.shape.slice(1, -1)] }];
  },
  evaluate(context) {
    const [x, grid] = [context.input(0), context.input(1)];
    const mode = interpolationOf(context);
    const aligned = context.node.int('align_corners', 0) !== 0;
    const padding = context.node.string('padding_mode', 'zeros');
    const [batch = 1, channels = 1, ...spatial] = x.shape;
    const axes = spatial.map((size) => ({
      size,
      padding,
      low: aligned ? 0 : -0.5,
      high: aligned ? size - 1 : size - 0.5,
    }));
    const strides = stridesOf(spatial);
    const points = spanOf(grid.shape, 1, grid.shape.length - 1);
    const plane = elementCount(spatial);
    const [data, positions] = [floatsOf(x), floatsOf(grid)];
    const out = floatsFor(x.dtype, batch * channels * points);
    for (let n = 0; n < batch; n++)
      for (let point = 0; point < points; point++) {
        const at = (n * points + point) * spatial.length;
        const taps = axes.map((axis, i) => {
          const unit = positions[at + spatial.length - 1 - i] ?? 0;
          const position = aligned
            ? ((unit + 1) / 2) * (axis.size - 1)
            : ((unit + 1) * axis.size - 1) / 2;
          return tapsOf(axis, mode, position);
        });
        const cells = combineTaps(taps, strides);
        for (let c = 0; c < channels; c++) {
          const start = (n * channels + c) * plane;
          let sum = 0;
          for (const [offset, weight] of cells) sum += weight * (data[start + offset] ?? 0);
          out[(n * channels + c) * points + point] = sum;
        }
      }
    return [writeNumbers(x.dtype, [batch, channels, ...grid.shape.slice(1, -1)], out)];
  },
};

/** Products of the taps of all axes, zeros outside left out. */
function combineTaps(
  taps: readonly { readonly cells: readonly number[]; readonly weights: readonly number[] }[],
  strides: readonly number[],
): (readonly [offset: number, weight: number])[] {
  let result: (readonly [number, number])[] = [[0, 1]];
  taps.forEach(({ cells, weights }, axis) => {
    result = result.flatMap(([offset, weight]) =>
      cells.flatMap((cell, i) =>
        cell < 0
          ? []
          : [[offset + cell * (strides[axis] ?? 1), weight * (weights[i] ?? 0)] as const],
      ),
    );
  });
  return result;
}

/** Inputs: theta [N, axes, axes + 1], size [N, C, ...spatial]. */
const affineGrid: OpDefinition = {
  op: 'AffineGrid',
  domain: '',
  inputs: [2, 2],
  outputs: [1, 1],
  infer(context) {
    const { dtype, shape } = context.input(0);
    expectRank(context, 'theta', shape, 3);
    expectRank(context, 'size', context.input(1).shape, 1);
    const count = context.input(1).shape?.[0];
    const rank = typeof shape?.[1] === 'number' ? shape[1] + 2 : count;
    const size = context.elements(1);
    if (typeof rank !== 'number') return [{ dtype }];
    const sizeAt = (axis: number): Dim => size?.[axis] ?? context.fresh();
    const spatial = Array.from({ length: rank - 2 }, (_, axis) => sizeAt(axis + 2));
    return [{ dtype, shape: [shape?.[0] ?? sizeAt(0), ...spatial, rank - 2] }];
  },
  evaluate(context) {
    const theta = context.input(0);
    const [batch = 1, , ...spatial] = integersOf(context.input(1));
    const aligned = context.node.int('align_corners', 0) !== 0;
    const rank = spatial.length;
    const matrix = floatsOf(theta);
    const unit = (index: number, size: number): number => {
      if (!aligned) return (2 * index + 1) / size - 1;
      return size === 1 ? 0 : (2 * index) / (size - 1) - 1;
    };
    const strides = stridesOf(spatial);
    const points = elementCount(spatial);
    const out = floatsFor(theta.dtype, batch * points * rank);
    for (let n = 0; n < batch; n++)
      for (let point = 0; point < points; point++) {
        // x comes first: the last axis
        const position = spatial
          .map((size, axis) => unit(Math.floor(point / (strides[axis] ?? 1)) % size, size))
          .reverse();
        for (let row = 0; row < rank; row++) {
          const from = (n * rank + row) * (rank + 1);
          out[(n * points + point) * rank + row] = position.reduce(
            (sum, value, i) => sum + value * (matrix[from + i] ?? 0),
            matrix[from + rank] ?? 0,
          );
        }
      }
    return [writeNumbers(theta.dtype, [batch, ...spatial, rank], out)];
  },
};

/** Crops or pads evenly around the centre; of an odd difference the end gets the larger part. */
const centerCropPad: OpDefinition = {
  op: 'CenterCropPad',
  domain: '',
  inputs: [2, 2],
  outputs: [1, 1],
  infer(context) {
    const { dtype, shape } = context.input(0);
    if (shape === undefined) return [{ dtype }];
    const axes = normalizeAxes(
      context,
      context.node.ints('axes') ?? shape.map((_, axis) => axis),
      shape.length,
    );
    const sizes = context.elements(1);
    const result: Dim[] = [...shape];
    axes.forEach((axis, i) => (result[axis] = sizes?.[i] ?? context.fresh()));
    return [{ dtype, shape: result }];
  },
  evaluate(context) {
    const x = context.input(0);
    const axes = normalizeAxes(
      context,
      context.node.ints('axes') ?? x.shape.map((_, axis) => axis),
      x.shape.length,
    );
    const sizes = integersOf(context.input(1));
    const shape = [...x.shape];
    axes.forEach((axis, i) => (shape[axis] = sizes[i] ?? 1));
    // output cell p reads input cell p + shift
    const shifts = shape.map((size, axis) => {
      const difference = (x.shape[axis] ?? 1) - size;
      return Math.sign(difference) * Math.floor(Math.abs(difference) / 2);
    });
    const [from, to] = [stridesOf(x.shape), stridesOf(shape)];
    const indices = Float64Array.from({ length: elementCount(shape) }, (_, i) => {
      let index = 0;
      for (const [axis, size] of shape.entries()) {
        const place = (Math.floor(i / (to[axis] ?? 1)) % size) + (shifts[axis] ?? 0);
        if (place < 0 || place >= (x.shape[axis] ?? 1)) return -1;
        index += place * (from[axis] ?? 1);
      }
      return index;
    });
    return [gatherElements(x, shape, indices)];
  },
};

/** Inputs: boxes [N, boxes, 4], scores [N, classes, boxes], limit?, IoU threshold?, score threshold?. */
const nonMaxSuppression: OpDefinition = {
  op: 'NonMaxSuppression',
  domain: '',
  inputs: [2, 5],
  outputs: [1, 1],
  infer: (context) => [{ dtype: 'i64', shape: [context.fresh(), 3] }],
  evaluate: (context) => [evaluateSuppression(context)],
};

function evaluateSuppression(context: EvaluateContext): Tensor {
  const [boxTensor, scoreTensor] = [context.input(0), context.input(1)];
  const [batch = 1, classes = 1, count = 1] = scoreTensor.shape;
  const scalar = (index: number): number | undefined =>
    context.inputs[index] && readScalar(context.inputs[index]);
  const limit = Math.min(scalar(2) ?? 0, count);
  const overlap = scalar(3) ?? 0;
  const threshold = scalar(4) ?? -Infinity;
  const scores = readNumbers(scoreTensor);
  const boxes = cornersOf(floatsOf(boxTensor), context.node.int('center_point_box', 0) !== 0);
  const selected: number[] = [];
  for (let n = 0; n < batch; n++)
    for (let c = 0; c < classes; c++) {
      const at = (n * classes + c) * count;
      const order = Array.from({ length: count }, (_, i) => i)
        .filter((i) => (scores[at + i] ?? 0) > threshold)
        .sort((a, b) => (scores[at + b] ?? 0) - (scores[at + a] ?? 0) || a - b);
      const kept: number[] = [];
      for (const i of order) {
        if (kept.length >= limit) break;
        if (kept.every((j) => iou(boxes, n * count + i, n * count + j) <= overlap)) kept.push(i);
      }
      for (const i of kept) selected.push(n, c, i);
    }
  return writeNumbers('i64', [selected.length / 3, 3], selected);
}

/** Boxes as [y1, x1, y2, x2] with the smaller corner first. */
function cornersOf(boxes: Floats, centered: boolean): Float64Array {
  const result = new Float64Array(boxes.length);
  for (let at = 0; at < boxes.length; at += 4) {
    const [a = 0, b = 0, c = 0, d = 0] = boxes.subarray(at, at + 4);
    // centred boxes are x, y, width, height
    const corners = centered ? [b - d / 2, a - c / 2, b + d / 2, a + c / 2] : [a, b, c, d];
    const [y1 = 0, x1 = 0, y2 = 0, x2 = 0] = corners;
    result.set([Math.min(y1, y2), Math.min(x1, x2), Math.max(y1, y2), Math.max(x1, x2)], at);
  }
  return result;
}

/** Intersection over union of two boxes. */
function iou(boxes: Float64Array, first: number, second: number): number {
  const [y1 = 0, x1 = 0, y2 = 0, x2 = 0] = boxes.subarray(4 * first, 4 * first + 4);
  const [v1 = 0, u1 = 0, v2 = 0, u2 = 0] = boxes.subarray(4 * second, 4 * second + 4);
  const height = Math.min(y2, v2) - Math.max(y1, v1);
  const width = Math.min(x2, u2) - Math.max(x1, u1);
  if (height <= 0 || width <= 0) return 0;
  const shared = height * width;
  const union = (y2 - y1) * (x2 - x1) + (v2 - v1) * (u2 - u1) - shared;
  return union <= 0 ? 0 : shared / union;
}

/** Sampling and boxes. */
export const imageOps: readonly OpDefinition[] = [
  gridSample,
  { ...gridSample, domain: 'com.microsoft' },
  affineGrid,
  centerCropPad,
  nonMaxSuppression,
];
