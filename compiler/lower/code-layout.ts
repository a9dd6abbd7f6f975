/**
 * Codes as ONNX stores them: one flat run of 4- or 8-bit elements, low nibble first, no padding
 * between rows, in either orientation. Codes of 2 and 3 bits are widened to 4, and doubled (quant/grid.ts).
 */
import { packRow, unpackRows } from '../quant/pack.ts';

/** How codes are to be stored. */
export interface StoredCodes {
  /** Bits of an element: 4 or 8. */
  readonly bits: 4 | 8;
  /** What every code is multiplied by. */
  readonly factor: 1 | 2;
  /** Added to every code then; what leaves the range wraps around, so -8 makes a signed nibble. */
  readonly shift: number;
  /** Whether storage is [columns, rows]. */
  readonly transposed: boolean;
}

/**
 * Stores packed codes anew.
 *
 * @param codes - packed as `quant/pack.ts` says, [rows, packedRowBytes(bits, columns)]
 * @param bits - bits of a packed code
 * @returns elements of [rows, columns] or [columns, rows]
 */
export function storeCodes(
  codes: Uint8Array<ArrayBuffer>,
  bits: number,
  [rows, columns]: readonly [rows: number, columns: number],
  wanted: StoredCodes,
): Uint8Array<ArrayBuffer> {
  const mask = 2 ** wanted.bits - 1;
  const shift = wanted.shift & mask;
  const wholeBytes = (columns * bits) % 8 === 0;
  // a shift by half the range flips the top bit of each code, packed or not
  if (
    bits === wanted.bits &&
    wanted.factor === 1 &&
    !wanted.transposed &&
    wholeBytes &&
    (shift === 0 || 2 * shift === mask + 1)
  ) {
    const flip = bits === 8 ? shift : shift * 0x11;
    return flip === 0 ? codes : codes.map((byte) => byte ^ flip);
  }
  const loose = unpackRows(codes, bits, rows, columns);
  const turned = wanted.transposed ? transpose(loose, rows, columns) : loose;
  const { factor } = wanted;
  if (shift !== 0 || factor !== 1)
    for (let i = 0; i < turned.length; i++) turned[i] = ((turned[i] ?? 0) * factor + shift) & mask;
  if (wanted.bits === 8) return turned;
  const packed = new Uint8Array(Math.ceil(turned.length / 2));
  packRow(turned, 4, packed);
  return packed;
}

/** [rows, columns] -> [columns, rows]. */
export function transpose<T extends Uint8Array | Uint16Array>(
  values: T,
  rows: number,
  columns: number,
): T {
  const turned = values.slice() as T;
  // 64 rows at a time: what is written together lies together
  for (let first = 0; first < rows; first += 64) {
    const end = Math.min(rows, first + 64);
    for (let column = 0; column < columns; column++)
      for (let row = first; row < end; row++)
        turned[column * rows + row] = values[row * columns + column] ?? 0;
  }
  return turned;
}
