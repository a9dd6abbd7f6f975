/**
 * Finds out what lies between a projection and the heads an attention reads: how columns become heads,
 * which heads are repeated, a factor, and a rotary embedding. All of it is linear, so it is recognised by
 * feeding numbers and looking where they come out, whatever ops the exporter used.
 *
 *     Add(Mul(Transpose(Reshape(x)), cos), Mul(Concat(Neg(Slice), Slice), sin))    ->   x, rotated by halves
 *
 * At position 0 a rotary embedding turns nothing, so the first tokens show the layout alone. A unit
 * vector then shows which column its pair is, and the tables follow.
 *
 * Source: https://arxiv.org/abs/2104.09864.
 */
import { elementCount, tensor } from '../../runtime/tensor.ts';

import { divideDims, multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { rotate } from '../ops/attention-core.ts';
import { filled, readNumbers } from '../ops/numbers.ts';
import type { Bookkeeping, CallSizes } from './bookkeeping.ts';
import type { Dominator, NodeOrder } from './dominators.ts';
import { dominators } from './dominators.ts';
import { knownShape, probe } from './probe.ts';
import { wayOf } from './way.ts';

/** Order of the axes of heads: tokens before columns, behind them, or whole rows of tokens. */
export type HeadOrder = 'bhsd' | 'bhds' | 'bshd' | 'sbhd';

/** How rows of tokens are split, which their shape does not say. */
export interface HeadSplit {
  /** Heads. */
  readonly heads: number;
  /** Columns of a head. */
  readonly width: number;
}

/** Where columns of heads lie in their source: rows of tokens, tokens first, or heads apart. */
export type SourceOrder = 'bsc' | 'sbc' | 'bhsd';

/** How heads follow from one value. */
export interface HeadMap {
  /** The value. */
  readonly source: Value;
  /** How it is laid out. */
  readonly order: SourceOrder;
  /** Column of a row that a column of the heads is, head after head. */
  readonly places: readonly number[];
  /** Columns of a row. */
  readonly columns: number;
  /** Different heads; a divisor of the heads read. */
  readonly heads: number;
  /** Columns of a head. */
  readonly width: number;
  /** Factor. */
  readonly scale: number;
  /** Rotary embedding, when there is one. */
  readonly rotary: RotaryMap | undefined;
  /** Nodes between the source and the heads. */
  readonly nodes: ReadonlySet<Node>;
}

/** A rotary embedding as it acts. */
export interface RotaryMap {
  /** Columns of a head that are turned. */
  readonly dims: number;
  /** Whether pairs are neighbours. */
  readonly interleaved: boolean;
  /** Cosines and sines of the first tokens, [trialTokens, dims / 2]. */
  readonly cos: Float64Array;
  readonly sin: Float64Array;
  /** Float values of bookkeeping that go into it: its tables, when they can be told. */
  readonly tables: readonly Value[];
}

/** Tokens the tables of a {@link RotaryMap} have. */
export const TRIAL_TOKENS = 41;

/** What {@link readHeads} works on. */
export interface HeadContext {
  readonly books: Bookkeeping;
  readonly order: NodeOrder;
  /** What was found of other heads by how they are computed; the layers of a model are alike. */
  readonly known: Map<string, HeadMap | undefined>;
  /** Whether an op writes rows into a buffer, by how it does. */
  readonly writers: Map<string, boolean>;
}

/** Enough tokens that slow frequencies show. */
export const trialCall: CallSizes = { batch: 1, sequence: TRIAL_TOKENS, past: 0 };

/** The call in which every token has position 0, or the first has. */
const layoutCall: CallSizes = { batch: 2, sequence: 3, past: 0 };

/**
 * Reads heads back to their source.
 *
 * @param heads - [batch, heads, tokens, width] or with the last two axes exchanged; leading axes may be
 * merged or split
 * @param headOrder - which of them
 * @param split - for `bshd`, where heads may be [batch, tokens, heads * width]
 * @returns undefined when the way back is no such map
 */
export function readHeads(
  heads: Value,
  headOrder: HeadOrder,
  context: HeadContext,
  split?: HeadSplit,
): HeadMap | undefined {
  const found = dominators(heads, context.order, (node) => linearInputs(node, context.books));
  for (const { value, nodes } of [...found].reverse()) {
    const map = tried(heads, headOrder, { value, nodes }, context, split);
    if (map !== undefined) return map;
  }
  return tried(heads, headOrder, { value: heads, nodes: new Set() }, context, split);
}

/** Tries one source, unless one that leads to its heads in the same way has been tried. */
function tried(
  heads: Value,
  headOrder: HeadOrder,
  { value, nodes }: Dominator,
  { books, known }: HeadContext,
  split: HeadSplit | undefined,
): HeadMap | undefined {
  const way = wayOf(heads, value, nodes);
  const types = [value, heads].map(({ dtype, shape }) => `${dtype}[${shape}]`).join();
  const key =
    way === undefined
      ? undefined
      : `${headOrder} ${split?.heads} ${split?.width} ${types} ${value.weight === undefined} ${way}`;
  if (key !== undefined && known.has(key)) {
    const map = known.get(key);
    return map && { ...map, source: value, nodes };
  }
  const map = new Trial(heads, headOrder, value, nodes, books, split).read();
  if (key !== undefined) known.set(key, map);
  return map;
}

/** Inputs through which a node passes data on linearly; undefined for any other node. */
function linearInputs(node: Node, books: Bookkeeping): readonly Value[] | undefined {
  const given = node.inputs.filter((input) => input !== undefined);
  const data = given.filter((input) => !books.has(input));
  const [first] = node.inputs;
  if (first === undefined || data.length === 0) return undefined;
  if (node.op === 'RotaryEmbedding') return data.length === 1 ? data : undefined;
  if (node.domain !== '') return undefined;
  switch (node.op) {
    case 'Add':
    case 'Sub':
    case 'Concat':
      return data.length === given.length ? data : undefined;
    case 'Where':
      return data.length === 2 && !data.includes(first) ? data : undefined;
    case 'Mul':
      return data.length === 1 ? data : undefined;
    case 'Div':
    case 'Neg':
    case 'Identity':
    case 'Cast':
    case 'Reshape':
    case 'Squeeze':
    case 'Unsqueeze':
    case 'Flatten':
    case 'Transpose':
    case 'Slice':
    case 'Split':
    case 'Gather':
    case 'Expand':
    case 'Tile':
      return data.length === 1 && data[0] === first ? data : undefined;
    default:
      return undefined;
  }
}

/** One candidate source. */
class Trial {
  private readonly heads: Value;
  private readonly headOrder: HeadOrder;
  private readonly source: Value;
  private readonly nodes: ReadonlySet<Node>;
  private readonly books: Bookkeeping;
  private readonly split: HeadSplit | undefined;

  constructor(
    heads: Value,
    headOrder: HeadOrder,
    source: Value,
    nodes: ReadonlySet<Node>,
    books: Bookkeeping,
    split: HeadSplit | undefined,
  ) {
    this.heads = heads;
    this.headOrder = headOrder;
    this.source = source;
    this.nodes = nodes;
    this.books = books;
    this.split = split;
  }

  read(): HeadMap | undefined {
    const { source } = this;
    if (source.dtype !== 'f32' || this.heads.dtype !== 'f32' || source.weight !== undefined)
      return undefined;
    const count = this.headCount();
    const ones = this.run(layoutCall, 'first', () => 1);
    const numbered = this.run(layoutCall, 'first', (index) => index + 1);
    if (count === undefined || ones === undefined || numbered === undefined) return undefined;
    // with one token, its axis could be anywhere
    if (ones.tokens < 2 && !this.hasOneToken()) return undefined;
    const scale = ones.at(0, 0, 0, 0);
    if (scale === 0 || !Number.isFinite(scale)) return undefined;
    const trial = this.run(trialCall, 'counted', () => 1);
    if (trial === undefined) return undefined;
    const indexOf = (b: number, h: number, t: number, j: number): number =>
      numbered.at(b, h, t, j) / scale - 1;
    // where positions are counted in the graph, only the first token tells the layout
    const tokens = ones.all((value) => close(value, scale)) ? ones.tokens : 1;
    const turns = !trial.all((value) => close(value, scale));
    const layout = layoutOf(indexOf, { heads: count, tokens }, ones);
    if (layout === undefined) return undefined;
    const rotary = turns ? this.rotary(layout, scale) : undefined;
    if (turns && rotary === undefined) return undefined;
    const map: HeadMap = { source, ...layout, scale, rotary, nodes: this.nodes };
    return this.verified(map) ? map : undefined;
  }

  /** Whether there is one token in every call. */
  private hasOneToken(): boolean {
    return this.heads.shape?.at(this.headOrder === 'bhds' ? -1 : -2) === 1;
  }

  /** Heads read: the product of the leading axes without the batch. */
  private headCount(): number | undefined {
    if (this.split !== undefined) return this.split.heads;
    const lead = multiplyDims(...(this.heads.shape ?? []).slice(0, -2));
    const count = divideDims(lead, this.books.batch);
    return typeof count === 'number' ? count : undefined;
  }

  /** Feeds numbers by index and returns what arrives at the heads. */
  private run(
    call: CallSizes,
    positions: 'first' | 'counted',
    valueOf: (index: number) => number,
  ): Arrived | undefined {
    const { books, source, heads } = this;
    const inputs = books.call(call);
    const shape = knownShape(source.shape, inputs.sizes);
    const target = knownShape(heads.shape, inputs.sizes);
    if (shape === undefined || target === undefined || target.length < 3) return undefined;
    const fed = tensor(
      'f32',
      shape,
      Float32Array.from({ length: elementCount(shape) }, (_, i) => valueOf(i)),
    );
    const given = new Map([...inputs.given, [source, fed]]);
    if (positions === 'first')
      for (const [value, contents] of inputs.given)
        if (/position/.test(value.name))
          given.set(value, filled(contents.dtype, contents.shape, 0));
    const got = probe(books.model, heads, { sizes: inputs.sizes, given });
    if (got === undefined) return undefined;
    const batch = knownShape([books.batch], inputs.sizes)?.[0] ?? 1;
    return new Arrived(
      Float64Array.from(readNumbers(got)),
      target,
      batch,
      this.headOrder,
      elementCount(shape),
      this.split,
    );
  }

  private rotary(layout: Layout, scale: number): RotaryMap | undefined {
    const call = trialCall;
    const columns = layout.order === 'bhsd' ? layout.width : layout.columns;
    const places = headColumns(
      layout.order === 'bhsd'
        ? { ...layout, places: layout.places.slice(0, layout.width) }
        : layout,
    );
    const columnsAt = (index: number): number => places.get(index % columns) ?? -1;
    const first = this.run(call, 'counted', (index) => (columnsAt(index) === 0 ? 1 : 0));
    if (first === undefined || first.batch !== 1) return undefined;
    const last = first.tokens - 1;
    const reached = Array.from({ length: layout.width }, (_, j) => j).filter(
      (j) => j > 0 && Math.abs(first.at(0, 0, last, j)) > 1e-6,
    );
    const [partner] = reached;
    if (partner === undefined || reached.length !== 1) return undefined;
    const interleaved = partner === 1;
    const dims = interleaved ? this.interleavedDims(call, layout, columnsAt) : 2 * partner;
    const pairs = dims / 2;
    const isFirst = (j: number): boolean =>
      j >= 0 && j < dims && (interleaved ? j % 2 === 0 : j < pairs);
    const turned = this.run(call, 'counted', (index) => (isFirst(columnsAt(index)) ? 1 : 0));
    if (turned === undefined || dims > layout.width || !Number.isInteger(pairs)) return undefined;
    const cos = new Float64Array(turned.tokens * pairs);
    const sin = new Float64Array(turned.tokens * pairs);
    for (let t = 0; t < turned.tokens; t++)
      for (let i = 0; i < pairs; i++) {
        cos[t * pairs + i] = turned.at(0, 0, t, interleaved ? 2 * i : i) / scale;
        sin[t * pairs + i] = turned.at(0, 0, t, interleaved ? 2 * i + 1 : pairs + i) / scale;
      }
    return { dims, interleaved, cos, sin, tables: this.tables() };
  }

  /** With neighbouring pairs, the turned columns end where even ones reach their neighbours no more. */
  private interleavedDims(
    call: CallSizes,
    { width }: Layout,
    columnAt: (index: number) => number,
  ): number {
    const even = this.run(call, 'counted', (index) => (columnAt(index) % 2 === 0 ? 1 : 0));
    let dims = 2;
    for (let j = 0; j + 1 < width; j += 2)
      for (let t = 0; t < (even?.tokens ?? 0); t++)
        if (even?.at(0, 0, t, j + 1) !== 0) dims = Math.max(dims, j + 2);
    return dims;
  }

  /** Float bookkeeping that enters between source and heads. */
  private tables(): readonly Value[] {
    const found = new Set<Value>();
    for (const node of this.nodes)
      for (const input of node.inputs)
        if (
          input !== undefined &&
          input.dtype === 'f32' &&
          this.books.has(input) &&
          (input.shape?.length ?? 0) >= 2
        )
          found.add(input);
    return [...found];
  }

  /** Whether random numbers arrive as the map says, in a call with tokens before when there are any. */
  private verified(map: HeadMap): boolean {
    const past = this.books.hasPast ? 4 : 0;
    const random = (index: number): number => Math.fround(Math.sin(index * 12.9898 + 1) * 2);
    const got = this.run({ batch: 2, sequence: 5, past }, 'counted', random);
    if (got === undefined) return false;
    const { batch, tokens } = got;
    const { heads, width, scale, rotary } = map;
    const wanted = new Float64Array(batch * heads * tokens * width);
    for (let b = 0, at = 0; b < batch; b++)
      for (let h = 0; h < heads; h++)
        for (let t = 0; t < tokens; t++)
          for (let j = 0; j < width; j++, at++)
            wanted[at] = scale * random(sourceIndex(map, { batch, tokens }, b, h, t, j));
    if (rotary !== undefined)
      rotate(wanted, batch, heads, tokens, width, {
        cos: rotary.cos,
        sin: rotary.sin,
        pairs: rotary.dims / 2,
        interleaved: rotary.interleaved,
        rowOf: (_, position) => past + position,
      });
    const repeats = got.heads / heads;
    for (let b = 0; b < batch; b++)
      for (let h = 0; h < got.heads; h++)
        for (let t = 0; t < tokens; t++)
          for (let j = 0; j < width; j++) {
            const from = ((b * heads + Math.floor(h / repeats)) * tokens + t) * width + j;
            if (Math.abs(got.at(b, h, t, j) - (wanted[from] ?? NaN)) > 1e-4 * Math.abs(scale))
              return false;
          }
    return true;
  }
}

interface Sizes {
  readonly batch: number;
  readonly tokens: number;
}

/** Numbers that arrived at the heads, by batch, head, token and column. */
class Arrived {
  readonly batch: number;
  readonly heads: number;
  readonly tokens: number;
  readonly width: number;
  /** Elements that were fed. */
  readonly fed: number;
  private readonly data: Float64Array;
  private readonly order: HeadOrder;

  constructor(
    data: Float64Array,
    shape: readonly number[],
    batch: number,
    order: HeadOrder,
    fed: number,
    split: HeadSplit | undefined,
  ) {
    this.data = data;
    this.order = order;
    this.batch = batch;
    this.fed = fed;
    const [second = 1, last = 1] = shape.slice(-2);
    if (split !== undefined) {
      this.heads = split.heads;
      this.width = split.width;
      this.tokens = data.length / (batch * split.heads * split.width);
    } else {
      this.tokens = order === 'bhsd' ? second : last;
      this.width = order === 'bhsd' ? last : second;
      this.heads = data.length / (batch * second * last);
    }
  }

  at(b: number, h: number, t: number, j: number): number {
    const { heads, tokens, width } = this;
    if (this.order === 'bshd') return this.data[((b * tokens + t) * heads + h) * width + j] ?? NaN;
    if (this.order === 'sbhd')
      return this.data[((t * this.batch + b) * heads + h) * width + j] ?? NaN;
    const plane = (b * heads + h) * tokens * width;
    return this.data[plane + (this.order === 'bhsd' ? t * width + j : j * tokens + t)] ?? NaN;
  }

  all(test: (value: number) => boolean): boolean {
    return this.data.every(test);
  }
}

/** Whether the heads are columns of a row in a row. */
export function isInOrder({ places }: HeadMap): boolean {
  return places.every((place, index) => place === index + (places[0] ?? 0));
}

type Layout = Pick<HeadMap, 'order' | 'places' | 'columns' | 'heads' | 'width'>;

/** Element of the source that a place of the heads reads. */
function sourceIndex(
  { order, places, columns, heads, width }: Layout,
  { batch, tokens }: Sizes,
  b: number,
  h: number,
  t: number,
  j: number,
): number {
  if (order === 'bhsd') return ((b * heads + h) * tokens + t) * width + j;
  const row = order === 'bsc' ? b * tokens + t : t * batch + b;
  return row * columns + (places[h * width + j] ?? 0);
}

/** Column of its head that each column of a row is; absent where a row holds something else. */
function headColumns({ places, width }: Layout): ReadonlyMap<number, number> {
  return new Map(places.map((place, index) => [place, index % width]));
}

/** The layout that explains where indices arrived. */
function layoutOf(
  indexOf: (b: number, h: number, t: number, j: number) => number,
  seen: { readonly heads: number; readonly tokens: number },
  arrived: Arrived,
): Layout | undefined {
  const { batch, width, fed } = arrived;
  const tokens = arrived.tokens;
  const distinct = new Set<number>();
  for (let h = 0; h < seen.heads; h++) distinct.add(Math.round(indexOf(0, h, 0, 0)));
  const heads = distinct.size;
  if (seen.heads % heads !== 0) return undefined;
  const repeats = seen.heads / heads;
  const columns = fed / (batch * tokens);
  // the first token of the first sequence is the first row
  const places = Array.from({ length: heads * width }, (_, index) =>
    Math.round(indexOf(0, Math.floor(index / width) * repeats, 0, index % width)),
  );
  const whole = places.map((_, index) => index);
  const candidates: readonly Layout[] = [
    { order: 'bsc', places, columns, heads, width },
    { order: 'sbc', places, columns, heads, width },
    { order: 'bhsd', places: whole, columns: heads * width, heads, width },
  ];
  return candidates.find((layout) => {
    if (!Number.isInteger(layout.columns) || fed !== batch * tokens * layout.columns) return false;
    if (layout.places.some((place) => place < 0 || place >= layout.columns)) return false;
    for (let b = 0; b < batch; b++)
      for (let h = 0; h < seen.heads; h++)
        for (let t = 0; t < seen.tokens; t++)
          for (let j = 0; j < width; j++) {
            const wanted = sourceIndex(layout, { batch, tokens }, b, Math.floor(h / repeats), t, j);
            if (Math.abs(indexOf(b, h, t, j) - wanted) > 0.01 + 1e-6 * wanted) return false;
          }
    return true;
  });
}

function close(a: number, b: number): boolean {
  return Math.abs(a - b) <= 1e-5 * Math.abs(b);
}
