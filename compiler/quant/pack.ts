/**
 * Packing of codes: unsigned, a little-endian bit stream along each row (the first code in the low
 * bits of the first byte), rows padded to whole bytes. At 2, 4 and 8 bits no code straddles a byte.
 */
import { outOfRange } from '../../runtime/errors.ts';

/** Bytes of one packed row. */
export function packedRowBytes(bits: number, columns: number): number {
  return Math.ceil((bits * columns) / 8);
}

/**
 * Packs one row.
 *
 * @param codes - one code an element, each below `2^bits`
 * @param bits - 1 to 8
 * @param into - receives the bytes; must be zero where they go
 * @param offset - first byte of the row
 */
export function packRow(
  codes: Uint8Array,
  bits: number,
  into: Uint8Array,
  offset: number = 0,
  columns: number = codes.length,
): void {
  if (bits === 8) {
    into.set(columns === codes.length ? codes : codes.subarray(0, columns), offset);
    return;
  }
  if (bits === 4) {
    const pairs = columns >> 1;
    for (let i = 0; i < pairs; i++)
      into[offset + i] = (codes[2 * i] ?? 0) | ((codes[2 * i + 1] ?? 0) << 4);
    if (columns & 1) into[offset + pairs] = codes[columns - 1] ?? 0;
    return;
  }
  let word = 0;
  let held = 0;
  let at = offset;
  for (let i = 0; i < columns; i++) {
    word |= (codes[i] ?? 0) << held;
    held += bits;
    if (held >= 8) {
      into[at++] = word & 255;
      word >>>= 8;
      held -= 8;
    }
  }
  if (held > 0) into[at] = word & 255;
}

/** Unpacks one row of `columns` codes that starts at byte `offset` into `codes`. */
export function unpackRow(
  packed: Uint8Array,
  bits: number,
  columns: number,
  codes: Uint8Array,
  offset: number = 0,
): void {
  const mask = (1 << bits) - 1;
  let word = 0;
  let held = 0;
  let at = offset;
  for (let i = 0; i < columns; i++) {
    if (held < bits) {
      word |= (packed[at++] ?? 0) << held;
      held += 8;
    }
    codes[i] = word & mask;
    word >>>= bits;
    held -= bits;
  }
}

/**
 * Packs a matrix row by row.
 *
 * @param codes - [rows, columns], one code a byte
 * @returns [rows, {@link packedRowBytes}]
 * @throws RangeError when the sizes disagree
 */
export function packRows(
  codes: Uint8Array,
  bits: number,
  rows: number,
  columns: number,
): Uint8Array<ArrayBuffer> {
  if (codes.length !== rows * columns)
    throw outOfRange('codes.length', `${rows} x ${columns}`, codes.length);
  const rowBytes = packedRowBytes(bits, columns);
  const packed = new Uint8Array(rows * rowBytes);
  for (let row = 0; row < rows; row++)
    packRow(codes.subarray(row * columns, (row + 1) * columns), bits, packed, row * rowBytes);
  return packed;
}

/**
 * Unpacks a matrix; the inverse of {@link packRows}.
 *
 * @returns [rows, columns], one code a byte
 * @throws RangeError when the sizes disagree
 */
export function unpackRows(
  packed: Uint8Array,
  bits: number,
  rows: number,
  columns: number,
): Uint8Array<ArrayBuffer> {
  const rowBytes = packedRowBytes(bits, columns);
  if (packed.length !== rows * rowBytes)
    throw outOfRange('packed.length', `${rows} x ${rowBytes}`, packed.length);
  const codes = new Uint8Array(rows * columns);
  for (let row = 0; row < rows; row++)
    unpackRow(packed, bits, columns, codes.subarray(row * columns), row * rowBytes);
  return codes;
}
