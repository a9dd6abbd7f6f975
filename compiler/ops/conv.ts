/**
 * Convolutions in any number of spatial dimensions, with groups: float, integer, quantized, fused.
 *
 * Windows are gathered into rows, `[positions, channels * taps]`, a tile at a time, and multiplied
 * with the weights as matrices. The transposed forms are in `conv-transpose.ts`.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__Conv.html, ConvInteger, QLinearConv; com.microsoft
 * FusedConv in onnxruntime's ContribOperators.md.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import { isStatic } from '../ir/dim.ts';
import type { Node, Value, ValueType } from '../ir/graph.ts';
import { activate, activationOf } from './attribute-activation.ts';
import type { Cost, EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { floatsFor, floatsOf, optionalFloats, spanOf } from './dense.ts';
import type { Floats } from './gemm.ts';
import { multiplyRows } from './gemm.ts';
import { centered } from './matmul.ts';
import { readNumbers, writeNumbers } from './numbers.ts';
import { quantizeValues } from './quantization.ts';
import type { OpPlace } from './support.ts';
import { opError, sameDim } from './support.ts';
import type { Window } from './window.ts';
import { resolveWindow, windowAttributes, windowCount, windowOffsets } from './window.ts';

/** Shape and floats of an operand. */
export interface Dense {
  /** Dimensions. */
  readonly shape: readonly number[];
  /** Elements. */
  readonly data: Floats;
}

/** Output shape of a convolution from the types of its input and weights. */
export function convShape(context: InferContext, x: ValueType, w: ValueType): ValueType['shape'] {
  const { node } = context;
  if (x.shape === undefined) return undefined;
  const [batch = 1, channels = 1, ...spatial] = x.shape;
  if (w.shape !== undefined && w.shape.length !== x.shape.length)
    throw opError(context, `input has rank ${x.shape.length} and weights ${w.shape.length}`);
  const inner = w.shape?.[1];
  if (typeof inner === 'number')
    sameDim(context, 'channels', channels, inner * node.int('group', 1));
  const declared = node.ints('kernel_shape');
  const kernel = declared ?? w.shape?.slice(2);
  const outputs = w.shape?.[0] ?? context.fresh();
  if (!isStatic(kernel)) return [batch, outputs, ...spatial.map(() => context.fresh())];
  if (kernel.length !== spatial.length)
    throw opError(context, `kernel_shape has ${kernel.length} entries, wanted ${spatial.length}`);
  const attributes = windowAttributes(node, kernel);
  return [batch, outputs, ...spatial.map((size, axis) => windowCount(attributes, axis, size))];
}

/** Positions gathered at a time: rows that fit the second-level cache. */
function tileSize(rowLength: number, positions: number): number {
  const fitting = Math.ceil(131_072 / Math.max(1, rowLength) / 4) * 4;
  return Math.max(1, Math.min(positions, Math.max(64, fitting)));
}

/**
 * A convolution.
 *
 * @param x - // [batch, channels, ...spatial]
 * @param w - // [outputs, channels / group, ...kernel]
 * @param out - array type of the result
 * @returns // [batch, outputs, ...window.output]
 */
function convolve(
  x: Dense,
  w: Dense,
  window: Window,
  group: number,
  out: (length: number) => Floats,
): Floats {
  const [batch = 1, channels = 1] = x.shape;
  const outputs = w.shape[0] ?? 1;
  const [plane, taps, positions] = [window.input, window.kernel, window.output].map(elementCount);
  const [inputSize = 1, tapCount = 1, outputSize = 1] = [plane, taps, positions];
  const perGroup = channels / group;
  const outputsPerGroup = outputs / group;
  const rowLength = perGroup * tapCount;
  const result = out(batch * outputs * outputSize);
  const tile = tileSize(rowLength, outputSize);
  const rows =
    x.data instanceof Float64Array
      ? new Float64Array(tile * rowLength)
      : new Float32Array(tile * rowLength);
  for (let from = 0; from < outputSize; from += tile) {
    const to = Math.min(from + tile, outputSize);
    const offsets = windowOffsets(window, from, to);
    for (let image = 0; image < batch; image++)
      for (let g = 0; g < group; g++) {
        const start = (image * channels + g * perGroup) * inputSize;
        gatherRows(x.data, start, perGroup, inputSize, offsets, to - from, tapCount, rows);
        multiplyRows(
          outputsPerGroup,
          to - from,
          rowLength,
          { data: w.data, offset: g * outputsPerGroup * rowLength },
          { data: rows, offset: 0 },
          { data: result, offset: (image * outputs + g * outputsPerGroup) * outputSize + from },
          outputSize,
        );
      }
  }
  return result;
}

/** rows[position, channel, tap] = x[channel, offset of the tap], 0 in the padding. */
function gatherRows(
  x: Floats,
  start: number,
  channels: number,
  plane: number,
  offsets: Int32Array,
  count: number,
  taps: number,
  rows: Floats,
): void {
  const rowLength = channels * taps;
  for (let tap = 0; tap < taps; tap++)
    for (let position = 0; position < count; position++) {
      const offset = offsets[tap * count + position] as number;
      let at = position * rowLength + tap;
      if (offset < 0) for (let c = 0; c < channels; c++, at += taps) rows[at] = 0;
      else
        for (let c = 0, from = start + offset; c < channels; c++, from += plane, at += taps)
          rows[at] = x[from] as number;
    }
}

function windowFor(place: OpPlace, x: Dense, w: Dense): Window {
  const kernel = place.node.ints('kernel_shape') ?? w.shape.slice(2);
  const group = place.node.int('group', 1);
  if ((x.shape[1] ?? 1) !== (w.shape[1] ?? 1) * group)
    throw opError(place, `input has ${x.shape[1]} channels, weights ${w.shape[1]} x ${group}`);
  return resolveWindow(windowAttributes(place.node, kernel), x.shape.slice(2));
}

/** Adds `bias[channel]` to values of `channels` planes of `size` elements. */
export function addBias(
  values: Floats,
  channels: number,
  size: number,
  bias: Floats | undefined,
): void {
  if (bias === undefined) return;
  for (let i = 0; i < values.length; i++)
    values[i] = (values[i] ?? 0) + (bias[Math.floor(i / size) % channels] ?? 0);
}

/** Adds `bias[channel]`, and `addend` of the result's shape, then applies the node's activation. */
export function finishConv(
  node: Node,
  values: Floats,
  channels: number,
  size: number,
  bias: Floats | undefined,
  addend?: Floats,
): void {
  addBias(values, channels, size, bias);
  if (addend !== undefined)
    for (let i = 0; i < values.length; i++) values[i] = (values[i] ?? 0) + (addend[i] ?? 0);
  const activation = activationOf(node);
  if (activation !== undefined) activate(values, activation);
}

/** Inputs 0 and 1 of a node convolved, with nothing added. */
export function convolveInputs(context: EvaluateContext): Dense {
  const input = context.input(0);
  const x = { shape: input.shape, data: floatsOf(input) };
  const w = { shape: context.input(1).shape, data: floatsOf(context.input(1)) };
  const window = windowFor(context, x, w);
  const group = context.node.int('group', 1);
  const data = convolve(x, w, window, group, (length) => floatsFor(input.dtype, length));
  return { shape: [x.shape[0] ?? 1, w.shape[0] ?? 1, ...window.output], data };
}

function evaluateConv(context: EvaluateContext): Tensor[] {
  const { shape, data } = convolveInputs(context);
  const [bias, addend] = [optionalFloats(context.inputs[2]), optionalFloats(context.inputs[3])];
  finishConv(context.node, data, shape[1] ?? 1, spanOf(shape, 2), bias, addend);
  return [writeNumbers(context.input(0).dtype, shape, data)];
}

/** Multiplications and traffic of a convolution whose weights are input `weights`. */
export function convCost(
  node: Node,
  shapeOf: (value: Value) => readonly number[],
  weights = 1,
): Cost {
  const w = shapeOf(node.input(weights));
  const out = spanOf(shapeOf(node.output()), 0);
  return {
    flops: 2 * out * spanOf(w, 1),
    bytes: 4 * (spanOf(shapeOf(node.input(0)), 0) + spanOf(w, 0) + out),
  };
}

const conv: OpDefinition = {
  op: 'Conv',
  domain: '',
  inputs: [2, 3],
  outputs: [1, 1],
  infer: (context) => [
    {
      dtype: context.input(0).dtype ?? context.input(1).dtype,
      shape: convShape(context, context.input(0), context.input(1)),
    },
  ],
  evaluate: evaluateConv,
  cost: convCost,
};

/** Inputs: x, w, bias, z: `activation(conv(x, w) + bias + z)`. */
const fusedConv: OpDefinition = {
  ...conv,
  op: 'FusedConv',
  domain: 'com.microsoft',
  inputs: [2, 4],
};

const convInteger: OpDefinition = {
  op: 'ConvInteger',
  domain: '',
  inputs: [2, 4],
  outputs: [1, 1],
  infer: (context) => [
    { dtype: 'i32', shape: convShape(context, context.input(0), context.input(1)) },
  ],
  evaluate(context) {
    const x = centered(context.input(0), context.inputs[2], 0);
    const w = centered(context.input(1), context.inputs[3], 0);
    const window = windowFor(context, x, w);
    const group = context.node.int('group', 1);
    const sums = convolve(x, w, window, group, (length) => new Float64Array(length));
    return [writeNumbers('i32', [x.shape[0] ?? 1, w.shape[0] ?? 1, ...window.output], sums)];
  },
  cost: convCost,
};

/** Inputs: x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias. */
const qLinearConv: OpDefinition = {
  op: 'QLinearConv',
  domain: '',
  inputs: [8, 9],
  outputs: [1, 1],
  infer: (context) => [
    {
      dtype: context.input(7).dtype ?? context.input(0).dtype,
      shape: convShape(context, context.input(0), context.input(3)),
    },
  ],
  evaluate(context) {
    const x = centered(context.input(0), context.input(2), 0);
    const w = centered(context.input(3), context.input(5), 0);
    const window = windowFor(context, x, w);
    const group = context.node.int('group', 1);
    const sums = convolve(x, w, window, group, (length) => new Float64Array(length));
    const outputs = w.shape[0] ?? 1;
    const size = elementCount(window.output);
    finishConv(context.node, sums, outputs, size, optionalFloats(context.inputs[8]));
    const [xScale = 1] = floatsOf(context.input(1));
    const wScale = floatsOf(context.input(4));
    const [yScale = 1] = floatsOf(context.input(6));
    for (let i = 0; i < sums.length; i++) {
      const channel = wScale.length === 1 ? 0 : Math.floor(i / size) % outputs;
      sums[i] = ((sums[i] ?? 0) * xScale * (wScale[channel] ?? 1)) / yScale;
    }
    const zero = context.input(7);
    const shape = [x.shape[0] ?? 1, outputs, ...window.output];
    return [quantizeValues(sums, shape, zero.dtype, readNumbers(zero)[0] ?? 0)];
  },
  cost: (node, shapeOf) => convCost(node, shapeOf, 3),
};

/** Convolutions. */
export const convOps: readonly OpDefinition[] = [conv, fusedConv, convInteger, qLinearConv];
