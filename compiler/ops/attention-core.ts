/**
 * Scaled dot-product attention, once for every spelling of it: query groups, causal and window
 * masks, bias, soft capping, sinks; and rotary embeddings.
 *
 * Source: https://arxiv.org/abs/1706.03762; grouped queries https://arxiv.org/abs/2305.13245; rotary
 * https://arxiv.org/abs/2104.09864; attention sinks https://arxiv.org/abs/2309.17453.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Node } from '../ir/graph.ts';
import type { Cost } from './definition.ts';
import { floatsOf, spanOf } from './dense.ts';
import type { Floats } from './gemm.ts';
import { multiply, multiplyRows } from './gemm.ts';
import { broadcastStrides } from './dense.ts';

/** Which intermediate result is wanted beside the output. */
export type Capture = 'scores' | 'capped' | 'biased' | 'probabilities';

/** One attention. Keys and values may lie in a longer buffer. */
export interface AttentionCall {
  /** Sequences. */
  readonly batch: number;
  /** Query heads, a multiple of the key heads. */
  readonly heads: number;
  /** Key and value heads. */
  readonly keyHeads: number;
  /** Queries a sequence. */
  readonly queries: number;
  /** Keys a sequence. */
  readonly keys: number;
  /** Rows of the key and value buffers, at least `keys`. */
  readonly capacity: number;
  /** Width of queries and keys. */
  readonly width: number;
  /** Width of values. */
  readonly valueWidth: number;
  /** Queries. // [batch, heads, queries, width] */
  readonly q: Floats;
  /** Keys. // [batch, keyHeads, capacity, width] */
  readonly k: Floats;
  /** Values. // [batch, keyHeads, capacity, valueWidth] */
  readonly v: Floats;
  /** Factor of the scores. Default 1 / sqrt(width). */
  readonly scale?: number | undefined;
  /** Scores become `cap * tanh(score / cap)` when positive. */
  readonly softcap?: number;
  /** Keys from `first` up to, not including, `end` that a query may see. Default: all. */
  readonly visible?: (batch: number, query: number) => readonly [first: number, end: number];
  /** Added to a score; -Infinity hides the key. */
  readonly bias?: ((batch: number, head: number, query: number, key: number) => number) | undefined;
  /** Logit of a sink that takes part in the softmax of a head and has no value. */
  readonly sink?: ((head: number) => number) | undefined;
  /** Wanted intermediate result. */
  readonly capture?: Capture | undefined;
}

/** What {@link attend} computes. */
export interface AttentionResult {
  /** // [batch, heads, queries, valueWidth] */
  readonly values: Float64Array;
  /** The captured result, when one was asked for. // [batch, heads, queries, keys] */
  readonly captured: Float64Array | undefined;
}

/** Attention. A query that sees no key gets zeros. */
export function attend(call: AttentionCall): AttentionResult {
  const { batch, heads, keyHeads, queries, keys, capacity, width, valueWidth } = call;
  const scores = new Float64Array(queries * keys);
  const values = new Float64Array(batch * heads * queries * valueWidth);
  const captured =
    call.capture === undefined ? undefined : new Float64Array(batch * heads * queries * keys);
  const scale = call.scale ?? 1 / Math.sqrt(width);
  for (let b = 0; b < batch; b++)
    for (let head = 0; head < heads; head++) {
      const group = b * keyHeads + Math.floor((head * keyHeads) / heads);
      const index = b * heads + head;
      const take = (stage: Capture): void => {
        if (call.capture === stage) captured?.set(scores, index * scores.length);
      };
      multiplyRows(
        queries,
        keys,
        width,
        { data: call.q, offset: index * queries * width },
        { data: call.k, offset: group * capacity * width },
        { data: scores, offset: 0 },
      );
      for (let i = 0; i < scores.length; i++) scores[i] = (scores[i] as number) * scale;
      take('scores');
      if (call.softcap !== undefined && call.softcap > 0) softcap(scores, call.softcap);
      take('capped');
      addBias(call, scores, b, head);
      take('biased');
      softmaxRows(scores, keys, call.sink?.(head));
      take('probabilities');
      multiply(
        queries,
        valueWidth,
        keys,
        { data: scores, offset: 0 },
        { data: call.v, offset: group * capacity * valueWidth },
        { data: values, offset: index * queries * valueWidth },
      );
    }
  return { values, captured };
}

function softcap(scores: Float64Array, cap: number): void {
  for (let i = 0; i < scores.length; i++) scores[i] = cap * Math.tanh((scores[i] as number) / cap);
}

function addBias(call: AttentionCall, scores: Float64Array, b: number, head: number): void {
  const { queries, keys, bias, visible } = call;
  for (let query = 0; query < queries; query++) {
    const row = query * keys;
    const [first, end] = visible?.(b, query) ?? [0, keys];
    for (let key = 0; key < keys; key++) {
      if (key < first || key >= end) scores[row + key] = -Infinity;
      else if (bias !== undefined)
        scores[row + key] = (scores[row + key] as number) + bias(b, head, query, key);
    }
  }
}

/** Softmax of every row in place; rows without any finite score become zeros. */
function softmaxRows(scores: Float64Array, length: number, sink: number | undefined): void {
  for (let row = 0; row < scores.length; row += length) {
    let largest = sink ?? -Infinity;
    for (let i = row; i < row + length; i++) largest = Math.max(largest, scores[i] as number);
    let sum = 0;
    for (let i = row; i < row + length; i++) {
      const power = largest === -Infinity ? 0 : Math.exp((scores[i] as number) - largest);
      scores[i] = power;
      sum += power;
    }
    if (sink !== undefined) sum += Math.exp(sink - largest);
    if (sum !== 0) for (let i = row; i < row + length; i++) scores[i] = (scores[i] as number) / sum;
  }
}

/**
 * Splits heads: `[batch, length, stride]` to `[batch, heads, length, width]`.
 *
 * @param from - first column of head 0 within a row
 * @param stride - columns of a row. Default heads * width
 * @param headStride - columns from one head to the next. Default width
 */
export function splitHeads(
  data: Floats,
  batch: number,
  length: number,
  heads: number,
  width: number,
  from = 0,
  stride: number = heads * width,
  headStride: number = width,
): Float64Array {
  const result = new Float64Array(batch * heads * length * width);
  let at = 0;
  for (let b = 0; b < batch; b++)
    for (let head = 0; head < heads; head++)
      for (let row = 0; row < length; row++) {
        const start = (b * length + row) * stride + from + head * headStride;
        for (let i = 0; i < width; i++) result[at++] = data[start + i] as number;
      }
  return result;
}

/** Joins heads: `[batch, heads, length, width]` to `[batch, length, heads * width]`. */
export function joinHeads(
  data: Floats,
  batch: number,
  heads: number,
  length: number,
  width: number,
): Float64Array {
  const result = new Float64Array(data.length);
  let at = 0;
  for (let b = 0; b < batch; b++)
    for (let row = 0; row < length; row++)
      for (let head = 0; head < heads; head++) {
        const start = ((b * heads + head) * length + row) * width;
        for (let i = 0; i < width; i++) result[at++] = data[start + i] as number;
      }
  return result;
}

/**
 * Writes new rows behind old ones into buffers of `capacity` rows; the rest is zeros.
 *
 * @param planes - batch * heads
 * @param pastOf - old rows of a plane
 * @param past - // [planes, pastCapacity, width]
 * @param fresh - // [planes, length, width]
 * @returns // [planes, capacity, width]
 */
export function appendRows(
  planes: number,
  width: number,
  capacity: number,
  pastOf: (plane: number) => number,
  past: Floats | undefined,
  fresh: Floats,
): Float64Array {
  const result = new Float64Array(planes * capacity * width);
  const pastStride = (past?.length ?? 0) / Math.max(1, planes);
  const length = fresh.length / Math.max(1, planes);
  for (let plane = 0; plane < planes; plane++) {
    const old = pastOf(plane) * width;
    const start = plane * capacity * width;
    if (past !== undefined)
      result.set(past.subarray(plane * pastStride, plane * pastStride + old), start);
    const room = capacity * width - old;
    result.set(
      fresh.subarray(plane * length, plane * length + Math.min(length, room)),
      start + old,
    );
  }
  return result;
}

/** A bias of a shape that broadcasts to `[batch, heads, queries, keys]`; bool tensors hide where false. */
export function biasOf(tensor: Tensor | undefined): AttentionCall['bias'] {
  if (tensor === undefined) return undefined;
  const data = floatsOf(tensor);
  const [sb = 0, sh = 0, sq = 0, sk = 0] = broadcastStrides(tensor.shape, 4);
  if (tensor.dtype === 'bool')
    return (b, h, q, k) => (data[b * sb + h * sh + q * sq + k * sk] === 0 ? -Infinity : 0);
  return (b, h, q, k) => data[b * sb + h * sh + q * sq + k * sk] ?? 0;
}

/** Rotary embedding tables: `cos` and `sin` of `[rows, pairs]`. */
export interface RotaryTables {
  /** Cosines. */
  readonly cos: Floats;
  /** Sines. */
  readonly sin: Floats;
  /** Rotated pairs a head; the rest of a head stays. */
  readonly pairs: number;
  /** Whether a pair is two neighbours instead of elements of two halves. */
  readonly interleaved: boolean;
  /** Row of the tables for a query. */
  readonly rowOf: (batch: number, position: number) => number;
}

/** Rotates heads in place. // x: [batch, heads, length, width] */
export function rotate(
  x: Floats,
  batch: number,
  heads: number,
  length: number,
  width: number,
  tables: RotaryTables,
): void {
  const { cos, sin, pairs, interleaved, rowOf } = tables;
  for (let b = 0; b < batch; b++)
    for (let position = 0; position < length; position++) {
      const row = rowOf(b, position) * pairs;
      for (let head = 0; head < heads; head++) {
        const start = ((b * heads + head) * length + position) * width;
        for (let pair = 0; pair < pairs; pair++) {
          const first = start + (interleaved ? 2 * pair : pair);
          const second = start + (interleaved ? 2 * pair + 1 : pairs + pair);
          const [a, c] = [x[first] ?? 0, x[second] ?? 0];
          const [cosine, sine] = [cos[row + pair] ?? 1, sin[row + pair] ?? 0];
          x[first] = a * cosine - c * sine;
          x[second] = a * sine + c * cosine;
        }
      }
    }
}

/** Cost of an attention node whose output 0 is `[..., queries, ...]` and that sees `keys` keys. */
export function attentionCost(
  node: Node,
  shapeOf: (value: NonNullable<Node['inputs'][number]>) => readonly number[],
  keys: number,
): Cost {
  const out = spanOf(shapeOf(node.output()), 0);
  const bytes = [...node.inputs, ...node.outputs].reduce(
    (sum, value) => sum + (value === undefined ? 0 : 4 * spanOf(shapeOf(value), 0)),
    0,
  );
  return { flops: 4 * out * keys, bytes };
}
