/**
 * Ops that take runs of positions along axes: Slice (attribute and input form), Split, Tile, Pad and
 * Compress. The bounds of a symbolic Slice are computed as dimensions; a size is taken to be at
 * least 1 where the op reads its last element or skips its first.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import {
  addDims,
  ceilDivideDims,
  isStatic,
  knownDifference,
  maxDims,
  minDims,
  multiplyDims,
  subtractDims,
} from '../ir/dim.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { filled, gatherElements, readNumbers } from './numbers.ts';
import { takePositions, withSize } from './shapes.ts';
import type { OpPlace } from './support.ts';
import {
  evaluatedInts,
  freshShape,
  intsOf,
  normalizeAxes,
  normalizeAxis,
  onnxOp,
  opError,
  pickElements,
} from './support.ts';

/** `start`, `start + step`, … : the positions that a slice with known bounds takes. */
function slicePositions(size: number, start: number, end: number, step: number): number[] {
  const from = start < 0 ? start + size : start;
  const to = end < 0 ? end + size : end;
  const positions: number[] = [];
  if (step > 0) {
    const last = Math.min(size, to);
    for (let at = Math.max(0, Math.min(size, from)); at < last; at += step) positions.push(at);
  } else {
    const last = Math.max(-1, to);
    for (let at = Math.max(-1, Math.min(size - 1, from)); at > last; at += step) positions.push(at);
  }
  return positions;
}

/** A bound of a forward slice over a symbolic axis, moved into 0 … size. */
function clampBound(bound: Dim, size: Dim): Dim {
  const negative = typeof bound === 'number' ? bound < 0 : bound.startsWith('-');
  if (negative) {
    const moved = addDims(size, bound);
    return bound === -1 || typeof bound === 'string' ? moved : maxDims(moved, 0);
  }
  if (bound === 0 || bound === 1) return bound;
  // exporters write "to the end" as the largest integer of 31 to 63 bits
  if (typeof bound === 'number' && bound >= 2 ** 31 - 1) return size;
  const room = knownDifference(size, bound);
  if (room !== undefined) return room >= 0 ? bound : size;
  return minDims(bound, size);
}

function sliceSize(context: InferContext, size: Dim, start: Dim, end: Dim, step: number): Dim {
  const bounds = [size, start, end];
  if (step === 0) throw opError(context, 'step 0');
  if (isStatic(bounds)) {
    const [length = 0, from = 0, to = 0] = bounds;
    return slicePositions(length, from, to, step).length;
  }
  if (step < 0)
    return start === -1 && typeof end === 'number' && end < -(2 ** 30)
      ? ceilDivideDims(size, -step)
      : context.fresh();
  const taken = subtractDims(clampBound(end, size), clampBound(start, size));
  return typeof taken === 'number'
    ? Math.ceil(Math.max(0, taken) / step)
    : ceilDivideDims(taken, step);
}

/** Start, end and step by axis, from attributes or inputs. */
interface Bounds<D> {
  readonly axis: number;
  readonly start: D;
  readonly end: D;
  readonly step: number;
}

function boundsOf<D extends Dim>(
  context: OpPlace,
  rank: number,
  starts: readonly D[],
  ends: readonly D[],
  axes: readonly number[] | undefined,
  steps: readonly number[] | undefined,
): readonly Bounds<D>[] {
  const listed = normalizeAxes(context, axes ?? [...starts.keys()], rank);
  return listed.map((axis, i) => {
    const start = starts[i];
    const end = ends[i];
    if (start === undefined || end === undefined)
      throw opError(context, 'starts, ends and axes have different lengths');
    return { axis, start, end, step: steps?.[i] ?? 1 };
  });
}

const sliceOp = onnxOp('Slice', [1, 5], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    if (shape === undefined) return [{ dtype }];
    const axes = intsOf(context, 'axes', 3);
    const steps = intsOf(context, 'steps', 4);
    const starts = context.node.ints('starts') ?? context.elements(1);
    const ends = context.node.ints('ends') ?? context.elements(2);
    if (axes === undefined) return [{ dtype, shape: freshShape(context, shape.length) }];
    const touched = axes === 'absent' ? undefined : axes;
    if (starts === undefined || ends === undefined || steps === undefined)
      return [{ dtype, shape: untouched(context, shape, touched) }];
    const bounds = boundsOf(
      context,
      shape.length,
      starts,
      ends,
      touched,
      steps === 'absent' ? undefined : steps,
    );
    const sizes = [...shape];
    for (const { axis, start, end, step } of bounds)
      sizes[axis] = sliceSize(context, shape[axis] ?? 1, start, end, step);
    return [{ dtype, shape: sizes, elements: slicedElements(context, shape, bounds) }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const bounds = boundsOf(
      context,
      x.shape.length,
      evaluatedInts(context, 'starts', 1) ?? [],
      evaluatedInts(context, 'ends', 2) ?? [],
      evaluatedInts(context, 'axes', 3),
      evaluatedInts(context, 'steps', 4),
    );
    const { shape, indices } = slicedIndices(x.shape, bounds);
    return [gatherElements(x, shape, indices)];
  },
});

/** The shape with every axis that could change made anonymous. */
function untouched(
  context: InferContext,
  shape: Shape,
  axes: readonly number[] | undefined,
): Shape {
  const changed = axes && normalizeAxes(context, axes, shape.length);
  return shape.map((dim, axis) => (changed?.includes(axis) === false ? dim : context.fresh()));
}

function slicedIndices(
  shape: readonly number[],
  bounds: readonly Bounds<number>[],
): ReturnType<typeof takePositions> {
  const positions: (readonly number[])[] = [];
  for (const { axis, start, end, step } of bounds)
    positions[axis] = slicePositions(shape[axis] ?? 1, start, end, step);
  return takePositions(shape, positions);
}

function slicedElements(
  context: InferContext,
  shape: Shape,
  bounds: readonly Bounds<Dim>[],
): readonly Dim[] | undefined {
  const elements = context.elements(0);
  if (elements === undefined || !isStatic(shape)) return undefined;
  const known = bounds.every((b) => typeof b.start === 'number' && typeof b.end === 'number');
  if (!known) return undefined;
  return pickElements(elements, slicedIndices(shape, bounds as readonly Bounds<number>[]).indices);
}

/** Sizes of the parts of a Split; undefined when the sizes are an input that is not known. */
function splitSizes(
  context: OpPlace,
  size: Dim,
  listed: readonly Dim[] | undefined,
): readonly Dim[] {
  const parts = context.node.outputs.length;
  if (listed !== undefined) {
    if (listed.length < parts)
      throw opError(context, `${listed.length} sizes for ${parts} outputs`);
    const total = addDims(...listed);
    if (typeof total === 'number' && typeof size === 'number' && total !== size)
      throw opError(context, `sizes [${listed.join(', ')}] do not add up to ${size}`);
    return listed;
  }
  const count = context.node.int('num_outputs', parts);
  const each = ceilDivideDims(size, count);
  // all of one size; when that does not come out even the last is smaller
  return Array.from({ length: count }, (_, i) =>
    i < count - 1 ? each : subtractDims(size, multiplyDims(count - 1, each)),
  );
}

const splitOp = onnxOp('Split', [1, 2], [1, Infinity], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    const outputs = context.node.outputs;
    if (shape === undefined) return outputs.map(() => ({ dtype }));
    const axis = normalizeAxis(context, context.node.int('axis', 0), shape.length);
    const listed = context.node.ints('split') ?? context.elements(1);
    if (listed === undefined && context.has(1))
      return outputs.map(() => ({ dtype, shape: withSize(shape, axis, context.fresh()) }));
    const sizes = splitSizes(context, shape[axis] ?? 1, listed);
    const elements = context.elements(0);
    let start = 0;
    return outputs.map((_, i) => {
      const size = sizes[i] ?? 0;
      const type = { dtype, shape: withSize(shape, axis, size) };
      if (elements === undefined || shape.length !== 1 || typeof size !== 'number') return type;
      start += size;
      return { ...type, elements: elements.slice(start - size, start) };
    });
  },
  evaluate: (context) => {
    const x = context.input(0);
    const axis = normalizeAxis(context, context.node.int('axis', 0), x.shape.length);
    const listed = evaluatedInts(context, 'split', 1);
    const sizes = splitSizes(context, x.shape[axis] ?? 1, listed) as readonly number[];
    let start = 0;
    return sizes.map((size) => {
      const positions: number[][] = [];
      const from = start;
      positions[axis] = Array.from({ length: size }, (_, i) => from + i);
      start += size;
      const { shape, indices } = takePositions(x.shape, positions);
      return gatherElements(x, shape, indices);
    });
  },
});

const tileOp = onnxOp('Tile', [2, 3], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    if (shape === undefined) return [{ dtype }];
    const repeats = context.elements(1);
    if (repeats === undefined) return [{ dtype, shape: freshShape(context, shape.length) }];
    return [{ dtype, shape: shape.map((dim, axis) => multiplyDims(dim, repeats[axis] ?? 1)) }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const repeats = readNumbers(context.input(1));
    const positions = x.shape.map((size, axis) =>
      Int32Array.from({ length: size * (repeats[axis] ?? 1) }, (_, i) => i % size),
    );
    const { shape, indices } = takePositions(x.shape, positions);
    return [gatherElements(x, shape, indices)];
  },
});

/** Padding before and after each axis. */
function padsOf<D extends Dim>(
  context: OpPlace,
  rank: number,
  pads: readonly D[],
  axes: readonly number[] | undefined,
): readonly (readonly [before: D | 0, after: D | 0])[] {
  const listed = normalizeAxes(context, axes ?? Array.from({ length: rank }, (_, i) => i), rank);
  if (pads.length !== 2 * listed.length)
    throw opError(context, `${pads.length} pads for ${listed.length} axes`);
  return Array.from({ length: rank }, (_, axis) => {
    const at = listed.indexOf(axis);
    return at < 0 ? [0, 0] : [pads[at] ?? 0, pads[at + listed.length] ?? 0];
  });
}

/** Source position of each padded position; -1 is the fill. */
function padPositions(
  context: OpPlace,
  size: number,
  [before, after]: readonly [number, number],
): Int32Array {
  const mode = context.node.string('mode', 'constant');
  const mirror = Math.max(1, 2 * (size - 1));
  return Int32Array.from({ length: Math.max(0, size + before + after) }, (_, i) => {
    const at = i - before;
    if (at >= 0 && at < size) return at;
    if (mode === 'constant') return -1;
    if (mode === 'edge') return at < 0 ? 0 : size - 1;
    if (mode === 'wrap') return ((at % size) + size) % size;
    if (mode !== 'reflect') throw opError(context, `mode "${mode}" does not exist`);
    const phase = ((at % mirror) + mirror) % mirror;
    return Math.min(phase, mirror - phase);
  });
}

function padFill(context: EvaluateContext, x: Tensor): Tensor {
  const value = context.inputs[2];
  if (value !== undefined && elementCount(value.shape) > 0) return value;
  return x.dtype === 'string'
    ? { dtype: 'string', shape: [], data: [''] }
    : filled(x.dtype, [], context.node.float('value', 0));
}

const padOp = onnxOp('Pad', [1, 4], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    if (shape === undefined) return [{ dtype }];
    const pads = context.node.ints('pads') ?? context.node.ints('paddings') ?? context.elements(1);
    const axes = intsOf(context, 'axes', 3);
    if (axes === undefined) return [{ dtype, shape: freshShape(context, shape.length) }];
    const listed = axes === 'absent' ? undefined : axes;
    if (pads === undefined) return [{ dtype, shape: untouched(context, shape, listed) }];
    const amounts = padsOf(context, shape.length, pads, listed);
    return [{ dtype, shape: shape.map((dim, axis) => addDims(dim, ...(amounts[axis] ?? []))) }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const pads = context.node.ints('paddings') ?? evaluatedInts(context, 'pads', 1) ?? [];
    const amounts = padsOf(context, x.shape.length, pads, evaluatedInts(context, 'axes', 3));
    const positions = x.shape.map((size, axis) =>
      padPositions(context, size, amounts[axis] ?? [0, 0]),
    );
    const { shape, indices } = takePositions(x.shape, positions);
    return [gatherElements(x, shape, indices, padFill(context, x))];
  },
});

const compressOp = onnxOp('Compress', [2, 2], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    const axis = context.node.int('axis');
    const flags = context.elements(1);
    const known = flags !== undefined && isStatic(flags);
    const size = known ? flags.filter((flag) => flag !== 0).length : context.fresh();
    if (axis === undefined) return [{ dtype, shape: [size] }];
    if (shape === undefined) return [{ dtype }];
    return [{ dtype, shape: withSize(shape, normalizeAxis(context, axis, shape.length), size) }];
  },
  evaluate: (context) => {
    const axis = context.node.int('axis');
    const x = context.input(0);
    const source = axis === undefined ? { ...x, shape: [elementCount(x.shape)] } : x;
    const taken: number[] = [];
    readNumbers(context.input(1)).forEach((flag, i) => {
      if (flag !== 0) taken.push(i);
    });
    const positions: number[][] = [];
    positions[normalizeAxis(context, axis ?? 0, source.shape.length)] = taken;
    const { shape, indices } = takePositions(source.shape, positions);
    return [gatherElements(source, shape, indices)];
  },
});

/** Ops that take runs of positions along axes. */
export const sliceOps: readonly OpDefinition[] = [sliceOp, splitOp, tileOp, padOp, compressOp];
