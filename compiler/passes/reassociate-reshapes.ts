/**
 * Takes away a Reshape or Transpose before linear ops that only arranges rows differently, and the one
 * that undoes it.
 *
 *     Reshape(Linear(Reshape(x [B, S, K], [B·S, K]), w), [B, S, N])      ->   Linear(x, w)
 *     Transpose(Linear(Transpose(x, [1, 0, 2]), w), [1, 0, 2])           ->   Linear(x, w)
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
import { isTranspose, isView, permutationOf, viewOps } from './views.ts';

/** Makes the pass. It has no options. */
export function reassociateReshapes(): Pass {
  return {
    name: 'reassociate-reshapes',
    options: {},
    rules: [
      { name: 'reshape', starts: [...viewOps] },
      { name: 'transpose', starts: ['Transpose'] },
    ],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes())
        if (isView(node)) visit(node, reshape, context);
        else if (isTranspose(node)) visit(node, transpose, context);
      return context.rewriter.changes > before;
    },
  };
}

/** What may stand around the ops over rows. */
interface Around {
  readonly rule: string;
  /** Whether a node can be the one before them. */
  readonly is: (node: Node) => boolean;
  /** Why the last one does not undo the first. */
  readonly reason: (first: Node, last: Node) => string | undefined;
}

const reshape: Around = {
  rule: 'reshape',
  is: isView,
  reason(first, last) {
    const sums = last.input(0).shape?.at(-1);
    return recounted(first.input(0).shape, first.output(0).shape, sums, last.output(0).shape);
  },
};

const transpose: Around = {
  rule: 'transpose',
  is: isTranspose,
  reason(first, last) {
    const [there, back] = [permutationOf(first), permutationOf(last)];
    if (there === undefined || back === undefined) return 'a permutation is not known';
    const columns = there.length - 1;
    if (there[columns] !== columns) return 'the first one moves the columns';
    const undone = back.length === there.length && back.every((axis, i) => there[axis] === i);
    return undone ? undefined : 'the second one does not undo the first';
  },
};

function visit(last: Node, { rule, is, reason }: Around, context: PassContext): void {
  const chain: Node[] = [];
  let value = last.input(0);
  for (let node = value.producer; node !== undefined; node = value.producer) {
    if (node.graph !== last.graph || is(node)) break;
    const data = dataOf(node);
    if (typeof data === 'string') {
      if (chain.some(mixesColumns) || mixesColumns(node)) context.refuse(rule, last, data);
      else context.miss(rule, last, data);
      return;
    }
    chain.push(node);
    value = data;
  }
  const first = value.producer;
  if (first === undefined || !is(first) || !chain.some(mixesColumns)) {
    context.miss(rule, last, () =>
      chain.some(mixesColumns)
        ? `before ${chain.at(-1)?.describe() ?? 'it'} comes no ${rule} to undo`
        : 'there is no linear op in front of it',
    );
    return;
  }
  const read = chain.find((node) => node.output(0).useCount > 1 || node.output(0).isOutput);
  const why =
    reason(first, last) ??
    (read === undefined ? undefined : `${read.describe()} is read elsewhere too`);
  if (why !== undefined) {
    context.refuse(rule, last, why);
    return;
  }
  const { rewriter } = context;
  rewriter.before(last);
  let result: Value = first.input(0);
  for (const node of [...chain].reverse())
    result = withInputs(rewriter, node, operandsWith(node, result));
  replaceByNew(rewriter, last.output(0), result);
  removeAll([last, ...chain, first], context);
  context.count(rule);
}

/** Why rows that are counted differently in between are not the same rows again. */
function recounted(
  from: Shape | undefined,
  flat: Shape | undefined,
  sums: Shape[number] | undefined,
  to: Shape | undefined,
): string | undefined {
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

/** The operand that has rows, of an op that treats each row alike; a sentence for another op. */
function dataOf(node: Node): Value | string {
  if (mixesColumns(node)) {
    if (isLinear(node) && node.inputs[linearInputs.residual] !== undefined)
      return `${node.describe()} has a residual`;
    const isMatrix = node.inputs[1]?.shape?.length === 2;
    return isMatrix ? node.input(0) : `${node.describe()} multiplies no matrix of weights`;
  }
  const operands = elementwiseOperands(node);
  if (operands === undefined) return `${node.describe()} does not treat rows alike`;
  const [data, ...more] = operands.filter((operand) => operand.weight === undefined);
  if (data === undefined || more.length > 0) return `${node.describe()} has two operands with rows`;
  const deep = operands.some(({ weight }) => (weight?.shape.length ?? 0) > 1);
  return deep ? `a constant of ${node.describe()} may have rows` : data;
}

/** The first inputs of a node with its data replaced. */
function operandsWith(node: Node, data: Value): readonly Value[] {
  const old = dataOf(node);
  const operands = mixesColumns(node) ? [node.input(0)] : (elementwiseOperands(node) ?? []);
  return operands.map((operand) => (operand === old ? data : operand));
}
