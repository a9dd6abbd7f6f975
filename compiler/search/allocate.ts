/**
 * A budget divided over the units of a table: by our solver, or by one of the baselines.
 */
import { FettleError } from '../../runtime/errors.ts';
import { formatBytes } from '../units.ts';
import type { BaselineName } from './baselines.ts';
import { allocateBaseline, bytesOf } from './baselines.ts';
import { evaluateChoice, solve } from './solver.ts';
import type { Row, SensitivityTable } from './table.ts';
import { errorOf, solverView } from './table.ts';

/** What is to be met. */
export interface Budget {
  /** Most bytes of the units. */
  readonly bytes: number;
  /** Most time of one step, in microseconds. Default: no limit. */
  readonly timeUs?: number;
}

/** A format for each unit. */
export interface AllocatedFormats {
  /** A row per unit, in the order of the table. */
  readonly rows: readonly Row[];
  /** Bytes of the units. */
  readonly bytes: number;
  /** Predicted error of the model, interactions included. */
  readonly error: number;
  /** Predicted time of the units in one step, in microseconds. */
  readonly timeUs: number;
}

/**
 * Divides a budget.
 *
 * @param method - `ours`, or a baseline
 * @returns undefined when nothing fits
 */
export function allocate(
  table: SensitivityTable,
  budget: Budget,
  method: 'ours' | BaselineName = 'ours',
): AllocatedFormats | undefined {
  const view = solverView(table);
  if (method !== 'ours') {
    const rows = allocateBaseline(method, table, budget.bytes);
    return rows === undefined ? undefined : totals(table, rows);
  }
  const found = solve(view.units, {
    budget: budget.bytes,
    pairs: view.pairs,
    ...(budget.timeUs === undefined ? {} : { timeBudget: budget.timeUs }),
  });
  if (found === undefined) return undefined;
  return totals(
    table,
    found.choice.flatMap((option, unit) => view.rows[unit]?.[option] ?? []),
  );
}

/** Totals of rows, one per unit. */
export function totals(table: SensitivityTable, rows: readonly Row[]): AllocatedFormats {
  const { units, rows: options, pairs } = solverView(table);
  const choice = rows.map((row, unit) => options[unit]?.indexOf(row) ?? 0);
  const { error, time } = evaluateChoice(units, choice, pairs);
  return { rows, bytes: bytesOf(rows), error, timeUs: time };
}

/** The fewest bytes any choice takes. */
export function leastBytes(table: SensitivityTable): number {
  const least = new Map<string, number>();
  for (const { unit, bytesDownload } of table.rows)
    least.set(unit, Math.min(least.get(unit) ?? Infinity, bytesDownload));
  return [...least.values()].reduce((sum, bytes) => sum + bytes, 0);
}

/** The most bytes a sensible choice takes: of each unit the option with the least error. */
export function mostBytes(table: SensitivityTable): number {
  const best = new Map<string, Row>();
  for (const row of table.rows) {
    const known = best.get(row.unit);
    if (known === undefined || errorOf(row) < errorOf(known)) best.set(row.unit, row);
  }
  return bytesOf([...best.values()]);
}

/**
 * Bytes for units under a size, a number of average bits, or both.
 *
 * @param limits - `maxSize` counts every file, `averageBits` the weight files
 */
export function unitBudget(
  table: SensitivityTable,
  limits: { readonly maxSize?: number | undefined; readonly averageBits?: number | undefined },
): number {
  const { fixedBytes, overheadBytes, model } = table;
  const { maxSize = Infinity, averageBits = Infinity } = limits;
  const bySize = maxSize - fixedBytes - overheadBytes;
  const byBits = Math.floor((averageBits * model.parameters) / 8) - fixedBytes;
  return Math.min(bySize, byBits);
}

/** The error for a budget that nothing meets: the floor, and what sets it. */
export function belowFloor(table: SensitivityTable, budget: number): FettleError {
  const least = leastBytes(table);
  const { fixedBytes, overheadBytes } = table;
  const floor = least + fixedBytes + overheadBytes;
  const largest = table.units
    .map((unit) => ({
      role: unit.role,
      bytes: Math.min(
        ...table.rows.filter((row) => row.unit === unit.name).map((row) => row.bytesDownload),
      ),
    }))
    .sort((a, b) => b.bytes - a.bytes)[0];
  return new FettleError(
    'BUDGET_EXCEEDED',
    `The weights leave ${formatBytes(Math.max(0, budget))} for what can be stored in fewer bits; the smallest formats take ${formatBytes(least)}. ` +
      `The floor of the bundle is ${floor} bytes: ${formatBytes(least)} of codes (the largest: ${largest?.role ?? 'none'}, ${formatBytes(largest?.bytes ?? 0)}), ` +
      `${formatBytes(fixedBytes)} of weights that stay as they are, ${formatBytes(overheadBytes)} of other files.`,
    {
      at: { target: table.target, bytes: floor },
      fix: `Allow ${floor} bytes (${formatBytes(floor)}) or more, or use a smaller model.`,
    },
  );
}
