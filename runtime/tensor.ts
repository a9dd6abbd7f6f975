/**
 * Dtypes and dense tensors, shared by the runtime's inputs and outputs and the compiler's graph.
 *
 * Storage is what ONNX calls raw data, in the host's (little-endian) order: f16 and bf16 are their
 * 16-bit patterns, 8-bit floats their byte, bool one byte, 4- and 2-bit types packed low bits first,
 * complex numbers interleaved (re, im) pairs. Strings are a plain array.
 */
import { outOfRange, wrongType } from './errors.ts';

/** Every element type of ONNX, by Fettle's short name. */
export type DType =
  | 'f32'
  | 'f64'
  | 'f16'
  | 'bf16'
  | 'i8'
  | 'i16'
  | 'i32'
  | 'i64'
  | 'u8'
  | 'u16'
  | 'u32'
  | 'u64'
  | 'bool'
  | 'string'
  | 'c64'
  | 'c128'
  | 'i4'
  | 'u4'
  | 'i2'
  | 'u2'
  | 'f8e4m3fn'
  | 'f8e4m3fnuz'
  | 'f8e5m2'
  | 'f8e5m2fnuz'
  | 'f8e8m0'
  | 'f4e2m1';

/** Storage of a tensor's elements; see the file header for which dtype uses which. */
export type TensorData =
  | Float32Array
  | Float64Array
  | Int8Array
  | Int16Array
  | Int32Array
  | BigInt64Array
  | Uint8Array
  | Uint16Array
  | Uint32Array
  | BigUint64Array
  | readonly string[];

/** A dense, row-major tensor. */
export interface Tensor {
  /** Element type. */
  readonly dtype: DType;
  /** Dimensions; an empty list is a scalar. */
  readonly shape: readonly number[];
  /** Elements, row-major. */
  readonly data: TensorData;
}

interface TypedArrayConstructor {
  new (
    buffer: ArrayBufferLike,
    byteOffset: number,
    length: number,
  ): Exclude<TensorData, readonly string[]>;
  readonly BYTES_PER_ELEMENT: number;
}

/** One row of the dtype table. */
export interface DTypeInfo {
  /** ONNX TensorProto.DataType number. */
  readonly onnx: number;
  /** Bits one element takes in storage; 0 for strings. */
  readonly bits: number;
  /** What kind of number it is. */
  readonly kind: 'float' | 'int' | 'uint' | 'bool' | 'string' | 'complex';
  /** Array that stores it; undefined for strings. */
  readonly array: TypedArrayConstructor | undefined;
}

/** The dtype table; the order is that of the ONNX numbers. */
export const dtypes: Readonly<Record<DType, DTypeInfo>> = {
  f32: { onnx: 1, bits: 32, kind: 'float', array: Float32Array },
  u8: { onnx: 2, bits: 8, kind: 'uint', array: Uint8Array },
  i8: { onnx: 3, bits: 8, kind: 'int', array: Int8Array },
  u16: { onnx: 4, bits: 16, kind: 'uint', array: Uint16Array },
  i16: { onnx: 5, bits: 16, kind: 'int', array: Int16Array },
  i32: { onnx: 6, bits: 32, kind: 'int', array: Int32Array },
  i64: { onnx: 7, bits: 64, kind: 'int', array: BigInt64Array },
  string: { onnx: 8, bits: 0, kind: 'string', array: undefined },
  bool: { onnx: 9, bits: 8, kind: 'bool', array: Uint8Array },
  f16: { onnx: 10, bits: 16, kind: 'float', array: Uint16Array },
  f64: { onnx: 11, bits: 64, kind: 'float', array: Float64Array },
  u32: { onnx: 12, bits: 32, kind: 'uint', array: Uint32Array },
  u64: { onnx: 13, bits: 64, kind: 'uint', array: BigUint64Array },
  c64: { onnx: 14, bits: 64, kind: 'complex', array: Float32Array },
  c128: { onnx: 15, bits: 128, kind: 'complex', array: Float64Array },
  bf16: { onnx: 16, bits: 16, kind: 'float', array: Uint16Array },
  f8e4m3fn: { onnx: 17, bits: 8, kind: 'float', array: Uint8Array },
  f8e4m3fnuz: { onnx: 18, bits: 8, kind: 'float', array: Uint8Array },
  f8e5m2: { onnx: 19, bits: 8, kind: 'float', array: Uint8Array },
  f8e5m2fnuz: { onnx: 20, bits: 8, kind: 'float', array: Uint8Array },
  u4: { onnx: 21, bits: 4, kind: 'uint', array: Uint8Array },
  i4: { onnx: 22, bits: 4, kind: 'int', array: Uint8Array },
  f4e2m1: { onnx: 23, bits: 4, kind: 'float', array: Uint8Array },
  f8e8m0: { onnx: 24, bits: 8, kind: 'float', array: Uint8Array },
  u2: { onnx: 25, bits: 2, kind: 'uint', array: Uint8Array },
  i2: { onnx: 26, bits: 2, kind: 'int', array: Uint8Array },
};

const byOnnxNumber = new Map(
  (Object.keys(dtypes) as DType[]).map((dtype) => [dtypes[dtype].onnx, dtype]),
);

/** The dtype of an ONNX TensorProto.DataType number, or undefined when there is none. */
export function dtypeOfOnnx(number: number): DType | undefined {
  return byOnnxNumber.get(number);
}

/** Whether `name` is a dtype's short name. */
export function isDType(name: unknown): name is DType {
  return typeof name === 'string' && Object.hasOwn(dtypes, name);
}

/** Product of the dimensions; 1 for a scalar. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1);
}

/** Bytes that `count` elements take in storage, packed types rounded up to whole bytes. */
export function bytesFor(dtype: DType, count: number): number {
  return Math.ceil((count * dtypes[dtype].bits) / 8);
}

/**
 * A typed view of little-endian bytes; copies only when they are not aligned for the dtype.
 *
 * @param dtype - element type, not `string`
 * @param bytes - raw storage, a whole number of elements
 */
export function viewBytes(dtype: DType, bytes: Uint8Array): Exclude<TensorData, readonly string[]> {
  const { array } = dtypes[dtype];
  if (array === undefined) throw wrongType('dtype', 'a dtype with fixed-size elements', dtype);
  const size = array.BYTES_PER_ELEMENT;
  // not `bytes.slice()`: on Node's Buffer that makes a view
  const aligned = bytes.byteOffset % size === 0 ? bytes : new Uint8Array(bytes);
  return new array(aligned.buffer, aligned.byteOffset, Math.floor(aligned.byteLength / size));
}

/** The bytes behind a tensor's storage, without copying. Not for strings. */
export function bytesOf(data: TensorData): Uint8Array {
  if (!ArrayBuffer.isView(data)) throw wrongType('data', 'a typed array', data);
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/**
 * Makes a tensor and checks that storage, dtype and shape agree.
 *
 * @param dtype - element type
 * @param shape - dimensions, each a whole number >= 0
 * @param data - storage as the file header says
 * @throws RangeError when the sizes disagree
 * @throws TypeError when the storage has the wrong array type
 *
 * @example
 * const ids = tensor('i64', [1, 2], BigInt64Array.of(5n, 7n));
 */
export function tensor(dtype: DType, shape: readonly number[], data: TensorData): Tensor {
  const count = elementCount(shape);
  const { array, bits } = dtypes[dtype];
  if (!shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0))
    throw outOfRange('shape', 'whole dimensions >= 0', `[${shape}]`);
  if (array === undefined) {
    if (!Array.isArray(data)) throw wrongType('data', 'an array of strings', data);
    if (data.length !== count) throw outOfRange('data.length', `${count}`, data.length);
    return { dtype, shape, data };
  }
  if (!(data instanceof array)) throw wrongType(`data of ${dtype}`, array.name, data);
  const wanted = bits === 0 ? count : Math.ceil((count * bits) / 8 / array.BYTES_PER_ELEMENT);
  if (data.length !== wanted)
    throw outOfRange('data.length', `${wanted} for ${dtype} [${shape}]`, data.length);
  return { dtype, shape, data };
}

/** A tensor of zeros (empty strings for `string`). */
export function zeros(dtype: DType, shape: readonly number[]): Tensor {
  const count = elementCount(shape);
  if (dtype === 'string') return { dtype, shape, data: Array.from({ length: count }, () => '') };
  return { dtype, shape, data: viewBytes(dtype, new Uint8Array(bytesFor(dtype, count))) };
}
