/**
 * Sliding windows in any number of spatial dimensions: what Conv, ConvTranspose, Col2Im and the pools
 * have in common. Sizes work on symbolic dimensions; offsets are for evaluation.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__Conv.html and onnx__MaxPool.html (auto_pad, ceil_mode).
 */
import { FettleError } from '../../runtime/errors.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import {
  addDims,
  ceilDivideDims,
  divideDims,
  minDims,
  multiplyDims,
  subtractDims,
} from '../ir/dim.ts';
import type { Node } from '../ir/graph.ts';

/** The attributes of a windowed op, defaults filled in. */
export interface WindowAttributes {
  /** Window size per spatial dimension. */
  readonly kernel: readonly number[];
  /** Step between windows. */
  readonly strides: readonly number[];
  /** Step between the taps of one window. */
  readonly dilations: readonly number[];
  /** Padding at the begin of every dimension, then at the end of every one; ignored by auto_pad. */
  readonly pads: readonly number[];
  /** NOTSET, VALID, SAME_UPPER or SAME_LOWER. */
  readonly autoPad: string;
  /** Whether a window that only partly fits counts. */
  readonly ceil: boolean;
}

/** A windowed op with all sizes known. */
export interface Window extends WindowAttributes {
  /** Spatial size that the windows slide over, without padding. */
  readonly input: readonly number[];
  /** Number of windows per dimension. */
  readonly output: readonly number[];
  /** Padding at the begin. */
  readonly padsBegin: readonly number[];
  /** Padding at the end. */
  readonly padsEnd: readonly number[];
}

/** Reads the attributes; throws MODEL_INVALID when their lengths contradict each other. */
export function windowAttributes(node: Node, kernel: readonly number[]): WindowAttributes {
  const rank = kernel.length;
  const list = (name: string, length: number, fallback: number): readonly number[] => {
    const given = node.ints(name);
    if (given === undefined || given.length === 0) return Array.from({ length }, () => fallback);
    if (given.length !== length)
      throw new FettleError(
        'MODEL_INVALID',
        `${node.describe()}: ${name} has ${given.length} entries, wanted ${length}.`,
        {
          at: { node: node.name, attribute: name },
          fix: 'Give one entry for each spatial axis.',
        },
      );
    return given;
  };
  const strides = list('strides', rank, 1);
  const dilations = list('dilations', rank, 1);
  if ([...strides, ...dilations, ...kernel].some((step) => step < 1))
    throw new FettleError(
      'MODEL_INVALID',
      `${node.describe()}: kernel_shape, strides and dilations must be at least 1.`,
      { at: { node: node.name }, fix: 'Correct the attributes of this node.' },
    );
  return {
    kernel,
    strides,
    dilations,
    pads: list('pads', 2 * rank, 0),
    autoPad: node.string('auto_pad', 'NOTSET'),
    ceil: node.int('ceil_mode', 0) !== 0,
  };
}

/** Input cells from the first to the last tap of a window. */
export function extentOf(attributes: WindowAttributes, axis: number): number {
  return ((attributes.kernel[axis] ?? 1) - 1) * (attributes.dilations[axis] ?? 1) + 1;
}

/** Number of windows along one spatial axis; 0 when not even one fits. */
export function windowCount(attributes: WindowAttributes, axis: number, input: Dim): Dim {
  const count = countOf(attributes, axis, input);
  return typeof count === 'number' ? Math.max(0, count) : count;
}

function countOf(attributes: WindowAttributes, axis: number, input: Dim): Dim {
  const stride = attributes.strides[axis] ?? 1;
  if (attributes.autoPad.startsWith('SAME')) return ceilDivideDims(input, stride);
  const valid = attributes.autoPad === 'VALID';
  const begin = valid ? 0 : (attributes.pads[axis] ?? 0);
  const end = valid ? 0 : (attributes.pads[axis + attributes.kernel.length] ?? 0);
  const room = subtractDims(addDims(input, begin, end), extentOf(attributes, axis));
  if (!attributes.ceil) return addDims(divideDims(room, stride), 1);
  // a window must start inside the input or the padding before it
  return minDims(
    addDims(ceilDivideDims(room, stride), 1),
    ceilDivideDims(addDims(input, begin), stride),
  );
}

/** Fixes a window's sizes and padding for an input of known size. */
export function resolveWindow(attributes: WindowAttributes, input: readonly number[]): Window {
  const rank = attributes.kernel.length;
  const output = input.map((size, axis) => Number(windowCount(attributes, axis, size)));
  const padsBegin: number[] = [];
  const padsEnd: number[] = [];
  for (let axis = 0; axis < rank; axis++) {
    let begin = attributes.pads[axis] ?? 0;
    let end = attributes.pads[axis + rank] ?? 0;
    if (attributes.autoPad === 'VALID') [begin, end] = [0, 0];
    else if (attributes.autoPad.startsWith('SAME')) {
      const covered =
        ((output[axis] ?? 0) - 1) * (attributes.strides[axis] ?? 1) + extentOf(attributes, axis);
      [begin, end] = splitPadding(Math.max(0, covered - (input[axis] ?? 0)), attributes.autoPad);
    }
    padsBegin.push(begin);
    padsEnd.push(end);
  }
  return { ...attributes, input, output, padsBegin, padsEnd };
}

/** Shares total padding between begin and end as auto_pad says. */
export function splitPadding(total: number, autoPad: string): [begin: number, end: number] {
  const small = Math.floor(total / 2);
  return autoPad === 'SAME_LOWER' ? [total - small, small] : [small, total - small];
}

/**
 * Where the taps of windows `from` … `to` lie in the input.
 *
 * @returns // [taps, to - from]: index into one spatial plane, or -1 in the padding
 */
export function windowOffsets(
  window: Window,
  from = 0,
  to: number = elementCount(window.output),
): Int32Array {
  const { kernel, strides, dilations, padsBegin, input, output } = window;
  const taps = elementCount(kernel);
  const count = to - from;
  const offsets = new Int32Array(taps * count);
  let inputStride = elementCount(input);
  let outputStride = elementCount(output);
  let tapStride = taps;
  for (let axis = 0; axis < kernel.length; axis++) {
    const size = input[axis] ?? 1;
    const windows = output[axis] ?? 1;
    const width = kernel[axis] ?? 1;
    inputStride /= size;
    outputStride /= windows;
    tapStride /= width;
    for (let tap = 0; tap < taps; tap++) {
      const shift =
        (Math.floor(tap / tapStride) % width) * (dilations[axis] ?? 1) - (padsBegin[axis] ?? 0);
      for (let i = 0; i < count; i++) {
        const at = tap * count + i;
        const so = offsets[at] as number;
        if (so < 0) continue;
        const place =
          (Math.floor((from + i) / outputStride) % windows) * (strides[axis] ?? 1) + shift;
        offsets[at] = place < 0 || place >= size ? -1 : so + place * inputStride;
      }
    }
  }
  return offsets;
}

/**
 * Taps of every window that lie in the input or its padding, but not beyond it: what AveragePool
 * divides by when it counts padding.
 */
export function paddedTapCounts(window: Window): Float64Array {
  const counts = new Float64Array(elementCount(window.output)).fill(1);
  let outputStride = counts.length;
  for (let axis = 0; axis < window.kernel.length; axis++) {
    const windows = window.output[axis] ?? 1;
    outputStride /= windows;
    const end = (window.input[axis] ?? 0) + (window.padsEnd[axis] ?? 0);
    for (let i = 0; i < counts.length; i++) {
      const start =
        (Math.floor(i / outputStride) % windows) * (window.strides[axis] ?? 1) -
        (window.padsBegin[axis] ?? 0);
      const fitting = Math.ceil((end - start) / (window.dilations[axis] ?? 1));
      counts[i] = (counts[i] as number) * Math.min(window.kernel[axis] ?? 1, fitting);
    }
  }
  return counts;
}

/** Output size of a transposed window along one axis, by the formula of ConvTranspose. */
export function transposedCount(
  attributes: WindowAttributes,
  axis: number,
  input: Dim,
  outputPadding: number,
): Dim {
  const stride = attributes.strides[axis] ?? 1;
  if (attributes.autoPad.startsWith('SAME')) return multiplyDims(input, stride);
  const valid = attributes.autoPad === 'VALID';
  const pads = valid
    ? 0
    : (attributes.pads[axis] ?? 0) + (attributes.pads[axis + attributes.kernel.length] ?? 0);
  return addDims(
    multiplyDims(stride, subtractDims(input, 1)),
    outputPadding,
    extentOf(attributes, axis) - pads,
  );
}
