/**
 * Ops that order or search elements: TopK, Unique, NonZero.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { OpDefinition } from './definition.ts';
import {
  gatherElements,
  int64s,
  isWide,
  readBigInts,
  readNumbers,
  readScalar,
  readStrings,
} from './numbers.ts';
import { splitAtAxis, stridesOf, takePositions, withSize } from './shapes.ts';
import { normalizeAxis, onnxOp, opError } from './support.ts';

/** Elements in a form that `<` orders. */
function comparable(x: Tensor): ArrayLike<number | bigint | string> {
  if (x.dtype === 'string') return readStrings(x);
  return isWide(x.dtype) ? readBigInts(x) : readNumbers(x);
}

const topKOp = onnxOp('TopK', [1, 2], [2, 2], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    const k = context.node.int('k') ?? context.elements(1)?.[0] ?? context.fresh();
    const axis = shape && normalizeAxis(context, context.node.int('axis', -1), shape.length);
    const result = shape && withSize(shape, axis ?? 0, k);
    return [
      { dtype, shape: result },
      { dtype: 'i64', shape: result },
    ];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const k = context.node.int('k') ?? readScalar(context.input(1));
    const axis = normalizeAxis(context, context.node.int('axis', -1), x.shape.length);
    const sign = context.node.int('largest', 1) !== 0 ? -1 : 1;
    const [outer, size, inner] = splitAtAxis(x.shape, axis);
    if (k > size)
      throw opError(context, `k = ${k} is more than the ${size} elements of axis ${axis}`);
    const values = comparable(x);
    const shape = withSize(x.shape, axis, k);
    const sources = new Int32Array(elementCount(shape));
    const places = new BigInt64Array(sources.length);
    for (let line = 0; line < outer * inner; line++) {
      const block = Math.floor(line / inner);
      const offset = line % inner;
      const at = (i: number): number => (block * size + i) * inner + offset;
      const order = Array.from({ length: size }, (_, i) => i).sort(
        (i, j) => sign * compare(values[at(i)], values[at(j)]) || i - j,
      );
      for (let i = 0; i < k; i++) {
        const to = (block * k + i) * inner + offset;
        sources[to] = at(order[i] ?? 0);
        places[to] = BigInt(order[i] ?? 0);
      }
    }
    return [gatherElements(x, shape, sources), { dtype: 'i64', shape, data: places }];
  },
});

/** NaN counts as the largest. */
function compare(a: number | bigint | string = 0, b: number | bigint | string = 0): number {
  if (a < b) return -1;
  if (a > b) return 1;
  return Number(Number.isNaN(a)) - Number(Number.isNaN(b));
}

const uniqueOp = onnxOp('Unique', [1, 1], [1, 4], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    const axis = context.node.int('axis');
    const count = context.fresh();
    const list = { dtype: 'i64' as const, shape: [count] };
    const inverse = { dtype: 'i64' as const, shape: [context.fresh()] };
    if (axis === undefined) return [{ dtype, shape: [count] }, list, inverse, list];
    const result = shape && withSize(shape, normalizeAxis(context, axis, shape.length), count);
    return [{ dtype, shape: result }, list, inverse, list];
  },
  evaluate: (context) => {
    const given = context.input(0);
    const listed = context.node.int('axis');
    const x = listed === undefined ? { ...given, shape: [elementCount(given.shape)] } : given;
    const axis = normalizeAxis(context, listed ?? 0, x.shape.length);
    const groups = groupEqual(x, axis);
    const sorted = context.node.int('sorted', 1) !== 0;
    const order = [...groups.keys()];
    if (sorted) order.sort((a, b) => compareLists(groups[a]?.values, groups[b]?.values));
    const inverse = Array.from({ length: x.shape[axis] ?? 0 }, () => 0);
    order.forEach((group, rank) => {
      for (const member of groups[group]?.members ?? []) inverse[member] = rank;
    });
    const firsts = order.map((group) => groups[group]?.members[0] ?? 0);
    const positions: number[][] = [];
    positions[axis] = firsts;
    const { shape, indices } = takePositions(x.shape, positions);
    const counts = order.map((group) => groups[group]?.members.length ?? 0);
    return [gatherElements(x, shape, indices), int64s(firsts), int64s(inverse), int64s(counts)];
  },
});

interface EqualGroup {
  readonly values: readonly (number | bigint | string)[];
  readonly members: number[];
}

/** Equal slices along an axis, in order of appearance. */
function groupEqual(x: Tensor, axis: number): readonly EqualGroup[] {
  const [outer, size, inner] = splitAtAxis(x.shape, axis);
  const elements = comparable(x);
  const groups = new Map<string, EqualGroup>();
  for (let position = 0; position < size; position++) {
    const values: (number | bigint | string)[] = [];
    for (let block = 0; block < outer; block++)
      for (let i = 0; i < inner; i++)
        values.push(elements[(block * size + position) * inner + i] ?? 0);
    const key = JSON.stringify(values.map(String));
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { values, members: [position] });
    else group.members.push(position);
  }
  return [...groups.values()];
}

function compareLists(
  a: EqualGroup['values'] | undefined = [],
  b: EqualGroup['values'] | undefined = [],
): number {
  for (const [i, value] of a.entries()) {
    const order = compare(value, b[i]);
    if (order !== 0) return order;
  }
  return 0;
}

const nonZeroOp = onnxOp('NonZero', [1, 1], [1, 1], {
  infer: (context) => {
    const { shape } = context.input(0);
    return [{ dtype: 'i64', shape: [shape?.length ?? context.fresh(), context.fresh()] }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const values = comparable(x);
    const found: number[] = [];
    for (let i = 0; i < elementCount(x.shape); i++) if (Number(values[i]) !== 0) found.push(i);
    const strides = stridesOf(x.shape);
    const rank = x.shape.length;
    const coordinates = BigInt64Array.from({ length: rank * found.length }, (_, i) => {
      const axis = Math.floor(i / found.length);
      const index = found[i % found.length] ?? 0;
      return BigInt(Math.floor(index / (strides[axis] ?? 1)) % (x.shape[axis] ?? 1));
    });
    return [{ dtype: 'i64', shape: [rank, found.length], data: coordinates }];
  },
});

/** Ops that order or search elements. */
export const sortOps: readonly OpDefinition[] = [topKOp, uniqueOp, nonZeroOp];
