/**
 * onnxruntime's GroupQueryAttention: grouped queries with a cache, rotary embedding, local windows,
 * soft capping, sinks and per-head norms in one op.
 *
 * `seqlens_k` is the number of valid keys of a sequence minus one; new keys are written behind the
 * `seqlens_k + 1 - queries` old ones (from row 0 on in a first prompt). Present buffers have
 * `max(rows of past, total_sequence_length)` rows, so a past buffer of full length stays that long.
 *
 * Source: com.microsoft GroupQueryAttention in onnxruntime's ContribOperators.md.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { divideDims, maxDims, multiplyDims } from '../ir/dim.ts';
import type { Node, ValueType } from '../ir/graph.ts';
import type { Capture } from './attention-core.ts';
import {
  appendRows,
  attend,
  attentionCost,
  biasOf,
  joinHeads,
  rotate,
  splitHeads,
} from './attention-core.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { floatsOf, integersOf, optionalFloats } from './dense.ts';
import type { Floats } from './gemm.ts';
import { applyAffine, normalizeRows } from './norm.ts';
import { readNumbers, readScalar, writeNumbers } from './numbers.ts';
import { expectRank, opError, unsupported } from './support.ts';

interface HeadCounts {
  readonly heads: number;
  readonly keyHeads: number;
}

function headCounts(node: Node): HeadCounts {
  const [heads, keyHeads] = [node.int('num_heads', 0), node.int('kv_num_heads', 0)];
  if (heads < 1 || keyHeads < 1 || heads % keyHeads !== 0)
    throw opError({ node }, `num_heads ${heads} is no multiple of kv_num_heads ${keyHeads}`);
  return { heads, keyHeads };
}

function infer(context: InferContext): ValueType[] {
  const { heads, keyHeads } = headCounts(context.node);
  const { dtype, shape } = context.input(0);
  expectRank(context, 'query', shape, 3);
  if (shape === undefined) return [{ dtype }];
  const [batch = 1, queries = 1, hidden = 1] = shape;
  const columns = context.has(1) ? heads : heads + 2 * keyHeads;
  const width = divideDims(hidden, columns);
  const cache = context.has(3) ? context.input(3) : { dtype, shape: undefined };
  const rows = cacheRows(context, cache.shape?.[2], queries);
  const present = { dtype: cache.dtype ?? dtype, shape: [batch, keyHeads, rows, width] };
  const y = { dtype, shape: [batch, queries, multiplyDims(heads, width)] };
  return [y, present, present, { dtype, shape: [batch, heads, queries, context.fresh()] }];
}

/** Rows of the present cache; anonymous when it depends on whether the past buffer is long enough. */
function cacheRows(context: InferContext, past: Dim | undefined, queries: Dim): Dim {
  const total = context.elements(6)?.[0];
  if (!context.has(3) || past === 0) return total ?? queries;
  if (typeof past === 'number' && typeof total === 'number') return maxDims(past, total);
  return context.fresh();
}

/** Per-head root-mean-square norm in place. */
function normHeads(x: Floats, width: number, weight: Tensor | undefined, epsilon: number): Floats {
  if (weight === undefined) return x;
  const { values } = normalizeRows(x, width, epsilon, false);
  applyAffine(values, [x.length / width, width], weight, undefined);
  return values;
}

function refuse(context: EvaluateContext): void {
  const { node } = context;
  for (const side of ['k_quant_type', 'v_quant_type'])
    if (node.string(side, 'NONE') !== 'NONE') throw unsupported(context, 'a quantized cache');
  if (node.int('sliding_window_cache', 0) !== 0) throw unsupported(context, 'sliding_window_cache');
}

function evaluate(context: EvaluateContext): (Tensor | undefined)[] {
  refuse(context);
  const { node } = context;
  const { heads, keyHeads } = headCounts(node);
  const query = context.input(0);
  const [batch = 1, queries = 1, hidden = 1] = query.shape;
  const key = context.inputs[1];
  const packed = key === undefined;
  const width = hidden / (packed ? heads + 2 * keyHeads : heads);
  const split = (index: number, count: number, from: number): Float64Array =>
    packed
      ? splitHeads(floatsOf(query), batch, queries, count, width, from, hidden)
      : splitHeads(floatsOf(context.input(index)), batch, queries, count, width);
  const epsilon = node.float('qk_norm_epsilon', 1e-6);
  const q = normHeads(split(0, heads, 0), width, context.inputs[14], epsilon);
  const k = normHeads(split(1, keyHeads, heads * width), width, context.inputs[15], epsilon);
  const v = split(2, keyHeads, (heads + keyHeads) * width);
  const lengths = integersOf(context.input(5)).map((last) => last + 1);
  const total = readScalar(context.input(6));
  const prompt = queries === total;
  const pastRows = context.inputs[3]?.shape[2] ?? 0;
  const capacity = Math.max(pastRows, total);
  const pastOf = (b: number): number => (prompt ? 0 : Math.max(0, (lengths[b] ?? 0) - queries));
  rotateBoth(context, { q, k, batch, heads, keyHeads, queries, width, pastOf, prompt });
  const append = (index: number, fresh: Floats): Float64Array =>
    appendRows(
      batch * keyHeads,
      width,
      capacity,
      (plane) => pastOf(Math.floor(plane / keyHeads)),
      optionalFloats(context.inputs[index]),
      fresh,
    );
  const [keys, values] = [append(3, k), append(4, v)];
  const window = node.int('local_window_size', -1);
  const causal = node.int('causal', 1) !== 0;
  const stage: Capture | undefined = [undefined, 'biased' as const, 'probabilities' as const][
    node.int('qk_output', 0)
  ];
  const { values: y, captured } = attend({
    batch,
    heads,
    keyHeads,
    queries,
    keys: total,
    capacity,
    width,
    valueWidth: width,
    q,
    k: keys,
    v: values,
    scale: node.float('scale', 0) || undefined,
    softcap: node.float('softcap', 0),
    visible: (b, position) => {
      if (!causal) return [0, lengths[b] ?? total];
      const end = Math.min(lengths[b] ?? total, pastOf(b) + position + 1);
      return [window > 0 ? Math.max(0, end - window) : 0, end];
    },
    bias: biasOf(context.inputs[10]),
    sink: sinkOf(context),
    capture: node.outputs[3] === undefined ? undefined : stage,
  });
  const shape = [batch, queries, heads * width];
  const present = [batch, keyHeads, capacity, width];
  const joined = joinHeads(y, batch, heads, queries, width);
  const cacheType = context.inputs[3]?.dtype ?? query.dtype;
  return [
    writeNumbers(query.dtype, shape, joined),
    writeNumbers(cacheType, present, keys),
    writeNumbers(cacheType, present, values),
    captured && writeNumbers(query.dtype, [batch, heads, queries, total], captured),
  ];
}

function sinkOf(context: EvaluateContext): ((head: number) => number) | undefined {
  const sinks = optionalFloats(context.inputs[11]);
  if (sinks !== undefined) return (head) => sinks[head] ?? 0;
  return context.node.int('smooth_softmax', 0) !== 0 ? (): number => 0 : undefined;
}

interface RotaryCall extends HeadCounts {
  readonly q: Floats;
  readonly k: Floats;
  readonly batch: number;
  readonly queries: number;
  readonly width: number;
  readonly pastOf: (batch: number) => number;
  readonly prompt: boolean;
}

/** Rotates queries and new keys in place, when the node asks for it. */
function rotateBoth(context: EvaluateContext, call: RotaryCall): void {
  if (context.node.int('do_rotary', 0) === 0) return;
  const [cos, sin] = [context.input(7), context.input(8)];
  const given = context.inputs[9] && readNumbers(context.inputs[9]);
  const tables = {
    cos: floatsOf(cos),
    sin: floatsOf(sin),
    pairs: cos.shape[1] ?? 1,
    interleaved: context.node.int('rotary_interleaved', 0) !== 0,
    rowOf: (b: number, position: number): number => {
      if (given === undefined) return call.pastOf(b) + position;
      // a first prompt counts from the first id, whatever the others are
      return call.prompt ? (given[0] ?? 0) + position : (given[b * call.queries + position] ?? 0);
    },
  };
  const { q, k, batch, heads, keyHeads, queries, width } = call;
  rotate(q, batch, heads, queries, width, tables);
  rotate(k, batch, keyHeads, queries, width, tables);
}

/**
 * Inputs: query (or packed qkv), key?, value?, past_key?, past_value?, seqlens_k,
 * total_sequence_length, cos_cache?, sin_cache?, position_ids?, attention_bias?, head_sink?, k_scale?,
 * v_scale?, q_norm_weight?, k_norm_weight?. Outputs: y, present_key, present_value, scores.
 */
const groupQueryAttention: OpDefinition = {
  op: 'GroupQueryAttention',
  domain: 'com.microsoft',
  inputs: [1, 16],
  outputs: [1, 4],
  infer,
  evaluate,
  cost(node, shapeOf) {
    const present = node.outputs[1];
    const rows = present === undefined ? shapeOf(node.input(0))[1] : shapeOf(present)[2];
    return attentionCost(node, shapeOf, rows ?? 1);
  },
};

/** Attention with grouped queries. */
export const groupQueryAttentionOps: readonly OpDefinition[] = [groupQueryAttention];
