/** Tensors of the caller to and from linear memory, where floats are f32 and the rest is i32. */
import { halfToFloat, toHalfArray } from '../half.ts';
import { outOfRange } from '../errors.ts';
import type { DType, Tensor } from '../tensor.ts';
import { elementCount, zeros } from '../tensor.ts';

/** Dtypes that can be exchanged. */
export function isExchanged(dtype: DType): boolean {
  return /^(f32|f64|f16|bf16|bool|[iu](8|16|32|64))$/.test(dtype);
}

/** Writes a tensor; integers beyond i32 become its ends. */
export function writeTensor({ dtype, data }: Tensor, target: Float32Array | Int32Array): void {
  if (!isExchanged(dtype)) throw outOfRange('dtype', 'a number the engine exchanges', dtype);
  const values = data as ArrayLike<number | bigint>;
  const decode =
    dtype === 'f16' ? halfToFloat : dtype === 'bf16' ? fromBrain : (value: number): number => value;
  if (data instanceof Float32Array && target instanceof Float32Array) {
    target.set(data);
    return;
  }
  for (let i = 0; i < target.length; i++) {
    const value = decode(Number(values[i] ?? 0));
    target[i] =
      target instanceof Float32Array ? value : Math.min(2 ** 31 - 1, Math.max(-(2 ** 31), value));
  }
}

/** A copy of memory as a tensor of the caller's dtype. */
export function readTensor(
  dtype: DType,
  shape: readonly number[],
  source: Float32Array | Int32Array,
): Tensor {
  if (dtype === 'f32') return { dtype, shape, data: Float32Array.from(source) };
  if (dtype === 'f16') return { dtype, shape, data: toHalfArray(source) };
  const made = zeros(dtype, shape);
  const { data } = made;
  const count = elementCount(shape);
  if (data instanceof BigInt64Array || data instanceof BigUint64Array)
    for (let i = 0; i < count; i++) data[i] = BigInt(Math.trunc(source[i] ?? 0));
  else for (let i = 0; i < count; i++) (data as Float32Array)[i] = source[i] ?? 0;
  return made;
}

/** Item `index` of a batch of `items` along axis 0, sharing storage. */
export function itemOf({ dtype, shape, data }: Tensor, index: number, items: number): Tensor {
  if (shape[0] !== items) throw outOfRange('shape[0]', `${items}, as of the first input`, shape[0]);
  const count = elementCount(shape) / items;
  const part = (data as Float32Array).subarray(index * count, (index + 1) * count);
  return { dtype, shape: [1, ...shape.slice(1)], data: part };
}

/** Items of a batch as one tensor. */
export function joinItems(items: readonly Tensor[]): Tensor {
  const [first] = items;
  if (first === undefined) throw outOfRange('items.length', 'at least 1', 0);
  const { dtype } = first;
  const made = zeros(dtype, [items.length, ...first.shape.slice(1)]);
  const count = elementCount(first.shape);
  items.forEach(({ data }, index) =>
    (made.data as Float32Array).set(data as Float32Array, index * count),
  );
  return made;
}

const word = new DataView(new ArrayBuffer(4));

function fromBrain(pattern: number): number {
  word.setUint32(0, pattern << 16);
  return word.getFloat32(0);
}
