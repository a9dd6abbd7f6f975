/** Parts and joins of constant matrices, for passes that split or merge linear layers. */
import { Weight } from '../ir/weight.ts';

/** Bytes of an f32. */
const BYTES = 4;

/**
 * A range of rows or columns of an f32 constant, read when it is needed.
 *
 * @param axis - 0 or 1; 0 for a vector
 * @param from - first one
 * @param to - the one after the last
 */
export function columnsOf(weight: Weight, axis: number, from: number, to: number): Weight {
  const { shape } = weight;
  if (axis === 1)
    return byRows(shape[0] ?? 1, to - from, (row, count) => {
      const width = shape[1] ?? 1;
      return rowsOf(weight, row, count, width).map((part) => part.subarray(from, to));
    });
  const row = shape.length === 1 ? 1 : (shape[1] ?? 1);
  return Weight.lazy('f32', shape.length === 1 ? [to - from] : [to - from, row], (start, length) =>
    weight.bytes(from * row * BYTES + start, length),
  );
}

/**
 * f32 constants put together, read when they are needed.
 *
 * @param axis - 0 puts rows below each other, 1 columns beside each other
 */
export function joined(weights: readonly Weight[], axis: number): Weight {
  const shape = weights[0]?.shape ?? [];
  const size = weights.reduce((sum, weight) => sum + (weight.shape[axis] ?? 0), 0);
  if (axis === 1)
    return byRows(shape[0] ?? 1, size, (row, count) => {
      const parts = weights.map((weight) => rowsOf(weight, row, count, weight.shape[1] ?? 1));
      return Array.from({ length: count }, (_, i) => {
        const line = new Float32Array(size);
        let at = 0;
        for (const part of parts) {
          const piece = part[i] ?? new Float32Array(0);
          line.set(piece, at);
          at += piece.length;
        }
        return line;
      });
    });
  return Weight.lazy('f32', [size, ...shape.slice(1)], (start, length) => {
    const result = new Uint8Array(length);
    let at = 0;
    for (const weight of weights) {
      const first = Math.max(start, at);
      const last = Math.min(start + length, at + weight.byteLength);
      if (first < last) result.set(weight.bytes(first - at, last - first), first - start);
      at += weight.byteLength;
    }
    return result;
  });
}

/**
 * Rows or columns of an f32 constant in another order, read when they are needed.
 *
 * @param axis - 0 or 1; 0 for a vector
 * @param wanted - which ones, in order
 */
export function pickedColumns(weight: Weight, axis: number, wanted: readonly number[]): Weight {
  const { shape } = weight;
  const width = shape.length === 1 ? 1 : (shape[1] ?? 1);
  if (axis === 1)
    return byRows(shape[0] ?? 1, wanted.length, (row, count) =>
      rowsOf(weight, row, count, width).map((line) =>
        Float32Array.from(wanted, (column) => line[column] ?? 0),
      ),
    );
  const rows = byRows(wanted.length, width, (row, count) =>
    wanted.slice(row, row + count).flatMap((from) => rowsOf(weight, from, 1, width)),
  );
  return shape.length === 1 ? rows.reshaped([wanted.length]) : rows;
}

/** Rows of an f32 matrix as arrays. */
function rowsOf(weight: Weight, row: number, count: number, width: number): Float32Array[] {
  const bytes = weight.bytes(row * width * BYTES, count * width * BYTES);
  // a copy, since the source need not be aligned
  const all = new Float32Array(bytes.slice().buffer);
  return Array.from({ length: count }, (_, i) => all.subarray(i * width, (i + 1) * width));
}

/** An f32 matrix whose rows are made on demand. */
function byRows(
  rows: number,
  columns: number,
  make: (row: number, count: number) => readonly Float32Array[],
): Weight {
  const rowBytes = columns * BYTES;
  return Weight.lazy('f32', [rows, columns], (start, length) => {
    const first = Math.floor(start / rowBytes);
    const count = Math.ceil((start + length) / rowBytes) - first;
    const lines = new Float32Array(count * columns);
    make(first, count).forEach((line, index) => lines.set(line, index * columns));
    return new Uint8Array(lines.buffer, start - first * rowBytes, length);
  });
}
