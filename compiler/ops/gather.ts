/**
 * Ops that pick elements by index: Gather, GatherElements, GatherND, OneHot.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { isStatic } from '../ir/dim.ts';
import type { OpDefinition } from './definition.ts';
import { gatherElements, readNumbers, readScalar } from './numbers.ts';
import { splitAtAxis, stridedIndices, stridesOf } from './shapes.ts';
import type { OpPlace } from './support.ts';
import { normalizeAxis, onnxOp, opError, pickElements } from './support.ts';

/**
 * Indices with the negative ones counted from the end.
 *
 * @throws FettleError MODEL_INVALID when one is out of range
 */
export function checkedIndices(
  context: OpPlace,
  indices: ArrayLike<number>,
  size: number,
): Int32Array {
  return Int32Array.from(indices, (index) => {
    const at = index < 0 ? index + size : index;
    if (!(at >= 0 && at < size))
      throw opError(context, `index ${index} is outside 0 to ${size - 1}`);
    return at;
  });
}

const gatherOp = onnxOp('Gather', [2, 2], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    const { shape: indexShape } = context.input(1);
    if (shape === undefined || indexShape === undefined) return [{ dtype }];
    const axis = normalizeAxis(context, context.node.int('axis', 0), shape.length);
    const result = [...shape.slice(0, axis), ...indexShape, ...shape.slice(axis + 1)];
    const indices = context.elements(1);
    const from = context.elements(0);
    const length = shape[0];
    const elements =
      shape.length === 1 && typeof length === 'number' && indices !== undefined && isStatic(indices)
        ? pickElements(from, checkedIndices(context, indices, length))
        : undefined;
    return [{ dtype, shape: result, elements }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const axis = normalizeAxis(context, context.node.int('axis', 0), x.shape.length);
    const [outer, size, inner] = splitAtAxis(x.shape, axis);
    const taken = checkedIndices(context, readNumbers(context.input(1)), size);
    const shape = [
      ...x.shape.slice(0, axis),
      ...context.input(1).shape,
      ...x.shape.slice(axis + 1),
    ];
    const indices = new Int32Array(elementCount(shape));
    let at = 0;
    for (let block = 0; block < outer; block++)
      for (const index of taken) {
        const start = (block * size + index) * inner;
        for (let i = 0; i < inner; i++) indices[at++] = start + i;
      }
    return [gatherElements(x, shape, indices)];
  },
});

/**
 * For GatherElements and ScatterElements: the element of a tensor of `shape` that each element of
 * the index tensor names.
 */
export function elementIndices(
  context: OpPlace,
  shape: readonly number[],
  indices: Tensor,
  axis: number,
): Int32Array {
  const strides = stridesOf(shape);
  const stride = strides[axis] ?? 1;
  const along = checkedIndices(context, readNumbers(indices), shape[axis] ?? 1);
  const others = strides.map((step, i) => (i === axis ? 0 : step));
  return stridedIndices(indices.shape, others).map((start, i) => start + (along[i] ?? 0) * stride);
}

const gatherElementsOp = onnxOp('GatherElements', [2, 2], [1, 1], {
  infer: (context) => [{ dtype: context.input(0).dtype, shape: context.input(1).shape }],
  evaluate: (context) => {
    const [x, indices] = [context.input(0), context.input(1)];
    const axis = normalizeAxis(context, context.node.int('axis', 0), x.shape.length);
    return [gatherElements(x, indices.shape, elementIndices(context, x.shape, indices, axis))];
  },
});

/**
 * For GatherND and ScatterND: the start, in elements, of the block that each index tuple names.
 *
 * @param batchDims - leading axes that indices and data share
 */
export function tupleStarts(
  context: OpPlace,
  shape: readonly number[],
  indices: Tensor,
  batchDims = 0,
): Int32Array {
  const width = indices.shape.at(-1) ?? 0;
  const strides = stridesOf(shape);
  const numbers = readNumbers(indices);
  const batches = elementCount(shape.slice(0, batchDims));
  const batchSize = elementCount(shape.slice(batchDims));
  const tuples = elementCount(indices.shape.slice(0, -1));
  return Int32Array.from({ length: tuples }, (_, tuple) => {
    let start = Math.floor(tuple / (tuples / batches)) * batchSize;
    for (let i = 0; i < width; i++) {
      const size = shape[batchDims + i] ?? 1;
      const [at = 0] = checkedIndices(context, [numbers[tuple * width + i] ?? 0], size);
      start += at * (strides[batchDims + i] ?? 1);
    }
    return start;
  });
}

const gatherNdOp = onnxOp('GatherND', [2, 2], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    const { shape: indexShape } = context.input(1);
    const width = indexShape?.at(-1);
    if (shape === undefined || indexShape === undefined || typeof width !== 'number')
      return [{ dtype }];
    const batchDims = context.node.int('batch_dims', 0);
    if (batchDims + width > shape.length)
      throw opError(context, `index tuples of ${width} do not fit [${shape.join(', ')}]`);
    return [{ dtype, shape: [...indexShape.slice(0, -1), ...shape.slice(batchDims + width)] }];
  },
  evaluate: (context) => {
    const [x, indices] = [context.input(0), context.input(1)];
    const batchDims = context.node.int('batch_dims', 0);
    const rest = x.shape.slice(batchDims + (indices.shape.at(-1) ?? 0));
    const block = elementCount(rest);
    const starts = tupleStarts(context, x.shape, indices, batchDims);
    const shape = [...indices.shape.slice(0, -1), ...rest];
    const taken = Int32Array.from(
      { length: elementCount(shape) },
      (_, i) => (starts[Math.floor(i / block)] ?? 0) + (i % block),
    );
    return [gatherElements(x, shape, taken)];
  },
});

function insertAxis<D extends Dim>(shape: readonly D[], axis: number, size: D): readonly D[] {
  return [...shape.slice(0, axis), size, ...shape.slice(axis)];
}

const oneHotOp = onnxOp('OneHot', [3, 3], [1, 1], {
  infer: (context) => {
    const { dtype } = context.input(2);
    const { shape } = context.input(0);
    if (shape === undefined) return [{ dtype }];
    const axis = normalizeAxis(context, context.node.int('axis', -1), shape.length + 1);
    const depth = context.elements(1)?.[0] ?? context.fresh();
    return [{ dtype, shape: insertAxis(shape, axis, depth) }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const depth = Math.trunc(readScalar(context.input(1)));
    const axis = normalizeAxis(context, context.node.int('axis', -1), x.shape.length + 1);
    const shape = insertAxis(x.shape, axis, depth);
    const [, , inner] = splitAtAxis(shape, axis);
    const hot = Int32Array.from(readNumbers(x), (index) => (index < 0 ? index + depth : index));
    // values holds [off, on]
    const taken = Int32Array.from({ length: elementCount(shape) }, (_, i) => {
      const at = Math.floor(i / inner) % depth;
      const source = Math.floor(i / (inner * depth)) * inner + (i % inner);
      return Number(hot[source] === at);
    });
    return [gatherElements(context.input(2), shape, taken)];
  },
});

/** Ops that pick elements by index. */
export const gatherOps: readonly OpDefinition[] = [
  gatherOp,
  gatherElementsOp,
  gatherNdOp,
  oneHotOp,
];
