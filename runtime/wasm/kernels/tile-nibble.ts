/**
 * Inner tiles of LINEAR for 4-bit codes on relaxed SIMD: W4, and C4 whose codes are places in a codebook.
 *
 * As tile-narrow.ts, with everything of 16 inputs written out: these tiles are what a language model spends
 * its time in. 16 bytes of weights are 4 rows of 8 inputs, of which the low nibbles hold the first 4.
 * Codebook entries have 7 bits, so two products fill an i16 lane and are widened at once.
 */
import { C4 } from './abi.ts';
import { HALF_FACTOR, NIBBLES, ONES16, constant, lookup } from './core.ts';
import {
  fence,
  fence4,
  SCALE_BYTES,
  scaled,
  smallScales,
  start16,
  start32,
  startMiddle,
  zeroPairs,
} from './tile-common.ts';

@inline
function mac(format: i32, sum: v128, x: v128, w: v128, ones: v128): v128 {
  const pairs = v128.relaxed_dot<i16>(x, w);
  if (format == C4) return i32x4.add(sum, i32x4.dot_i16x8_s(pairs, ones));
  return i16x8.add(sum, pairs);
}

/** i16 sums of a block as i32; C4 has them already. */
@inline
function widen(format: i32, sum: v128, ones: v128): v128 {
  return format == C4 ? sum : i32x4.dot_i16x8_s(sum, ones);
}

/** The first 4 inputs of 8. */
@inline
function low(format: i32, p: v128, mask: v128, book: v128): v128 {
  const codes = v128.and(p, mask);
  return format == C4 ? lookup(book, codes) : codes;
}

/** The other 4. */
@inline
function high(format: i32, p: v128, mask: v128, book: v128): v128 {
  return low(format, i16x8.shr_u(p, 4), mask, book);
}

@inline
function start(format: i32, zeros: v128, pair: v128): v128 {
  return format == C4 ? start32(zeros, pair) : start16(zeros, pair);
}

/** 8 inputs of four rows. */
@inline
function both(
  format: i32,
  sum: v128,
  p: v128,
  x0: v128,
  x1: v128,
  mask: v128,
  book: v128,
  ones: v128,
): v128 {
  return mac(format, mac(format, sum, x0, low(format, p, mask, book), ones), x1, high(format, p, mask, book), ones);
}

/** 1 token x `count` tiles of 16 rows. */
@inline
export function tile1Nibble(
  format: i32,
  w: usize,
  head: i32,
  codebook: usize,
  record: usize,
  out: usize,
  count: i32,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
): void {
  const ones = constant(ONES16);
  const mask = constant(NIBBLES);
  const halfFactor = constant(HALF_FACTOR);
  for (let tile = 0; tile < count; tile++) {
    const book = format == C4 ? v128.load(codebook) : mask;
    let x = record;
    let f0 = f32x4.splat(0), f1 = f0, f2 = f0, f3 = f0;
    let left = 0;
    let scales = w;
    for (let b = 0; b < blocks; b++) {
      if (left == 0) {
        left = groupBlocks;
        scales = w;
        w += head;
      }
      left--;
      const tail = x + block;
      const pair = v128.load32_splat(tail, 4);
      let c0: v128, c1: v128, c2: v128, c3: v128;
      if (head == SCALE_BYTES) {
        c0 = startMiddle(format, format == C4, pair);
        c1 = c0;
        c2 = c0;
        c3 = c0;
      } else {
        c0 = start(format, zeroPairs(scales + 32), pair);
        c1 = start(format, zeroPairs(scales + 36), pair);
        c2 = start(format, zeroPairs(scales + 40), pair);
        c3 = start(format, zeroPairs(scales + 44), pair);
      }
      let x0 = v128.load32_splat(x, 0);
      let x1 = v128.load32_splat(x, 4);
      c0 = both(format, c0, v128.load(w, 0), x0, x1, mask, book, ones);
      c1 = both(format, c1, v128.load(w, 16), x0, x1, mask, book, ones);
      c2 = both(format, c2, v128.load(w, 32), x0, x1, mask, book, ones);
      c3 = both(format, c3, v128.load(w, 48), x0, x1, mask, book, ones);
      fence4(w, 1, c0, c1, c2, c3);
      x0 = v128.load32_splat(x, 8);
      x1 = v128.load32_splat(x, 12);
      c0 = both(format, c0, v128.load(w, 64), x0, x1, mask, book, ones);
      c1 = both(format, c1, v128.load(w, 80), x0, x1, mask, book, ones);
      c2 = both(format, c2, v128.load(w, 96), x0, x1, mask, book, ones);
      c3 = both(format, c3, v128.load(w, 112), x0, x1, mask, book, ones);
      if (block == 32) {
        x0 = v128.load32_splat(x, 16);
        x1 = v128.load32_splat(x, 20);
        c0 = both(format, c0, v128.load(w, 128), x0, x1, mask, book, ones);
        c1 = both(format, c1, v128.load(w, 144), x0, x1, mask, book, ones);
        c2 = both(format, c2, v128.load(w, 160), x0, x1, mask, book, ones);
        c3 = both(format, c3, v128.load(w, 176), x0, x1, mask, book, ones);
        fence4(w, 2, c0, c1, c2, c3);
        x0 = v128.load32_splat(x, 24);
        x1 = v128.load32_splat(x, 28);
        c0 = both(format, c0, v128.load(w, 192), x0, x1, mask, book, ones);
        c1 = both(format, c1, v128.load(w, 208), x0, x1, mask, book, ones);
        c2 = both(format, c2, v128.load(w, 224), x0, x1, mask, book, ones);
        c3 = both(format, c3, v128.load(w, 240), x0, x1, mask, book, ones);
      }
      const s = f32x4.mul(v128.load32_splat(tail), halfFactor);
      f0 = scaled(f0, widen(format, c0, ones), smallScales(v128.load16x4_u(scales, 0)), s);
      f1 = scaled(f1, widen(format, c1, ones), smallScales(v128.load16x4_u(scales, 8)), s);
      f2 = scaled(f2, widen(format, c2, ones), smallScales(v128.load16x4_u(scales, 16)), s);
      f3 = scaled(f3, widen(format, c3, ones), smallScales(v128.load16x4_u(scales, 24)), s);
      w += block << 3;
      x = tail + 8;
    }
    if (format == C4) codebook += 16;
    v128.store(out, f0, 0);
    v128.store(out, f1, 16);
    v128.store(out, f2, 32);
    v128.store(out, f3, 48);
    out += 64;
  }
}

/**
 * One register tile: 4 tokens x 8 rows; `w`, `scales`, `zeros`, `out` already point at its half. Symmetric
 * weights pass constant `zeros` with `zeroStep` 0.
 */
@inline
export function half4Nibble(
  format: i32,
  w: usize,
  head: usize,
  scales: usize,
  groupBytes: usize,
  zeros: usize,
  zeroStep: usize,
  codebook: usize,
  record: usize,
  recordBytes: usize,
  out: usize,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
): void {
  const ones = constant(ONES16);
  const mask = constant(NIBBLES);
  const book = format == C4 ? v128.load(codebook) : mask;
  let x0 = record;
  let x1 = record + recordBytes;
  let x2 = x1 + recordBytes;
  let x3 = x2 + recordBytes;
  let f00 = f32x4.splat(0), f01 = f00, f10 = f00, f11 = f00;
  let f20 = f00, f21 = f00, f30 = f00, f31 = f00;
  let left = groupBlocks;
  for (let b = 0; b < blocks; b++) {
    const z0 = zeroPairs(zeros);
    const z1 = zeroPairs(zeros + 4);
    let t = v128.load32_splat(x0 + block, 4);
    let c00 = start(format, z0, t);
    let c01 = start(format, z1, t);
    t = v128.load32_splat(x1 + block, 4);
    let c10 = start(format, z0, t);
    let c11 = start(format, z1, t);
    t = v128.load32_splat(x2 + block, 4);
    let c20 = start(format, z0, t);
    let c21 = start(format, z1, t);
    t = v128.load32_splat(x3 + block, 4);
    let c30 = start(format, z0, t);
    let c31 = start(format, z1, t);
    let p = v128.load(w, 0);
    let q = v128.load(w, 16);
    let v = low(format, p, mask, book);
    let u = low(format, q, mask, book);
    t = v128.load32_splat(x0, 0);
    c00 = mac(format, c00, t, v, ones);
    c01 = mac(format, c01, t, u, ones);
    t = v128.load32_splat(x1, 0);
    c10 = mac(format, c10, t, v, ones);
    c11 = mac(format, c11, t, u, ones);
    t = v128.load32_splat(x2, 0);
    c20 = mac(format, c20, t, v, ones);
    c21 = mac(format, c21, t, u, ones);
    t = v128.load32_splat(x3, 0);
    c30 = mac(format, c30, t, v, ones);
    c31 = mac(format, c31, t, u, ones);
    fence(w, 1, c00, c01, c10, c11, c20, c21, c30, c31);
    v = high(format, p, mask, book);
    u = high(format, q, mask, book);
    t = v128.load32_splat(x0, 4);
    c00 = mac(format, c00, t, v, ones);
    c01 = mac(format, c01, t, u, ones);
    t = v128.load32_splat(x1, 4);
    c10 = mac(format, c10, t, v, ones);
    c11 = mac(format, c11, t, u, ones);
    t = v128.load32_splat(x2, 4);
    c20 = mac(format, c20, t, v, ones);
    c21 = mac(format, c21, t, u, ones);
    t = v128.load32_splat(x3, 4);
    c30 = mac(format, c30, t, v, ones);
    c31 = mac(format, c31, t, u, ones);
    fence(w, 2, c00, c01, c10, c11, c20, c21, c30, c31);
    p = v128.load(w, 64);
    q = v128.load(w, 80);
    v = low(format, p, mask, book);
    u = low(format, q, mask, book);
    t = v128.load32_splat(x0, 8);
    c00 = mac(format, c00, t, v, ones);
    c01 = mac(format, c01, t, u, ones);
    t = v128.load32_splat(x1, 8);
    c10 = mac(format, c10, t, v, ones);
    c11 = mac(format, c11, t, u, ones);
    t = v128.load32_splat(x2, 8);
    c20 = mac(format, c20, t, v, ones);
    c21 = mac(format, c21, t, u, ones);
    t = v128.load32_splat(x3, 8);
    c30 = mac(format, c30, t, v, ones);
    c31 = mac(format, c31, t, u, ones);
    fence(w, 3, c00, c01, c10, c11, c20, c21, c30, c31);
    v = high(format, p, mask, book);
    u = high(format, q, mask, book);
    t = v128.load32_splat(x0, 12);
    c00 = mac(format, c00, t, v, ones);
    c01 = mac(format, c01, t, u, ones);
    t = v128.load32_splat(x1, 12);
    c10 = mac(format, c10, t, v, ones);
    c11 = mac(format, c11, t, u, ones);
    t = v128.load32_splat(x2, 12);
    c20 = mac(format, c20, t, v, ones);
    c21 = mac(format, c21, t, u, ones);
    t = v128.load32_splat(x3, 12);
    c30 = mac(format, c30, t, v, ones);
    c31 = mac(format, c31, t, u, ones);
    if (block == 32) {
      p = v128.load(w, 128);
      q = v128.load(w, 144);
      v = low(format, p, mask, book);
      u = low(format, q, mask, book);
      t = v128.load32_splat(x0, 16);
      c00 = mac(format, c00, t, v, ones);
      c01 = mac(format, c01, t, u, ones);
      t = v128.load32_splat(x1, 16);
      c10 = mac(format, c10, t, v, ones);
      c11 = mac(format, c11, t, u, ones);
      t = v128.load32_splat(x2, 16);
      c20 = mac(format, c20, t, v, ones);
      c21 = mac(format, c21, t, u, ones);
      t = v128.load32_splat(x3, 16);
      c30 = mac(format, c30, t, v, ones);
      c31 = mac(format, c31, t, u, ones);
      fence(w, 5, c00, c01, c10, c11, c20, c21, c30, c31);
      v = high(format, p, mask, book);
      u = high(format, q, mask, book);
      t = v128.load32_splat(x0, 20);
      c00 = mac(format, c00, t, v, ones);
      c01 = mac(format, c01, t, u, ones);
      t = v128.load32_splat(x1, 20);
      c10 = mac(format, c10, t, v, ones);
      c11 = mac(format, c11, t, u, ones);
      t = v128.load32_splat(x2, 20);
      c20 = mac(format, c20, t, v, ones);
      c21 = mac(format, c21, t, u, ones);
      t = v128.load32_splat(x3, 20);
      c30 = mac(format, c30, t, v, ones);
      c31 = mac(format, c31, t, u, ones);
      fence(w, 6, c00, c01, c10, c11, c20, c21, c30, c31);
      p = v128.load(w, 192);
      q = v128.load(w, 208);
      v = low(format, p, mask, book);
      u = low(format, q, mask, book);
      t = v128.load32_splat(x0, 24);
      c00 = mac(format, c00, t, v, ones);
      c01 = mac(format, c01, t, u, ones);
      t = v128.load32_splat(x1, 24);
      c10 = mac(format, c10, t, v, ones);
      c11 = mac(format, c11, t, u, ones);
      t = v128.load32_splat(x2, 24);
      c20 = mac(format, c20, t, v, ones);
      c21 = mac(format, c21, t, u, ones);
      t = v128.load32_splat(x3, 24);
      c30 = mac(format, c30, t, v, ones);
      c31 = mac(format, c31, t, u, ones);
      fence(w, 7, c00, c01, c10, c11, c20, c21, c30, c31);
      v = high(format, p, mask, book);
      u = high(format, q, mask, book);
      t = v128.load32_splat(x0, 28);
      c00 = mac(format, c00, t, v, ones);
      c01 = mac(format, c01, t, u, ones);
      t = v128.load32_splat(x1, 28);
      c10 = mac(format, c10, t, v, ones);
      c11 = mac(format, c11, t, u, ones);
      t = v128.load32_splat(x2, 28);
      c20 = mac(format, c20, t, v, ones);
      c21 = mac(format, c21, t, u, ones);
      t = v128.load32_splat(x3, 28);
      c30 = mac(format, c30, t, v, ones);
      c31 = mac(format, c31, t, u, ones);
    }
    w += block << 3;
    x0 += block;
    x1 += block;
    x2 += block;
    x3 += block;
    // the scales behind the codes of a block
    const halfFactor = constant(HALF_FACTOR);
    const w0 = smallScales(v128.load16x4_u(scales, 0));
    const w1 = smallScales(v128.load16x4_u(scales, 8));
    t = f32x4.mul(v128.load32_splat(x0), halfFactor);
    f00 = scaled(f00, widen(format, c00, ones), w0, t);
    f01 = scaled(f01, widen(format, c01, ones), w1, t);
    t = f32x4.mul(v128.load32_splat(x1), halfFactor);
    f10 = scaled(f10, widen(format, c10, ones), w0, t);
    f11 = scaled(f11, widen(format, c11, ones), w1, t);
    t = f32x4.mul(v128.load32_splat(x2), halfFactor);
    f20 = scaled(f20, widen(format, c20, ones), w0, t);
    f21 = scaled(f21, widen(format, c21, ones), w1, t);
    t = f32x4.mul(v128.load32_splat(x3), halfFactor);
    f30 = scaled(f30, widen(format, c30, ones), w0, t);
    f31 = scaled(f31, widen(format, c31, ones), w1, t);
    x0 += 8;
    x1 += 8;
    x2 += 8;
    x3 += 8;
    if (--left == 0) {
      left = groupBlocks;
      w += head;
      scales += groupBytes;
      zeros += zeroStep;
    }
  }
  v128.store(out, f00, 0);
  v128.store(out, f01, 16);
  v128.store(out, f10, 64);
  v128.store(out, f11, 80);
  v128.store(out, f20, 128);
  v128.store(out, f21, 144);
  v128.store(out, f30, 192);
  v128.store(out, f31, 208);
}
