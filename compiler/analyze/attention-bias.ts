/**
 * Takes apart what is added to the scores of an attention: masks, which hide keys, and biases, which stay.
 *
 *     Add(scores, Add(alibi, mask))     ->   a mask, and slopes times the place of the key
 *
 * A bias that is linear in the place of the key is told by its slopes: what it adds to all keys of a query
 * alike, a softmax takes away again.
 *
 * Source: https://arxiv.org/abs/2108.12409 (ALiBi); https://arxiv.org/abs/1910.10683 (T5's buckets).
 */
import type { Value } from '../ir/graph.ts';
import { readNumbers } from '../ops/numbers.ts';
import type { Bias } from './attention-scores.ts';
import { HIDDEN } from './attention-scores.ts';
import type { Bookkeeping, CallSizes } from './bookkeeping.ts';

/** Terms of a sum. */
export interface BiasTerms {
  /** 0 or very negative. */
  readonly masks: readonly Bias[];
  /** All others. */
  readonly rest: readonly Bias[];
}

/** Sorts biases and the terms they are sums of into masks and others. */
export function biasTerms(biases: readonly Bias[], books: Bookkeeping): BiasTerms {
  const masks: Bias[] = [];
  const rest: Bias[] = [];
  const sort = (bias: Bias): void => {
    const { value, factor } = bias;
    const sum = value.producer;
    if (isMask(value, books)) masks.push(bias);
    else if (sum?.op === 'Add' && sum.domain === '')
      for (const term of [sum.input(0), sum.input(1)]) sort({ value: term, factor });
    else rest.push(bias);
  };
  biases.forEach(sort);
  return { masks, rest };
}

function isMask(value: Value, books: Bookkeeping): boolean {
  if (!books.has(value)) return false;
  const tensor = books.at(value, { batch: 2, sequence: 5, past: books.hasPast ? 3 : 0 });
  return (
    tensor !== undefined && readNumbers(tensor).every((number) => number === 0 || number < HIDDEN)
  );
}

/**
 * Slope of each head of a bias that is linear in the place of the key.
 *
 * @param capacity - keys of a cache of fixed length
 * @returns undefined when it is not, or when the keys are not those of all tokens so far
 */
export function linearSlopes(
  value: Value,
  books: Bookkeeping,
  capacity?: number,
): readonly number[] | undefined {
  if (!books.has(value) || !books.isDecoder) return undefined;
  const calls: readonly CallSizes[] = [
    { batch: 1, sequence: 5, past: 0 },
    { batch: 1, sequence: 1, past: 4 },
    { batch: 1, sequence: 3, past: 6 },
  ];
  let slopes: readonly number[] | undefined;
  for (const call of calls) {
    const tensor = books.at(value, call);
    const keys = capacity ?? call.past + call.sequence;
    if (tensor === undefined || tensor.shape.length > 4 || tensor.shape.at(-1) !== keys)
      return undefined;
    const [batch = 1, heads = 1, queries = 1] = [1, 1, 1, ...tensor.shape].slice(-4);
    if (batch !== 1) return undefined;
    const numbers = readNumbers(tensor);
    const at = (row: number, key: number): number => numbers[row * keys + key] ?? NaN;
    slopes ??= Array.from({ length: heads }, (_, h) => at(h * queries, 1) - at(h * queries, 0));
    if (slopes.length !== heads) return undefined;
    for (let row = 0; row < heads * queries; row++) {
      const slope = slopes[Math.floor(row / queries)] ?? NaN;
      for (let key = 0; key < keys; key++) {
        const wanted = at(row, 0) + slope * key;
        if (!(Math.abs(at(row, key) - wanted) <= 1e-5 * Math.max(1, Math.abs(wanted))))
          return undefined;
      }
    }
  }
  return slopes;
}
