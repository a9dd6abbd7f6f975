/**
 * Weights of 2, 4 and 8 bits in onnxruntime's packed layouts: MatMulNBits and GatherBlockQuantized.
 *
 * Source: com.microsoft MatMulNBits and GatherBlockQuantized in onnxruntime's ContribOperators.md.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { dtypes, elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { multiplyDims } from '../ir/dim.ts';
import type { Node } from '../ir/graph.ts';
import type { EvaluateContext, OpDefinition } from './definition.ts';
import { floatsFor, floatsOf, optionalFloats, spanOf } from './dense.ts';
import { multiplyRows } from './gemm.ts';
import { isFloat, readNumbers, writeNumbers } from './numbers.ts';
import { scaleIndex } from './quantization.ts';
import { normalizeAxis, opError, sameDim, unsupported } from './support.ts';

interface PackedWeights {
  /** Output features. */
  readonly n: number;
  /** Input features. */
  readonly k: number;
  readonly bits: number;
  readonly blockSize: number;
  /** Blocks a row. */
  readonly blocks: number;
}

function layoutOf(node: Node): PackedWeights {
  const [n, k] = [node.int('N', 0), node.int('K', 0)];
  const [bits, blockSize] = [node.int('bits', 4), node.int('block_size', 32)];
  if (n < 1 || k < 1 || blockSize < 1)
    throw opError({ node }, `N ${n}, K ${k} and block_size ${blockSize} must be positive`);
  return { n, k, bits, blockSize, blocks: Math.ceil(k / blockSize) };
}

/** Number `index` of a row of packed numbers, low bits first. */
function unpackAt(bytes: ArrayLike<number>, rowStart: number, index: number, bits: number): number {
  const bit = index * bits;
  return ((bytes[rowStart + (bit >> 3)] ?? 0) >> (bit & 7)) & ((1 << bits) - 1);
}

/** Zero point of a block of a row: packed, a float of its own, or the middle of the range. */
function zeroPoints(
  { bits, blocks }: PackedWeights,
  tensor: Tensor | undefined,
): (row: number, block: number) => number {
  if (tensor === undefined) return () => 2 ** (bits - 1);
  const numbers = readNumbers(tensor);
  if (isFloat(tensor.dtype)) return (row, block) => numbers[row * blocks + block] ?? 0;
  const stride = Math.ceil((blocks * bits) / 8);
  return (row, block) => unpackAt(numbers, row * stride, block, bits);
}

/** The weights as floats, `[N, K]`. */
function unpackWeights(context: EvaluateContext, layout: PackedWeights): Float32Array {
  const { n, k, bits, blockSize, blocks } = layout;
  if (![2, 4, 8].includes(bits)) throw unsupported(context, `${bits} bits`);
  const packed = readNumbers(context.input(1));
  const scales = floatsOf(context.input(2));
  const zeroOf = zeroPoints(layout, context.inputs[3]);
  const groups = context.inputs[4] && readNumbers(context.inputs[4]);
  const stride = blocks * Math.ceil((blockSize * bits) / 8);
  if (packed.length !== n * stride)
    throw opError(context, `B has ${packed.length} bytes, wanted ${n * stride}`);
  const weights = new Float32Array(n * k);
  for (let row = 0; row < n; row++)
    for (let i = 0; i < k; i++) {
      const block = groups?.[i] ?? Math.floor(i / blockSize);
      const level = unpackAt(packed, row * stride, i, bits) - zeroOf(row, block);
      weights[row * k + i] = level * (scales[row * blocks + block] ?? 0);
    }
  return weights;
}

/** Inputs: a [..., K], packed [N, blocks, bytes], scales, zero_points?, g_idx?, bias?. */
const matMulNBits: OpDefinition = {
  op: 'MatMulNBits',
  domain: 'com.microsoft',
  inputs: [3, 6],
  outputs: [1, 1],
  infer(context) {
    const { n, k } = layoutOf(context.node);
    const { dtype, shape } = context.input(0);
    if (shape !== undefined) sameDim(context, 'the last size of A and K', shape.at(-1) ?? 1, k);
    return [{ dtype, shape: shape && [...shape.slice(0, -1), n] }];
  },
  evaluate(context) {
    const layout = layoutOf(context.node);
    const { n, k } = layout;
    const a = context.input(0);
    const rows = elementCount(a.shape) / k;
    const out = floatsFor(a.dtype, rows * n);
    const weights = unpackWeights(context, layout);
    const left = { data: floatsOf(a), offset: 0 };
    multiplyRows(rows, n, k, left, { data: weights, offset: 0 }, { data: out, offset: 0 });
    const bias = optionalFloats(context.inputs[5]);
    if (bias !== undefined)
      for (let i = 0; i < out.length; i++) out[i] = (out[i] ?? 0) + (bias[i % n] ?? 0);
    return [writeNumbers(a.dtype, [...a.shape.slice(0, -1), n], out)];
  },
  cost(node, shapeOf) {
    const { n, k, bits, blocks } = layoutOf(node);
    const rows = spanOf(shapeOf(node.input(0)), 0) / k;
    const bytes = (n * k * bits) / 8 + 4 * (n * blocks + rows * (n + k));
    return { flops: 2 * rows * n * k, bytes };
  },
};

/** Axes, bits and how many numbers a stored element holds. */
function gatherLayout(
  node: Node,
  data: { readonly dtype?: DType | undefined },
): {
  bits: number;
  perElement: number;
} {
  const bits = data.dtype === 'u8' ? node.int('bits', 4) : data.dtype ? dtypes[data.dtype].bits : 4;
  return { bits, perElement: data.dtype === 'u8' ? 8 / bits : 1 };
}

/** Gathers rows of a quantized table and dequantizes only those. */
const gatherBlockQuantized: OpDefinition = {
  op: 'GatherBlockQuantized',
  domain: 'com.microsoft',
  inputs: [3, 4],
  outputs: [1, 1],
  infer(context) {
    const { node } = context;
    const [data, indices] = [context.input(0), context.input(1)];
    const { dtype } = context.input(2);
    if (data.shape === undefined || indices.shape === undefined) return [{ dtype }];
    const axis = normalizeAxis(context, node.int('gather_axis', 0), data.shape.length);
    const { perElement } = gatherLayout(node, data);
    const last = data.shape.length - 1;
    const logical = data.shape.map((size, i): Dim =>
      i === last ? multiplyDims(size, perElement) : size,
    );
    const shape = [...logical.slice(0, axis), ...indices.shape, ...logical.slice(axis + 1)];
    return [{ dtype, shape }];
  },
  evaluate: (context) => [evaluateGather(context)],
};

function evaluateGather(context: EvaluateContext): Tensor {
  const { node } = context;
  const [data, indices, scales] = [context.input(0), context.input(1), context.input(2)];
  const rank = data.shape.length;
  const axis = normalizeAxis(context, node.int('gather_axis', 0), rank);
  const quantizeAxis = normalizeAxis(context, node.int('quantize_axis', 1), rank);
  const blockSize = node.int('block_size', 128);
  const { bits, perElement } = gatherLayout(node, data);
  const stored = data.shape.at(-1) ?? 1;
  const shape = [...data.shape.slice(0, -1), stored * perElement];
  const last = stored * perElement;
  const numbers = readNumbers(data);
  const level = (index: number): number =>
    perElement === 1
      ? (numbers[index] ?? 0)
      : unpackAt(numbers, Math.floor(index / last) * stored, index % last, bits);
  const indexOf = scaleIndex(shape, scales.shape, { axis: quantizeAxis, blockSize });
  const factors = floatsOf(scales);
  const zeroOf = gatherZeroPoint(context.inputs[3], scales.shape, data.dtype === 'u8', bits);
  const [outer, size] = [elementCount(shape.slice(0, axis)), shape[axis] ?? 1];
  const inner = spanOf(shape, axis + 1);
  const picks = readNumbers(indices);
  const out = new Float32Array(outer * picks.length * inner);
  let at = 0;
  for (let o = 0; o < outer; o++)
    for (const pick of picks) {
      const row = pick < 0 ? pick + size : pick;
      // an index outside the table gives zeros
      if (row < 0 || row >= size) at += inner;
      else
        for (let i = 0; i < inner; i++) {
          const from = (o * size + row) * inner + i;
          const group = indexOf(from);
          out[at++] = (level(from) - zeroOf(group)) * (factors[group] ?? 0);
        }
    }
  return writeNumbers(
    scales.dtype,
    [...shape.slice(0, axis), ...indices.shape, ...shape.slice(axis + 1)],
    out,
  );
}

/** Zero points of bytes are packed as the data is, row by row; other dtypes have their own element. */
function gatherZeroPoint(
  tensor: Tensor | undefined,
  scaleShape: readonly number[],
  bytes: boolean,
  bits: number,
): (group: number) => number {
  if (tensor === undefined) return () => (bytes ? 2 ** (bits - 1) : 0);
  const numbers = readNumbers(tensor);
  if (!bytes || bits === 8) return (group) => numbers[group] ?? 0;
  const row = scaleShape.at(-1) ?? 1;
  const stored = tensor.shape.at(-1) ?? 1;
  return (group) => unpackAt(numbers, Math.floor(group / row) * stored, group % row, bits);
}

/** Packed low-bit weights. */
export const matmulNBitsOps: readonly OpDefinition[] = [matMulNBits, gatherBlockQuantized];
