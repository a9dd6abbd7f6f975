/**
 * Ops that make a tensor out of attributes or sizes: Constant, ConstantOfShape, EyeLike, Range and the
 * window functions.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import { addDims, ceilDivideDims, isStatic, multiplyDims, subtractDims } from '../ir/dim.ts';
import type { ValueType } from '../ir/graph.ts';
import type { InferContext, OpDefinition } from './definition.ts';
import {
  filled,
  gatherElements,
  isWide,
  readBigInts,
  readNumbers,
  readScalar,
  writeBigInts,
  writeNumbers,
} from './numbers.ts';
import type { OpPlace } from './support.ts';
import {
  MAX_ELEMENTS,
  describedRank,
  dtypeAttribute,
  expectRank,
  freshShape,
  onnxOp,
  opError,
  wholeNumbers,
} from './support.ts';

/** The tensor of a Constant node, from whichever attribute holds it. */
export function constantTensor(context: OpPlace): Tensor {
  for (const [name, attribute] of context.node.attributes) {
    if (name === 'value' && attribute.kind === 'tensor') return attribute.value.tensor();
    if (name === 'value_int' && attribute.kind === 'int')
      return writeBigInts('i64', [], [attribute.value]);
    if (name === 'value_ints' && attribute.kind === 'ints')
      return writeBigInts('i64', [attribute.value.length], attribute.value);
    if (name === 'value_float' && attribute.kind === 'float')
      return writeNumbers('f32', [], [attribute.value]);
    if (name === 'value_floats' && attribute.kind === 'floats')
      return writeNumbers('f32', [attribute.value.length], attribute.value);
    if (name === 'value_string' && attribute.kind === 'string')
      return { dtype: 'string', shape: [], data: [attribute.value] };
    if (name === 'value_strings' && attribute.kind === 'strings')
      return { dtype: 'string', shape: [attribute.value.length], data: attribute.value };
  }
  throw opError(context, 'has no value that is a dense tensor');
}

const constantOp = onnxOp('Constant', [0, 0], [1, 1], {
  infer: (context) => {
    const tensor = constantTensor(context);
    return [{ dtype: tensor.dtype, shape: tensor.shape, elements: wholeNumbers(tensor) }];
  },
  evaluate: (context) => [constantTensor(context)],
});

/** The element a ConstantOfShape is filled with. */
function fillOf(context: OpPlace): Tensor {
  const attribute = context.node.attributes.get('value');
  return attribute?.kind === 'tensor' ? attribute.value.tensor() : filled('f32', [1], 0);
}

const constantOfShapeOp = onnxOp('ConstantOfShape', [1, 1], [1, 1], {
  infer: (context) => {
    const fill = fillOf(context);
    const { dtype } = fill;
    const shape = context.elements(0);
    if (shape === undefined) {
      const rank = describedRank(context, 0);
      return [{ dtype, shape: rank === undefined ? undefined : freshShape(context, rank) }];
    }
    const [value] = wholeNumbers(fill) ?? [];
    const count = isStatic(shape) ? elementCount(shape) : Infinity;
    const elements =
      value !== undefined && count <= MAX_ELEMENTS
        ? Array.from({ length: count }, () => value)
        : undefined;
    return [{ dtype, shape, elements }];
  },
  evaluate: (context) => {
    const shape = Array.from(readNumbers(context.input(0)));
    return [gatherElements(fillOf(context), shape, new Int32Array(elementCount(shape)))];
  },
});

const eyeLikeOp = onnxOp('EyeLike', [1, 1], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    expectRank(context, 'the input', shape, 2);
    return [{ dtype: dtypeAttribute(context, 'dtype') ?? dtype, shape }];
  },
  evaluate: (context) => {
    const { dtype, shape } = context.input(0);
    const offset = context.node.int('k', 0);
    const columns = shape[1] ?? 1;
    const eye = Float64Array.from({ length: elementCount(shape) }, (_, i) =>
      Number((i % columns) - Math.floor(i / columns) === offset),
    );
    return [writeNumbers(dtypeAttribute(context, 'dtype') ?? dtype, shape, eye)];
  },
});

function inferRange(context: InferContext): readonly ValueType[] {
  const { dtype } = context.input(0);
  const [start] = context.elements(0) ?? [];
  const [limit] = context.elements(1) ?? [];
  const [delta] = context.elements(2) ?? [];
  if (start !== undefined && limit !== undefined && typeof delta === 'number' && delta !== 0) {
    const span = delta > 0 ? subtractDims(limit, start) : subtractDims(start, limit);
    const count = ceilDivideDims(span, Math.abs(delta));
    if (typeof count !== 'number') return [{ dtype, shape: [count] }];
    const length = Math.max(0, count);
    const elements =
      length <= MAX_ELEMENTS
        ? Array.from({ length }, (_, i) => addDims(start, multiplyDims(i, delta)))
        : undefined;
    return [{ dtype, shape: [length], elements }];
  }
  // steps that are no whole numbers
  const known = [0, 1, 2].map((index) => context.constant(index));
  const [from, to, by] = known.map((tensor) => tensor && readScalar(tensor));
  if (from === undefined || to === undefined || by === undefined)
    return [{ dtype, shape: [context.fresh()] }];
  return [{ dtype, shape: [Math.max(0, Math.ceil((to - from) / by))] }];
}

const rangeOp = onnxOp('Range', [3, 3], [1, 1], {
  infer: inferRange,
  evaluate: (context) => {
    const { dtype } = context.input(0);
    if (isWide(dtype)) {
      const [start = 0n, limit = 0n, delta = 1n] = [0, 1, 2].map(
        (index) => readBigInts(context.input(index))[0],
      );
      const values: bigint[] = [];
      if (delta === 0n) throw opError(context, 'delta is 0');
      for (let at = start; delta > 0n ? at < limit : at > limit; at += delta) values.push(at);
      return [writeBigInts(dtype, [values.length], values)];
    }
    const [start = 0, limit = 0, delta = 1] = [0, 1, 2].map((i) => readScalar(context.input(i)));
    if (delta === 0) throw opError(context, 'delta is 0');
    const length = Math.max(0, Math.ceil((limit - start) / delta));
    const values = Float64Array.from({ length }, (_, i) => start + i * delta);
    return [writeNumbers(dtype, [length], values)];
  },
});

/** `a0 - a1 cos(2 pi n / N) + a2 cos(4 pi n / N)` with N = size, or size - 1 when symmetric. */
function windowOp(op: string, [a0, a1, a2]: readonly [number, number, number]): OpDefinition {
  return onnxOp(op, [1, 1], [1, 1], {
    infer: (context) => [
      {
        dtype: dtypeAttribute(context, 'output_datatype') ?? 'f32',
        shape: [context.elements(0)?.[0] ?? context.fresh()],
      },
    ],
    evaluate: (context) => {
      const size = readScalar(context.input(0));
      const period = context.node.int('periodic', 1) === 1 ? size : size - 1;
      const dtype = dtypeAttribute(context, 'output_datatype') ?? 'f32';
      const values = Float64Array.from({ length: size }, (_, i) => {
        const phase = (2 * Math.PI * i) / period;
        return a0 - a1 * Math.cos(phase) + a2 * Math.cos(2 * phase);
      });
      return [writeNumbers(dtype, [size], values)];
    },
  });
}

/** Ops that make a tensor out of attributes or sizes. */
export const constantOps: readonly OpDefinition[] = [
  constantOp,
  constantOfShapeOp,
  eyeLikeOp,
  rangeOp,
  windowOp('HannWindow', [0.5, 0.5, 0]),
  windowOp('HammingWindow', [25 / 46, 21 / 46, 0]),
  windowOp('BlackmanWindow', [0.42, 0.5, 0.08]),
];
