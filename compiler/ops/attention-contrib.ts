/**
 * onnxruntime's attention ops for encoders, encoder-decoders and GPT-2 style decoders:
 * MultiHeadAttention, Attention, DecoderMaskedMultiHeadAttention, RotaryEmbedding.
 *
 * Source: the com.microsoft ops of these names in onnxruntime's ContribOperators.md.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import { addDims, divideDims, multiplyDims } from '../ir/dim.ts';
import type { ValueType } from '../ir/graph.ts';
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
import { copyFloats, floatsOf, integersOf, optionalFloats } from './dense.ts';
import { sameAsInput } from './elementwise.ts';
import type { Floats } from './gemm.ts';
import { product } from './matmul.ts';
import { applyAffine } from './norm.ts';
import { readNumbers, readScalar, writeNumbers } from './numbers.ts';
import { expectRank, opError, unsupported } from './support.ts';

const domain = 'com.microsoft';

/** Heads of one of q, k and v. // data: [batch, heads, length, width] */
interface Part {
  readonly data: Floats;
  readonly length: number;
  readonly width: number;
}

/** What differs between the ops once their inputs have been read. */
interface ContribCall {
  readonly batch: number;
  readonly heads: number;
  readonly q: Part;
  readonly k: Part;
  readonly v: Part;
  readonly pastKey: Floats | undefined;
  readonly pastValue: Floats | undefined;
  /** Old rows in the past buffers. */
  readonly past: number;
  /** Rows of the present buffers. */
  readonly capacity: number;
  readonly mask: Tensor | undefined;
  readonly bias: Tensor | undefined;
}

interface ContribResult {
  readonly y: Tensor;
  readonly keys: Floats;
  readonly values: Floats;
  readonly scores: Tensor | undefined;
}

/** Attention with padding mask, causal flag and cache. */
function runAttention(
  context: EvaluateContext,
  call: ContribCall,
  wantScores = false,
): ContribResult {
  const { node } = context;
  const { batch, heads, q, k, v, past, capacity } = call;
  const planes = batch * heads;
  const total = past + k.length;
  const keys = appendRows(planes, k.width, capacity, () => past, call.pastKey, k.data);
  const values = appendRows(planes, v.width, capacity, () => past, call.pastValue, v.data);
  const causal = node.int('unidirectional', 0) !== 0;
  const hidden = node.float('mask_filter_value', -10000);
  const padding = paddingOf(context, call.mask, batch, q.length, total);
  const bias = biasOf(call.bias);
  const result = attend({
    batch,
    heads,
    keyHeads: heads,
    queries: q.length,
    keys: total,
    capacity,
    width: q.width,
    valueWidth: v.width,
    q: q.data,
    k: keys,
    v: values,
    scale: node.float('scale', 0) || undefined,
    visible: (_, query) => [0, causal ? Math.min(total, past + query + 1) : total],
    bias: (b, head, query, key) =>
      (padding(b, query, key) ? 0 : hidden) + (bias?.(b, head, query, key) ?? 0),
    capture: wantScores ? 'biased' : undefined,
  });
  const { dtype } = context.input(0);
  const joined = joinHeads(result.values, batch, heads, q.length, v.width);
  return {
    y: writeNumbers(dtype, [batch, q.length, heads * v.width], joined),
    keys,
    values,
    scores:
      result.captured && writeNumbers(dtype, [batch, heads, q.length, total], result.captured),
  };
}

/** Whether a key is no padding, from a mask in any of the accepted forms. */
function paddingOf(
  context: EvaluateContext,
  mask: Tensor | undefined,
  batch: number,
  queries: number,
  total: number,
): (batch: number, query: number, key: number) => boolean {
  if (mask === undefined) return () => true;
  const data = readNumbers(mask);
  const [size = 0] = mask.shape;
  if (mask.shape.length === 1 && size === batch) return (b, _, key) => key < (data[b] ?? 0);
  if (mask.shape.length === 1 && size === 2 * batch)
    return (b, _, key) => key < (data[b] ?? 0) && key >= (data[batch + b] ?? 0);
  if (mask.shape.length === 1 && size === 3 * batch + 2) return (b, _, key) => key < (data[b] ?? 0);
  const columns = mask.shape.at(-1) ?? 1;
  if (mask.shape.length === 2) return (b, _, key) => data[b * columns + key] !== 0;
  if (mask.shape.length === 3)
    return (b, query, key) => data[(b * queries + query) * columns + key] !== 0;
  if (mask.shape.length === 4)
    // of a square mask for the longest sequence, the rows that end at the last key
    return (b, query, key) => data[(b * columns + total - queries + query) * columns + key] !== 0;
  throw opError(context, `a mask of shape [${mask.shape}] is not understood`);
}

/** Adds `bias[from …]` to heads in `[batch, heads, length, width]`. */
function addHeadBias(part: Part, heads: number, bias: Floats | undefined, from: number): Part {
  if (bias === undefined) return part;
  const plane = part.length * part.width;
  const data = Float64Array.from(part.data, (value, i) => {
    const head = Math.floor(i / plane) % heads;
    return value + (bias[from + head * part.width + (i % part.width)] ?? 0);
  });
  return { ...part, data };
}

/** The parts of MultiHeadAttention: separate, packed kv, packed qkv, or keys already split. */
function readParts(context: EvaluateContext, heads: number): { q: Part; k: Part; v: Part } {
  const query = context.input(0);
  const [batch = 1, length = 1] = query.shape;
  const part = (tensor: Tensor, count = 1, slot = 0): Part => {
    const rows = tensor.shape[1] ?? 1;
    const stride = elementCount(tensor.shape.slice(2));
    const width = stride / heads / count;
    const data = floatsOf(tensor);
    // packed tensors are [batch, length, heads, count, width]
    const split = splitHeads(data, batch, rows, heads, width, slot * width, stride, count * width);
    return { data: split, length: rows, width };
  };
  if (query.shape.length === 5)
    return { q: part(query, 3, 0), k: part(query, 3, 1), v: part(query, 3, 2) };
  const q = part(query);
  const key = context.inputs[1];
  if (key === undefined) throw unsupported(context, `a query of width ${length} without key`);
  if (key.shape.length === 5) return { q, k: part(key, 2, 0), v: part(key, 2, 1) };
  const value = context.input(2);
  const whole = (tensor: Tensor): Part => ({
    data: floatsOf(tensor),
    length: tensor.shape[2] ?? 1,
    width: tensor.shape[3] ?? 1,
  });
  if (key.shape.length === 4) return { q, k: whole(key), v: whole(value) };
  return { q, k: part(key), v: part(value) };
}

interface CacheInputs {
  readonly mask: number;
  readonly bias: number;
  readonly attentionBias: number;
  readonly past: number;
  readonly pastLength: number;
}

function evaluateMultiHead(context: EvaluateContext, at: CacheInputs): (Tensor | undefined)[] {
  const heads = context.node.int('num_heads', 0);
  if (heads < 1) throw opError(context, 'num_heads must be positive');
  const query = context.input(0);
  const parts = readParts(context, heads);
  const bias = optionalFloats(context.inputs[at.bias]);
  // keys that are already split come from a cross-attention cache that includes the bias
  const split = context.inputs[1]?.shape.length === 4;
  const q = addHeadBias(parts.q, heads, bias, 0);
  const k = split ? parts.k : addHeadBias(parts.k, heads, bias, heads * q.width);
  const v = split ? parts.v : addHeadBias(parts.v, heads, bias, 2 * heads * q.width);
  const [pastKey, pastValue] = [context.inputs[at.past], context.inputs[at.past + 1]];
  const shared = context.inputs[at.pastLength];
  const rows = pastKey?.shape[2] ?? 0;
  const past = shared === undefined ? rows : readScalar(shared);
  const batch = query.shape[0] ?? 1;
  const capacity = shared === undefined ? past + k.length : Math.max(rows, past + k.length);
  const result = runAttention(
    context,
    {
      batch,
      heads,
      q,
      k,
      v,
      pastKey: optionalFloats(pastKey),
      pastValue: optionalFloats(pastValue),
      past,
      capacity,
      mask: context.inputs[at.mask],
      bias: context.inputs[at.attentionBias],
    },
    context.node.outputs[3] !== undefined,
  );
  const present = (part: Part, data: Floats): Tensor =>
    writeNumbers(query.dtype, [batch, heads, capacity, part.width], data);
  return [result.y, present(k, result.keys), present(v, result.values), result.scores];
}

function inferMultiHead(context: InferContext, at: CacheInputs): ValueType[] {
  const heads = context.node.int('num_heads', 1);
  const { dtype, shape } = context.input(0);
  expectRank(context, 'query', shape, 3, 5);
  expectRank(context, 'key', context.input(1).shape, 3, 4, 5);
  if (shape === undefined) return [{ dtype }];
  const [batch = 1, queries = 1] = shape;
  const key = context.input(1).shape;
  const packed = shape.length === 5;
  const width = packed ? (shape[4] ?? 1) : divideDims(shape[2] ?? 1, heads);
  const valueShape = key?.length === 5 || packed ? undefined : context.input(2).shape;
  const valueWidth = valueWidthOf(valueShape, heads, width);
  if (!packed && key === undefined) return [{ dtype }];
  const length = packed ? queries : (key?.[key.length === 4 ? 2 : 1] ?? 1);
  const past = context.has(at.past) ? context.input(at.past).shape?.[2] : 0;
  const total = past === undefined ? context.fresh() : addDims(past, length);
  const rows = context.has(at.pastLength) ? (past ?? context.fresh()) : total;
  return [
    { dtype, shape: [batch, queries, multiplyDims(heads, valueWidth)] },
    { dtype, shape: [batch, heads, rows, width] },
    { dtype, shape: [batch, heads, rows, valueWidth] },
    { dtype, shape: [batch, heads, queries, total] },
  ];
}

function valueWidthOf(shape: Shape | undefined, heads: number, width: Dim): Dim {
  if (shape === undefined) return width;
  return shape.length === 4 ? (shape[3] ?? 1) : divideDims(shape[2] ?? 1, heads);
}

const multiHeadInputs = { mask: 4, bias: 3, attentionBias: 5, past: 6, pastLength: 8 };

/** Inputs: query, key?, value?, bias?, mask?, attention_bias?, past_key?, past_value?, past length?. */
const multiHeadAttention: OpDefinition = {
  op: 'MultiHeadAttention',
  domain,
  inputs: [1, 10],
  outputs: [1, 4],
  infer: (context) => inferMultiHead(context, multiHeadInputs),
  evaluate(context) {
    if (context.inputs[9] !== undefined) throw unsupported(context, 'cache_indirection');
    return evaluateMultiHead(context, multiHeadInputs);
  },
  cost(node, shapeOf) {
    const keys = node.inputs[1] === undefined ? shapeOf(node.input(0)) : shapeOf(node.inputs[1]);
    return attentionCost(node, shapeOf, keys[1] ?? 1);
  },
};

const decoderInputs = { mask: 3, bias: 10, attentionBias: 4, past: 5, pastLength: 7 };

/** The same for one query a call, with inputs in another order and without beams. */
const decoderMaskedMultiHeadAttention: OpDefinition = {
  op: 'DecoderMaskedMultiHeadAttention',
  domain,
  inputs: [1, 11],
  outputs: [1, 4],
  infer: (context) => inferMultiHead(context, decoderInputs),
  evaluate(context) {
    const beams = context.inputs[8] && readScalar(context.inputs[8]);
    if (beams !== undefined && beams > 1) throw unsupported(context, 'beam_width above 1');
    return evaluateMultiHead(context, decoderInputs);
  },
};

/** Widths of q, k and v in the projection of Attention. */
function projectedWidths(context: EvaluateContext | InferContext, columns: Dim): Dim[] {
  const given = context.node.ints('qkv_hidden_sizes');
  if (given !== undefined && given.length === 3) return given;
  const third = divideDims(columns, 3);
  return [third, third, third];
}

/** Inputs: input, weights, bias?, mask_index?, past?, attention_bias?, past_sequence_length?. */
const attention: OpDefinition = {
  op: 'Attention',
  domain,
  inputs: [2, 7],
  outputs: [1, 2],
  infer(context) {
    const heads = context.node.int('num_heads', 1);
    const { dtype, shape } = context.input(0);
    expectRank(context, 'input', shape, 3);
    expectRank(context, 'weights', context.input(1).shape, 2);
    const columns = context.input(1).shape?.[1];
    if (shape === undefined || columns === undefined) return [{ dtype }];
    const [batch = 1, length = 1] = shape;
    const [, keyWidth = 1, valueWidth = 1] = projectedWidths(context, columns);
    const past = context.has(4) ? (context.input(4).shape?.[3] ?? context.fresh()) : 0;
    const rows = context.has(6) ? past : addDims(past, length);
    const present = [2, batch, heads, rows, divideDims(keyWidth, heads)];
    return [
      { dtype, shape: [batch, length, valueWidth] },
      { dtype, shape: present },
    ];
  },
  evaluate: evaluateAttention,
  cost: (node, shapeOf) => {
    const [batch = 1, length = 1, width = 1] = shapeOf(node.input(0));
    const columns = shapeOf(node.input(1))[1] ?? 1;
    const core = attentionCost(node, shapeOf, length);
    return { ...core, flops: core.flops + 2 * batch * length * width * columns };
  },
};

function evaluateAttention(context: EvaluateContext): Tensor[] {
  const { node } = context;
  const heads = node.int('num_heads', 0);
  if (heads < 1) throw opError(context, 'num_heads must be positive');
  if (node.int('do_rotary', 0) !== 0) throw unsupported(context, 'do_rotary');
  const [x, weights] = [context.input(0), context.input(1)];
  const [batch = 1, length = 1] = x.shape;
  const columns = weights.shape[1] ?? 1;
  const projected = product(
    context,
    { shape: x.shape, data: floatsOf(x) },
    { shape: weights.shape, data: floatsOf(weights) },
    x.dtype,
  );
  applyAffine(projected.data, projected.shape, undefined, context.inputs[2]);
  const widths = projectedWidths(context, columns).map(Number);
  let from = 0;
  const [q, k, v] = widths.map((hidden): Part => {
    const width = hidden / heads;
    const data = splitHeads(projected.data, batch, length, heads, width, from, columns);
    from += hidden;
    return { data, length, width };
  });
  if (q === undefined || k === undefined || v === undefined)
    throw opError(context, 'qkv_hidden_sizes must have 3 entries');
  const pastTensor = context.inputs[4];
  const stored = optionalFloats(pastTensor);
  const half = (stored?.length ?? 0) / 2;
  const rows = pastTensor?.shape[3] ?? 0;
  const shared = context.inputs[6];
  const past = shared === undefined ? rows : readScalar(shared);
  const capacity = shared === undefined ? past + length : Math.max(rows, past + length);
  const { y, keys, values } = runAttention(context, {
    batch,
    heads,
    q,
    k,
    v,
    pastKey: stored?.subarray(0, half),
    pastValue: stored?.subarray(half),
    past,
    capacity,
    mask: context.inputs[3],
    bias: context.inputs[5],
  });
  if (node.outputs[1] === undefined) return [y];
  const present = new Float64Array(keys.length + values.length);
  present.set(keys);
  present.set(values, keys.length);
  return [y, writeNumbers(x.dtype, [2, batch, heads, capacity, k.width], present)];
}

/** Inputs: x of rank 3 or 4, position_ids ([1]: an offset), cos_cache, sin_cache. */
const rotaryEmbedding: OpDefinition = {
  op: 'RotaryEmbedding',
  domain,
  inputs: [4, 4],
  outputs: [1, 1],
  infer: sameAsInput,
  evaluate(context) {
    const { node } = context;
    const [x, cos, sin] = [context.input(0), context.input(2), context.input(3)];
    const positions = integersOf(context.input(1));
    const pairs = cos.shape.at(-1) ?? 1;
    const [batch = 1, second = 1, third = 1] = x.shape;
    const flat = x.shape.length === 3;
    const heads = flat ? node.int('num_heads', 0) || third / (2 * pairs) : second;
    const length = flat ? second : third;
    const width = flat ? third / heads : (x.shape[3] ?? 1);
    const data = flat ? splitHeads(floatsOf(x), batch, length, heads, width) : copyFloats(x);
    const [first = 0] = positions;
    rotate(data, batch, heads, length, width, {
      cos: floatsOf(cos),
      sin: floatsOf(sin),
      pairs,
      interleaved: node.int('interleaved', 0) !== 0,
      rowOf: (b, position) =>
        positions.length === 1 ? first + position : (positions[b * length + position] ?? 0),
    });
    const scale = node.float('scale', 1);
    const y = flat ? joinHeads(data, batch, heads, length, width) : data;
    if (scale !== 1) for (let i = 0; i < y.length; i++) y[i] = (y[i] ?? 0) * scale;
    return [writeNumbers(x.dtype, x.shape, y)];
  },
};

/** Attention ops of onnxruntime. */
export const attentionContribOps: readonly OpDefinition[] = [
  multiHeadAttention,
  decoderMaskedMultiHeadAttention,
  attention,
  rotaryEmbedding,
];
