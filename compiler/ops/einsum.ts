/**
 * Einsum: any number of operands, repeated labels (diagonals), ellipsis, implicit output.
 *
 * Operands are contracted from left to right; each contraction is brought into the form
 * `[batch, M, K] x [batch, N, K]` and computed as matrix products.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__Einsum.html.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import type { OpDefinition } from './definition.ts';
import { floatsFor, floatsOf, spanOf } from './dense.ts';
import type { Floats } from './gemm.ts';
import { multiplyRows } from './gemm.ts';
import { writeNumbers } from './numbers.ts';
import { stridedIndices, stridesOf } from './shapes.ts';
import type { OpPlace } from './support.ts';
import { opError, sameDim } from './support.ts';

/** Labels of every operand and of the result; the axes of an ellipsis are labelled `.0`, `.1`, … */
export interface Equation {
  /** Labels of each operand. */
  readonly terms: readonly (readonly string[])[];
  /** Labels of the result. */
  readonly output: readonly string[];
}

/**
 * Reads the equation of an Einsum node.
 *
 * @param ranks - of the operands
 * @throws FettleError MODEL_INVALID when it does not fit them
 */
export function parseEquation(place: OpPlace, ranks: readonly number[]): Equation {
  const text = place.node.string('equation', '').replaceAll(/\s/g, '');
  const [left = '', right] = text.split('->');
  const texts = left.split(',');
  if (texts.length !== ranks.length || !/^[A-Za-z.,]*$/.test(left))
    throw opError(place, `equation "${text}" does not fit ${ranks.length} inputs`);
  const widths = texts.map((term, i) =>
    term.includes('...') ? (ranks[i] ?? 0) - term.replace('...', '').length : 0,
  );
  const widest = Math.max(0, ...widths);
  // ellipses are aligned at their last axis, as broadcasting is
  const expand = (term: string, width: number): string[] => {
    const dots = Array.from({ length: width }, (_, axis) => `.${widest - width + axis}`);
    const [before = '', after = ''] = term.split('...');
    return term.includes('...')
      ? [...before.split(''), ...dots, ...after.split('')]
      : term.split('');
  };
  const terms = texts.map((term, i) => expand(term, widths[i] ?? 0));
  terms.forEach((labels, i) => {
    if (labels.length !== ranks[i])
      throw opError(place, `term "${texts[i]}" does not fit an input of rank ${ranks[i]}`);
  });
  if (right !== undefined) return { terms, output: expand(right, widest) };
  const all = terms.flat();
  const once = [...new Set(all)].filter(
    (label) => !label.startsWith('.') && all.indexOf(label) === all.lastIndexOf(label),
  );
  const dots = Array.from({ length: widest }, (_, axis) => `.${axis}`);
  return { terms, output: [...dots, ...once.sort()] };
}

/** Sizes by label; a size of 1 gives way to another. */
function sizesOf<D extends Dim>(
  place: OpPlace,
  equation: Equation,
  shapes: readonly (readonly D[])[],
): Map<string, D> {
  const sizes = new Map<string, D>();
  equation.terms.forEach((labels, i) =>
    labels.forEach((label, axis) => {
      const size = shapes[i]?.[axis];
      const seen = sizes.get(label);
      if (size === undefined) return;
      if (seen === undefined || seen === 1) sizes.set(label, size);
      else if (size !== 1) sizes.set(label, sameDim(place, `sizes of "${label}"`, seen, size) as D);
    }),
  );
  return sizes;
}

interface Labelled {
  readonly labels: readonly string[];
  readonly data: Floats;
}

/** Reorders to the wanted labels and sums over all others; repeated labels give the diagonal. */
function arrange(
  labels: readonly string[],
  shape: readonly number[],
  data: Floats,
  wanted: readonly string[],
  sizes: ReadonlyMap<string, number>,
): Floats {
  const strides = stridesOf(shape);
  const strideOf = (label: string): number =>
    labels.reduce(
      (sum, other, axis) =>
        sum + (other === label && (shape[axis] ?? 1) !== 1 ? (strides[axis] ?? 0) : 0),
      0,
    );
  const summed = [...new Set(labels)].filter((label) => !wanted.includes(label));
  const order = [...wanted, ...summed];
  const indices = stridedIndices(
    order.map((label) => sizes.get(label) ?? 1),
    order.map(strideOf),
  );
  const run = elementCount(summed.map((label) => sizes.get(label) ?? 1));
  const result = new Float64Array(run === 0 ? 0 : indices.length / run);
  for (let i = 0; i < indices.length; i++) {
    const to = Math.floor(i / run);
    result[to] = (result[to] ?? 0) + (data[indices[i] ?? 0] ?? 0);
  }
  return result;
}

/** Contracts two operands, keeping the labels that are still needed. */
function contract(
  left: Labelled,
  right: Labelled,
  needed: ReadonlySet<string>,
  sizes: ReadonlyMap<string, number>,
): Labelled {
  const shapeOf = (labels: readonly string[]): number[] =>
    labels.map((label) => sizes.get(label) ?? 1);
  const both = left.labels.filter((label) => right.labels.includes(label));
  const batch = both.filter((label) => needed.has(label));
  const inner = both.filter((label) => !needed.has(label));
  const rows = left.labels.filter((label) => needed.has(label) && !both.includes(label));
  const columns = right.labels.filter((label) => needed.has(label) && !both.includes(label));
  const a = arrange(
    left.labels,
    shapeOf(left.labels),
    left.data,
    [...batch, ...rows, ...inner],
    sizes,
  );
  const b = arrange(
    right.labels,
    shapeOf(right.labels),
    right.data,
    [...batch, ...columns, ...inner],
    sizes,
  );
  const [m, n, k] = [rows, columns, inner].map((labels) => elementCount(shapeOf(labels)));
  const [rowCount = 1, columnCount = 1, depth = 1] = [m, n, k];
  const batches = elementCount(shapeOf(batch));
  const out = new Float64Array(batches * rowCount * columnCount);
  for (let i = 0; i < batches; i++)
    multiplyRows(
      rowCount,
      columnCount,
      depth,
      { data: a, offset: i * rowCount * depth },
      { data: b, offset: i * columnCount * depth },
      { data: out, offset: i * rowCount * columnCount },
    );
  return { labels: [...batch, ...rows, ...columns], data: out };
}

function evaluateEinsum(place: OpPlace, inputs: readonly Tensor[]): Tensor {
  const equation = parseEquation(
    place,
    inputs.map((input) => input.shape.length),
  );
  const sizes = sizesOf(
    place,
    equation,
    inputs.map((input) => input.shape),
  );
  let result: Labelled | undefined;
  equation.terms.forEach((labels, i) => {
    const input = inputs[i];
    if (input === undefined) return;
    const unique = [...new Set(labels)];
    const data = arrange(labels, input.shape, floatsOf(input), unique, sizes);
    const later = new Set([...equation.output, ...equation.terms.slice(i + 1).flat()]);
    const next = { labels: unique, data };
    result = result === undefined ? next : contract(result, next, later, sizes);
  });
  const shape = equation.output.map((label) => sizes.get(label) ?? 1);
  const dtype = inputs[0]?.dtype ?? 'f32';
  const { labels, data } = result ?? { labels: [], data: floatsFor(dtype, 1) };
  const known = labels.map((label) => sizes.get(label) ?? 1);
  return writeNumbers(dtype, shape, arrange(labels, known, data, equation.output, sizes));
}

const einsum: OpDefinition = {
  op: 'Einsum',
  domain: '',
  inputs: [1, Infinity],
  outputs: [1, 1],
  infer(context) {
    const { dtype } = context.input(0);
    const shapes = context.node.inputs.map((_, i) => context.input(i).shape);
    const known = shapes.filter((shape) => shape !== undefined);
    if (known.length < shapes.length) return [{ dtype }];
    const equation = parseEquation(
      context,
      known.map((shape) => shape.length),
    );
    const sizes = sizesOf<Dim>(context, equation, known);
    return [{ dtype, shape: equation.output.map((label) => sizes.get(label) ?? 1) }];
  },
  evaluate: (context) => [
    evaluateEinsum(
      context,
      context.node.inputs.map((_, i) => context.input(i)),
    ),
  ],
  cost(node, shapeOf) {
    const shapes = node.inputs.flatMap((value) => (value === undefined ? [] : [shapeOf(value)]));
    const equation = parseEquation(
      { node },
      shapes.map((shape) => shape.length),
    );
    const sizes = sizesOf({ node }, equation, shapes);
    const out = spanOf(shapeOf(node.output()), 0);
    return {
      flops: Math.max(1, shapes.length) * elementCount([...sizes.values()]),
      bytes: 4 * shapes.reduce((sum, shape) => sum + spanOf(shape, 0), out),
    };
  },
};

/** Einsum. */
export const einsumOps: readonly OpDefinition[] = [einsum];
