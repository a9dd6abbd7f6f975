/**
 * Inner tiles of LINEAR for codes of 2 and 3 bits, on relaxed SIMD: i8 activations. (4 bits: tile-nibble.ts.)
 *
 * One `relaxed_dot` multiplies 16 pairs and adds neighbours into i16 lanes: at most 2 * 127 * 7 = 1778, so the
 * 8 of a block of 32 inputs fit an i16 lane. Two instructions for 16 multiply-accumulates,
 * where the i32 form of the dot product takes five on x86. The block ends with one `dot_i16x8_s` by
 * ones. Exact on every engine: the second operand has its top bit clear and no sum overflows.
 *
 * tile1: 1 token x 16 rows. (Several tokens: tile-panel.ts.)
 * Results go to `out`, f32 [16].
 */
import { W3 } from './abi.ts';
import { FOURS, HALF_FACTOR, ONES16, TWO_BITS, constant } from './core.ts';
import { doubled, scaled, smallScales } from './tile-common.ts';

@inline
function mac(sum: v128, x: v128, w: v128): v128 {
  return i16x8.add(sum, v128.relaxed_dot<i16>(x, w));
}

/** Codes of inputs 4s..4s+3 of 16 (s 0..3); `p` holds them, `h` the high bits of W3. */
@inline
function codes(format: i32, s: i32, p: v128, h: v128, mask: v128, four: v128): v128 {
  const low = v128.and(s == 0 ? p : i16x8.shr_u(p, 2 * s), mask);
  if (format != W3) return low;
  return v128.or(low, v128.and(s < 2 ? i16x8.shl(h, 2 - s) : i16x8.shr_u(h, s - 2), four));
}

@inline
export function tile1Narrow(
  format: i32,
  w: usize,
  head: i32,
  record: usize,
  out: usize,
  count: i32,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
): void {
  const ones = constant(ONES16);
  const mask = constant(TWO_BITS);
  const four = constant(FOURS);
  const halfFactor = constant(HALF_FACTOR);
  const halvesOfBlock = block >> 4;
  for (let tile = 0; tile < count; tile++) {
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
      let c0 = i32x4.splat(0);
      let c1 = c0, c2 = c0, c3 = c0;
      const high = w + 128;
      for (let i = 0; i < halvesOfBlock; i++) {
        const x0 = v128.load32_splat(x, 0);
        const x1 = v128.load32_splat(x, 4);
        const x2 = v128.load32_splat(x, 8);
        const x3 = v128.load32_splat(x, 12);
        let p = v128.load(w, 0);
        let h = format == W3 ? i16x8.shr_u(v128.load(high, 0), i << 2) : p;
        c0 = mac(c0, x0, codes(format, 0, p, h, mask, four));
        c0 = mac(c0, x1, codes(format, 1, p, h, mask, four));
        c0 = mac(c0, x2, codes(format, 2, p, h, mask, four));
        c0 = mac(c0, x3, codes(format, 3, p, h, mask, four));
        p = v128.load(w, 16);
        h = format == W3 ? i16x8.shr_u(v128.load(high, 16), i << 2) : p;
        c1 = mac(c1, x0, codes(format, 0, p, h, mask, four));
        c1 = mac(c1, x1, codes(format, 1, p, h, mask, four));
        c1 = mac(c1, x2, codes(format, 2, p, h, mask, four));
        c1 = mac(c1, x3, codes(format, 3, p, h, mask, four));
        p = v128.load(w, 32);
        h = format == W3 ? i16x8.shr_u(v128.load(high, 32), i << 2) : p;
        c2 = mac(c2, x0, codes(format, 0, p, h, mask, four));
        c2 = mac(c2, x1, codes(format, 1, p, h, mask, four));
        c2 = mac(c2, x2, codes(format, 2, p, h, mask, four));
        c2 = mac(c2, x3, codes(format, 3, p, h, mask, four));
        p = v128.load(w, 48);
        h = format == W3 ? i16x8.shr_u(v128.load(high, 48), i << 2) : p;
        c3 = mac(c3, x0, codes(format, 0, p, h, mask, four));
        c3 = mac(c3, x1, codes(format, 1, p, h, mask, four));
        c3 = mac(c3, x2, codes(format, 2, p, h, mask, four));
        c3 = mac(c3, x3, codes(format, 3, p, h, mask, four));
        w += 64;
        x += 16;
      }
      if (format == W3) w += 64;
      const s = f32x4.mul(v128.load32_splat(x), halfFactor);
      const pair = v128.load32_splat(x, 4);
      c0 = doubled(format, i32x4.dot_i16x8_s(c0, ones), head, scales + 32, pair);
      f0 = scaled(f0, c0, smallScales(v128.load16x4_u(scales, 0)), s);
      c1 = doubled(format, i32x4.dot_i16x8_s(c1, ones), head, scales + 36, pair);
      f1 = scaled(f1, c1, smallScales(v128.load16x4_u(scales, 8)), s);
      c2 = doubled(format, i32x4.dot_i16x8_s(c2, ones), head, scales + 40, pair);
      f2 = scaled(f2, c2, smallScales(v128.load16x4_u(scales, 16)), s);
      c3 = doubled(format, i32x4.dot_i16x8_s(c3, ones), head, scales + 44, pair);
      f3 = scaled(f3, c3, smallScales(v128.load16x4_u(scales, 24)), s);
      x += 8;
    }
    v128.store(out, f0, 0);
    v128.store(out, f1, 16);
    v128.store(out, f2, 32);
    v128.store(out, f3, 48);
    out += 64;
  }
}
