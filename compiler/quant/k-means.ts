/**
 * k-means of numbers: the levels that lose least when every value is replaced by the nearest one.
 *
 *   minimise  sum_i w_i (x_i - c_a(i))²
 *
 * Lloyd's steps from a start at quantiles. Values are sorted once and summed up, so a step takes a search
 * per level and no pass over the values. The loss never rises. Source: ../shared/ALGORITHMS.md Q15a.
 */
import { outOfRange } from '../../runtime/errors.ts';

/** How {@link kMeans} searches. */
export interface KMeansOptions {
  /** Levels. Default 16. */
  readonly levels?: number;
  /** Most steps; it stops earlier when nothing moves. Default 100. */
  readonly steps?: number;
  /** Ascending levels to start from. Default: quantiles of the weighted values. */
  readonly start?: ArrayLike<number>;
}

/**
 * Clusters numbers.
 *
 * @param values - finite, in any order; equal ones may also be one value with the sum of their weights
 * @param weights - not negative, one a value. Default 1 each
 * @returns ascending levels; with fewer distinct values than levels, some are equal
 * @throws RangeError when there are no values, or not as many weights
 */
export function kMeans(
  values: ArrayLike<number>,
  weights?: ArrayLike<number>,
  options: KMeansOptions = {},
): Float64Array<ArrayBuffer> {
  const { levels: count = 16, steps = 100, start } = options;
  if (values.length === 0) throw outOfRange('values.length', 'at least 1', 0);
  if (weights !== undefined && weights.length !== values.length)
    throw outOfRange('weights.length', `${values.length}`, weights.length);
  const sorted = new SortedValues(values, weights);
  let levels = start === undefined ? sorted.quantiles(count) : Float64Array.from(start);
  for (let step = 0; step < steps; step++) {
    let from = 0;
    const next = levels.map((level, index) => {
      const above = levels[index + 1];
      const to = above === undefined ? values.length : sorted.countBelow((level + above) / 2);
      // a level that nothing is near stays: its neighbours may leave it something
      const mean = sorted.mean(from, to) ?? level;
      from = to;
      return mean;
    });
    const moved = next.some((level, index) => level !== levels[index]);
    levels = next;
    if (!moved) break;
  }
  return levels;
}

/** Values in ascending order with running sums of their weights and of weight times value. */
class SortedValues {
  private readonly values: Float64Array;
  private readonly weights: Float64Array;
  private readonly moments: Float64Array;

  constructor(values: ArrayLike<number>, weights: ArrayLike<number> | undefined) {
    const order =
      weights === undefined
        ? undefined
        : Uint32Array.from(values, (_, i) => i).sort((a, b) => (values[a] ?? 0) - (values[b] ?? 0));
    this.values =
      order === undefined
        ? Float64Array.from(values).sort()
        : Float64Array.from(order, (i) => values[i] ?? 0);
    this.weights = new Float64Array(values.length + 1);
    this.moments = new Float64Array(values.length + 1);
    this.values.forEach((value, i) => {
      const weight = order === undefined ? 1 : (weights?.[order[i] ?? 0] ?? 0);
      this.weights[i + 1] = (this.weights[i] ?? 0) + weight;
      this.moments[i + 1] = (this.moments[i] ?? 0) + weight * value;
    });
  }

  /** Values in the middle of `count` parts of equal weight. */
  quantiles(count: number): Float64Array<ArrayBuffer> {
    const total = this.weights.at(-1) ?? 0;
    return Float64Array.from({ length: count }, (_, i) => {
      const at = search(this.weights, ((i + 0.5) / count) * total) - 1;
      return this.values[Math.min(this.values.length - 1, Math.max(0, at))] ?? 0;
    });
  }

  /** How many values are below a bound. */
  countBelow(bound: number): number {
    return search(this.values, bound);
  }

  /** Mean of values `from` to `to`; undefined when they weigh nothing. */
  mean(from: number, to: number): number | undefined {
    const weight = (this.weights[to] ?? 0) - (this.weights[from] ?? 0);
    return weight > 0 ? ((this.moments[to] ?? 0) - (this.moments[from] ?? 0)) / weight : undefined;
  }
}

/** How many of some ascending numbers are below a bound. */
function search(ascending: Float64Array, bound: number): number {
  let from = 0;
  let to = ascending.length;
  while (from < to) {
    const at = (from + to) >> 1;
    if ((ascending[at] ?? 0) < bound) from = at + 1;
    else to = at;
  }
  return from;
}
