/**
 * One option per unit for the least total error within a budget: a multiple-choice knapsack.
 *
 *     minimise  Σ error[u][o_u] + Σ pairs   subject to   Σ cost ≤ budget,  Σ time ≤ timeBudget
 *
 * Options that another one beats in everything are dropped. Dynamic programming over cost in steps of
 * at most 1/8192 of what is left above the cheapest choice, rounded up, so that the budget holds
 * exactly; a second budget enters with a multiplier that is found by bisection; interactions between
 * units are linearised around the answer so far. A last pass of single and paired moves uses the slack
 * that rounding left.
 *
 * Source: ../shared/ALGORITHMS.md B5, Z5; H. Kellerer et al., Knapsack Problems, chapter 11.
 */

/** One way to store a unit. */
export interface SolverOption {
  /** Predicted error; 0 or more, additive over units. */
  readonly error: number;
  /** What the budget is spent on, in bytes; a whole number. */
  readonly cost: number;
  /** What the second budget is spent on, such as microseconds. Default 0. */
  readonly time?: number;
}

/** The options of each unit. */
export type SolverUnits = readonly (readonly SolverOption[])[];

/** How much more (or less) error two units have together than alone. */
export interface PairTerm {
  /** Index of a unit. */
  readonly a: number;
  /** Index of another unit. */
  readonly b: number;
  /** Times the geometric mean of the two errors: 0 for units that do not interact. */
  readonly coefficient: number;
}

/** Limits of {@link solve}. */
export interface SolverLimits {
  /** Most total cost. */
  readonly budget: number;
  /** Most total time. Default: no limit. */
  readonly timeBudget?: number;
  /** Interactions. Default none. */
  readonly pairs?: readonly PairTerm[];
}

/** An answer. */
export interface Solution {
  /** Index of the option of each unit. */
  readonly choice: readonly number[];
  /** Total error, interactions included. */
  readonly error: number;
  /** Total cost. */
  readonly cost: number;
  /** Total time. */
  readonly time: number;
}

/** Steps that costs are rounded up to. */
const BUCKETS = 8192;
/** Bisections of the multiplier of the second budget. */
const MULTIPLIER_STEPS = 40;
/** Times that interactions are linearised anew. */
const PAIR_ROUNDS = 3;

/**
 * Indices of the options that no other one beats in error and in every cost, by rising cost.
 *
 * @param options - of one unit
 */
export function worthwhile(options: readonly SolverOption[]): number[] {
  const order = [...options.keys()].sort((a, b) => compare(options[a], options[b]));
  const kept: number[] = [];
  for (const index of order) {
    const option = options[index];
    const isBeaten = kept.some((other) => {
      const better = options[other];
      return (
        better !== undefined &&
        option !== undefined &&
        better.error <= option.error &&
        (better.time ?? 0) <= (option.time ?? 0)
      );
    });
    if (!isBeaten) kept.push(index);
  }
  return kept;
}

/** Cheapest first, of equal cost the one with less error. */
function compare(a: SolverOption | undefined, b: SolverOption | undefined): number {
  return (
    (a?.cost ?? 0) - (b?.cost ?? 0) ||
    (a?.error ?? 0) - (b?.error ?? 0) ||
    (a?.time ?? 0) - (b?.time ?? 0)
  );
}

/**
 * Solves the problem.
 *
 * @param units - at least one option each; costs are whole numbers
 * @returns undefined when no choice meets the limits
 *
 * @example
 * const units = [[{ error: 4, cost: 1 }, { error: 1, cost: 2 }]];
 * solve(units, { budget: 2 })?.choice; // [1]
 */
export function solve(units: SolverUnits, limits: SolverLimits): Solution | undefined {
  const kept = units.map(worthwhile);
  const reduced = kept.map((indices, u) =>
    indices.map((index) => units[u]?.[index] ?? { error: 0, cost: 0 }),
  );
  const problem = new Problem(reduced, limits);
  const choice = problem.solve();
  if (choice === undefined) return undefined;
  return evaluateChoice(
    units,
    choice.map((option, u) => kept[u]?.[option] ?? 0),
    limits.pairs,
  );
}

/** Totals of a choice. */
export function evaluateChoice(
  units: SolverUnits,
  choice: readonly number[],
  pairs: readonly PairTerm[] = [],
): Solution {
  const chosen = choice.map((option, u) => units[u]?.[option]);
  const sum = (of: (option: SolverOption) => number): number =>
    chosen.reduce((total, option) => total + (option === undefined ? 0 : of(option)), 0);
  const interactions = pairs.reduce(
    (total, { a, b, coefficient }) =>
      total + coefficient * Math.sqrt((chosen[a]?.error ?? 0) * (chosen[b]?.error ?? 0)),
    0,
  );
  return {
    choice,
    error: sum(({ error }) => error) + interactions,
    cost: sum(({ cost }) => cost),
    time: sum(({ time = 0 }) => time),
  };
}

/** The problem over worthwhile options, sorted by cost. */
class Problem {
  private readonly units: SolverUnits;
  private readonly budget: number;
  private readonly timeBudget: number;
  private readonly pairs: readonly PairTerm[];
  /** Of each unit, its interactions. */
  private readonly partners: readonly (readonly { other: number; coefficient: number }[])[];

  constructor(units: SolverUnits, { budget, timeBudget = Infinity, pairs = [] }: SolverLimits) {
    this.units = units;
    this.budget = budget;
    this.timeBudget = timeBudget;
    this.pairs = pairs;
    const partners: { other: number; coefficient: number }[][] = units.map(() => []);
    for (const { a, b, coefficient } of pairs) {
      partners[a]?.push({ other: b, coefficient });
      partners[b]?.push({ other: a, coefficient });
    }
    this.partners = partners;
  }

  solve(): readonly number[] | undefined {
    let best: readonly number[] | undefined = this.withinTime(
      this.units.map((options) => options.map(({ error }) => error)),
    );
    if (best === undefined) return undefined;
    best = this.polished(best);
    for (let round = 0; this.pairs.length > 0 && round < PAIR_ROUNDS; round++) {
      const around: readonly number[] = best;
      const next = this.withinTime(
        this.units.map((options, u) =>
          options.map(({ error }) => error + this.interaction(u, error, around)),
        ),
      );
      const polished = next === undefined ? around : this.polished(next);
      if (this.total(polished).error >= this.total(best).error) break;
      best = polished;
    }
    return best;
  }

  private total(choice: readonly number[]): Solution {
    return evaluateChoice(this.units, choice, this.pairs);
  }

  /** Interactions of a unit of some error with the others as chosen. */
  private interaction(unit: number, error: number, choice: readonly number[]): number {
    let sum = 0;
    for (const { other, coefficient } of this.partners[unit] ?? []) {
      const beside = this.units[other]?.[choice[other] ?? 0]?.error ?? 0;
      sum += coefficient * Math.sqrt(error * beside);
    }
    return sum;
  }

  /** The knapsack's answer with the smallest multiplier of time that meets the second budget. */
  private withinTime(errors: readonly (readonly number[])[]): number[] | undefined {
    const first = this.knapsack(errors, 0);
    if (first === undefined || this.total(first).time <= this.timeBudget) return first;
    let high = this.largestMultiplier(errors);
    let best = this.knapsack(errors, high);
    if (best === undefined || this.total(best).time > this.timeBudget) return undefined;
    let low = 0;
    for (let step = 0; step < MULTIPLIER_STEPS; step++) {
      // errors spread over many powers of ten, and so do the multipliers that matter
      const middle = low === 0 ? high / 1024 : Math.sqrt(low * high);
      const found = this.knapsack(errors, middle);
      if (found !== undefined && this.total(found).time <= this.timeBudget) {
        best = found;
        high = middle;
      } else low = middle;
      if (high <= low * (1 + 1e-9)) break;
    }
    return best;
  }

  /** So large that only time counts. */
  private largestMultiplier(errors: readonly (readonly number[])[]): number {
    const most = errors.flat().reduce((sum, error) => sum + Math.abs(error), 0);
    const gaps = this.units.flatMap((options) => {
      const times = options.map(({ time = 0 }) => time).toSorted((a, b) => a - b);
      return times.slice(1).map((time, i) => time - (times[i] ?? 0));
    });
    const least = gaps.filter((gap) => gap > 0).reduce((a, b) => Math.min(a, b), Infinity);
    return Number.isFinite(least) ? (2 * most) / least + 1 : 1;
  }

  /** Dynamic programming over rounded costs. */
  private knapsack(
    errors: readonly (readonly number[])[],
    multiplier: number,
  ): number[] | undefined {
    const { units, budget } = this;
    const cheapest = units.map((options) => options[0]?.cost ?? 0);
    const room = budget - cheapest.reduce((sum, cost) => sum + cost, 0);
    if (room < 0) return undefined;
    const step = room <= BUCKETS ? 1 : room / BUCKETS;
    const size = Math.floor(room / step + 1e-9) + 1;
    let least = new Float64Array(size);
    let next = new Float64Array(size);
    const taken = units.map(() => new Uint16Array(size));
    for (const [u, options] of units.entries()) {
      next.fill(Infinity);
      const from = taken[u];
      if (from === undefined) continue;
      for (const [o, { cost, time = 0 }] of options.entries()) {
        const width = Math.ceil((cost - (cheapest[u] ?? 0)) / step - 1e-9);
        const error = (errors[u]?.[o] ?? 0) + multiplier * time;
        for (let at = width; at < size; at++) {
          const sum = (least[at - width] ?? Infinity) + error;
          if (sum < (next[at] ?? Infinity)) {
            next[at] = sum;
            from[at] = o;
          }
        }
      }
      [least, next] = [next, least];
    }
    let at = size - 1;
    const choice = units.map(() => 0);
    for (let u = units.length - 1; u >= 0; u--) {
      const option = taken[u]?.[at] ?? 0;
      choice[u] = option;
      const { cost = 0 } = units[u]?.[option] ?? {};
      at -= Math.ceil((cost - (cheapest[u] ?? 0)) / step - 1e-9);
    }
    return choice;
  }

  /** Single and paired moves as long as they lower the total within both budgets. */
  private polished(start: readonly number[]): readonly number[] {
    const choice = [...start];
    for (let round = 0; round < 2 * this.units.length + 2; round++) {
      const { cost, time } = this.total(choice);
      const slack = this.budget - cost;
      const spare = this.timeBudget - time;
      const moves = this.units.flatMap((options, u) =>
        options.flatMap((option, o) => this.moveOf(choice, u, o, option)),
      );
      let best: readonly Move[] = [];
      let gain = 1e-15;
      const consider = (taken: readonly Move[]): void => {
        const sum = (key: 'cost' | 'time'): number =>
          taken.reduce((total, move) => total + move[key], 0);
        if (sum('cost') > slack || sum('time') > spare) return;
        const found = this.gainOf(choice, taken);
        if (found > gain) [best, gain] = [taken, found];
      };
      for (const move of moves) consider([move]);
      // two units at once, where one alone does not fit: the best few upgrades with every downgrade
      const up = moves.filter(({ error }) => error < 0).sort((a, b) => a.error - b.error);
      const down = moves.filter(({ cost: saved, time: faster }) => saved < 0 || faster < 0);
      if (best.length === 0)
        for (const one of up.slice(0, PAIRED_UPGRADES))
          for (const other of down) if (one.unit !== other.unit) consider([one, other]);
      if (best.length === 0) break;
      for (const { unit, option } of best) choice[unit] = option;
    }
    return choice;
  }

  private moveOf(
    choice: readonly number[],
    unit: number,
    option: number,
    to: SolverOption,
  ): Move[] {
    const now = choice[unit] ?? 0;
    const from = this.units[unit]?.[now];
    if (option === now || from === undefined) return [];
    const error =
      to.error -
      from.error +
      this.interaction(unit, to.error, choice) -
      this.interaction(unit, from.error, choice);
    return [
      { unit, option, error, cost: to.cost - from.cost, time: (to.time ?? 0) - (from.time ?? 0) },
    ];
  }

  /** By how much moves lower the total error. */
  private gainOf(choice: readonly number[], moves: readonly Move[]): number {
    const sum = -moves.reduce((total, { error }) => total + error, 0);
    if (moves.length < 2 || this.pairs.length === 0) return sum;
    const moved = [...choice];
    for (const { unit, option } of moves) moved[unit] = option;
    return this.total(choice).error - this.total(moved).error;
  }
}

/** Upgrades tried with every downgrade in a paired move. */
const PAIRED_UPGRADES = 64;

/** Another option of one unit, and what it changes. */
interface Move {
  readonly unit: number;
  readonly option: number;
  readonly error: number;
  readonly cost: number;
  readonly time: number;
}
