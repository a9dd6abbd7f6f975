/**
 * Concat and ops that move elements by a fixed pattern: DepthToSpace, SpaceToDepth, Trilu,
 * ReverseSequence.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { bytesFor, dtypes, elementCount, viewBytes } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { addDims, divideDims, multiplyDims } from '../ir/dim.ts';
import type { OpDefinition } from './definition.ts';
import { sameAsInput } from './elementwise.ts';
import { gatherElements, readNumbers, readScalar, readStrings, writeNumbers } from './numbers.ts';
import { transposed } from './reshape.ts';
import { splitAtAxis } from './shapes.ts';
import {
  expectRank,
  expectSameDType,
  freshShape,
  normalizeAxis,
  onnxOp,
  opError,
  sameDim,
} from './support.ts';

const concatOp = onnxOp('Concat', [1, Infinity], [1, 1], {
  infer: (context) => {
    const count = context.node.inputs.length;
    const inputs = Array.from({ length: count }, (_, i) => context.input(i));
    const dtype = expectSameDType(context, ...inputs.keys());
    const known = inputs.find(({ shape }) => shape !== undefined)?.shape;
    if (known === undefined) return [{ dtype }];
    const axis = normalizeAxis(context, context.node.int('axis', 1), known.length);
    const sizes: Dim[] = [...known];
    let total: Dim = 0;
    for (const { shape } of inputs) {
      expectRank(context, 'every input', shape, known.length);
      shape?.forEach((dim, i) => {
        if (i !== axis) sizes[i] = sameDim(context, `sizes of axis ${i}`, sizes[i] ?? dim, dim);
      });
      total = addDims(total, shape?.[axis] ?? context.fresh());
    }
    sizes[axis] = total;
    const elements: Dim[] = [];
    for (const i of inputs.keys()) {
      const part = known.length === 1 ? context.elements(i) : undefined;
      if (part === undefined) return [{ dtype, shape: sizes }];
      elements.push(...part);
    }
    return [{ dtype, shape: sizes, elements }];
  },
  evaluate: (context) => {
    const tensors = context.inputs.map((_, i) => context.input(i));
    const rank = context.input(0).shape.length;
    for (const { shape } of tensors) expectRank(context, 'every input', shape, rank);
    return [concatTensors(tensors, normalizeAxis(context, context.node.int('axis', 1), rank))];
  },
});

/** Tensors of one dtype joined along an axis; the other sizes must agree. */
export function concatTensors(tensors: readonly Tensor[], axis: number): Tensor {
  const [first] = tensors;
  if (first === undefined) throw new RangeError('tensors: wanted at least one, got 0.');
  const { dtype } = first;
  const shape = first.shape.map((size, i) =>
    i === axis ? tensors.reduce((sum, tensor) => sum + (tensor.shape[axis] ?? 0), 0) : size,
  );
  const [outer] = splitAtAxis(first.shape, axis);
  const runs = tensors.map((tensor) => elementCount(tensor.shape.slice(axis)));
  if (dtype === 'string') return { dtype, shape, data: joinStrings(tensors, runs, outer) };
  const { bits } = dtypes[dtype];
  if (bits < 8) {
    const numbers = tensors.map(readNumbers);
    const joined = new Float64Array(elementCount(shape));
    joinRuns(joined, numbers, runs, outer);
    return writeNumbers(dtype, shape, joined);
  }
  const result = viewBytes(dtype, new Uint8Array(bytesFor(dtype, elementCount(shape))));
  const width = dtypes[dtype].kind === 'complex' ? 2 : 1;
  const parts = tensors.map((tensor) => tensor.data as Float32Array);
  joinRuns(
    result as Float32Array,
    parts,
    runs.map((run) => run * width),
    outer,
  );
  return { dtype, shape, data: result };
}

function joinRuns<T extends ArrayLike<number>>(
  result: { set(values: ArrayLike<number>, offset: number): void },
  parts: readonly (T & { subarray(start: number, end: number): ArrayLike<number> })[],
  runs: readonly number[],
  outer: number,
): void {
  let at = 0;
  for (let block = 0; block < outer; block++)
    for (const [i, part] of parts.entries()) {
      const run = runs[i] ?? 0;
      result.set(part.subarray(block * run, (block + 1) * run), at);
      at += run;
    }
}

function joinStrings(tensors: readonly Tensor[], runs: readonly number[], outer: number): string[] {
  const result: string[] = [];
  for (let block = 0; block < outer; block++)
    for (const [i, tensor] of tensors.entries()) {
      const run = runs[i] ?? 0;
      result.push(...readStrings(tensor).slice(block * run, (block + 1) * run));
    }
  return result;
}

const depthToSpaceOp = onnxOp('DepthToSpace', [1, 1], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    expectRank(context, 'the input', shape, 4);
    if (shape === undefined) return [{ dtype, shape: freshShape(context, 4) }];
    const block = context.node.int('blocksize', 1);
    const [batch = 1, channels = 1, height = 1, width = 1] = shape;
    const result = [
      batch,
      divideDims(channels, block * block),
      multiplyDims(height, block),
      multiplyDims(width, block),
    ];
    return [{ dtype, shape: result }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const block = context.node.int('blocksize', 1);
    const [batch = 1, channels = 1, height = 1, width = 1] = x.shape;
    const depth = channels / (block * block);
    const columnRow = context.node.string('mode', 'DCR') === 'CRD';
    const split = columnRow
      ? { ...x, shape: [batch, depth, block, block, height, width] }
      : { ...x, shape: [batch, block, block, depth, height, width] };
    const moved = transposed(split, columnRow ? [0, 1, 4, 2, 5, 3] : [0, 3, 4, 1, 5, 2]);
    return [{ ...moved, shape: [batch, depth, height * block, width * block] }];
  },
});

const spaceToDepthOp = onnxOp('SpaceToDepth', [1, 1], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    expectRank(context, 'the input', shape, 4);
    if (shape === undefined) return [{ dtype, shape: freshShape(context, 4) }];
    const block = context.node.int('blocksize', 1);
    const [batch = 1, channels = 1, height = 1, width = 1] = shape;
    const result = [
      batch,
      multiplyDims(channels, block * block),
      divideDims(height, block),
      divideDims(width, block),
    ];
    return [{ dtype, shape: result }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const block = context.node.int('blocksize', 1);
    const [batch = 1, channels = 1, height = 1, width = 1] = x.shape;
    const [rows, columns] = [height / block, width / block];
    const split = { ...x, shape: [batch, channels, rows, block, columns, block] };
    const moved = transposed(split, [0, 3, 5, 1, 2, 4]);
    return [{ ...moved, shape: [batch, channels * block * block, rows, columns] }];
  },
});

const triluOp = onnxOp('Trilu', [1, 2], [1, 1], {
  infer: sameAsInput,
  evaluate: (context) => {
    const x = context.input(0);
    const upper = context.node.int('upper', 1) !== 0;
    const diagonal = context.inputs[1] === undefined ? 0 : readScalar(context.input(1));
    const [rows = 1, columns = 1] = x.shape.slice(-2);
    const kept = Int32Array.from({ length: elementCount(x.shape) }, (_, i) => {
      const distance = (i % columns) - (Math.floor(i / columns) % rows);
      return (upper ? distance >= diagonal : distance <= diagonal) ? i : -1;
    });
    return [gatherElements(x, x.shape, kept)];
  },
});

const reverseSequenceOp = onnxOp('ReverseSequence', [2, 2], [1, 1], {
  infer: sameAsInput,
  evaluate: (context) => {
    const x = context.input(0);
    const lengths = readNumbers(context.input(1));
    const rank = x.shape.length;
    const batchAxis = normalizeAxis(context, context.node.int('batch_axis', 1), rank);
    const timeAxis = normalizeAxis(context, context.node.int('time_axis', 0), rank);
    if (batchAxis === timeAxis) throw opError(context, 'batch_axis and time_axis are the same');
    const [, batches, batchInner] = splitAtAxis(x.shape, batchAxis);
    const [, times, timeInner] = splitAtAxis(x.shape, timeAxis);
    const indices = Int32Array.from({ length: elementCount(x.shape) }, (_, i) => {
      const length = lengths[Math.floor(i / batchInner) % batches] ?? 0;
      const time = Math.floor(i / timeInner) % times;
      return time < length ? i + (length - 1 - 2 * time) * timeInner : i;
    });
    return [gatherElements(x, x.shape, indices)];
  },
});

/** Concat and ops that move elements by a fixed pattern. */
export const rearrangeOps: readonly OpDefinition[] = [
  concatOp,
  depthToSpaceOp,
  spaceToDepthOp,
  triluOp,
  reverseSequenceOp,
];
