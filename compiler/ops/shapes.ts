/**
 * Shapes for op definitions: strides, broadcasting of symbolic and of known shapes, and walks over
 * the elements of known ones.
 */
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import { opError } from './support.ts';
import type { OpPlace } from './support.ts';

/** Row-major strides, in elements. */
export function stridesOf(shape: readonly number[]): number[] {
  const strides = Array.from({ length: shape.length }, () => 1);
  for (let axis = shape.length - 2; axis >= 0; axis--)
    strides[axis] = (strides[axis + 1] ?? 1) * (shape[axis + 1] ?? 1);
  return strides;
}

/**
 * The shape that inputs broadcast to (NumPy rules), or undefined when a rank is unknown.
 * Two different symbols give an anonymous size: either could be 1.
 *
 * @throws FettleError MODEL_INVALID when known sizes cannot broadcast
 */
export function broadcastDims(
  context: OpPlace & { fresh(): Dim },
  shapes: readonly (Shape | undefined)[],
): Shape | undefined {
  const known: Shape[] = [];
  for (const shape of shapes) {
    if (shape === undefined) return undefined;
    known.push(shape);
  }
  const rank = Math.max(0, ...known.map((shape) => shape.length));
  return Array.from({ length: rank }, (_, axis) => {
    const dims = new Set<Dim>();
    for (const shape of known) dims.add(shape[axis - rank + shape.length] ?? 1);
    dims.delete(1);
    const numbers = [...dims].filter((dim) => typeof dim === 'number');
    if (numbers.length > 1)
      throw opError(
        context,
        `cannot broadcast ${known.map((s) => `[${s.join(', ')}]`).join(' with ')}`,
      );
    const [number] = numbers;
    if (number !== undefined) return number;
    const [first = 1] = dims;
    return dims.size > 1 ? (widest([...dims]) ?? context.fresh()) : first;
  });
}

/**
 * The one size that the others can only equal or be 1 to: of `s` and `min(s, k)` that is `s`. It is
 * what a table of `k` positions cut to `s` rows broadcasts with.
 */
function widest(dims: readonly Dim[]): Dim | undefined {
  return dims.find((dim) =>
    dims.every((other) => {
      const inside = /^min\((.*)\)$/.exec(String(other))?.[1];
      return other === dim || inside?.startsWith(`${dim}, `) || inside?.endsWith(`, ${dim}`);
    }),
  );
}

/**
 * The shape that known shapes broadcast to.
 *
 * @throws FettleError MODEL_INVALID when they cannot broadcast
 */
export function broadcastShapes(
  context: OpPlace,
  shapes: readonly (readonly number[])[],
): readonly number[] {
  const fresh = (): Dim => 1; // never asked for: every size is known
  return (broadcastDims({ node: context.node, fresh }, shapes) ?? []) as readonly number[];
}

/**
 * For each element of `to`, which element of `from` it reads; undefined when that is the same one.
 * `from` must broadcast to `to`.
 */
export function broadcastIndices(
  from: readonly number[],
  to: readonly number[],
): Int32Array | undefined {
  if (elementCount(from) === elementCount(to)) return undefined;
  const strides = stridesOf(from);
  const offset = to.length - from.length;
  return stridedIndices(
    to,
    to.map((_, axis) => ((from[axis - offset] ?? 1) === 1 ? 0 : (strides[axis - offset] ?? 0))),
  );
}

/** `start + Σ coordinate[axis] · strides[axis]` for each element of `shape`, row-major. */
export function stridedIndices(
  shape: readonly number[],
  strides: readonly number[],
  start = 0,
): Int32Array {
  const indices = new Int32Array(elementCount(shape));
  if (indices.length === 0) return indices;
  indices[0] = start;
  // grows the filled part axis by axis, from the last: each copy is one step further along the axis
  let filled = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const size = shape[axis] ?? 1;
    const stride = strides[axis] ?? 0;
    for (let step = 1; step < size; step++)
      for (let i = 0; i < filled; i++)
        indices[step * filled + i] = (indices[i] ?? 0) + step * stride;
    filled *= size;
  }
  return indices;
}

/**
 * Takes, along each axis, the listed positions: what Slice, Tile, Pad, Split and Compress do.
 *
 * @param shape - of the source
 * @param positions - by axis; undefined takes all, -1 takes nothing (a fill)
 * @returns the new shape, and for each of its elements the source element or -1
 */
export function takePositions(
  shape: readonly number[],
  positions: readonly (ArrayLike<number> | undefined)[],
): { readonly shape: readonly number[]; readonly indices: Int32Array } {
  const taken = shape.map((size, axis) => positions[axis]?.length ?? size);
  const strides = stridesOf(shape);
  const indices = new Int32Array(elementCount(taken));
  let filled = Math.min(1, indices.length);
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const list = positions[axis];
    const size = taken[axis] ?? 0;
    const stride = strides[axis] ?? 0;
    // the last block first: block 0 is the one that the others are made from
    for (let step = size - 1; step >= 0; step--) {
      const position = list === undefined ? step : (list[step] ?? -1);
      for (let i = 0; i < filled; i++) {
        const inner = indices[i] ?? -1;
        indices[step * filled + i] = position < 0 || inner < 0 ? -1 : inner + position * stride;
      }
    }
    filled *= size;
  }
  return { shape: taken, indices };
}

/** Sizes before, at and after an axis: `[outer, size, inner]`. */
export function splitAtAxis(
  shape: readonly number[],
  axis: number,
): readonly [outer: number, size: number, inner: number] {
  return [
    elementCount(shape.slice(0, axis)),
    shape[axis] ?? 1,
    elementCount(shape.slice(axis + 1)),
  ];
}

/** The shape with one size replaced. */
export function withSize<D extends Dim>(shape: readonly D[], axis: number, size: D): readonly D[] {
  return shape.map((dim, i) => (i === axis ? size : dim));
}
