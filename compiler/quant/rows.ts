/**
 * Reads a stored matrix in blocks of rows as f32, whatever its dtype and orientation, so that one
 * block and at most one stored tensor are in memory at a time.
 */
import { halfToFloat } from '../../runtime/half.ts';
import type { DType } from '../../runtime/tensor.ts';
import { bytesFor, viewBytes } from '../../runtime/tensor.ts';
import type { RowSource } from './matrix.ts';

/** A stored matrix. */
export interface StoredMatrix {
  /** One of {@link readableDtypes}. */
  readonly dtype: DType;
  /** Output channels. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
  /** Whether storage is [columns, rows], as the second operand of MatMul is. */
  readonly transposed: boolean;
  /** Reads `length` bytes from byte `start` of the storage. */
  bytes(start: number, length: number): Uint8Array;
}

/** Dtypes a matrix can be quantized from. */
export const readableDtypes: readonly DType[] = ['f32', 'f64', 'f16', 'bf16'];

/** A {@link RowSource} over a stored matrix. */
export function matrixRows(matrix: StoredMatrix): RowSource {
  const { dtype, rows, columns, transposed } = matrix;
  const floats = floatReader(dtype);
  if (!transposed)
    return {
      rows,
      columns,
      read(start, count) {
        const first = bytesFor(dtype, start * columns);
        return floats(matrix.bytes(first, bytesFor(dtype, count * columns)));
      },
    };
  let stored: Float32Array | undefined;
  return {
    rows,
    columns,
    read(start, count) {
      stored ??= floats(matrix.bytes(0, bytesFor(dtype, rows * columns)));
      const block = new Float32Array(count * columns);
      // 16 columns at a time: a cache line of each is read whole
      for (let column = 0; column < columns; column += 16) {
        const end = Math.min(columns, column + 16);
        for (let row = 0; row < count; row++)
          for (let c = column; c < end; c++)
            block[row * columns + c] = stored[c * rows + start + row] ?? 0;
      }
      return block;
    },
  };
}

/**
 * Reads little-endian storage of one of {@link readableDtypes} as f32; the result is a view when it is
 * f32 already.
 */
export function floatReader(dtype: DType): (bytes: Uint8Array) => Float32Array {
  // a lookup is several times faster than decoding each value
  const halves =
    dtype === 'f16' ? Float32Array.from({ length: 65536 }, (_, bits) => halfToFloat(bits)) : [];
  return (bytes) => {
    const data = viewBytes(dtype, bytes);
    if (data instanceof Float32Array) return data;
    const values = new Float32Array(data.length);
    if (dtype === 'f16')
      for (let i = 0; i < values.length; i++) values[i] = halves[Number(data[i])] ?? 0;
    else if (dtype === 'bf16') {
      const words = new Uint32Array(values.buffer);
      for (let i = 0; i < words.length; i++) words[i] = Number(data[i]) << 16;
    } else for (let i = 0; i < values.length; i++) values[i] = Number(data[i]);
    return values;
  };
}
