/**
 * What a causal model computes from the places of its tokens alone, and whether a token's share of it
 * stays the same when more tokens follow. Asked by evaluating it for a few lengths.
 *
 *     Gather(table, Range(0, S)) [1, S, D]           ->   rows [C, D], one for each place
 *     Mul(slopes, Sub(keys, queries)) [1, H, S, S]    ->   slopes of H heads: a term of a key's place
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Shape } from '../ir/dim.ts';
import type { Model, Value } from '../ir/graph.ts';
import { readNumbers } from '../ops/numbers.ts';
import { HIDDEN } from './attention-scores.ts';
import type { Bookkeeping } from './bookkeeping.ts';
import { probe } from './probe.ts';

/** Lengths that are tried; a value that agrees between them is taken to agree for all. */
const [SHORT, LONG] = [5, 9];

/** One row for each place a token can have. */
export interface PositionRows {
  /** Places. */
  readonly count: number;
  /** Numbers of a row. */
  readonly width: number;
  /** Row by row. */
  readonly numbers: Float64Array;
}

/** Evaluates values that depend on sizes, masks and positions only, for one sequence from its start. */
export class TokenPositions {
  private readonly model: Model;
  private readonly books: Bookkeeping;
  private readonly tokens: string;

  /** @param tokens - symbol of the number of tokens */
  constructor(model: Model, books: Bookkeeping, tokens: string) {
    this.model = model;
    this.books = books;
    this.tokens = tokens;
  }

  /** The axis of a shape that counts tokens; undefined when there is none or more than one. */
  axisOf(shape: Shape | undefined): number | undefined {
    const axes = (shape ?? []).flatMap((dim, axis) => (dim === this.tokens ? [axis] : []));
    return axes.length === 1 ? axes[0] : undefined;
  }

  /** Whether a value is the same however many tokens there are. */
  isConstant(value: Value): boolean {
    const [short, long] = [this.at(value, SHORT), this.at(value, LONG)];
    return (
      short !== undefined &&
      long !== undefined &&
      short.shape.join() === long.shape.join() &&
      equal(readNumbers(short), readNumbers(long))
    );
  }

  /** Whether every element is 1 when no token is padding. */
  isFull(value: Value): boolean {
    const found = this.at(value, LONG);
    return found !== undefined && [...readNumbers(found)].every((number) => number === 1);
  }

  /** Whether it is 0, 1, 2, … along its last axis. */
  isCount(value: Value): boolean {
    const found = this.at(value, LONG);
    return (
      found?.shape.at(-1) === LONG &&
      [...readNumbers(found)].every((number, index) => number === index % LONG)
    );
  }

  /**
   * The rows of a value [1, …, tokens, width], one for each place up to `limit`, or as far as the tables
   * of the model go.
   *
   * @returns a sentence when the rows are no matter of their place alone
   */
  rowsOf(value: Value, limit: number): PositionRows | string {
    const axis = this.axisOf(value.shape);
    const rank = value.shape?.length ?? 0;
    if (axis === undefined || axis !== rank - 2) return 'its rows are not one for each token';
    const [short, long] = [this.at(value, SHORT), this.at(value, LONG)];
    const width = short?.shape.at(-1);
    if (short === undefined || long === undefined || width === undefined || width < 1)
      return 'what it is for each place cannot be computed';
    if (short.shape.slice(0, -2).some((dim) => dim !== 1)) return 'it differs between sequences';
    if (long.shape.at(-1) !== width) return 'its rows have another size in longer texts';
    if (!equal(readNumbers(short), readNumbers(long)))
      return 'what it is for a token depends on how many follow';
    for (const count of [limit, ...this.tableLengths(value).filter((rows) => rows < limit)]) {
      const found = this.at(value, count);
      const rows = found?.shape.at(-2) ?? 0;
      if (found === undefined || rows < LONG) continue;
      const numbers = Float64Array.from(readNumbers(found));
      if (equal(readNumbers(short), numbers)) return { count: rows, width, numbers };
    }
    return 'what it is for each place cannot be computed';
  }

  /**
   * What a term of the scores [1, heads or 1, tokens, tokens] adds for each place that a key is further
   * on, one slope a head. A term of the query's place alone does not matter to a softmax.
   *
   * @param hides - whether it must also hide later keys
   * @returns a sentence when it is something else
   */
  slopesOf(bias: Value, hides: boolean): Float64Array | string {
    const found = this.at(bias, LONG);
    const [keys, queries, heads = 1, batch = 1] = [...(found?.shape ?? [])].reverse();
    // one row for all queries hides nothing from some of them
    const isShared = queries === 1 && !hides;
    if (found === undefined || keys !== LONG || (queries !== LONG && !isShared) || batch !== 1)
      return 'what its mask adds cannot be computed for one text';
    const numbers = readNumbers(found);
    const at = (head: number, query: number, key: number): number =>
      numbers[(isShared ? head : head * LONG + query) * LONG + key] ?? NaN;
    const slopes = new Float64Array(heads);
    for (let head = 0; head < heads; head++) {
      const slope = (at(head, LONG - 1, LONG - 1) - at(head, LONG - 1, 0)) / (LONG - 1);
      for (let query = 0; query < LONG; query++)
        for (let key = 0; key < LONG; key++) {
          if (key > query) {
            if (hides && !(at(head, query, key) <= HIDDEN)) return 'it sees later tokens';
            continue;
          }
          const by = at(head, query, key) - at(head, query, 0) - slope * key;
          if (!(Math.abs(by) <= 1e-5 * Math.max(1e-3, Math.abs(slope) * LONG)))
            return 'its mask is more than causal, and more than a term of how far on a key is';
        }
      slopes[head] = slope;
    }
    return slopes;
  }

  private at(value: Value, sequence: number): Tensor | undefined {
    return probe(this.model, value, this.books.call({ batch: 1, sequence, past: 0 }));
  }

  /** Rows of the constants that a value is computed from, most first. */
  private tableLengths(value: Value): readonly number[] {
    const sizes = new Set<number>();
    const seen = new Set<Value>();
    const walk = (one: Value): void => {
      if (seen.has(one)) return;
      seen.add(one);
      for (const size of one.weight?.shape ?? []) if (size >= LONG) sizes.add(size);
      for (const input of one.producer?.inputs ?? []) if (input !== undefined) walk(input);
    };
    walk(value);
    return [...sizes].sort((a, b) => b - a);
  }
}

/** Whether one list starts with the other. */
function equal(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  for (let i = 0; i < Math.min(a.length, b.length); i++) if (a[i] !== b[i]) return false;
  return a.length > 0 && b.length > 0;
}
