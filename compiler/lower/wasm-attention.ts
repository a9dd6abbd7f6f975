/**
 * Attention for the WASM engine: norms of heads, rotary embedding, the KV cache and the attention
 * kernel, over q, k and v where the linear layers left them.
 *
 *   q [B, S, H*D] (or q, k, v packed in one row), k, v [B, S, KV*D]
 *   NORM heads in place -> ROTARY in place -> APPEND k, v to [KV, context, D] -> ATTENTION
 */
import type { ParameterName } from '../../runtime/wasm/step.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { Dim } from '../ir/dim.ts';
import { addDims, multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { AttentionAttributes } from '../ops/fused-attention.ts';
import { attentionInputs, readAttention } from '../ops/fused-attention.ts';
import type { Address, Word } from './plan.ts';
import { addressOf, P, shifted } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { f32, Unsupported } from './wasm-context.ts';
import { broadcastTo, move } from './wasm-movement.ts';

/** Heads in rows: `row` bytes from token to token. */
interface Heads {
  readonly at: Address;
  readonly row: number;
  readonly count: number;
  readonly tokens: Dim;
}

/** Lowers fettle.Attention. */
export function lowerAttention(lowering: Lowering, node: Node): void {
  const given = readAttention(node);
  // the kernel reads four columns at a time: other heads are copied with zeros behind them
  const attributes = { ...given, headSize: Math.ceil(given.headSize / 4) * 4 };
  const { heads, kvHeads, headSize } = attributes;
  if (headSize > 256) throw new Unsupported(`heads of ${headSize} columns (256 at most)`);
  const input = (name: keyof typeof attentionInputs): Value | undefined =>
    node.inputs[attentionInputs[name]];
  const q = node.input(attentionInputs.q);
  const [batch = 1, queries = 1] = lowering.shapeOf(q);
  const plain = headRows(lowering, given, q, input('k'), input('v'));
  turnHeads(lowering, node, given, plain, batch);
  const padded = (part: Heads): Heads =>
    headSize === given.headSize ? part : padHeads(lowering, part, batch, given.headSize, headSize);
  const rows = { q: padded(plain.q), k: padded(plain.k), v: padded(plain.v) };
  const past = input('pastKey');
  const half = past !== undefined && isHalf(lowering, past);
  const cached = past === undefined ? undefined : cacheOf(lowering, node, attributes, batch, half);
  const keys = addDims(cached === undefined ? 0 : P, rows.k.tokens);
  const [k, v] =
    cached === undefined
      ? [directly(rows.k, headSize), directly(rows.v, headSize)]
      : [
          append(lowering, rows.k, cached[0], headSize, half),
          append(lowering, rows.v, cached[1], headSize, half),
        ];
  const y = lowering.output(node);
  const wide =
    headSize === given.headSize
      ? y
      : lowering.fresh(`${node.name} padded`, [batch, queries, heads * headSize]);
  lowering.emit(
    'ATTENTION',
    {
      Q: rows.q.at,
      QTOKEN: rows.q.row,
      QBATCH: multiplyDims(rows.q.row, queries),
      K: k.at,
      KTOKEN: k.token,
      KHEAD: k.head,
      KBATCH: k.batch,
      V: v.at,
      VTOKEN: v.token,
      VHEAD: v.head,
      VBATCH: v.batch,
      KVTYPE: half ? abi.TYPE_F16 : abi.TYPE_F32,
      Y: wide.address,
      YTOKEN: heads * headSize * 4,
      YBATCH: multiplyDims(heads * headSize * 4, queries),
      BATCH: batch,
      QUERIES: queries,
      KEYS: keys,
      HEADS: heads,
      KVHEADS: kvHeads,
      SIZE: headSize,
      VSIZE: headSize,
      SCALE: f32(attributes.scale),
      CAUSAL: attributes.causal ? 1 : 0,
      PAST: cached === undefined ? 0 : P,
      WINDOW: attributes.window,
      SOFTCAP: attributes.softcap === 0 ? 0 : f32(attributes.softcap),
      ...maskWords(lowering, input('mask'), keys, batch),
      ...biasWords(lowering, input('bias'), [batch, heads, queries, keys]),
      SINKS: lowering.optional(input('sinks')),
    },
    {
      why:
        cached === undefined
          ? 'keys and values where they are'
          : `cache in ${half ? 'f16' : 'f32'} per head`,
      inPlace: [],
    },
  );
  if (wide === y) return;
  move(
    lowering,
    [multiplyDims(batch, queries, heads), given.headSize],
    { place: wide, strides: [headSize, 1] },
    { place: y, strides: [given.headSize, 1] },
    'heads without their padding',
  );
}

/** Copies heads into rows where each has `to` columns, the last ones 0. */
function padHeads(
  lowering: Lowering,
  { at, row, count, tokens }: Heads,
  batch: Dim,
  from: number,
  to: number,
): Heads {
  const shape = [multiplyDims(batch, tokens), count];
  const wide = lowering.fresh('padded heads', [...shape, to]);
  lowering.emit('FILL', {
    Y: wide.address,
    COUNT: multiplyDims(...wide.shape),
    ELEMENT: 4,
    VALUE: 0,
    HIGH: 0,
  });
  move(
    lowering,
    [...shape, from],
    {
      place: { address: at, shape: [], type: 'f32', segment: lowering.segment },
      strides: [row / 4, from, 1],
    },
    { place: wide, strides: [count * to, to, 1] },
    `heads of ${from} columns in ${to}`,
  );
  return { at: wide.address, row: count * to * 4, count, tokens };
}

function headRows(
  lowering: Lowering,
  { heads, kvHeads, headSize }: AttentionAttributes,
  q: Value,
  k: Value | undefined,
  v: Value | undefined,
): { readonly q: Heads; readonly k: Heads; readonly v: Heads } {
  const part = (value: Value, count: number): Heads => {
    const place = lowering.floats(value);
    return { at: place.address, row: count * headSize * 4, count, tokens: place.shape[1] ?? 1 };
  };
  if (k !== undefined && v !== undefined)
    return { q: part(q, heads), k: part(k, kvHeads), v: part(v, kvHeads) };
  const place = lowering.floats(q);
  const row = (heads + 2 * kvHeads) * headSize * 4;
  const packed = (from: number, count: number): Heads => ({
    at: shifted(place.address, from * headSize * 4),
    row,
    count,
    tokens: place.shape[1] ?? 1,
  });
  return { q: packed(0, heads), k: packed(heads, kvHeads), v: packed(heads + kvHeads, kvHeads) };
}

/** Norms and rotates q and k where they are; nothing else reads them. */
function turnHeads(
  lowering: Lowering,
  node: Node,
  { headSize, normEpsilon, rotaryDims, interleaved }: AttentionAttributes,
  rows: { readonly q: Heads; readonly k: Heads },
  batch: Dim,
): void {
  const input = (name: keyof typeof attentionInputs): Value | undefined =>
    node.inputs[attentionInputs[name]];
  const gains = [input('qGain'), input('kGain')] as const;
  if (rotaryDims > 0 || gains[0] !== undefined || gains[1] !== undefined)
    for (const name of ['q', 'k'] as const) checkOwned(node, input(name));
  for (const [index, { at, row, count, tokens }] of [rows.q, rows.k].entries()) {
    const gain = gains[index];
    const all = multiplyDims(batch, tokens);
    if (gain !== undefined)
      lowering.emit(
        'NORM',
        {
          X: at,
          XROW: row,
          Y: at,
          YROW: row,
          ROWS: all,
          HEADS: count,
          N: headSize,
          KIND: 0,
          EPSILON: f32(normEpsilon),
          GAIN: lowering.floats(gain).address,
          BIAS: 0,
          SKIP: 0,
          SKIPBIAS: 0,
          SUM: 0,
        },
        { why: 'norm of each head, in place' },
      );
  }
  if (rotaryDims === 0) return;
  const [cos, sin] = [input('cos'), input('sin')];
  if (cos === undefined || sin === undefined) throw new Unsupported('rotary tables are absent');
  const tables = {
    SIZE: headSize,
    DIMS: rotaryDims,
    INTERLEAVED: interleaved ? 1 : 0,
    ...rotaryTables(lowering, cos, sin, input('positions')),
    PAST: input('pastKey') === undefined ? 0 : P,
  };
  const { q, k } = rows;
  // q and k of one packed row are neighbours: one step turns both
  const joined = input('k') === undefined;
  const parts = joined ? [{ ...q, count: q.count + k.count }] : [q, k];
  for (const { at, row, count, tokens } of parts)
    lowering.emit(
      'ROTARY',
      {
        X: at,
        XROW: row,
        Y: at,
        YROW: row,
        ROWS: multiplyDims(batch, tokens),
        HEADS: count,
        SEQUENCE: tokens,
        ...tables,
      },
      { why: joined ? 'q and k together, in place' : 'in place' },
    );
}

/** Refuses to change a value in place that somebody else reads. */
function checkOwned(node: Node, value: Value | undefined): void {
  if (value === undefined) return;
  const shared = value.users.size > 1 || value.isOutput || value.producer === undefined;
  if (shared)
    throw new Unsupported(`${node.describe()} turns "${value.name}" in place, which others read`);
}

/** Words of a rotary step about its tables and positions. */
function rotaryTables(
  lowering: Lowering,
  cos: Value,
  sin: Value,
  positions: Value | undefined,
): Pick<
  Record<ParameterName<'ROTARY'>, Word>,
  'COS' | 'SIN' | 'TABLEROWS' | 'POSITIONS' | 'POSITIONTYPE'
> {
  return {
    COS: lowering.floats(cos).address,
    SIN: lowering.floats(sin).address,
    TABLEROWS: lowering.shapeOf(cos)[0] ?? 1,
    POSITIONS: positions === undefined ? 0 : lowering.ints(positions).address,
    POSITIONTYPE: abi.TYPE_I32,
  };
}

/** Whether a cache is kept in f16. */
function isHalf(lowering: Lowering, past: Value): boolean {
  const { kv } = lowering.sizes;
  return kv === 'source' ? past.dtype === 'f16' : kv === 'f16';
}

/** The caches of a node: [kvHeads, context, D] each. */
function cacheOf(
  lowering: Lowering,
  node: Node,
  { kvHeads, headSize }: AttentionAttributes,
  batch: Dim,
  half: boolean,
): readonly [Address, Address] {
  if (batch !== 1) throw new Unsupported(`a KV cache of ${batch} sequences`);
  const bytes = kvHeads * lowering.sizes.context * headSize * (half ? 2 : 4);
  const { pastKey, pastValue } = attentionInputs;
  return [cache(lowering, node, pastKey, 1, bytes), cache(lowering, node, pastValue, 2, bytes)];
}

function cache(
  lowering: Lowering,
  node: Node,
  index: number,
  present: number,
  bytes: number,
): Address {
  const past = node.input(index);
  const output = lowering.caches.get(past.name);
  const made = node.outputs[present];
  if (output === undefined || made === undefined || output !== made.name)
    throw new Unsupported(`"${past.name}" is no cache whose next state is "${made?.name}"`);
  return addressOf(lowering.cache(past.name, bytes));
}

interface Keys {
  readonly at: Address;
  readonly token: Dim;
  readonly head: Dim;
  readonly batch: Dim;
}

function directly({ at, row, tokens }: Heads, headSize: number): Keys {
  return { at, token: row, head: headSize * 4, batch: multiplyDims(row, tokens) };
}

/** Writes new rows behind the cached ones. */
function append(
  lowering: Lowering,
  rows: Heads,
  to: Address,
  headSize: number,
  half: boolean,
): Keys {
  const token = headSize * (half ? 2 : 4);
  const head = lowering.sizes.context * token;
  lowering.emit(
    'APPEND',
    {
      X: rows.at,
      XTOKEN: rows.row,
      XBATCH: 0,
      Y: to,
      YTOKEN: token,
      YHEAD: head,
      YBATCH: 0,
      BATCH: 1,
      TOKENS: rows.tokens,
      HEADS: rows.count,
      SIZE: headSize,
      TYPE: half ? abi.TYPE_F16 : abi.TYPE_F32,
      POSITION: P,
    },
    { why: 'new rows of the cache' },
  );
  return { at: to, token, head, batch: 0 };
}

function maskWords(
  lowering: Lowering,
  mask: Value | undefined,
  keys: Dim,
  batch: Dim,
): { readonly MASK: Word; readonly MASKTYPE: number; readonly MASKROW: Word } {
  if (mask === undefined) return { MASK: 0, MASKTYPE: abi.TYPE_I32, MASKROW: 0 };
  const place = lowering.ints(mask);
  const [rows] = place.shape;
  return {
    MASK: place.address,
    MASKTYPE: abi.TYPE_I32,
    MASKROW: rows === 1 && batch !== 1 ? 0 : multiplyDims(4, keys),
  };
}

function biasWords(
  lowering: Lowering,
  bias: Value | undefined,
  [batch, heads, queries, keys]: readonly [Dim, Dim, Dim, Dim],
): Record<'BIAS' | 'BIASBATCH' | 'BIASHEAD' | 'BIASQUERY', Word> {
  if (bias === undefined) return { BIAS: 0, BIASBATCH: 0, BIASHEAD: 0, BIASQUERY: 0 };
  let place: Place = lowering.floats(bias);
  let shape = [...Array.from({ length: 4 - place.shape.length }, () => 1), ...place.shape];
  // the kernel reads keys one after the other
  if (shape[3] !== keys) {
    const wanted = [...shape.slice(0, 3), keys];
    place = broadcastTo(lowering, { ...place, shape }, wanted);
    shape = wanted;
  }
  const bytes = (axis: number, full: Dim): Dim =>
    shape[axis] === 1 && full !== 1 ? 0 : multiplyDims(4, ...shape.slice(axis + 1));
  return {
    BIAS: place.address,
    BIASBATCH: bytes(0, batch),
    BIASHEAD: bytes(1, heads),
    BIASQUERY: bytes(2, queries),
  };
}
