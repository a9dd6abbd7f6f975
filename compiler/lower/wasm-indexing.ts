/**
 * Reading and writing where indices say, on the WASM engine: GatherElements, GatherND, ScatterElements,
 * ScatterND, TensorScatter's kin, and what is a comparison of positions: OneHot, Trilu, Hardmax.
 */
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { Dim } from '../ir/dim.ts';
import { multiplyDims } from '../ir/dim.ts';
import type { Node } from '../ir/graph.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { Unsupported } from './wasm-context.ts';
import { emitExpression } from './wasm-elementwise.ts';
import { call, input, number } from './wasm-expression.ts';
import { axisOf, move, sizesOf, stridesOf } from './wasm-movement.ts';

/** Modes of ELEMENTS and POINTS by the attribute `reduction`. */
const reductions: Readonly<Record<string, number>> = { none: 1, add: 2, mul: 3, max: 4, min: 5 };

/** GatherElements. */
export function lowerGatherElements(lowering: Lowering, node: Node): void {
  const x = lowering.placeOf(node.input(0));
  const y = lowering.output(node, 0, x.type);
  emitElements(lowering, node, x, 0, y);
}

/** ScatterElements and the older Scatter. */
export function lowerScatterElements(lowering: Lowering, node: Node): void {
  const { mode, y, type } = scattered(lowering, node);
  const updates = node.input(2);
  const values = type === 'i32' ? lowering.ints(updates) : lowering.floats(updates);
  emitElements(lowering, node, y, mode, values);
}

/** GatherND. */
export function lowerGatherND(lowering: Lowering, node: Node): void {
  const x = lowering.placeOf(node.input(0));
  const y = lowering.output(node, 0, x.type);
  emitPoints(lowering, node, x, 0, y, node.int('batch_dims', 0));
}

/** ScatterND. */
export function lowerScatterND(lowering: Lowering, node: Node): void {
  const { mode, y, type } = scattered(lowering, node);
  const updates = node.input(2);
  const values = type === 'i32' ? lowering.ints(updates) : lowering.floats(updates);
  emitPoints(lowering, node, y, mode, values, 0);
}

/** A copy of the data that a scatter writes into. */
function scattered(
  lowering: Lowering,
  node: Node,
): { readonly mode: number; readonly y: Place; readonly type: Place['type'] } {
  const reduction = node.string('reduction', 'none');
  const mode = reductions[reduction];
  if (mode === undefined) throw new Unsupported(`${node.op} with reduction ${reduction}`);
  // reductions are of floats
  const stored = lowering.placeOf(node.input(0));
  const x = mode === 1 ? stored : lowering.floats(node.input(0));
  const y = lowering.output(node, 0, x.type);
  const count = multiplyDims(...x.shape);
  const side = (place: Place): { place: Place; strides: readonly Dim[] } => ({
    place,
    strides: [1],
  });
  move(lowering, [count], side(x), side(y), 'what is scattered into');
  return { mode, y, type: x.type };
}

function emitElements(
  lowering: Lowering,
  node: Node,
  data: Place,
  mode: number,
  values: Place,
): void {
  const ids = lowering.ints(node.input(1));
  const axis = axisOf(node.int('axis', 0), data.shape.length);
  const own = stridesOf(data.shape);
  const lead = 6 - ids.shape.length;
  if (lead < 0) throw new Unsupported(`${node.op} over ${ids.shape.length} axes`);
  const at = (index: number): Dim => (index < lead ? 1 : (ids.shape[index - lead] ?? 1));
  const stride = (index: number): Dim =>
    index < lead || index - lead === axis ? 0 : (own[index - lead] ?? 0);
  lowering.emit('ELEMENTS', {
    MODE: mode,
    DATA: data.address,
    IDS: ids.address,
    VALUES: values.address,
    SIZE: data.shape[axis] ?? 1,
    AXISSTRIDE: own[axis] ?? 1,
    D0: at(0),
    D1: at(1),
    D2: at(2),
    D3: at(3),
    D4: at(4),
    D5: at(5),
    STRIDE0: stride(0),
    STRIDE1: stride(1),
    STRIDE2: stride(2),
    STRIDE3: stride(3),
    STRIDE4: stride(4),
    STRIDE5: stride(5),
  });
}

function emitPoints(
  lowering: Lowering,
  node: Node,
  data: Place,
  mode: number,
  values: Place,
  batches: number,
): void {
  const ids = lowering.ints(node.input(1));
  const depth = lowering.fixed(ids.shape.at(-1), 'the number of indices of a point');
  const own = stridesOf(data.shape);
  const table = Int32Array.from({ length: 2 * depth }, (_, i) => {
    const axis = batches + (i >> 1);
    return lowering.fixed((i & 1) === 0 ? data.shape[axis] : own[axis], 'the size of an axis');
  });
  lowering.emit('POINTS', {
    MODE: mode,
    DATA: data.address,
    IDS: ids.address,
    VALUES: values.address,
    BATCH: multiplyDims(...data.shape.slice(0, batches)),
    BATCHSTRIDE: multiplyDims(...data.shape.slice(batches)),
    COUNT: multiplyDims(...ids.shape.slice(batches, -1)),
    DEPTH: depth,
    INNER: multiplyDims(...data.shape.slice(batches + depth)),
    TABLE: lowering.code(table),
  });
}

/** CumSum along one axis. */
export function lowerCumSum(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const [given] = sizesOf(lowering, node.inputs[1]) ?? [];
  const axis = axisOf(lowering.fixed(given, 'the axis of a CumSum'), x.shape.length);
  const y = lowering.output(node);
  lowering.emit('CUMULATE', {
    X: x.address,
    Y: y.address,
    OUTER: multiplyDims(...x.shape.slice(0, axis)),
    LENGTH: x.shape[axis] ?? 1,
    INNER: multiplyDims(...x.shape.slice(axis + 1)),
    EXCLUSIVE: node.int('exclusive', 0),
    REVERSE: node.int('reverse', 0),
  });
}

/** OneHot: a comparison with every position. */
export function lowerOneHot(lowering: Lowering, node: Node): void {
  const ids = lowering.floats(node.input(0));
  const y = lowering.output(node);
  const axis = axisOf(node.int('axis', -1), y.shape.length);
  const depth = lowering.fixed(y.shape[axis], 'the depth of a OneHot');
  const levels = node.inputs[2]?.constant();
  if (levels === undefined) throw new Unsupported('a OneHot whose values are computed');
  const [off, on] = [Number(levels.data[0]), Number(levels.data[1])];
  const shape = [...ids.shape.slice(0, axis), 1, ...ids.shape.slice(axis)];
  const places = [{ ...ids, shape }, lowering.numbers(depth, y.shape.length, axis)];
  // negative indices count from the end
  const from = call('add', input(0), call('mul', call('less', input(0), number(0)), number(depth)));
  const formula = call('where', call('equal', from, input(1)), number(on), number(off));
  emitExpression(lowering, formula, places, y, 'positions compared');
}

/** Trilu: zeros on one side of a diagonal. */
export function lowerTrilu(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const [k = 0] = sizesOf(lowering, node.inputs[1]) ?? [];
  const diagonal = lowering.fixed(k, 'the diagonal of a Trilu');
  const rank = x.shape.length;
  const [rows, columns] = [rank - 2, rank - 1].map((axis) =>
    lowering.numbers(lowering.fixed(x.shape[axis], 'the size of a matrix'), rank, axis),
  );
  if (rows === undefined || columns === undefined) throw new Unsupported('a Trilu of a vector');
  const distance = call('sub', input(2), input(1));
  const upper = node.int('upper', 1) === 1;
  const kept = upper
    ? call('lessequal', number(diagonal), distance)
    : call('lessequal', distance, number(diagonal));
  const formula = call('where', kept, input(0), number(0));
  emitExpression(
    lowering,
    formula,
    [x, rows, columns],
    lowering.output(node),
    'positions compared',
  );
}

/** Hardmax: 1 at the first largest element of an axis. */
export function lowerHardmax(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const old = lowering.model.opset < 13;
  const axis = axisOf(node.int('axis', old ? 1 : -1), x.shape.length);
  const shape = old
    ? [multiplyDims(...x.shape.slice(0, axis)), multiplyDims(...x.shape.slice(axis)), 1]
    : [
        multiplyDims(...x.shape.slice(0, axis)),
        x.shape[axis] ?? 1,
        multiplyDims(...x.shape.slice(axis + 1)),
      ];
  const [outer = 1, length = 1, inner = 1] = shape;
  const largest = lowering.fresh(`${node.name} largest`, [outer, 1, inner], 'i32');
  lowering.emit('ARGMAX', {
    X: x.address,
    Y: largest.address,
    YTYPE: abi.TYPE_I32,
    OUTER: outer,
    LENGTH: length,
    INNER: inner,
    SMALLEST: 0,
    LAST: 0,
  });
  const positions = lowering.fresh(`${node.name} positions`, largest.shape);
  lowering.emit('CONVERT', {
    X: largest.address,
    Y: positions.address,
    COUNT: multiplyDims(...largest.shape),
    FROM: abi.TYPE_I32,
    TO: abi.TYPE_F32,
  });
  const count = lowering.fixed(length, 'the size of an axis');
  const places: Place[] = [positions, lowering.numbers(count, 3, 1)];
  const y = { ...lowering.output(node), shape };
  emitExpression(lowering, call('equal', input(0), input(1)), places, y, 'positions compared');
}
