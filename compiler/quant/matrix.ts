/**
 * A weight matrix in integer codes: the canonical form that the graph carries and that every engine
 * lays out in its own way. Rows are output channels, columns are inputs; groups run along a row.
 */
import type { Algebra } from '../algebra/algebra.ts';
import { outOfRange } from '../../runtime/errors.ts';
import { fromHalfArray, toHalfArray } from '../../runtime/half.ts';
import { AffineRounder } from './affine.ts';
import type { IntegerFormat } from './formats.ts';
import { codeStep, middleZero, zeroBits } from './grid.ts';
import { packRows, packedRowBytes, unpackRow } from './pack.ts';

/** A matrix that is read a few rows at a time. */
export interface RowSource {
  /** Output channels. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
  /** Rows `start` to `start + count`, [count, columns]; valid until the next call. */
  read(start: number, count: number): Float32Array;
}

/** How the codes of a matrix are laid out. */
export interface CodeLayout {
  /** Output channels. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
  /** Bits of a code. */
  readonly bits: number;
  /** Inputs that share a scale; `columns` for one scale per output channel. */
  readonly group: number;
}

/** Codes, scales and zero points of a matrix. */
export interface QuantizedMatrix extends CodeLayout {
  /** [rows, packedRowBytes(bits, columns)], packed as `pack.ts` says. */
  readonly codes: Uint8Array<ArrayBuffer>;
  /** f16 patterns, [rows, groups]. */
  readonly scales: Uint16Array<ArrayBuffer>;
  /** [rows, packedRowBytes(zeroBits(bits), groups)]; undefined: `middleZero(bits)` everywhere. */
  readonly zeros: Uint8Array<ArrayBuffer> | undefined;
  /**
   * What the codes of 4 bits stand for, -64..63: [C, 16] levels, the rows split evenly over C contiguous
   * groups. Absent: codes are integers. There are no zero points beside it.
   */
  readonly codebook?: Int8Array<ArrayBuffer> | undefined;
}

/** Levels of a codebook. */
export const CODEBOOK_LEVELS = 16;

/** A quantized matrix with what rounding cost, or the reason why there is none. */
export type QuantizeResult =
  | {
      readonly matrix: QuantizedMatrix;
      /** `‖W - Ŵ‖² / ‖W‖²`; 0 for a matrix of zeros. */
      readonly relativeError: number;
    }
  | { readonly refused: string };

/** Values in a block of rows that are read together: 1 MiB of f32. */
const blockValues = 1 << 18;

/** Rows of a block that are read together. */
export function blockRows(columns: number): number {
  return Math.max(1, Math.floor(blockValues / Math.max(1, columns)));
}

/** Scales per row. */
export function groupCount(layout: Pick<CodeLayout, 'columns' | 'group'>): number {
  return Math.ceil(layout.columns / layout.group);
}

/**
 * Rounds a matrix to integer codes.
 *
 * @param source - finite values; a matrix with NaN or infinities is refused, not changed
 * @param format - bits, group and symmetry; a last group may be shorter than the others
 * @param algebra - rounds, a block of rows at a time
 * @param clip - whether to search for the clip of least squared error. Default true
 * @param onRows - called after every block with the number of rows done
 */
export function quantizeMatrix(
  source: RowSource,
  format: Pick<IntegerFormat, 'bits' | 'group' | 'symmetric'>,
  algebra: Algebra,
  clip: boolean = true,
  onRows: (done: number) => void = () => undefined,
): QuantizeResult {
  const { rows, columns } = source;
  const { bits, symmetric } = format;
  const group = format.group === 'channel' ? columns : Math.min(format.group, columns);
  const groups = Math.ceil(columns / group);
  const rowBytes = packedRowBytes(bits, columns);
  const zeroBytes = packedRowBytes(zeroBits(bits), groups);
  const codes = new Uint8Array(rows * rowBytes);
  const scales = new Uint16Array(rows * groups);
  const zeros = symmetric ? undefined : new Uint8Array(rows * zeroBytes);
  const step = blockRows(columns);
  const rounder = new AffineRounder(
    algebra,
    { columns, group, bits, symmetric, clip },
    Math.min(step, rows),
  );
  try {
    for (let first = 0; first < rows; first += step) {
      const count = Math.min(step, rows - first);
      const block = source.read(first, count).subarray(0, count * columns);
      const rounded = rounder.round(block);
      if (typeof rounded === 'number') {
        const row = block.subarray(rounded * columns, (rounded + 1) * columns);
        return { refused: whyUnfit(row, first + rounded) };
      }
      codes.set(packRows(rounded.codes, bits, count, columns), first * rowBytes);
      scales.set(toHalfArray(rounded.scales), first * groups);
      zeros?.set(packRows(rounded.zeros, zeroBits(bits), count, groups), first * zeroBytes);
      onRows(first + count);
    }
    const { squaredError, squaredNorm } = rounder;
    return {
      matrix: { rows, columns, bits, group, codes, scales, zeros },
      relativeError: squaredNorm === 0 ? 0 : squaredError / squaredNorm,
    };
  } finally {
    rounder.dispose();
  }
}

/**
 * The values that a quantized matrix stands for, [rows, columns], or [columns, rows] when
 * `transposed`.
 *
 * @throws RangeError when codes, scales or zero points do not have the size the layout says
 */
export function dequantizeMatrix(
  matrix: QuantizedMatrix,
  transposed: boolean = false,
): Float32Array<ArrayBuffer> {
  const { rows, columns, bits, group, codes, zeros } = matrix;
  checkSizes(matrix);
  const groups = groupCount(matrix);
  const rowBytes = packedRowBytes(bits, columns);
  const zeroBytes = packedRowBytes(zeroBits(bits), groups);
  const scales = fromHalfArray(matrix.scales);
  const values = new Float32Array(rows * columns);
  const rowCodes = new Uint8Array(columns);
  const rowZeros = new Uint8Array(groups).fill(middleZero(bits));
  const across = transposed ? rows : 1;
  const levels = levelsByRow(matrix);
  const step = codeStep(bits);
  for (let row = 0; row < rows; row++) {
    unpackRow(codes, bits, columns, rowCodes, row * rowBytes);
    const level = levels?.(row);
    if (zeros !== undefined) unpackRow(zeros, zeroBits(bits), groups, rowZeros, row * zeroBytes);
    let at = transposed ? row : row * columns;
    for (let g = 0, column = 0; g < groups; g++) {
      const scale = scales[row * groups + g] ?? 0;
      const zero = rowZeros[g] ?? 0;
      for (const end = Math.min(columns, column + group); column < end; column++, at += across) {
        const code = rowCodes[column] ?? 0;
        values[at] = (level === undefined ? step * code - zero : (level[code] ?? 0)) * scale;
      }
    }
  }
  return values;
}

/**
 * The 16 levels of a row.
 *
 * @returns undefined for a matrix of integers
 */
export function levelsByRow(
  matrix: Pick<QuantizedMatrix, 'rows' | 'codebook'>,
): ((row: number) => Int8Array) | undefined {
  const { rows, codebook } = matrix;
  if (codebook === undefined) return undefined;
  const rowsEach = rows / (codebook.length / CODEBOOK_LEVELS);
  return (row) => {
    const first = Math.floor(row / rowsEach) * CODEBOOK_LEVELS;
    return codebook.subarray(first, first + CODEBOOK_LEVELS);
  };
}

/**
 * A matrix with a codebook as one of integers in 8 bits, for engines that know no codebooks: the same
 * values in twice the bytes. Codes are level + 128.
 */
export function withoutCodebook(matrix: QuantizedMatrix): QuantizedMatrix {
  const { rows, columns, bits, group, scales } = matrix;
  const levels = levelsByRow(matrix);
  if (levels === undefined) return matrix;
  const rowBytes = packedRowBytes(bits, columns);
  const codes = new Uint8Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const wide = codes.subarray(row * columns, (row + 1) * columns);
    unpackRow(matrix.codes, bits, columns, wide, row * rowBytes);
    const level = levels(row);
    for (let i = 0; i < columns; i++) wide[i] = (level[wide[i] ?? 0] ?? 0) + 128;
  }
  return { rows, columns, bits: 8, group, codes, scales, zeros: undefined };
}

function checkSizes(matrix: QuantizedMatrix): void {
  const { rows, columns, bits } = matrix;
  const groups = groupCount(matrix);
  const wanted = rows * packedRowBytes(bits, columns);
  if (matrix.codes.length !== wanted)
    throw outOfRange('codes', `${wanted} bytes`, matrix.codes.length);
  if (matrix.scales.length !== rows * groups)
    throw outOfRange('scales', `${rows * groups}`, matrix.scales.length);
  const zeroBytes = rows * packedRowBytes(zeroBits(bits), groups);
  if (matrix.zeros !== undefined && matrix.zeros.length !== zeroBytes)
    throw outOfRange('zeros', `${zeroBytes} bytes`, matrix.zeros.length);
  const entries = matrix.codebook?.length ?? CODEBOOK_LEVELS;
  if (entries === 0 || entries % CODEBOOK_LEVELS !== 0 || (rows * CODEBOOK_LEVELS) % entries !== 0)
    throw outOfRange('codebook', `a multiple of 16 whose tables split ${rows} rows`, entries);
}

/** Why a row has no codes. */
export function whyUnfit(values: Float32Array, row: number): string {
  const column = values.findIndex((value) => !Number.isFinite(value));
  if (column < 0) return `row ${row} needs a scale beyond the largest f16 (65504)`;
  return `row ${row}, column ${column} is ${values[column]}; such values have no integer code`;
}
