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
