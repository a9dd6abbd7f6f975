/**
 * DENSE: f32 activations x f32 or f16 weights, rows interleaved by 16 ([tile][k][16]), with LINEAR's epilogue.
 *
 * Each result is one sum over k in order; relaxed binaries round multiply and add once (core.ts `fused`).
 */
import {
  DENSE_ACTIVATION,
  DENSE_ALPHA,
  DENSE_BETA,
  DENSE_BIAS,
  DENSE_BIAS2,
  DENSE_FORMAT,
  DENSE_K,
  DENSE_N,
  DENSE_RESIDUAL,
  DENSE_RESIDUALROW,
  DENSE_ROWS,
  DENSE_W,
  DENSE_W2,
  DENSE_X,
  DENSE_XROW,
  DENSE_Y,
  DENSE_YROW,
  F16,
} from './abi.ts';
import {
  HALF_FACTOR,
  HALF_MASK,
  address,
  constant,
  float,
  fused,
  halves,
  shareStart,
  word,
} from './core.ts';
import { finishTile } from './epilogue.ts';

export function dense(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const K = word(step, DENSE_K);
  const rows = word(step, DENSE_ROWS);
  const columns = word(step, DENSE_N);
  const half = word(step, DENSE_FORMAT) == F16;
  const tileBytes = K * (half ? 32 : 64);
  const xRow = word(step, DENSE_XROW);
  const yRow = word(step, DENSE_YROW);
  const residualRow = word(step, DENSE_RESIDUALROW);
  const w = address(step, DENSE_W);
  const w2 = address(step, DENSE_W2);
  const tile2 = w2 ? scratch + 256 : 0;
  const tiles = (columns + 15) >> 4;
  const end = shareStart(tiles, thread + 1, threads);
  for (let tile = shareStart(tiles, thread, threads); tile < end; tile++) {
    const at = tile * tileBytes;
    let x = address(step, DENSE_X);
    let y = address(step, DENSE_Y);
    let residual = address(step, DENSE_RESIDUAL);
    for (let row = 0; row < rows; ) {
      const tokens = rows - row >= 4 ? 4 : 1;
      multiply(half, tokens, w + at, x, xRow, scratch, K);
      if (w2) multiply(half, tokens, w2 + at, x, xRow, tile2, K);
      finishTile(
        scratch,
        tile2,
        tokens,
        16,
        tile << 4,
        columns,
        y,
        yRow,
        address(step, DENSE_BIAS),
        address(step, DENSE_BIAS2),
        word(step, DENSE_ACTIVATION),
        float(step, DENSE_ALPHA),
        float(step, DENSE_BETA),
        residual,
        residualRow,
      );
      row += tokens;
      x += tokens * xRow;
      y += tokens * yRow;
      if (residual) residual += tokens * residualRow;
    }
  }
}

function multiply(
  half: bool,
  tokens: i32,
  w: usize,
  x: usize,
  xRow: i32,
  out: usize,
  K: i32,
): void {
  if (tokens == 1) {
    if (half) tile1(true, w, x, out, K);
    else tile1(false, w, x, out, K);
    return;
  }
  if (half) {
    tile4(true, w, x, xRow, out, K);
    tile4(true, w + 16, x, xRow, out + 32, K);
  } else {
    tile4(false, w, x, xRow, out, K);
    tile4(false, w + 32, x, xRow, out + 32, K);
  }
}

/** Four rows' weights, `quad` quads of rows on. */
@inline
function weights(half: bool, w: usize, quad: i32, mask: v128, factor: v128): v128 {
  return half ? halves(w + 8 * quad, mask, factor) : v128.load(w + 16 * quad);
}

@inline
function tile1(half: bool, w: usize, x: usize, out: usize, K: i32): void {
  const mask = constant(HALF_MASK);
  const factor = constant(HALF_FACTOR);
  let f0 = f32x4.splat(0), f1 = f0, f2 = f0, f3 = f0;
  for (let k = 0; k < K; k++) {
    const t = v128.load32_splat(x);
    f0 = fused(t, weights(half, w, 0, mask, factor), f0);
    f1 = fused(t, weights(half, w, 1, mask, factor), f1);
    f2 = fused(t, weights(half, w, 2, mask, factor), f2);
    f3 = fused(t, weights(half, w, 3, mask, factor), f3);
    w += half ? 32 : 64;
    x += 4;
  }
  v128.store(out, f0, 0);
  v128.store(out, f1, 16);
  v128.store(out, f2, 32);
  v128.store(out, f3, 48);
}

/** 4 tokens x 8 rows. */
@inline
function tile4(half: bool, w: usize, x: usize, xRow: i32, out: usize, K: i32): void {
  const mask = constant(HALF_MASK);
  const factor = constant(HALF_FACTOR);
  let f00 = f32x4.splat(0), f01 = f00, f10 = f00, f11 = f00;
  let f20 = f00, f21 = f00, f30 = f00, f31 = f00;
  const row2 = xRow * 2;
  const row3 = xRow * 3;
  for (let k = 0; k < K; k++) {
    const v = weights(half, w, 0, mask, factor);
    const u = weights(half, w, 1, mask, factor);
    let t = v128.load32_splat(x);
    f00 = fused(t, v, f00);
    f01 = fused(t, u, f01);
    t = v128.load32_splat(x + xRow);
    f10 = fused(t, v, f10);
    f11 = fused(t, u, f11);
    t = v128.load32_splat(x + row2);
    f20 = fused(t, v, f20);
    f21 = fused(t, u, f21);
    t = v128.load32_splat(x + row3);
    f30 = fused(t, v, f30);
    f31 = fused(t, u, f31);
    w += half ? 32 : 64;
    x += 4;
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
