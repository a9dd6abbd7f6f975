/** Panels: 8 rows side by side, and the few loops over them that the rounding kernels share. */
import { ROUND_BOOK, ROUND_STEP, ROUND_SYMMETRIC, ROUND_TOP } from './abi.ts';

/** A parameter of the rounding kernels. */
@inline
export function word(block: usize, index: i32): i32 {
  return load<i32>(block + (<usize>index << 2));
}

/** An address among the parameters. */
@inline
export function address(block: usize, index: i32): usize {
  return <usize>load<u32>(block + (<usize>index << 2));
}

/**
 * Copies rows into panels, columns in a given order; rows past the last are zero.
 *
 * @param source - [rows][K] f32
 * @param order - 0, or [K] i32: column j of a panel is column order[j]
 */
export function panelsIn(source: usize, rows: i32, K: i32, order: usize, panels: usize): void {
  for (let first = 0; first < rows; first += 8) {
    for (let j = 0; j < K; j++) {
      const column = order ? load<i32>(order + (j << 2)) : j;
      for (let r = 0; r < 8; r++) {
        const row = first + r;
        const value = row < rows ? load<f32>(source + ((<usize>row * K + column) << 2)) : 0;
        store<f32>(panels + (r << 2), value);
      }
      panels += 32;
    }
  }
}

/** The reverse of `panelsIn`. */
export function panelsOut(panels: usize, rows: i32, K: i32, order: usize, target: usize): void {
  for (let first = 0; first < rows; first += 8) {
    const count = min(8, rows - first);
    for (let j = 0; j < K; j++) {
      const column = order ? load<i32>(order + (j << 2)) : j;
      for (let r = 0; r < count; r++) {
        store<f32>(target + ((<usize>(first + r) * K + column) << 2), load<f32>(panels + (r << 2)));
      }
      panels += 32;
    }
  }
}

/**
 * out [rows][8] += Σ_j m[r][j] e[j] for j from 0 to count - 1, rows at most 4.
 *
 * @param m - rows `rowBytes` apart
 * @param e - [count][8]
 */
export function gather(m: usize, rowBytes: usize, rows: i32, e: usize, count: i32, out: usize): void {
  if (rows == 4) {
    let a0 = v128.load(out, 0), a1 = v128.load(out, 16), b0 = v128.load(out, 32), b1 = v128.load(out, 48);
    let c0 = v128.load(out, 64), c1 = v128.load(out, 80), d0 = v128.load(out, 96), d1 = v128.load(out, 112);
    const row2 = rowBytes * 2;
    const row3 = rowBytes * 3;
    for (let j = 0; j < count; j++) {
      const x = v128.load(e, 0);
      const y = v128.load(e, 16);
      let t = v128.load32_splat(m);
      a0 = f32x4.add(a0, f32x4.mul(t, x));
      a1 = f32x4.add(a1, f32x4.mul(t, y));
      t = v128.load32_splat(m + rowBytes);
      b0 = f32x4.add(b0, f32x4.mul(t, x));
      b1 = f32x4.add(b1, f32x4.mul(t, y));
      t = v128.load32_splat(m + row2);
      c0 = f32x4.add(c0, f32x4.mul(t, x));
      c1 = f32x4.add(c1, f32x4.mul(t, y));
      t = v128.load32_splat(m + row3);
      d0 = f32x4.add(d0, f32x4.mul(t, x));
      d1 = f32x4.add(d1, f32x4.mul(t, y));
      m += 4;
      e += 32;
    }
    v128.store(out, a0, 0);
    v128.store(out, a1, 16);
    v128.store(out, b0, 32);
    v128.store(out, b1, 48);
    v128.store(out, c0, 64);
    v128.store(out, c1, 80);
    v128.store(out, d0, 96);
    v128.store(out, d1, 112);
    return;
  }
  for (let r = 0; r < rows; r++) {
    let a0 = v128.load(out, 0), a1 = v128.load(out, 16);
    let at = e;
    for (let j = 0; j < count; j++) {
      const t = v128.load32_splat(m + (j << 2));
      a0 = f32x4.add(a0, f32x4.mul(t, v128.load(at, 0)));
      a1 = f32x4.add(a1, f32x4.mul(t, v128.load(at, 16)));
      at += 32;
    }
    v128.store(out, a0, 0);
    v128.store(out, a1, 16);
    m += rowBytes;
    out += 32;
  }
}

/** The f16 nearest to values of at least 0. */
@inline
export function half(x: v128): v128 {
  const odd = v128.and(i32x4.shr_u(x, 13), i32x4.splat(1));
  const rounded = v128.and(i32x4.add(i32x4.add(x, i32x4.splat(0xfff)), odd), i32x4.splat(<i32>0xffffe000));
  // below the smallest normal f16 steps have one size, 2^-24, which is that of f32 between 0.5 and 1
  const shifted = f32x4.sub(f32x4.add(x, f32x4.splat(0.5)), f32x4.splat(0.5));
  return v128.bitselect(shifted, rounded, f32x4.lt(x, f32x4.splat(6.103515625e-5)));
}

/** The level nearest to x among lo, lo + step, ..., hi, or among the entries of a codebook. */
@inline
export function snap(x: v128, lo: v128, hi: v128, step: f32, book: usize): v128 {
  if (book) return nearestEntry(x, book);
  const steps = f32x4.mul(f32x4.sub(x, lo), f32x4.splat(<f32>1 / step));
  const level = f32x4.add(f32x4.mul(f32x4.nearest(steps), f32x4.splat(step)), lo);
  return f32x4.pmin(f32x4.pmax(level, lo), hi);
}

function nearestEntry(x: v128, book: usize): v128 {
  let level = v128.load32_splat(book);
  for (let i = 0; i < 15; i++) {
    const above = f32x4.gt(x, v128.load32_splat(book + ((16 + i) << 2)));
    level = v128.bitselect(v128.load32_splat(book + ((i + 1) << 2)), level, above);
  }
  return level;
}

/** 1/x, and 0 where x is 0. */
@inline
export function inverse(x: v128): v128 {
  return v128.andnot(f32x4.div(f32x4.splat(1), x), f32x4.eq(x, f32x4.splat(0)));
}

/** Codes of a panel's levels as bytes, [rows][K] in the columns' own order. */
export function codesOut(
  block: usize, levels: usize, zeros: usize, groupOf: usize, groups: i32,
  rows: i32, K: i32, order: usize, codes: usize,
): void {
  const book = address(block, ROUND_BOOK);
  const middle = <f32>((word(block, ROUND_TOP) + 1) >> 1);
  const symmetric = word(block, ROUND_SYMMETRIC);
  const perStep = <f32>1 / <f32>word(block, ROUND_STEP);
  for (let first = 0; first < rows; first += 8) {
    const count = min(8, rows - first);
    for (let j = 0; j < K; j++) {
      const column = order ? load<i32>(order + (j << 2)) : j;
      const zero = zeros + (load<i32>(groupOf + (j << 2)) << 5);
      for (let r = 0; r < count; r++) {
        const level = load<f32>(levels + (r << 2));
        let code: i32 = 0;
        if (book) {
          for (let i = 0; i < 15; i++) code += i32(level > load<f32>(book + ((16 + i) << 2)));
        } else {
          const zeroPoint = symmetric ? middle : load<f32>(zero + (r << 2));
          code = <i32>nearest<f32>((level + zeroPoint) * perStep);
        }
        store<u8>(codes + <usize>(first + r) * K + column, <u8>code);
      }
      levels += 32;
    }
    zeros += groups << 5;
  }
}
