/**
 * f32 matrix products whose operands are both rows in memory: MATMUL, and the inner tile of CONV.
 * Sums over k run in order; relaxed binaries round multiply and add once.
 */
import {
  MATMUL_BATCH,
  MATMUL_HEADS,
  MATMUL_K,
  MATMUL_M,
  MATMUL_N,
  MATMUL_SCALE,
  MATMUL_TRANSPOSED,
  MATMUL_W,
  MATMUL_WBATCH,
  MATMUL_WHEAD,
  MATMUL_WROW,
  MATMUL_X,
  MATMUL_XBATCH,
  MATMUL_XHEAD,
  MATMUL_XROW,
  MATMUL_Y,
  MATMUL_YBATCH,
  MATMUL_YHEAD,
  MATMUL_YROW,
} from './abi.ts';
import { sumRows } from './attention.ts';
import { address, float, fused, shareStart, word } from './core.ts';
import { storeUpTo } from './epilogue.ts';

/** out [4][8] = a [4, K] (rows aRow bytes apart) * b [K, 8] (rows bRow bytes apart). */
export function tile4x8(a: usize, aRow: i32, b: usize, bRow: i32, K: i32, out: usize): void {
  let f00 = f32x4.splat(0), f01 = f00, f10 = f00, f11 = f00;
  let f20 = f00, f21 = f00, f30 = f00, f31 = f00;
  const row2 = aRow * 2;
  const row3 = aRow * 3;
  for (let k = 0; k < K; k++) {
    const v = v128.load(b, 0);
    const u = v128.load(b, 16);
    let t = v128.load32_splat(a);
    f00 = fused(t, v, f00);
    f01 = fused(t, u, f01);
    t = v128.load32_splat(a + aRow);
    f10 = fused(t, v, f10);
    f11 = fused(t, u, f11);
    t = v128.load32_splat(a + row2);
    f20 = fused(t, v, f20);
    f21 = fused(t, u, f21);
    t = v128.load32_splat(a + row3);
    f30 = fused(t, v, f30);
    f31 = fused(t, u, f31);
    a += 4;
    b += bRow;
  }
  v128.store(out, f00, 0);
  v128.store(out, f01, 16);
  v128.store(out, f10, 32);
  v128.store(out, f11, 48);
  v128.store(out, f20, 64);
  v128.store(out, f21, 80);
  v128.store(out, f30, 96);
  v128.store(out, f31, 112);
}

/** out [8] = a [K] * b [K, 8]. */
export function tile1x8(a: usize, b: usize, bRow: i32, K: i32, out: usize): void {
  let f0 = f32x4.splat(0);
  let f1 = f0;
  for (let k = 0; k < K; k++) {
    const t = v128.load32_splat(a);
    f0 = fused(t, v128.load(b, 0), f0);
    f1 = fused(t, v128.load(b, 16), f1);
    a += 4;
    b += bRow;
  }
  v128.store(out, f0, 0);
  v128.store(out, f1, 16);
}

/** Rows of one item of MATMUL's work. */
const ROWS = 4;

export function matmul(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const heads = word(step, MATMUL_HEADS);
  const M = word(step, MATMUL_M);
  const K = word(step, MATMUL_K);
  const N = word(step, MATMUL_N);
  const xRow = word(step, MATMUL_XROW);
  const yRow = word(step, MATMUL_YROW);
  const wRow = word(step, MATMUL_WROW);
  const scale = f32x4.splat(float(step, MATMUL_SCALE));
  const bands = (M + ROWS - 1) / ROWS;
  const items = word(step, MATMUL_BATCH) * heads * bands;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const band = i % bands;
    const head = (i / bands) % heads;
    const batch = i / bands / heads;
    const row = band * ROWS;
    const x =
      address(step, MATMUL_X) + batch * word(step, MATMUL_XBATCH) +
      head * word(step, MATMUL_XHEAD) + row * xRow;
    const y =
      address(step, MATMUL_Y) + batch * word(step, MATMUL_YBATCH) +
      head * word(step, MATMUL_YHEAD) + row * yRow;
    const w =
      address(step, MATMUL_W) + batch * word(step, MATMUL_WBATCH) + head * word(step, MATMUL_WHEAD);
    const rows = min(ROWS, M - row);
    if (word(step, MATMUL_TRANSPOSED)) {
      for (let r = 0; r < rows; r++) {
        transposedRow(x + r * xRow, w, wRow, y + r * yRow, K, N, scale);
      }
    } else {
      bandTimes(x, xRow, w, wRow, y, yRow, rows, K, N, scale, scratch);
    }
  }
}

function bandTimes(
  x: usize,
  xRow: i32,
  w: usize,
  wRow: i32,
  y: usize,
  yRow: i32,
  rows: i32,
  K: i32,
  N: i32,
  scale: v128,
  out: usize,
): void {
  let n = 0;
  for (; n + 8 <= N; n += 8) {
    const at: usize = n << 2;
    if (rows == 4) tile4x8(x, xRow, w + at, wRow, K, out);
    else for (let r = 0; r < rows; r++) tile1x8(x + r * xRow, w + at, wRow, K, out + (r << 5));
    for (let r = 0; r < rows; r++) {
      const tile = out + (r << 5);
      v128.store(y + r * yRow + at, f32x4.mul(v128.load(tile, 0), scale), 0);
      v128.store(y + r * yRow + at, f32x4.mul(v128.load(tile, 16), scale), 16);
    }
  }
  for (; n < N; n++) {
    for (let r = 0; r < rows; r++) {
      let f = f32x4.splat(0);
      for (let k = 0; k < K; k++) {
        const t = v128.load32_splat(x + r * xRow + (k << 2));
        f = fused(t, v128.load32_splat(w + k * wRow + (n << 2)), f);
      }
      storeUpTo(y + r * yRow + (n << 2), f32x4.mul(f, scale), 1);
    }
  }
}

/** y[n] = x . w[n] for rows of w, four at a time. */
export function transposedRow(
  x: usize,
  w: usize,
  wRow: i32,
  y: usize,
  K: i32,
  N: i32,
  scale: v128,
): void {
  for (let n = 0; n < N; n += 4) {
    const w0 = w + n * wRow;
    const w1 = w + min(n + 1, N - 1) * wRow;
    const w2 = w + min(n + 2, N - 1) * wRow;
    const w3 = w + min(n + 3, N - 1) * wRow;
    let a = f32x4.splat(0), b = a, c = a, d = a;
    let k = 0;
    for (; k + 4 <= K; k += 4) {
      const at: usize = k << 2;
      const t = v128.load(x + at);
      a = fused(t, v128.load(w0 + at), a);
      b = fused(t, v128.load(w1 + at), b);
      c = fused(t, v128.load(w2 + at), c);
      d = fused(t, v128.load(w3 + at), d);
    }
    let sums = sumRows(a, b, c, d);
    for (; k < K; k++) {
      const at: usize = k << 2;
      const column = f32x4(load<f32>(w0 + at), load<f32>(w1 + at), load<f32>(w2 + at), load<f32>(w3 + at));
      sums = fused(v128.load32_splat(x + at), column, sums);
    }
    storeUpTo(y + (n << 2), f32x4.mul(sums, scale), N - n);
  }
}
