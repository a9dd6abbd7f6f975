/**
 * Whether errors of single units add up, and what to do when they do not.
 *
 * The knapsack adds errors that were found one unit at a time. Twenty random pairs say how wrong that
 * is; when the median is off by more than 30%, pairs that are likely to interact are measured: units of
 * one block, units of neighbouring blocks, and the most sensitive ones.
 *
 *   coefficient = (kl_ab - kl_a - kl_b) / sqrt(kl_a · kl_b)
 *
 * so that the interaction scales with both errors, as 2·cos of two error vectors does.
 *
 * Source: ../shared/ALGORITHMS.md L5, Q4, Q18 (which pairs), Z4.
 */
import { createRandom } from '../../runtime/text/random.ts';
import type { Additivity, PairRow } from './table.ts';

/** A unit at the option it is measured at. */
export interface MeasuredUnit {
  /** Name. */
  readonly name: string;
  /** Block, -1 outside. */
  readonly block: number;
  /** Error alone. */
  readonly error: number;
}

/** Pairs that the check draws. */
const CHECKED_PAIRS = 20;
/** Median deviation from which interactions are measured. */
export const MOST_DEVIATION = 0.3;

/** Measures two units together. */
export type MeasurePair = (a: string, b: string) => Promise<number>;

/**
 * Draws pairs and measures how far sums are off.
 *
 * @param units - with an error above 0; fewer than two give a deviation of 0
 */
export async function checkAdditivity(
  units: readonly MeasuredUnit[],
  measure: MeasurePair,
  seed: number = 1,
): Promise<Additivity> {
  const random = createRandom(seed);
  const pairs = allPairs(units);
  const deviations: number[] = [];
  while (deviations.length < CHECKED_PAIRS && pairs.length > 0) {
    const [pair] = pairs.splice(Math.floor(random() * pairs.length), 1);
    if (pair === undefined) break;
    const [a, b] = pair;
    const together = await measure(a.name, b.name);
    const sum = a.error + b.error;
    deviations.push(together > 0 ? Math.abs(together - sum) / together : sum > 0 ? 1 : 0);
  }
  return { pairs: deviations.length, medianDeviation: medianOf(deviations) };
}

/**
 * The pairs worth measuring: of one block, of neighbouring blocks where both are among the more
 * sensitive half, and among the most sensitive units of all.
 */
export function likelyPairs(
  units: readonly MeasuredUnit[],
): (readonly [MeasuredUnit, MeasuredUnit])[] {
  const byError = units.toSorted((x, y) => y.error - x.error);
  const sensitive = new Set(byError.slice(0, Math.ceil(units.length / 2)));
  const most = new Set(byError.slice(0, Math.ceil(Math.sqrt(2 * units.length))));
  const chosen = allPairs(units).filter(([a, b]) => {
    if (most.has(a) && most.has(b)) return true;
    if (a.block < 0 || b.block < 0) return false;
    if (a.block === b.block) return true;
    return Math.abs(a.block - b.block) === 1 && sensitive.has(a) && sensitive.has(b);
  });
  // those with the largest errors first, and no more than two per unit on average
  return chosen
    .toSorted(([a, b], [c, d]) => c.error * d.error - a.error * b.error)
    .slice(0, 2 * units.length);
}

/** Measures interactions. */
export async function measurePairs(
  pairs: readonly (readonly [MeasuredUnit, MeasuredUnit])[],
  measure: MeasurePair,
): Promise<PairRow[]> {
  const rows: PairRow[] = [];
  for (const [a, b] of pairs) {
    const together = await measure(a.name, b.name);
    const scale = Math.sqrt(a.error * b.error);
    if (scale === 0) continue;
    const coefficient = (together - a.error - b.error) / scale;
    rows.push({ a: a.name, b: b.name, coefficient: clamp(coefficient) });
  }
  return rows;
}

/** Two error vectors are at most parallel: |2·cos| ≤ 2. */
function clamp(coefficient: number): number {
  return Number(Math.min(2, Math.max(-2, coefficient)).toPrecision(6));
}

function allPairs(units: readonly MeasuredUnit[]): (readonly [MeasuredUnit, MeasuredUnit])[] {
  const measured = units.filter(({ error }) => error > 0);
  return measured.flatMap((a, i) =>
    measured.slice(i + 1).map((b): readonly [MeasuredUnit, MeasuredUnit] => [a, b]),
  );
}

function medianOf(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  const upper = sorted[half] ?? 0;
  return sorted.length % 2 === 1 ? upper : ((sorted[half - 1] ?? upper) + upper) / 2;
}
