/**
 * Tables of a rotary embedding over all positions, from the bookkeeping that computes them: a constant
 * table that is gathered from, or positions times frequencies (scaled in whatever way) through cosine
 * and sine. What the graph computes for positions 0, 1, … becomes a constant.
 */
import { tensor } from '../../runtime/tensor.ts';
import type { Value } from '../ir/graph.ts';

import { Weight } from '../ir/weight.ts';
import { readNumbers } from '../ops/numbers.ts';
import type { Bookkeeping } from './bookkeeping.ts';
import type { RotaryMap } from './head-map.ts';
import { trialCall } from './head-map.ts';

/** Cosines and sines, [positions, dims / 2]. */
export interface RotaryTables {
  /** A constant of the model, when one is the table already. */
  readonly cos: Value | Weight;
  /** The same for sines. */
  readonly sin: Value | Weight;
  /** Input that says the positions; undefined when they are counted. */
  readonly positions: Value | undefined;
}

/** Where the numbers of a table lie in a value. */
interface Place {
  readonly value: Value;
  /** Column of pair i. */
  readonly column: (pair: number) => number;
  readonly columns: number;
  /** The table is the value times this. */
  readonly factor: number;
}

/**
 * The tables of a rotary embedding.
 *
 * @param positions - how many positions, when no constant table says it
 * @returns undefined when they are not found among the values that go into it
 */
export function rotaryTables(
  rotary: RotaryMap,
  books: Bookkeeping,
  positions: number,
): RotaryTables | undefined {
  const cos = findPlace(rotary, rotary.cos, books);
  const sin = findPlace(rotary, rotary.sin, books);
  if (cos === undefined || sin === undefined) return undefined;
  const pairs = rotary.dims / 2;
  const [left, right] = [cos, sin].map((place) => wholeTable(place, pairs, books, positions));
  if (left === undefined || right === undefined) return undefined;
  const inputs = [cos, sin].flatMap(({ value }) => books.inputsOf(value));
  const explicit = inputs.find(({ name }) => /position/.test(name));
  return { cos: left, sin: right, positions: books.isDecoder ? undefined : explicit };
}

/** Finds which value holds a table, up to a factor. */
function findPlace(rotary: RotaryMap, wanted: Float64Array, books: Bookkeeping): Place | undefined {
  const pairs = rotary.dims / 2;
  const tokens = wanted.length / pairs;
  // the place where the table is largest tells the factor
  let peak = 0;
  wanted.forEach((value, index) => {
    if (Math.abs(value) > Math.abs(wanted[peak] ?? 0)) peak = index;
  });
  const [row, pair] = [Math.floor(peak / pairs), peak % pairs];
  for (const value of rotary.tables) {
    const rows = rowsOf(value, books, tokens);
    const columns = value.shape?.at(-1);
    if (rows === undefined || typeof columns !== 'number' || rows.length < tokens * columns)
      continue;
    const ways: readonly ((pair: number) => number)[] = [
      (i) => i,
      (i) => 2 * i,
      (i) => pairs + i,
      (i) => 2 * i + 1,
    ];
    for (const column of ways) {
      if (column(pairs - 1) >= columns) continue;
      const factor = (wanted[peak] ?? 0) / (rows[row * columns + column(pair)] ?? 0);
      if (!Number.isFinite(factor)) continue;
      const agrees = wanted.every((number, index) => {
        const at = Math.floor(index / pairs) * columns + column(index % pairs);
        return Math.abs((rows[at] ?? NaN) * factor - number) <= 1e-5;
      });
      if (agrees)
        return { value, column, columns, factor: Math.abs(factor - 1) < 1e-6 ? 1 : factor };
    }
  }
  return undefined;
}

/** A candidate's rows for the first tokens. */
function rowsOf(value: Value, books: Bookkeeping, tokens: number): ArrayLike<number> | undefined {
  if (value.weight !== undefined) return readNumbers(value.weight.tensor());
  const columns = value.shape?.at(-1);
  const got = books.at(value, trialCall);
  if (got === undefined || typeof columns !== 'number') return undefined;
  return got.data.length === tokens * columns ? readNumbers(got) : undefined;
}

/** The table over all positions. */
function wholeTable(
  place: Place,
  pairs: number,
  books: Bookkeeping,
  positions: number,
): Value | Weight | undefined {
  const { value, column, columns, factor } = place;
  const isTable =
    value.weight !== undefined && value.shape?.length === 2 && columns === pairs && factor === 1;
  if (isTable && column(1) === 1) return value;
  const rows =
    value.weight === undefined
      ? computed(value, books, positions)
      : readNumbers(value.weight.tensor());
  if (rows === undefined) return undefined;
  const count = Math.floor(rows.length / columns);
  const data = new Float32Array(count * pairs);
  for (let row = 0; row < count; row++)
    for (let i = 0; i < pairs; i++)
      data[row * pairs + i] = (rows[row * columns + column(i)] ?? 0) * factor;
  return Weight.of(tensor('f32', [count, pairs], data));
}

/** Rows of a computed table for as many positions as asked for, or as the constants behind it have. */
function computed(
  value: Value,
  books: Bookkeeping,
  positions: number,
): ArrayLike<number> | undefined {
  const limit = Math.min(positions, ...rowsBehind(value));
  const got = books.at(value, { batch: 1, sequence: limit, past: 0 });
  return got === undefined ? undefined : readNumbers(got);
}

/** Rows of the constant tables that a value gathers from. */
function rowsBehind(value: Value): readonly number[] {
  const rows: number[] = [];
  const seen = new Set<Value>();
  const walk = (one: Value): void => {
    if (seen.has(one)) return;
    seen.add(one);
    const { producer } = one;
    if (producer === undefined) return;
    const table = producer.inputs[0];
    if (producer.op === 'Gather' && table?.weight !== undefined && table.weight.shape.length >= 2) {
      const axis = producer.int('axis', 0);
      rows.push(table.weight.shape.at(axis) ?? Infinity);
    }
    for (const input of producer.inputs) if (input !== undefined) walk(input);
  };
  walk(value);
  return rows;
}
