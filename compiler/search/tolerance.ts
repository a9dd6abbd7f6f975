/**
 * The smallest size whose measured loss stays within a bound.
 *
 * The table says how loss falls with size, up to a factor that depends on what loss is measured on; every
 * measurement of the whole corrects that factor near the bound, and the two ends (the largest size that
 * failed, the smallest that did) close in. It is over when a size loses nearly the bound.
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
  /** Measured over predicted loss, as far as it is known before anything is measured. Default 1. */
  readonly ratio?: number;
  /** What is best within a size. */
  readonly choose: (bytes: number) => Choice<T>;
  /** Builds a choice as it would be kept and measures its loss. */
  readonly measure: (choice: Choice<T>) => Promise<number>;
}

/** How it is searched. */
export interface ToleranceOptions {
  /** Most measurements. Default 5. */
  readonly evaluations?: number;
  /** Ends closer together than this fraction of the size are good enough. Default 0.005. */
  readonly precision?: number;
  /** A loss of this share of the bound is good enough. Default 0.9. */
  readonly share?: number;
  /** Asked once something held: whether there is time for another measurement. Default: always. */
  readonly goesOn?: () => boolean;
}

/** The outcome. */
export interface ToleranceResult<T> {
  /** The smallest that held; undefined when nothing did. */
  readonly best: Trial<T> | undefined;
  /** Everything measured, in order. */
  readonly trials: readonly Trial<T>[];
}

/** Loss that is aimed at, as a share of the bound, after so many failures: predictions are off either way. */
const aims: readonly number[] = [0.96, 0.93, 0.86, 0.75];
/** How near an end a proposal may come, as a share of what lies between the ends. */
const MARGIN = 0.04;

/** Searches. The largest size is tried last when nothing else held. */
export async function searchTolerance<T>(
  problem: ToleranceProblem<T>,
  options: ToleranceOptions = {},
): Promise<ToleranceResult<T>> {
  const { bound, least, most } = problem;
  const { evaluations = 5, precision = 0.005, share = 0.9, goesOn = () => true } = options;
  const trials: Trial<T>[] = [];
  const measured = async (bytes: number): Promise<Trial<T>> => {
    const choice = problem.choose(bytes);
    const trial = { ...choice, loss: await problem.measure(choice) };
    trials.push(trial);
    return trial;
  };
  // what failed, and what held: the ends, not yet known
  let failed: Trial<T> | undefined;
  let held: Trial<T> | undefined;
  let failures = 0;
  for (let left = evaluations; left > 0; left--) {
    const low = failed?.bytes ?? least;
    const high = held?.bytes ?? most;
    if (held !== undefined && (high - low <= precision * high || !goesOn())) break;
    const aim = bound * (aims[Math.min(failures, aims.length - 1)] ?? 1);
    const wanted = atSize(problem, low, high, aim / ratioNear(problem, failed, held));
    const margin = MARGIN * (high - low);
    // an end that was not measured may be the answer itself
    const under = failed === undefined ? low : low + margin;
    const over = held === undefined ? high : high - margin;
    // the last one has to hold, or there would be no answer
    const isLast = left === 1 && held === undefined;
    const bytes = isLast ? most : Math.round(Math.min(Math.max(wanted, under), over));
    const trial = await measured(bytes);
    if (trial.loss > bound) {
      failures++;
      failed = { ...trial, bytes: Math.max(low, bytes) };
      if (bytes >= most) break;
      continue;
    }
    held = trial;
    if (trial.loss >= share * bound || trial.bytes <= least) break;
  }
  if (held === undefined && failed !== undefined && failed.bytes < most) {
    const largest = await measured(most);
    if (largest.loss <= bound) held = largest;
  }
  return { best: held, trials };
}

/** Measured over predicted loss where the bound is expected. */
function ratioNear<T>(
  problem: ToleranceProblem<T>,
  failed: Trial<T> | undefined,
  held: Trial<T> | undefined,
): number {
  const { bound, predict, ratio = 1 } = problem;
  const known = [failed, held].flatMap((trial) => {
    if (trial === undefined) return [];
    const predicted = predict(trial.bytes);
    return predicted > 0 && trial.loss > 0 ? [{ predicted, loss: trial.loss }] : [];
  });
  const [first, second] = known;
  if (first === undefined) return ratio;
  if (second === undefined || second.loss >= first.loss || second.predicted >= first.predicted)
    return first.loss / first.predicted;
  // on logarithms, between one that loses more and one that loses less
  const part = Math.log(first.loss / bound) / Math.log(first.loss / second.loss);
  const logs = [first, second].map(({ loss, predicted }) => Math.log(loss / predicted));
  const [a = 0, b = 0] = logs;
  return Math.exp(a + (b - a) * part);
}

/** The size at which the prediction meets a loss. */
function atSize<T>(
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
