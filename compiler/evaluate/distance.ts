/**
 * How far the outputs of one model are from those of another on the same inputs: largest and mean
 * error, cosine, and, reading the last axis as scores, agreement of the best class and the
 * Kullback-Leibler divergence KL(reference || candidate) of the two softmax distributions.
 */
import { wrongType } from '../../runtime/errors.ts';

/** Distance between two arrays of equal length, or a running total over several. */
export interface Distance {
  /** max |a - b|. */
  readonly maxError: number;
  /** mean |a - b|. */
  readonly meanError: number;
  /** `maxError` as a fraction of the reference's range (its largest minus its smallest value). */
  readonly relativeError: number;
  /** Cosine of the angle between the two, 1 when both are zero. */
  readonly cosine: number;
  /** Share of rows with the same index of the largest value. */
  readonly topOneAgreement: number;
  /** Mean over rows of KL(reference || candidate), nats. */
  readonly klDivergence: number;
  /** Rows compared. */
  readonly rows: number;
}

/** Accumulates {@link Distance} over many outputs without keeping them. */
export class DistanceMeter {
  private maxError = 0;
  private errorSum = 0;
  private count = 0;
  private dot = 0;
  private referenceSquares = 0;
  private candidateSquares = 0;
  private low = Infinity;
  private high = -Infinity;
  private agreed = 0;
  private divergence = 0;
  private rows = 0;

  /**
   * Adds one pair of outputs.
   *
   * @param reference - [rows, columns], row-major
   * @param candidate - same size
   * @param columns - length of the last axis
   */
  add(reference: ArrayLike<number>, candidate: ArrayLike<number>, columns: number): void {
    if (reference.length !== candidate.length)
      throw wrongType('candidate', `${reference.length} values`, `${candidate.length}`);
    for (let i = 0; i < reference.length; i++) {
      const a = reference[i] ?? 0;
      const b = candidate[i] ?? 0;
      const error = Math.abs(a - b);
      // a NaN on one side only is the worst error there is
      this.maxError = Math.max(
        this.maxError,
        Number.isNaN(error) && !(a !== a && b !== b) ? Infinity : error || 0,
      );
      this.errorSum += error;
      this.dot += a * b;
      this.referenceSquares += a * a;
      this.candidateSquares += b * b;
      this.low = Math.min(this.low, a);
      this.high = Math.max(this.high, a);
    }
    this.count += reference.length;
    for (let start = 0; columns > 0 && start < reference.length; start += columns) {
      const a = softmaxOf(reference, start, columns);
      const b = softmaxOf(candidate, start, columns);
      if (a.best === b.best) this.agreed++;
      for (let i = 0; i < columns; i++) {
        const logP = (reference[start + i] ?? 0) - a.logSum;
        this.divergence += Math.exp(logP) * (logP - ((candidate[start + i] ?? 0) - b.logSum));
      }
      this.rows++;
    }
  }

  /** The distance over everything added. */
  result(): Distance {
    const norms = Math.sqrt(this.referenceSquares * this.candidateSquares);
    const range = this.high - this.low;
    return {
      maxError: this.maxError,
      meanError: this.count === 0 ? 0 : this.errorSum / this.count,
      relativeError: this.maxError === 0 ? 0 : this.maxError / (range > 0 ? range : 1),
      cosine: norms === 0 ? 1 : this.dot / norms,
      topOneAgreement: this.rows === 0 ? 1 : this.agreed / this.rows,
      klDivergence: this.rows === 0 ? 0 : Math.max(0, this.divergence / this.rows),
      rows: this.rows,
    };
  }
}

function softmaxOf(
  values: ArrayLike<number>,
  start: number,
  columns: number,
): { readonly best: number; readonly logSum: number } {
  let best = 0;
  let highest = -Infinity;
  for (let i = 0; i < columns; i++) {
    const value = values[start + i] ?? 0;
    if (value > highest) [highest, best] = [value, i];
  }
  let sum = 0;
  for (let i = 0; i < columns; i++) sum += Math.exp((values[start + i] ?? 0) - highest);
  return { best, logSum: highest + Math.log(sum) };
}
