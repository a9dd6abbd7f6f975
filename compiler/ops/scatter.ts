/**
 * Ops that write elements by index: ScatterElements (and Scatter, its old name), ScatterND,
 * TensorScatter. Duplicates are applied in order.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { EvaluateContext, OpDefinition } from './definition.ts';
import { sameAsInput } from './elementwise.ts';
import { elementIndices, tupleStarts } from './gather.ts';
import {
  isWide,
  readBigInts,
  readNumbers,
  readStrings,
  writeBigInts,
  writeNumbers,
} from './numbers.ts';
import { splitAtAxis } from './shapes.ts';
import { normalizeAxis, onnxOp, opError } from './support.ts';

/** How an update meets what is there already. */
type Reduction = 'none' | 'add' | 'mul' | 'max' | 'min';

function reductionOf(context: EvaluateContext): Reduction {
  const reduction = context.node.string('reduction', 'none');
  switch (reduction) {
    case 'none':
    case 'add':
    case 'mul':
    case 'max':
    case 'min':
      return reduction;
    default:
      throw opError(context, `reduction "${reduction}" does not exist`);
  }
}

const reducers: Readonly<Record<Reduction, (old: number, update: number) => number>> = {
  none: (_, update) => update,
  add: (old, update) => old + update,
  mul: (old, update) => old * update,
  max: Math.max,
  min: Math.min,
};

const wideReducers: Readonly<Record<Reduction, (old: bigint, update: bigint) => bigint>> = {
  none: (_, update) => update,
  add: (old, update) => old + update,
  mul: (old, update) => old * update,
  max: (old, update) => (old > update ? old : update),
  min: (old, update) => (old < update ? old : update),
};

/** Writes update `i` to element `targets[i]` of a copy of `x`. */
function scatter(x: Tensor, targets: Int32Array, updates: Tensor, reduction: Reduction): Tensor {
  const { dtype, shape } = x;
  if (dtype === 'string') {
    const result = [...readStrings(x)];
    readStrings(updates).forEach((text, i) => (result[targets[i] ?? 0] = text));
    return { dtype, shape, data: result };
  }
  if (isWide(dtype)) {
    const result = Array.from(readBigInts(x));
    apply(result, targets, readBigInts(updates), wideReducers[reduction]);
    return writeBigInts(dtype, shape, result);
  }
  const result = Array.from(readNumbers(x));
  apply(result, targets, readNumbers(updates), reducers[reduction]);
  return writeNumbers(dtype, shape, result);
}

function apply<T>(
  result: T[],
  targets: Int32Array,
  updates: ArrayLike<T>,
  reduce: (old: T, update: T) => T,
): void {
  for (let i = 0; i < targets.length; i++) {
    const at = targets[i] ?? 0;
    const [old, update] = [result[at], updates[i]];
    if (old !== undefined && update !== undefined) result[at] = reduce(old, update);
  }
}

function scatterElementsOp(op: string): OpDefinition {
  return onnxOp(op, [3, 3], [1, 1], {
    infer: sameAsInput,
    evaluate: (context) => {
      const [x, indices, updates] = [context.input(0), context.input(1), context.input(2)];
      const axis = normalizeAxis(context, context.node.int('axis', 0), x.shape.length);
      const targets = elementIndices(context, x.shape, indices, axis);
      return [scatter(x, targets, updates, reductionOf(context))];
    },
  });
}

const scatterNdOp = onnxOp('ScatterND', [3, 3], [1, 1], {
  infer: sameAsInput,
  evaluate: (context) => {
    const [x, indices, updates] = [context.input(0), context.input(1), context.input(2)];
    const block = elementCount(x.shape.slice(indices.shape.at(-1) ?? 0));
    const starts = tupleStarts(context, x.shape, indices);
    const targets = Int32Array.from(
      { length: starts.length * block },
      (_, i) => (starts[Math.floor(i / block)] ?? 0) + (i % block),
    );
    return [scatter(x, targets, updates, reductionOf(context))];
  },
});

/** Writes new positions into a cache, at an offset for each batch row. */
const tensorScatterOp = onnxOp('TensorScatter', [2, 3], [1, 1], {
  infer: sameAsInput,
  evaluate: (context) => {
    const [cache, update] = [context.input(0), context.input(1)];
    const axis = normalizeAxis(context, context.node.int('axis', -2), cache.shape.length);
    const circular = context.node.string('mode', 'linear') === 'circular';
    const offsets = context.inputs[2] && readNumbers(context.inputs[2]);
    const [outer, size, inner] = splitAtAxis(cache.shape, axis);
    const written = update.shape[axis] ?? 0;
    const rowsPerBatch = outer / (cache.shape[0] ?? 1);
    const targets = Int32Array.from({ length: outer * written * inner }, (_, i) => {
      const row = Math.floor(i / (written * inner));
      const step = Math.floor(i / inner) % written;
      const at = (offsets?.[Math.floor(row / rowsPerBatch)] ?? 0) + step;
      if (at >= size && !circular) throw opError(context, `position ${at} is outside ${size}`);
      return (row * size + (at % size)) * inner + (i % inner);
    });
    return [scatter(cache, targets, update, 'none')];
  },
});

/** Ops that write elements by index. */
export const scatterOps: readonly OpDefinition[] = [
  scatterElementsOp('ScatterElements'),
  scatterElementsOp('Scatter'),
  scatterNdOp,
  tensorScatterOp,
];
