/**
 * Takes away a Reshape before linear ops that only counts rows differently, and the one that undoes it.
 *
 *     Reshape(Linear(Reshape(x [B, S, K], [B·S, K]), w), [B, S, N])   ->   Linear(x, w)
 *
 * Exact: linear ops over the last axis, and elementwise ops with constants that have no rows, do not
 * care how the rows are arranged. The ops between must have no other reader.
 */
import type { Shape } from '../ir/dim.ts';
import { sameShape } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { isGatedLinear, isLinear, linearInputs } from '../ops/fused-linear.ts';
import { elementwiseOperands, withInputs } from './elementwise-ops.ts';
import { removeAll } from './fuse-activation.ts';
import type { Pass, PassContext } from './pass.ts';
import { replaceByNew } from './replace.ts';
import { isView, viewOps } from './views.ts';

/** Makes the pass. It has no options. */
export function reassociateReshapes(): Pass {
  return {
    name: 'reassociate-reshapes',
    options: {},
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes()) if (isView(node)) visit(node, context);
      return context.rewriter.changes > before;
    },
  };
}

function visit(last: Node, context: PassContext): void {
  const chain: Node[] = [];
  let value = last.input(0);
  for (let node = value.producer; node !== undefined; node = value.producer) {
    if (node.graph !== last.graph || viewOps.has(node.op)) break;
    const data = dataOf(node);
    if (data === undefined) return;
    if (value.useCount > 1 || value.isOutput) {
      context.refuse('reshape', last, `${node.describe()} is read elsewhere too`);
      return;
    }
    chain.push(node);
    value = data;
  }
  const first = value.producer;
  if (first === undefined || !isView(first) || !chain.some(mixesColumns)) return;
  const x = first.input(0);
  const why = reason(x.shape, first.output(0).shape, last);
  if (why !== undefined) {
    context.refuse('reshape', last, why);
    return;
  }
  const { rewriter } = context;
  rewriter.before(last);
  let result: Value = x;
  for (const node of [...chain].reverse())
    result = withInputs(rewriter, node, operandsWith(node, result));
  replaceByNew(rewriter, last.output(0), result);
  removeAll([last, ...chain, first], context);
  context.count('reshape');
}

function reason(from: Shape | undefined, flat: Shape | undefined, last: Node): string | undefined {
  const sums = last.input(0).shape?.at(-1);
  const to = last.output(0).shape;
  if (from === undefined || flat === undefined || to === undefined || sums === undefined)
    return 'a shape is not known';
  if (from.length < 2 || from.at(-1) !== flat.at(-1)) return 'the first one changes the rows';
  if (!sameShape([...from.slice(0, -1), sums], to)) return 'the second one does not undo the first';
  return undefined;
}

/** An op over rows. */
function mixesColumns(node: Node): boolean {
  return isLinear(node) || isGatedLinear(node) || (node.op === 'MatMul' && node.domain === '');
}

/** The operand that has rows, of an op that treats each row alike. */
function dataOf(node: Node): Value | undefined {
  if (mixesColumns(node)) {
    const residual = isLinear(node) ? node.inputs[linearInputs.residual] : undefined;
    const weight = node.inputs[1]?.shape;
    return residual === undefined && weight?.length === 2 ? node.inputs[0] : undefined;
  }
  const operands = elementwiseOperands(node) ?? [];
  const [data, ...more] = operands.filter((operand) => operand.weight === undefined);
  const rows = operands.some(
    ({ weight }) => weight !== undefined && weight.shape.slice(0, -1).some((dim) => dim !== 1),
  );
  const deep = operands.some(({ weight }) => (weight?.shape.length ?? 0) > 1);
  return more.length === 0 && !rows && !deep ? data : undefined;
}

/** The first inputs of a node with its data replaced. */
function operandsWith(node: Node, data: Value): readonly Value[] {
  const old = dataOf(node);
  const operands = mixesColumns(node) ? [node.input(0)] : (elementwiseOperands(node) ?? []);
  return operands.map((operand) => (operand === old ? data : operand));
}
