/**
 * Movement of data for the WASM engine: views where the order of bytes stays, strided copies elsewhere.
 */
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { Dim } from '../ir/dim.ts';
import { addDims, divideDims, multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Word } from './plan.ts';
import { shifted } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { f32, Unsupported } from './wasm-context.ts';

/** Sizes and strides of one loop of a copy. */
export interface Loop {
  readonly size: Dim;
  /** Strides of each operand; elements or bytes, as the kernel wants. */
  readonly strides: readonly Dim[];
}

/** Row-major strides, in elements. */
export function stridesOf(shape: readonly Dim[]): Dim[] {
  return shape.map((_, axis) => multiplyDims(...shape.slice(axis + 1)));
}

/** Drops loops of one turn and joins neighbours that every operand walks through evenly. */
export function mergeLoops(loops: readonly Loop[]): Loop[] {
  const merged: Loop[] = [];
  for (const loop of loops) {
    if (loop.size === 1) continue;
    const outer = merged.at(-1);
    const joins = outer?.strides.every(
      (stride, index) => stride === multiplyDims(loop.strides[index] ?? 0, loop.size),
    );
    if (outer !== undefined && joins === true)
      merged[merged.length - 1] = {
        size: multiplyDims(outer.size, loop.size),
        strides: loop.strides,
      };
    else merged.push(loop);
  }
  return merged;
}

/** Exactly six loops for a kernel, padded in front. */
export function sixLoops(loops: readonly Loop[], operands: number): readonly Loop[] {
  const merged = mergeLoops(loops);
  if (merged.length > 6) throw new Unsupported(`${merged.length} axes that do not merge to 6`);
  const one: Loop = { size: 1, strides: Array.from({ length: operands }, () => 0) };
  return [...Array.from({ length: 6 - merged.length }, () => one), ...merged];
}

/** One side of a copy: where it starts, and its strides in elements. */
export interface Side {
  readonly place: Place;
  readonly offset?: Dim;
  readonly strides: readonly Dim[];
}

/** Copies elements of 4 bytes: dimensions `shape`, from one set of strides to another. */
export function move(
  lowering: Lowering,
  shape: readonly Dim[],
  from: Side,
  to: Side,
  why: string,
): void {
  const bytes = (stride: Dim | undefined): Dim => multiplyDims(4, stride ?? 0);
  const loops = sixLoops(
    shape.map((size, axis) => ({
      size,
      strides: [bytes(from.strides[axis]), bytes(to.strides[axis])],
    })),
    2,
  );
  const words: Word[] = [
    shifted(from.place.address, bytes(from.offset)),
    shifted(to.place.address, bytes(to.offset)),
    4,
    ...loops.map(({ size }) => size),
    ...loops.map(({ strides }) => strides[0] ?? 0),
    ...loops.map(({ strides }) => strides[1] ?? 0),
  ];
  lowering.push('MOVE', words, { why });
}

/** A value in whatever type it has; movement does not care. */
function source(lowering: Lowering, value: Value): Place {
  return lowering.placeOf(value);
}

/** Copies a place into a larger shape; sizes of 1 repeat. */
export function broadcastTo(lowering: Lowering, from: Place, shape: readonly Dim[]): Place {
  const to = lowering.fresh('broadcast', shape, from.type);
  const lead = shape.length - from.shape.length;
  const own = stridesOf(from.shape);
  const strides = shape.map((_, axis) =>
    axis < lead || from.shape[axis - lead] === 1 ? 0 : (own[axis - lead] ?? 0),
  );
  move(
    lowering,
    shape,
    { place: from, strides },
    { place: to, strides: stridesOf(shape) },
    'broadcast',
  );
  return to;
}

/** Reshape, Squeeze, Unsqueeze, Flatten, Identity: the same bytes. */
export function lowerView(lowering: Lowering, node: Node): void {
  lowering.alias(node.output(), source(lowering, node.input(0)));
}

/** Cast between types that are stored alike, or with what differs. */
export function lowerCast(lowering: Lowering, node: Node): void {
  const from = node.input(0).dtype;
  const to = node.output().dtype;
  const isInteger = to !== undefined && /^[iu]\d/.test(to);
  const wasFloat = from !== undefined && /f\d/.test(from);
  if (isInteger && wasFloat) lowering.alias(node.output(), lowering.ints(node.input(0)));
  else lowering.alias(node.output(), source(lowering, node.input(0)));
}

/** Transpose. */
export function lowerTranspose(lowering: Lowering, node: Node): void {
  const x = source(lowering, node.input(0));
  const perm = node.ints('perm') ?? x.shape.map((_, axis) => x.shape.length - 1 - axis);
  const own = stridesOf(x.shape);
  const shape = perm.map((axis) => x.shape[axis] ?? 1);
  // moving axes of size 1 moves nothing
  const order = perm.filter((axis) => x.shape[axis] !== 1);
  if (order.every((axis, index) => index === 0 || axis > (order[index - 1] ?? 0))) {
    lowering.alias(node.output(), x, shape);
    return;
  }
  const y = lowering.output(node, 0, x.type);
  move(
    lowering,
    shape,
    { place: x, strides: perm.map((axis) => own[axis] ?? 0) },
    { place: y, strides: stridesOf(shape) },
    'transpose',
  );
}

/** Expand. */
export function lowerExpand(lowering: Lowering, node: Node): void {
  const x = source(lowering, node.input(0));
  lowering.define(node.output(), broadcastTo(lowering, x, lowering.shapeOf(node.output())));
}

/** Concat. */
export function lowerConcat(lowering: Lowering, node: Node): void {
  const parts = node.inputs.flatMap((input) => (input === undefined ? [] : [input]));
  const integer = parts.every(
    (part) => part.weight === undefined && source(lowering, part).type === 'i32',
  );
  const places = parts.map((part) => (integer ? lowering.ints(part) : lowering.floats(part)));
  const y = lowering.output(node, 0, integer ? 'i32' : 'f32');
  const axis = axisOf(node.int('axis', 0), y.shape.length);
  const strides = stridesOf(y.shape);
  let at: Dim = 0;
  for (const place of places) {
    const offset = multiplyDims(at, strides[axis] ?? 1);
    move(
      lowering,
      place.shape,
      { place, strides: stridesOf(place.shape) },
      { place: y, offset, strides },
      'part of a concat',
    );
    at = addDims(at, place.shape[axis] ?? 0);
  }
}

/** Copies (or views) a part of a value that starts at `starts`, with `steps` along each axis. */
function part(
  lowering: Lowering,
  value: Value,
  x: Place,
  shape: readonly Dim[],
  starts: readonly Dim[],
  steps: readonly number[],
): void {
  const own = stridesOf(x.shape);
  const offset = addDims(0, ...starts.map((start, axis) => multiplyDims(start, own[axis] ?? 0)));
  // one run of bytes: every axis but the first that is cut is whole
  const cut = shape.findIndex((size) => size !== 1);
  const whole = shape.every((size, axis) => axis <= cut || size === x.shape[axis]);
  if (whole && steps.every((step) => step === 1)) {
    lowering.alias(value, { ...x, address: shifted(x.address, multiplyDims(4, offset)) }, shape);
    return;
  }
  const y = lowering.fresh(value.name, shape, x.type);
  lowering.define(value, y);
  const strides = own.map((stride, axis) => multiplyDims(stride, steps[axis] ?? 1));
  move(
    lowering,
    shape,
    { place: x, offset, strides },
    { place: y, strides: stridesOf(shape) },
    'slice',
  );
}

/** Slice with constant axes and steps; starts may depend on S and P. */
export function lowerSlice(lowering: Lowering, node: Node): void {
  const x = source(lowering, node.input(0));
  const rank = x.shape.length;
  const list = (index: number, attribute: string): readonly Dim[] | undefined =>
    sizesOf(lowering, node.inputs[index]) ?? node.ints(attribute);
  const starts = list(1, 'starts') ?? [];
  const axes = (list(3, 'axes') ?? starts.map((_, axis) => axis)).map((axis) =>
    axisOf(lowering.fixed(axis, 'an axis'), rank),
  );
  const steps = x.shape.map(() => 1);
  const from: Dim[] = x.shape.map(() => 0);
  const given = list(4, 'steps');
  axes.forEach((axis, index) => {
    const step = lowering.fixed(given?.[index] ?? 1, 'a step');
    const start = starts[index] ?? 0;
    const size = x.shape[axis] ?? 1;
    steps[axis] = step;
    from[axis] = clampStart(lowering, start, size, step);
  });
  part(lowering, node.output(), x, lowering.shapeOf(node.output()), from, steps);
}

function clampStart(lowering: Lowering, start: Dim, size: Dim, step: number): Dim {
  if (typeof start !== 'number') return start;
  if (start < 0) {
    const from = addDims(size, start);
    return typeof from === 'number' ? Math.max(0, from) : from;
  }
  if (start === 0 && step > 0) return 0;
  if (typeof size === 'number') return Math.min(start, step > 0 ? size : size - 1);
  if (step < 0) return addDims(size, -1);
  return lowering.size(start, 'a start');
}

/** Split. */
export function lowerSplit(lowering: Lowering, node: Node): void {
  const x = source(lowering, node.input(0));
  const axis = axisOf(node.int('axis', 0), x.shape.length);
  let at: Dim = 0;
  for (const output of node.outputs) {
    if (output === undefined) throw new Unsupported('a Split with absent outputs');
    const shape = lowering.shapeOf(output);
    const starts = shape.map((_, index) => (index === axis ? at : 0));
    part(
      lowering,
      output,
      x,
      shape,
      starts,
      shape.map(() => 1),
    );
    at = addDims(at, shape[axis] ?? 0);
  }
}

/** Gather along one axis: a slice for one known index, a copy of rows otherwise. */
export function lowerGather(lowering: Lowering, node: Node): void {
  const [data, indices] = [node.input(0), node.input(1)];
  const x = source(lowering, data);
  const axis = axisOf(node.int('axis', 0), x.shape.length);
  const single = sizesOf(lowering, indices);
  const size = x.shape[axis] ?? 1;
  if (single?.length === 1 && single[0] !== undefined) {
    const index = single[0];
    const at = typeof index === 'number' && index < 0 ? addDims(size, index) : index;
    const shape = x.shape.map((dim, at2) => (at2 === axis ? 1 : dim));
    const starts = shape.map((_, at2) => (at2 === axis ? at : 0));
    part(
      lowering,
      node.output(),
      x,
      shape,
      starts,
      shape.map(() => 1),
    );
    const made = lowering.placeOf(node.output());
    lowering.define(node.output(), { ...made, shape: lowering.shapeOf(node.output()) });
    return;
  }
  const ids = lowering.ints(indices);
  const y = lowering.output(node, 0, x.type);
  lowering.emit('GATHER', {
    X: x.address,
    IDS: ids.address,
    IDTYPE: abi.TYPE_I32,
    Y: y.address,
    OUTER: multiplyDims(...x.shape.slice(0, axis)),
    LENGTH: size,
    INNER: multiplyDims(4, ...x.shape.slice(axis + 1)),
    COUNT: multiplyDims(...ids.shape),
  });
}

/** Pad with a constant. */
export function lowerPadConstant(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const pads = sizesOf(lowering, node.inputs[1]) ?? node.ints('pads') ?? [];
  const axes = (sizesOf(lowering, node.inputs[3]) ?? x.shape.map((_, axis) => axis)).map((axis) =>
    axisOf(lowering.fixed(axis, 'an axis'), x.shape.length),
  );
  const before = x.shape.map(() => 0);
  const cut: [axis: number, before: number, after: number][] = [];
  axes.forEach((axis, index) => {
    const amount = lowering.fixed(pads[index] ?? 0, 'a padding');
    const after = lowering.fixed(pads[index + axes.length] ?? 0, 'a padding');
    before[axis] = amount;
    if (amount < 0 || after < 0) cut.push([axis, Math.max(0, -amount), Math.max(0, -after)]);
  });
  const value = node.inputs[2]?.constant();
  const fill = value === undefined ? node.float('value', 0) : Number(value.data[0] ?? 0);
  const y = lowering.output(node);
  lowering.emit('FILL', {
    Y: y.address,
    COUNT: multiplyDims(...y.shape),
    ELEMENT: 4,
    VALUE: f32(fill),
    HIGH: 0,
  });
  const strides = stridesOf(y.shape);
  const offset = addDims(
    0,
    ...before.map((amount, axis) => multiplyDims(Math.max(0, amount), strides[axis] ?? 0)),
  );
  // paddings below zero cut: less is copied, from further inside
  const own = stridesOf(x.shape);
  const shape = [...x.shape];
  let from: Dim = 0;
  for (const [axis, first, last] of cut) {
    shape[axis] = addDims(shape[axis] ?? 0, -first - last);
    from = addDims(from, multiplyDims(first, own[axis] ?? 0));
  }
  move(
    lowering,
    shape,
    { place: x, offset: from, strides: own },
    { place: y, offset, strides },
    'inside of a pad',
  );
}

/** Tile: every axis is a loop over copies and one over the original. */
export function lowerTile(lowering: Lowering, node: Node): void {
  const x = source(lowering, node.input(0));
  const y = lowering.output(node, 0, x.type);
  const [own, strides] = [stridesOf(x.shape), stridesOf(y.shape)];
  const shape = x.shape.flatMap((size, axis) => [divideDims(y.shape[axis] ?? 1, size), size]);
  move(
    lowering,
    shape,
    { place: x, strides: own.flatMap((stride) => [0, stride]) },
    {
      place: y,
      strides: strides.flatMap((stride, axis) => [
        multiplyDims(stride, x.shape[axis] ?? 1),
        stride,
      ]),
    },
    'tile',
  );
}

/** Numbers a small input holds, as sizes over S and P. */
export function sizesOf(lowering: Lowering, value: Value | undefined): readonly Dim[] | undefined {
  if (value === undefined) return undefined;
  const constant = value.constant();
  if (constant !== undefined)
    return Array.from(constant.data as ArrayLike<number | bigint>, Number);
  return value.elements?.map((dim) => lowering.dim(dim));
}

/** An axis counted from the front. */
export function axisOf(axis: number, rank: number): number {
  return axis < 0 ? axis + rank : axis;
}
