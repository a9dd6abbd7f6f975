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

/** Which budgets were asked for, besides the size of the bundle. */
export interface AskedBudgets {
  /** Average bits a parameter. */
  readonly averageBits?: number | undefined;
  /** Bytes of a session, and those of them that no unit decides. */
  readonly memory?: { readonly most: number; readonly fixed: number } | undefined;
}

/**
 * The error for a budget that nothing meets: the floor of what was asked for, and what sets it.
 *
 * @param budget - bytes that were left for units
 */
export function belowFloor(
  table: SensitivityTable,
  budget: number,
  { averageBits, memory }: AskedBudgets = {},
): FettleError {
  const least = leastBytes(table);
  const { fixedBytes, overheadBytes, model } = table;
  const [largest] = table.units
    .map(({ name, role }) => ({ role, bytes: leastOf(table, name, 'bytesDownload') }))
    .sort((a, b) => b.bytes - a.bytes);
  const codes = `${formatBytes(least)} of codes (the largest: ${largest?.role ?? 'none'}, ${formatBytes(largest?.bytes ?? 0)})`;
  const kept = `${formatBytes(fixedBytes)} of weights that stay as they are`;
  const fails = (floor: string, option: string, bytes: number, fix: string): FettleError =>
    new FettleError(
      'BUDGET_EXCEEDED',
      `The budget leaves ${formatBytes(Math.max(0, budget))} for what can be stored in fewer bits; the smallest formats take ${formatBytes(least)}. ${floor}`,
      { at: { target: table.target, option, bytes }, fix },
    );
  if (memory !== undefined && memory.most - memory.fixed <= budget) {
    const resident = table.units.reduce(
      (sum, { name }) => sum + leastOf(table, name, 'bytesResident'),
      0,
    );
    const floor = resident + memory.fixed;
    return fails(
      `The floor of a session is ${floor} bytes: ${codes}, ${formatBytes(memory.fixed)} of other weights, activations and state.`,
      'maxMemory',
      floor,
      `Allow ${floor} bytes (${formatBytes(floor)}) or more, a shorter context, or use a smaller model.`,
    );
  }
  const bits = (8 * (least + fixedBytes)) / Math.max(1, model.parameters);
  if (
    averageBits !== undefined &&
    Math.floor((averageBits * model.parameters) / 8) - fixedBytes <= budget
  ) {
    const allowed = (Math.ceil(bits * 100 + 1) / 100).toFixed(2);
    return fails(
      `The floor of the weights is ${bits.toFixed(3)} bits a parameter: ${codes}, ${kept}.`,
      'weights',
      least + fixedBytes,
      `Allow auto:${allowed} or more.`,
    );
  }
  const floor = least + fixedBytes + overheadBytes;
  return fails(
    `The floor of the bundle is ${floor} bytes: ${codes}, ${kept}, ${formatBytes(overheadBytes)} of other files.`,
    'maxSize',
    floor,
    `Allow ${floor} bytes (${formatBytes(floor)}) or more, or use a smaller model.`,
  );
}

function leastOf(
  table: SensitivityTable,
  unit: string,
  key: 'bytesDownload' | 'bytesResident',
): number {
  const rows = table.rows.filter((row) => row.unit === unit);
  return rows.reduce((least, row) => Math.min(least, row[key]), rows.length === 0 ? 0 : Infinity);
}
