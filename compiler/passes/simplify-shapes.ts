/**
 * Replaces shape arithmetic by constants, or by the shortest ops that give the same sizes.
 *
 *     Shape(x: [2, b]) -> Gather(0)                    ->   2
 *     Reshape(x: [b, s, 192], Concat(b, s, 6, 32))     ->   Reshape(x, [0, 0, 6, 32])
 *     Expand(x: [b, 2, 1, s], [b, 2, 3, s])            ->   Expand(x, [1, 1, 3, 1])
 *     Slice(x: [b, s], start, Shape(x) -> Gather(1))   ->   Slice(x, start, 2^63-1)
 *     Concat(Unsqueeze(Gather(Shape(x), 0)), …)        ->   Concat(Gather(Shape(x), [0, 1]), …)
 *     Add(x: [b, s], Expand(c, [b, s]))                ->   Add(x, c)
 *
 * What is known about the contents of shape tensors is `ValueType.elements`, found by inference. Two
 * sizes count as equal when the model gives them the same name. A target entry of -1 needs the other
 * sizes to be non-zero when the model runs. Values do not change, only who computes the shapes.
 */
import { dtypes } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import { isStatic } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { Weight } from '../ir/weight.ts';
import { filled, int64s, writeNumbers } from '../ops/numbers.ts';
import { integersOf } from './constants.ts';
import { removeDead } from './eliminate-dead.ts';
import type { Pass, PassContext } from './pass.ts';
import { replaceByConstant, removeIfUnused } from './replace.ts';
import { shortenShape } from './shorten-shape.ts';
import { reshapeTarget } from './views.ts';

/** Makes the pass. It has no options. */
export function simplifyShapes(): Pass {
  return {
    name: 'simplify-shapes',
    options: {},
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes()) visit(node, model.opset, context);
      // what the new constants left behind would only be in the way
      if (context.rewriter.changes > before) removeDead(model.graph, context);
      // from the end: the last consumer of a computation decides how much of it can go
      for (const node of [...model.graph.allNodes()].reverse()) shortenShape(node, context);
      return context.rewriter.changes > before;
    },
  };
}

function visit(node: Node, opset: number, context: PassContext): void {
  if (node.domain !== '' || node.graph === undefined || node.op === 'Constant') return;
  if (knownOutputs(node, context)) return;
  if (node.op === 'Reshape' && opset >= 5) reshape(node, context);
  else if (node.op === 'Expand') expand(node, context);
  else if (node.op === 'Slice' && opset >= 10) slice(node, context);
  else if (broadcasting.has(node.op)) operands(node, context);
}

/** Outputs whose contents are known become constants. True when the node has gone. */
function knownOutputs(node: Node, context: PassContext): boolean {
  const { rewriter } = context;
  for (const output of node.outputs) {
    if (output === undefined || output.useCount === 0) continue;
    const { dtype, shape, elements } = output;
    if (dtype === undefined || elements === undefined || !isStatic(elements)) continue;
    // inference writes the end of every list as 2^53 - 1; what it was is for fold-constants to say
    if (elements.some((element) => Math.abs(element) >= Number.MAX_SAFE_INTEGER)) continue;
    const { kind } = dtypes[dtype];
    if (kind !== 'int' && kind !== 'uint' && kind !== 'bool') continue;
    if (!isStatic(shape) || shape.reduce((a, b) => a * b, 1) !== elements.length) continue;
    if (output.isOutput && node.graph !== rewriter.model.graph) {
      context.refuse('constant', node, 'a subgraph cannot hand out a value from outside of it');
      continue;
    }
    rewriter.before(node);
    replaceByConstant(rewriter, output, Weight.of(writeNumbers(dtype, shape, elements)));
    context.count('constant');
  }
  removeIfUnused(rewriter, node);
  return node.graph === undefined;
}

function reshape(node: Node, context: PassContext): void {
  const [x, target] = node.inputs;
  const output = node.output(0);
  if (target === undefined || target.weight !== undefined) return;
  if (x?.shape === undefined || output.shape === undefined) {
    context.refuse('reshape', node, 'the rank of its input or its output is not known');
    return;
  }
  const sizes = reshapeTarget(x.shape, output.shape);
  if (sizes === undefined) {
    context.refuse('reshape', node, `[${output.shape.join(', ')}] has two sizes only known later`);
    return;
  }
  const { rewriter } = context;
  rewriter.setInput(node, 1, rewriter.constant(`${output.name}_shape`, int64s(sizes)));
  if (node.attributes.has('allowzero')) rewriter.setAttribute(node, 'allowzero', undefined);
  context.count('reshape');
}

/** Sizes the input has already are asked for as 1. */
function expand(node: Node, context: PassContext): void {
  const [x, target] = node.inputs;
  const { shape, name } = node.output(0);
  if (target === undefined || target.weight !== undefined) return;
  if (x?.shape === undefined || shape === undefined) return;
  const from = x.shape;
  const sizes = shape.map((dim, axis) => {
    const index = axis - shape.length + from.length;
    return index >= 0 && from[index] === dim ? 1 : dim;
  });
  if (!isStatic(sizes)) {
    context.refuse('expand', node, `[${sizes.join(', ')}] is only known when the model runs`);
    return;
  }
  const { rewriter } = context;
  rewriter.setInput(node, 1, rewriter.constant(`${name}_shape`, int64s(sizes)));
  context.count('expand');
}

const TO_THE_END = 2n ** 63n - 1n;

/** An end that is the size of the axis means "to the end". */
function slice(node: Node, context: PassContext): void {
  const [x, , ends, axes, steps] = node.inputs;
  const { elements } = ends ?? {};
  if (x?.shape === undefined || ends === undefined || ends.weight !== undefined) return;
  if (elements === undefined || isStatic(elements)) return;
  const { shape } = x;
  const listed = axes === undefined ? elements.map((_, index) => index) : integersOf(axes);
  if (listed === undefined) return;
  const forward = steps === undefined || integersOf(steps)?.every((step) => step > 0) === true;
  const limits = elements.map((end, index) => {
    if (typeof end === 'number') return BigInt(end);
    const axis = listed[index] ?? 0;
    return shape[axis < 0 ? axis + shape.length : axis] === end ? TO_THE_END : undefined;
  });
  if (!forward || limits.includes(undefined)) {
    context.refuse('slice', node, `its end [${elements.join(', ')}] is only known when it runs`);
    return;
  }
  const { rewriter } = context;
  const data = BigInt64Array.from(limits as bigint[]);
  rewriter.setInput(
    node,
    2,
    rewriter.constant(`${node.output(0).name}_ends`, { dtype: 'i64', shape: [data.length], data }),
  );
  // starts and ends have one dtype
  const starts = node.input(1);
  if (starts.dtype !== 'i64') retype(node, 1, context);
  if (axes !== undefined && axes.dtype !== 'i64') retype(node, 3, context);
  if (steps !== undefined && steps.dtype !== 'i64') retype(node, 4, context);
  context.count('slice');
}

/** Gives an i32 constant input of a Slice the dtype of the others. */
function retype(node: Node, index: number, context: PassContext): void {
  const { rewriter } = context;
  const numbers = integersOf(node.inputs[index]);
  const value = node.input(index);
  rewriter.setInput(
    node,
    index,
    numbers === undefined
      ? rewriter.before(node).op('Cast', [value], { to: { kind: 'int', value: 7n } })
      : rewriter.constant(`${value.name}_i64`, int64s(numbers)),
  );
}

const broadcasting: ReadonlySet<string> = new Set(
  (
    'Add Sub Mul Div Pow Mod Max Min Where PRelu ' +
    'And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual'
  ).split(' '),
);

/** An operand that was only expanded to the shape of the others need not be. */
function operands(node: Node, context: PassContext): void {
  const { rewriter } = context;
  const wanted = node.output(0).shape;
  if (wanted === undefined || (node.op === 'PRelu' && node.inputs.length < 2)) return;
  node.inputs.forEach((operand, index) => {
    if (operand === undefined || (node.op === 'PRelu' && index === 0)) return;
    const small = beforeExpansion(operand, context);
    if (small === undefined) return;
    const others = node.inputs.map((input, at) => (at === index ? small.shape : input?.shape));
    if (!coversAlone(others, wanted)) return;
    rewriter.setInput(node, index, small.value());
    context.count('operand');
  });
}

/** What an Expand, or a fill with one value, repeats. */
function beforeExpansion(
  value: Value,
  context: PassContext,
): { readonly shape: Shape; value(): Value } | undefined {
  const { producer } = value;
  if (producer === undefined || producer.domain !== '') return undefined;
  if (producer.op === 'Expand') {
    const source = producer.input(0);
    return source.shape === undefined ? undefined : { shape: source.shape, value: () => source };
  }
  if (producer.op !== 'ConstantOfShape' || value.dtype === undefined) return undefined;
  const { dtype } = value;
  const stored = producer.attributes.get('value');
  const fill = stored?.kind === 'tensor' ? stored.value.reshaped([]) : filled('f32', [], 0);
  return { shape: [], value: () => context.rewriter.constant(`${value.name}_${dtype}`, fill) };
}

/** Whether shapes broadcast to `wanted` whatever the symbols are. */
function coversAlone(shapes: readonly (Shape | undefined)[], wanted: Shape): boolean {
  const rank = Math.max(0, ...shapes.map((shape) => shape?.length ?? 0));
  if (rank !== wanted.length) return false;
  return wanted.every((dim: Dim, axis) =>
    shapes.some((shape) => {
      if (shape === undefined) return false;
      const own = shape[axis - rank + shape.length];
      return own === dim || (own === undefined && dim === 1);
    }),
  );
}
