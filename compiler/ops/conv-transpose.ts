/**
 * What runs a convolution backwards: ConvTranspose and Col2Im, both a scatter of window contents.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__ConvTranspose.html and onnx__Col2Im.html.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { divideDims, isStatic } from '../ir/dim.ts';
import type { Node, Value, ValueType } from '../ir/graph.ts';
import type { Dense } from './conv.ts';
import { finishConv } from './conv.ts';
import type { Cost, EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { floatsFor, floatsOf, integersOf, optionalFloats, spanOf } from './dense.ts';
import type { Floats } from './gemm.ts';
import { multiplyRows, transposed } from './gemm.ts';
import { writeNumbers } from './numbers.ts';
import { opError } from './support.ts';
import type { Window, WindowAttributes } from './window.ts';
import {
  extentOf,
  splitPadding,
  transposedCount,
  windowAttributes,
  windowCount,
  windowOffsets,
} from './window.ts';

/** Output type of a transposed convolution. */
export function inferConvTranspose(context: InferContext): ValueType[] {
  const { node } = context;
  const { dtype, shape } = context.input(0);
  const weights = context.input(1).shape;
  if (shape === undefined) return [{ dtype }];
  const [batch = 1, , ...spatial] = shape;
  const perGroup = weights?.[1];
  const outputs = typeof perGroup === 'number' ? perGroup * node.int('group', 1) : context.fresh();
  const given = node.ints('output_shape');
  if (given !== undefined)
    return [{ dtype, shape: [batch, outputs, ...given.slice(-spatial.length)] }];
  const kernel = node.ints('kernel_shape') ?? weights?.slice(2);
  if (!isStatic(kernel))
    return [{ dtype, shape: [batch, outputs, ...spatial.map(() => context.fresh())] }];
  const attributes = windowAttributes(node, kernel);
  const extra = node.ints('output_padding') ?? [];
  const sizes = spatial.map((size, axis): Dim =>
    transposedCount(attributes, axis, size, extra[axis] ?? 0),
  );
  return [{ dtype, shape: [batch, outputs, ...sizes] }];
}

/** The window that slides over the output of a transposed convolution whose input has this size. */
export function transposedWindow(
  node: Node,
  attributes: WindowAttributes,
  input: readonly number[],
): Window {
  const extra = node.ints('output_padding') ?? [];
  const given = node.ints('output_shape')?.slice(-input.length);
  const output =
    given ??
    input.map((size, axis) => Number(transposedCount(attributes, axis, size, extra[axis] ?? 0)));
  const padsBegin: number[] = [];
  const padsEnd: number[] = [];
  const derived = given !== undefined || attributes.autoPad.startsWith('SAME');
  input.forEach((size, axis) => {
    const full =
      (attributes.strides[axis] ?? 1) * (size - 1) +
      (extra[axis] ?? 0) +
      extentOf(attributes, axis);
    let pads: [number, number] = [
      attributes.autoPad === 'VALID' ? 0 : (attributes.pads[axis] ?? 0),
      attributes.autoPad === 'VALID' ? 0 : (attributes.pads[axis + input.length] ?? 0),
    ];
    if (derived) {
      // what a SAME_UPPER convolution adds at the end, its transpose takes off at the end
      const total = Math.max(0, full - (output[axis] ?? 0));
      pads = splitPadding(total, attributes.autoPad === 'SAME_UPPER' ? 'SAME_UPPER' : 'SAME_LOWER');
    }
    padsBegin.push(pads[0]);
    padsEnd.push(pads[1]);
  });
  return { ...attributes, input: output, output: input, padsBegin, padsEnd };
}

/** Adds columns[tap, position] to the cells the taps lie on, for one channel. */
function scatter(
  columns: Floats,
  from: number,
  offsets: Int32Array,
  target: Floats,
  start: number,
): void {
  for (let i = 0; i < offsets.length; i++) {
    const offset = offsets[i] as number;
    if (offset >= 0)
      target[start + offset] = (target[start + offset] as number) + (columns[from + i] as number);
  }
}

/** Inputs 0 and 1 of a node convolved backwards, with nothing added. */
export function convolveInputsBackwards(context: EvaluateContext): Dense {
  const { node } = context;
  const x = context.input(0);
  const w = context.input(1);
  const group = node.int('group', 1);
  const [batch = 1, channels = 1, ...spatial] = x.shape;
  const outputsPerGroup = w.shape[1] ?? 1;
  if (w.shape[0] !== channels)
    throw opError(context, `input has ${channels} channels, weights ${w.shape[0]}`);
  const attributes = windowAttributes(node, node.ints('kernel_shape') ?? w.shape.slice(2));
  const window = transposedWindow(node, attributes, spatial);
  const [outputSize, positions, taps] = [window.input, window.output, window.kernel].map(
    elementCount,
  );
  const [size = 1, count = 1, tapCount = 1] = [outputSize, positions, taps];
  const perGroup = channels / group;
  const outputs = outputsPerGroup * group;
  const values = floatsFor(x.dtype, batch * outputs * size);
  const offsets = windowOffsets(window);
  const columns = floatsFor(x.dtype, outputsPerGroup * tapCount * count);
  const [input, weights] = [floatsOf(x), floatsOf(w)];
  for (let g = 0; g < group; g++) {
    const start = g * perGroup * outputsPerGroup * tapCount;
    const kernels = transposed(weights, perGroup, outputsPerGroup * tapCount, start);
    for (let image = 0; image < batch; image++) {
      const from = (image * channels + g * perGroup) * count;
      const rows = transposed(input, perGroup, count, from);
      multiplyRows(
        outputsPerGroup * tapCount,
        count,
        perGroup,
        { data: kernels, offset: 0 },
        { data: rows, offset: 0 },
        { data: columns, offset: 0 },
      );
      for (let c = 0; c < outputsPerGroup; c++)
        scatter(
          columns,
          c * tapCount * count,
          offsets,
          values,
          (image * outputs + g * outputsPerGroup + c) * size,
        );
    }
  }
  return { shape: [batch, outputs, ...window.input], data: values };
}

function evaluateConvTranspose(context: EvaluateContext): Tensor[] {
  const { shape, data } = convolveInputsBackwards(context);
  const bias = optionalFloats(context.inputs[2]);
  finishConv(context.node, data, shape[1] ?? 1, spanOf(shape, 2), bias);
  return [writeNumbers(context.input(0).dtype, shape, data)];
}

/** Multiplications and traffic of a transposed convolution. */
export function convTransposeCost(node: Node, shapeOf: (value: Value) => readonly number[]): Cost {
  const [x, w] = [shapeOf(node.input(0)), shapeOf(node.input(1))];
  const out = spanOf(shapeOf(node.output()), 0);
  return {
    flops: 2 * spanOf(x, 0) * spanOf(w, 1),
    bytes: 4 * (spanOf(x, 0) + spanOf(w, 0) + out),
  };
}

const convTranspose: OpDefinition = {
  op: 'ConvTranspose',
  domain: '',
  inputs: [2, 3],
  outputs: [1, 1],
  infer: inferConvTranspose,
  evaluate: evaluateConvTranspose,
  cost: convTransposeCost,
};

/** Inputs: columns [batch, channels * block, positions], image_shape, block_shape. */
const col2Im: OpDefinition = {
  op: 'Col2Im',
  domain: '',
  inputs: [3, 3],
  outputs: [1, 1],
  infer(context) {
    const { dtype, shape } = context.input(0);
    const [image, block] = [context.elements(1), context.elements(2)];
    const rank = context.input(1).shape?.[0];
    if (shape === undefined || typeof rank !== 'number') return [{ dtype }];
    const channels =
      block === undefined
        ? context.fresh()
        : block.reduce<Dim>((rest, size) => divideDims(rest, size), shape[1] ?? 1);
    const sizes = image ?? Array.from({ length: rank }, () => context.fresh());
    return [{ dtype, shape: [shape[0] ?? 1, channels, ...sizes] }];
  },
  evaluate(context) {
    const x = context.input(0);
    const image = integersOf(context.input(1));
    const block = integersOf(context.input(2));
    const attributes = windowAttributes(context.node, block);
    const window: Window = {
      ...attributes,
      input: image,
      output: image.map((size, axis) => Number(windowCount(attributes, axis, size))),
      padsBegin: attributes.pads.slice(0, block.length),
      padsEnd: attributes.pads.slice(block.length),
    };
    const offsets = windowOffsets(window);
    const [batch = 1, depth = 1] = x.shape;
    const channels = depth / elementCount(block);
    const size = elementCount(image);
    if (x.shape[2] !== elementCount(window.output))
      throw opError(context, `${x.shape[2]} positions, wanted ${elementCount(window.output)}`);
    const values = floatsFor(x.dtype, batch * channels * size);
    const columns = floatsOf(x);
    for (let plane = 0; plane < batch * channels; plane++)
      scatter(columns, plane * offsets.length, offsets, values, plane * size);
    return [writeNumbers(x.dtype, [batch, channels, ...image], values)];
  },
};

/** Transposed convolution and Col2Im. */
export const convTransposeOps: readonly OpDefinition[] = [convTranspose, col2Im];
