/**
 * Rounding to a codebook that is learned from the matrix: `c4g32` and its kin.
 *
 *   x' = s * level[code],  level in -64..63,  s f16 > 0 per group,  16 levels per run of rows
 *
 * The levels are k-means of the values divided by their group's scale, each weighted by the scale's
 * square (and by what its input weighs, if given), which is the squared error of the matrix. Scales and
 * levels are found in turn: levels for the largest magnitudes as scales, the best scales for these
 * levels, the best levels for those scales. Source: ../shared/ALGORITHMS.md Q15a and Q15b (a codebook
 * per run of rows).
 */
import { outOfRange } from '../../runtime/errors.ts';
import { floatToHalf } from '../../runtime/half.ts';
import { roundToHalf } from './affine.ts';
import type { CodebookFormat } from './formats.ts';
import { kMeans } from './k-means.ts';
import type { QuantizeResult, RowSource } from './matrix.ts';
import { CODEBOOK_LEVELS, blockRows, whyUnfit } from './matrix.ts';
import { packRow, packedRowBytes } from './pack.ts';

/** Lowest and highest level: with 64 added they are operands of 7 bits. */
const LOWEST = -64;
const HIGHEST = 63;

/** Factors of a group's largest scale that are tried. */
const scaleFactors: readonly number[] = Array.from({ length: 12 }, (_, i) => 1.05 - i / 25);

/** Largest finite f16. */
const halfMax = 65504;

/** Values that levels are learned from, at most, per codebook. */
const LEARNED_VALUES = 1 << 20;

/** Bins per level step that values are counted in while levels are learned. */
const BINS = 32;
/** Scaled values beyond this many steps are counted at the end. */
const REACH = 96;

/** How a matrix is rounded to codebooks. */
export interface CodebookOptions {
  /** Codebooks, each for as many contiguous rows. Default 1. */
  readonly codebooks?: number;
  /** What an error in each input weighs, [columns]: the diagonal of a Hessian. Default 1 each. */
  readonly weights?: ArrayLike<number> | undefined;
  /** [codebooks, 16] ascending levels to use instead of learning them. */
  readonly levels?: Int8Array<ArrayBuffer> | undefined;
  /** Called after every block with the number of rows done. */
  readonly onRows?: (done: number) => void;
}

/** Rounds groups one at a time to one list of levels. */
export class CodebookRounder {
  /** f16 pattern of the last group's scale. */
  scale = 0;
  /** The last group's scale. */
  scaleValue = 0;
  private readonly levels: Int8Array;
  private readonly codes: Uint8Array;
  private readonly largest: number;
  private readonly weights: ArrayLike<number> | undefined;

  /**
   * @param levels - 16 levels, ascending
   * @param weights - what an error in each column weighs
   */
  constructor(levels: Int8Array, weights?: ArrayLike<number>) {
    this.levels = levels;
    this.weights = weights;
    this.largest = levels.reduce((most, level) => Math.max(most, Math.abs(level)), 1);
    // twice a boundary between levels is an integer: the code of v follows from ceil(2v) exactly
    this.codes = Uint8Array.from({ length: 4 * -LOWEST + 2 }, (_, i) => {
      const doubled = i + 2 * LOWEST;
      return levels.reduce((code, level, j) => {
        const below = levels[j - 1];
        return below !== undefined && level + below < doubled ? j : code;
      }, 0);
    });
  }

  /** Code of the level nearest to a scaled value. */
  codeOf(scaled: number): number {
    const doubled = Math.min(2 * -LOWEST + 1, Math.max(2 * LOWEST, Math.ceil(2 * scaled)));
    return this.codes[doubled - 2 * LOWEST] ?? 0;
  }

  /**
   * Rounds `row[start..end)` to codes at the same places of `codes` and sets {@link scale}.
   *
   * @returns the squared error, not weighted; NaN when a value is not finite or the scale does not fit f16
   */
  round(row: Float32Array, start: number, end: number, codes: Uint8Array): number {
    let range = 0;
    for (let i = start; i < end; i++) {
      const value = row[i] ?? 0;
      if (!Number.isFinite(value)) return Number.NaN;
      range = Math.max(range, Math.abs(value));
    }
    const full = range / this.largest;
    if (full > halfMax) return Number.NaN;
    let best = 0;
    let least = Infinity;
    const consider = (scale: number): void => {
      if (scale === 0 || scale > halfMax) return;
      const error = this.errorAt(row, start, end, scale, least);
      if (error < least) [best, least] = [scale, error];
    };
    for (const factor of scaleFactors) consider(roundToHalf(full * factor));
    if (best !== 0) consider(roundToHalf(this.fittedScale(row, start, end, best)));
    this.scale = floatToHalf(best);
    this.scaleValue = best;
    let error = 0;
    for (let i = start; i < end; i++) {
      const value = row[i] ?? 0;
      const code = this.codeOf(best === 0 ? 0 : value / best);
      codes[i] = code;
      error += (value - best * (this.levels[code] ?? 0)) ** 2;
    }
    return error;
  }

  /** Weighted squared error at a scale; only known to be too much when it is not below `limit`. */
  private errorAt(
    row: Float32Array,
    start: number,
    end: number,
    scale: number,
    limit: number,
  ): number {
    const { levels, weights } = this;
    const inverse = 1 / scale;
    let error = 0;
    for (let i = start; i < end && error < limit; i++) {
      const value = row[i] ?? 0;
      const difference = value - scale * (levels[this.codeOf(value * inverse)] ?? 0);
      error += difference * difference * (weights === undefined ? 1 : (weights[i] ?? 0));
    }
    return error;
  }

  /** The scale of least error for the codes that `scale` gives. */
  private fittedScale(row: Float32Array, start: number, end: number, scale: number): number {
    let product = 0;
    let norm = 0;
    for (let i = start; i < end; i++) {
      const value = row[i] ?? 0;
      const level = this.levels[this.codeOf(value / scale)] ?? 0;
      const weight = this.weights?.[i] ?? 1;
      product += weight * value * level;
      norm += weight * level * level;
    }
    return norm === 0 ? 0 : Math.max(0, product / norm);
  }
}

/**
 * Rounds a matrix to codes of a codebook.
 *
 * @param source - finite values; a matrix with NaN or infinities is refused, not changed
 * @param format - its group size; a last group may be shorter than the others
 * @throws RangeError when the rows cannot be split evenly over the codebooks
 */
export function quantizeToCodebook(
  source: RowSource,
  format: Pick<CodebookFormat, 'group'>,
  options: CodebookOptions = {},
): QuantizeResult {
  const { rows, columns } = source;
  const { codebooks = 1, weights, onRows = () => undefined } = options;
  if (rows % codebooks !== 0) throw outOfRange('codebooks', `a divisor of ${rows}`, codebooks);
  const group = Math.min(format.group, columns);
  const groups = Math.ceil(columns / group);
  const bits = 4;
  const rowBytes = packedRowBytes(bits, columns);
  const codes = new Uint8Array(rows * rowBytes);
  const scales = new Uint16Array(rows * groups);
  const codebook = options.levels ?? new Int8Array(codebooks * CODEBOOK_LEVELS);
  const rowCodes = new Uint8Array(columns);
  const rowsEach = rows / codebooks;
  let squaredError = 0;
  let squaredNorm = 0;
  for (let c = 0; c < codebooks; c++) {
    const levels = codebook.subarray(c * CODEBOOK_LEVELS, (c + 1) * CODEBOOK_LEVELS);
    if (options.levels === undefined)
      levels.set(learnLevels(source, c * rowsEach, rowsEach, group, weights));
    const rounder = new CodebookRounder(levels, weights);
    const end = (c + 1) * rowsEach;
    const step = blockRows(columns);
    for (let first = c * rowsEach; first < end; first += step) {
      const count = Math.min(step, end - first);
      const block = source.read(first, count);
      for (let r = 0; r < count; r++) {
        const row = first + r;
        const values = block.subarray(r * columns, (r + 1) * columns);
        for (let g = 0; g < groups; g++) {
          const until = Math.min((g + 1) * group, columns);
          squaredError += rounder.round(values, g * group, until, rowCodes);
          scales[row * groups + g] = rounder.scale;
        }
        if (Number.isNaN(squaredError)) return { refused: whyUnfit(values, row) };
        for (const value of values) squaredNorm += value * value;
        packRow(rowCodes, bits, codes, row * rowBytes);
      }
      onRows(first + count);
    }
  }
  return {
    matrix: { rows, columns, bits, group, codes, scales, zeros: undefined, codebook },
    relativeError: squaredNorm === 0 ? 0 : squaredError / squaredNorm,
  };
}

/**
 * Learns the 16 levels of some rows: `count` from `first` on, or a sample of them when they are many.
 *
 * @param group - inputs that share a scale
 * @param weights - what an error in each input weighs, [columns]
 * @returns ascending levels, -64..63
 */
export function learnLevels(
  source: RowSource,
  first: number,
  count: number,
  group: number,
  weights?: ArrayLike<number>,
): Int8Array<ArrayBuffer> {
  const { columns } = source;
  const step = blockRows(columns);
  // blocks spread over the rows
  const blocks = Math.ceil(count / step);
  const wanted = Math.max(1, Math.min(blocks, Math.ceil(LEARNED_VALUES / (step * columns))));
  const sample = Array.from({ length: wanted }, (_, i) => {
    const start = Math.floor((i * blocks) / wanted) * step;
    const taken = Math.min(step, count - start);
    return { rows: taken, values: Float32Array.from(source.read(first + start, taken)) };
  });
  let levels = Int8Array.from({ length: CODEBOOK_LEVELS }, (_, i) => 8 * i - 60);
  const scratch = new Uint8Array(columns);
  for (let round = 0; round < 3; round++) {
    const rounder = new CodebookRounder(levels, weights);
    const histogram = new Histogram();
    for (const { rows, values } of sample)
      for (let row = 0; row < rows; row++) {
        const line = values.subarray(row * columns, (row + 1) * columns);
        for (let start = 0; start < columns; start += group) {
          const end = Math.min(columns, start + group);
          let scale = 0;
          if (round > 0) {
            rounder.round(line, start, end, scratch);
            scale = rounder.scaleValue;
          } else {
            for (let i = start; i < end; i++) scale = Math.max(scale, Math.abs(line[i] ?? 0));
            scale /= HIGHEST;
          }
          if (!(scale > 0 && scale < Infinity)) continue;
          for (let i = start; i < end; i++)
            histogram.add((line[i] ?? 0) / scale, scale * scale * (weights?.[i] ?? 1));
        }
      }
    const next = histogram.levels(round === 0 ? undefined : levels);
    if (next === undefined) break;
    levels = next;
  }
  return levels;
}

/** Scaled values, counted in narrow bins. */
class Histogram {
  private readonly weights = new Float64Array(2 * REACH * BINS + 1);
  private readonly moments = new Float64Array(2 * REACH * BINS + 1);

  add(value: number, weight: number): void {
    const clamped = Math.min(REACH, Math.max(-REACH, value));
    const bin = Math.round((clamped + REACH) * BINS);
    this.weights[bin] = (this.weights[bin] ?? 0) + weight;
    this.moments[bin] = (this.moments[bin] ?? 0) + weight * clamped;
  }

  /** Levels of k-means; undefined when nothing was counted. */
  levels(start: Int8Array | undefined): Int8Array<ArrayBuffer> | undefined {
    const bins = [...this.weights.keys()].filter((bin) => (this.weights[bin] ?? 0) > 0);
    if (bins.length === 0) return undefined;
    const weights = bins.map((bin) => this.weights[bin] ?? 0);
    const values = bins.map((bin, i) => (this.moments[bin] ?? 0) / (weights[i] ?? 1));
    const found = kMeans(values, weights, start === undefined ? {} : { start });
    return Int8Array.from(found, (level) => Math.min(HIGHEST, Math.max(LOWEST, Math.round(level))));
  }
}
