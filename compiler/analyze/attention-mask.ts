/**
 * Finds out which keys an attention's masks hide, by evaluating them for a few calls: whatever the graph
 * does to get there, it is causal, a window or padding if the result is.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Model, Value } from '../ir/graph.ts';
import { uniformValueOf } from '../passes/constants.ts';
import { broadcastIndices } from '../ops/shapes.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import type { Bias, Hiding } from './attention-scores.ts';
import { HIDDEN } from './attention-scores.ts';
import type { Bookkeeping, CallSizes } from './bookkeeping.ts';
import type { ProbeInputs } from './probe.ts';
import { probe } from './probe.ts';

/** What the masks come to. */
export interface MaskFound {
  /** Whether later keys are hidden. */
  readonly causal: boolean;
  /** Most keys a query sees; 0 for all. */
  readonly window: number;
  /** Input [batch, keys] whose zeros hide keys; undefined when there is none, or it is always full. */
  readonly padding: Value | undefined;
}

/** The masks of one attention. */
export interface Masks {
  /** Added to the scores: 0 or very negative. */
  readonly biases: readonly Bias[];
  /** Conditions. */
  readonly hidings: readonly Hiding[];
}

/**
 * Explains masks as causality, a window and padding.
 *
 * @param hasPast - whether the keys start with a cache
 * @param capacity - keys of a cache of fixed length, most of which are not written yet
 * @returns undefined when they are something else, and have to stay
 */
export function explainMasks(
  masks: Masks,
  books: Bookkeeping,
  hasPast: boolean,
  capacity?: number,
): MaskFound | undefined {
  const values = [
    ...masks.biases.map(({ value }) => value),
    ...masks.hidings.map(({ condition }) => condition),
  ];
  if (values.length === 0) return { causal: false, window: 0, padding: undefined };
  if (!values.every((value) => books.has(value))) return undefined;
  const inputs = [...new Set(values.flatMap((value) => books.inputsOf(value)))];
  const padding = books.isDecoder ? undefined : paddingOf(inputs, books);
  if (padding === null) return undefined;
  for (const causal of [true, false])
    for (const window of causal ? [0, ...windowsOf(values)] : [0]) {
      const found: MaskFound = { causal, window, padding };
      if (holds(found, masks, books, hasPast, capacity)) return found;
    }
  return undefined;
}

/** The one input [batch, keys] that masks depend on; null when it is something else. */
function paddingOf(inputs: readonly Value[], books: Bookkeeping): Value | undefined | null {
  const [input, ...more] = inputs;
  if (input === undefined) return undefined;
  if (more.length > 0 || input.shape?.length !== 2 || input.shape[0] !== books.batch) return null;
  return input;
}

/** Sizes of windows worth trying: integers in the piece of graph that computes the mask. */
function windowsOf(values: readonly Value[]): readonly number[] {
  const found = new Set<number>();
  const seen = new Set<Value>();
  const walk = (value: Value): void => {
    if (seen.has(value)) return;
    seen.add(value);
    const number = value.weight === undefined ? undefined : uniformValueOf(value);
    if (
      number !== undefined &&
      Number.isInteger(number) &&
      Math.abs(number) >= 2 &&
      Math.abs(number) < 65_536
    )
      for (const size of [Math.abs(number), Math.abs(number) + 1, Math.abs(number) - 1])
        found.add(size);
    for (const input of value.producer?.inputs ?? []) if (input !== undefined) walk(input);
  };
  values.forEach(walk);
  return [...found].filter((size) => size >= 1);
}

function holds(
  found: MaskFound,
  masks: Masks,
  books: Bookkeeping,
  hasPast: boolean,
  capacity: number | undefined,
): boolean {
  const edge = found.window + 3;
  const calls: CallSizes[] = hasPast
    ? [
        { batch: 2, sequence: 5, past: 0 },
        { batch: 1, sequence: 1, past: 4 },
        { batch: 2, sequence: 3, past: 6 },
        ...(found.window > 0 ? [{ batch: 1, sequence: 2, past: edge }] : []),
      ]
    : [
        { batch: 2, sequence: 5, past: 0 },
        { batch: 1, sequence: Math.min(512, Math.max(8, edge)), past: 0 },
      ];
  // a window wider than every trial cannot be told from none, so none is tried first
  return calls
    .filter(({ past, sequence }) => past + sequence <= (capacity ?? Infinity))
    .every((call, index) => agrees(found, masks, books, call, index, capacity));
}

function agrees(
  { causal, window, padding }: MaskFound,
  masks: Masks,
  books: Bookkeeping,
  call: CallSizes,
  seed: number,
  capacity: number | undefined,
): boolean {
  const inputs = books.call(call);
  let kept: ArrayLike<number> | undefined;
  let given: ProbeInputs = inputs;
  const full = padding === undefined ? undefined : inputs.given.get(padding);
  if (padding !== undefined) {
    if (full === undefined) return false;
    const holes = holesIn(full, seed);
    kept = readNumbers(holes);
    given = { ...inputs, given: new Map([...inputs.given, [padding, holes]]) };
  }
  const hidden = hiddenKeys(books.model, masks, given);
  if (hidden === undefined) return false;
  const { shape, data } = hidden;
  const [keys = 1, queries = 1] = [shape.at(-1), shape.at(-2)];
  const first = shape[0] ?? 1;
  // with heads and sequences in one dimension, the sequence comes first
  const batch =
    shape.length >= 4 ? first : shape.length === 3 && first % call.batch === 0 ? call.batch : 1;
  const columns = full?.shape[1] ?? keys;
  const rows = full?.shape[0] ?? 1;
  if (causal && keys !== (capacity ?? call.past + queries)) return false;
  if (kept !== undefined && (columns !== keys || (rows > 1 && batch !== rows && batch !== 1)))
    return false;
  if (kept !== undefined && rows > 1 && batch === 1) return false;
  const planes = data.length / (keys * queries);
  for (let i = 0; i < data.length; i++) {
    const [key, query] = [i % keys, Math.floor(i / keys) % queries];
    const sequence = Math.floor(Math.floor(i / (keys * queries)) / Math.max(1, planes / batch));
    const end = causal ? call.past + query + 1 : keys;
    const visible =
      key < end &&
      (window === 0 || key >= end - window) &&
      (kept === undefined || kept[(rows > 1 ? sequence : 0) * columns + key] !== 0);
    if (visible === (data[i] !== 0)) return false;
  }
  return true;
}

/** Some zeros, and in every row at least one key. */
function holesIn(full: Tensor, seed: number): Tensor {
  const values = Float64Array.from({ length: full.data.length }, (_, i) =>
    (i * 7 + seed * 3 + 1) % 3 === 0 ? 0 : 1,
  );
  return writeNumbers(full.dtype, full.shape, values);
}

/** Which keys are hidden: 1 where some mask hides; undefined when a mask is more than that. */
function hiddenKeys(
  model: Model,
  { biases, hidings }: Masks,
  given: ProbeInputs,
): { readonly shape: readonly number[]; readonly data: Uint8Array } | undefined {
  const parts: { readonly shape: readonly number[]; readonly hidden: Uint8Array }[] = [];
  for (const { value } of biases) {
    const tensor = probe(model, value, given);
    if (tensor === undefined) return undefined;
    const numbers = readNumbers(tensor);
    const hidden = new Uint8Array(numbers.length);
    for (let i = 0; i < numbers.length; i++) {
      const number = numbers[i] ?? 0;
      if (number !== 0 && !(number < HIDDEN)) return undefined;
      hidden[i] = number === 0 ? 0 : 1;
    }
    parts.push({ shape: tensor.shape, hidden });
  }
  for (const { condition, when } of hidings) {
    const tensor = probe(model, condition, given);
    if (tensor === undefined) return undefined;
    const hidden = Uint8Array.from(readNumbers(tensor), (value) =>
      (value !== 0) === when ? 1 : 0,
    );
    parts.push({ shape: tensor.shape, hidden });
  }
  const rank = Math.max(...parts.map(({ shape }) => shape.length), 2);
  const shape = Array.from({ length: rank }, (_, axis) =>
    Math.max(...parts.map((part) => part.shape[axis - rank + part.shape.length] ?? 1)),
  );
  const data = new Uint8Array(shape.reduce((a, b) => a * b, 1));
  for (const part of parts) {
    const indices = broadcastIndices(part.shape, shape);
    for (let i = 0; i < data.length; i++)
      data[i] = (data[i] ?? 0) | (part.hidden[indices?.[i] ?? i] ?? 0);
  }
  return { shape, data };
}
