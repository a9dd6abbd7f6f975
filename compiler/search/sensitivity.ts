/**
 * Builds the sensitivity table: every row predicted first (tier 0), the rows that decide measured one
 * unit at a time (tier 1), interactions measured when errors do not add up (tier 2).
 *
 * Source: ../shared/ALGORITHMS.md Z4.
 */
import { throwIfAborted } from '../../runtime/errors.ts';
import type { Target } from '../../targets/target.ts';
import type { UnitRole } from '../analyze/unit-roles.ts';
import { roleName } from '../analyze/unit-roles.ts';
import type { Progress } from '../passes/pass.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import type { MeasuredUnit } from './additivity.ts';
import { checkAdditivity, likelyPairs, measurePairs, MOST_DEVIATION } from './additivity.ts';
import type { AllocatedFormats } from './allocate.ts';
import { matrixCost } from './cost.ts';
import type { UnitRatings } from './rate.ts';
import { worthwhile } from './solver.ts';
import type { Row, SensitivityTable, UnitFacts } from './table.ts';
import { errorOf } from './table.ts';

/** What is known about a unit. */
export interface KnownUnit {
  /** The unit. */
  readonly unit: WeightUnit;
  /** Where it stands. */
  readonly role: UnitRole;
  /** Its formats. */
  readonly ratings: UnitRatings;
  /** Its noise gain. */
  readonly gain: number;
  /** Trace of the Hessian of its inputs. */
  readonly hessianTrace: number;
  /** Scores of its block. */
  readonly scores: { readonly lim: number; readonly zd: number };
}

/** Table without rows. */
export type TableHead = Omit<SensitivityTable, 'version' | 'units' | 'rows' | 'pairs'>;

/** The table with everything predicted. */
export function predictedTable(
  known: readonly KnownUnit[],
  target: Target,
  head: TableHead,
): SensitivityTable {
  return {
    ...head,
    version: 1,
    units: known.map(factsOf),
    rows: known.flatMap((one) => rowsOf(one, target)),
    pairs: [],
  };
}

function factsOf({ unit, role, ratings, gain, hessianTrace, scores }: KnownUnit): UnitFacts {
  const { name, kind, rows, columns } = unit;
  return {
    name,
    kind,
    role: roleName(role),
    block: role.block,
    rows,
    columns,
    gain: short(gain),
    hessianTrace: short(hessianTrace),
    outputEnergy: short(ratings.outputEnergy),
    zd: short(scores.zd),
    lim: short(scores.lim),
  };
}

function rowsOf({ unit, ratings, gain }: KnownUnit, target: Target): Row[] {
  const rows = ratings.ratings.flatMap(({ format, outputError, weightError }): Row[] => {
    const cost = matrixCost(unit, format, target);
    if (cost === undefined) return [];
    return [
      {
        unit: unit.name,
        option: format.name,
        klProxy: short(gain * outputError),
        tier: 0,
        outputError: short(outputError),
        weightError: short(weightError),
        bytesDownload: cost.bytesDownload,
        bytesResident: cost.bytesResident,
        decodeUs: { [target.id]: cost.decodeUs },
      },
    ];
  });
  return rows.toSorted((a, b) => a.bytesDownload - b.bytesDownload || a.klProxy - b.klProxy);
}

/** Six digits are more than a prediction is worth, and keep the file small. */
function short(value: number): number {
  return Number(value.toPrecision(6));
}

/** Rounds a unit to an option: its values afterwards, [rows, columns]. */
export type RoundOption = (unit: string, option: string) => Float32Array | Promise<Float32Array>;

/** A model whose weights can be replaced and whose output is compared with the original's. */
export interface ModelProbe {
  /** Error of the model as it is set now, in the metric of the table. */
  kl(): Promise<number>;
  /** Replaces the matrix of a unit, [rows, columns]; absent: its own again. */
  setWeight(unit: string, values?: Float32Array): void | Promise<void>;
}

/** Services of the measuring parts. */
export interface Measuring {
  /** The model. */
  readonly probe: ModelProbe;
  /** Rounds. */
  readonly round: RoundOption;
  /** Told after each measurement. */
  readonly progress?: Progress;
  /** Aborts between measurements. */
  readonly signal?: AbortSignal | undefined;
  /** Seed of random pairs. */
  readonly seed?: number;
  /** Stops measuring after this long, in milliseconds; what is measured by then is used. */
  readonly timeMs?: number;
}

/**
 * The rows that decide: of each unit the chosen one and its neighbours among the worthwhile ones, those
 * whose exchange gains or loses least per byte first; a quarter of all rows at most, and not more than
 * half as many again as there are units.
 */
export function boundaryRows(table: SensitivityTable, chosen: AllocatedFormats): readonly Row[] {
  const price = marginalPrice(table, chosen);
  const found: { readonly row: Row; readonly distance: number }[] = [];
  for (const now of chosen.rows) {
    const options = ladderOf(table, now.unit);
    const at = options.findIndex(({ option }) => option === now.option);
    found.push({ row: now, distance: 0 });
    for (const row of [options[at - 1], options[at + 1]]) {
      if (at < 0 || row === undefined) continue;
      const bytes = Math.abs(row.bytesDownload - now.bytesDownload);
      const own = Math.abs(errorOf(row) - errorOf(now)) / Math.max(1, bytes);
      // how far from indifferent the exchange is, on a log scale
      found.push({ row, distance: Math.abs(Math.log((own + 1e-30) / (price + 1e-30))) });
    }
  }
  const most = Math.min(
    Math.ceil(1.5 * chosen.rows.length),
    Math.max(chosen.rows.length, Math.ceil(table.rows.length / 4)),
  );
  return found
    .toSorted((a, b) => a.distance - b.distance)
    .slice(0, most)
    .map(({ row }) => row)
    .filter(({ kl }) => kl === undefined);
}

/** Worthwhile rows of a unit by rising bytes. */
export function ladderOf(table: SensitivityTable, unit: string): readonly Row[] {
  const rows = table.rows.filter((row) => row.unit === unit);
  const options = rows.map((row) => ({
    error: errorOf(row),
    cost: row.bytesDownload,
    time: row.decodeUs[table.target] ?? 0,
  }));
  return worthwhile(options).flatMap((index) => rows[index] ?? []);
}

/** Error that the last byte of the choice buys: the median over units of stepping up once. */
function marginalPrice(table: SensitivityTable, chosen: AllocatedFormats): number {
  const prices = chosen.rows.flatMap((now) => {
    const options = ladderOf(table, now.unit);
    const next = options[options.findIndex(({ option }) => option === now.option) + 1];
    if (next === undefined) return [];
    return [(errorOf(now) - errorOf(next)) / Math.max(1, next.bytesDownload - now.bytesDownload)];
  });
  return prices.toSorted((a, b) => a - b)[prices.length >> 1] ?? 0;
}

/**
 * Measures rows one unit at a time. Rows of a unit that were not measured are scaled by what its
 * measured ones were off, so that neighbours stay comparable.
 */
export async function measureRows(
  table: SensitivityTable,
  rows: readonly Row[],
  { probe, round, progress, signal, timeMs = Infinity }: Measuring,
): Promise<SensitivityTable> {
  const began = performance.now();
  const measured = new Map<string, number>();
  // units in order, so that a model that holds activations runs as little as it can
  const order = new Map(table.units.map(({ name }, index) => [name, index]));
  const work = rows.toSorted((a, b) => (order.get(a.unit) ?? 0) - (order.get(b.unit) ?? 0));
  for (const [index, row] of work.entries()) {
    throwIfAborted(signal);
    if (performance.now() - began > timeMs) break;
    await probe.setWeight(row.unit, await round(row.unit, row.option));
    measured.set(keyOf(row), short(Math.max(0, await probe.kl())));
    await probe.setWeight(row.unit);
    progress?.('measure formats', index + 1, work.length);
  }
  return withMeasured(table, measured);
}

function withMeasured(
  table: SensitivityTable,
  measured: ReadonlyMap<string, number>,
): SensitivityTable {
  const logs = new Map<string, number[]>();
  for (const row of table.rows) {
    const kl = measured.get(keyOf(row));
    if (kl === undefined || kl <= 0 || row.klProxy <= 0) continue;
    logs.set(row.unit, [...(logs.get(row.unit) ?? []), Math.log(kl / row.klProxy)]);
  }
  const factors = new Map(
    [...logs].map(([unit, values]) => [
      unit,
      Math.exp(values.reduce((sum, value) => sum + value, 0) / values.length),
    ]),
  );
  return {
    ...table,
    rows: table.rows.map((row): Row => {
      const kl = measured.get(keyOf(row)) ?? row.kl;
      if (kl !== undefined) return { ...row, kl, tier: row.tier === 2 ? 2 : 1 };
      return { ...row, klProxy: short(row.klProxy * (factors.get(row.unit) ?? 1)) };
    }),
  };
}

function keyOf({ unit, option }: Pick<Row, 'unit' | 'option'>): string {
  return `${unit}\n${option}`;
}

/**
 * Checks on random pairs of units at their chosen formats that errors add up, and measures interactions
 * when they do not.
 */
export async function measureInteractions(
  table: SensitivityTable,
  chosen: AllocatedFormats,
  { probe, round, progress, signal, seed = 1, timeMs = Infinity }: Measuring,
): Promise<SensitivityTable> {
  const began = performance.now();
  const options = new Map(chosen.rows.map((row) => [row.unit, row]));
  const blocks = new Map(table.units.map(({ name, block }) => [name, block]));
  const subjects = chosen.rows
    .filter(({ kl = 0 }) => kl > 0)
    .map((row): MeasuredUnit => ({
      name: row.unit,
      block: blocks.get(row.unit) ?? -1,
      error: errorOf(row),
    }));
  let done = 0;
  const together = async (a: string, b: string): Promise<number> => {
    throwIfAborted(signal);
    for (const unit of [a, b])
      await probe.setWeight(unit, await round(unit, options.get(unit)?.option ?? ''));
    const error = await probe.kl();
    for (const unit of [a, b]) await probe.setWeight(unit);
    progress?.('measure pairs', ++done, Math.max(done, 20));
    return error;
  };
  const additivity = await checkAdditivity(subjects, together, seed);
  const rounded = {
    pairs: additivity.pairs,
    medianDeviation: short(additivity.medianDeviation),
  };
  if (additivity.medianDeviation <= MOST_DEVIATION) return { ...table, additivity: rounded };
  const pairs = [];
  for (const pair of likelyPairs(subjects)) {
    if (performance.now() - began > timeMs) break;
    pairs.push(...(await measurePairs([pair], together)));
  }
  const paired = new Set(pairs.flatMap(({ a, b }) => [a, b]));
  return {
    ...table,
    additivity: rounded,
    pairs,
    rows: table.rows.map((row) =>
      paired.has(row.unit) && row.tier === 1 ? { ...row, tier: 2 } : row,
    ),
  };
}
