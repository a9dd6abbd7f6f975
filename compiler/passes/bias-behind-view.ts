/**
 * A bias that an exporter adds to heads, after the columns of a product were split into them:
 *
 *     Add(Reshape(Linear(x, w), [0, 0, H, D]), b [H, D])     ->   Reshape(Linear(x, w, b), [0, 0, H, D])
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import { isStatic, sameShape } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { isLinear } from '../ops/fused-linear.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import { internalDomain } from '../ops/quantized.ts';
import { broadcastIndices } from '../ops/shapes.ts';
import type { PassContext } from './pass.ts';
import { removeIfUnused, replaceByNew } from './replace.ts';
import { isView } from './views.ts';

/**
 * Puts a bias behind a view of a linear layer into the layer.
 *
 * @returns whether it did
 */
export function biasBehindView(node: Node, context: PassContext): boolean {
  const sides = [
    [node.inputs[0], node.inputs[1]],
    [node.inputs[1], node.inputs[0]],
  ] as const;
  for (const [value, bias] of sides) {
    const view = value?.producer;
    const inner = isView(view) ? view.input(0).producer : undefined;
    if (bias?.weight === undefined || value === undefined || !isView(view) || !isLinear(inner))
      continue;
    if (inner.inputs[2] !== undefined || inner.inputs[3] !== undefined) continue;
    if (activationNameOf(inner) !== 'none' || inner.graph !== node.graph) continue;
    const why =
      value.onlyUser !== node || view.input(0).onlyUser !== view
        ? 'the product is used elsewhere'
        : undefined;
    const row = why === undefined ? splitRow(inner.output(0), value, bias) : undefined;
    if (row === undefined) {
      context.refuse('bias', node, why ?? 'the constant is no row of the result');
      continue;
    }
    const { rewriter } = context;
    rewriter.before(node);
    const from = [...new Set([inner, view, node].flatMap((one) => one.from))];
    const made = rewriter.op(
      'Linear',
      [inner.input(0), inner.input(1), rewriter.constant(`${bias.name}_row`, row)],
      Object.fromEntries(inner.attributes),
      { domain: internalDomain, from, name: inner.name },
    );
    const seen = rewriter.op(
      view.op,
      [made, ...view.inputs.slice(1)],
      Object.fromEntries(view.attributes),
      {
        name: view.name,
      },
    );
    replaceByNew(rewriter, node.output(0), seen);
    for (const one of [node, view, inner]) removeIfUnused(rewriter, one);
    context.count('bias');
    return true;
  }
  return false;
}

/** A constant behind a view that splits columns, as a row in front of it. */
function splitRow(before: Value, after: Value, bias: Value): Tensor | undefined {
  const columns = before.shape?.at(-1);
  const [from, to] = [before.shape ?? [], after.shape ?? []];
  const tail = to.slice(from.length - 1);
  if (
    typeof columns !== 'number' ||
    !isStatic(tail) ||
    !sameShape(from.slice(0, -1), to.slice(0, from.length - 1))
  )
    return undefined;
  const { weight } = bias;
  if (weight === undefined || elementCount(tail) !== columns) return undefined;
  const shape = [...weight.shape];
  while (shape.length > tail.length && shape[0] === 1) shape.shift();
  const fits =
    shape.length <= tail.length &&
    shape.every((size, axis) => size === 1 || size === tail[axis - shape.length + tail.length]);
  if (!fits) return undefined;
  const indices = broadcastIndices(shape, tail);
  const numbers = readNumbers(weight.tensor());
  return writeNumbers(
    weight.dtype,
    [columns],
    Float64Array.from({ length: columns }, (_, i) => numbers[indices?.[i] ?? i] ?? 0),
  );
}
