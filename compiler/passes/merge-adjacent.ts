/**
 * Makes one op of two of a kind in a row.
 *
 *     Transpose(Transpose(x, p), q)        ->   Transpose(x, p∘q)
 *     Unsqueeze(Unsqueeze(x, a), b)        ->   Unsqueeze(x, a and b)
 *     Reshape(Squeeze(Reshape(x)))         ->   Reshape(x)      when one constant names the shape
 *     Cast(Cast(x: f16, f32), i32)         ->   Cast(x, i32)    when the first loses nothing
 *
 * Exact. The first op stays when something else reads it; the count of nodes never grows.
 */
import type { DType } from '../../runtime/tensor.ts';
import { dtypes } from '../../runtime/tensor.ts';
import { ints } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import { int64s } from '../ops/numbers.ts';
import { listOf } from './constants.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused, replaceByNew } from './replace.ts';
import { isView, permutationOf, reshapeTarget, throughViews } from './views.ts';

/** Makes the pass. It has no options. */
export function mergeAdjacent(): Pass {
  return {
    name: 'merge-adjacent',
    options: {},
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes()) visit(node, model.opset, context);
      return context.rewriter.changes > before;
    },
  };
}

function visit(node: Node, opset: number, context: PassContext): void {
  const inner = node.inputs[0]?.producer;
  if (node.domain !== '' || inner === undefined || inner.domain !== '') return;
  const { rewriter } = context;
  const from = [...new Set([...inner.from, ...node.from])];
  const apply = (rule: string, build: () => Value): void => {
    const output = node.output(0);
    rewriter.before(node);
    replaceByNew(rewriter, output, build());
    removeIfUnused(rewriter, inner);
    context.count(rule);
  };

  if (node.op === 'Transpose' && inner.op === 'Transpose') {
    const [first, second] = [permutationOf(inner), permutationOf(node)];
    if (first === undefined || second === undefined || first.length !== second.length) return;
    const perm = ints(second.map((axis) => first[axis] ?? 0));
    apply('transpose', () => rewriter.op('Transpose', [inner.input(0)], { perm }, { from }));
  } else if (node.op === 'Cast' && inner.op === 'Cast') {
    const [x, middle] = [inner.input(0), inner.output(0)];
    const to = node.attributes.get('to');
    if (x.dtype === undefined || middle.dtype === undefined || to === undefined) return;
    if (!losesNothing(x.dtype, middle.dtype)) {
      context.refuse('cast', node, `${x.dtype} does not fit into ${middle.dtype}`);
      return;
    }
    const attributes = Object.fromEntries(node.attributes);
    apply('cast', () => rewriter.op('Cast', [x], attributes, { from }));
  } else if (node.op === 'Unsqueeze' && inner.op === 'Unsqueeze') {
    const axes = unsqueezedAxes(inner, node);
    if (axes === undefined) return;
    apply('unsqueeze', () =>
      opset < 13
        ? rewriter.op('Unsqueeze', [inner.input(0)], { axes: ints(axes) }, { from })
        : rewriter.op(
            'Unsqueeze',
            [inner.input(0), rewriter.constant(`${node.output(0).name}_axes`, int64s(axes))],
            {},
            { from },
          ),
    );
  } else if (isView(node) && isView(inner) && opset >= 5) mergeViews(node, context, apply);
}

/** Reshapes straight from the first value of the chain from which one constant can name the shape. */
function mergeViews(
  node: Node,
  context: PassContext,
  apply: (rule: string, build: () => Value) => void,
): void {
  const { rewriter } = context;
  const output = node.output(0);
  const sources = [...throughViews(node.input(0))].slice(1).reverse();
  for (const source of sources) {
    if (source.shape === undefined || output.shape === undefined) continue;
    const target = reshapeTarget(source.shape, output.shape);
    if (target === undefined) continue;
    apply('reshape', () =>
      rewriter.op('Reshape', [source, rewriter.constant(`${output.name}_shape`, int64s(target))]),
    );
    return;
  }
  context.refuse('reshape', node, 'more than one size of the shape is not known before it runs');
}

/** Axes, in the final tensor, of two Unsqueeze in a row. */
function unsqueezedAxes(inner: Node, outer: Node): readonly number[] | undefined {
  const first = listOf(inner, 'axes', 1);
  const second = listOf(outer, 'axes', 1);
  const rank = inner.input(0).shape?.length;
  if (!Array.isArray(first) || !Array.isArray(second)) return undefined;
  const negative = [...first, ...second].some((axis) => axis < 0);
  if (negative && rank === undefined) return undefined;
  const middleRank = (rank ?? 0) + first.length;
  const finalRank = middleRank + second.length;
  const inMiddle = new Set(first.map((axis) => (axis < 0 ? axis + middleRank : axis)));
  const inFinal = new Set(second.map((axis) => (axis < 0 ? axis + finalRank : axis)));
  // walk over the final axes, counting those that were there in the middle
  const result: number[] = [];
  let middle = 0;
  const last = Math.max(...inFinal, ...inMiddle) + inFinal.size;
  for (let axis = 0; axis <= last; axis++)
    if (inFinal.has(axis)) result.push(axis);
    else if (inMiddle.has(middle++)) result.push(axis);
  return result;
}

/** Whether every value of `from` is one of `to`, so that a cast through `to` changes nothing. */
export function losesNothing(from: DType, to: DType): boolean {
  if (from === to) return true;
  const [a, b] = [dtypes[from], dtypes[to]];
  if (from === 'string' || to === 'string' || a.kind === 'complex' || b.kind === 'complex')
    return false;
  if (a.kind === 'bool') return b.kind !== 'bool';
  if (b.kind === 'bool') return false;
  if (a.kind === 'float') return b.kind === 'float' && (floatsWithin[from]?.includes(to) ?? false);
  if (b.kind === 'float') return a.bits - (a.kind === 'int' ? 1 : 0) <= (mantissaBits[to] ?? 0);
  if (a.kind === 'uint') return a.bits < b.bits || (b.kind === 'uint' && a.bits <= b.bits);
  return b.kind === 'int' && a.bits <= b.bits;
}

/** Whole numbers up to 2^bits are exact. */
const mantissaBits: Partial<Record<DType, number>> = { f64: 53, f32: 24, f16: 11, bf16: 8 };

const floatsWithin: Partial<Record<DType, readonly DType[]>> = {
  f32: ['f64'],
  f16: ['f32', 'f64'],
  bf16: ['f32', 'f64'],
};
