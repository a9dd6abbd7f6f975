/**
 * The smallest size whose measured loss stays within a bound.
 *
 * Bisection on size: the table proposes where the bound should be met, a measurement of the whole says
 * how far it is off, and the two ends close in. What is accepted is measured once more on data that the
 * search has not seen; when that fails, it steps back to the next larger size.
 *
 * Source: ../shared/ALGORITHMS.md Q4, Z5.
 */

/** A candidate that was built and measured. */
export interface Trial<T> {
  /** What was built. */
  readonly value: T;
  /** Bytes it takes. */
  readonly bytes: number;
  /** Measured loss, in the unit of the bound. */
  readonly loss: number;
}

/** What is searched. */
export interface ToleranceProblem<T> {
  /** Largest accepted loss. */
  readonly bound: number;
  /** Smallest size that can be built, in bytes. */
  readonly least: number;
  /** Size at which loss is smallest, in bytes. */
  readonly most: number;
  /** Predicted loss at a size, rising as size falls; only its shape matters. */
  readonly predict: (bytes: number) => number;
  /** Builds within a size and measures. */
  readonly measure: (bytes: number) => Promise<Trial<T>>;
  /** Measures what was accepted on other data; same unit. Absent: no second check. */
  readonly verify?: (trial: Trial<T>) => Promise<number>;
}

/** How it is searched. */
export interface ToleranceOptions {
  /** Most measurements, second checks not counted. Default 8. */
  readonly evaluations?: number;
  /** Ends closer together than this fraction of the size are good enough. Default 0.005. */
  readonly precision?: number;
}

/** The outcome. */
export interface ToleranceResult<T> {
  /** The smallest that was accepted; undefined when not even the largest was. */
  readonly best: Trial<T> | undefined;
  /** Loss of it on the second data; undefined without a second check. */
  readonly verified: number | undefined;
  /** Everything measured, in order. */
  readonly trials: readonly Trial<T>[];
  /** Whether the second check made it step back. */
  readonly steppedBack: boolean;
}

/** Searches. */
export async function searchTolerance<T>(
  problem: ToleranceProblem<T>,
  options: ToleranceOptions = {},
): Promise<ToleranceResult<T>> {
  const { bound, least, most, measure, verify } = problem;
  const { evaluations = 8, precision = 0.005 } = options;
  const trials: Trial<T>[] = [];
  let low = least;
  let high = most;
  // measured over predicted, near the bound
  let ratio = 1;
  // the smallest may do, and the largest must: both ends are only known once they are measured
  let lowFails = false;
  while (trials.length < evaluations && (high - low > precision * high || trials.length === 0)) {
    const aim = proposal(problem, low, high, bound / ratio);
    const bytes = trials.length === 0 ? aim : between(aim, low, high, lowFails);
    const trial = await measure(bytes);
    trials.push(trial);
    const predicted = problem.predict(bytes);
    if (predicted > 0 && trial.loss > 0) ratio = trial.loss / predicted;
    if (trial.loss <= bound) {
      high = Math.min(bytes, trial.bytes);
      if (high <= least) break;
    } else {
      low = Math.max(low, bytes);
      lowFails = true;
      if (bytes >= most) break;
    }
  }
  const accepted = trials.filter(({ loss }) => loss <= bound).sort((a, b) => a.bytes - b.bytes);
  let [best] = accepted;
  if (best === undefined && low < most) {
    const largest = await measure(most);
    trials.push(largest);
    if (largest.loss <= bound) best = largest;
  }
  if (best === undefined || verify === undefined)
    return { best, verified: undefined, trials, steppedBack: false };
  const verified = await verify(best);
  if (verified <= bound) return { best, verified, trials, steppedBack: false };
  // as much better as the second data asks for, and a little more
  const wanted = 0.95 * bound * (best.loss / verified);
  const next =
    accepted.find(({ loss }) => loss <= wanted) ??
    (await measure(proposal(problem, best.bytes, most, wanted / ratio)));
  const again = await verify(next);
  return {
    best: again <= bound && next.loss <= bound ? next : undefined,
    verified: again,
    trials: trials.includes(next) ? trials : [...trials, next],
    steppedBack: true,
  };
}

/** The size at which the prediction meets a loss. */
function proposal<T>(
  { predict }: ToleranceProblem<T>,
  low: number,
  high: number,
  loss: number,
): number {
  let [under, over] = [low, high];
  for (let i = 0; i < 40 && over - under > 1; i++) {
    const middle = (under + over) / 2;
    if (predict(middle) > loss) under = middle;
    else over = middle;
  }
  return Math.ceil(over);
}

/** A proposal kept away from the ends, so that every measurement takes off a tenth at least. */
function between(aim: number, low: number, high: number, lowFails: boolean): number {
  const margin = (high - low) / 10;
  // while nothing has failed, the smallest itself is worth a try
  const under = lowFails ? low + margin : low;
  return Math.round(Math.min(Math.max(aim, under), high - margin));
}
