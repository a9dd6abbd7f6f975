/**
 * Attention of ONNX: Attention (opset 23 and 24), RotaryEmbedding (23) and TensorScatter (24).
 *
 * Scores are scaled, soft-capped, then biased; masks are added after capping, so that a hidden key
 * stays hidden. With a static cache (`nonpad_kv_seqlen` without past) the causal frontier of each
 * sequence ends at its last valid key.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__Attention.html, RotaryEmbedding, TensorScatter.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { dtypes } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import { addDims, divideDims, multiplyDims } from '../ir/dim.ts';
import type { ValueType } from '../ir/graph.ts';
import type { AttentionCall, Capture } from './attention-core.ts';
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
import { floatsOf, integersOf, spanOf } from './dense.ts';
import type { Floats } from './gemm.ts';
import { readNumbers, writeNumbers } from './numbers.ts';
import { sameAsInput } from './elementwise.ts';
import { expectRank, normalizeAxis, opError, unsupported } from './support.ts';

const captures: readonly Capture[] = ['scores', 'capped', 'biased', 'probabilities'];

function inferAttention(context: InferContext): ValueType[] {
  const { node } = context;
  const { dtype, shape: q } = context.input(0);
  const [k, v] = [context.input(1).shape, context.input(2).shape];
  expectRank(context, 'Q', q, 3, 4);
  if (q === undefined || k === undefined || v === undefined) return [{ dtype }];
  const flat = q.length === 3;
  const heads = flat ? node.int('q_num_heads', 1) : (q[1] ?? 1);
  const keyHeads = flat ? node.int('kv_num_heads', 1) : (k[1] ?? 1);
  if (flat && (node.int('q_num_heads') === undefined || node.int('kv_num_heads') === undefined))
    throw opError(context, 'inputs of rank 3 need q_num_heads and kv_num_heads');
  const split = (shape: Shape): { length: Dim; width: Dim } => ({
    length: shape[flat ? 1 : 2] ?? 1,
    width: flat ? divideDims(shape[2] ?? 1, keyHeads) : (shape[3] ?? 1),
  });
  const [batch = 1] = q;
  const [keys, values] = [split(k), split(v)];
  const queries = q[flat ? 1 : 2] ?? 1;
  const past = context.has(4) ? (context.input(4).shape?.[2] ?? context.fresh()) : 0;
  const total = addDims(past, keys.length);
  const y: Shape = flat
    ? [batch, queries, multiplyDims(heads, values.width)]
    : [batch, heads, queries, values.width];
  return [
    { dtype, shape: y },
    { dtype: context.input(1).dtype, shape: [batch, keyHeads, total, keys.width] },
    { dtype: context.input(2).dtype, shape: [batch, keyHeads, total, values.width] },
    { dtype, shape: [batch, heads, queries, total] },
  ];
}

interface Heads {
  readonly heads: number;
  readonly length: number;
  readonly width: number;
  readonly data: Floats;
}

/** An input of rank 3 or 4 as `[batch, heads, length, width]`. */
function headsOf(tensor: Tensor, count: number): Heads {
  const data = floatsOf(tensor);
  if (tensor.shape.length === 4) {
    const [, heads = 1, length = 1, width = 1] = tensor.shape;
    return { heads, length, width, data };
  }
  const [batch = 1, length = 1, hidden = 1] = tensor.shape;
  const width = hidden / count;
  return { heads: count, length, width, data: splitHeads(data, batch, length, count, width) };
}

function evaluateAttention(context: EvaluateContext): Tensor[] {
  const { node } = context;
  const query = context.input(0);
  const flat = query.shape.length === 3;
  const batch = query.shape[0] ?? 1;
  const q = headsOf(query, node.int('q_num_heads', 1));
  const k = headsOf(context.input(1), node.int('kv_num_heads', 1));
  const v = headsOf(context.input(2), node.int('kv_num_heads', 1));
  if (q.heads % k.heads !== 0)
    throw opError(context, `${q.heads} query heads are no multiple of ${k.heads} key heads`);
  const [pastKey, pastValue] = [context.inputs[4], context.inputs[5]];
  const past = pastKey?.shape[2] ?? 0;
  const keys = past + k.length;
  const planes = batch * k.heads;
  const join = (x: Heads, old: Tensor | undefined): Floats =>
    old === undefined
      ? x.data
      : appendRows(planes, x.width, keys, () => past, floatsOf(old), x.data);
  const [allKeys, allValues] = [join(k, pastKey), join(v, pastValue)];
  const mode = node.int('qk_matmul_output_mode', 0);
  const { values, captured } = attend({
    batch,
    heads: q.heads,
    keyHeads: k.heads,
    queries: q.length,
    keys,
    capacity: keys,
    width: q.width,
    valueWidth: v.width,
    q: q.data,
    k: allKeys,
    v: allValues,
    scale: node.float('scale'),
    softcap: node.float('softcap', 0),
    visible: visibility(context, q.length, keys, past),
    bias: maskOf(context.inputs[3], keys),
    capture: node.outputs[3] === undefined ? undefined : captures[mode],
  });
  const y = flat ? joinHeads(values, batch, q.heads, q.length, v.width) : values;
  const shape = flat ? [batch, q.length, q.heads * v.width] : [batch, q.heads, q.length, v.width];
  const outputs = [
    writeNumbers(query.dtype, shape, y),
    writeNumbers(context.input(1).dtype, [batch, k.heads, keys, k.width], allKeys),
    writeNumbers(context.input(2).dtype, [batch, k.heads, keys, v.width], allValues),
  ];
  if (captured === undefined) return outputs;
  return [...outputs, writeNumbers(query.dtype, [batch, q.heads, q.length, keys], captured)];
}

/** Keys each query may see: what is valid, and what is not in its future. */
function visibility(
  context: EvaluateContext,
  queries: number,
  keys: number,
  past: number,
): NonNullable<AttentionCall['visible']> {
  const lengths = context.inputs[6] && integersOf(context.inputs[6]);
  const causal = context.node.int('is_causal', 0) !== 0;
  const externalCache = lengths !== undefined && context.inputs[4] === undefined;
  return (b, query) => {
    const valid = Math.min(keys, lengths?.[b] ?? keys);
    if (!causal) return [0, valid];
    const offset = externalCache ? (lengths[b] ?? keys) - queries : past;
    return [0, Math.min(valid, query + offset + 1)];
  };
}

/** The mask input; keys beyond its last column are hidden. */
function maskOf(mask: Tensor | undefined, keys: number): AttentionCall['bias'] {
  const bias = biasOf(mask);
  const columns = mask?.shape.at(-1) ?? keys;
  if (bias === undefined || columns === keys || columns === 1) return bias;
  return (b, head, query, key) => (key < columns ? bias(b, head, query, key) : -Infinity);
}

/**
 * Inputs: q, k, v, mask?, past_key?, past_value?, nonpad_kv_seqlen?.
 * Outputs: y, present_key, present_value, scores at the stage `qk_matmul_output_mode` names.
 */
const attention: OpDefinition = {
  op: 'Attention',
  domain: '',
  inputs: [3, 7],
  outputs: [1, 4],
  infer: inferAttention,
  evaluate: evaluateAttention,
  cost(node, shapeOf) {
    const k = shapeOf(node.input(1));
    const past = node.inputs[4] === undefined ? 0 : (shapeOf(node.inputs[4])[2] ?? 0);
    return attentionCost(node, shapeOf, past + (k.at(-2) ?? 1));
  },
};

/** Inputs: x of rank 3 or 4, cos_cache, sin_cache, position_ids?; the caches are per token without it. */
const rotaryEmbedding: OpDefinition = {
  op: 'RotaryEmbedding',
  domain: '',
  inputs: [3, 4],
  outputs: [1, 1],
  infer(context) {
    expectRank(context, 'X', context.input(0).shape, 3, 4);
    return sameAsInput(context);
  },
  evaluate(context) {
    const { node } = context;
    const x = context.input(0);
    const count = node.int('num_heads', 0);
    if (x.shape.length === 3 && count === 0) throw opError(context, 'rank 3 needs num_heads');
    const { heads, length, width, data } = headsOf(x, count);
    const batch = x.shape[0] ?? 1;
    const rotated = Float64Array.from(data);
    const [cos, sin] = [context.input(1), context.input(2)];
    const pairs = cos.shape.at(-1) ?? 1;
    const wanted = node.int('rotary_embedding_dim', 0) || width;
    if (2 * pairs !== wanted)
      throw opError(context, `the caches have ${pairs} columns, wanted ${wanted / 2}`);
    const positions = context.inputs[3] && readNumbers(context.inputs[3]);
    rotate(rotated, batch, heads, length, width, {
      cos: floatsOf(cos),
      sin: floatsOf(sin),
      pairs,
      interleaved: node.int('interleaved', 0) !== 0,
      rowOf: (b, position) => {
        const row = b * length + position;
        return positions === undefined ? row : (positions[row] ?? 0);
      },
    });
    const flat = x.shape.length === 3;
    const y = flat ? joinHeads(rotated, batch, heads, length, width) : rotated;
    return [writeNumbers(x.dtype, x.shape, y)];
  },
};

/** Inputs: cache, update, write_indices?; rows of the update replace rows of the cache. */
const tensorScatter: OpDefinition = {
  op: 'TensorScatter',
  domain: '',
  inputs: [2, 3],
  outputs: [1, 1],
  infer: sameAsInput,
  evaluate(context) {
    const [cache, update] = [context.input(0), context.input(1)];
    const rank = cache.shape.length;
    const axis = normalizeAxis(context, context.node.int('axis', -2), rank);
    if (axis === 0) throw opError(context, 'axis 0 is the batch and cannot be scattered along');
    if (dtypes[cache.dtype].kind === 'string') throw unsupported(context, 'a cache of strings');
    const circular = context.node.string('mode', 'linear') === 'circular';
    const starts = context.inputs[2] && integersOf(context.inputs[2]);
    const [rows, fresh] = [cache.shape[axis] ?? 1, update.shape[axis] ?? 1];
    const inner = spanOf(cache.shape, axis + 1);
    const middle = spanOf(cache.shape, 1, axis);
    const result = Float64Array.from(readNumbers(cache));
    const source = readNumbers(update);
    for (let outer = 0; outer < (cache.shape[0] ?? 1) * middle; outer++) {
      const start = starts?.[Math.floor(outer / middle)] ?? 0;
      for (let row = 0; row < fresh; row++) {
        const target = circular ? (start + row) % rows : start + row;
        if (target < 0 || target >= rows)
          throw opError(context, `row ${target} is outside a cache of ${rows} rows`);
        const from = (outer * fresh + row) * inner;
        result.set(source.subarray(from, from + inner), (outer * rows + target) * inner);
      }
    }
    return [writeNumbers(cache.dtype, cache.shape, result)];
  },
};

/** Attention of ONNX. */
export const attentionOps: readonly OpDefinition[] = [attention, rotaryEmbedding, tensorScatter];
