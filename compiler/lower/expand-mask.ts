/**
 * Causality, windows and padding as a term to add to scores, written once for all attentions that share
 * it:
 *
 *     Where(j <= P + i  and  j > P + i - window  and  mask[b, j] != 0,  0,  lowest)
 */
import { int, ints } from '../ir/attribute.ts';
import type { Attributes } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { AttentionAttributes } from '../ops/fused-attention.ts';
import { attentionInputs as at } from '../ops/fused-attention.ts';
import { filled, int64s } from '../ops/numbers.ts';
import { dtypes } from '../../runtime/tensor.ts';
import type { LowerContext } from './context.ts';

/** What a hidden score gets: the lowest finite f32, as exporters write it. */
const LOWEST = -3.4028234663852886e38;

/**
 * The mask of an attention, [.., S, T], or with axes for sequences and heads where padding needs them.
 *
 * @param rank - of the scores
 * @returns undefined when every key is seen
 */
export function expandedMask(
  node: Node,
  { causal, window }: AttentionAttributes,
  rank: number,
  context: LowerContext,
): Value | undefined {
  const padding = node.inputs[at.mask];
  if (!causal && window === 0 && padding === undefined) return undefined;
  const past = node.inputs[at.pastKey];
  const q = node.input(at.q);
  const k = node.inputs[at.k] ?? q;
  // caches of all layers grow alike; queries of other sizes have other masks
  const key = [
    causal,
    window,
    rank,
    padding?.name,
    past?.shape?.[2],
    q.shape?.[1],
    k.shape?.[1],
  ].join(' ');
  const known = context.masks.get(key);
  if (known !== undefined) return known;
  const made = new Mask(node, context).write(causal, window, padding, rank);
  context.masks.set(key, made);
  return made;
}

class Mask {
  private readonly node: Node;
  private readonly context: LowerContext;

  constructor(node: Node, context: LowerContext) {
    this.node = node;
    this.context = context;
  }

  write(causal: boolean, window: number, padding: Value | undefined, rank: number): Value {
    let seen = causal || window > 0 ? this.inTime(causal, window) : undefined;
    if (padding !== undefined) {
      const kept = this.unsqueezed(
        this.asBool(padding),
        Array.from({ length: rank - 2 }, (_, i) => i + 1),
      );
      seen = seen === undefined ? kept : this.op('And', [seen, kept]);
    }
    const dtype = this.node.input(at.q).dtype ?? 'f32';
    const [zero, low] = [0, dtype === 'f16' ? -65_504 : LOWEST].map((value) =>
      this.context.rewriter.constant('mask_value', filled(dtype, [], value)),
    );
    return this.op('Where', [seen, zero, low]);
  }

  /** Keys up to a query's own and not too far behind it. // [S, T] */
  private inTime(causal: boolean, window: number): Value {
    const { node } = this;
    const queries = this.size(node.input(at.q), 1);
    const fresh = node.inputs[at.k] === undefined ? queries : this.size(node.input(at.k), 1);
    const past = node.inputs[at.pastKey];
    const before = past === undefined ? undefined : this.size(past, 2);
    const total = before === undefined ? fresh : this.op('Add', [before, fresh]);
    const keys = this.unsqueezed(this.range(total), [0]);
    const index = this.range(queries);
    const places = this.unsqueezed(
      before === undefined ? index : this.op('Add', [index, before]),
      [1],
    );
    const now = causal ? this.op('LessOrEqual', [keys, places]) : undefined;
    if (window === 0 && now !== undefined) return now;
    const first = this.op('Sub', [places, this.scalar(window)]);
    const near = this.op('Greater', [keys, first]);
    return now === undefined ? near : this.op('And', [now, near]);
  }

  private op(
    name: string,
    inputs: readonly (Value | undefined)[],
    attributes: Attributes = {},
  ): Value {
    return this.context.rewriter.op(name, inputs, attributes);
  }

  private scalar(value: number): Value {
    return this.context.rewriter.constant('mask_number', filled('i64', [], value));
  }

  private size(x: Value, axis: number): Value {
    return this.op('Gather', [this.op('Shape', [x]), this.scalar(axis)], { axis: int(0) });
  }

  private range(end: Value): Value {
    return this.op('Range', [this.scalar(0), end, this.scalar(1)]);
  }

  private asBool(mask: Value): Value {
    return mask.dtype === 'bool' ? mask : this.op('Cast', [mask], { to: int(dtypes.bool.onnx) });
  }

  private unsqueezed(x: Value, axes: readonly number[]): Value {
    const { rewriter } = this.context;
    return rewriter.model.opset < 13
      ? this.op('Unsqueeze', [x], { axes: ints(axes) })
      : this.op('Unsqueeze', [x, rewriter.constant('mask_axes', int64s(axes))]);
  }
}
