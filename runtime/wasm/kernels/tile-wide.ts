/**
 * Inner tiles of LINEAR with i16 activations: every format on plain SIMD128, and W8 everywhere
 * (relaxed dot products of full 8-bit codes are not exact on every engine).
 *
 * A 16-bit lane of packed weights holds two inputs of one row: its low byte input 0 or 2 of four, its high
 * byte input 1 or 3. Masking and shifting 16-bit lanes turns them into i16 without widening
 * instructions, and `dot_i16x8_s` with activation pairs (0, 2) and (1, 3) sums them into four rows.
 * The i32 sums are exact, so results equal those of the narrow tiles bit for bit.
 */
import { C4, W2, W3, W4, W8 } from './abi.ts';
import {
  BYTES16,
  FOURS16,
  HALF_FACTOR,
  NIBBLES,
  NIBBLES16,
  TWO_BITS16,
  constant,
  lookup,
} from './core.ts';
import {
  SCALE_BYTES,
  doubled,
  scaled,
  smallScales,
  start32,
  startMiddle,
  stepShift,
  zeroPairs,
} from './tile-common.ts';

@inline
function mac(sum: v128, x: v128, w: v128): v128 {
  return i32x4.add(sum, i32x4.dot_i16x8_s(x, w));
}

/** Inputs 4s..4s+3 of 16 of four rows; C4 looks its codes up here. */
@inline
function load(format: i32, s: i32, w: usize, book: v128, nibbles: v128): v128 {
  const p = v128.load(w);
  if (format != C4) return p;
  return lookup(book, v128.and((s & 1) == 0 ? p : i16x8.shr_u(p, 4), nibbles));
}

/** High bits of W3 for 16 inputs of four rows. */
@inline
function loadHigh(format: i32, high: usize, i: i32): v128 {
  return format == W3 ? i16x8.shr_u(v128.load(high), i << 2) : i32x4.splat(0);
}

/** Inputs 0 and 2 of a group of four as i16. */
@inline
function even(format: i32, s: i32, p: v128, h: v128, mask: v128, four: v128): v128 {
  if (format == W4) return v128.and((s & 1) == 0 ? p : i16x8.shr_u(p, 4), mask);
  if (format == W8 || format == C4) return v128.and(p, mask);
  const low = v128.and(s == 0 ? p : i16x8.shr_u(p, 2 * s), mask);
  if (format == W2) return low;
  return v128.or(low, v128.and(s < 2 ? i16x8.shl(h, 2 - s) : i16x8.shr_u(h, s - 2), four));
}

/** Inputs 1 and 3 of a group of four as i16. */
@inline
function odd(format: i32, s: i32, p: v128, h: v128, mask: v128, four: v128): v128 {
  if (format == W4) {
    if ((s & 1) != 0) return i16x8.shr_u(p, 12);
    return v128.and(i16x8.shr_u(p, 8), mask);
  }
  if (format == W8 || format == C4) return i16x8.shr_u(p, 8);
  const low = s == 3 ? i16x8.shr_u(p, 14) : v128.and(i16x8.shr_u(p, 8 + 2 * s), mask);
  if (format == W2) return low;
  return v128.or(low, v128.and(i16x8.shr_u(h, 6 + s), four));
}

/** Where inputs 4s..4s+3 of 16 are: an offset from the 16 inputs' first byte. */
@inline
function place(format: i32, s: i32): usize {
  if (format == W8) return 64 * s;
  return format == W4 || format == C4 ? 64 * (s >> 1) : 0;
}

/** Bytes of the codes of 16 rows x 16 inputs (low bits only for W3). */
@inline
function stride16(format: i32): i32 {
  return format == W8 ? 256 : format == W4 || format == C4 ? 128 : 64;
}

@inline
export function tile1Wide(
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
  const halvesOfBlock = block >> 4;
  const eight = format == W8 || format == C4;
  const mask = constant(eight ? BYTES16 : format == W4 ? NIBBLES16 : TWO_BITS16);
  const four = constant(format == C4 ? NIBBLES : FOURS16);
  const halfFactor = constant(HALF_FACTOR);
  for (let tile = 0; tile < count; tile++) {
    const book = format == C4 ? v128.load(codebook) : four;
    let x = record + blocks * (block + 8);
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
      const pair = v128.load32_splat(x + 2 * block, 4);
      let c0: v128, c1: v128, c2: v128, c3: v128;
      if (stepShift(format)) {
        c0 = i32x4.splat(0);
        c1 = c0;
        c2 = c0;
        c3 = c0;
      } else if (head == SCALE_BYTES) {
        c0 = startMiddle(format, true, pair);
        c1 = c0;
        c2 = c0;
        c3 = c0;
      } else {
        c0 = start32(zeroPairs(scales + 32), pair);
        c1 = start32(zeroPairs(scales + 36), pair);
        c2 = start32(zeroPairs(scales + 40), pair);
        c3 = start32(zeroPairs(scales + 44), pair);
      }
      const high = w + 128;
      for (let i = 0; i < halvesOfBlock; i++) {
        const h0 = loadHigh(format, high, i);
        const h1 = loadHigh(format, high + 16, i);
        const h2 = loadHigh(format, high + 32, i);
        const h3 = loadHigh(format, high + 48, i);
        let x0: v128, x1: v128, at: usize, p: v128;
        x0 = v128.load32_splat(x, 0);
        x1 = v128.load32_splat(x, 4);
        at = w + place(format, 0);
        p = load(format, 0, at + 0, book, four);
        c0 = mac(mac(c0, x0, even(format, 0, p, h0, mask, four)), x1, odd(format, 0, p, h0, mask, four));
        p = load(format, 0, at + 16, book, four);
        c1 = mac(mac(c1, x0, even(format, 0, p, h1, mask, four)), x1, odd(format, 0, p, h1, mask, four));
        p = load(format, 0, at + 32, book, four);
        c2 = mac(mac(c2, x0, even(format, 0, p, h2, mask, four)), x1, odd(format, 0, p, h2, mask, four));
        p = load(format, 0, at + 48, book, four);
        c3 = mac(mac(c3, x0, even(format, 0, p, h3, mask, four)), x1, odd(format, 0, p, h3, mask, four));
        x0 = v128.load32_splat(x, 8);
        x1 = v128.load32_splat(x, 12);
        at = w + place(format, 1);
        p = load(format, 1, at + 0, book, four);
        c0 = mac(mac(c0, x0, even(format, 1, p, h0, mask, four)), x1, odd(format, 1, p, h0, mask, four));
        p = load(format, 1, at + 16, book, four);
        c1 = mac(mac(c1, x0, even(format, 1, p, h1, mask, four)), x1, odd(format, 1, p, h1, mask, four));
        p = load(format, 1, at + 32, book, four);
        c2 = mac(mac(c2, x0, even(format, 1, p, h2, mask, four)), x1, odd(format, 1, p, h2, mask, four));
        p = load(format, 1, at + 48, book, four);
        c3 = mac(mac(c3, x0, even(format, 1, p, h3, mask, four)), x1, odd(format, 1, p, h3, mask, four));
        x0 = v128.load32_splat(x, 16);
        x1 = v128.load32_splat(x, 20);
        at = w + place(format, 2);
        p = load(format, 2, at + 0, book, four);
        c0 = mac(mac(c0, x0, even(format, 2, p, h0, mask, four)), x1, odd(format, 2, p, h0, mask, four));
        p = load(format, 2, at + 16, book, four);
        c1 = mac(mac(c1, x0, even(format, 2, p, h1, mask, four)), x1, odd(format, 2, p, h1, mask, four));
        p = load(format, 2, at + 32, book, four);
        c2 = mac(mac(c2, x0, even(format, 2, p, h2, mask, four)), x1, odd(format, 2, p, h2, mask, four));
        p = load(format, 2, at + 48, book, four);
        c3 = mac(mac(c3, x0, even(format, 2, p, h3, mask, four)), x1, odd(format, 2, p, h3, mask, four));
        x0 = v128.load32_splat(x, 24);
        x1 = v128.load32_splat(x, 28);
        at = w + place(format, 3);
        p = load(format, 3, at + 0, book, four);
        c0 = mac(mac(c0, x0, even(format, 3, p, h0, mask, four)), x1, odd(format, 3, p, h0, mask, four));
        p = load(format, 3, at + 16, book, four);
        c1 = mac(mac(c1, x0, even(format, 3, p, h1, mask, four)), x1, odd(format, 3, p, h1, mask, four));
        p = load(format, 3, at + 32, book, four);
        c2 = mac(mac(c2, x0, even(format, 3, p, h2, mask, four)), x1, odd(format, 3, p, h2, mask, four));
        p = load(format, 3, at + 48, book, four);
        c3 = mac(mac(c3, x0, even(format, 3, p, h3, mask, four)), x1, odd(format, 3, p, h3, mask, four));
        w += stride16(format);
        x += 32;
      }
      if (format == W3) w += 64;
      if (stepShift(format)) {
        const sums = v128.load32_splat(x, 4);
        c0 = doubled(format, c0, head, scales + 32, sums);
        c1 = doubled(format, c1, head, scales + 36, sums);
        c2 = doubled(format, c2, head, scales + 40, sums);
        c3 = doubled(format, c3, head, scales + 44, sums);
      }
      const s = f32x4.mul(v128.load32_splat(x), halfFactor);
      f0 = scaled(f0, c0, smallScales(v128.load16x4_u(scales, 0)), s);
      f1 = scaled(f1, c1, smallScales(v128.load16x4_u(scales, 8)), s);
      f2 = scaled(f2, c2, smallScales(v128.load16x4_u(scales, 16)), s);
      f3 = scaled(f3, c3, smallScales(v128.load16x4_u(scales, 24)), s);
      x += 8;
    }
    if (format == C4) codebook += 16;
    v128.store(out, f0, 0);
    v128.store(out, f1, 16);
    v128.store(out, f2, 32);
    v128.store(out, f3, 48);
    out += 64;
  }
}
