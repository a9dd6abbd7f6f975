/**
 * Helpers shared by the families that compute with dense float arrays: matrix products, windows,
 * norms, attention, quantization, recurrence and images.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import type { Floats } from './gemm.ts';
import { readNumbers } from './numbers.ts';

/**
 * Elements as floats to compute with, possibly the tensor's own storage: do not write to them.
 * 32-bit and wider integers and f64 become doubles, everything else fits singles exactly.
 */
export function floatsOf(tensor: Tensor): Floats {
  const numbers = readNumbers(tensor);
  if (numbers instanceof Float32Array || numbers instanceof Float64Array) return numbers;
  return numbers.BYTES_PER_ELEMENT === 4 ? new Float64Array(numbers) : new Float32Array(numbers);
}

/** Elements of an optional tensor as floats. */
export function optionalFloats(tensor: Tensor | undefined): Floats | undefined {
  return tensor === undefined ? undefined : floatsOf(tensor);
}

/** A copy that may be written to. */
export function copyFloats(tensor: Tensor): Floats {
  return floatsOf(tensor).slice();
}

/** Zeros to compute a result of the dtype in. */
export function floatsFor(dtype: DType, length: number): Floats {
  const double = dtype === 'f64' || dtype === 'i32' || dtype === 'u32' || dtype === 'i64';
  return double ? new Float64Array(length) : new Float32Array(length);
}

/** Elements of a small integer tensor as numbers. */
export function integersOf(tensor: Tensor): number[] {
  return Array.from(readNumbers(tensor));
}

/** Product of dimensions from `start` up to `end`. */
export function spanOf(
  shape: readonly number[],
  start: number,
  end: number = shape.length,
): number {
  let product = 1;
  for (let axis = start; axis < end; axis++) product *= shape[axis] ?? 1;
  return product;
}

/** Row-major strides; 0 where a size is 1, so that broadcasting needs no special case. */
export function broadcastStrides(shape: readonly number[], rank: number): number[] {
  const strides = Array.from({ length: rank }, () => 0);
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const size = shape[axis] ?? 1;
    if (size !== 1) strides[axis + rank - shape.length] = stride;
    stride *= size;
  }
  return strides;
}

/**
 * For every element of `shape`, in order, its offset in each operand of the given (broadcast)
 * strides. The callback must not keep the array.
 */
export function forEachIndex(
  shape: readonly number[],
  strides: readonly (readonly number[])[],
  visit: (index: number, offsets: readonly number[]) => void,
): void {
  const offsets = strides.map(() => 0);
  const position = shape.map(() => 0);
  const count = spanOf(shape, 0);
  for (let index = 0; index < count; index++) {
    visit(index, offsets);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      const size = shape[axis] ?? 1;
      const next = (position[axis] ?? 0) + 1;
      const wraps = next === size;
      position[axis] = wraps ? 0 : next;
      for (let operand = 0; operand < offsets.length; operand++)
        offsets[operand] =
          (offsets[operand] ?? 0) + (strides[operand]?.[axis] ?? 0) * (wraps ? 1 - size : 1);
      if (!wraps) break;
    }
  }
}
