/**
 * A constant whose bytes are read when somebody asks. The bytes may lie in the model file, in an
 * external data file or in memory; reading them twice is normal and nothing keeps them. This is what
 * lets a model larger than memory pass through the compiler.
 *
 * Reading is synchronous on purpose: shape inference and patterns look at small constants all the
 * time. A browser runs the compiler in a worker, where synchronous reads of a Blob exist.
 */
import { assert, wrongType } from '../../runtime/errors.ts';
import type { DType, Tensor } from '../../runtime/tensor.ts';
import {
  bytesFor,
  bytesOf,
  dtypes,
  elementCount,
  tensor,
  viewBytes,
} from '../../runtime/tensor.ts';

/** Reads `length` bytes from byte `start` of one tensor's storage. */
export type ByteSource = (start: number, length: number) => Uint8Array;

/** What an ONNX file says about a tensor besides its contents, kept for the round trip. */
export interface CarriedTensor {
  /** Encoded TensorProto fields: doc string, metadata, the name of an attribute tensor. */
  readonly tensor?: Uint8Array;
  /** The encoded SparseTensorProto, when the file stores the tensor sparse. */
  readonly sparse?: Uint8Array;
}

/** The 8-bit integers that floats are made of: `(code - zero) * scale`. */
export interface WeightGrid {
  /** u8 or i8, in the shape of the floats. */
  readonly codes: Weight;
  /** One, or one for each index of `axis`. */
  readonly scales: readonly number[];
  /** As many as scales. */
  readonly zeros: readonly number[];
  /** Axis along which scales differ. */
  readonly axis: number;
  /** Whether the floats are integers whose products are wanted to the last bit. */
  readonly exact: boolean;
}

/** A constant tensor, read on demand. */
export class Weight {
  /** Element type. */
  readonly dtype: DType;
  /** Dimensions. */
  readonly shape: readonly number[];
  /** Bytes of storage; 0 for strings, which are held in memory. */
  readonly byteLength: number;
  /** What the source file says about the tensor besides its contents. */
  readonly carried: CarriedTensor | undefined;
  /** What it is made of, where a model came with 8-bit weights. */
  readonly grid: WeightGrid | undefined;
  private readonly source: ByteSource;
  private readonly strings: readonly string[] | undefined;

  private constructor(
    dtype: DType,
    shape: readonly number[],
    source: ByteSource,
    strings: readonly string[] | undefined,
    carried?: CarriedTensor,
    grid?: WeightGrid,
  ) {
    this.dtype = dtype;
    this.shape = shape;
    this.byteLength = bytesFor(dtype, elementCount(shape));
    this.source = source;
    this.strings = strings;
    this.carried = carried;
    this.grid = grid;
  }

  /** A constant held in memory. The tensor is shared, not copied, and must not change. */
  static of(value: Tensor, carried?: CarriedTensor): Weight {
    if (value.dtype === 'string') {
      const strings = value.data as readonly string[];
      return new Weight('string', value.shape, () => new Uint8Array(0), strings, carried);
    }
    const bytes = bytesOf(value.data);
    return new Weight(
      value.dtype,
      value.shape,
      (start, length) => bytes.subarray(start, start + length),
      undefined,
      carried,
    );
  }

  /**
   * A constant that stays where it is until it is read.
   *
   * @param dtype - element type, not `string`
   * @param shape - dimensions
   * @param source - reads a range of the little-endian storage, {@link bytesFor} bytes in all
   * @param carried - what the source file says about the tensor besides its contents
   */
  static lazy(
    dtype: DType,
    shape: readonly number[],
    source: ByteSource,
    carried?: CarriedTensor,
  ): Weight {
    assert(dtype !== 'string', 'Weight.lazy: strings are held in memory');
    return new Weight(dtype, shape, source, undefined, carried);
  }

  /** Floats that are computed from 8-bit integers when they are read. */
  static onGrid(grid: WeightGrid): Weight {
    const { codes, scales, zeros, axis } = grid;
    const { shape } = codes;
    const inner = shape.slice(axis + 1).reduce((product, size) => product * size, 1);
    const size = dtypes[codes.dtype].bits / 8;
    const source = (start: number, length: number): Uint8Array => {
      const from = Math.floor(start / 4);
      const count = Math.ceil((start + length) / 4) - from;
      const stored = viewBytes(codes.dtype, codes.bytes(from * size, count * size)) as Int8Array;
      const values = Float32Array.from(stored, (code, index) => {
        const at = scales.length === 1 ? 0 : Math.floor((from + index) / inner) % scales.length;
        return (code - (zeros[at] ?? 0)) * (scales[at] ?? 1);
      });
      return bytesOf(values).subarray(start - 4 * from, start - 4 * from + length);
    };
    return new Weight('f32', shape, source, undefined, undefined, grid);
  }

  /**
   * Little-endian bytes of the storage, or of a part of it, so that a large tensor can be copied or
   * hashed in pieces.
   */
  bytes(start = 0, length: number = this.byteLength - start): Uint8Array {
    if (this.strings !== undefined) throw wrongType('dtype', 'a dtype with bytes', 'string');
    return this.source(start, length);
  }

  /** The whole tensor. */
  tensor(): Tensor {
    if (this.strings !== undefined) return tensor('string', this.shape, this.strings);
    return tensor(this.dtype, this.shape, viewBytes(this.dtype, this.bytes()));
  }

  /** The same storage under another shape of equal size. */
  reshaped(shape: readonly number[]): Weight {
    assert(
      elementCount(shape) === elementCount(this.shape),
      `Weight.reshaped: [${this.shape}] to [${shape}]`,
    );
    return new Weight(this.dtype, shape, this.source, this.strings);
  }
}
