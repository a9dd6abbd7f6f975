/**
 * The arithmetic of linear quantization: rounding to a grid, and the scale and zero point that belong
 * to an element when they are given per tensor, per axis or per block.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import { spanOf } from './dense.ts';
import { roundHalfEven } from './float-formats.ts';
import { integerRange, isFloat, writeNumbers } from './numbers.ts';

/**
 * Rounds values (already divided by the scale) to a dtype: nearest even, shifted by the zero point,
 * kept within the range. Small floats only saturate.
 */
export function quantizeValues(
  values: ArrayLike<number>,
  shape: readonly number[],
  dtype: DType,
  zeroPoint: number | ((index: number) => number) = 0,
  saturate = true,
): Tensor {
  const out = new Float64Array(values.length);
  const zeroOf = typeof zeroPoint === 'number' ? (): number => zeroPoint : zeroPoint;
  if (isFloat(dtype)) {
    for (let i = 0; i < out.length; i++) out[i] = (values[i] ?? 0) + zeroOf(i);
    return writeNumbers(dtype, shape, out, { saturate });
  }
  const [low, high] = integerRange(dtype);
  for (let i = 0; i < out.length; i++) {
    const level = roundHalfEven(values[i] ?? 0) + zeroOf(i);
    out[i] = Math.min(high, Math.max(low, level));
  }
  return writeNumbers(dtype, shape, out);
}

/** How elements of a tensor find their scale. */
export interface Granularity {
  /** Axis along which scales differ. */
  readonly axis: number;
  /** Elements along the axis that share a scale; 0 when `scales` is per axis or per tensor. */
  readonly blockSize: number;
}

/**
 * For each element of a tensor, the index of its scale.
 *
 * @param shape - of the tensor
 * @param scaleShape - `[]` or one element: per tensor; rank 1: per axis; the tensor's rank: blocked
 */
export function scaleIndex(
  shape: readonly number[],
  scaleShape: readonly number[],
  { axis, blockSize }: Granularity,
): (index: number) => number {
  if (elementCount(scaleShape) === 1) return () => 0;
  const size = shape[axis] ?? 1;
  const inner = spanOf(shape, axis + 1);
  const perAxis = scaleShape.length === 1 && (shape.length > 1 || blockSize === 0);
  if (perAxis) return (index) => Math.floor(index / inner) % size;
  // scales have the tensor's rank; the blocked axis is shorter
  const blocks = scaleShape[axis] ?? 1;
  const block = blockSize > 0 ? blockSize : Math.ceil(size / blocks);
  return (index) => {
    const along = Math.floor(index / inner) % size;
    const outer = Math.floor(index / (inner * size));
    return (outer * blocks + Math.floor(along / block)) * inner + (index % inner);
  };
}

/** Scale and zero point that map values to u8, as DynamicQuantizeLinear chooses them. */
export function dynamicRange(values: ArrayLike<number>): { scale: number; zeroPoint: number } {
  let [low, high] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    low = Math.min(low, values[i] ?? 0);
    high = Math.max(high, values[i] ?? 0);
  }
  const scale = high === low ? 1 : Math.fround(Math.fround(high - low) / 255);
  const zeroPoint = Math.min(255, Math.max(0, roundHalfEven(Math.fround(-low / scale))));
  return { scale, zeroPoint };
}
