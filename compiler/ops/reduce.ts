/**
 * Reductions over axes, and ArgMax and ArgMin. Axes are an attribute up to opset 17 (12 for
 * ReduceSum) and an input after. Sums are kept in doubles, those of 64-bit integers in bigints.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import { addDims, maxDims, minDims, multiplyDims } from '../ir/dim.ts';
import type { ValueType } from '../ir/graph.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import type { Numbers } from './numbers.ts';
import { isWide, readBigInts, readNumbers, writeBigInts, writeNumbers } from './numbers.ts';
import { splitAtAxis, stridedIndices, stridesOf } from './shapes.ts';
import type { OpPlace } from './support.ts';
import {
  evaluatedInts,
  freshShape,
  intsOf,
  normalizeAxes,
  normalizeAxis,
  onnxOp,
} from './support.ts';

/** The reduced axes; every one when none is listed, none when that is asked for. */
function reducedAxes(
  context: OpPlace,
  listed: readonly number[] | undefined,
  rank: number,
): readonly number[] {
  if (listed !== undefined && listed.length > 0) return normalizeAxes(context, listed, rank);
  const keepsAll = context.node.int('noop_with_empty_axes', 0) !== 0;
  return keepsAll ? [] : Array.from({ length: rank }, (_, axis) => axis);
}

function reducedShape<D extends Dim>(
  context: OpPlace,
  shape: readonly D[],
  axes: readonly number[],
): readonly (D | 1)[] {
  const keeps = context.node.int('keepdims', 1) !== 0;
  return keeps
    ? shape.map((dim, axis) => (axes.includes(axis) ? 1 : dim))
    : shape.filter((_, axis) => !axes.includes(axis));
}

/** What a reduction makes of a shape tensor. */
type DimReduction = (elements: readonly Dim[]) => Dim;

function inferReduce(context: InferContext, reduceDims?: DimReduction): readonly ValueType[] {
  const { dtype, shape } = context.input(0);
  if (shape === undefined) return [{ dtype }];
  const listed = intsOf(context, 'axes', 1);
  if (listed === undefined) {
    const keeps = context.node.int('keepdims', 1) !== 0;
    return [{ dtype, shape: keeps ? freshShape(context, shape.length) : undefined }];
  }
  const axes = reducedAxes(context, listed === 'absent' ? undefined : listed, shape.length);
  const result: Shape = reducedShape(context, shape, axes);
  const elements = shape.length === 1 && axes.length === 1 ? context.elements(0) : undefined;
  return [{ dtype, shape: result, elements: elements && reduceDims && [reduceDims(elements)] }];
}

/** Elements of `x` to read for each result: `start[i] + step[j]` over j. */
interface Walk {
  readonly shape: readonly number[];
  readonly starts: Int32Array;
  readonly steps: Int32Array;
}

function walkOf(context: EvaluateContext): Walk {
  const { shape } = context.input(0);
  const axes = reducedAxes(context, evaluatedInts(context, 'axes', 1), shape.length);
  const strides = stridesOf(shape);
  const pick = (wanted: boolean): Int32Array => {
    const chosen = [...shape.keys()].filter((axis) => axes.includes(axis) === wanted);
    return stridedIndices(
      chosen.map((axis) => shape[axis] ?? 1),
      chosen.map((axis) => strides[axis] ?? 1),
    );
  };
  return { shape: reducedShape(context, shape, axes), starts: pick(false), steps: pick(true) };
}

/** The reduction of one group of elements, read through `at(j)` for j < count. */
type Reduction = (at: (j: number) => number, count: number) => number;
type WideReduction = (elements: readonly bigint[]) => bigint;

interface ReduceDetails {
  readonly wide?: WideReduction;
  readonly dims?: DimReduction;
}

function reduceOp(op: string, reduce: Reduction, details: ReduceDetails = {}): OpDefinition {
  const { wide, dims } = details;
  return onnxOp(op, [1, 2], [1, 1], {
    infer: (context) => inferReduce(context, dims),
    evaluate: (context) => {
      const x = context.input(0);
      const walk = walkOf(context);
      if (isWide(x.dtype) && wide !== undefined) return [reduceWide(x, walk, wide)];
      const numbers = readNumbers(x);
      const { shape, starts, steps } = walk;
      const result = Float64Array.from(starts, (start) =>
        reduce((j) => numbers[start + (steps[j] ?? 0)] ?? 0, steps.length),
      );
      return [writeNumbers(x.dtype, shape, result)];
    },
  });
}

function reduceWide(x: Tensor, { shape, starts, steps }: Walk, reduce: WideReduction): Tensor {
  const values = readBigInts(x);
  const result = Array.from(starts, (start) =>
    reduce(Array.from(steps, (step) => values[start + step] ?? 0n)),
  );
  return writeBigInts(x.dtype, shape, result);
}

/** Sum of `f` over a group. */
function sumOf(f: (x: number) => number): Reduction {
  return (at, count) => {
    let sum = 0;
    for (let j = 0; j < count; j++) sum += f(at(j));
    return sum;
  };
}

function fold(start: number, combine: (a: number, b: number) => number): Reduction {
  return (at, count) => {
    let result = start;
    for (let j = 0; j < count; j++) result = combine(result, at(j));
    return result;
  };
}

const plainSum = sumOf((x) => x);
const squareSum = sumOf((x) => x * x);

/** `log(sum(exp(x)))`, shifted by the largest element so that nothing overflows. */
const logSumExp: Reduction = (at, count) => {
  const largest = fold(-Infinity, Math.max)(at, count);
  if (!Number.isFinite(largest)) return largest;
  return largest + Math.log(sumOf((x) => Math.exp(x - largest))(at, count));
};

function wideSum(elements: readonly bigint[]): bigint {
  return elements.reduce((sum, x) => sum + x, 0n);
}

function wideExtreme(better: (a: bigint, b: bigint) => boolean): WideReduction {
  return (elements) =>
    elements.reduce((best, x) => (better(x, best) ? x : best), elements[0] ?? 0n);
}

function argOp(op: string, better: (a: number, b: number) => boolean): OpDefinition {
  return onnxOp(op, [1, 1], [1, 1], {
    infer: (context) => {
      const { shape } = context.input(0);
      if (shape === undefined) return [{ dtype: 'i64' }];
      const axis = normalizeAxis(context, context.node.int('axis', 0), shape.length);
      return [{ dtype: 'i64', shape: reducedShape(context, shape, [axis]) }];
    },
    evaluate: (context) => {
      const x = context.input(0);
      const axis = normalizeAxis(context, context.node.int('axis', 0), x.shape.length);
      const last = context.node.int('select_last_index', 0) !== 0;
      const [outer, size, inner] = splitAtAxis(x.shape, axis);
      const numbers = readNumbers(x);
      const result = new BigInt64Array(outer * inner);
      for (let i = 0; i < result.length; i++) {
        const start = Math.floor(i / inner) * size * inner + (i % inner);
        result[i] = BigInt(bestOf(numbers, start, inner, size, better, last));
      }
      const shape = reducedShape(context, x.shape, [axis]);
      return [{ dtype: 'i64', shape, data: result }];
    },
  });
}

function bestOf(
  numbers: Numbers,
  start: number,
  stride: number,
  count: number,
  better: (a: number, b: number) => boolean,
  last: boolean,
): number {
  let best = 0;
  for (let j = 1; j < count; j++) {
    const [x = 0, y = 0] = [numbers[start + j * stride], numbers[start + best * stride]];
    if (better(x, y) || (last && x === y)) best = j;
  }
  return best;
}

function sumOfDims(elements: readonly Dim[]): Dim {
  return addDims(...elements);
}

function extremeOfDims(of: (a: Dim, b: Dim) => Dim): DimReduction {
  return (elements) => elements.reduce((a, b) => of(a, b), elements[0] ?? 0);
}

/** Reductions over axes. */
export const reduceOps: readonly OpDefinition[] = [
  reduceOp('ReduceSum', plainSum, { wide: wideSum, dims: sumOfDims }),
  reduceOp('ReduceMean', (at, count) => plainSum(at, count) / count),
  reduceOp(
    'ReduceProd',
    fold(1, (a, b) => a * b),
    {
      wide: (elements) => elements.reduce((product, x) => product * x, 1n),
      dims: (elements) => multiplyDims(...elements),
    },
  ),
  reduceOp('ReduceMax', fold(-Infinity, Math.max), {
    wide: wideExtreme((a, b) => a > b),
    dims: extremeOfDims(maxDims),
  }),
  reduceOp('ReduceMin', fold(Infinity, Math.min), {
    wide: wideExtreme((a, b) => a < b),
    dims: extremeOfDims(minDims),
  }),
  reduceOp('ReduceL1', sumOf(Math.abs)),
  reduceOp('ReduceL2', (at, count) => Math.sqrt(squareSum(at, count))),
  reduceOp('ReduceSumSquare', squareSum),
  reduceOp('ReduceLogSum', (at, count) => Math.log(plainSum(at, count))),
  reduceOp('ReduceLogSumExp', logSumExp),
  argOp('ArgMax', (a, b) => a > b),
  argOp('ArgMin', (a, b) => a < b),
];
