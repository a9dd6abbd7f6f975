/**
 * Inner tiles of LINEAR for several tokens: 4 tokens x a panel of 8 rows (panel.ts), added to f32 [4][8].
 *
 * Narrow: one `relaxed_dot` multiplies 16 pairs of u8 codes and i8 activations and adds neighbours into i16
 * lanes, at most 2 * 127 * 15 each, so that a block of 32 inputs fits a lane; then one `dot_i16x8_s` by ones. Seven
 * bits (codebooks) fill a lane at once and are widened after each product. Wide: `dot_i16x8_s` of i16.
 * All are exact and blocks are added in one order, so every form gives the same bits.
 */
import { ONES16, RELAXED, constant } from './core.ts';
import { fence } from './tile-common.ts';

/** Codes of at most 4 bits against i8. */
export const NARROW: i32 = 0;
/** Codes of 7 bits against i8. */
export const SEVEN: i32 = 1;
/** Codes of 8 bits against i16. */
export const WIDE: i32 = 2;

@inline
function mac(form: i32, sum: v128, x: v128, w: v128, ones: v128): v128 {
  if (!RELAXED || form == WIDE) return i32x4.add(sum, i32x4.dot_i16x8_s(x, w));
  else {
    const pairs = v128.relaxed_dot<i16>(x, w);
    if (form == SEVEN) return i32x4.add(sum, i32x4.dot_i16x8_s(pairs, ones));
    else return i16x8.add(sum, pairs);
  }
}

/** Where sums start: minus the zero points, given minus the sums of the activations. */
@inline
function start(form: i32, zeros: v128, pair: v128): v128 {
  return form == NARROW ? i16x8.mul(zeros, pair) : i32x4.dot_i16x8_s(zeros, pair);
}

/** f + sum * (w * s), in this order of operations everywhere. */
@inline
function finish(form: i32, f: v128, sum: v128, w: v128, s: v128, ones: v128): v128 {
  const c = form == NARROW ? i32x4.dot_i16x8_s(sum, ones) : sum;
  return f32x4.add(f, f32x4.mul(f32x4.convert_i32x4_s(c), f32x4.mul(w, s)));
}

/** Minus the sums of a block of `bytes` bytes of activations. */
@inline
function sumsOf(bytes: i32, x: usize): v128 {
  if (bytes == 64) return v128.load32_splat(x, 68);
  return bytes == 32 ? v128.load32_splat(x, 36) : v128.load32_splat(x, 20);
}

/** Its scale, behind the last `bytes` bytes. */
@inline
function scaleOf(bytes: i32, x: usize): v128 {
  return bytes == 32 ? v128.load32_splat(x, 32) : v128.load32_splat(x, 16);
}

/** Fours of tokens, whose records in the form that FORM reads are `record` bytes apart -> f32 [tokens, in fours][8]. */
@inline
export function tilePanel(
  form: i32,
  block: i32,
  symmetric: bool,
  panel: usize,
  x: usize,
  record: usize,
  tokens: i32,
  out: usize,
  blocks: i32,
): void {
  const ones = constant(ONES16);
  const bytes = form == WIDE ? 2 * block : block;
  // of 64 bytes the second half
  const last = bytes == 16 ? 16 : 32;
  for (; tokens > 0; tokens -= 4) {
    let w = panel;
    let x0 = x;
    // where the last four lacks tokens, others stand in
    let x1 = tokens > 1 ? x0 + record : x0;
    let x2 = tokens > 2 ? x1 + record : x1;
    let x3 = tokens > 3 ? x2 + record : x2;
    for (let b = 0; b < blocks; b++) {
      const z0 = v128.load(w, 32);
      const z1 = symmetric ? z0 : v128.load(w, 48);
      let t = sumsOf(bytes, x0);
      let c00 = start(form, z0, t);
      let c01 = symmetric ? c00 : start(form, z1, t);
      t = sumsOf(bytes, x1);
      let c10 = start(form, z0, t);
      let c11 = symmetric ? c10 : start(form, z1, t);
      t = sumsOf(bytes, x2);
      let c20 = start(form, z0, t);
      let c21 = symmetric ? c20 : start(form, z1, t);
      t = sumsOf(bytes, x3);
      let c30 = start(form, z0, t);
      let c31 = symmetric ? c30 : start(form, z1, t);
      const w0 = v128.load(w, 0);
      const w1 = v128.load(w, 16);
      let v: v128, u: v128;
      if (form == WIDE && block == 32) {
        // the first half, as the second below
        v = v128.load(w, 64);
        u = v128.load(w, 80);
        t = v128.load32_splat(x0, 0);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 0);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 0);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 0);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 1, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 96);
        u = v128.load(w, 112);
        t = v128.load32_splat(x0, 4);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 4);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 4);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 4);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 2, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 128);
        u = v128.load(w, 144);
        t = v128.load32_splat(x0, 8);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 8);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 8);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 8);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 3, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 160);
        u = v128.load(w, 176);
        t = v128.load32_splat(x0, 12);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 12);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 12);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 12);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 4, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 192);
        u = v128.load(w, 208);
        t = v128.load32_splat(x0, 16);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 16);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 16);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 16);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 5, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 224);
        u = v128.load(w, 240);
        t = v128.load32_splat(x0, 20);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 20);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 20);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 20);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 6, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 256);
        u = v128.load(w, 272);
        t = v128.load32_splat(x0, 24);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 24);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 24);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 24);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 7, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 288);
        u = v128.load(w, 304);
        t = v128.load32_splat(x0, 28);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 28);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 28);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 28);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 9, c00, c01, c10, c11, c20, c21, c30, c31);
        w += 256;
        x0 += 32;
        x1 += 32;
        x2 += 32;
        x3 += 32;
      }
      {
        v = v128.load(w, 64);
        u = v128.load(w, 80);
        t = v128.load32_splat(x0, 0);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 0);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 0);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 0);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 1, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 96);
        u = v128.load(w, 112);
        t = v128.load32_splat(x0, 4);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 4);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 4);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 4);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 2, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 128);
        u = v128.load(w, 144);
        t = v128.load32_splat(x0, 8);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 8);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 8);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 8);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 3, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 160);
        u = v128.load(w, 176);
        t = v128.load32_splat(x0, 12);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 12);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 12);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 12);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 4, c00, c01, c10, c11, c20, c21, c30, c31);
      }
      if (form == WIDE || block == 32) {
        v = v128.load(w, 192);
        u = v128.load(w, 208);
        t = v128.load32_splat(x0, 16);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 16);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 16);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 16);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 5, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 224);
        u = v128.load(w, 240);
        t = v128.load32_splat(x0, 20);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 20);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 20);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 20);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 6, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 256);
        u = v128.load(w, 272);
        t = v128.load32_splat(x0, 24);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 24);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 24);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 24);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
        fence(w, 7, c00, c01, c10, c11, c20, c21, c30, c31);
        v = v128.load(w, 288);
        u = v128.load(w, 304);
        t = v128.load32_splat(x0, 28);
        c00 = mac(form, c00, t, v, ones);
        c01 = mac(form, c01, t, u, ones);
        t = v128.load32_splat(x1, 28);
        c10 = mac(form, c10, t, v, ones);
        c11 = mac(form, c11, t, u, ones);
        t = v128.load32_splat(x2, 28);
        c20 = mac(form, c20, t, v, ones);
        c21 = mac(form, c21, t, u, ones);
        t = v128.load32_splat(x3, 28);
        c30 = mac(form, c30, t, v, ones);
        c31 = mac(form, c31, t, u, ones);
      }
      t = scaleOf(last, x0);
      v128.store(out, finish(form, v128.load(out, 0), c00, w0, t, ones), 0);
      v128.store(out, finish(form, v128.load(out, 16), c01, w1, t, ones), 16);
      t = scaleOf(last, x1);
      v128.store(out, finish(form, v128.load(out, 32), c10, w0, t, ones), 32);
      v128.store(out, finish(form, v128.load(out, 48), c11, w1, t, ones), 48);
      t = scaleOf(last, x2);
      v128.store(out, finish(form, v128.load(out, 64), c20, w0, t, ones), 64);
      v128.store(out, finish(form, v128.load(out, 80), c21, w1, t, ones), 80);
      t = scaleOf(last, x3);
      v128.store(out, finish(form, v128.load(out, 96), c30, w0, t, ones), 96);
      v128.store(out, finish(form, v128.load(out, 112), c31, w1, t, ones), 112);
      x0 += last + 8;
      x1 += last + 8;
      x2 += last + 8;
      x3 += last + 8;
      w += form == WIDE ? 320 : 64 + 8 * block;
    }
    x += record << 2;
    out += 128;
  }
}
