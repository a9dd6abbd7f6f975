/**
 * Ops that compute each output element from the elements at the same place: arithmetic, comparison,
 * logic, bits. NumPy broadcasting. Floats are computed in doubles and rounded to the dtype, 64-bit
 * integers in bigints. Activations are in `activation.ts`.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { dtypes, elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { addDims, divideDims, maxDims, minDims, multiplyDims, subtractDims } from '../ir/dim.ts';
import type { ValueType } from '../ir/graph.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { roundHalfEven } from './float-formats.ts';
import type { Numbers } from './numbers.ts';
import {
  gatherElements,
  isFloat,
  isWide,
  readBigInts,
  readNumbers,
  readStrings,
  writeBigInts,
  writeNumbers,
} from './numbers.ts';
import { broadcastDims, broadcastIndices, broadcastShapes } from './shapes.ts';
import { expectSameDType, opError } from './support.ts';

/** A function of one element. */
export type Unary = (x: number) => number;
/** A function of two elements. */
export type Binary = (x: number, y: number) => number;
type WideBinary = (x: bigint, y: bigint) => bigint;

/** An op with one input whose output has the same type. */
export function unaryOp(op: string, compute: Unary, wide?: (x: bigint) => bigint): OpDefinition {
  return {
    op,
    domain: '',
    inputs: [1, 1],
    outputs: [1, 1],
    infer: sameAsInput,
    evaluate: (context) => {
      const x = context.input(0);
      if (isWide(x.dtype) && wide !== undefined)
        return [writeBigInts(x.dtype, x.shape, Array.from(readBigInts(x), wide))];
      return [mapNumbers(x, compute)];
    },
  };
}

/** Output type = type of input 0. */
export function sameAsInput(context: InferContext): readonly ValueType[] {
  const { dtype, shape } = context.input(0);
  return [{ dtype, shape }];
}

/** Applies a function to every element and rounds to the tensor's dtype. */
export function mapNumbers(x: Tensor, compute: Unary): Tensor {
  const source = readNumbers(x);
  const result = resultArray(x.dtype, source.length);
  for (let i = 0; i < result.length; i++) result[i] = compute(source[i] ?? 0);
  return writeNumbers(x.dtype, x.shape, result);
}

/** What becomes of two operands with elements known as dimensions. */
type DimBinary = (a: Dim, b: Dim) => Dim | undefined;

interface BinaryDetails {
  /** The same for 64-bit integers. Absent: doubles are exact enough. */
  readonly wide?: WideBinary;
  /** The same for shapes; see {@link ValueType.elements}. */
  readonly dims?: DimBinary;
  readonly commutative?: boolean;
  /** Integer result for narrow integers where the float function would differ. */
  readonly integer?: Binary;
}

function binaryOp(op: string, compute: Binary, details: BinaryDetails = {}): OpDefinition {
  const { wide, dims, commutative = false, integer = compute } = details;
  return {
    op,
    domain: '',
    inputs: [2, 2],
    outputs: [1, 1],
    commutative,
    infer: (context) => [inferBroadcast(context, 2, dims)],
    evaluate: (context) => {
      const [x, y] = [context.input(0), context.input(1)];
      if (isWide(x.dtype) && wide !== undefined) return [combineWide(context, x, y, wide)];
      return [combine(context, x, y, x.dtype, isFloat(x.dtype) ? compute : integer)];
    },
  };
}

/** Type of an op whose `count` inputs share a dtype and broadcast. */
function inferBroadcast(context: InferContext, count: number, dims?: DimBinary): ValueType {
  const indices = Array.from({ length: count }, (_, i) => i);
  const dtype = expectSameDType(context, ...indices);
  const shape = broadcastDims(context, indices.map((i) => context.input(i).shape));
  const elements = dims && foldElements(indices.map((i) => context.elements(i)), dims);
  return { dtype, shape, elements };
}

/** Combines small integer tensors known as dimensions: equal lengths, or a single element. */
export function foldElements(
  operands: readonly (readonly Dim[] | undefined)[],
  combineDims: DimBinary,
): readonly Dim[] | undefined {
  let result: readonly Dim[] | undefined;
  for (const [index, operand] of operands.entries()) {
    if (operand === undefined) return undefined;
    if (index === 0) {
      result = operand;
      continue;
    }
    if (result === undefined) return undefined;
    const left: readonly Dim[] = result;
    if (left.length !== operand.length && left.length !== 1 && operand.length !== 1)
      return undefined;
    const length = operand.length === 1 ? left.length : operand.length;
    const combined: Dim[] = [];
    for (let i = 0; i < length; i++) {
      const [a, b] = [left[left.length === 1 ? 0 : i], operand[operand.length === 1 ? 0 : i]];
      const dim = a === undefined || b === undefined ? undefined : combineDims(a, b);
      if (dim === undefined) return undefined;
      combined.push(dim);
    }
    result = combined;
  }
  return result;
}

/** Applies a function to broadcast pairs of elements. */
export function combine(
  context: EvaluateContext,
  x: Tensor,
  y: Tensor,
  dtype: DType,
  compute: Binary,
): Tensor {
  const shape = broadcastShapes(context, [x.shape, y.shape]);
  const [xs, ys] = [readNumbers(x), readNumbers(y)];
  const [xi, yi] = [broadcastIndices(x.shape, shape), broadcastIndices(y.shape, shape)];
  const result = resultArray(dtype, elementCount(shape));
  for (let i = 0; i < result.length; i++)
    result[i] = compute(xs[xi?.[i] ?? i] ?? 0, ys[yi?.[i] ?? i] ?? 0);
  return writeNumbers(dtype, shape, result);
}

function combineWide(
  context: EvaluateContext,
  x: Tensor,
  y: Tensor,
  compute: WideBinary,
  dtype: DType = x.dtype,
): Tensor {
  const shape = broadcastShapes(context, [x.shape, y.shape]);
  const [xs, ys] = [readBigInts(x), readBigInts(y)];
  const [xi, yi] = [broadcastIndices(x.shape, shape), broadcastIndices(y.shape, shape)];
  const result = Array.from({ length: elementCount(shape) }, (_, i) =>
    compute(xs[xi?.[i] ?? i] ?? 0n, ys[yi?.[i] ?? i] ?? 0n),
  );
  return writeBigInts(dtype, shape, result);
}

/** Doubles, or floats where the rounding to f32 is all that happens anyway. */
function resultArray(dtype: DType, length: number): Float32Array | Float64Array {
  return dtype === 'f32' ? new Float32Array(length) : new Float64Array(length);
}

function comparisonOp(op: string, compute: (order: number) => boolean): OpDefinition {
  return {
    op,
    domain: '',
    inputs: [2, 2],
    outputs: [1, 1],
    commutative: op === 'Equal',
    infer: (context) => {
      const { shape } = inferBroadcast(context, 2);
      const elements = foldElements([context.elements(0), context.elements(1)], (a, b) =>
        typeof a === 'number' && typeof b === 'number' ? Number(compute(a - b)) : undefined,
      );
      return [{ dtype: 'bool', shape, elements }];
    },
    evaluate: (context) => {
      const [x, y] = [context.input(0), context.input(1)];
      if (x.dtype === 'string') return [compareStrings(context, x, y, compute)];
      if (isWide(x.dtype))
        return [combineWide(context, x, y, (a, b) => (compute(compareBigInts(a, b)) ? 1n : 0n), 'bool')];
      // NaN minus anything is NaN, which no comparison accepts; equal infinities are equal
      return [combine(context, x, y, 'bool', (a, b) => (compute(a === b ? 0 : a - b) ? 1 : 0))];
    },
  };
}

function compareBigInts(a: bigint, b: bigint): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function compareStrings(
  context: EvaluateContext,
  x: Tensor,
  y: Tensor,
  compute: (order: number) => boolean,
): Tensor {
  const shape = broadcastShapes(context, [x.shape, y.shape]);
  const [xs, ys] = [readStrings(x), readStrings(y)];
  const [xi, yi] = [broadcastIndices(x.shape, shape), broadcastIndices(y.shape, shape)];
  const result = new Uint8Array(elementCount(shape));
  for (let i = 0; i < result.length; i++) {
    const [a, b] = [xs[xi?.[i] ?? i] ?? '', ys[yi?.[i] ?? i] ?? ''];
    result[i] = Number(compute(a < b ? -1 : a > b ? 1 : 0));
  }
  return { dtype: 'bool', shape, data: result };
}

/** Any number of inputs, combined from left to right. */
function variadicOp(op: string, details: BinaryDetails & { readonly compute: Binary }): OpDefinition {
  const { compute, wide, dims } = details;
  return {
    op,
    domain: '',
    inputs: [1, Infinity],
    outputs: [1, 1],
    commutative: true,
    infer: (context) => [inferBroadcast(context, context.node.inputs.length, dims)],
    evaluate: (context) => {
      const [first, ...rest] = context.inputs.map((_, index) => context.input(index));
      let result = first as Tensor;
      for (const next of rest)
        result =
          wide !== undefined && isWide(result.dtype)
            ? combineWide(context, result, next, wide)
            : combine(context, result, next, result.dtype, compute);
      return [result];
    },
  };
}

const whereOp: OpDefinition = {
  op: 'Where',
  domain: '',
  inputs: [3, 3],
  outputs: [1, 1],
  infer: (context) => {
    const dtype = expectSameDType(context, 1, 2);
    const shape = broadcastDims(context, [0, 1, 2].map((i) => context.input(i).shape));
    const condition = context.elements(0);
    const [yes, no] = [context.elements(1), context.elements(2)];
    const length = Math.max(condition?.length ?? 0, yes?.length ?? 0, no?.length ?? 0);
    const at = (list: readonly Dim[] | undefined, i: number): Dim | undefined =>
      list?.[list.length === 1 ? 0 : i];
    const elements = Array.from({ length }, (_, i) => {
      const chosen = at(condition, i);
      if (typeof chosen !== 'number') return undefined;
      return at(chosen !== 0 ? yes : no, i);
    });
    const known = elements.filter((dim) => dim !== undefined);
    return [{ dtype, shape, elements: known.length === length && length > 0 ? known : undefined }];
  },
  evaluate: (context) => {
    const [condition, x, y] = [context.input(0), context.input(1), context.input(2)];
    const shape = broadcastShapes(context, [condition.shape, x.shape, y.shape]);
    const flags = readNumbers(condition);
    const [ci, xi, yi] = [condition, x, y].map((t) => broadcastIndices(t.shape, shape));
    const count = elementCount(shape);
    const fromX = new Int32Array(count);
    const fromY = new Int32Array(count);
    const takesX = new Uint8Array(count);
    for (let i = 0; i < count; i++) {
      takesX[i] = flags[ci?.[i] ?? i] ?? 0;
      fromX[i] = xi?.[i] ?? i;
      fromY[i] = yi?.[i] ?? i;
    }
    return [select(shape, takesX, gatherElements(x, shape, fromX), gatherElements(y, shape, fromY))];
  },
};

/** Elements of `x` where the flag is set, else of `y`; all of one shape. */
function select(
  shape: readonly number[],
  takesX: Uint8Array,
  x: Tensor,
  y: Tensor,
): Tensor {
  const { dtype } = x;
  if (dtype === 'string') {
    const [xs, ys] = [readStrings(x), readStrings(y)];
    return { dtype, shape, data: xs.map((text, i) => (takesX[i] ? text : (ys[i] ?? ''))) };
  }
  if (isWide(dtype)) {
    const [xs, ys] = [readBigInts(x), readBigInts(y)];
    return writeBigInts(dtype, shape, Array.from(xs, (v, i) => (takesX[i] ? v : (ys[i] ?? 0n))));
  }
  const [xs, ys]: Numbers[] = [readNumbers(x), readNumbers(y)];
  if (xs === undefined || ys === undefined) return x;
  const width = dtypes[dtype].kind === 'complex' ? 2 : 1;
  const result = new Float64Array(xs.length);
  for (let i = 0; i < result.length; i++)
    result[i] = (takesX[Math.floor(i / width)] ? xs[i] : ys[i]) ?? 0;
  return writeNumbers(dtype, shape, result);
}

function bitwiseOp(op: string, narrow: Binary, wide: WideBinary): OpDefinition {
  return binaryOp(op, narrow, { wide, commutative: true });
}

const bitShiftOp: OpDefinition = {
  op: 'BitShift',
  domain: '',
  inputs: [2, 2],
  outputs: [1, 1],
  infer: (context) => [inferBroadcast(context, 2)],
  evaluate: (context) => {
    const direction = context.node.string('direction');
    if (direction !== 'LEFT' && direction !== 'RIGHT')
      throw opError(context, `direction must be LEFT or RIGHT, got ${direction}`);
    const shift: WideBinary = direction === 'LEFT' ? (x, by) => x << by : (x, by) => x >> by;
    return [combineWide(context, context.input(0), context.input(1), shift)];
  },
};

const modOp: OpDefinition = {
  ...binaryOp('Mod', (x, y) => x % y, {
    dims: (a, b) => (typeof a === 'number' && typeof b === 'number' && b !== 0 ? floorMod(a, b) : undefined),
  }),
  evaluate: (context) => {
    const [x, y] = [context.input(0), context.input(1)];
    const keepsSignOfDividend = context.node.int('fmod', 0) === 1;
    if (isWide(x.dtype))
      return [combineWide(context, x, y, keepsSignOfDividend ? wideRemainder : wideFloorMod)];
    return [combine(context, x, y, x.dtype, keepsSignOfDividend ? (a, b) => a % b : floorMod)];
  },
};

/** Remainder with the sign of the divisor. */
function floorMod(x: number, y: number): number {
  const rest = x % y;
  return rest !== 0 && rest < 0 !== y < 0 ? rest + y : rest;
}

function wideRemainder(x: bigint, y: bigint): bigint {
  return y === 0n ? 0n : x % y;
}

function wideFloorMod(x: bigint, y: bigint): bigint {
  const rest = wideRemainder(x, y);
  return rest !== 0n && rest < 0n !== y < 0n ? rest + y : rest;
}

const powOp: OpDefinition = {
  op: 'Pow',
  domain: '',
  inputs: [2, 2],
  outputs: [1, 1],
  // the exponent may have a dtype of its own
  infer: (context) => [
    {
      dtype: context.input(0).dtype,
      shape: broadcastDims(context, [context.input(0).shape, context.input(1).shape]),
    },
  ],
  evaluate: (context) => {
    const [x, y] = [context.input(0), context.input(1)];
    if (isWide(x.dtype) && !isFloat(y.dtype))
      return [combineWide(context, x, y, (a, b) => (b < 0n ? 0n : a ** b))];
    return [combine(context, x, y, x.dtype, Math.pow)];
  },
};

function predicateOp(op: string, infer: InferContext['input'] | undefined, test: (context: EvaluateContext) => (x: number) => boolean): OpDefinition {
  return {
    op,
    domain: '',
    inputs: [1, 1],
    outputs: [1, 1],
    infer: (context) => [{ dtype: 'bool', shape: context.input(0).shape }],
    evaluate: (context) => {
      const x = context.input(0);
      const holds = test(context);
      return [
        writeNumbers('bool', x.shape, Uint8Array.from(readNumbers(x), (v) => Number(holds(v)))),
      ];
    },
  };
}

const dimsAdd: DimBinary = (a, b) => addDims(a, b);

/** Arithmetic, comparison, logic and bits. */
export const elementwiseOps: readonly OpDefinition[] = [
  binaryOp('Add', (x, y) => x + y, { wide: (x, y) => x + y, dims: dimsAdd, commutative: true }),
];
void divideDims;
void maxDims;
void minDims;
void multiplyDims;
void subtractDims;
void roundHalfEven;
void whereOp;
void bitwiseOp;
void bitShiftOp;
void modOp;
void powOp;
void predicateOp;
void comparisonOp;
void variadicOp;
