/**
 * Moves a Transpose past elementwise ops to the next one, so that the two become one or none.
 *
 *     Transpose(Relu(Transpose(x, p)), q)                    ->   Relu(x)         when q undoes p
 *     Transpose(Add(Transpose(x, p), Transpose(z, p)), q)    ->   Add(x, z)
 *     Transpose(Mul(Transpose(x, p), c), q)                  ->   Transpose(Mul(x, c'), p∘q)
 *
 * Exact: constants are permuted, nothing is computed differently. The ops between must have no other
 * reader. At least one Transpose goes away each time.
 */
import { ints } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { transposed } from '../ops/reshape.ts';
import { elementwiseOperands, withInputs } from './elementwise-ops.ts';
import { removeAll } from './fuse-activation.ts';
import type { Pass, PassContext } from './pass.ts';
import { obstacle, replaceByNew, replaceValue } from './replace.ts';
import { isTranspose, permutationOf } from './views.ts';

/** Makes the pass. It has no options. */
export function sinkTransposes(): Pass {
  return {
    name: 'sink-transposes',
    options: {},
    rules: [{ name: 'transpose', starts: ['Transpose'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes())
        if (isTranspose(node) && node.graph !== undefined) visit(node, context);
      return context.rewriter.changes > before;
    },
  };
}

/** A value without the permutation in front of it. */
type Part =
  | { readonly kind: 'source'; readonly value: Value; readonly transpose: Node }
  | { readonly kind: 'constant'; readonly value: Value }
  | { readonly kind: 'op'; readonly node: Node; readonly parts: readonly Part[] };

function visit(last: Node, context: PassContext): void {
  const [input] = last.inputs;
  const outer = permutationOf(last);
  const rank = input?.shape?.length;
  // two in a row are the business of merge-adjacent
  if (input === undefined || outer === undefined || rank === undefined)
    return context.miss('transpose', last, 'its rank is not known');
  if (isTranspose(input.producer))
    return context.miss('transpose', last, 'two in a row are for merge-adjacent');
  const part = partOf(input, rank, last);
  if (part === undefined)
    return context.miss(
      'transpose',
      last,
      'what it reads is not computed elementwise from transposed values and constants alone',
    );
  if (typeof part === 'string') return context.refuse('transpose', last, part);
  const sources = sourcesOf(part);
  const perms = sources.map(({ transpose }) => permutationOf(transpose));
  const [inner] = perms;
  if (inner === undefined) return;
  if (perms.some((perm) => perm?.join() !== inner.join())) {
    context.refuse('transpose', last, 'the operands are transposed differently');
    return;
  }
  const perm = outer.map((axis) => inner[axis] ?? 0);
  const cancels = perm.every((axis, index) => axis === index);
  const { rewriter } = context;
  const [only] = part.kind === 'source' ? [part.value] : [undefined];
  const why = only && cancels ? obstacle(rewriter.model.graph, last.output(0), only) : undefined;
  if (why !== undefined) {
    context.refuse('transpose', last, why);
    return;
  }
  rewriter.before(last);
  const value = build(rewriter, part, inner);
  const from = [...new Set([...last.from, ...sources.flatMap(({ transpose }) => transpose.from)])];
  const turns = sources.map(({ transpose }) => transpose);
  const nodes = new Set([last, ...nodesOf(part), ...turns]);
  if (cancels) replaceValue(rewriter, last.output(0), value);
  else
    replaceByNew(
      rewriter,
      last.output(0),
      rewriter.op('Transpose', [value], { perm: ints(perm) }, { from }),
    );
  removeAll(nodes, context);
  context.count('transpose');
}

/** How a value is computed from transposed ones; a sentence when it nearly is, undefined when it is not. */
function partOf(value: Value, rank: number, reader: Node): Part | string | undefined {
  if (value.weight !== undefined)
    return (value.shape?.length ?? rank + 1) <= rank ? { kind: 'constant', value } : undefined;
  const node = value.producer;
  if (node === undefined || node.graph !== reader.graph || value.shape?.length !== rank)
    return undefined;
  if (isTranspose(node)) return { kind: 'source', value: node.input(0), transpose: node };
  const operands = elementwiseOperands(node);
  if (operands === undefined) return undefined;
  const found = operands.map((operand) => partOf(operand, rank, node));
  const sentence = found.find((part) => typeof part === 'string');
  if (sentence !== undefined) return sentence;
  const parts = found.filter((part) => typeof part === 'object');
  if (parts.length < found.length || parts.every(({ kind }) => kind === 'constant'))
    return undefined;
  if (value.useCount > 1 || value.isOutput) return `${node.describe()} is read elsewhere too`;
  return { kind: 'op', node, parts };
}

function sourcesOf(part: Part): readonly (Part & { readonly kind: 'source' })[] {
  if (part.kind === 'source') return [part];
  return part.kind === 'constant' ? [] : part.parts.flatMap(sourcesOf);
}

function nodesOf(part: Part): readonly Node[] {
  return part.kind === 'op' ? [part.node, ...part.parts.flatMap(nodesOf)] : [];
}

/** Computes a value in the layout from before the permutation. */
function build(rewriter: Rewriter, part: Part, perm: readonly number[]): Value {
  if (part.kind === 'source') return part.value;
  if (part.kind === 'constant') return permuted(rewriter, part.value, perm);
  return withInputs(
    rewriter,
    part.node,
    part.parts.map((inner) => build(rewriter, inner, perm)),
  );
}

/** A constant that gives after the permutation what `value` is. */
function permuted(rewriter: Rewriter, value: Value, perm: readonly number[]): Value {
  const tensor = value.constant();
  if (tensor === undefined || tensor.shape.every((dim) => dim === 1)) return value;
  const shape = [...perm.slice(tensor.shape.length).map(() => 1), ...tensor.shape];
  const inverse = perm.map((_, axis) => perm.indexOf(axis));
  const moved = transposed({ ...tensor, shape }, inverse);
  return rewriter.constant(`${value.name}_permuted`, moved);
}
