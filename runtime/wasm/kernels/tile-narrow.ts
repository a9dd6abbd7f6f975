/**
 * Inner tiles of LINEAR for codes of at most 4 bits, on relaxed SIMD: i8 activations.
 * Codebook entries have 7 bits, so two products fill an i16 lane and are widened at once.
 *
 * One `relaxed_dot` multiplies 16 pairs and adds neighbours into i16 lanes: 2 * 127 * 15 = 3810, so 8 of
 * them fit an i16 lane, exactly the 32 inputs of a block. Two instructions for 16 multiply-accumulates,
 * where the i32 form of the dot product takes five on x86. The block ends with one `dot_i16x8_s` by
 * ones. Exact on every engine: the second operand has its top bit clear and no sum overflows.
 *
 * tile1: 1 token x 16 rows. tile4: 4 tokens x 16 rows, as two register tiles of 8 rows.
 * Results go to `out`, f32 [tokens][16].
 */
import { C4, W3, W4 } from './abi.ts';
import {
  FOURS,
  HALF_FACTOR,
  NIBBLES,
  ONES16,
  TWO_BITS,
  constant,
  lookup,
  positiveHalves,
} from './core.ts';

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

/** Codes of inputs 4s..4s+3 of 16 (s 0..3); `p` holds them, `h` the high bits of W3 or the codebook. */
@inline
function codes(format: i32, s: i32, p: v128, h: v128, mask: v128, four: v128): v128 {
  if (format == C4) return lookup(h, v128.and((s & 1) == 0 ? p : i16x8.shr_u(p, 4), mask));
  if (format == W4) return v128.and((s & 1) == 0 ? p : i16x8.shr_u(p, 4), mask);
  const low = v128.and(s == 0 ? p : i16x8.shr_u(p, 2 * s), mask);
  if (format != W3) return low;
  return v128.or(low, v128.and(s < 2 ? i16x8.shl(h, 2 - s) : i16x8.shr_u(h, s - 2), four));
}

/**
 * Zero points times the code sum, for four rows: `zeros` points at their u8. The sum of at most 32 codes
 * fits the low i16 of its lane; a zero point's lane is (zero, 0), so the dot product drops the high one.
 */
@inline
export function zeroTimes(zeros: usize, sum: v128): v128 {
  const bytes = v128.load32_zero(zeros);
  return i32x4.dot_i16x8_s(i32x4.extend_low_i16x8_u(i16x8.extend_low_i8x16_u(bytes)), sum);
}

/** 2^(bits-1) as a shift; C4 is centred at 64. */
@inline
export function zeroShift(format: i32): i32 {
  return format == C4 ? 6 : format == W4 ? 3 : format == W3 ? 2 : 1;
}

/** Bytes of the codes of 16 rows x 16 inputs (low bits only for W3). */
@inline
function stride16(format: i32): i32 {
  return format == W4 || format == C4 ? 128 : 64;
}

@inline
export function tile1Narrow(
  format: i32,
  w: usize,
  scales: usize,
  zeros: usize,
  codebook: usize,
  record: usize,
  out: usize,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
): void {
  const ones = constant(ONES16);
  const mask = constant(format == W4 || format == C4 ? NIBBLES : TWO_BITS);
  const four = constant(FOURS);
  const book = format == C4 ? v128.load(codebook) : four;
  const halfFactor = constant(HALF_FACTOR);
  const halvesOfBlock = block >> 4;
  let x = record;
  let xScale = record + 3 * (blocks * block);
  const toSum: usize = blocks << 2;
  let f0 = f32x4.splat(0), f1 = f0, f2 = f0, f3 = f0;
  let left = groupBlocks;
  for (let b = 0; b < blocks; b++) {
    let c0 = i32x4.splat(0), c1 = c0, c2 = c0, c3 = c0;
    const high = w + 128;
    for (let i = 0; i < halvesOfBlock; i++) {
      const x0 = v128.load32_splat(x, 0);
      const x1 = v128.load32_splat(x, 4);
      const x2 = v128.load32_splat(x, 8);
      const x3 = v128.load32_splat(x, 12);
      let p = v128.load(w, 0);
      let r = format == W4 || format == C4 ? v128.load(w, 64) : p;
      let h = format == W3 ? i16x8.shr_u(v128.load(high, 0), i << 2) : book;
      c0 = mac(format, c0, x0, codes(format, 0, p, h, mask, four), ones);
      c0 = mac(format, c0, x1, codes(format, 1, p, h, mask, four), ones);
      c0 = mac(format, c0, x2, codes(format, 2, r, h, mask, four), ones);
      c0 = mac(format, c0, x3, codes(format, 3, r, h, mask, four), ones);
      p = v128.load(w, 16);
      r = format == W4 || format == C4 ? v128.load(w, 80) : p;
      h = format == W3 ? i16x8.shr_u(v128.load(high, 16), i << 2) : book;
      c1 = mac(format, c1, x0, codes(format, 0, p, h, mask, four), ones);
      c1 = mac(format, c1, x1, codes(format, 1, p, h, mask, four), ones);
      c1 = mac(format, c1, x2, codes(format, 2, r, h, mask, four), ones);
      c1 = mac(format, c1, x3, codes(format, 3, r, h, mask, four), ones);
      p = v128.load(w, 32);
      r = format == W4 || format == C4 ? v128.load(w, 96) : p;
      h = format == W3 ? i16x8.shr_u(v128.load(high, 32), i << 2) : book;
      c2 = mac(format, c2, x0, codes(format, 0, p, h, mask, four), ones);
      c2 = mac(format, c2, x1, codes(format, 1, p, h, mask, four), ones);
      c2 = mac(format, c2, x2, codes(format, 2, r, h, mask, four), ones);
      c2 = mac(format, c2, x3, codes(format, 3, r, h, mask, four), ones);
      p = v128.load(w, 48);
      r = format == W4 || format == C4 ? v128.load(w, 112) : p;
      h = format == W3 ? i16x8.shr_u(v128.load(high, 48), i << 2) : book;
      c3 = mac(format, c3, x0, codes(format, 0, p, h, mask, four), ones);
      c3 = mac(format, c3, x1, codes(format, 1, p, h, mask, four), ones);
      c3 = mac(format, c3, x2, codes(format, 2, r, h, mask, four), ones);
      c3 = mac(format, c3, x3, codes(format, 3, r, h, mask, four), ones);
      w += stride16(format);
      x += 16;
    }
    if (format == W3) w += 64;
    c0 = widen(format, c0, ones);
    c1 = widen(format, c1, ones);
    c2 = widen(format, c2, ones);
    c3 = widen(format, c3, ones);
    const sum = v128.load32_splat(xScale + toSum);
    if (zeros == 0) {
      const z = i32x4.shl(sum, zeroShift(format));
      c0 = i32x4.sub(c0, z);
      c1 = i32x4.sub(c1, z);
      c2 = i32x4.sub(c2, z);
      c3 = i32x4.sub(c3, z);
    } else {
      c0 = i32x4.sub(c0, zeroTimes(zeros, sum));
      c1 = i32x4.sub(c1, zeroTimes(zeros + 4, sum));
      c2 = i32x4.sub(c2, zeroTimes(zeros + 8, sum));
      c3 = i32x4.sub(c3, zeroTimes(zeros + 12, sum));
    }
    const s = v128.load32_splat(xScale);
    f0 = f32x4.add(f0, f32x4.mul(f32x4.convert_i32x4_s(c0), f32x4.mul(positiveHalves(scales, halfFactor), s)));
    f1 = f32x4.add(f1, f32x4.mul(f32x4.convert_i32x4_s(c1), f32x4.mul(positiveHalves(scales + 8, halfFactor), s)));
    f2 = f32x4.add(f2, f32x4.mul(f32x4.convert_i32x4_s(c2), f32x4.mul(positiveHalves(scales + 16, halfFactor), s)));
    f3 = f32x4.add(f3, f32x4.mul(f32x4.convert_i32x4_s(c3), f32x4.mul(positiveHalves(scales + 24, halfFactor), s)));
    xScale += 4;
    if (--left == 0) {
      left = groupBlocks;
      scales += 32;
      if (zeros) zeros += 16;
    }
  }
  v128.store(out, f0, 0);
  v128.store(out, f1, 16);
  v128.store(out, f2, 32);
  v128.store(out, f3, 48);
}

/**
 * One register tile: 4 tokens x 8 rows; `w`, `scales`, `zeros`, `out` already point at its half. Symmetric
 * weights pass constant `zeros` with `zeroStep` 0.
 */
@inline
export function half4Narrow(
  format: i32,
  w: usize,
  scales: usize,
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
  const mask = constant(format == W4 || format == C4 ? NIBBLES : TWO_BITS);
  const four = constant(FOURS);
  const book = format == C4 ? v128.load(codebook) : four;
  const halfFactor = constant(HALF_FACTOR);
  const steps = block >> 3;
  let x = record;
  let xScale = record + 3 * (blocks * block);
  const toSum: usize = blocks << 2;
  const record2 = recordBytes * 2;
  const record3 = recordBytes * 3;
  let f00 = f32x4.splat(0), f01 = f00, f10 = f00, f11 = f00;
  let f20 = f00, f21 = f00, f30 = f00, f31 = f00;
  let left = groupBlocks;
  for (let b = 0; b < blocks; b++) {
    let c00 = i32x4.splat(0), c01 = c00, c10 = c00, c11 = c00;
    let c20 = c00, c21 = c00, c30 = c00, c31 = c00;
    const high = w + 128;
    for (let i = 0; i < steps; i++) {
      // 8 inputs; W2 and W3 keep 16 in the same bytes, so every other step only shifts further
      let p = v128.load(w, 0);
      let q = v128.load(w, 16);
      let g = book;
      let h = book;
      if (format != W4 && format != C4) {
        p = i16x8.shr_u(p, (i & 1) << 2);
        q = i16x8.shr_u(q, (i & 1) << 2);
      }
      if (format == W3) {
        g = i16x8.shr_u(v128.load(high, 0), i << 1);
        h = i16x8.shr_u(v128.load(high, 16), i << 1);
      }
      let v = codes(format, 0, p, g, mask, four);
      let u = codes(format, 0, q, h, mask, four);
      let t = v128.load32_splat(x, 0);
      c00 = mac(format, c00, t, v, ones);
      c01 = mac(format, c01, t, u, ones);
      t = v128.load32_splat(x + recordBytes, 0);
      c10 = mac(format, c10, t, v, ones);
      c11 = mac(format, c11, t, u, ones);
      t = v128.load32_splat(x + record2, 0);
      c20 = mac(format, c20, t, v, ones);
      c21 = mac(format, c21, t, u, ones);
      t = v128.load32_splat(x + record3, 0);
      c30 = mac(format, c30, t, v, ones);
      c31 = mac(format, c31, t, u, ones);
      v = codes(format, 1, p, g, mask, four);
      u = codes(format, 1, q, h, mask, four);
      t = v128.load32_splat(x, 4);
      c00 = mac(format, c00, t, v, ones);
      c01 = mac(format, c01, t, u, ones);
      t = v128.load32_splat(x + recordBytes, 4);
      c10 = mac(format, c10, t, v, ones);
      c11 = mac(format, c11, t, u, ones);
      t = v128.load32_splat(x + record2, 4);
      c20 = mac(format, c20, t, v, ones);
      c21 = mac(format, c21, t, u, ones);
      t = v128.load32_splat(x + record3, 4);
      c30 = mac(format, c30, t, v, ones);
      c31 = mac(format, c31, t, u, ones);
      w += format == W4 || format == C4 ? 64 : (i & 1) << 6;
      x += 8;
    }
    if (format == W3) w += 64;
    c00 = widen(format, c00, ones);
    c01 = widen(format, c01, ones);
    c10 = widen(format, c10, ones);
    c11 = widen(format, c11, ones);
    c20 = widen(format, c20, ones);
    c21 = widen(format, c21, ones);
    c30 = widen(format, c30, ones);
    c31 = widen(format, c31, ones);
    const w0 = positiveHalves(scales, halfFactor);
    const w1 = positiveHalves(scales + 8, halfFactor);
    const zeroCodes = v128.load8x8_u(zeros);
    const z0 = i32x4.extend_low_i16x8_u(zeroCodes);
    const z1 = i32x4.extend_high_i16x8_u(zeroCodes);
    let z = v128.load32_splat(xScale + toSum);
    let s = v128.load32_splat(xScale);
    f00 = scaled(f00, c00, z0, z, w0, s);
    f01 = scaled(f01, c01, z1, z, w1, s);
    z = v128.load32_splat(xScale + recordBytes + toSum);
    s = v128.load32_splat(xScale + recordBytes);
    f10 = scaled(f10, c10, z0, z, w0, s);
    f11 = scaled(f11, c11, z1, z, w1, s);
    z = v128.load32_splat(xScale + record2 + toSum);
    s = v128.load32_splat(xScale + record2);
    f20 = scaled(f20, c20, z0, z, w0, s);
    f21 = scaled(f21, c21, z1, z, w1, s);
    z = v128.load32_splat(xScale + record3 + toSum);
    s = v128.load32_splat(xScale + record3);
    f30 = scaled(f30, c30, z0, z, w0, s);
    f31 = scaled(f31, c31, z1, z, w1, s);
    xScale += 4;
    if (--left == 0) {
      left = groupBlocks;
      scales += 32;
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

/** f + (c - zero * sum) * (w * s), in this order of operations everywhere. */
@inline
export function scaled(f: v128, c: v128, zero: v128, sum: v128, w: v128, s: v128): v128 {
  const integer = i32x4.sub(c, i32x4.dot_i16x8_s(zero, sum));
  return f32x4.add(f, f32x4.mul(f32x4.convert_i32x4_s(integer), f32x4.mul(w, s)));
}
