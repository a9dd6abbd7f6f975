/**
 * Evolutionary refinement of a choice of formats: one parent, a generation of mutants that cost no
 * more, selection on ever more data, and the parent stays unless one is better.
 *
 * A mutation raises one unit by a step (its next larger option) and lowers others until the budget holds
 * again. Fitness is measured, so what adding up single errors misses is found here.
 *
 * Source: EvoPress, arXiv 2410.14649; ../shared/ALGORITHMS.md L4.
 */
import { throwIfAborted } from '../../runtime/errors.ts';
import { createRandom } from '../../runtime/text/random.ts';
import type { Progress } from '../passes/pass.ts';

/** A stage of selection. */
export interface SelectionStage {
  /** Passed to the fitness: tokens, or samples. */
  readonly tokens: number;
  /** How many go on. */
  readonly survivors: number;
}

/** What is searched. */
export interface EvolveProblem {
  /** Cost of each option of each unit, rising; a step is from one to the next. */
  readonly costs: readonly (readonly number[])[];
  /** Most total cost. */
  readonly budget: number;
  /** Where it starts: an option per unit, within the budget. */
  readonly start: readonly number[];
  /** Error of a choice on some tokens; smaller is better. */
  readonly fitness: (choice: readonly number[], tokens: number) => Promise<number>;
}

/** How it is searched. */
export interface EvolveOptions {
  /** Generations. Default 40. */
  readonly generations?: number;
  /** Mutants of a generation. Default 16. */
  readonly offspring?: number;
  /** Stages; the last one decides. Default 512, 2048 and 8192 tokens with 4, 2 and 1 survivors. */
  readonly stages?: readonly SelectionStage[];
  /** Seed of every random choice. Default 1. */
  readonly seed?: number;
  /** Stops after this long, in milliseconds; the best so far is the answer. Default: never. */
  readonly timeMs?: number;
  /** Told after each generation. */
  readonly progress?: Progress;
  /** Aborts between measurements. */
  readonly signal?: AbortSignal | undefined;
}

/** The outcome. */
export interface Evolved {
  /** Option per unit. */
  readonly choice: readonly number[];
  /** Its fitness on the last stage's tokens. */
  readonly fitness: number;
  /** Fitness of the start on the same tokens. */
  readonly before: number;
  /** Generations that were run. */
  readonly generations: number;
}

/** Selection of {@link evolve} unless told otherwise. */
export const defaultStages: readonly SelectionStage[] = [
  { tokens: 512, survivors: 4 },
  { tokens: 2048, survivors: 2 },
  { tokens: 8192, survivors: 1 },
];

/** Changes that a mutation may take to come back under the budget. */
const MOST_CHANGES = 10;
/** Attempts to find a mutant that is new. */
const ATTEMPTS = 32;

/**
 * Refines a choice. Deterministic for a seed (unless `timeMs` cuts it short); the result is never worse
 * than the start on the last stage's tokens.
 */
export async function evolve(
  problem: EvolveProblem,
  options: EvolveOptions = {},
): Promise<Evolved> {
  const { generations = 40, offspring = 16, stages = defaultStages, seed = 1 } = options;
  const { timeMs = Infinity, progress, signal } = options;
  const random = createRandom(seed);
  const began = performance.now();
  const finest = stages.at(-1)?.tokens ?? 0;
  const seen = new Set([keyOf(problem.start)]);
  let parent = problem.start;
  const before = await problem.fitness(parent, finest);
  let fitness = before;
  let generation = 0;
  for (; generation < generations && performance.now() - began < timeMs; generation++) {
    let field = mutants(problem, parent, offspring, random, seen);
    if (field.length === 0) break;
    let measured: Measured[] = [];
    for (const { tokens, survivors } of stages) {
      measured = [];
      for (const choice of field) {
        throwIfAborted(signal);
        measured.push({ choice, fitness: await problem.fitness(choice, tokens) });
      }
      measured.sort((a, b) => a.fitness - b.fitness);
      measured = measured.slice(0, survivors);
      field = measured.map(({ choice }) => choice);
    }
    // the parent's fitness on the finest tokens is known: it meets the mutants there
    const [best] = measured;
    if (best !== undefined && best.fitness < fitness) {
      parent = best.choice;
      fitness = best.fitness;
    }
    progress?.('evolve', generation + 1, generations);
  }
  return { choice: parent, fitness, before, generations: generation };
}

interface Measured {
  readonly choice: readonly number[];
  readonly fitness: number;
}

function mutants(
  problem: EvolveProblem,
  parent: readonly number[],
  count: number,
  random: () => number,
  seen: Set<string>,
): (readonly number[])[] {
  const found: (readonly number[])[] = [];
  for (let attempt = 0; found.length < count && attempt < count * ATTEMPTS; attempt++) {
    const mutant = mutate(problem, parent, random);
    if (mutant === undefined) continue;
    const key = keyOf(mutant);
    if (seen.has(key)) continue;
    seen.add(key);
    found.push(mutant);
  }
  return found;
}

/**
 * One mutant within the budget.
 *
 * @param random - numbers in [0, 1)
 * @returns undefined when the steps it took do not come back under the budget
 */
export function mutate(
  { costs, budget }: Pick<EvolveProblem, 'costs' | 'budget'>,
  parent: readonly number[],
  random: () => number,
): number[] | undefined {
  const choice = [...parent];
  const pick = (from: readonly number[]): number | undefined =>
    from[Math.floor(random() * from.length)];
  const upTo3 = (): number => 1 + Math.floor(random() * 3);
  const switches = Math.min(upTo3(), upTo3());
  const raised = new Set<number>();
  for (let i = 0; i < switches; i++) {
    const unit = pick(unitsWhere(costs, (u, options) => (choice[u] ?? 0) + 1 < options.length));
    if (unit === undefined) break;
    choice[unit] = (choice[unit] ?? 0) + 1;
    raised.add(unit);
  }
  let changes = 0;
  while (totalOf(costs, choice) > budget) {
    const unit = pick(unitsWhere(costs, (u) => (choice[u] ?? 0) > 0 && !raised.has(u)));
    if (unit === undefined || ++changes > MOST_CHANGES) return undefined;
    choice[unit] = (choice[unit] ?? 0) - 1;
  }
  return choice;
}

function unitsWhere(
  costs: readonly (readonly number[])[],
  accepts: (unit: number, options: readonly number[]) => boolean,
): number[] {
  return costs.flatMap((options, unit) => (accepts(unit, options) ? [unit] : []));
}

function totalOf(costs: readonly (readonly number[])[], choice: readonly number[]): number {
  return choice.reduce((sum, option, unit) => sum + (costs[unit]?.[option] ?? 0), 0);
}

function keyOf(choice: readonly number[]): string {
  return choice.join(',');
}
