/**
 * Writes onnxruntime's attention ops whose queries, keys and values come packed as the ones that take them
 * apart, so that there is one form to recognise.
 *
 *     Attention(x, w, b)                        ->   MultiHeadAttention(Split(Add(MatMul(x, w), b)))
 *     MultiHeadAttention(qkv [B, S, H, 3, D])   ->   MultiHeadAttention(q, k, v)
 *     MultiHeadAttention(q, k, v, bias)         ->   MultiHeadAttention(Add(q, b), Add(k, b), Add(v, b))
 *     GroupQueryAttention(qkv)                  ->   GroupQueryAttention(Split(qkv))
 *     DecoderMaskedMultiHeadAttention(q, k, v)  ->   MultiHeadAttention(q, k, v)
 *
 * Masks by lengths become masks by key, masks by query become a bias, and a cache of keys and values in
 * one tensor is taken apart around the op. Refuses buffers that are shared between past and present,
 * beams, and rotary embeddings inside of Attention.
 *
 * Source: ContribOperators.md of onnxruntime.
 */
import type { Attributes } from '../ir/attribute.ts';
import { int, ints } from '../ir/attribute.ts';
import { divideDims, sizeOf } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { filled, int64s, readNumbers, writeNumbers } from '../ops/numbers.ts';
import { dtypes } from '../../runtime/tensor.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused, replaceByNew } from './replace.ts';

const MICROSOFT = 'com.microsoft';

/** Makes the pass. It has no options. */
export function unpackAttention(): Pass {
  return {
    name: 'unpack-attention',
    options: {},
    rules: [...rules].map(([op, { name }]) => ({ name, starts: [`${MICROSOFT}.${op}`] })),
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes()) {
        const rule = node.domain === MICROSOFT ? rules.get(node.op) : undefined;
        if (rule === undefined) continue;
        const why = rule.apply(new Unpacking(node, context));
        if (why === undefined) context.count(rule.name);
        else if (why !== NOTHING) context.refuse(rule.name, node, why);
        else context.miss(rule.name, node, 'nothing is packed');
      }
      return context.rewriter.changes > before;
    },
  };
}

/** Nothing is packed. */
const NOTHING = '';

/** A tensor that holds one or more of queries, keys and values. */
interface Packed {
  readonly value: Value;
  readonly count: number;
  /** Rows of each, when a bias has been added. */
  readonly finish: (value: Value) => readonly Value[];
}

interface Rule {
  readonly name: string;
  /** Why not; {@link NOTHING} when there is nothing to do, undefined when it is done. */
  readonly apply: (unpacking: Unpacking) => string | undefined;
}

const rules: ReadonlyMap<string, Rule> = new Map([
  ['Attention', { name: 'projection', apply: (one) => one.projection() }],
  ['MultiHeadAttention', { name: 'heads', apply: (one) => one.heads() }],
  ['DecoderMaskedMultiHeadAttention', { name: 'decoder', apply: (one) => one.decoder() }],
  ['GroupQueryAttention', { name: 'groups', apply: (one) => one.groups() }],
]);

class Unpacking {
  private readonly node: Node;
  private readonly context: PassContext;

  constructor(node: Node, context: PassContext) {
    this.node = node;
    this.context = context;
  }

  /** com.microsoft.Attention. */
  projection(): string | undefined {
    const { node } = this;
    const [x, weights, bias, mask, past, scoresBias, pastLength] = node.inputs;
    const [, present] = node.outputs;
    const heads = node.int('num_heads', 0);
    const columns = weights?.shape?.at(-1);
    if (x === undefined || weights === undefined || typeof columns !== 'number' || heads < 1)
      return 'the width of its projection is not known';
    if (pastLength !== undefined || node.int('past_present_share_buffer', 0) !== 0)
      return 'past and present share a buffer';
    if (node.int('do_rotary', 0) !== 0) return 'it has a rotary embedding inside';
    if (past === undefined && (present?.useCount ?? 0) > 0)
      return 'it fills a cache that it does not read';
    const widths = node.ints('qkv_hidden_sizes') ?? [columns / 3, columns / 3, columns / 3];
    if (widths.some((width) => !Number.isInteger(width / heads)))
      return 'its widths are no multiple of its heads';
    const form = maskForm(mask, x, past?.shape?.[3]);
    if (form === 'unknown') return `what its mask of shape [${mask?.shape}] hides is not known`;
    this.context.rewriter.before(node);
    const product = this.op('MatMul', [x, weights]);
    const rows = bias === undefined ? product : this.op('Add', [product, bias]);
    const [q, k, v] = this.split(rows, widths);
    const halves = [0, 1].map((index) => past && this.half(past, index));
    const made = this.attention(
      [q, k, v, undefined, ...this.masks(form, mask, scoresBias, k), ...halves],
      present === undefined || past === undefined ? 1 : 3,
    );
    if (present !== undefined && past !== undefined && present.useCount > 0) {
      const axis = int64s([0]);
      const parts = [1, 2].map((index) => this.moved('Unsqueeze', made.output(index), axis));
      replaceByNew(this.context.rewriter, present, this.op('Concat', parts, { axis: int(0) }));
    }
    return this.finish(made);
  }

  /** com.microsoft.MultiHeadAttention. */
  heads(): string | undefined {
    const { node } = this;
    const [query, key, value, bias, mask] = node.inputs;
    const heads = node.int('num_heads', 0);
    if (query === undefined || heads < 1) return 'it lacks an input';
    const form = maskForm(mask, query, node.inputs[6]?.shape?.[2], key);
    const packed = query.shape?.length === 5 || key?.shape?.length === 5;
    if (!packed && bias === undefined && (form === 'none' || form === 'keys')) return NOTHING;
    if (node.inputs[8] !== undefined) return 'past and present share a buffer';
    if (form === 'unknown') return `what its mask of shape [${mask?.shape}] hides is not known`;
    const numbers = bias?.weight && readNumbers(bias.weight.tensor());
    if (bias !== undefined && numbers === undefined) return 'its bias is no constant';
    this.context.rewriter.before(node);
    const parts = this.parts(query, key, value, heads);
    if (parts === undefined) return 'the width of its heads is not known';
    const isCache = key?.shape?.length === 4;
    let from = 0;
    const biased = parts
      .map(({ value: part, count, finish }, index) => {
        const columns = sizeOf(part.shape?.slice(2) ?? []);
        // keys with heads apart are a cache that has its bias already
        if (bias === undefined || typeof columns !== 'number' || (isCache && index > 0))
          return finish(part);
        // a bias is packed by part, the rows by head
        const width = columns / count / heads;
        const own = numbers?.slice(from, (from += columns));
        const row = Float64Array.from({ length: columns }, (_, index) => {
          const [head, slot] = [
            Math.floor(index / width / count),
            Math.floor(index / width) % count,
          ];
          return own?.[(slot * heads + head) * width + (index % width)] ?? 0;
        });
        const shape = count === 1 ? [columns] : [heads, count, width];
        const term = writeNumbers(bias.dtype ?? 'f32', shape, row);
        return finish(
          this.op('Add', [part, this.context.rewriter.constant(`${bias.name}_part`, term)]),
        );
      })
      .flat();
    const made = this.attention(
      [
        ...biased,
        undefined,
        ...this.masks(form, mask, node.inputs[5], biased[1] ?? query),
        node.inputs[6],
        node.inputs[7],
      ],
      node.outputs.map((output) => output !== undefined),
    );
    return this.finish(made);
  }

  /** com.microsoft.DecoderMaskedMultiHeadAttention. */
  decoder(): string | undefined {
    const { node } = this;
    const [q, k, v, mask, scoresBias, pastKey, pastValue, length, beams, indirection, bias] =
      node.inputs;
    if (length !== undefined || node.int('past_present_share_buffer', 0) !== 0)
      return 'past and present share a buffer';
    if (beams !== undefined || indirection !== undefined) return 'it follows beams';
    this.context.rewriter.before(node);
    const made = this.attention(
      [q, k, v, bias, mask, scoresBias, pastKey, pastValue],
      node.outputs.slice(0, 3).map((output) => output !== undefined),
    );
    this.finish(made);
    new Unpacking(made, this.context).heads();
    return undefined;
  }

  /** com.microsoft.GroupQueryAttention. */
  groups(): string | undefined {
    const { node } = this;
    const [query, key] = node.inputs;
    if (key !== undefined || query === undefined) return NOTHING;
    const [heads, kvHeads] = [node.int('num_heads', 0), node.int('kv_num_heads', 0)];
    const width = divideDims(query.shape?.at(-1) ?? 'unknown', heads + 2 * kvHeads);
    if (typeof width !== 'number') return 'the width of its heads is not known';
    const { rewriter } = this.context;
    rewriter.before(node);
    const parts = this.split(query, [heads * width, kvHeads * width, kvHeads * width]);
    parts.forEach((part, index) => rewriter.setInput(node, index, part));
    return undefined;
  }

  /** Puts what was made in the place of the node. */
  private finish(made: Node): undefined {
    const { rewriter } = this.context;
    this.node.outputs.forEach((output, index) => {
      const value = made.outputs[index];
      if (output === undefined || value === undefined) return;
      if (this.node.op === 'Attention' && index > 0) return;
      replaceByNew(rewriter, output, value);
    });
    removeIfUnused(rewriter, this.node);
    return undefined;
  }

  /** Tensors that hold q, k and v, and how to make rows of them; undefined when a width is not known. */
  private parts(
    query: Value,
    key: Value | undefined,
    value: Value | undefined,
    heads: number,
  ): readonly Packed[] | undefined {
    const whole = (x: Value): Packed => ({ value: x, count: 1, finish: (made) => [made] });
    const packed = (x: Value, count: number): Packed | undefined => {
      const width = x.shape?.[4];
      if (typeof width !== 'number') return undefined;
      const part = (made: Value, index: number): Value =>
        this.reshaped(this.op('Gather', [made, this.scalar(index)], { axis: int(3) }), [
          0,
          0,
          heads * width,
        ]);
      return {
        value: x,
        count,
        finish: (made) => Array.from({ length: count }, (_, index) => part(made, index)),
      };
    };
    const all =
      query.shape?.length === 5
        ? [packed(query, 3)]
        : key?.shape?.length === 5
          ? [whole(query), packed(key, 2)]
          : [query, key, value].map((x) => x && whole(x));
    return all.every((part) => part !== undefined) ? all : undefined;
  }

  /** Padding by key and bias of the scores, from a mask in any of its forms. */
  private masks(
    form: MaskForm,
    mask: Value | undefined,
    bias: Value | undefined,
    keys: Value | undefined,
  ): readonly [padding: Value | undefined, bias: Value | undefined] {
    if (mask === undefined || form === 'none') return [undefined, bias];
    if (form === 'keys') return [mask, bias];
    if (form === 'lengths') {
      const shape = this.op('Shape', [keys ?? this.node.input(0)]);
      const count = this.op('Gather', [shape, this.scalar(1)], { axis: int(0) });
      const places = this.op('Range', [this.scalar(0), count, this.scalar(1)]);
      const ends = this.moved('Unsqueeze', this.cast(mask, 'i64'), int64s([1]));
      return [this.cast(this.op('Less', [places, ends]), 'i32'), bias];
    }
    const low = this.node.float('mask_filter_value', -10_000);
    const seen = this.moved('Unsqueeze', this.cast(mask, 'bool'), int64s([1]));
    const term = this.op('Where', [seen, this.float(0), this.float(low)]);
    return [undefined, bias === undefined ? term : this.op('Add', [bias, term])];
  }

  private attention(
    inputs: readonly (Value | undefined)[],
    outputs: number | readonly boolean[],
  ): Node {
    const kept = ['num_heads', 'scale', 'unidirectional', 'mask_filter_value'];
    const attributes: Attributes = Object.fromEntries(
      [...this.node.attributes].filter(([name]) => kept.includes(name)),
    );
    const given = [...inputs];
    while (given.length > 0 && given.at(-1) === undefined) given.pop();
    return this.context.rewriter.node('MultiHeadAttention', given, attributes, {
      domain: MICROSOFT,
      outputs,
    });
  }

  /** Keys or values of a cache that holds both. */
  private half(past: Value, index: number): Value {
    return this.op('Gather', [past, this.scalar(index)], { axis: int(0) });
  }

  private split(x: Value, widths: readonly number[]): readonly Value[] {
    let from = 0;
    return widths.map((width) => {
      from += width;
      return this.sliced(x, from - width, from);
    });
  }

  /** Columns of the last axis. */
  private sliced(x: Value, from: number, to: number): Value {
    const axis = (x.shape?.length ?? 1) - 1;
    const [start, end, axes] = [from, to, axis].map((value) => this.ints([value]));
    return this.op('Slice', [x, start, end, axes]);
  }

  private reshaped(x: Value, sizes: readonly number[]): Value {
    return this.op('Reshape', [x, this.ints(sizes)]);
  }

  private moved(op: 'Unsqueeze', x: Value, axes: ReturnType<typeof int64s>): Value {
    const { rewriter } = this.context;
    if (rewriter.model.opset < 13)
      return this.op(op, [x], { axes: ints([...(axes.data as BigInt64Array)]) });
    return this.op(op, [x, rewriter.constant('unpacked_axes', axes)]);
  }

  private cast(x: Value, dtype: 'i64' | 'i32' | 'bool'): Value {
    return x.dtype === dtype ? x : this.op('Cast', [x], { to: int(dtypes[dtype].onnx) });
  }

  private op(
    name: string,
    inputs: readonly (Value | undefined)[],
    attributes: Attributes = {},
  ): Value {
    return this.context.rewriter.op(name, inputs, attributes);
  }

  private ints(values: readonly number[]): Value {
    return this.context.rewriter.constant('unpacked_sizes', int64s(values));
  }

  private scalar(value: number): Value {
    return this.context.rewriter.constant('unpacked_index', filled('i64', [], value));
  }

  private float(value: number): Value {
    return this.context.rewriter.constant('unpacked_mask', filled('f32', [], value));
  }
}

/** What a mask of onnxruntime hides: keys, keys from a length on, or keys by query. */
type MaskForm = 'none' | 'keys' | 'lengths' | 'queries' | 'unknown';

function maskForm(mask: Value | undefined, query: Value, past: unknown, key?: Value): MaskForm {
  if (mask === undefined) return 'none';
  const { shape } = mask;
  if (shape?.length === 2) return 'keys';
  // right padding, of keys that have no cache in front
  if (shape?.length === 1 && shape[0] === query.shape?.[0] && past === undefined)
    return key === undefined || key.shape?.length === 3 ? 'lengths' : 'unknown';
  return shape?.length === 3 ? 'queries' : 'unknown';
}
