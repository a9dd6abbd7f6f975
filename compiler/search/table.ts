/**
 * The sensitivity table: for every unit and every format it may have, what that costs in quality, bytes
 * and time. Made once per model, data and target; any budget is then solved from it alone, also from the
 * copy that a bundle carries (`sensitivity.json`).
 *
 *   unit × option  ->  predicted KL, bytes, microseconds of a decoding step
 *
 * Source: ../shared/ALGORITHMS.md Z4.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { PairTerm, SolverOption } from './solver.ts';
import { worthwhile } from './solver.ts';

/** Name of the table's file in a bundle. */
export const TABLE_PATH = 'sensitivity.json';

/** How an error was found. */
export type Tier = 0 | 1 | 2;

/** One format of one unit. */
export interface Row {
  /** Name of the unit: of the constant. */
  readonly unit: string;
  /** Name of the number format. */
  readonly option: string;
  /** Predicted error from the unit's noise gain and the rounding's error, in the table's metric. */
  readonly klProxy: number;
  /** The same measured with this unit alone changed; absent when it was not measured. */
  readonly kl?: number;
  /** 0: predicted, 1: measured alone, 2: in pairs too. */
  readonly tier: Tier;
  /** Relative squared error of the unit's output, `tr(E H Eᵀ) / tr(W H Wᵀ)`. */
  readonly outputError: number;
  /** Relative squared error of the weights, `‖E‖² / ‖W‖²`; not in files. */
  readonly weightError?: number;
  /** Bytes in the bundle: codes, scales, zero points, tables and their alignment. */
  readonly bytesDownload: number;
  /** Bytes in memory while it runs. */
  readonly bytesResident: number;
  /** Time of one decoding step (of one call, for other models), by target. */
  readonly decodeUs: Readonly<Record<string, number>>;
}

/** What is known about a unit whatever its format. */
export interface UnitFacts {
  /** Name of the constant. */
  readonly name: string;
  /** What it is: `table`, `linear`, … */
  readonly kind: string;
  /** What it does, in the words of the model's structure: `L3.qkv`, `L3.down`, `table`; else its name. */
  readonly role: string;
  /** Block it belongs to; -1 outside of blocks. */
  readonly block: number;
  /** Output channels. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
  /** Noise gain: error of the model's output per relative squared error of the unit's output. */
  readonly gain: number;
  /** Trace of the Hessian of its inputs, `tr(H)`, `H = 2/T · Σ x xᵀ`. */
  readonly hessianTrace: number;
  /** `tr(W H Wᵀ)`: twice the mean squared norm of its output. */
  readonly outputEnergy: number;
  /** Share of weights of its block that are more than one deviation above the mean, for the order of ZD. */
  readonly zd: number;
  /** Change of the residual stream by its block, `-cos(in, out)`, for the order of LIM. */
  readonly lim: number;
}

/** Interaction of two units, found at one pair of options. */
export interface PairRow {
  /** Name of a unit. */
  readonly a: string;
  /** Name of another. */
  readonly b: string;
  /** `(kl_ab - kl_a - kl_b) / sqrt(kl_a · kl_b)`. */
  readonly coefficient: number;
}

/** How well errors of units add up. */
export interface Additivity {
  /** Pairs measured. */
  readonly pairs: number;
  /** Median of `|kl_ab - (kl_a + kl_b)| / kl_ab`. */
  readonly medianDeviation: number;
}

/** Everything a budget is solved from. */
export interface SensitivityTable {
  /** Layout of this object. */
  readonly version: 1;
  /** The model it is about. */
  readonly model: { readonly name: string; readonly sha256: string; readonly parameters: number };
  /** The target whose bytes and times it holds. */
  readonly target: string;
  /** What errors are measured in: `kl` in nats, or `relative-l2`. */
  readonly metric: 'kl' | 'relative-l2';
  /** Hash of the calibration data. */
  readonly calibration: { readonly sha256: string; readonly tokens: number };
  /** Rounding that the rows are for. */
  readonly rounding: string;
  /** Weight bytes that no unit decides: norms, biases, what stays as it is. */
  readonly fixedBytes: number;
  /** Bytes of everything that is no weight file: program, tokenizer, manifest, canaries, this table. */
  readonly overheadBytes: number;
  /** Units in the order of the model. */
  readonly units: readonly UnitFacts[];
  /** Rows, by unit in that order, then by bytes. */
  readonly rows: readonly Row[];
  /** Error of the model in one choice, by the sum of rows and measured; absent when it was not measured. */
  readonly whole?: { readonly predicted: number; readonly measured: number };
  /** How well rows of pairs add up; absent when the sum of all did. */
  readonly additivity?: Additivity;
  /** Interactions; empty when rows add up well enough. */
  readonly pairs: readonly PairRow[];
  /** What was chosen for the bundle that carries the table, by unit. */
  readonly chosen?: Readonly<Record<string, string>>;
}

/** The best known error of a row. */
export function errorOf({ kl, klProxy }: Row): number {
  return Math.max(0, kl ?? klProxy);
}

/** A table as the solver's units; index maps back to rows. */
export interface SolverView {
  /** Rows of each unit, in the order of the table. */
  readonly rows: readonly (readonly Row[])[];
  /** The same for the solver. */
  readonly units: readonly (readonly SolverOption[])[];
  /** Interactions by index. */
  readonly pairs: readonly PairTerm[];
}

/** The table for the solver. @param scale - factor on every error, from measurements of the whole */
export function solverView(table: SensitivityTable, scale: number = 1): SolverView {
  const byUnit = new Map<string, Row[]>(table.units.map(({ name }) => [name, []]));
  for (const row of table.rows) byUnit.get(row.unit)?.push(row);
  const rows = [...byUnit.values()];
  const index = new Map(table.units.map(({ name }, i) => [name, i]));
  return {
    rows,
    units: rows.map((options) =>
      options.map((row) => ({
        error: scale * errorOf(row),
        cost: row.bytesDownload,
        time: row.decodeUs[table.target] ?? 0,
      })),
    ),
    pairs: table.pairs.flatMap(({ a, b, coefficient }) => {
      const [first, second] = [index.get(a), index.get(b)];
      return first === undefined || second === undefined
        ? []
        : [{ a: first, b: second, coefficient }];
    }),
  };
}

/** Options of one unit as a file has them: a column each, so that names are not repeated. */
interface StoredUnit {
  readonly options: readonly string[];
  readonly klProxy: readonly number[];
  /** Absent where nothing was measured. */
  readonly kl?: readonly (number | null)[];
  readonly outputError: readonly number[];
  readonly bytes: readonly number[];
  /** Absent where it is `bytes`. */
  readonly resident?: readonly number[];
  readonly us: readonly number[];
}

/**
 * Bytes of a table as a file, small enough to travel with a bundle: three digits, and only rows that no
 * other one of their unit beats in error and bytes.
 */
export function encodeTable(table: SensitivityTable): Uint8Array {
  const { rows, units, ...head } = table;
  const stored = units.map((unit) => ({
    ...unit,
    ...storedUnit(
      rows.filter((row) => row.unit === unit.name),
      table.target,
    ),
  }));
  return new TextEncoder().encode(`${JSON.stringify({ ...head, units: stored })}\n`);
}

function storedUnit(rows: readonly Row[], target: string): StoredUnit {
  const options = rows.map((row) => ({ error: errorOf(row), cost: row.bytesDownload }));
  const kept = worthwhile(options).flatMap((index) => rows[index] ?? []);
  const resident = kept.map(({ bytesResident }) => bytesResident);
  return {
    options: kept.map(({ option }) => option),
    klProxy: kept.map(({ klProxy }) => short(klProxy)),
    ...(kept.every(({ kl }) => kl === undefined)
      ? {}
      : { kl: kept.map(({ kl }) => (kl === undefined ? null : short(kl))) }),
    outputError: kept.map(({ outputError }) => short(outputError)),
    bytes: kept.map(({ bytesDownload }) => bytesDownload),
    ...(kept.every((row) => row.bytesDownload === row.bytesResident) ? {} : { resident }),
    us: kept.map(({ decodeUs }) => short(decodeUs[target] ?? 0)),
  };
}

function short(value: number): number {
  return Number(value.toPrecision(3));
}

/**
 * Reads a table.
 *
 * @param bytes - of `sensitivity.json`
 * @param place - name of the file for messages
 * @throws {@link FettleError} USAGE when it is none
 */
export function decodeTable(bytes: Uint8Array, place: string): SensitivityTable {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(bytes));
  } catch (cause) {
    throw notATable(place, (cause as Error).message);
  }
  if (!isObject(value)) throw notATable(place, 'it is no object');
  const problem = problemOf(value);
  if (problem !== undefined) throw notATable(place, problem);
  // checked above: this is the one place where JSON becomes a table
  const { units, ...head } = value as unknown as Omit<SensitivityTable, 'rows' | 'units'> & {
    readonly units: readonly (UnitFacts & StoredUnit)[];
  };
  return {
    ...head,
    units: units.map(
      ({ name, kind, role, block, rows, columns, gain, hessianTrace, outputEnergy, zd, lim }) => ({
        name,
        kind,
        role,
        block,
        rows,
        columns,
        gain,
        hessianTrace,
        outputEnergy,
        zd,
        lim,
      }),
    ),
    rows: units.flatMap((unit) =>
      rowsFrom(
        unit,
        head.target,
        head.pairs.some(({ a, b }) => a === unit.name || b === unit.name),
      ),
    ),
  };
}

function rowsFrom(unit: UnitFacts & StoredUnit, target: string, isPaired: boolean): Row[] {
  const at = (list: readonly (number | null)[], index: number): number => list[index] ?? 0;
  return unit.options.map((option, i): Row => {
    const kl = unit.kl?.[i] ?? undefined;
    return {
      unit: unit.name,
      option,
      klProxy: at(unit.klProxy, i),
      ...(kl === undefined ? {} : { kl }),
      tier: kl === undefined ? 0 : isPaired ? 2 : 1,
      outputError: at(unit.outputError, i),
      bytesDownload: at(unit.bytes, i),
      bytesResident: at(unit.resident ?? unit.bytes, i),
      decodeUs: { [target]: at(unit.us, i) },
    };
  });
}

function problemOf(value: Readonly<Record<string, unknown>>): string | undefined {
  if (value['version'] !== 1) return `its version is ${JSON.stringify(value['version'])}, not 1`;
  const { units, pairs, model } = value;
  if (!Array.isArray(units) || !Array.isArray(pairs)) return 'it has no units and pairs';
  if (!isObject(model) || typeof value['target'] !== 'string')
    return 'it names no model and target';
  if (!isFigure(value['fixedBytes']) || !isFigure(value['overheadBytes']))
    return 'it does not say how large the rest of the bundle is';
  for (const unit of units) {
    if (!isObject(unit) || typeof unit['name'] !== 'string') return 'a unit has no name';
    const { options, klProxy, bytes, name } = unit;
    const lists: readonly unknown[] = [options, klProxy, bytes, unit['us'], unit['kl'] ?? klProxy];
    if (!lists.every((list): list is unknown[] => Array.isArray(list)))
      return `unit "${name}" lacks options, errors, bytes or times`;
    const [names, ...figures] = lists;
    if (names === undefined || names.length === 0) return `unit "${name}" has no options`;
    if (figures.some((list) => list.length !== names.length))
      return `the columns of unit "${name}" differ in length`;
    if (!(klProxy as unknown[]).every(isFigure) || !(bytes as unknown[]).every(isFigure))
      return `unit "${name}" has errors or bytes that are no numbers`;
  }
  return undefined;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isFigure(value: unknown): boolean {
  return typeof value === 'number' && Number.isFinite(value);
}

function notATable(place: string, why: string): FettleError {
  return new FettleError('USAGE', `"${place}" is no sensitivity table: ${why}.`, {
    at: { file: place },
    fix: 'Pass sensitivity.json of a bundle that was compiled with --calibrate.',
  });
}
