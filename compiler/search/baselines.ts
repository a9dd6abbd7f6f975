/**
 * Allocations to compare with, from the same table and budget: what others do when they mix formats.
 *
 *   uniform   one format for all units: the one with the least predicted error that fits
 *   hawq      units by Hessian trace per weight: the first ones get the higher of two levels (Q3)
 *   lim       blocks by how much they change the residual stream, likewise (Q2)
 *   zd        blocks by their share of outlying weights, fewest first, likewise (Q2)
 *             the levels are those of the papers: 4 and 2 bits, or 8 and 4
 *   baq       closed form: half a bit more for every doubling of the loss per weight (Q5)
 *
 * Sources: ../shared/ALGORITHMS.md Q2, Q3, Q5; HAWQ-V2 arXiv 1911.03852; BAQ arXiv 2506.05664.
 */
import type { IntegerFormat } from '../quant/formats.ts';
import { parseFormat } from '../quant/formats.ts';
import type { Row, SensitivityTable, UnitFacts } from './table.ts';
import { errorOf } from './table.ts';

/** Names of the baselines. */
export const baselineNames = ['uniform', 'hawq', 'lim', 'zd', 'baq'] as const;

/** One of them. */
export type BaselineName = (typeof baselineNames)[number];

/** A row per unit, in the order of the table; undefined when nothing fits. */
export type Allocation = readonly Row[] | undefined;

/** Allocates a budget for units, in bytes of their rows. */
export function allocateBaseline(
  name: BaselineName,
  table: SensitivityTable,
  budget: number,
): Allocation {
  return allocators[name](table, budget);
}

const allocators: Readonly<
  Record<BaselineName, (table: SensitivityTable, budget: number) => Allocation>
> = {
  uniform,
  hawq: (table, budget) => byOrder(table, budget, order(table.units, averageTrace)),
  lim: (table, budget) =>
    byOrder(
      table,
      budget,
      blockOrder(table.units, ({ lim }) => lim),
    ),
  zd: (table, budget) =>
    byOrder(
      table,
      budget,
      blockOrder(table.units, ({ zd }) => -zd),
    ),
  baq,
};

function uniform(table: SensitivityTable, budget: number): Allocation {
  const options = [...new Set(table.rows.map(({ option }) => option))];
  return leastError(options.map((option) => allIn(table, option)).filter(fits(budget)));
}

/** Bits that orders divide units among. */
const ORDER_LEVELS: readonly number[] = [2, 4, 8];

/** Two neighbouring levels with the same groups; units from the front of the order get the higher one. */
function byOrder(
  table: SensitivityTable,
  budget: number,
  groups: readonly (readonly UnitFacts[])[],
): Allocation {
  const found: (readonly Row[])[] = [];
  for (const levels of ladders(table, ORDER_LEVELS))
    for (const [index, high] of levels.entries()) {
      const low = levels[index - 1];
      const start = low === undefined ? undefined : allIn(table, low);
      if (start === undefined || !fits(budget)(start)) continue;
      const chosen = new Map(start.map((row) => [row.unit, row]));
      let left = budget - bytesOf(start);
      for (const members of groups) {
        const raised = members.flatMap(({ name }) => rowOf(table, name, high) ?? []);
        const more = raised.reduce(
          (sum, row) => sum + row.bytesDownload - (chosen.get(row.unit)?.bytesDownload ?? 0),
          0,
        );
        // an order is an order: what comes later is not raised before what comes first
        if (more > left) break;
        left -= more;
        for (const row of raised) chosen.set(row.unit, row);
      }
      found.push(table.units.flatMap(({ name }) => chosen.get(name) ?? []));
    }
  // no paper says which groups to take: of all pairs of levels that fit, the one that does best
  return leastError(found);
}

/**
 * Bits by `R = mean + log2(c / geometric mean of c) / 2` with c the loss per weight, rounded to what the
 * table has by raising first where a byte lowers the modelled loss `c · 4^-R` most.
 */
function baq(table: SensitivityTable, budget: number): Allocation {
  const found = ladders(table).map((levels) => baqWith(table, budget, levels));
  return leastError(found.filter((rows) => rows !== undefined).filter(fits(budget)));
}

function baqWith(
  table: SensitivityTable,
  budget: number,
  levels: readonly string[],
): readonly Row[] | undefined {
  const rows = table.units.map(({ name }) =>
    levels.flatMap((level) => rowOf(table, name, level) ?? []),
  );
  const chosen = rows.map(() => 0);
  const at = (unit: number, level: number): Row | undefined => rows[unit]?.[level];
  let left = budget - rows.reduce((sum, [cheapest]) => sum + (cheapest?.bytesDownload ?? 0), 0);
  if (rows.some((options) => options.length === 0) || left < 0) return undefined;
  const loss = table.units.map((unit, u) => lossFactor(unit, rows[u] ?? []));
  for (;;) {
    let best = -1;
    let most = 0;
    for (const [u, level] of chosen.entries()) {
      const [now, next] = [at(u, level), at(u, level + 1)];
      if (now === undefined || next === undefined) continue;
      const bytes = next.bytesDownload - now.bytesDownload;
      if (bytes > left) continue;
      const gain = ((loss[u] ?? 0) * (4 ** -bitsOf(now) - 4 ** -bitsOf(next))) / Math.max(1, bytes);
      if (gain > most) [best, most] = [u, gain];
    }
    const [now, next] = [at(best, chosen[best] ?? 0), at(best, (chosen[best] ?? 0) + 1)];
    if (now === undefined || next === undefined) break;
    left -= next.bytesDownload - now.bytesDownload;
    chosen[best] = (chosen[best] ?? 0) + 1;
  }
  return chosen.flatMap((level, u) => at(u, level) ?? []);
}

/**
 * Average Hessian trace of the model's error in the weights of a unit, Gauss-Newton: weight noise of
 * variance 1 gives an output error of `rows · tr(H)` against `tr(W H Wᵀ)`, and the noise gain what that
 * does to the model.
 */
function averageTrace({ gain, hessianTrace, columns, outputEnergy }: UnitFacts): number {
  return outputEnergy === 0 ? 0 : (gain * hessianTrace) / (columns * outputEnergy);
}

/** c of `loss = c · 4^-bits` from the rounding loss of a reference level, as BAQ measures it. */
function lossFactor({ outputEnergy }: UnitFacts, [reference]: readonly Row[]): number {
  return reference === undefined
    ? 0
    : reference.outputError * outputEnergy * 4 ** bitsOf(reference);
}

/**
 * The closed form itself, before rounding to what can be stored.
 *
 * @param losses - c of each component
 * @param mean - average bits
 * @returns bits of each; their mean is `mean`, and `c · 4^-bits` is the same for all
 */
export function equalLossBits(losses: readonly number[], mean: number): number[] {
  const logs = losses.map((loss) => Math.log2(loss));
  const centre = logs.reduce((sum, log) => sum + log, 0) / Math.max(1, logs.length);
  return logs.map((log) => mean + (log - centre) / 2);
}

/**
 * Levels of rising bits that have the same groups and symmetry, for every combination the table has.
 *
 * @param widths - bits that count. Default: any
 */
function ladders(table: SensitivityTable, widths?: readonly number[]): string[][] {
  const byShape = new Map<string, IntegerFormat[]>();
  for (const option of new Set(table.rows.map((row) => row.option))) {
    const format = parseFormat(option);
    if (format.kind !== 'integer' || widths?.includes(format.bits) === false) continue;
    const key = `${format.group} ${format.symmetric}`;
    byShape.set(key, [...(byShape.get(key) ?? []), format]);
  }
  return [...byShape.values()].map((formats) =>
    formats.toSorted((a, b) => a.bits - b.bits).map(({ name }) => name),
  );
}

function bitsOf({ option }: Row): number {
  return parseFormat(option).bits;
}

/** Units by a score, largest first, each a group of its own. */
function order(units: readonly UnitFacts[], score: (unit: UnitFacts) => number): UnitFacts[][] {
  return units.toSorted((a, b) => score(b) - score(a)).map((unit) => [unit]);
}

/** Blocks by a score, largest first; what is in no block (tables) comes before all of them. */
function blockOrder(
  units: readonly UnitFacts[],
  score: (unit: UnitFacts) => number,
): UnitFacts[][] {
  const blocks = new Map<number, UnitFacts[]>();
  for (const unit of units) blocks.set(unit.block, [...(blocks.get(unit.block) ?? []), unit]);
  const key = (members: readonly UnitFacts[]): number => {
    const [first] = members;
    return first === undefined || first.block < 0 ? Infinity : score(first);
  };
  return [...blocks.values()].toSorted((a, b) => (key(a) === key(b) ? 0 : key(b) - key(a)));
}

function allIn(table: SensitivityTable, option: string): readonly Row[] {
  return table.units.flatMap(({ name }) => rowOf(table, name, option) ?? []);
}

/**
 * The row of a unit in a format, or, where groups do not fit or a target keeps it wide, in what comes
 * nearest: as many bits or more, then the same symmetry, then the largest groups.
 */
function rowOf(table: SensitivityTable, unit: string, option: string): Row | undefined {
  const rows = rowsByUnit(table).get(unit) ?? [];
  const exact = rows.find((row) => row.option === option);
  if (exact !== undefined) return exact;
  const wanted = parseFormat(option);
  const distance = (row: Row): number => {
    const format = parseFormat(row.option);
    const isAlike =
      format.kind === 'integer' &&
      wanted.kind === 'integer' &&
      format.symmetric === wanted.symmetric;
    return (
      (format.bits < wanted.bits ? 1000 : 0) +
      Math.abs(format.bits - wanted.bits) +
      (isAlike ? 0 : 0.5)
    );
  };
  return rows.toSorted((a, b) => distance(a) - distance(b) || a.bytesDownload - b.bytesDownload)[0];
}

function rowsByUnit({ rows }: SensitivityTable): ReadonlyMap<string, readonly Row[]> {
  let found = sorted.get(rows);
  if (found === undefined) {
    const byUnit = new Map<string, Row[]>();
    for (const row of rows) {
      const same = byUnit.get(row.unit);
      if (same === undefined) byUnit.set(row.unit, [row]);
      else same.push(row);
    }
    sorted.set(rows, (found = byUnit));
  }
  return found;
}

/** Rows by unit, for as long as a table lives. */
const sorted = new WeakMap<readonly Row[], ReadonlyMap<string, readonly Row[]>>();

function fits(budget: number): (rows: readonly Row[]) => boolean {
  return (rows) => rows.length > 0 && bytesOf(rows) <= budget;
}

function leastError(found: readonly (readonly Row[])[]): Allocation {
  const total = (rows: readonly Row[]): number => rows.reduce((sum, row) => sum + errorOf(row), 0);
  return found.toSorted((a, b) => total(a) - total(b))[0];
}

/** Bytes of rows. */
export function bytesOf(rows: readonly Row[]): number {
  return rows.reduce((sum, { bytesDownload }) => sum + bytesDownload, 0);
}
