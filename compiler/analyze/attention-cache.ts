/**
 * How the keys or values of an attention continue a cache: joined to what was there before, or written
 * into a buffer of fixed length at the places of this call's tokens.
 *
 *     Concat(past [b, h, p, d], fresh)                            the cache grows
 *     ScatterND | ScatterElements | TensorScatter(past, …)        its length is fixed
 *
 * Where a buffer is written is found by writing numbers into it, whatever computes the places. A buffer is
 * only a way to keep a cache: an attention that sees no place behind its own token reads the same from one
 * that grows.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__TensorScatter.html; Hugging Face transformers, StaticCache.
 */
import { elementCount } from '../../runtime/tensor.ts';
import type { Node, Value } from '../ir/graph.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import type { Bookkeeping, CallSizes } from './bookkeeping.ts';
import type { HeadContext, HeadMap } from './head-map.ts';
import { isInOrder, readHeads } from './head-map.ts';
import { knownShape, probe } from './probe.ts';

/** A cache of keys or values. */
export interface Cache {
  /** Graph input with what was there before. */
  readonly past: Value;
  /** What is there afterwards. */
  readonly present: Value;
  /** Heads of the tokens of this call. */
  readonly fresh: HeadMap;
  /** Nodes it is made of. */
  readonly nodes: readonly Node[];
  /** Rows of a buffer; undefined for a cache that grows. */
  readonly capacity: number | undefined;
}

/** Ops that write rows into a buffer, and the input that holds the rows. */
const writers: ReadonlyMap<string, number> = new Map([
  ['ScatterND', 2],
  ['ScatterElements', 2],
  ['Scatter', 2],
  ['TensorScatter', 1],
]);

/** Reads the cache that heads are; undefined when they are none. */
export function readCache(map: HeadMap, context: HeadContext): Cache | undefined {
  const node = map.source.producer;
  if (node === undefined || node.domain !== '') return undefined;
  if (node.op === 'Concat') return grown(map, node, context);
  const rows = writers.get(node.op);
  return rows === undefined ? undefined : written(map, node, rows, context);
}

function grown(map: HeadMap, concat: Node, context: HeadContext): Cache | undefined {
  if (!isCacheLayout(map) || concat.inputs.length !== 2) return undefined;
  const [past, fresh] = concat.inputs;
  const axis = concat.int('axis', 0);
  if (past === undefined || fresh === undefined || (axis !== 2 && axis !== -2)) return undefined;
  if (past.producer !== undefined || past.weight !== undefined || past.shape?.length !== 4)
    return undefined;
  const users = [...map.source.users.keys()];
  if (users.some((user) => !map.nodes.has(user) && !readsCache(user))) return undefined;
  const below = readHeads(fresh, 'bhsd', context);
  return below && { past, present: map.source, fresh: below, nodes: [concat], capacity: undefined };
}

/** Whether a reader of the cache is a product of an attention, or only asks for its size. */
function readsCache(user: Node): boolean {
  return (
    user.op === 'MatMul' ||
    user.op === 'Shape' ||
    user.op === 'Transpose' ||
    user.op === 'Attention'
  );
}

/** [batch, heads, tokens, width]; with one head that is the same as tokens first. */
function isCacheLayout({ source, order, heads, places, columns, width }: HeadMap): boolean {
  if (order === 'bhsd') return true;
  return (
    order === 'bsc' &&
    heads === 1 &&
    places[0] === 0 &&
    columns === width &&
    source.shape?.[1] === 1
  );
}

/** Axis of tokens in a source. */
const tokenAxes = { bhsd: 2, bsc: 1, sbc: 0 } as const;

function written(
  map: HeadMap,
  node: Node,
  rowsAt: number,
  context: HeadContext,
): Cache | undefined {
  const { source, heads, width } = map;
  const order = isCacheLayout(map) ? 'bhsd' : map.order;
  const axis = tokenAxes[order];
  const rows = node.inputs[rowsAt];
  const capacity = source.shape?.[axis];
  if (rows === undefined || typeof capacity !== 'number' || map.columns !== heads * width)
    return undefined;
  if (!isInOrder(map) || map.scale !== 1 || map.rotary !== undefined) return undefined;
  if (!isWriter(node, rows, axis, capacity, context)) return undefined;
  const [before, past] = inputBehind(node.input(0));
  const [after, present] = outputOf(source);
  if (past === undefined || present === undefined) return undefined;
  const nodes = [...before, node, ...after];
  // somebody else who reads the buffer wants its length
  const isOwn = (value: Value): boolean =>
    [...value.users.keys()].every(
      (user) => nodes.includes(user) || map.nodes.has(user) || readsCache(user),
    );
  if (![past, source, present].every(isOwn)) return undefined;
  const fresh = readHeads(
    rows,
    order === 'bhsd' ? 'bhsd' : order === 'bsc' ? 'bshd' : 'sbhd',
    context,
    { heads, width },
  );
  return fresh && { past, present, fresh, nodes, capacity };
}

/** The graph input that a value is, through transposes. */
function inputBehind(start: Value): readonly [nodes: readonly Node[], input: Value | undefined] {
  const nodes: Node[] = [];
  let value = start;
  while (value.producer !== undefined && isPassive(value.producer)) {
    nodes.push(value.producer);
    value = value.producer.input(0);
  }
  return [nodes, value.producer === undefined && value.weight === undefined ? value : undefined];
}

/** The graph output that a value becomes, through transposes. */
function outputOf(start: Value): readonly [nodes: readonly Node[], output: Value | undefined] {
  if (start.isOutput) return [[], start];
  for (const user of start.users.keys()) {
    if (!isPassive(user)) continue;
    const [nodes, output] = outputOf(user.output(0));
    if (output !== undefined) return [[user, ...nodes], output];
  }
  return [[], undefined];
}

function isPassive(node: Node): boolean {
  return node.domain === '' && (node.op === 'Transpose' || node.op === 'Identity');
}

/** {@link writesRows}, asked once for the layers of a model, which write alike. */
function isWriter(
  node: Node,
  rows: Value,
  axis: number,
  capacity: number,
  { books, writers: known }: HeadContext,
): boolean {
  const others = node.inputs.filter((input) => input !== node.input(0) && input !== rows);
  const shapes = [node.input(0), rows].map(({ shape }) => `[${shape}]`);
  const key = [
    node.op,
    axis,
    node.int('axis', 0),
    node.string('mode', ''),
    node.string('reduction', ''),
    ...shapes,
    ...others.map((input) => input?.name),
  ].join(' ');
  let answer = known.get(key);
  if (answer === undefined)
    known.set(key, (answer = writesRows(node, rows, axis, capacity, books)));
  return answer;
}

/** Whether a node writes rows one after the other, the first behind the tokens that were there. */
function writesRows(
  node: Node,
  rows: Value,
  axis: number,
  capacity: number,
  books: Bookkeeping,
): boolean {
  const calls: CallSizes[] = [
    { batch: 2, sequence: 1, past: 0 },
    { batch: 1, sequence: 2, past: Math.min(5, capacity - 2) },
  ];
  return calls.every((call) => {
    const inputs = books.call(call);
    const [whole, part] = [node.input(0), rows].map(({ shape }) => knownShape(shape, inputs.sizes));
    if (whole === undefined || part === undefined || whole.length !== part.length) return false;
    const count = part[axis] ?? 0;
    if (whole.some((size, i) => i !== axis && size !== part[i]) || call.past + count > capacity)
      return false;
    const numbers = (shape: readonly number[], from: number): Float64Array =>
      Float64Array.from({ length: elementCount(shape) }, (_, i) => from + (i % 4093));
    const [old, fresh] = [numbers(whole, 1), numbers(part, 5000)];
    const got = probe(books.model, node.output(0), {
      sizes: inputs.sizes,
      given: new Map([
        ...inputs.given,
        [node.input(0), writeNumbers('f32', whole, old)],
        [rows, writeNumbers('f32', part, fresh)],
      ]),
    });
    if (got === undefined) return false;
    const inner = elementCount(whole.slice(axis + 1));
    return readNumbers(got).every((value, i) => {
      const row = Math.floor(i / inner) % capacity;
      const outer = Math.floor(i / inner / capacity);
      const at = row - call.past;
      const wanted =
        at >= 0 && at < count ? fresh[(outer * count + at) * inner + (i % inner)] : old[i];
      return value === wanted;
    });
  });
}
