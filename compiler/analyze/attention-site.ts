/**
 * One attention of a graph, before it is known how its heads come about: spread over nodes around a
 * softmax, or one op that exporters write (ONNX 23, onnxruntime's contrib ops).
 *
 * Source: https://onnx.ai/onnx/operators/onnx__Attention.html; com.microsoft GroupQueryAttention and
 * MultiHeadAttention in onnxruntime's ContribOperators.md.
 */
import type { Node, Value } from '../ir/graph.ts';
import { divideDims } from '../ir/dim.ts';
import type { Bias, Hiding, Obstacle, Scores } from './attention-scores.ts';
import type { Bookkeeping } from './bookkeeping.ts';
import type { HeadOrder, HeadSplit } from './head-map.ts';
import { probe } from './probe.ts';

/** Heads as the attention reads them. */
export interface SiteHeads {
  /** Queries, keys or values. */
  readonly value: Value;
  /** How their axes lie. */
  readonly order: HeadOrder;
  /** For rows of tokens. */
  readonly split?: HeadSplit;
}

/** One attention. */
export interface Site {
  /** The softmax, or the op. */
  readonly at: Node;
  readonly q: SiteHeads;
  readonly k: SiteHeads;
  readonly v: SiteHeads;
  /** Factor of the scores. */
  readonly scale: number;
  /** 0 for none. */
  readonly softcap: number;
  readonly biases: readonly Bias[];
  readonly hidings: readonly Hiding[];
  /** Logit of a sink per head. */
  readonly sinks: Value | undefined;
  /** Keys that the op itself reads of each sequence. */
  readonly lengths: Value | undefined;
  /** Whether the op itself is causal. */
  readonly causal: boolean;
  /** Keys the op itself lets a query see; 0 for all. */
  readonly window: number;
  /** Padding [batch, keys] the op itself takes. */
  readonly padding: Value | undefined;
  /** A cache that the op itself takes. */
  readonly cache:
    | {
        readonly key: Value;
        readonly value: Value;
        readonly presents: readonly (Value | undefined)[];
      }
    | undefined;
  /** A rotary embedding that the op itself does. */
  readonly rotary:
    | {
        readonly cos: Value;
        readonly sin: Value;
        readonly interleaved: boolean;
        readonly dims: number;
      }
    | undefined;
  /** Norms of heads that the op itself does. */
  readonly gains: readonly [q: Value | undefined, k: Value | undefined];
  readonly epsilon: number | undefined;
  /** Output: heads apart, or rows of tokens. */
  readonly output: Value;
  readonly rows: boolean;
  /** Nodes it is made of. */
  readonly nodes: ReadonlySet<Node>;
}

const none = {
  softcap: 0,
  biases: [],
  hidings: [],
  sinks: undefined,
  lengths: undefined,
  causal: false,
  window: 0,
  padding: undefined,
  cache: undefined,
  rotary: undefined,
  gains: [undefined, undefined],
  epsilon: undefined,
} as const;

/** The attention around a softmax. */
export function siteOfScores(softmax: Node, scores: Scores): Site {
  const { product, mix, keysTransposed, scale, softcap, biases, hidings, sinks, nodes } = scores;
  return {
    ...none,
    at: softmax,
    q: { value: product.input(0), order: 'bhsd' },
    k: { value: product.input(1), order: keysTransposed ? 'bhds' : 'bhsd' },
    v: { value: mix.input(1), order: 'bhsd' },
    scale,
    softcap,
    biases,
    hidings,
    sinks,
    output: mix.output(0),
    rows: false,
    nodes,
  };
}

/** Whether a node is an attention by itself. */
export function isAttentionOp(node: Node): boolean {
  return Object.hasOwn(readers, `${node.domain}.${node.op}`);
}

/** The attention that one op is; why not, when it has a form that the fused op lacks. */
export function siteOfOp(node: Node, books: Bookkeeping): Site | Obstacle {
  const why = readers[`${node.domain}.${node.op}`]?.(node, books) ?? 'it is no attention';
  return typeof why === 'string' ? { why, at: node } : why;
}

type Reader = (node: Node, books: Bookkeeping) => Site | string;

const readers: Readonly<Record<string, Reader>> = {
  '.Attention': onnxAttention,
  'com.microsoft.GroupQueryAttention': groupQueryAttention,
  'com.microsoft.MultiHeadAttention': multiHeadAttention,
};

/** Ops that are an attention by themselves, with the domain in front unless it is ONNX's. */
export const attentionOps: readonly string[] = Object.keys(readers).map((op) =>
  op.replace(/^\./, ''),
);

/** Rows of tokens split into heads; undefined when the sizes do not say it. */
function rowsOf(value: Value | undefined, heads: number): SiteHeads | undefined {
  const width = divideDims(value?.shape?.at(-1) ?? 'unknown', heads);
  return value !== undefined && typeof width === 'number' && Number.isInteger(width)
    ? { value, order: 'bshd', split: { heads, width } }
    : undefined;
}

function biasOf(value: Value | undefined): readonly Bias[] {
  return value === undefined ? [] : [{ value, factor: 1 }];
}

function used(value: Value | undefined): boolean {
  return (value?.useCount ?? 0) > 0;
}

function onnxAttention(node: Node): Site | string {
  const [query, key, value, mask, pastKey, pastValue, lengths] = node.inputs;
  const [y, presentKey, presentValue, matrix] = node.outputs;
  if (query === undefined || key === undefined || value === undefined || y === undefined)
    return 'it lacks an input';
  if (used(matrix)) return 'its scores are used';
  const flat = query.shape?.length === 3;
  const heads = node.int('q_num_heads', 0);
  const kvHeads = node.int('kv_num_heads', 0);
  const read = (x: Value, count: number): SiteHeads | undefined =>
    flat ? rowsOf(x, count) : { value: x, order: 'bhsd' };
  const [q, k, v] = [read(query, heads), read(key, kvHeads), read(value, kvHeads)];
  if (q === undefined || k === undefined || v === undefined) return 'its heads do not fit its rows';
  const width = q.split?.width ?? query.shape?.at(-1);
  if (typeof width !== 'number') return 'the width of its heads is not known';
  const cached = pastKey !== undefined && pastValue !== undefined;
  if (!cached && (used(presentKey) || used(presentValue)))
    return 'it fills a cache that it does not read';
  return {
    ...none,
    at: node,
    q,
    k,
    v,
    scale: node.float('scale', 0) || width ** -0.5,
    softcap: node.float('softcap', 0),
    biases: mask === undefined || mask.dtype === 'bool' ? [] : biasOf(mask),
    hidings: mask?.dtype === 'bool' ? [{ condition: mask, when: false }] : [],
    lengths,
    causal: node.int('is_causal', 0) === 1,
    cache: cached
      ? { key: pastKey, value: pastValue, presents: [presentKey, presentValue] }
      : undefined,
    output: y,
    rows: flat,
    nodes: new Set([node]),
  };
}

function groupQueryAttention(node: Node, books: Bookkeeping): Site | string {
  const [query, key, value, pastKey, pastValue, lengths, total, cos, sin, positions, bias, sinks] =
    node.inputs;
  const [y, presentKey, presentValue, matrix] = node.outputs;
  const heads = node.int('num_heads', 0);
  const kvHeads = node.int('kv_num_heads', 0);
  if (query === undefined || y === undefined || lengths === undefined || total === undefined)
    return 'it lacks an input';
  if (key === undefined || value === undefined) return 'its queries, keys and values are packed';
  if (used(matrix)) return 'its scores are used';
  for (const side of ['k_quant_type', 'v_quant_type'])
    if (node.string(side, 'NONE') !== 'NONE') return 'its cache is quantized';
  if (node.int('smooth_softmax', 0) !== 0) return 'it has a sink without a logit';
  if (!countsTokens(lengths, total, books))
    return 'the lengths of its keys are not those of the call';
  if (positions !== undefined && !books.isDecoder) return 'its positions are given';
  const [q, k, v] = [rowsOf(query, heads), rowsOf(key, kvHeads), rowsOf(value, kvHeads)];
  if (q === undefined || k === undefined || v === undefined) return 'its heads do not fit its rows';
  const turns = node.int('do_rotary', 0) === 1;
  const pairs = cos?.shape?.[1];
  if (
    turns &&
    (cos?.weight === undefined || sin?.weight === undefined || typeof pairs !== 'number')
  )
    return 'its rotary tables are no constants';
  const window = node.int('local_window_size', -1);
  return {
    ...none,
    at: node,
    q,
    k,
    v,
    scale: node.float('scale', 0) || (q.split?.width ?? 1) ** -0.5,
    softcap: node.float('softcap', 0),
    biases: biasOf(bias),
    sinks,
    causal: node.int('causal', 1) !== 0,
    window: Math.max(0, window),
    cache:
      pastKey === undefined || pastValue === undefined
        ? undefined
        : { key: pastKey, value: pastValue, presents: [presentKey, presentValue] },
    rotary:
      turns && cos !== undefined && sin !== undefined
        ? {
            cos,
            sin,
            interleaved: node.int('rotary_interleaved', 0) === 1,
            dims: 2 * Number(pairs),
          }
        : undefined,
    gains: [node.inputs[14], node.inputs[15]],
    epsilon: node.inputs[14] === undefined ? undefined : node.float('qk_norm_epsilon', 1e-6),
    output: y,
    rows: true,
    nodes: new Set([node]),
  };
}

/** Whether the length inputs are what they are when no token is padding. */
function countsTokens(lengths: Value, total: Value, books: Bookkeeping): boolean {
  if (!books.isDecoder || !books.has(lengths) || !books.has(total)) return false;
  return [
    { batch: 1, sequence: 5, past: 0 },
    { batch: 2, sequence: 1, past: 4 },
  ].every((call) => {
    const inputs = books.call(call);
    const keys = call.past + call.sequence;
    const counts = probe(books.model, lengths, inputs);
    const sum = probe(books.model, total, inputs);
    return (
      counts !== undefined &&
      sum !== undefined &&
      [...counts.data].every((count) => Number(count) === keys - 1) &&
      Number(sum.data[0]) === keys
    );
  });
}

function multiHeadAttention(node: Node): Site | string {
  const [query, key, value, bias, padding, scoresBias, pastKey, pastValue] = node.inputs;
  const [y, presentKey, presentValue, matrix] = node.outputs;
  if (query === undefined || y === undefined) return 'it lacks an input';
  if (key === undefined || value === undefined) return 'its queries, keys and values are packed';
  if (bias !== undefined) return 'it adds a bias to its queries, keys and values';
  if (used(matrix)) return 'its scores are used';
  if (padding !== undefined && padding.shape?.length !== 2) return 'its padding is no mask of keys';
  const heads = node.int('num_heads', 0);
  const read = (x: Value): SiteHeads | undefined =>
    x.shape?.length === 4 ? { value: x, order: 'bhsd' } : rowsOf(x, heads);
  const [q, k, v] = [rowsOf(query, heads), read(key), read(value)];
  if (q === undefined || k === undefined || v === undefined) return 'its heads do not fit its rows';
  const cached = pastKey !== undefined && pastValue !== undefined;
  if (!cached && (used(presentKey) || used(presentValue)))
    return 'it fills a cache that it does not read';
  return {
    ...none,
    at: node,
    q,
    k,
    v,
    scale: node.float('scale', 0) || (q.split?.width ?? 1) ** -0.5,
    biases: biasOf(scoresBias),
    causal: node.int('unidirectional', 0) === 1,
    padding,
    cache: cached
      ? { key: pastKey, value: pastValue, presents: [presentKey, presentValue] }
      : undefined,
    output: y,
    rows: true,
    nodes: new Set([node]),
  };
}
