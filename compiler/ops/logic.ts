/**
 * Comparison, logic, bits and `Where`. NumPy broadcasting; comparisons give bool.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { dtypes, elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { knownDifference } from '../ir/dim.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import type { Binary, WideBinary } from './elementwise.ts';
import { binaryOp, combine, combineWide, foldElements, inferBroadcast } from './elementwise.ts';
import {
  gatherElements,
  isWide,
  readBigInts,
  readNumbers,
  readStrings,
  writeBigInts,
  writeNumbers,
} from './numbers.ts';
import { broadcastDims, broadcastIndices, broadcastShapes } from './shapes.ts';
import { expectSameDType, opError } from './support.ts';

function comparisonOp(op: string, compute: (order: number) => boolean): OpDefinition {
  return {
    op,
    domain: '',
    inputs: [2, 2],
    outputs: [1, 1],
    commutative: op === 'Equal',
    infer: (context) => {
      const { shape } = inferBroadcast(context, 2);
      const elements = foldElements([context.elements(0), context.elements(1)], (a, b) => {
        const order = orderOfDims(a, b);
        return order === undefined ? undefined : Number(compute(order));
      });
      return [{ dtype: 'bool', shape, elements }];
    },
    evaluate: (context) => {
      const [x, y] = [context.input(0), context.input(1)];
      if (x.dtype === 'string') return [compareStrings(context, x, y, compute)];
      if (isWide(x.dtype))
        return [
          combineWide(context, x, y, (a, b) => (compute(compareBigInts(a, b)) ? 1n : 0n), 'bool'),
        ];
      // NaN minus anything is NaN, which no comparison accepts; equal infinities are equal
      return [combine(context, x, y, 'bool', (a, b) => (compute(a === b ? 0 : a - b) ? 1 : 0))];
    },
  };
}

/** `a - b` or its sign, when known. A sum of sizes with no minus sign is not negative. */
function orderOfDims(a: Dim, b: Dim): number | undefined {
  const difference = knownDifference(a, b);
  if (difference !== undefined) return difference;
  if (typeof b === 'number' && b < 0 && !String(a).includes('-')) return 1;
  if (typeof a === 'number' && a < 0 && !String(b).includes('-')) return -1;
  return undefined;
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

const whereOp: OpDefinition = {
  op: 'Where',
  domain: '',
  inputs: [3, 3],
  outputs: [1, 1],
  infer: (context) => {
    const dtype = expectSameDType(context, 1, 2);
    const shape = broadcastDims(
      context,
      [0, 1, 2].map((i) => context.input(i).shape),
    );
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
    return [
      select(shape, takesX, gatherElements(x, shape, fromX), gatherElements(y, shape, fromY)),
    ];
  },
};

/** Elements of `x` where the flag is set, else of `y`; all of one shape. */
function select(shape: readonly number[], takesX: Uint8Array, x: Tensor, y: Tensor): Tensor {
  const { dtype } = x;
  if (dtype === 'string') {
    const [xs, ys] = [readStrings(x), readStrings(y)];
    return { dtype, shape, data: xs.map((text, i) => (takesX[i] ? text : (ys[i] ?? ''))) };
  }
  if (isWide(dtype)) {
    const [xs, ys] = [readBigInts(x), readBigInts(y)];
    return writeBigInts(
      dtype,
      shape,
      Array.from(xs, (v, i) => (takesX[i] ? v : (ys[i] ?? 0n))),
    );
  }
  const [xs, ys] = [readNumbers(x), readNumbers(y)];
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

function logicOp(op: string, compute: Binary): OpDefinition {
  return {
    ...binaryOp(op, compute, { commutative: true }),
    infer: (context) => {
      const { shape } = inferBroadcast(context, 2);
      const elements = foldElements([context.elements(0), context.elements(1)], (a, b) =>
        typeof a === 'number' && typeof b === 'number' ? compute(a, b) : undefined,
      );
      return [{ dtype: 'bool', shape, elements }];
    },
  };
}

/** A bool for each element. */
function predicateOp(
  op: string,
  test: (context: EvaluateContext) => (x: number) => boolean,
): OpDefinition {
  return {
    op,
    domain: '',
    inputs: [1, 1],
    outputs: [1, 1],
    infer: (context) => [{ dtype: 'bool', shape: context.input(0).shape }],
    evaluate: (context) => {
      const x = context.input(0);
      const holds = test(context);
      const flags = Uint8Array.from(readNumbers(x), (value) => Number(holds(value)));
      return [{ dtype: 'bool', shape: x.shape, data: flags }];
    },
  };
}

const notOp: OpDefinition = {
  ...predicateOp('Not', () => (x) => x === 0),
  infer: (context) => {
    const { shape } = context.input(0);
    const elements = context.elements(0);
    const known = elements?.every((dim) => typeof dim === 'number') === true;
    return [
      {
        dtype: 'bool',
        shape,
        elements: known ? elements.map((x) => (x === 0 ? 1 : 0)) : undefined,
      },
    ];
  },
};

const bitwiseNotOp: OpDefinition = {
  op: 'BitwiseNot',
  domain: '',
  inputs: [1, 1],
  outputs: [1, 1],
  infer: (context: InferContext) => [
    { dtype: context.input(0).dtype, shape: context.input(0).shape },
  ],
  evaluate: (context) => {
    const x = context.input(0);
    return [
      writeBigInts(
        x.dtype,
        x.shape,
        Array.from(readBigInts(x), (value) => ~value),
      ),
    ];
  },
};

/** Comparison, logic, bits and selection. */
export const logicOps: readonly OpDefinition[] = [
  comparisonOp('Equal', (order) => order === 0),
  comparisonOp('Less', (order) => order < 0),
  comparisonOp('LessOrEqual', (order) => order <= 0),
  comparisonOp('Greater', (order) => order > 0),
  comparisonOp('GreaterOrEqual', (order) => order >= 0),
  logicOp('And', (x, y) => x & y),
  logicOp('Or', (x, y) => x | y),
  logicOp('Xor', (x, y) => x ^ y),
  notOp,
  predicateOp('IsNaN', () => Number.isNaN),
  predicateOp('IsInf', ({ node }) => {
    const positive = node.int('detect_positive', 1) !== 0;
    const negative = node.int('detect_negative', 1) !== 0;
    return (x) => (positive && x === Infinity) || (negative && x === -Infinity);
  }),
  bitwiseOp(
    'BitwiseAnd',
    (x, y) => x & y,
    (x, y) => x & y,
  ),
  bitwiseOp(
    'BitwiseOr',
    (x, y) => x | y,
    (x, y) => x | y,
  ),
  bitwiseOp(
    'BitwiseXor',
    (x, y) => x ^ y,
    (x, y) => x ^ y,
  ),
  bitwiseNotOp,
  bitShiftOp,
  whereOp,
];
