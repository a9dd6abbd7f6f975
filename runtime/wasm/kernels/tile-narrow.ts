/**
 * Inner tiles of LINEAR for codes of 2 and 3 bits, on relaxed SIMD: i8 activations. (4 bits: tile-nibble.ts.)
 *
 * One `relaxed_dot` multiplies 16 pairs and adds neighbours into i16 lanes: at most 2 * 127 * 7 = 1778, so the
 * 8 of a block of 32 inputs fit an i16 lane. Two instructions for 16 multiply-accumulates,
 * where the i32 form of the dot product takes five on x86. The block ends with one `dot_i16x8_s` by
 * ones. Exact on every engine: the second operand has its top bit clear and no sum overflows.
 *
 * tile1: 1 token x 16 rows. tile4: 4 tokens x 16 rows, as two register tiles of 8 rows.
 * Results go to `out`, f32 [tokens][16].
 */
import { W3 } from './abi.ts';
import { FOURS, HALF_FACTOR, ONES16, TWO_BITS, constant } from './core.ts';
import {
  SCALE_BYTES,
  scaled,
  smallScales,
  start16,
  startMiddle,
  zeroPairs,
} from './tile-common.ts';

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
      const pair = v128.load32_splat(x + block, 4);
      let c0: v128, c1: v128, c2: v128, c3: v128;
      if (head == SCALE_BYTES) {
        c0 = startMiddle(format, false, pair);
        c1 = c0;
        c2 = c0;
        c3 = c0;
      } else {
        c0 = start16(zeroPairs(scales + 32), pair);
        c1 = start16(zeroPairs(scales + 36), pair);
        c2 = start16(zeroPairs(scales + 40), pair);
        c3 = start16(zeroPairs(scales + 44), pair);
      }
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
      f0 = scaled(f0, i32x4.dot_i16x8_s(c0, ones), smallScales(v128.load16x4_u(scales, 0)), s);
      f1 = scaled(f1, i32x4.dot_i16x8_s(c1, ones), smallScales(v128.load16x4_u(scales, 8)), s);
      f2 = scaled(f2, i32x4.dot_i16x8_s(c2, ones), smallScales(v128.load16x4_u(scales, 16)), s);
      f3 = scaled(f3, i32x4.dot_i16x8_s(c3, ones), smallScales(v128.load16x4_u(scales, 24)), s);
      x += 8;
    }
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
export function half4Narrow(
  format: i32,
  w: usize,
  head: usize,
  scales: usize,
  groupBytes: usize,
  zeros: usize,
  zeroStep: usize,
  record: usize,
  recordBytes: usize,
  out: usize,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
): void {
  const ones = constant(ONES16);
  const mask = constant(TWO_BITS);
  const four = constant(FOURS);
  const halfFactor = constant(HALF_FACTOR);
  const steps = block >> 3;
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
    let c00 = start16(z0, t);
    let c01 = start16(z1, t);
    t = v128.load32_splat(x1 + block, 4);
    let c10 = start16(z0, t);
    let c11 = start16(z1, t);
    t = v128.load32_splat(x2 + block, 4);
    let c20 = start16(z0, t);
    let c21 = start16(z1, t);
    t = v128.load32_splat(x3 + block, 4);
    let c30 = start16(z0, t);
    let c31 = start16(z1, t);
    const high = w + 128;
    for (let i = 0; i < steps; i++) {
      // 8 inputs; W2 and W3 keep 16 in the same bytes, so every other step only shifts further
      let p = v128.load(w, 0);
      let q = v128.load(w, 16);
      let g = four;
      let h = four;
      p = i16x8.shr_u(p, (i & 1) << 2);
      q = i16x8.shr_u(q, (i & 1) << 2);
      if (format == W3) {
        g = i16x8.shr_u(v128.load(high, 0), i << 1);
        h = i16x8.shr_u(v128.load(high, 16), i << 1);
      }
      let v = codes(format, 0, p, g, mask, four);
      let u = codes(format, 0, q, h, mask, four);
      t = v128.load32_splat(x0, 0);
      c00 = mac(c00, t, v);
      c01 = mac(c01, t, u);
      t = v128.load32_splat(x1, 0);
      c10 = mac(c10, t, v);
      c11 = mac(c11, t, u);
      t = v128.load32_splat(x2, 0);
      c20 = mac(c20, t, v);
      c21 = mac(c21, t, u);
      t = v128.load32_splat(x3, 0);
      c30 = mac(c30, t, v);
      c31 = mac(c31, t, u);
      v = codes(format, 1, p, g, mask, four);
      u = codes(format, 1, q, h, mask, four);
      t = v128.load32_splat(x0, 4);
      c00 = mac(c00, t, v);
      c01 = mac(c01, t, u);
      t = v128.load32_splat(x1, 4);
      c10 = mac(c10, t, v);
      c11 = mac(c11, t, u);
      t = v128.load32_splat(x2, 4);
      c20 = mac(c20, t, v);
      c21 = mac(c21, t, u);
      t = v128.load32_splat(x3, 4);
      c30 = mac(c30, t, v);
      c31 = mac(c31, t, u);
      w += (i & 1) << 6;
      x0 += 8;
      x1 += 8;
      x2 += 8;
      x3 += 8;
    }
    if (format == W3) w += 64;
    const w0 = smallScales(v128.load16x4_u(scales, 0));
    const w1 = smallScales(v128.load16x4_u(scales, 8));
    t = f32x4.mul(v128.load32_splat(x0), halfFactor);
    f00 = scaled(f00, i32x4.dot_i16x8_s(c00, ones), w0, t);
    f01 = scaled(f01, i32x4.dot_i16x8_s(c01, ones), w1, t);
    t = f32x4.mul(v128.load32_splat(x1), halfFactor);
    f10 = scaled(f10, i32x4.dot_i16x8_s(c10, ones), w0, t);
    f11 = scaled(f11, i32x4.dot_i16x8_s(c11, ones), w1, t);
    t = f32x4.mul(v128.load32_splat(x2), halfFactor);
    f20 = scaled(f20, i32x4.dot_i16x8_s(c20, ones), w0, t);
    f21 = scaled(f21, i32x4.dot_i16x8_s(c21, ones), w1, t);
    t = f32x4.mul(v128.load32_splat(x3), halfFactor);
    f30 = scaled(f30, i32x4.dot_i16x8_s(c30, ones), w0, t);
    f31 = scaled(f31, i32x4.dot_i16x8_s(c31, ones), w1, t);
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
