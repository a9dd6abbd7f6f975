/**
 * Lets an attention read queries, keys and values from one product.
 *
 *     Attention(Linear(x, wq), Linear(x, wk), Linear(x, wv))     ->   Attention(Linear(x, [wq, wk, wv]))
 *     Attention(Slice(p), Slice(p), Slice(p))                    ->   Attention(p)
 *
 * Refuses products that something else reads, weights that are no f32 constants, and biases or matrices
 * of different forms. The joined matrix is put together when it is read.
 */
import { int } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import { Weight } from '../ir/weight.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { attentionInputs, isFusedAttention, readAttention } from '../ops/fused-attention.ts';
import { isLinear } from '../ops/fused-linear.ts';
import { filled } from '../ops/numbers.ts';
import { internalDomain } from '../ops/quantized.ts';
import { integersOf } from './constants.ts';
import { removeAll } from './fuse-activation.ts';
import type { Pass, PassContext } from './pass.ts';
import { joined } from './weight-columns.ts';

/** Makes the pass. It has no options. */
export function fuseQkv(): Pass {
  return {
    name: 'fuse-qkv',
    options: {},
    rules: [
      { name: 'slices', starts: ['fettle.Attention'] },
      { name: 'products', starts: ['fettle.Attention'] },
    ],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.nodes())
        if (isFusedAttention(node))
          if (node.inputs[attentionInputs.k] === undefined)
            context.miss('fuse-qkv', node, 'its queries, keys and values are one value already');
          else if (!fromSlices(node, context)) fromProducts(node, context);
      return context.rewriter.changes > before;
    },
  };
}

function parts(node: Node): readonly [Value, Value, Value] {
  return [
    node.input(attentionInputs.q),
    node.input(attentionInputs.k),
    node.input(attentionInputs.v),
  ];
}

/** Points the attention at one packed value. */
function pack(node: Node, packed: Value, { rewriter }: PassContext): void {
  rewriter.setInput(node, attentionInputs.q, packed);
  rewriter.setInput(node, attentionInputs.k, undefined);
  rewriter.setInput(node, attentionInputs.v, undefined);
}

function fromSlices(node: Node, context: PassContext): boolean {
  const ranges = parts(node).map(rangeOf);
  const [q, k, v] = ranges;
  if (q === undefined || q.source !== k?.source || k.source !== v?.source) {
    context.miss('slices', node, 'its queries, keys and values are not columns of one value');
    return false;
  }
  const { heads, kvHeads, headSize } = readAttention(node);
  const [queries, keys] = [heads * headSize, kvHeads * headSize];
  const inOrder = q.from === 0 && k.from === queries && v.from === queries + keys;
  if (!inOrder || q.source.shape?.at(-1) !== queries + 2 * keys) {
    context.refuse(
      'slices',
      node,
      'its queries, keys and values do not follow each other in one value',
    );
    return true;
  }
  pack(node, q.source, context);
  removeAll([q.node, k.node, v.node], context);
  context.count('slices');
  return true;
}

/** The columns of another value that a value is. */
function rangeOf(value: Value): { source: Value; from: number; node: Node } | undefined {
  const node = value.producer;
  const [source] = node?.inputs ?? [];
  if (node === undefined || source === undefined || node.domain !== '') return undefined;
  const rank = source.shape?.length ?? 0;
  if (node.op === 'Split' && (node.int('axis', 0) + rank) % rank === rank - 1) {
    let from = 0;
    for (const output of node.outputs) {
      if (output === value) return { source, from, node };
      const width = output?.shape?.at(-1);
      if (typeof width !== 'number') return undefined;
      from += width;
    }
  }
  if (node.op !== 'Slice') return undefined;
  const [starts, axes, steps] = [1, 3, 4].map((index) => integersOf(node.inputs[index]));
  if (starts?.length !== 1 || axes?.length !== 1 || (steps?.[0] ?? 1) !== 1) return undefined;
  return ((axes[0] ?? 0) + rank) % rank === rank - 1 && (starts[0] ?? -1) >= 0
    ? { source, from: starts[0] ?? 0, node }
    : undefined;
}

function fromProducts(node: Node, context: PassContext): void {
  const values = parts(node);
  const linears = values.flatMap(({ producer }) => (isLinear(producer) ? [producer] : []));
  const [q, k, v] = linears;
  if (q === undefined || k === undefined || v === undefined)
    return context.miss('products', node, 'not all of them come right from linear layers');
  if (q.input(0) !== k.input(0) || q.input(0) !== v.input(0))
    return context.miss('products', node, 'the linear layers read different values');
  const weights = linears.flatMap((linear) => linear.input(1).weight ?? []);
  const why =
    new Set(linears).size < 3 || values.some((value) => value.onlyUser !== node)
      ? 'one of the products is used elsewhere'
      : weights.length < 3 || weights.some(({ dtype }) => dtype !== 'f32')
        ? 'one of the matrices is no f32 constant'
        : new Set(linears.map((linear) => linear.int('transposed', 0))).size > 1
          ? 'only some of the matrices are transposed'
          : linears.some(
                (linear) => linear.inputs[3] !== undefined || activationNameOf(linear) !== 'none',
              )
            ? 'one of the products has an activation or a residual'
            : undefined;
  if (why !== undefined) {
    context.refuse('products', node, why);
    return;
  }
  const { rewriter } = context;
  const turned = q.int('transposed', 0) === 1;
  const weight = rewriter.constant(`${q.input(1).name}_qkv`, joined(weights, turned ? 0 : 1));
  const biases = biasesOf(linears);
  const bias =
    biases === undefined
      ? []
      : [rewriter.constant(`${q.input(1).name}_qkv_bias`, joined(biases, 0))];
  rewriter.before(node);
  const packed = rewriter.op(
    'Linear',
    [q.input(0), weight, ...bias],
    { transposed: int(turned ? 1 : 0) },
    {
      domain: internalDomain,
      name: q.name,
      from: [...new Set(linears.flatMap(({ from }) => from))],
    },
  );
  pack(node, packed, context);
  removeAll(linears, context);
  context.count('products');
}

/** Biases of all, zeros where one has none; undefined when none has any. */
function biasesOf(linears: readonly Node[]): readonly Weight[] | undefined {
  if (linears.every((linear) => linear.inputs[2] === undefined)) return undefined;
  return linears.map((linear) => {
    const columns = linear.output(0).shape?.at(-1);
    const zeros = filled('f32', [typeof columns === 'number' ? columns : 0], 0);
    return linear.inputs[2]?.weight ?? Weight.of(zeros);
  });
}
