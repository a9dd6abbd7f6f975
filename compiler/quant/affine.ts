/**
 * Round-to-nearest with an f16 scale, and perhaps a zero point, per group of a row.
 *
 *   asymmetric   s = (max(x, 0) - min(x, 0)) / span,  z = round(-min / s),  x' = s (step q - z)
 *   symmetric    s = max|x| / (span - z),             z = the middle (step, span, middle: grid.ts)
 *
 * Clip search shrinks the range (both ends) by factors from 1 down to 0.5 and keeps the one of least
 * squared error. Scales are rounded to f16 before anything is measured with them, so the error
 * reported is that of what is stored. Of 2 and 3 bits the two nearest zero points are tried: with one of them
 * zero is a level, with the other it lies between two. Source: ../shared/ALGORITHMS.md 0.2 and 0.4 (round-to-nearest
 * and its table of errors); the search is the common one of AWQ and GGUF tools.
 *
 * The loops are in `compiler/algebra/kernels/affine.ts`: the search tries 26 candidates for every weight.
 */
import type { Algebra } from '../algebra/algebra.ts';
import type { CodeBits } from './formats.ts';

/** How groups are rounded. */
export interface AffineOptions {
  /** Columns of a row. */
  readonly columns: number;
  /** Columns that share a scale; a last group may be shorter. */
  readonly group: number;
  /** Bits of a code. */
  readonly bits: CodeBits;
  /** Whether the zero point is in the middle everywhere. */
  readonly symmetric: boolean;
  /** Whether to search for the clip of least squared error. */
  readonly clip: boolean;
}

/** Rounded rows. */
export interface AffineRows {
  /** [rows, columns], one code a byte; valid until the next call, as are the others. */
  readonly codes: Uint8Array;
  /** [rows, groups]; f16 values. */
  readonly scales: Float32Array;
  /** [rows, groups]. */
  readonly zeros: Uint8Array;
}

/** Rounds blocks of rows and adds up the error; holds memory until {@link dispose}. */
export class AffineRounder {
  private readonly algebra: Algebra;
  private readonly options: AffineOptions;
  private readonly values: number;
  private readonly codes: number;
  private readonly scales: number;
  private readonly zeros: number;
  private readonly sums: number;
  private readonly scratch: number;

  /** @param rows - most rows of one call */
  constructor(algebra: Algebra, options: AffineOptions, rows: number) {
    const { heap } = algebra;
    const { columns, group } = options;
    const groups = rows * Math.ceil(columns / group);
    this.algebra = algebra;
    this.options = options;
    this.values = heap.allocate(4 * rows * columns);
    this.codes = heap.allocate(rows * columns);
    this.scales = heap.allocate(4 * groups);
    this.zeros = heap.allocate(groups);
    this.sums = heap.allocate(16);
    this.scratch = heap.allocate(8 * group);
    heap.f64(this.sums, 2).fill(0);
  }

  /** Sum of squared errors so far. */
  get squaredError(): number {
    return this.algebra.heap.f64(this.sums, 2)[0] ?? 0;
  }

  /** Sum of squares of the values so far. */
  get squaredNorm(): number {
    return this.algebra.heap.f64(this.sums, 2)[1] ?? 0;
  }

  /**
   * Rounds rows.
   *
   * @param block - [rows, columns]
   * @returns or the first row with a value that is not finite, or a scale that does not fit f16
   */
  round(block: Float32Array): AffineRows | number {
    const { heap, kernels } = this.algebra;
    const { columns, group, bits, symmetric, clip } = this.options;
    const rows = block.length / columns;
    heap.f32(this.values, block.length).set(block);
    const bad = kernels.roundAffine(
      this.values,
      rows,
      columns,
      group,
      bits,
      symmetric ? 1 : 0,
      clip ? 1 : 0,
      this.codes,
      this.scales,
      this.zeros,
      this.sums,
      this.scratch,
    );
    if (bad >= 0) return bad;
    const groups = rows * Math.ceil(columns / group);
    return {
      codes: heap.u8(this.codes, block.length),
      scales: heap.f32(this.scales, groups),
      zeros: heap.u8(this.zeros, groups),
    };
  }

  /** Gives the memory back. */
  dispose(): void {
    const { heap } = this.algebra;
    for (const block of [this.values, this.codes, this.scales, this.zeros, this.sums, this.scratch])
      heap.release(block);
  }
}

/** The f16 nearest to a value in 0..65504, as a number. */
export function roundToHalf(value: number): number {
  // the smallest normal f16; below it, steps have one size
  if (value < 2 ** -14) return Math.round(value * 2 ** 24) / 2 ** 24;
  // Veltkamp's split: the upper 11 of 53 bits
  const product = value * (2 ** 42 + 1);
  return product - (product - value);
}
