/**
 * Tensors as plain numbers and back, for every dtype: small floats are decoded and rounded, 4- and
 * 2-bit integers unpacked and packed, 64-bit integers read as doubles or exactly as bigints.
 *
 * Typical evaluation: `writeNumbers(x.dtype, x.shape, readNumbers(x).map(f))`.
 */
import { wrongType } from '../../runtime/errors.ts';
import type { DType, Tensor, TensorData } from '../../runtime/tensor.ts';
import { bytesFor, dtypes, elementCount, viewBytes } from '../../runtime/tensor.ts';
import type { Rounding } from './float-formats.ts';
import { decodeSmallFloat, encodeSmallFloat, isSmallFloat } from './float-formats.ts';

/** Numbers in a typed array. */
export type Numbers =
  | Float32Array
  | Float64Array
  | Int8Array
  | Int16Array
  | Int32Array
  | Uint8Array
  | Uint16Array
  | Uint32Array;

/** Whether elements have 64-bit integers, which need bigints to be exact. */
export function isWide(dtype: DType): boolean {
  return dtype === 'i64' || dtype === 'u64';
}

/** Whether elements are floats of any width. */
export function isFloat(dtype: DType): boolean {
  return dtypes[dtype].kind === 'float';
}

/** Whether elements are integers of any width, bool not included. */
export function isInteger(dtype: DType): boolean {
  return dtypes[dtype].kind === 'int' || dtypes[dtype].kind === 'uint';
}

/** Smallest and largest value of an integer dtype, exact up to 2^53. */
export function integerRange(dtype: DType): readonly [min: number, max: number] {
  const { bits, kind } = dtypes[dtype];
  if (kind === 'bool') return [0, 1];
  return kind === 'int' ? [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] : [0, 2 ** bits - 1];
}

/**
 * Elements as numbers. The result may be the tensor's own storage: do not write to it. 64-bit
 * integers beyond 2^53 lose their last digits; complex elements are (re, im) pairs.
 */
export function readNumbers(tensor: Tensor): Numbers {
  const { dtype, data } = tensor;
  if (!ArrayBuffer.isView(data)) throw wrongType('tensor', 'numbers', dtype);
  if (data instanceof BigInt64Array || data instanceof BigUint64Array)
    return Float64Array.from(data, Number);
  if (isSmallFloat(dtype)) return decodeFloats(dtype, data, elementCount(tensor.shape));
  if (dtypes[dtype].bits < 8) return unpack(dtype, data, elementCount(tensor.shape));
  return data;
}

/** Elements of an integer or bool tensor, exactly. */
export function readBigInts(tensor: Tensor): BigInt64Array | BigUint64Array {
  const { data } = tensor;
  if (data instanceof BigInt64Array || data instanceof BigUint64Array) return data;
  const numbers = readNumbers(tensor);
  const result = new BigInt64Array(numbers.length);
  for (let i = 0; i < result.length; i++) result[i] = BigInt(Math.trunc(numbers[i] ?? 0));
  return result;
}

/** Elements of a string tensor. */
export function readStrings(tensor: Tensor): readonly string[] {
  if (ArrayBuffer.isView(tensor.data)) throw wrongType('tensor', 'strings', tensor.dtype);
  return tensor.data;
}

/** The only element of a tensor that must have one. */
export function readScalar(tensor: Tensor): number {
  const numbers = readNumbers(tensor);
  if (numbers.length !== 1) throw wrongType('tensor', 'one element', `[${tensor.shape}]`);
  return numbers[0] ?? 0;
}

/**
 * A tensor of numbers, rounded to the dtype: floats to nearest even, integers towards zero and
 * wrapped around, bool to whether it is not zero. The values may become the storage.
 *
 * @param dtype - element type, not `string`
 * @param shape - dimensions
 * @param values - as many as the shape has elements; pairs for complex dtypes
 * @param rounding - for 8-bit and smaller floats
 */
export function writeNumbers(
  dtype: DType,
  shape: readonly number[],
  values: ArrayLike<number>,
  rounding?: Rounding,
): Tensor {
  const { array } = dtypes[dtype];
  if (values instanceof Float32Array && array === Float32Array)
    return { dtype, shape, data: values };
  return { dtype, shape, data: encode(dtype, values, rounding) };
}

/** A tensor of integers, wrapped around to the dtype's width. Floats take the nearest value. */
export function writeBigInts(
  dtype: DType,
  shape: readonly number[],
  values: ArrayLike<bigint>,
): Tensor {
  if (isWide(dtype)) {
    const { array } = dtypes[dtype];
    if (array !== undefined && values instanceof array) return { dtype, shape, data: values };
    const wide =
      dtype === 'i64' ? new BigInt64Array(values.length) : new BigUint64Array(values.length);
    for (let i = 0; i < wide.length; i++) wide[i] = values[i] ?? 0n;
    return { dtype, shape, data: wide };
  }
  const numbers = new Float64Array(values.length);
  const { bits, kind } = dtypes[dtype];
  const wraps = kind === 'int' || kind === 'uint';
  for (let i = 0; i < numbers.length; i++) {
    const value = values[i] ?? 0n;
    numbers[i] = Number(wraps ? BigInt.asIntN(bits + 1, BigInt.asUintN(bits, value)) : value);
  }
  return writeNumbers(dtype, shape, numbers);
}

/** A tensor with every element equal. */
export function filled(dtype: DType, shape: readonly number[], value: number): Tensor {
  return writeNumbers(dtype, shape, new Float64Array(elementCount(shape)).fill(value));
}

/** An i64 tensor of one dimension, the type of shapes and axes. */
export function int64s(values: readonly number[]): Tensor {
  return { dtype: 'i64', shape: [values.length], data: BigInt64Array.from(values, BigInt) };
}

/**
 * The tensor with its elements in another order or number: element `i` of the result is element
 * `indices[i]`, or `fill` where the index is negative. Works on every dtype without rounding.
 */
export function gatherElements(
  tensor: Tensor,
  shape: readonly number[],
  indices: ArrayLike<number>,
  fill?: Tensor,
): Tensor {
  const { dtype, data } = tensor;
  const count = elementCount(shape);
  if (!ArrayBuffer.isView(data)) {
    const blank = fill === undefined ? '' : (readStrings(fill)[0] ?? '');
    const strings = Array.from({ length: count }, (_, i) => data[indices[i] ?? -1] ?? blank);
    return { dtype, shape, data: strings };
  }
  const { bits, kind } = dtypes[dtype];
  if (kind === 'complex') return gatherPairs(tensor, shape, indices);
  if (bits < 8) {
    const source = unpack(dtype, data, elementCount(tensor.shape));
    const moved = gatherNumbers(source, new Int8Array(count), indices, asPatterns(fill));
    return { dtype, shape, data: pack(dtype, moved) };
  }
  const result = viewBytes(dtype, new Uint8Array(bytesFor(dtype, count)));
  if (data instanceof BigInt64Array || data instanceof BigUint64Array) {
    const blank = fill === undefined ? 0n : (readBigInts(fill)[0] ?? 0n);
    const wide = result as BigInt64Array;
    for (let i = 0; i < count; i++) wide[i] = data[indices[i] ?? -1] ?? blank;
    return { dtype, shape, data: wide };
  }
  // small floats are moved as patterns, so that a NaN keeps its bits
  const moved = gatherNumbers(data, result as Numbers, indices, asPatterns(fill));
  return { dtype, shape, data: moved };
}

function gatherNumbers<T extends Numbers>(
  source: Numbers,
  result: T,
  indices: ArrayLike<number>,
  fill: Tensor | undefined,
): T {
  const blank = fill === undefined ? 0 : (readNumbers(fill)[0] ?? 0);
  for (let i = 0; i < result.length; i++) result[i] = source[indices[i] ?? -1] ?? blank;
  return result;
}

function gatherPairs(tensor: Tensor, shape: readonly number[], indices: ArrayLike<number>): Tensor {
  const source = readNumbers(tensor);
  const result = new Float64Array(2 * elementCount(shape));
  for (let i = 0; 2 * i < result.length; i++) {
    const from = 2 * (indices[i] ?? -1);
    result[2 * i] = source[from] ?? 0;
    result[2 * i + 1] = source[from + 1] ?? 0;
  }
  return writeNumbers(tensor.dtype, shape, result);
}

function asPatterns(tensor: Tensor | undefined): Tensor | undefined {
  if (tensor === undefined || !isSmallFloat(tensor.dtype)) return tensor;
  const { bits } = dtypes[tensor.dtype];
  return { ...tensor, dtype: bits === 16 ? 'u16' : bits === 8 ? 'u8' : 'u4' };
}

function decodeFloats(dtype: DType, data: TensorData, count: number): Float32Array {
  const result = new Float32Array(count);
  if (!isSmallFloat(dtype)) return result;
  const patterns = (dtypes[dtype].bits < 8 ? unpack('u4', data, count) : data) as Uint8Array;
  for (let i = 0; i < count; i++) result[i] = decodeSmallFloat(dtype, patterns[i] ?? 0);
  return result;
}

function encode(
  dtype: DType,
  values: ArrayLike<number>,
  rounding: Rounding | undefined,
): TensorData {
  const count = values.length;
  const { bits, kind, array } = dtypes[dtype];
  if (array === undefined) throw wrongType('dtype', 'a dtype of numbers', dtype);
  if (isSmallFloat(dtype)) {
    const patterns = bits === 16 ? new Uint16Array(count) : new Uint8Array(count);
    for (let i = 0; i < count; i++) patterns[i] = encodeSmallFloat(dtype, values[i] ?? 0, rounding);
    return bits < 8 ? pack(dtype, patterns) : patterns;
  }
  if (kind === 'bool') {
    const flags = new Uint8Array(count);
    for (let i = 0; i < count; i++) flags[i] = values[i] === 0 ? 0 : 1;
    return flags;
  }
  if (bits < 8) return pack(dtype, values);
  if (isWide(dtype)) {
    const wide = dtype === 'i64' ? new BigInt64Array(count) : new BigUint64Array(count);
    for (let i = 0; i < count; i++) wide[i] = toBigInt(values[i] ?? 0);
    return wide;
  }
  // conversion to a narrower integer array truncates and wraps by itself
  return new (array as unknown as new (values: ArrayLike<number>) => Numbers)(values);
}

/** Truncated; a value that is no number of 64 bits becomes the smallest, as on x86. */
function toBigInt(value: number): bigint {
  return Number.isFinite(value) ? BigInt(Math.trunc(value)) : -(2n ** 63n);
}

/** Elements of a 4- or 2-bit tensor, one a byte. */
function unpack(dtype: DType, data: TensorData, count: number): Int8Array {
  const { bits, kind } = dtypes[dtype];
  const bytes = data as Uint8Array;
  const perByte = 8 / bits;
  const mask = (1 << bits) - 1;
  const shift = 32 - bits;
  const result = new Int8Array(count);
  for (let i = 0; i < count; i++) {
    const raw = ((bytes[Math.floor(i / perByte)] ?? 0) >>> ((i % perByte) * bits)) & mask;
    result[i] = kind === 'int' ? (raw << shift) >> shift : raw;
  }
  return result;
}

/** Packs values low bits first; see the header of tensor.ts. */
function pack(dtype: DType, values: ArrayLike<number>): Uint8Array {
  const { bits } = dtypes[dtype];
  const perByte = 8 / bits;
  const mask = (1 << bits) - 1;
  const bytes = new Uint8Array(bytesFor(dtype, values.length));
  for (let i = 0; i < values.length; i++) {
    const at = Math.floor(i / perByte);
    bytes[at] = (bytes[at] ?? 0) | (((values[i] ?? 0) & mask) << ((i % perByte) * bits));
  }
  return bytes;
}
