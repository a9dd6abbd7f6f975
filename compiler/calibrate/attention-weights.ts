/**
 * How much attention each token of a sample gets, as weights of tokens in the Hessian: a token that the
 * others look at matters more.
 *
 *     r_t = Σ heads Σ queries A[head, query, t], mapped to [least, 1]
 *
 * Source: Sung et al., RSQ, arXiv:2503.01820, "attention concentration".
 */
import type { Algebra } from '../algebra/algebra.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import type { Node } from '../ir/graph.ts';
import { rotate, splitHeads } from '../ops/attention-core.ts';
import { floatsOf } from '../ops/dense.ts';
import { attentionInputs, readAttention } from '../ops/fused-attention.ts';
import type { Floats } from '../ops/gemm.ts';
import { applyAffine, normalizeRows } from '../ops/norm.ts';

/** Weight of the token that gets the least attention. Source: the authors' scripts. */
export const LEAST_TOKEN_WEIGHT = 0.005;

/**
 * Whether the attention of a node can be followed: over the tokens of one sequence, without a bias.
 */
export function hasTokenWeights(node: Node): boolean {
  const k = node.inputs[attentionInputs.k];
  const q = node.inputs[attentionInputs.q];
  const others = [attentionInputs.bias, attentionInputs.mask, attentionInputs.sinks];
  return (
    others.every((index) => node.inputs[index] === undefined) &&
    (k === undefined || String(k.shape?.[1]) === String(q?.shape?.[1]))
  );
}

/**
 * Column sums of the attention matrix over heads and queries, [tokens].
 *
 * @param node - fused attention, see {@link hasTokenWeights}
 * @param q - its first input, packed or not; one sequence from position 0 on
 * @param k - its second input, unless packed
 */
export function attentionReceived(
  node: Node,
  q: Tensor,
  k: Tensor | undefined,
  algebra: Algebra,
): Float32Array {
  const attributes = readAttention(node);
  const { heads, kvHeads, headSize, scale, softcap, causal, window } = attributes;
  const [, tokens = 1] = q.shape;
  const queries = headsOf(node, q, heads, 0, attentionInputs.qGain);
  const keys = headsOf(
    node,
    k ?? q,
    kvHeads,
    k === undefined ? heads * headSize : 0,
    attentionInputs.kGain,
  );
  const received = new Float32Array(tokens);
  const row = new Float32Array(tokens);
  for (let head = 0; head < heads; head++) {
    const keyHead = Math.floor((head * kvHeads) / heads);
    const part = tokens * headSize;
    const scores = algebra.matmul(
      queries.subarray(head * part, (head + 1) * part),
      keys.subarray(keyHead * part, (keyHead + 1) * part),
      tokens,
      headSize,
      tokens,
      { bTransposed: true },
    );
    for (let query = 0; query < tokens; query++) {
      const end = causal ? query + 1 : tokens;
      const start = window > 0 ? Math.max(0, end - window) : 0;
      let most = -Infinity;
      for (let key = start; key < end; key++) {
        const score = (scores[query * tokens + key] as number) * scale;
        const capped = softcap > 0 ? softcap * Math.tanh(score / softcap) : score;
        row[key] = capped;
        if (capped > most) most = capped;
      }
      let sum = 0;
      for (let key = start; key < end; key++) {
        const share = Math.exp((row[key] as number) - most);
        row[key] = share;
        sum += share;
      }
      for (let key = start; key < end; key++)
        received[key] = (received[key] as number) + (row[key] as number) / sum;
    }
  }
  return received;
}

/** Maps what tokens receive to weights in [least, 1]; equal ones to 1. */
export function tokenWeights(
  received: Float32Array,
  least: number = LEAST_TOKEN_WEIGHT,
): Float32Array {
  let [low, high] = [Infinity, -Infinity];
  for (const value of received) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (!(high > low)) return new Float32Array(received.length).fill(1);
  return received.map((value) => least + ((1 - least) * (value - low)) / (high - low));
}

/** Rows of heads, normed and turned as the node does, [heads, tokens, headSize]. */
function headsOf(
  node: Node,
  x: Tensor,
  count: number,
  from: number,
  gainIndex: number,
): Float32Array {
  const { headSize, rotaryDims, interleaved, normEpsilon } = readAttention(node);
  const [, tokens = 1, width = 1] = x.shape;
  let rows: Floats = splitHeads(floatsOf(x), 1, tokens, count, headSize, from, width);
  const gain = node.inputs[gainIndex]?.constant();
  if (gain !== undefined) {
    const { values } = normalizeRows(rows, headSize, normEpsilon, false);
    applyAffine(values, [values.length / headSize, headSize], gain, undefined);
    rows = values;
  }
  const cos = node.inputs[attentionInputs.cos]?.constant();
  const sin = node.inputs[attentionInputs.sin]?.constant();
  if (rotaryDims > 0 && cos !== undefined && sin !== undefined)
    rotate(rows, 1, count, tokens, headSize, {
      cos: floatsOf(cos),
      sin: floatsOf(sin),
      pairs: rotaryDims / 2,
      interleaved,
      rowOf: (_, index) => index,
    });
  return new Float32Array(rows);
}
