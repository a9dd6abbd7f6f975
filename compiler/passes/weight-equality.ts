/**
 * Comparing large weights without holding them: a look at the edges or at a few elements first, then an
 * exact comparison in pieces. Weights that differ almost always differ in the first look, so a model of
 * gigabytes is not read.
 */
import { dtypes } from '../../runtime/tensor.ts';
import type { Weight } from '../ir/weight.ts';

/** Bytes read at a time. */
const PIECE_BYTES = 1 << 22;
/** Bytes of either end that make the key. */
const EDGE_BYTES = 1024;
/** Elements looked at before two matrices are compared in full. */
const SAMPLES = 64;

/** Text that is the same for equal weights of one dtype and shape, and rarely for others. */
export function edgeKey(weight: Weight): string {
  const length = Math.min(EDGE_BYTES, weight.byteLength);
  let hash = 0;
  for (const start of [0, weight.byteLength - length])
    for (const byte of weight.bytes(start, length))
      hash = Math.imul(hash ^ byte, 0x01000193) ^ (hash >>> 15);
  return `${weight.dtype}[${weight.shape}]${hash}`;
}

/** Whether two weights of one dtype and shape hold the same bytes. */
export function sameContents(a: Weight, b: Weight): boolean {
  for (let start = 0; start < a.byteLength; start += PIECE_BYTES) {
    const length = Math.min(PIECE_BYTES, a.byteLength - start);
    const [x, y] = [a.bytes(start, length), b.bytes(start, length)];
    for (let i = 0; i < length; i++) if (x[i] !== y[i]) return false;
  }
  return true;
}

/**
 * Whether `b` is the transpose of `a`, compared in bands of columns so that memory stays bounded.
 *
 * @param a - [rows, columns]
 * @param b - [columns, rows], same dtype of whole bytes
 */
export function sameTransposed(a: Weight, b: Weight): boolean {
  const [rows = 0, columns = 0] = a.shape;
  const unit = dtypes[a.dtype].bits / 8;
  for (let i = 0; i < SAMPLES; i++) {
    // places spread by the golden ratio, so that rows and columns of zeros are not all we see
    const place = Math.floor(((i * 0.618_033_988_75) % 1) * rows * columns);
    const [row, column] = [Math.floor(place / columns), place % columns];
    const left = a.bytes((row * columns + column) * unit, unit);
    const right = b.bytes((column * rows + row) * unit, unit);
    if (left.some((byte, index) => byte !== right[index])) return false;
  }
  const band = Math.max(1, Math.floor((16 * PIECE_BYTES) / Math.max(1, rows * unit)));
  const rowStep = Math.max(1, Math.floor(PIECE_BYTES / Math.max(1, columns * unit)));
  for (let from = 0; from < columns; from += band) {
    const width = Math.min(band, columns - from);
    const turned = b.bytes(from * rows * unit, width * rows * unit);
    for (let top = 0; top < rows; top += rowStep) {
      const height = Math.min(rowStep, rows - top);
      const straight = a.bytes(top * columns * unit, height * columns * unit);
      for (let row = 0; row < height; row++)
        for (let column = 0; column < width; column++)
          for (let byte = 0; byte < unit; byte++) {
            const left = straight[(row * columns + from + column) * unit + byte];
            const right = turned[(column * rows + top + row) * unit + byte];
            if (left !== right) return false;
          }
    }
  }
  return true;
}
