/**
 * Ops that look at a shape or change it without moving elements: Shape, Size, Reshape, Flatten,
 * Squeeze, Unsqueeze, Identity, Dropout; and Transpose and Expand, which go with them in every
 * exported model. Contents of shape tensors pass through; see `ValueType.elements`.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import { divideDims, isStatic, multiplyDims, sizeOf } from '../ir/dim.ts';
import type { ValueType } from '../ir/graph.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import {
  filled,
  gatherElements,
  int64s,
  readNumbers,
  readScalar,
  writeNumbers,
} from './numbers.ts';
import {
  broadcastDims,
  broadcastIndices,
  broadcastShapes,
  stridedIndices,
  stridesOf,
} from './shapes.ts';
import type { OpPlace } from './support.ts';
import {
  MAX_ELEMENTS,
  describedRank,
  evaluatedInts,
  freshShape,
  intsOf,
  normalizeAxes,
  onnxOp,
  opError,
  pickElements,
} from './support.ts';

/** Range of axes of Shape, clamped as Python slices are. */
function shapeRange(context: OpPlace, rank: number): readonly [start: number, end: number] {
  const clamp = (axis: number): number =>
    Math.max(0, Math.min(rank, axis < 0 ? axis + rank : axis));
  return [clamp(context.node.int('start', 0)), clamp(context.node.int('end', rank))];
}

const shapeOp = onnxOp('Shape', [1, 1], [1, 1], {
  infer: (context) => {
    const { shape } = context.input(0);
    if (shape === undefined) return [{ dtype: 'i64', shape: [context.fresh()] }];
    const elements = shape.slice(...shapeRange(context, shape.length));
    return [{ dtype: 'i64', shape: [elements.length], elements }];
  },
  evaluate: (context) => {
    const { shape } = context.input(0);
    return [int64s(shape.slice(...shapeRange(context, shape.length)))];
  },
});

const sizeOp = onnxOp('Size', [1, 1], [1, 1], {
  infer: (context) => {
    const { shape } = context.input(0);
    return [{ dtype: 'i64', shape: [], elements: shape && [sizeOf(shape)] }];
  },
  evaluate: (context) => [filled('i64', [], elementCount(context.input(0).shape))],
});

/** The shape that a Reshape target means; undefined when its -1 cannot be computed. */
function reshapedTo(context: OpPlace, from: Shape | undefined, target: Shape): Shape | undefined {
  const keepsZero = context.node.int('allowzero', 0) !== 0;
  const unknown = target.indexOf(-1);
  const dims: Dim[] = [];
  for (const [axis, dim] of target.entries()) {
    const copied = dim === 0 && !keepsZero ? from?.[axis] : dim;
    if (copied === undefined) {
      if (from !== undefined)
        throw opError(context, `axis ${axis} of [${from.join(', ')}] does not exist`);
      return undefined;
    }
    dims.push(copied);
  }
  if (unknown < 0) return dims;
  if (from === undefined) return undefined;
  const rest = multiplyDims(...dims.filter((_, axis) => axis !== unknown));
  const size = sizeOf(from);
  if (rest === 0) return undefined;
  if (typeof size === 'number' && typeof rest === 'number' && size % rest !== 0)
    throw opError(context, `cannot reshape [${from.join(', ')}] to [${target.join(', ')}]`);
  dims[unknown] = divideDims(size, rest);
  return dims;
}

const reshapeOp = onnxOp('Reshape', [1, 2], [1, 1], {
  infer: (context) => {
    const { dtype, shape: from } = context.input(0);
    const target = context.node.ints('shape') ?? context.elements(1);
    const elements = context.elements(0);
    if (target === undefined) {
      const rank = describedRank(context, 1);
      return [
        { dtype, shape: rank === undefined ? undefined : freshShape(context, rank), elements },
      ];
    }
    const shape = reshapedTo(context, from, target);
    if (isStatic(from) && isStatic(shape) && elementCount(from) !== elementCount(shape))
      throw opError(context, `cannot reshape [${from.join(', ')}] to [${target.join(', ')}]`);
    // what cannot be computed is anonymous, the sizes that are written out stay
    const partly = target.map((dim) => (dim === -1 || dim === 0 ? context.fresh() : dim));
    return [{ dtype, shape: shape ?? partly, elements }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const target = evaluatedInts(context, 'shape', 1) ?? [];
    const shape = reshapedTo(context, x.shape, target);
    if (!isStatic(shape) || elementCount(shape) !== elementCount(x.shape))
      throw opError(context, `cannot reshape [${x.shape.join(', ')}] to [${target.join(', ')}]`);
    return [{ ...x, shape }];
  },
});

function flattenedTo(context: OpPlace, shape: Shape): Shape {
  const axis = context.node.int('axis', 1);
  const at = axis < 0 ? axis + shape.length : axis;
  if (!(at >= 0 && at <= shape.length))
    throw opError(context, `axis ${axis} is outside a tensor of rank ${shape.length}`);
  return [sizeOf(shape.slice(0, at)), sizeOf(shape.slice(at))];
}

const flattenOp = onnxOp('Flatten', [1, 1], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    return [
      { dtype, shape: shape === undefined ? freshShape(context, 2) : flattenedTo(context, shape) },
    ];
  },
  evaluate: (context) => {
    const x = context.input(0);
    return [{ ...x, shape: flattenedTo(context, x.shape) as readonly number[] }];
  },
});

function squeezed<D extends Dim>(
  context: OpPlace,
  shape: readonly D[],
  axes: readonly number[] | undefined,
): readonly D[] {
  if (axes === undefined) return shape.filter((dim) => dim !== 1);
  const dropped = normalizeAxes(context, axes, shape.length);
  for (const axis of dropped) {
    const dim = shape[axis];
    if (typeof dim === 'number' && dim !== 1)
      throw opError(context, `cannot squeeze axis ${axis} of [${shape.join(', ')}]`);
  }
  return shape.filter((_, axis) => !dropped.includes(axis));
}

const squeezeOp = onnxOp('Squeeze', [1, 2], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    const elements = context.elements(0);
    const axes = intsOf(context, 'axes', 1);
    if (shape === undefined || axes === undefined) return [{ dtype, elements }];
    // without axes every symbolic size could be one that goes
    if (axes === 'absent' && !isStatic(shape)) return [{ dtype, elements }];
    return [
      { dtype, shape: squeezed(context, shape, axes === 'absent' ? undefined : axes), elements },
    ];
  },
  evaluate: (context) => {
    const x = context.input(0);
    return [{ ...x, shape: squeezed(context, x.shape, evaluatedInts(context, 'axes', 1)) }];
  },
});

function unsqueezed<D extends Dim>(
  context: OpPlace,
  shape: readonly D[],
  axes: readonly number[],
): readonly (D | 1)[] {
  const rank = shape.length + axes.length;
  const added = new Set(normalizeAxes(context, axes, rank));
  const rest = [...shape];
  return Array.from({ length: rank }, (_, axis) => (added.has(axis) ? 1 : (rest.shift() ?? 1)));
}

const unsqueezeOp = onnxOp('Unsqueeze', [1, 2], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    const elements = context.elements(0);
    const axes = intsOf(context, 'axes', 1);
    if (shape !== undefined && Array.isArray(axes))
      return [{ dtype, shape: unsqueezed(context, shape, axes), elements }];
    const added = describedRank(context, 1);
    if (shape === undefined || added === undefined) return [{ dtype, elements }];
    return [{ dtype, shape: freshShape(context, shape.length + added), elements }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    return [{ ...x, shape: unsqueezed(context, x.shape, evaluatedInts(context, 'axes', 1) ?? []) }];
  },
});

function permutation(context: OpPlace, rank: number): readonly number[] {
  const listed = context.node.ints('perm');
  if (listed === undefined) return Array.from({ length: rank }, (_, axis) => rank - 1 - axis);
  if (listed.length !== rank)
    throw opError(context, `perm [${listed.join(', ')}] does not fit a tensor of rank ${rank}`);
  return normalizeAxes(context, listed, rank);
}

/** Elements of a tensor with its axes in another order. */
export function transposed(tensor: Tensor, perm: readonly number[]): Tensor {
  const shape = perm.map((axis) => tensor.shape[axis] ?? 1);
  return gatherElements(tensor, shape, transposedIndices(tensor.shape, perm));
}

function transposedIndices(shape: readonly number[], perm: readonly number[]): Int32Array {
  const strides = stridesOf(shape);
  return stridedIndices(
    perm.map((axis) => shape[axis] ?? 1),
    perm.map((axis) => strides[axis] ?? 1),
  );
}

const transposeOp = onnxOp('Transpose', [1, 1], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    if (shape === undefined) return [{ dtype }];
    const perm = permutation(context, shape.length);
    const from = context.elements(0);
    const elements =
      from !== undefined && isStatic(shape)
        ? pickElements(from, transposedIndices(shape, perm))
        : undefined;
    return [{ dtype, shape: perm.map((axis) => shape[axis] ?? 1), elements }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    return [transposed(x, permutation(context, x.shape.length))];
  },
});

const expandOp = onnxOp('Expand', [2, 2], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    const target = context.elements(1);
    if (target !== undefined) {
      const to = broadcastDims(context, [shape, target]);
      const from = context.elements(0);
      const elements =
        from !== undefined && isStatic(shape) && isStatic(to) && elementCount(to) <= MAX_ELEMENTS
          ? pickElements(from, broadcastIndices(shape, to) ?? [...from.keys()])
          : undefined;
      return [{ dtype, shape: to, elements }];
    }
    const rank = describedRank(context, 1);
    if (rank === undefined || shape === undefined) return [{ dtype }];
    return [{ dtype, shape: freshShape(context, Math.max(rank, shape.length)) }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const shape = broadcastShapes(context, [x.shape, Array.from(readNumbers(context.input(1)))]);
    const indices = broadcastIndices(x.shape, shape);
    return [indices === undefined ? { ...x, shape } : gatherElements(x, shape, indices)];
  },
});

const identityOp = onnxOp('Identity', [1, 1], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    return [{ dtype, shape, elements: context.elements(0) }];
  },
  evaluate: (context) => [context.input(0)],
});

function inferDropout(context: InferContext): readonly ValueType[] {
  const { dtype, shape } = context.input(0);
  // before opset 10 the mask had the dtype of the data
  return [
    { dtype, shape },
    { dtype: context.opset < 10 ? dtype : 'bool', shape },
  ];
}

function evaluateDropout(context: EvaluateContext): readonly Tensor[] {
  const x = context.input(0);
  const training = context.inputs[2] !== undefined && readScalar(context.input(2)) !== 0;
  const ratio =
    context.inputs[1] === undefined
      ? context.node.float('ratio', 0.5)
      : readScalar(context.input(1));
  const maskDType = context.opset < 10 ? x.dtype : 'bool';
  if (!training || ratio === 0) return [x, filled(maskDType, x.shape, 1)];
  const random = context.random(context.node.int('seed', 0));
  const kept = Uint8Array.from({ length: elementCount(x.shape) }, () => Number(random() >= ratio));
  const numbers = Float64Array.from(readNumbers(x), (v, i) => (kept[i] ? v / (1 - ratio) : 0));
  return [writeNumbers(x.dtype, x.shape, numbers), { dtype: 'bool', shape: x.shape, data: kept }];
}

/** Ops on the shape alone. */
export const reshapeOps: readonly OpDefinition[] = [
  shapeOp,
  sizeOp,
  reshapeOp,
  flattenOp,
  squeezeOp,
  unsqueezeOp,
  transposeOp,
  expandOp,
  identityOp,
  onnxOp('Dropout', [1, 3], [1, 2], { infer: inferDropout, evaluate: evaluateDropout }),
];
