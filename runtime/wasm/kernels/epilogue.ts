/**
 * The end of LINEAR and DENSE: a tile of f32 [tokens][width] in scratch -> bias, activation, gate, residual ->
 * the result. y = act(t + bias) (* (t2 + bias2)) (+ residual).
 */
import { ACT_SILU } from './abi.ts';
import { activate, silu } from './math.ts';

/**
 * `tile` and `tile2` (0: not gated) are [tokens][width] f32; `n` is the first column, `y` and `residual`
 * (or 0) point at the first token's row, `columns` is N.
 */
export function finishTile(
  tile: usize,
  tile2: usize,
  tokens: i32,
  width: i32,
  n: i32,
  columns: i32,
  y: usize,
  yRow: i32,
  bias: usize,
  bias2: usize,
  activation: i32,
  alpha: f32,
  beta: f32,
  residual: usize,
  residualRow: i32,
): void {
  const a = f32x4.splat(alpha);
  const b = f32x4.splat(beta);
  for (let token = 0; token < tokens; token++) {
    for (let j = 0; j < width && n + j < columns; j += 4) {
      const at: usize = (n + j) << 2;
      const left = columns - n - j;
      let x = v128.load(tile + (j << 2));
      if (bias) x = f32x4.add(x, loadUpTo(bias + at, left));
      // what decoders gate with: written out, it takes half the time
      if (activation == ACT_SILU) x = silu(x);
      else if (activation) x = activate(activation, x, a, b);
      if (tile2) {
        let up = v128.load(tile2 + (j << 2));
        if (bias2) up = f32x4.add(up, loadUpTo(bias2 + at, left));
        x = f32x4.mul(x, up);
      }
      if (residual) x = f32x4.add(x, loadUpTo(residual + at, left));
      storeUpTo(y + at, x, left);
    }
    tile += width << 2;
    if (tile2) tile2 += width << 2;
    y += yRow;
    if (residual) residual += residualRow;
  }
}

/** Up to four f32; the other lanes are 0. */
@inline
export function loadUpTo(at: usize, count: i32): v128 {
  return count >= 4 ? v128.load(at) : loadSome(at, count);
}

/** Stores up to four lanes. */
@inline
export function storeUpTo(at: usize, x: v128, count: i32): void {
  if (count >= 4) v128.store(at, x);
  else storeSome(at, x, count);
}

function loadSome(at: usize, count: i32): v128 {
  let x = v128.load32_zero(at);
  if (count > 1) x = v128.load32_lane(at, x, 1, 4);
  if (count > 2) x = v128.load32_lane(at, x, 2, 8);
  return x;
}

function storeSome(at: usize, x: v128, count: i32): void {
  v128.store32_lane(at, x, 0);
  if (count > 1) v128.store32_lane(at, x, 1, 4);
  if (count > 2) v128.store32_lane(at, x, 2, 8);
}
