/**
 * What this machine can do at most, for reading benchmarks as fractions of it: read bandwidth, integer
 * multiply-accumulates, f32 multiply-adds. Each export does a known amount of work; the caller times it.
 */
import { RELAXED, fused } from './core.ts';

/** Reads `count` bytes (a multiple of 128) from `at`. */
export function read(at: usize, count: i32): i32 {
  let a = i32x4.splat(0), b = a, c = a, d = a;
  const end = at + count;
  while (at < end) {
    a = v128.xor(a, v128.xor(v128.load(at, 0), v128.load(at, 64)));
    b = v128.xor(b, v128.xor(v128.load(at, 16), v128.load(at, 80)));
    c = v128.xor(c, v128.xor(v128.load(at, 32), v128.load(at, 96)));
    d = v128.xor(d, v128.xor(v128.load(at, 48), v128.load(at, 112)));
    at += 128;
  }
  return i32x4.extract_lane(v128.xor(v128.xor(a, b), v128.xor(c, d)), 0);
}

/** Operands from memory: literals would be built anew at every use. Their values do not matter. */
const operands: usize = memory.data(64, 16);

@inline
function dot(sum: v128, x: v128, w: v128): v128 {
  if (RELAXED) return i32x4.relaxed_dot_i8x16_i7x16_add_s(x, w, sum);
  return i32x4.add(sum, i32x4.dot_i16x8_s(x, w));
}

@inline
function pair(sum: v128, x: v128, w: v128): v128 {
  if (RELAXED) return i16x8.add(sum, v128.relaxed_dot<i16>(x, w));
  return i32x4.add(sum, i32x4.dot_i16x8_s(x, w));
}

/** Integer dot products into i32: `count` * 8 * (relaxed 16, plain 8) multiply-accumulates. */
export function dotProducts(count: i32): i32 {
  let a = i32x4.splat(0), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
  const w0 = v128.load(operands, 0), w1 = v128.load(operands, 16);
  const w2 = v128.load(operands, 32), w3 = v128.load(operands, 48);
  // operands change every round, or a compiler computes the products once and before the loop
  let x = i8x16.splat(3), y = i8x16.splat(4);
  for (let i = 0; i < count; i++) {
    a = dot(a, x, w0);
    b = dot(b, x, w1);
    c = dot(c, x, w2);
    d = dot(d, x, w3);
    e = dot(e, y, w0);
    f = dot(f, y, w1);
    g = dot(g, y, w2);
    h = dot(h, y, w3);
    x = i8x16.add(x, w0);
    y = i8x16.add(y, w1);
  }
  a = i32x4.add(i32x4.add(a, b), i32x4.add(c, d));
  e = i32x4.add(i32x4.add(e, f), i32x4.add(g, h));
  return i32x4.extract_lane(i32x4.add(a, e), 0);
}

/** The same with i16 sums, the form of the narrow tiles (tile-narrow.ts). */
export function pairProducts(count: i32): i32 {
  let a = i32x4.splat(0), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
  const w0 = v128.load(operands, 0), w1 = v128.load(operands, 16);
  const w2 = v128.load(operands, 32), w3 = v128.load(operands, 48);
  // operands change every round, or a compiler computes the products once and before the loop
  let x = i8x16.splat(3), y = i8x16.splat(4);
  for (let i = 0; i < count; i++) {
    a = pair(a, x, w0);
    b = pair(b, x, w1);
    c = pair(c, x, w2);
    d = pair(d, x, w3);
    e = pair(e, y, w0);
    f = pair(f, y, w1);
    g = pair(g, y, w2);
    h = pair(h, y, w3);
    x = i8x16.add(x, w0);
    y = i8x16.add(y, w1);
  }
  a = i32x4.add(i32x4.add(a, b), i32x4.add(c, d));
  e = i32x4.add(i32x4.add(e, f), i32x4.add(g, h));
  return i32x4.extract_lane(i32x4.add(a, e), 0);
}

/** f32 multiply-adds: `count` * 10 * 4 of them. */
export function multiplyAdds(count: i32): f32 {
  let a = f32x4.splat(1), b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a;
  const x = v128.load(operands, 0), y = v128.load(operands, 16);
  for (let n = 0; n < count; n++) {
    a = fused(a, x, y);
    b = fused(b, x, y);
    c = fused(c, x, y);
    d = fused(d, x, y);
    e = fused(e, x, y);
    f = fused(f, x, y);
    g = fused(g, x, y);
    h = fused(h, x, y);
    i = fused(i, x, y);
    j = fused(j, x, y);
  }
  a = f32x4.add(f32x4.add(a, b), f32x4.add(c, d));
  e = f32x4.add(f32x4.add(e, f), f32x4.add(g, h));
  return f32x4.extract_lane(f32x4.add(f32x4.add(a, e), f32x4.add(i, j)), 0);
}
