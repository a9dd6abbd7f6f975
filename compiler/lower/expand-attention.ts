/**
 * Fused attention as ops that onnxruntime runs on every provider:
 *
 *     fettle.Attention(q, k, v, past…)   ->   RotaryEmbedding, Concat with the past, MatMul, Add mask, Softmax, MatMul
 *
 * Grouped heads are not repeated: queries become [B, KV, H/KV, S, D] and the products broadcast. A mask
 * for causality and windows is written once for all layers that share it. RotaryEmbedding is a contrib
 * op of the CPU and WebGPU providers; with one position it counts from there.
 *
 * Source: ContribOperators.md of onnxruntime.
 */
import { int, ints } from '../ir/attribute.ts';
import type { Attributes } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { AttentionAttributes } from '../ops/fused-attention.ts';
import { attentionInputs, readAttention } from '../ops/fused-attention.ts';
import { int64s } from '../ops/numbers.ts';
import type { LowerContext } from './context.ts';
import { expandedMask } from './expand-mask.ts';
import { writeNorm } from './expand-norm.ts';
import { scalarLike } from './expand-activation.ts';

const at = attentionInputs;

/** Writes a fused Attention. */
export function expandAttention(node: Node, context: LowerContext): readonly (Value | undefined)[] {
  return new Expansion(node, context).write();
}

function rotaryAttributes(
  heads: number,
  width: number,
  dims: number,
  interleaved: boolean,
): Attributes {
  return {
    interleaved: int(interleaved ? 1 : 0),
    num_heads: int(heads),
    ...(dims === width ? {} : { rotary_embedding_dim: int(dims) }),
  };
}

class Expansion {
  private readonly node: Node;
  private readonly context: LowerContext;
  private readonly shape: AttentionAttributes;

  constructor(node: Node, context: LowerContext) {
    this.node = node;
    this.context = context;
    this.shape = readAttention(node);
  }

  write(): readonly (Value | undefined)[] {
    const { node } = this;
    const { heads, kvHeads, headSize } = this.shape;
    const [q3, k3, v3] = this.rows();
    const start = this.start();
    const q = this.split(this.turned(q3, heads, node.inputs[at.qGain], start), heads);
    const freshKeys = this.split(this.turned(k3, kvHeads, node.inputs[at.kGain], start), kvHeads);
    const freshValues = this.split(v3, kvHeads);
    const keys = this.behind(node.inputs[at.pastKey], freshKeys);
    const values = this.behind(node.inputs[at.pastValue], freshValues);
    const mixed = heads === kvHeads ? this.mix(q, keys, values) : this.mixGroups(q, keys, values);
    const apart = this.op('Transpose', [mixed], { perm: ints([0, 2, 1, 3]) });
    return [this.reshape(apart, [0, 0, heads * headSize]), keys, values];
  }

  private op(
    name: string,
    inputs: readonly (Value | undefined)[],
    attributes: Attributes = {},
  ): Value {
    return this.context.rewriter.op(name, inputs, attributes);
  }

  private ints(what: string, values: readonly number[]): Value {
    return this.context.rewriter.constant(`${this.node.output(0).name}_${what}`, int64s(values));
  }

  private reshape(x: Value, sizes: readonly number[]): Value {
    return this.op('Reshape', [x, this.ints('shape', sizes)]);
  }

  /** Queries, keys and values as rows of tokens. */
  private rows(): readonly [Value, Value, Value] {
    const { node } = this;
    const { heads, kvHeads, headSize } = this.shape;
    const packed = node.input(at.q);
    const [k, v] = [node.inputs[at.k], node.inputs[at.v]];
    if (k !== undefined && v !== undefined) return [packed, k, v];
    const ends = [0, heads, heads + kvHeads, heads + 2 * kvHeads].map((count) => count * headSize);
    const part = (index: number): Value =>
      this.op('Slice', [
        packed,
        this.ints('start', [ends[index] ?? 0]),
        this.ints('end', [ends[index + 1] ?? 0]),
        this.ints('axis', [2]),
      ]);
    return [part(0), part(1), part(2)];
  }

  /** Position of the first token, [1], or the positions that are given. */
  private start(): Value | undefined {
    const { node } = this;
    if (this.shape.rotaryDims === 0) return undefined;
    const past = node.inputs[at.pastKey];
    return (
      node.inputs[at.positions] ??
      (past === undefined
        ? this.ints('start', [0])
        : this.op('Gather', [this.op('Shape', [past]), this.ints('length', [2])], { axis: int(0) }))
    );
  }

  /** Norm of heads and rotary embedding of rows. */
  private turned(
    x: Value,
    heads: number,
    gain: Value | undefined,
    start: Value | undefined,
  ): Value {
    const { headSize, rotaryDims, interleaved, normEpsilon } = this.shape;
    let rows = x;
    if (gain !== undefined) {
      const split = this.reshape(rows, [0, 0, heads, headSize]);
      const normed = writeNorm(this.context, 'rms', split, gain, undefined, normEpsilon);
      rows = this.reshape(normed, [0, 0, heads * headSize]);
    }
    if (start === undefined) return rows;
    return this.context.rewriter.op(
      'RotaryEmbedding',
      [rows, start, this.node.input(at.cos), this.node.input(at.sin)],
      rotaryAttributes(heads, headSize, rotaryDims, interleaved),
      { domain: 'com.microsoft' },
    );
  }

  /** Rows as heads, [B, heads, S, D]. */
  private split(x: Value, heads: number): Value {
    const split = this.reshape(x, [0, 0, heads, this.shape.headSize]);
    return this.op('Transpose', [split], { perm: ints([0, 2, 1, 3]) });
  }

  private behind(past: Value | undefined, fresh: Value): Value {
    return past === undefined ? fresh : this.op('Concat', [past, fresh], { axis: int(2) });
  }

  private mix(q: Value, keys: Value, values: Value): Value {
    const scores = this.scores(q, this.op('Transpose', [keys], { perm: ints([0, 1, 3, 2]) }));
    return this.op('MatMul', [this.weights(scores, 4), values]);
  }

  /** Groups of query heads beside the head of keys they share. */
  private mixGroups(q: Value, keys: Value, values: Value): Value {
    const { heads, kvHeads, headSize } = this.shape;
    const groups = this.reshape(q, [0, kvHeads, heads / kvHeads, -1, headSize]);
    const turned = this.op('Transpose', [keys], { perm: ints([0, 1, 3, 2]) });
    const scores = this.scores(groups, this.unsqueezed(turned));
    const mixed = this.op('MatMul', [this.weights(scores, 5), this.unsqueezed(values)]);
    return this.reshape(mixed, [0, heads, -1, headSize]);
  }

  /** [B, heads, …] -> [B, heads, 1, …]. */
  private unsqueezed(x: Value): Value {
    return this.context.rewriter.model.opset < 13
      ? this.op('Unsqueeze', [x], { axes: ints([2]) })
      : this.op('Unsqueeze', [x, this.ints('axis', [2])]);
  }

  private scores(q: Value, keys: Value): Value {
    const { scale, softcap } = this.shape;
    const { rewriter } = this.context;
    // the queries are the smaller side
    const scaled = scale === 1 ? q : this.op('Mul', [q, scalarLike(rewriter, q, scale)]);
    const scores = this.op('MatMul', [scaled, keys]);
    if (softcap === 0) return scores;
    const cap = scalarLike(rewriter, q, softcap);
    return this.op('Mul', [this.op('Tanh', [this.op('Div', [scores, cap])]), cap]);
  }

  private weights(scores: Value, rank: 4 | 5): Value {
    const { node } = this;
    let masked = scores;
    for (const term of [this.bias(rank), expandedMask(node, this.shape, rank, this.context)])
      if (term !== undefined) masked = this.op('Add', [masked, term]);
    const sinks = node.inputs[at.sinks];
    if (sinks === undefined) return this.op('Softmax', [masked], { axis: int(-1) });
    return this.withSinks(scores, masked, sinks, rank);
  }

  /** One more key for every query, whose weight is dropped again. */
  private withSinks(scores: Value, masked: Value, sinks: Value, rank: 4 | 5): Value {
    const { heads, kvHeads } = this.shape;
    const shape = rank === 4 ? [1, heads, 1, 1] : [1, kvHeads, heads / kvHeads, 1, 1];
    const bounds = ['start', 'end', 'axis'].map((what, index) =>
      this.ints(what, [[0, 1, rank - 1][index] ?? 0]),
    );
    // a column of zeros of the right size, from scores that are finite
    const column = this.op('Slice', [scores, ...bounds]);
    const zeros = this.op('Mul', [column, scalarLike(this.context.rewriter, scores, 0)]);
    const sink = this.op('Add', [zeros, this.reshape(sinks, shape)]);
    const weights = this.op('Softmax', [this.op('Concat', [masked, sink], { axis: int(-1) })], {
      axis: int(-1),
    });
    return this.op('Slice', [
      weights,
      this.ints('start', [0]),
      this.ints('end', [-1]),
      this.ints('axis', [rank - 1]),
    ]);
  }

  /** The bias input, with an axis for groups where heads are grouped. */
  private bias(rank: 4 | 5): Value | undefined {
    const bias = this.node.inputs[at.bias];
    const given = bias?.shape;
    if (bias === undefined || rank === 4 || given === undefined || given.length < 3) return bias;
    if (given.length === 3 || given[1] === 1) return this.unsqueezedBias(bias, given.length);
    const { heads, kvHeads } = this.shape;
    // [B, H, S, T] -> [B, KV, G, S, T], of which only a run knows the last two
    const sizes = this.op('Shape', [bias]);
    const take = (axis: number): Value =>
      this.op('Slice', [
        sizes,
        this.ints('start', [axis]),
        this.ints('end', [axis + 1]),
        this.ints('axis', [0]),
      ]);
    const target = this.op(
      'Concat',
      [take(0), this.ints('groups', [kvHeads, heads / kvHeads]), take(2), take(3)],
      {
        axis: int(0),
      },
    );
    return this.op('Reshape', [bias, target]);
  }

  private unsqueezedBias(bias: Value, rank: number): Value {
    const axis = rank === 4 ? 2 : 0;
    return this.context.rewriter.model.opset < 13
      ? this.op('Unsqueeze', [bias], { axes: ints([axis]) })
      : this.op('Unsqueeze', [bias, this.ints('axis', [axis])]);
  }
}
