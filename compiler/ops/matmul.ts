/**
 * Matrix products: MatMul, Gemm, their integer and fused forms, and Det.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__MatMul.html, Gemm, MatMulInteger, QLinearMatMul, Det;
 * com.microsoft FusedMatMul and FusedGemm in onnxruntime's ContribOperators.md.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import type { Node, Value, ValueType } from '../ir/graph.ts';
import { activate, activationOf } from './attribute-activation.ts';
import type { Cost, EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import {
  broadcastStrides,
  floatsFor,
  floatsOf,
  forEachIndex,
  optionalFloats,
  spanOf,
} from './dense.ts';
import type { Floats } from './gemm.ts';
import { multiply, multiplyRows, transposed } from './gemm.ts';
import { readNumbers, writeNumbers } from './numbers.ts';
import { quantizeValues } from './quantization.ts';
import { broadcastDims, broadcastShapes } from './shapes.ts';
import type { OpPlace } from './support.ts';
import { opError, sameDim } from './support.ts';

/**
 * Shape of a matrix product.
 *
 * @param context - the node whose inputs 0 and 1 these are, for messages
 * @param a - // [..., M, K], or [K]
 * @param b - // [..., K, N], or [K]
 * @returns // [..., M, N] without the dimension a vector lacks
 */
export function productShape(
  context: InferContext,
  a: Shape | undefined,
  b: Shape | undefined,
): Shape | undefined {
  if (a === undefined || b === undefined) return undefined;
  if (a.length === 0 || b.length === 0) throw opError(context, 'an operand is a scalar');
  const inner = b.length === 1 ? b[0] : b.at(-2);
  sameDim(context, 'the inner sizes', a.at(-1) ?? 1, inner ?? 1);
  const batch = broadcastDims(context, [a.slice(0, -2), b.slice(0, -2)]) ?? [];
  const rows = a.length === 1 ? [] : a.slice(-2, -1);
  const columns = b.length === 1 ? [] : b.slice(-1);
  return [...batch, ...rows, ...columns];
}

/** A matrix product of any rank, as MatMul defines it. */
export function product(
  place: OpPlace,
  a: { readonly shape: readonly number[]; readonly data: Floats },
  b: { readonly shape: readonly number[]; readonly data: Floats },
  dtype: DType,
): { shape: readonly number[]; data: Floats } {
  const left = a.shape.length === 1 ? [1, ...a.shape] : a.shape;
  const right = b.shape.length === 1 ? [...b.shape, 1] : b.shape;
  const [m = 1, k = 1] = left.slice(-2);
  const [inner = 1, n = 1] = right.slice(-2);
  if (inner !== k) throw opError(place, `the inner sizes differ: ${k} and ${inner}`);
  const leftBatch = left.slice(0, -2);
  const rightBatch = right.slice(0, -2);
  const batch = broadcastShapes(place, [leftBatch, rightBatch]);
  const out = floatsFor(dtype, elementCount(batch) * m * n);
  if (elementCount(rightBatch) === 1) {
    // one matrix for every row: a single large product
    multiply(elementCount(batch) * m, n, k, at(a.data), at(b.data), at(out));
  } else {
    const strides = [leftBatch, rightBatch].map((sizes) => broadcastStrides(sizes, batch.length));
    forEachIndex(batch, strides, (index, [i = 0, j = 0]) =>
      multiply(m, n, k, at(a.data, i * m * k), at(b.data, j * k * n), at(out, index * m * n)),
    );
  }
  const shape = [
    ...batch,
    ...(a.shape.length === 1 ? [] : [m]),
    ...(b.shape.length === 1 ? [] : [n]),
  ];
  return { shape, data: out };
}

function at(data: Floats, offset = 0): { data: Floats; offset: number } {
  return { data, offset };
}

function operand(tensor: Tensor): { shape: readonly number[]; data: Floats } {
  return { shape: tensor.shape, data: floatsOf(tensor) };
}

function productCost(node: Node, shapeOf: (value: Value) => readonly number[]): Cost {
  const a = shapeOf(node.input(0));
  const b = shapeOf(node.input(1));
  const out = shapeOf(node.output());
  const inner = node.int('transA', 0) === 0 ? a.at(-1) : a.at(-2);
  return {
    flops: 2 * spanOf(out, 0) * (inner ?? 1),
    bytes: 4 * (spanOf(a, 0) + spanOf(b, 0) + spanOf(out, 0)),
  };
}

const matMul: OpDefinition = {
  op: 'MatMul',
  domain: '',
  inputs: [2, 2],
  outputs: [1, 1],
  infer: (context) => [
    {
      dtype: context.input(0).dtype ?? context.input(1).dtype,
      shape: productShape(context, context.input(0).shape, context.input(1).shape),
    },
  ],
  evaluate(context) {
    const a = context.input(0);
    const { shape, data } = product(context, operand(a), operand(context.input(1)), a.dtype);
    return [writeNumbers(a.dtype, shape, data)];
  },
  cost: productCost,
};

function gemmInfer(context: InferContext): ValueType[] {
  const { node } = context;
  const flipped = (index: number, name: string): Shape | undefined => {
    const { shape } = context.input(index);
    if (shape !== undefined && shape.length !== 2)
      throw opError(context, `input ${index} has rank ${shape.length}, wanted 2`);
    return node.int(name, 0) === 0 ? shape : shape?.toReversed();
  };
  const shape = productShape(context, flipped(0, 'transA'), flipped(1, 'transB'));
  return [{ dtype: context.input(0).dtype ?? context.input(1).dtype, shape }];
}

function gemmEvaluate(context: EvaluateContext): Tensor[] {
  const { node } = context;
  const a = context.input(0);
  const b = context.input(1);
  const flipA = node.int('transA', 0) !== 0;
  const flipB = node.int('transB', 0) !== 0;
  const [rows = 1, columns = 1] = a.shape;
  const [m, k] = flipA ? [columns, rows] : [rows, columns];
  const n = b.shape[flipB ? 0 : 1] ?? 1;
  if ((b.shape[flipB ? 1 : 0] ?? 1) !== k) throw opError(context, 'the inner sizes differ');
  const left = flipA ? transposed(floatsOf(a), rows, columns) : floatsOf(a);
  const out = floatsFor(a.dtype, m * n);
  if (flipB) multiplyRows(m, n, k, at(left), at(floatsOf(b)), at(out));
  else multiply(m, n, k, at(left), at(floatsOf(b)), at(out));
  const alpha = node.float('alpha', 1);
  const beta = node.float('beta', 1);
  const bias = context.inputs[2];
  const terms = optionalFloats(bias);
  const strides = bias === undefined ? [] : [broadcastStrides(bias.shape, 2)];
  forEachIndex([m, n], strides, (index, [from = 0]) => {
    out[index] = alpha * (out[index] ?? 0) + (terms === undefined ? 0 : beta * (terms[from] ?? 0));
  });
  const activation = activationOf(node);
  if (activation !== undefined) activate(out, activation);
  return [writeNumbers(a.dtype, [m, n], out)];
}

const gemm: OpDefinition = {
  op: 'Gemm',
  domain: '',
  inputs: [2, 3],
  outputs: [1, 1],
  infer: gemmInfer,
  evaluate: gemmEvaluate,
  cost: productCost,
};

/** Gemm followed by the activation named in an attribute. */
const fusedGemm: OpDefinition = { ...gemm, op: 'FusedGemm', domain: 'com.microsoft' };

/**
 * alpha * A * B with either side transposed. `transBatchA` moves the batch dimension next to the
 * columns: [M, batch..., K] is read as [batch..., M, K].
 */
function flipAxes(rank: number, node: Node, side: 'A' | 'B'): number[] {
  const order = Array.from({ length: rank }, (_, axis) => axis);
  if (rank < 2) return order;
  if (node.int(`transBatch${side}`, 0) !== 0) order.splice(rank - 2, 0, ...order.splice(0, 1));
  if (node.int(`trans${side}`, 0) !== 0) order.push(...order.splice(rank - 2, 1));
  return order;
}

function permuted(tensor: Tensor, order: readonly number[]): { shape: number[]; data: Floats } {
  const source = floatsOf(tensor);
  const shape = order.map((axis) => tensor.shape[axis] ?? 1);
  if (order.every((axis, index) => axis === index)) return { shape, data: source };
  const strides = order.map((axis) => spanOf(tensor.shape, axis + 1));
  const data = floatsFor(tensor.dtype, source.length);
  forEachIndex(shape, [strides], (index, [from = 0]) => {
    data[index] = source[from] ?? 0;
  });
  return { shape, data };
}

const fusedMatMul: OpDefinition = {
  op: 'FusedMatMul',
  domain: 'com.microsoft',
  inputs: [2, 2],
  outputs: [1, 1],
  infer(context) {
    const flip = (index: number, side: 'A' | 'B'): Shape | undefined => {
      const { shape } = context.input(index);
      return (
        shape && flipAxes(shape.length, context.node, side).map((axis): Dim => shape[axis] ?? 1)
      );
    };
    return [
      {
        dtype: context.input(0).dtype ?? context.input(1).dtype,
        shape: productShape(context, flip(0, 'A'), flip(1, 'B')),
      },
    ];
  },
  evaluate(context) {
    const { node } = context;
    const a = context.input(0);
    const b = context.input(1);
    const left = permuted(a, flipAxes(a.shape.length, node, 'A'));
    const right = permuted(b, flipAxes(b.shape.length, node, 'B'));
    const { shape, data } = product(context, left, right, a.dtype);
    const alpha = node.float('alpha', 1);
    if (alpha !== 1) for (let i = 0; i < data.length; i++) data[i] = alpha * (data[i] ?? 0);
    return [writeNumbers(a.dtype, shape, data)];
  },
  cost: productCost,
};

/**
 * Integers with their zero point taken off, exact as floats.
 *
 * @param axis - where a zero point of several elements runs: rows of A (-2), columns of B (-1)
 */
export function centered(
  tensor: Tensor,
  zeroPoint: Tensor | undefined,
  axis: number,
): { shape: readonly number[]; data: Floats } {
  const { shape } = tensor;
  const numbers = readNumbers(tensor);
  const data = new Float32Array(numbers);
  if (zeroPoint === undefined) return { shape, data };
  const zeros = readNumbers(zeroPoint);
  const place = Math.max(0, axis < 0 ? axis + shape.length : axis);
  const inner = spanOf(shape, place + 1);
  const size = zeros.length === 1 ? 1 : (shape[place] ?? 1);
  // a zero point of full rank differs between the matrices of a batch as well
  const batched = zeroPoint.shape.length > 1 && zeros.length > size;
  for (let i = 0; i < data.length; i++) {
    const row = Math.floor(i / inner) % size;
    const batch = batched ? Math.floor(i / (spanOf(shape, shape.length - 2) || 1)) * size : 0;
    data[i] = (data[i] ?? 0) - (zeros[zeros.length === 1 ? 0 : batch + row] ?? 0);
  }
  return { shape, data };
}

const matMulInteger: OpDefinition = {
  op: 'MatMulInteger',
  domain: '',
  inputs: [2, 4],
  outputs: [1, 1],
  infer: (context) => [
    {
      dtype: 'i32',
      shape: productShape(context, context.input(0).shape, context.input(1).shape),
    },
  ],
  evaluate(context) {
    const a = centered(context.input(0), context.inputs[2], -2);
    const b = centered(context.input(1), context.inputs[3], -1);
    const { shape, data } = product(context, a, b, 'i32');
    return [writeNumbers('i32', shape, data)];
  },
  cost: productCost,
};

/** Inputs: a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point. */
const qLinearMatMul: OpDefinition = {
  op: 'QLinearMatMul',
  domain: '',
  inputs: [8, 8],
  outputs: [1, 1],
  infer: (context) => [
    {
      dtype: context.input(7).dtype ?? context.input(0).dtype,
      shape: productShape(context, context.input(0).shape, context.input(3).shape),
    },
  ],
  evaluate(context) {
    const a = centered(context.input(0), context.input(2), -2);
    const b = centered(context.input(3), context.input(5), -1);
    const { shape, data } = product(context, a, b, 'i32');
    const columns = shape.at(-1) ?? 1;
    const aScale = floatsOf(context.input(1));
    const bScale = floatsOf(context.input(4));
    const yScale = floatsOf(context.input(6))[0] ?? 1;
    const rows = shape.at(-2) ?? 1;
    for (let i = 0; i < data.length; i++) {
      const left = aScale[aScale.length === 1 ? 0 : Math.floor(i / columns) % rows] ?? 1;
      const right = bScale[bScale.length === 1 ? 0 : i % columns] ?? 1;
      data[i] = ((data[i] ?? 0) * left * right) / yScale;
    }
    const zeroPoint = context.input(7);
    return [quantizeValues(data, shape, zeroPoint.dtype, readNumbers(zeroPoint)[0] ?? 0)];
  },
  cost: (node, shapeOf) => {
    const a = shapeOf(node.input(0));
    const out = spanOf(shapeOf(node.output()), 0);
    const bytes = spanOf(a, 0) + spanOf(shapeOf(node.input(3)), 0) + out;
    return { flops: 2 * out * (a.at(-1) ?? 1), bytes };
  },
};

/** Determinant by elimination with partial pivoting. */
const det: OpDefinition = {
  op: 'Det',
  domain: '',
  inputs: [1, 1],
  outputs: [1, 1],
  infer: (context) => [
    { dtype: context.input(0).dtype, shape: context.input(0).shape?.slice(0, -2) },
  ],
  evaluate(context) {
    const x = context.input(0);
    const size = x.shape.at(-1) ?? 1;
    const shape = x.shape.slice(0, -2);
    const values = floatsOf(x);
    const out = Array.from({ length: elementCount(shape) }, (_, i) =>
      determinant(Float64Array.from(values.subarray(i * size * size, (i + 1) * size * size)), size),
    );
    return [writeNumbers(x.dtype, shape, out)];
  },
};

function determinant(matrix: Float64Array, size: number): number {
  const get = (row: number, column: number): number => matrix[row * size + column] ?? 0;
  let result = 1;
  for (let pivot = 0; pivot < size; pivot++) {
    let best = pivot;
    for (let row = pivot + 1; row < size; row++)
      if (Math.abs(get(row, pivot)) > Math.abs(get(best, pivot))) best = row;
    if (get(best, pivot) === 0) return 0;
    if (best !== pivot) {
      const kept = matrix.slice(pivot * size, (pivot + 1) * size);
      matrix.copyWithin(pivot * size, best * size, (best + 1) * size);
      matrix.set(kept, best * size);
      result = -result;
    }
    result *= get(pivot, pivot);
    for (let row = pivot + 1; row < size; row++) {
      const factor = get(row, pivot) / get(pivot, pivot);
      for (let column = pivot; column < size; column++)
        matrix[row * size + column] = get(row, column) - factor * get(pivot, column);
    }
  }
  return result;
}

/** Matrix products and Det. */
export const matmulOps: readonly OpDefinition[] = [
  matMul,
  gemm,
  fusedGemm,
  fusedMatMul,
  matMulInteger,
  qLinearMatMul,
  det,
];
