/**
 * Round-to-nearest with an f16 scale, and perhaps a zero point, per group of a row.
 *
 *   asymmetric   s = (max(x, 0) - min(x, 0)) / (2^b - 1),  z = round(-min / s),  x' = s (q - z)
 *   symmetric    s = max|x| / (2^(b-1) - 1),               z = 2^(b-1)
 *
 * Clip search shrinks the range (both ends) by factors from 1 down to 0.5 and keeps the one of least
 * squared error. Scales are rounded to f16 before anything is measured with them, so the error
 * reported is that of what is stored. Source: ../shared/ALGORITHMS.md 0.2 and 0.4 (round-to-nearest
 * and its table of errors); the search is the common one of AWQ and GGUF tools.
 *
 * The search decides how long a compilation takes (26 candidates for every weight), hence the plain
 * loops: the two largest values of a group come first, so that a candidate that clips too much is
 * given up after 8 of 32 values. Exact: a candidate is left only once it has lost.
 */
import { floatToHalf } from '../../runtime/half.ts';
import type { CodeBits } from './formats.ts';

/** How groups are rounded. */
export interface AffineOptions {
  /** Bits of a code. */
  readonly bits: CodeBits;
  /** Whether the zero point is `2^(bits-1)` everywhere. */
  readonly symmetric: boolean;
  /** Whether to search for the clip of least squared error. */
  readonly clip: boolean;
}

/** Steps of the clip search: 1, 0.98, …, 0.5. */
const clipFactors: readonly number[] = Array.from({ length: 26 }, (_, i) => 1 - i / 50);

/** Largest finite f16. */
const halfMax = 65504;

/** Adding and subtracting it rounds a double of moderate size to an integer, ties to even. */
const roundMagic = 6755399441055744;

/** Rounds groups one at a time and adds up the error; reused for every group of a tensor. */
export class AffineRounder {
  /** Sum of squared errors so far. */
  squaredError = 0;
  /** Sum of squares of the values so far; not finite once a value was not. */
  squaredNorm = 0;
  /** f16 pattern of the last group's scale. */
  scale = 0;
  /** Zero point of the last group. */
  zero = 0;
  private readonly bits: CodeBits;
  private readonly symmetric: boolean;
  private readonly factors: readonly number[];
  private values = new Float64Array(0);

  constructor(options: AffineOptions) {
    this.bits = options.bits;
    this.symmetric = options.symmetric;
    this.factors = options.clip ? clipFactors : clipFactors.slice(0, 1);
  }

  /**
   * Rounds `row[start..end)` to codes at the same places of `codes` and sets {@link scale} and
   * {@link zero}.
   *
   * @returns false when a value is not finite, or the scale does not fit f16
   */
  round(row: Float32Array, start: number, end: number, codes: Uint8Array): boolean {
    const { bits, symmetric } = this;
    const middle = 1 << (bits - 1);
    const levels = (1 << bits) - 1;
    let low = 0;
    let high = 0;
    let norm = 0;
    for (let i = start; i < end; i++) {
      const value = row[i] ?? 0;
      norm += value * value;
      if (value < low) low = value;
      else if (value > high) high = value;
    }
    this.squaredNorm += norm;
    if (!Number.isFinite(norm)) return false;
    const range = symmetric ? Math.max(high, -low) : high - low;
    const full = range / (symmetric ? middle - 1 : levels);
    if (full > halfMax) return false;

    let scale = 0;
    let zero = middle;
    let least = Infinity;
    if (this.factors.length > 1) this.load(row, start, end, low, high);
    for (const factor of this.factors) {
      const candidate = roundToHalf(full * factor);
      if (candidate === 0) break;
      const candidateZero = symmetric
        ? middle
        : Math.min(levels, Math.round((-low * factor) / candidate));
      if (this.factors.length > 1) {
        const error = this.errorBelow(
          least,
          end - start,
          candidate,
          -candidateZero,
          levels - candidateZero,
        );
        if (error >= least) continue;
        least = error;
      }
      scale = candidate;
      zero = candidateZero;
    }

    const inverse = scale === 0 ? 0 : 1 / scale;
    let error = 0;
    for (let i = start; i < end; i++) {
      const value = row[i] ?? 0;
      let step = value * inverse + roundMagic - roundMagic;
      if (step < -zero) step = -zero;
      else if (step > levels - zero) step = levels - zero;
      codes[i] = step + zero;
      const difference = value - scale * step;
      error += difference * difference;
    }
    this.squaredError += error;
    this.scale = floatToHalf(scale);
    this.zero = zero;
    return true;
  }

  /** Copies a group into scratch, its two ends first. */
  private load(row: Float32Array, start: number, end: number, low: number, high: number): void {
    const count = end - start;
    if (this.values.length < count) this.values = new Float64Array(count);
    const { values } = this;
    let first = 0;
    let last = count - 1;
    for (let i = start; i < end; i++) {
      const value = row[i] ?? 0;
      if (value === high || value === low) values[first++] = value;
      else values[last--] = value;
    }
  }

  /** Squared error of a group at one scale; only known to be too much when it is not below `limit`. */
  private errorBelow(
    limit: number,
    count: number,
    scale: number,
    lowest: number,
    highest: number,
  ): number {
    const { values } = this;
    const inverse = 1 / scale;
    let error = 0;
    let i = 0;
    for (; i + 8 <= count && error < limit; i += 8) {
      for (let j = i; j < i + 8; j++) {
        const value = values[j] ?? 0;
        let step = value * inverse + roundMagic - roundMagic;
        if (step < lowest) step = lowest;
        else if (step > highest) step = highest;
        const difference = value - scale * step;
        error += difference * difference;
      }
    }
    if (error >= limit) return error;
    for (; i < count; i++) {
      const value = values[i] ?? 0;
      const step = Math.min(highest, Math.max(lowest, value * inverse + roundMagic - roundMagic));
      error += (value - scale * step) ** 2;
    }
    return error;
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
