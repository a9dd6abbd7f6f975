/**
 * CONV: NCHW convolution in f32. Sixteen output positions at a time become a panel [K][16] of the im2col
 * matrix (K = channels of a group * KH * KW), which all output channels of the group then multiply.
 * Depthwise convolutions (one channel in a group) read their input directly.
 */
import {
  CONV_ACTIVATION,
  CONV_ALPHA,
  CONV_BATCH,
  CONV_BETA,
  CONV_BIAS,
  CONV_CIN,
  CONV_COUT,
  CONV_DILATIONH,
  CONV_DILATIONW,
  CONV_GROUPS,
  CONV_HIN,
  CONV_HOUT,
  CONV_KH,
  CONV_KW,
  CONV_PADLEFT,
  CONV_PADTOP,
  CONV_PANEL,
  CONV_PANELBYTES,
  CONV_RESIDUAL,
  CONV_RESIDUALFIRST,
  CONV_STRIDEH,
  CONV_STRIDEW,
  CONV_W,
  CONV_WIN,
  CONV_WOUT,
  CONV_X,
  CONV_Y,
} from './abi.ts';
import { address, float, fused, shareStart, word } from './core.ts';
import { loadUpTo, storeUpTo } from './epilogue.ts';
import { tile1x8, tile4x8 } from './gemm.ts';
import { activate } from './math.ts';

export function conv(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const groups = word(step, CONV_GROUPS);
  if (groups == word(step, CONV_CIN) && groups == word(step, CONV_COUT)) {
    depthwise(step, thread, threads);
    return;
  }
  const positions = word(step, CONV_HOUT) * word(step, CONV_WOUT);
  const panels = (positions + 15) >> 4;
  const items = word(step, CONV_BATCH) * groups * panels;
  const panel = address(step, CONV_PANEL) + thread * word(step, CONV_PANELBYTES);
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const first = (i % panels) << 4;
    const group = (i / panels) % groups;
    const batch = i / panels / groups;
    fillPanel(step, panel, batch, group, first, positions);
    multiplyPanel(step, panel, scratch, batch, group, first, positions);
  }
}

/** Input values under every tap for 16 output positions from `first`; zeros outside. */
function fillPanel(
  step: usize,
  panel: usize,
  batch: i32,
  group: i32,
  first: i32,
  positions: i32,
): void {
  const height = word(step, CONV_HIN);
  const width = word(step, CONV_WIN);
  const channels = word(step, CONV_CIN) / word(step, CONV_GROUPS);
  const columns = word(step, CONV_WOUT);
  const kh = word(step, CONV_KH);
  const kw = word(step, CONV_KW);
  const strideW = word(step, CONV_STRIDEW);
  const dilationH = word(step, CONV_DILATIONH);
  const dilationW = word(step, CONV_DILATIONW);
  const plane: usize = (height * width) << 2;
  const x =
    address(step, CONV_X) + <usize>(batch * word(step, CONV_CIN) + group * channels) * plane;
  const row0 = first / columns;
  const together = first + 16 <= positions && (first + 15) / columns == row0 && strideW == 1;
  for (let ky = 0; ky < kh; ky++) {
    for (let kx = 0; kx < kw; kx++) {
      const tap = panel + ((ky * kw + kx) << 6);
      const dy = ky * dilationH - word(step, CONV_PADTOP);
      const dx = kx * dilationW - word(step, CONV_PADLEFT);
      const y0 = row0 * word(step, CONV_STRIDEH) + dy;
      const x0 = first - row0 * columns + dx;
      if (together && y0 >= 0 && y0 < height && x0 >= 0 && x0 + 16 <= width) {
        // all sixteen neighbours in one input row
        let from = x + ((y0 * width + x0) << 2);
        let to = tap;
        for (let c = 0; c < channels; c++) {
          v128.store(to, v128.load(from, 0), 0);
          v128.store(to, v128.load(from, 16), 16);
          v128.store(to, v128.load(from, 32), 32);
          v128.store(to, v128.load(from, 48), 48);
          from += plane;
          to += (kh * kw) << 6;
        }
        continue;
      }
      for (let j = 0; j < 16; j++) {
        const position = first + j;
        const row = position / columns;
        const iy = row * word(step, CONV_STRIDEH) + dy;
        const ix = (position - row * columns) * strideW + dx;
        const inside = position < positions && iy >= 0 && iy < height && ix >= 0 && ix < width;
        let from = x + ((iy * width + ix) << 2);
        let to = tap + (j << 2);
        for (let c = 0; c < channels; c++) {
          store<f32>(to, inside ? load<f32>(from) : 0);
          from += plane;
          to += (kh * kw) << 6;
        }
      }
    }
  }
}

function multiplyPanel(
  step: usize,
  panel: usize,
  scratch: usize,
  batch: i32,
  group: i32,
  first: i32,
  positions: i32,
): void {
  const groups = word(step, CONV_GROUPS);
  const channels = word(step, CONV_COUT) / groups;
  const K = (word(step, CONV_CIN) / groups) * word(step, CONV_KH) * word(step, CONV_KW);
  const bytes = K << 2;
  for (let half = 0; half < 16 && first + half < positions; half += 8) {
    const count = min(8, positions - first - half);
    const b = panel + (half << 2);
    let o = group * channels;
    const end = o + channels;
    while (o < end) {
      const rows = end - o >= 4 ? 4 : 1;
      const w = address(step, CONV_W) + o * bytes;
      if (rows == 4) tile4x8(w, bytes, b, 64, K, scratch);
      else tile1x8(w, b, 64, K, scratch);
      for (let r = 0; r < rows; r++) {
        const channel = batch * word(step, CONV_COUT) + o + r;
        const at = channel * positions + first + half;
        const tile = scratch + (r << 5);
        finish(step, v128.load(tile, 0), o + r, at, count);
        if (count > 4) finish(step, v128.load(tile, 16), o + r, at + 4, count - 4);
      }
      o += rows;
    }
  }
}

/** Bias, residual, activation of up to four results of one channel, element `at` of the output. */
function finish(step: usize, t: v128, channel: i32, at: i32, count: i32): void {
  const bias = address(step, CONV_BIAS);
  const residual = address(step, CONV_RESIDUAL);
  const kind = word(step, CONV_ACTIVATION);
  if (bias) t = f32x4.add(t, v128.load32_splat(bias + (channel << 2)));
  let rest = f32x4.splat(0);
  if (residual) rest = loadUpTo(residual + (at << 2), count);
  const before = word(step, CONV_RESIDUALFIRST) != 0;
  if (residual && before) t = f32x4.add(t, rest);
  if (kind) {
    const alpha = f32x4.splat(float(step, CONV_ALPHA));
    t = activate(kind, t, alpha, f32x4.splat(float(step, CONV_BETA)));
  }
  if (residual && !before) t = f32x4.add(t, rest);
  storeUpTo(address(step, CONV_Y) + (at << 2), t, count);
}

function depthwise(step: usize, thread: i32, threads: i32): void {
  const rows = word(step, CONV_HOUT);
  const channels = word(step, CONV_COUT);
  const items = word(step, CONV_BATCH) * channels * rows;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const plane = i / rows;
    depthwiseRow(step, plane, plane % channels, i - plane * rows);
  }
}

/** One output row of one channel; `plane` counts batches and channels. */
function depthwiseRow(step: usize, plane: i32, channel: i32, row: i32): void {
  const height = word(step, CONV_HIN);
  const width = word(step, CONV_WIN);
  const columns = word(step, CONV_WOUT);
  const kh = word(step, CONV_KH);
  const kw = word(step, CONV_KW);
  const strideW = word(step, CONV_STRIDEW);
  const dilationW = word(step, CONV_DILATIONW);
  const left = word(step, CONV_PADLEFT);
  const top = row * word(step, CONV_STRIDEH) - word(step, CONV_PADTOP);
  const x = address(step, CONV_X) + ((plane * height * width) << 2);
  const w = address(step, CONV_W) + ((channel * kh * kw) << 2);
  for (let column = 0; column < columns; column += 4) {
    const count = min(4, columns - column);
    const x0 = column * strideW - left;
    const fits = count == 4 && x0 >= 0 && x0 + 3 * strideW + (kw - 1) * dilationW < width;
    let sum = f32x4.splat(0);
    for (let ky = 0; ky < kh; ky++) {
      const iy = top + ky * word(step, CONV_DILATIONH);
      if (iy < 0 || iy >= height) continue;
      const line = x + ((iy * width) << 2);
      for (let kx = 0; kx < kw; kx++) {
        const weight = v128.load32_splat(w + ((ky * kw + kx) << 2));
        const ix = x0 + kx * dilationW;
        let values: v128;
        if (fits && strideW == 1) values = v128.load(line + (ix << 2));
        else values = strided(line, ix, strideW, width, count);
        sum = fused(values, weight, sum);
      }
    }
    finish(step, sum, channel, (plane * rowsOf(step) + row) * columns + column, count);
  }
}

@inline
function rowsOf(step: usize): i32 {
  return word(step, CONV_HOUT);
}

/** Values at ix, ix + stride, ... of a line; zeros outside 0..width-1. */
function strided(line: usize, ix: i32, stride: i32, width: i32, count: i32): v128 {
  const a = valueAt(line, ix, width);
  const b = count > 1 ? valueAt(line, ix + stride, width) : 0;
  const c = count > 2 ? valueAt(line, ix + 2 * stride, width) : 0;
  const d = count > 3 ? valueAt(line, ix + 3 * stride, width) : 0;
  let v = f32x4.splat(a);
  v = f32x4.replace_lane(v, 1, b);
  v = f32x4.replace_lane(v, 2, c);
  return f32x4.replace_lane(v, 3, d);
}

@inline
function valueAt(line: usize, ix: i32, width: i32): f32 {
  return ix >= 0 && ix < width ? load<f32>(line + (ix << 2)) : 0;
}
