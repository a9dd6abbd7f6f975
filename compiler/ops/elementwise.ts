/**
 * Ops that compute each output element from the elements at the same place: arithmetic, comparison,
 * logic, bits. NumPy broadcasting. Floats are computed in doubles and rounded to the dtype, 64-bit
 * integers in bigints. Activations are in `activation.ts`.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { addDims, divideDims, maxDims, minDims, multiplyDims, subtractDims } from '../ir/dim.ts';
import type { ValueType } from '../ir/graph.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { roundHalfEven } from './float-formats.ts';
import {
  isFloat,
  isWide,
  readBigInts,
  readNumbers,
  writeBigInts,
  writeNumbers,
} from './numbers.ts';
import { broadcastDims, broadcastIndices, broadcastShapes } from './shapes.ts';
import { expectSameDType } from './support.ts';

/** A function of one element. */
export type Unary = (x: number) => number;
/** A function of two elements. */
export type Binary = (x: number, y: number) => number;
/** The same for 64-bit integers. */
export type WideBinary = (x: bigint, y: bigint) => bigint;

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
export type DimBinary = (a: Dim, b: Dim) => Dim | undefined;

/** What a binary op is besides its function. */
export interface BinaryDetails {
  /** The same for 64-bit integers. Absent: doubles are exact enough. */
  readonly wide?: WideBinary;
  /** The same for shapes; see {@link ValueType.elements}. */
  readonly dims?: DimBinary;
  /** Whether the inputs may change places. Default false. */
  readonly commutative?: boolean;
  /** Integer result for narrow integers where the float function would differ. */
  readonly integer?: Binary;
}

/** An op with two inputs of one dtype that broadcast. */
export function binaryOp(op: string, compute: Binary, details: BinaryDetails = {}): OpDefinition {
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
export function inferBroadcast(context: InferContext, count: number, dims?: DimBinary): ValueType {
  const indices = Array.from({ length: count }, (_, i) => i);
  const dtype = expectSameDType(context, ...indices);
  const shape = broadcastDims(
    context,
    indices.map((i) => context.input(i).shape),
  );
  const elements =
    dims &&
    foldElements(
      indices.map((i) => context.elements(i)),
      dims,
    );
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

/** {@link combine} for integers of any width, exactly. */
export function combineWide(
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

/** Any number of inputs, combined from left to right. */
function variadicOp(
  op: string,
  details: BinaryDetails & { readonly compute: Binary },
): OpDefinition {
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

const meanOp: OpDefinition = {
  ...variadicOp('Mean', { compute: (x, y) => x + y }),
  evaluate: (context) => {
    const tensors = context.inputs.map((_, index) => context.input(index));
    const { dtype } = context.input(0);
    const add: Binary = (x, y) => x + y;
    // summed in doubles, so that f16 inputs are rounded once
    const sum = tensors.reduce((x, y) => combine(context, x, y, 'f64', add));
    const mean = readNumbers(sum).map((x) => x / tensors.length);
    return [writeNumbers(dtype, sum.shape, mean)];
  },
};

const modOp: OpDefinition = {
  ...binaryOp('Mod', (x, y) => x % y, {
    dims: (a, b) =>
      typeof a === 'number' && typeof b === 'number' && b !== 0 ? floorMod(a, b) : undefined,
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

const negOp: OpDefinition = {
  ...unaryOp(
    'Neg',
    (x) => -x,
    (x) => -x,
  ),
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    const elements = context.elements(0)?.map((dim) => multiplyDims(-1, dim));
    return [{ dtype, shape, elements }];
  },
};

/** Rounding a tensor of whole numbers, which is what `elements` holds, changes nothing. */
function roundingOp(op: string, compute: Unary): OpDefinition {
  return {
    ...unaryOp(op, compute),
    infer: (context) => {
      const { dtype, shape } = context.input(0);
      return [{ dtype, shape, elements: context.elements(0) }];
    },
  };
}

/** Integer division truncates; sizes are never negative, so that symbols may floor. */
function quotient(a: Dim, b: Dim): Dim | undefined {
  if (typeof a !== 'number' || typeof b !== 'number') return divideDims(a, b);
  return b === 0 ? undefined : Math.trunc(a / b);
}

const divOp: OpDefinition = {
  ...binaryOp('Div', (x, y) => x / y, {
    wide: (x, y) => (y === 0n ? 0n : x / y),
    integer: (x, y) => (y === 0 ? 0 : Math.trunc(x / y)),
  }),
  infer: (context) => {
    const whole = context.input(0).dtype;
    // a quotient of floats is only a whole number when it is exact
    const exact: DimBinary = (a, b) =>
      typeof a === 'number' && typeof b === 'number' && a % b === 0 ? a / b : undefined;
    const dims = whole !== undefined && isFloat(whole) ? exact : quotient;
    return [inferBroadcast(context, 2, dims)];
  },
};

/** The error function. Both expansions have only positive terms, so nothing cancels. */
export function erf(x: number): number {
  const magnitude = Math.abs(x);
  if (!(magnitude < 6)) return Number.isNaN(x) ? NaN : Math.sign(x);
  const gauss = Math.exp(-x * x);
  if (magnitude < 2.5) {
    // erf(x) = 2/sqrt(pi) exp(-x^2) sum of 2^n x^(2n+1) / (2n+1)!!
    let term = x;
    let sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    return (2 / Math.sqrt(Math.PI)) * gauss * sum;
  }
  // erfc(x) = exp(-x^2)/sqrt(pi) / (x + 1/2/(x + 1/(x + 3/2/(x + ...))))
  let fraction = magnitude;
  for (let n = 40; n > 0; n--) fraction = magnitude + n / 2 / fraction;
  return Math.sign(x) * (1 - gauss / Math.sqrt(Math.PI) / fraction);
}

/** Arithmetic and functions of one or two tensors. */
export const elementwiseOps: readonly OpDefinition[] = [
  binaryOp('Add', (x, y) => x + y, { wide: (x, y) => x + y, dims: addDims, commutative: true }),
  binaryOp('Sub', (x, y) => x - y, { wide: (x, y) => x - y, dims: subtractDims }),
  binaryOp('Mul', (x, y) => x * y, {
    wide: (x, y) => x * y,
    dims: (a, b) => multiplyDims(a, b),
    commutative: true,
    integer: Math.imul,
  }),
  divOp,
  modOp,
  powOp,
  variadicOp('Max', { compute: Math.max, wide: (x, y) => (x > y ? x : y), dims: maxDims }),
  variadicOp('Min', { compute: Math.min, wide: (x, y) => (x < y ? x : y), dims: minDims }),
  variadicOp('Sum', { compute: (x, y) => x + y }),
  meanOp,
  negOp,
  unaryOp('Abs', Math.abs, (x) => (x < 0n ? -x : x)),
  unaryOp('Sign', Math.sign, (x) => (x > 0n ? 1n : x < 0n ? -1n : 0n)),
  roundingOp('Ceil', Math.ceil),
  roundingOp('Floor', Math.floor),
  roundingOp('Round', roundHalfEven),
  unaryOp('Sqrt', Math.sqrt),
  unaryOp('Reciprocal', (x) => 1 / x),
  unaryOp('Exp', Math.exp),
  unaryOp('Log', Math.log),
  unaryOp('Erf', erf),
  unaryOp('Sin', Math.sin),
  unaryOp('Cos', Math.cos),
  unaryOp('Tan', Math.tan),
  unaryOp('Asin', Math.asin),
  unaryOp('Acos', Math.acos),
  unaryOp('Atan', Math.atan),
  unaryOp('Sinh', Math.sinh),
  unaryOp('Cosh', Math.cosh),
  unaryOp('Tanh', Math.tanh),
  unaryOp('Asinh', Math.asinh),
  unaryOp('Acosh', Math.acosh),
  unaryOp('Atanh', Math.atanh),
];
