/**
 * Ops along one axis that keep the shape: Softmax, LogSoftmax, Hardmax, CumSum, CumProd. Before opset
 * 13 the first three work on the tensor flattened to two dimensions at the axis.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { EvaluateContext, OpDefinition } from './definition.ts';
import { sameAsInput } from './elementwise.ts';
import {
  isWide,
  readBigInts,
  readNumbers,
  readScalar,
  writeBigInts,
  writeNumbers,
} from './numbers.ts';
import { splitAtAxis } from './shapes.ts';
import { normalizeAxis, onnxOp } from './support.ts';

/** Changes one line of numbers in place. */
type Line = (line: Float64Array) => void;

/** Applies `change` to every line along an axis. */
export function mapLines(x: Tensor, [outer, size, inner]: readonly number[], change: Line): Tensor {
  const [blocks = 0, length = 0, stride = 0] = [outer, size, inner];
  const numbers = readNumbers(x);
  const result =
    x.dtype === 'f32' ? new Float32Array(numbers.length) : new Float64Array(numbers.length);
  const line = new Float64Array(length);
  for (let block = 0; block < blocks; block++)
    for (let offset = 0; offset < stride; offset++) {
      const start = block * length * stride + offset;
      for (let i = 0; i < length; i++) line[i] = numbers[start + i * stride] ?? 0;
      change(line);
      for (let i = 0; i < length; i++) result[start + i * stride] = line[i] ?? 0;
    }
  return writeNumbers(x.dtype, x.shape, result);
}

/** Softmax of one line. */
export function softmaxLine(line: Float64Array): void {
  const largest = line.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (let i = 0; i < line.length; i++) sum += line[i] = Math.exp((line[i] ?? 0) - largest);
  for (let i = 0; i < line.length; i++) line[i] = (line[i] ?? 0) / sum;
}

/** Logarithm of the softmax of one line. */
export function logSoftmaxLine(line: Float64Array): void {
  const largest = line.reduce((a, b) => Math.max(a, b), -Infinity);
  const sum = line.reduce((total, x) => total + Math.exp(x - largest), 0);
  const shift = largest + Math.log(sum);
  for (let i = 0; i < line.length; i++) line[i] = (line[i] ?? 0) - shift;
}

/** 1 at the first largest element, 0 elsewhere. */
function hardmaxLine(line: Float64Array): void {
  const at = line.indexOf(line.reduce((a, b) => Math.max(a, b), -Infinity));
  line.fill(0);
  if (at >= 0) line[at] = 1;
}

function normalizedOp(op: string, change: Line): OpDefinition {
  return onnxOp(op, [1, 1], [1, 1], {
    infer: sameAsInput,
    evaluate: (context) => {
      const x = context.input(0);
      return [mapLines(x, softmaxSplit(context, x), change)];
    },
  });
}

/** Sizes before, at and after what the softmax runs over. */
function softmaxSplit(context: EvaluateContext, { shape }: Tensor): readonly number[] {
  if (context.opset >= 13)
    return splitAtAxis(shape, normalizeAxis(context, context.node.int('axis', -1), shape.length));
  const axis = context.node.int('axis', 1);
  const at = axis < 0 ? axis + shape.length : axis;
  return [elementCount(shape.slice(0, at)), elementCount(shape.slice(at)), 1];
}

/** Running sum or product along an axis. */
function cumulativeOp(
  op: string,
  start: number,
  combine: (a: number, b: number) => number,
  wide: (a: bigint, b: bigint) => bigint,
): OpDefinition {
  return onnxOp(op, [2, 2], [1, 1], {
    infer: sameAsInput,
    evaluate: (context) => {
      const x = context.input(0);
      const axis = normalizeAxis(context, readScalar(context.input(1)), x.shape.length);
      const split = splitAtAxis(x.shape, axis);
      const exclusive = context.node.int('exclusive', 0) !== 0;
      const reverse = context.node.int('reverse', 0) !== 0;
      if (isWide(x.dtype)) {
        const values = Array.from(readBigInts(x));
        accumulate(values, split, BigInt(start), wide, exclusive, reverse);
        return [writeBigInts(x.dtype, x.shape, values)];
      }
      const values = Array.from(readNumbers(x));
      accumulate(values, split, start, combine, exclusive, reverse);
      return [writeNumbers(x.dtype, x.shape, values)];
    },
  });
}

function accumulate<T>(
  values: T[],
  [outer, size, inner]: readonly [number, number, number],
  start: T,
  combine: (a: T, b: T) => T,
  exclusive: boolean,
  reverse: boolean,
): void {
  for (let block = 0; block < outer; block++)
    for (let offset = 0; offset < inner; offset++) {
      let total = start;
      for (let step = 0; step < size; step++) {
        const i = reverse ? size - 1 - step : step;
        const at = (block * size + i) * inner + offset;
        const value = values[at] ?? start;
        const next = combine(total, value);
        values[at] = exclusive ? total : next;
        total = next;
      }
    }
}

/** Ops along one axis that keep the shape. */
export const softmaxOps: readonly OpDefinition[] = [
  normalizedOp('Softmax', softmaxLine),
  normalizedOp('LogSoftmax', logSoftmaxLine),
  normalizedOp('Hardmax', hardmaxLine),
  cumulativeOp(
    'CumSum',
    0,
    (a, b) => a + b,
    (a, b) => a + b,
  ),
  cumulativeOp(
    'CumProd',
    1,
    (a, b) => a * b,
    (a, b) => a * b,
  ),
];
