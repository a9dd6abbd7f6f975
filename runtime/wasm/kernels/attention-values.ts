/**
 * The second half of ATTENTION for a single query of three or four heads that share keys and values, or three rows of any
 * queries: here memory decides, not arithmetic, so values are read in order.
 */
import { RESULT, elements } from './attention.ts';
import { HALF_MASK, constant } from './core.ts';

/**
 * results[row] = results[row] * keep[row] + sum over keys of p[t][row] * value t. Two values
 * at a time run through all dimensions; the order of the sums is that of attention.ts.
 */
@inline
export function addValuesInOrder(
  half: bool,
  rows: i32,
  scratch: usize,
  values: usize,
  stride: i32,
  size: i32,
  count: i32,
  keep: v128,
): void {
  const k0 = f32x4.splat(f32x4.extract_lane(keep, 0));
  const k1 = f32x4.splat(f32x4.extract_lane(keep, 1));
  const k2 = f32x4.splat(f32x4.extract_lane(keep, 2));
  const k3 = f32x4.splat(f32x4.extract_lane(keep, 3));
  const end = scratch + RESULT + (size << 2);
  for (let at = scratch + RESULT; at < end; at += 16) {
    v128.store(at, f32x4.mul(v128.load(at, 0), k0), 0);
    v128.store(at, f32x4.mul(v128.load(at, 1024), k1), 1024);
    v128.store(at, f32x4.mul(v128.load(at, 2048), k2), 2048);
    if (rows == 4) v128.store(at, f32x4.mul(v128.load(at, 3072), k3), 3072);
  }
  let p = scratch;
  for (let t = 2; t <= count; t += 2) {
    addSome(half, rows, 2, p, scratch + RESULT, end, values, stride);
    p += 32;
    values += stride * 2;
  }
  if (count & 1) addSome(half, rows, 1, p, scratch + RESULT, end, values, stride);
}

/** What one or two values (`keys`) add to results `at`..`end`-1 of all rows. */
@inline
function addSome(
  half: bool,
  rows: i32,
  keys: i32,
  p: usize,
  at: usize,
  end: usize,
  values: usize,
  stride: i32,
): void {
  const mask = constant(HALF_MASK);
  const p0 = v128.load32_splat(p, 0);
  const p1 = v128.load32_splat(p, 4);
  const p2 = v128.load32_splat(p, 8);
  const p3 = rows == 4 ? v128.load32_splat(p, 12) : p2;
  const q0 = keys == 2 ? v128.load32_splat(p, 16) : p0;
  const q1 = keys == 2 ? v128.load32_splat(p, 20) : p1;
  const q2 = keys == 2 ? v128.load32_splat(p, 24) : p2;
  const q3 = keys == 2 && rows == 4 ? v128.load32_splat(p, 28) : p3;
  let next = values + stride;
  while (at < end) {
    const v = elements(half, values, 0, mask);
    let a = f32x4.add(v128.load(at, 0), f32x4.mul(p0, v));
    let b = f32x4.add(v128.load(at, 1024), f32x4.mul(p1, v));
    let c = f32x4.add(v128.load(at, 2048), f32x4.mul(p2, v));
    let d = rows == 4 ? f32x4.add(v128.load(at, 3072), f32x4.mul(p3, v)) : c;
    if (keys == 2) {
      const u = elements(half, next, 0, mask);
      a = f32x4.add(a, f32x4.mul(q0, u));
      b = f32x4.add(b, f32x4.mul(q1, u));
      c = f32x4.add(c, f32x4.mul(q2, u));
      if (rows == 4) d = f32x4.add(d, f32x4.mul(q3, u));
    }
    v128.store(at, a, 0);
    v128.store(at, b, 1024);
    v128.store(at, c, 2048);
    if (rows == 4) v128.store(at, d, 3072);
    at += 16;
    values += half ? 8 : 16;
    next += half ? 8 : 16;
  }
}
