/**
 * Normalizations of ONNX. All reduce to one core: rows of a length, made zero-mean (or not) and of
 * unit variance, in double precision.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__LayerNormalization.html, RMSNormalization,
 * GroupNormalization, InstanceNormalization, BatchNormalization, LRN, LpNormalization.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import type { ValueType } from '../ir/graph.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { floatsFor, floatsOf, spanOf } from './dense.ts';
import { sameAsInput } from './elementwise.ts';
import type { Floats } from './gemm.ts';
import { writeNumbers } from './numbers.ts';
import { broadcastIndices, splitAtAxis } from './shapes.ts';
import { normalizeAxes, normalizeAxis } from './support.ts';

/** Rows and what they were normalized with. */
export interface NormalizedRows {
  /** Normalized values, in the order of the input. */
  readonly values: Float64Array;
  /** Mean of each row; zeros when not centered. */
  readonly means: Float64Array;
  /** 1 / standard deviation (or root mean square) of each row. */
  readonly inverses: Float64Array;
}

/**
 * `(x - mean) / sqrt(variance + epsilon)` per row; without centering, `x / sqrt(mean(x^2) + epsilon)`.
 *
 * @param x - // [rows, rowLength]
 */
export function normalizeRows(
  x: Floats,
  rowLength: number,
  epsilon: number,
  centered = true,
): NormalizedRows {
  const rows = rowLength === 0 ? 0 : x.length / rowLength;
  const values = new Float64Array(x.length);
  const means = new Float64Array(rows);
  const inverses = new Float64Array(rows);
  for (let row = 0; row < rows; row++) {
    const from = row * rowLength;
    let mean = 0;
    if (centered) {
      for (let i = from; i < from + rowLength; i++) mean += x[i] as number;
      mean /= rowLength;
    }
    let squares = 0;
    for (let i = from; i < from + rowLength; i++) squares += ((x[i] as number) - mean) ** 2;
    const inverse = 1 / Math.sqrt(squares / rowLength + epsilon);
    for (let i = from; i < from + rowLength; i++) values[i] = ((x[i] as number) - mean) * inverse;
    means[row] = mean;
    inverses[row] = inverse;
  }
  return { values, means, inverses };
}

/** `values * scale + bias` in place; both broadcast to the shape. */
export function applyAffine(
  values: Floats,
  shape: readonly number[],
  scale: Tensor | undefined,
  bias: Tensor | undefined,
): void {
  if (scale !== undefined)
    forEachBroadcast(scale, shape, (i, factor) => {
      values[i] = (values[i] as number) * factor;
    });
  if (bias !== undefined)
    forEachBroadcast(bias, shape, (i, term) => {
      values[i] = (values[i] as number) + term;
    });
}

/** Visits every element of a shape with the element of an operand that broadcasts to it. */
function forEachBroadcast(
  operand: Tensor,
  shape: readonly number[],
  visit: (index: number, value: number) => void,
): void {
  const data = floatsOf(operand);
  const count = elementCount(shape);
  const trailing = operand.shape.every(
    (size, axis) => size === shape[axis + shape.length - operand.shape.length],
  );
  const indices = trailing ? undefined : broadcastIndices(operand.shape, shape);
  for (let i = 0; i < count; i++)
    visit(i, data[indices === undefined ? i % data.length : (indices[i] ?? 0)] ?? 0);
}

/** `values * scale[channel] + bias[channel]` for `[batch, channels, ...]`, in place. */
function applyPerChannel(
  values: Floats,
  channels: number,
  size: number,
  scale: Floats,
  bias: Floats,
): void {
  for (let i = 0; i < values.length; i++) {
    const channel = Math.floor(i / size) % channels;
    values[i] = (values[i] as number) * (scale[channel] ?? 1) + (bias[channel] ?? 0);
  }
}

/** Input type, then the statistics' type: sizes from the axis on are 1. */
export function inferRowNorm(context: InferContext): ValueType[] {
  const { dtype, shape } = context.input(0);
  const statistics: DType = dtype === 'f64' ? 'f64' : 'f32';
  if (shape === undefined) return [{ dtype }, { dtype: statistics }, { dtype: statistics }];
  const axis = normalizeAxis(context, context.node.int('axis', -1), shape.length);
  const reduced = shape.map((size, i): Dim => (i < axis ? size : 1));
  const type = { dtype: statistics, shape: reduced };
  return [{ dtype, shape }, type, type];
}

/** Type of a root-mean-square norm, which has the dtype of its scale. */
export function scaledType(context: InferContext): ValueType {
  const [y = {}] = inferRowNorm(context);
  return { ...y, dtype: context.input(1).dtype ?? y.dtype };
}

/** Normalizes from `axis` on; returns values and both statistics as tensors. */
export function evaluateRowNorm(
  context: EvaluateContext,
  centered: boolean,
): readonly [y: Tensor, mean: Tensor, inverse: Tensor] {
  const x = context.input(0);
  const axis = normalizeAxis(context, context.node.int('axis', -1), x.shape.length);
  const epsilon = context.node.float('epsilon', 1e-5);
  const rows = normalizeRows(floatsOf(x), spanOf(x.shape, axis), epsilon, centered);
  applyAffine(rows.values, x.shape, context.inputs[1], context.inputs[2]);
  const reduced = x.shape.map((size, i) => (i < axis ? size : 1));
  const statistics = x.dtype === 'f64' ? 'f64' : 'f32';
  return [
    writeNumbers(centered ? x.dtype : (context.inputs[1]?.dtype ?? x.dtype), x.shape, rows.values),
    writeNumbers(statistics, reduced, rows.means),
    writeNumbers(statistics, reduced, rows.inverses),
  ];
}

const layerNormalization: OpDefinition = {
  op: 'LayerNormalization',
  domain: '',
  inputs: [2, 3],
  outputs: [1, 3],
  infer: inferRowNorm,
  evaluate: (context) => evaluateRowNorm(context, true),
};

const rmsNormalization: OpDefinition = {
  op: 'RMSNormalization',
  domain: '',
  inputs: [2, 2],
  outputs: [1, 1],
  infer: (context) => [scaledType(context)],
  evaluate: (context) => evaluateRowNorm(context, false).slice(0, 1),
};

const instanceNormalization: OpDefinition = {
  op: 'InstanceNormalization',
  domain: '',
  inputs: [3, 3],
  outputs: [1, 1],
  infer: sameAsInput,
  evaluate(context) {
    const x = context.input(0);
    const size = spanOf(x.shape, 2);
    const { values } = normalizeRows(floatsOf(x), size, context.node.float('epsilon', 1e-5));
    const [scale, bias] = [floatsOf(context.input(1)), floatsOf(context.input(2))];
    applyPerChannel(values, x.shape[1] ?? 1, size, scale, bias);
    return [writeNumbers(x.dtype, x.shape, values)];
  },
};

/** Scale and bias are per group in opset 18 and per channel from 21 on. */
const groupNormalization: OpDefinition = {
  op: 'GroupNormalization',
  domain: '',
  inputs: [3, 3],
  outputs: [1, 1],
  infer: sameAsInput,
  evaluate(context) {
    const x = context.input(0);
    const channels = x.shape[1] ?? 1;
    const groups = context.node.int('num_groups', 1);
    const size = spanOf(x.shape, 2);
    const length = (channels / groups) * size;
    const { values } = normalizeRows(floatsOf(x), length, context.node.float('epsilon', 1e-5));
    const [scale, bias] = [floatsOf(context.input(1)), floatsOf(context.input(2))];
    const perGroup = context.opset < 21;
    applyPerChannel(values, perGroup ? groups : channels, perGroup ? length : size, scale, bias);
    return [writeNumbers(x.dtype, x.shape, values)];
  },
};

/** Inputs: x, scale, bias, mean, variance. In training mode the batch's own statistics are used. */
const batchNormalization: OpDefinition = {
  op: 'BatchNormalization',
  domain: '',
  inputs: [5, 5],
  outputs: [1, 5],
  infer(context) {
    const statistics = (index: number): ValueType => ({
      dtype: context.input(index).dtype,
      shape: context.input(index).shape,
    });
    return [...sameAsInput(context), statistics(3), statistics(4)];
  },
  evaluate(context) {
    const { node } = context;
    const x = context.input(0);
    const data = floatsOf(x);
    const channels = x.shape.length < 2 ? 1 : (x.shape[1] ?? 1);
    const size = spanOf(x.shape, 2);
    const [scale, bias, mean, variance] = [1, 2, 3, 4].map((i) => floatsOf(context.input(i)));
    const training = node.int('training_mode', 0) !== 0;
    const current = training ? channelStatistics(data, channels, size) : undefined;
    const [means, variances] = [current?.means ?? mean, current?.variances ?? variance];
    const epsilon = node.float('epsilon', 1e-5);
    const out = floatsFor(x.dtype, data.length);
    const factors = Array.from({ length: channels }, (_, channel) => {
      const factor = (scale?.[channel] ?? 1) / Math.sqrt((variances?.[channel] ?? 1) + epsilon);
      return [factor, (bias?.[channel] ?? 0) - (means?.[channel] ?? 0) * factor] as const;
    });
    for (let i = 0; i < out.length; i++) {
      const [factor, term] = factors[Math.floor(i / size) % channels] ?? [1, 0];
      out[i] = (data[i] as number) * factor + term;
    }
    const y = writeNumbers(x.dtype, x.shape, out);
    if (current === undefined) return [y];
    const momentum = node.float('momentum', 0.9);
    const running = (old: Floats | undefined, now: Float64Array, index: number): Tensor =>
      writeNumbers(
        context.input(index).dtype,
        [channels],
        now.map((value, i) => (old?.[i] ?? 0) * momentum + value * (1 - momentum)),
      );
    return [y, running(mean, current.means, 3), running(variance, current.variances, 4)];
  },
};

function channelStatistics(
  x: Floats,
  channels: number,
  size: number,
): { means: Float64Array; variances: Float64Array } {
  const [means, variances] = [new Float64Array(channels), new Float64Array(channels)];
  const count = x.length / channels;
  const channelOf = (i: number): number => Math.floor(i / size) % channels;
  x.forEach((value, i) => (means[channelOf(i)] = (means[channelOf(i)] ?? 0) + value / count));
  x.forEach((value, i) => {
    const channel = channelOf(i);
    variances[channel] = (variances[channel] ?? 0) + (value - (means[channel] ?? 0)) ** 2 / count;
  });
  return { means, variances };
}

const lpNormalization: OpDefinition = {
  op: 'LpNormalization',
  domain: '',
  inputs: [1, 1],
  outputs: [1, 1],
  infer: sameAsInput,
  evaluate(context) {
    const x = context.input(0);
    const axis = normalizeAxis(context, context.node.int('axis', -1), x.shape.length);
    const p = context.node.int('p', 2);
    const [outer, size, inner] = splitAtAxis(x.shape, axis);
    const data = floatsOf(x);
    const out = floatsFor(x.dtype, data.length);
    for (let o = 0; o < outer; o++)
      for (let i = 0; i < inner; i++) {
        let sum = 0;
        const at = (s: number): number => (o * size + s) * inner + i;
        for (let s = 0; s < size; s++) sum += Math.abs(data[at(s)] ?? 0) ** p;
        const norm = sum ** (1 / p);
        for (let s = 0; s < size; s++) out[at(s)] = norm === 0 ? 0 : (data[at(s)] ?? 0) / norm;
      }
    return [writeNumbers(x.dtype, x.shape, out)];
  },
};

/** Divides by a power of the squares summed over neighbouring channels. */
const lrn: OpDefinition = {
  op: 'LRN',
  domain: '',
  inputs: [1, 1],
  outputs: [1, 1],
  infer: sameAsInput,
  evaluate(context) {
    const { node } = context;
    const x = context.input(0);
    const data = floatsOf(x);
    const [channels, plane] = [x.shape[1] ?? 1, spanOf(x.shape, 2)];
    const size = node.int('size', 1);
    const [alpha, beta] = [node.float('alpha', 1e-4), node.float('beta', 0.75)];
    const bias = node.float('bias', 1);
    const before = Math.floor((size - 1) / 2);
    const out = floatsFor(x.dtype, data.length);
    for (let i = 0; i < out.length; i++) {
      const channel = Math.floor(i / plane) % channels;
      const first = Math.max(0, channel - before);
      const last = Math.min(channels - 1, channel - before + size - 1);
      let squares = 0;
      for (let c = first; c <= last; c++) squares += (data[i + (c - channel) * plane] ?? 0) ** 2;
      out[i] = (data[i] ?? 0) / (bias + (alpha / size) * squares) ** beta;
    }
    return [writeNumbers(x.dtype, x.shape, out)];
  },
};

const meanVarianceNormalization: OpDefinition = {
  op: 'MeanVarianceNormalization',
  domain: '',
  inputs: [1, 1],
  outputs: [1, 1],
  infer: sameAsInput,
  evaluate(context) {
    const x = context.input(0);
    const axes = normalizeAxes(context, context.node.ints('axes') ?? [0, 2, 3], x.shape.length);
    const kept = x.shape.map((size, axis) => (axes.includes(axis) ? 1 : size));
    const groups = broadcastIndices(kept, x.shape);
    const data = floatsOf(x);
    const count = elementCount(kept);
    const [sums, squares] = [new Float64Array(count), new Float64Array(count)];
    const per = data.length / count;
    const groupOf = (i: number): number => groups?.[i] ?? i;
    data.forEach((value, i) => (sums[groupOf(i)] = (sums[groupOf(i)] ?? 0) + value / per));
    data.forEach((value, i) => {
      const group = groupOf(i);
      squares[group] = (squares[group] ?? 0) + (value - (sums[group] ?? 0)) ** 2 / per;
    });
    const out = floatsFor(x.dtype, data.length);
    // the 1e-9 is part of the function ONNX defines the op by
    data.forEach((value, i) => {
      const group = groupOf(i);
      out[i] = (value - (sums[group] ?? 0)) / (Math.sqrt(squares[group] ?? 0) + 1e-9);
    });
    return [writeNumbers(x.dtype, x.shape, out)];
  },
};

/** Normalizations of ONNX. */
export const normOps: readonly OpDefinition[] = [
  layerNormalization,
  rmsNormalization,
  instanceNormalization,
  groupNormalization,
  batchNormalization,
  lpNormalization,
  lrn,
  meanVarianceNormalization,
];
