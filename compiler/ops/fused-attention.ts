/**
 * Fused attention: heads, norms of heads, rotary embedding, cache, masks and softmax in one op.
 *
 *   fettle.Attention(q, k?, v?, pastKey?, pastValue?, cos?, sin?, positions?, mask?, bias?, sinks?, qGain?, kGain?)
 *     -> y [B, S, H*D], presentKey? [B, KV, P+S, D], presentValue? [B, KV, P+S, D]
 *
 * q [B, S, H*D]; k, v [B, T, KV*D] (T = S but for cross attention); with k and v absent q is packed
 * [B, S, (H+2*KV)*D]. Per head: RMS norm of q and k (qGain, kGain, `normEpsilon`), then rotary of the
 * first `rotaryDims` columns at `positions` (i64 [B, S]; absent: past + index), then past in front.
 * Scores are scaled, capped (`softcap`), `bias` added (broadcasts to [B, H, S, P+S]); a key is visible
 * when `mask` [B, P+S] (i64, i32 or bool) is not 0, `causal` allows it and it is among the last
 * `window` keys. A query that sees nothing gets zeros. cos and sin are [positions, rotaryDims / 2].
 *
 * Source: see `attention-core.ts`, which does the work.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { addDims } from '../ir/dim.ts';
import type { Node, ValueType } from '../ir/graph.ts';
import type { AttentionCall } from './attention-core.ts';
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
import { floatsOf, optionalFloats } from './dense.ts';
import type { Floats } from './gemm.ts';
import { applyAffine, normalizeRows } from './norm.ts';
import { readNumbers, writeNumbers } from './numbers.ts';
import { internalDomain } from './quantized.ts';
import { expectRank, opError, sameDim } from './support.ts';

/** Input places of an Attention node. */
export const attentionInputs = {
  q: 0,
  k: 1,
  v: 2,
  pastKey: 3,
  pastValue: 4,
  cos: 5,
  sin: 6,
  positions: 7,
  mask: 8,
  bias: 9,
  sinks: 10,
  qGain: 11,
  kGain: 12,
} as const;

/** What the attributes of an Attention node say. */
export interface AttentionAttributes {
  /** Query heads. */
  readonly heads: number;
  /** Key and value heads; divides `heads`. */
  readonly kvHeads: number;
  /** Columns of a head. */
  readonly headSize: number;
  /** Factor of the scores. */
  readonly scale: number;
  /** Whether a query sees no later key. */
  readonly causal: boolean;
  /** Most keys a query sees, itself included; 0 for all. */
  readonly window: number;
  /** Scores become `cap * tanh(score / cap)`; 0 for none. */
  readonly softcap: number;
  /** Columns of a head that the rotary embedding turns; 0 for none. */
  readonly rotaryDims: number;
  /** Whether rotary pairs are neighbours instead of halves. */
  readonly interleaved: boolean;
  /** Epsilon of the norms of heads. */
  readonly normEpsilon: number;
}

/** Whether a node is a fused Attention. */
export function isFusedAttention(
  node: Node | undefined,
): node is Node & { readonly op: 'Attention' } {
  return node?.op === 'Attention' && node.domain === internalDomain;
}

/**
 * The attributes of a fused Attention node.
 *
 * @throws FettleError MODEL_INVALID when the head counts do not fit each other
 */
export function readAttention(node: Node): AttentionAttributes {
  const heads = node.int('heads', 0);
  const kvHeads = node.int('kvHeads', heads);
  const headSize = node.int('headSize', 0);
  if (heads < 1 || kvHeads < 1 || headSize < 1 || heads % kvHeads !== 0)
    throw opError(
      { node },
      `heads ${heads}, kvHeads ${kvHeads} and headSize ${headSize} must be positive and fit`,
    );
  return {
    heads,
    kvHeads,
    headSize,
    scale: node.float('scale', headSize ** -0.5),
    causal: node.int('causal', 0) === 1,
    window: node.int('window', 0),
    softcap: node.float('softcap', 0),
    rotaryDims: node.int('rotaryDims', 0),
    interleaved: node.int('interleaved', 0) === 1,
    normEpsilon: node.float('normEpsilon', 1e-6),
  };
}

const at = attentionInputs;

function infer(context: InferContext): ValueType[] {
  const { heads, kvHeads, headSize, rotaryDims } = readAttention(context.node);
  const { dtype, shape } = context.input(at.q);
  expectRank(context, 'q', shape, 3);
  const packed = !context.has(at.k);
  if (packed === context.has(at.v))
    throw opError(context, 'k and v must both be given, or neither');
  const columns = (packed ? heads + 2 * kvHeads : heads) * headSize;
  const [batch = context.fresh(), queries = context.fresh()] = shape ?? [];
  if (shape !== undefined) sameDim(context, 'the columns of q', shape[2] ?? 1, columns);
  for (const index of packed ? [] : [at.k, at.v]) {
    expectRank(context, index === at.k ? 'k' : 'v', context.input(index).shape, 3);
    const width = context.input(index).shape?.[2];
    if (width !== undefined) sameDim(context, 'the columns of k and v', width, kvHeads * headSize);
  }
  for (const index of rotaryDims > 0 ? [at.cos, at.sin] : []) {
    const width = context.input(index).shape?.[1];
    if (width !== undefined) sameDim(context, 'the rotary columns', width, rotaryDims / 2);
  }
  const length: Dim = packed ? queries : (context.input(at.k).shape?.[1] ?? context.fresh());
  const past = context.has(at.pastKey)
    ? (context.input(at.pastKey).shape?.[2] ?? context.fresh())
    : 0;
  const present = { dtype, shape: [batch, kvHeads, addDims(past, length), headSize] };
  return [{ dtype, shape: [batch, queries, heads * headSize] }, present, present];
}

/** Keys a query may see before masks: [first, end). */
function visibility(
  { causal, window }: AttentionAttributes,
  past: number,
  keys: number,
): NonNullable<AttentionCall['visible']> {
  return (_batch, query) => {
    const end = causal ? Math.min(keys, past + query + 1) : keys;
    return [window > 0 ? Math.max(0, end - window) : 0, end];
  };
}

/** The bias input, with the keys that the mask hides at -Infinity. */
function maskedBias(context: EvaluateContext, keys: number): AttentionCall['bias'] {
  const mask = context.inputs[at.mask];
  const bias = biasOf(context.inputs[at.bias]);
  if (mask === undefined) return bias;
  const kept = readNumbers(mask);
  const rows = mask.shape[0] ?? 1;
  return (b, head, query, key) =>
    kept[(rows === 1 ? 0 : b) * keys + key] === 0 ? -Infinity : (bias?.(b, head, query, key) ?? 0);
}

function normHeads(x: Floats, gain: Tensor | undefined, width: number, epsilon: number): Floats {
  if (gain === undefined) return x;
  const { values } = normalizeRows(x, width, epsilon, false);
  applyAffine(values, [x.length / width, width], gain, undefined);
  return values;
}

function evaluate(context: EvaluateContext): (Tensor | undefined)[] {
  const { node, inputs } = context;
  const attributes = readAttention(node);
  const { heads, kvHeads, headSize, normEpsilon } = attributes;
  const query = context.input(at.q);
  const [batch = 1, queries = 1, hidden = 1] = query.shape;
  const key = inputs[at.k];
  const length = key?.shape[1] ?? queries;
  const split = (index: number, count: number, from: number): Floats =>
    key === undefined
      ? splitHeads(floatsOf(query), batch, queries, count, headSize, from, hidden)
      : splitHeads(
          floatsOf(context.input(index)),
          batch,
          index === at.q ? queries : length,
          count,
          headSize,
        );
  const q = normHeads(split(at.q, heads, 0), inputs[at.qGain], headSize, normEpsilon);
  const k = normHeads(
    split(at.k, kvHeads, heads * headSize),
    inputs[at.kGain],
    headSize,
    normEpsilon,
  );
  const v = split(at.v, kvHeads, (heads + kvHeads) * headSize);
  const past = inputs[at.pastKey]?.shape[2] ?? 0;
  const keys = past + length;
  rotateHeads(context, q, { batch, heads, length: queries, past });
  rotateHeads(context, k, { batch, heads: kvHeads, length, past });
  const append = (index: number, fresh: Floats): Floats =>
    inputs[index] === undefined
      ? fresh
      : appendRows(
          batch * kvHeads,
          headSize,
          keys,
          () => past,
          optionalFloats(inputs[index]),
          fresh,
        );
  const [allKeys, allValues] = [append(at.pastKey, k), append(at.pastValue, v)];
  const sinks = optionalFloats(inputs[at.sinks]);
  const { values } = attend({
    batch,
    heads,
    keyHeads: kvHeads,
    queries,
    keys,
    capacity: keys,
    width: headSize,
    valueWidth: headSize,
    q,
    k: allKeys,
    v: allValues,
    scale: attributes.scale,
    softcap: attributes.softcap,
    visible: visibility(attributes, past, keys),
    bias: maskedBias(context, keys),
    sink: sinks === undefined ? undefined : (head): number => sinks[head] ?? 0,
  });
  const present = [batch, kvHeads, keys, headSize];
  return [
    writeNumbers(
      query.dtype,
      [batch, queries, heads * headSize],
      joinHeads(values, batch, heads, queries, headSize),
    ),
    writeNumbers(query.dtype, present, allKeys),
    writeNumbers(query.dtype, present, allValues),
  ];
}

interface HeadRows {
  readonly batch: number;
  readonly heads: number;
  readonly length: number;
  readonly past: number;
}

/** Rotates rows in place when the node asks for it. */
function rotateHeads(context: EvaluateContext, x: Floats, rows: HeadRows): void {
  const { rotaryDims, interleaved, headSize } = readAttention(context.node);
  if (rotaryDims === 0) return;
  const { batch, heads, length, past } = rows;
  rotate(x, batch, heads, length, headSize, {
    cos: floatsOf(context.input(at.cos)),
    sin: floatsOf(context.input(at.sin)),
    pairs: rotaryDims / 2,
    interleaved,
    rowOf: rowOf(context.inputs[at.positions], length, past),
  });
}

/** Row of the tables for a token. */
function rowOf(
  positions: Tensor | undefined,
  length: number,
  past: number,
): (batch: number, index: number) => number {
  if (positions === undefined) return (_batch, index) => past + index;
  const given = readNumbers(positions);
  const shared = positions.shape[0] === 1;
  return (batch, index) => given[(shared ? 0 : batch * length) + index] ?? 0;
}

const attention: OpDefinition = {
  op: 'Attention',
  domain: internalDomain,
  inputs: [1, 13],
  outputs: [1, 3],
  infer,
  evaluate,
  cost(node, shapeOf) {
    const past = node.inputs[at.pastKey];
    const length = shapeOf(node.inputs[at.k] ?? node.input(at.q))[1] ?? 1;
    return attentionCost(
      node,
      shapeOf,
      length + (past === undefined ? 0 : (shapeOf(past)[2] ?? 0)),
    );
  },
};

/** Fused attention. */
export const fusedAttentionOps: readonly OpDefinition[] = [attention];
