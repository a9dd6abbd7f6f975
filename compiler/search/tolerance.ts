/**
 * The smallest size whose measured loss stays within a bound.
 *
 * Bisection on size: the table proposes where the bound should be met, a measurement of the whole says
 * how far it is off, and the two ends close in. What is accepted is measured once more, as it will be kept
 * and on data that the search has not seen; while that fails, it steps to a larger size, by as much as the
 * table says the excess takes.
 *
 * Source: ../shared/ALGORITHMS.md Q4, Z5.
 */

/** What a size leads to. */
export interface Choice<T> {
  /** What would be built. */
  readonly value: T;
  /** Bytes it takes. */
  readonly bytes: number;
}

/** A choice that was built and measured. */
export interface Trial<T> extends Choice<T> {
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
  /** What is best within a size. */
  readonly choose: (bytes: number) => Choice<T>;
  /** Builds a choice and measures its loss. */
  readonly measure: (choice: Choice<T>) => Promise<number>;
  /** Measures what was accepted on other data too; same unit. Absent: no second check. */
  readonly verify?: (choice: Choice<T>) => Promise<number>;
}

/** How it is searched. */
export interface ToleranceOptions {
  /** Most measurements, second checks not counted. Default 8. */
  readonly evaluations?: number;
  /** Ends closer together than this fraction of the size are good enough. Default 0.005. */
  readonly precision?: number;
  /** Most second checks. Default 4. */
  readonly verifications?: number;
}

/** The outcome. */
export interface ToleranceResult<T> {
  /** What is kept, the last that was built; undefined when nothing held. */
  readonly best: Choice<T> | undefined;
  /** Loss of it on the second check; undefined without one. */
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
  const { bound, least, most } = problem;
  const { evaluations = 8, precision = 0.005 } = options;
  const trials: Trial<T>[] = [];
  const measured = async (bytes: number): Promise<Trial<T>> => {
    const choice = problem.choose(bytes);
    const trial = { ...choice, loss: await problem.measure(choice) };
    trials.push(trial);
    return trial;
  };
  let low = least;
  let high = most;
  // measured over predicted, near the bound
  let ratio = 1;
  // the smallest may do, and the largest must: both ends are only known once they are measured
  let lowFails = false;
  while (trials.length < evaluations && (high - low > precision * high || trials.length === 0)) {
    const aim = proposal(problem, low, high, bound / ratio);
    const bytes = trials.length === 0 ? aim : between(aim, low, high, lowFails);
    const trial = await measured(bytes);
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
    const largest = await measured(most);
    if (largest.loss <= bound) best = largest;
  }
  if (best === undefined || problem.verify === undefined)
    return { best, verified: undefined, trials, steppedBack: false };
  return { ...(await confirmed(problem, best, options)), trials };
}

/** The second check, at larger and larger sizes while it fails. */
async function confirmed<T>(
  problem: ToleranceProblem<T>,
  first: Choice<T>,
  { verifications = 4 }: ToleranceOptions,
): Promise<Omit<ToleranceResult<T>, 'trials'>> {
  const { bound, most, choose, predict, verify = async () => 0 } = problem;
  let choice = first;
  for (let checks = 1; ; checks++) {
    const verified = await verify(choice);
    const steppedBack = checks > 1;
    if (verified <= bound) return { best: choice, verified, steppedBack };
    if (checks >= verifications || choice.bytes >= most)
      return { best: undefined, verified, steppedBack };
    // as much better as the check asks for, and a little more each time
    const wanted = (1 - 0.05 * 2 ** checks) * predict(choice.bytes) * (bound / verified);
    const next = proposal(problem, choice.bytes, most, wanted);
    choice = checks + 1 < verifications ? choose(next) : choose(most);
  }
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
