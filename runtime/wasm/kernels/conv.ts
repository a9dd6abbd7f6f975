/**
 * CONV: NCHW convolution in f32, in three forms.
 *
 *   one position   a 1x1 convolution of a 1x1 image is a product of a matrix and a vector
 *   depthwise      conv-depthwise.ts
 *   all others     up to 64 output positions at a time become a panel [tile of 8][K][8] of the im2col matrix
 *                  (K = channels of a group * KH * KW). Four rows of filters, which the first cache holds,
 *                  meet all tiles of the panel, which the second one holds, so filters are read once a panel.
 */
import {
  ACT_RELU,
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
import { depthwise } from './conv-depthwise.ts';
import { address, float, shareStart, word } from './core.ts';
import { loadUpTo, storeUpTo } from './epilogue.ts';
import { tile1x8, tile4x8, transposedRow } from './gemm.ts';
import { activate } from './math.ts';

/** Positions of a tile. */
const TILE = 8;
/** Bytes of scratch that one tile's results take. */
const RESULTS: usize = 128;

export function conv(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const groups = word(step, CONV_GROUPS);
  if (groups == word(step, CONV_CIN) && groups == word(step, CONV_COUT)) {
    depthwise(step, thread, threads);
    return;
  }
  const positions = word(step, CONV_HOUT) * word(step, CONV_WOUT);
  const K = (word(step, CONV_CIN) / groups) * word(step, CONV_KH) * word(step, CONV_KW);
  if (positions == 1 && K == word(step, CONV_CIN) && word(step, CONV_PADTOP) == 0) {
    if (word(step, CONV_HIN) * word(step, CONV_WIN) == 1) {
      onePosition(step, K, thread, threads);
      return;
    }
  }
  const bytes = word(step, CONV_PANELBYTES);
  const most = bytes / (K << 2);
  const panels = (positions + most - 1) / most;
  const items = word(step, CONV_BATCH) * groups * panels;
  const panel = address(step, CONV_PANEL) + thread * bytes;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const first = (i % panels) * most;
    const group = (i / panels) % groups;
    const batch = i / panels / groups;
    const count = min(most, positions - first);
    fillPanel(step, panel, scratch + RESULTS, batch, group, first, count, K);
    multiplyPanel(step, panel, scratch, batch, group, first, count, K);
  }
}

/** Filters times the one column there is; threads share output channels, four at a time. */
function onePosition(step: usize, K: i32, thread: i32, threads: i32): void {
  const channels = word(step, CONV_COUT);
  const quads = (channels + 3) >> 2;
  const from = shareStart(quads, thread, threads) << 2;
  const to = min(channels, shareStart(quads, thread + 1, threads) << 2);
  if (from >= to) return;
  const bias = address(step, CONV_BIAS);
  const batches = word(step, CONV_BATCH);
  for (let batch = 0; batch < batches; batch++) {
    const x = address(step, CONV_X) + ((batch * K) << 2);
    const y = address(step, CONV_Y) + ((batch * channels + from) << 2);
    const w = address(step, CONV_W) + ((from * K) << 2);
    transposedRow(x, w, K << 2, y, K, to - from, f32x4.splat(1));
    for (let o = from; o < to; o += 4) {
      const left = to - o;
      const b = bias ? loadUpTo(bias + (o << 2), left) : f32x4.splat(0);
      const at = batch * channels + o;
      finish(step, loadUpTo(address(step, CONV_Y) + (at << 2), left), b, at, left);
    }
  }
}

/**
 * Input values under every tap for `count` output positions from `first`; zeros outside. `table` is
 * working memory: the input row and column of each position, and whether a tile lies in one row.
 */
function fillPanel(
  step: usize,
  panel: usize,
  table: usize,
  batch: i32,
  group: i32,
  first: i32,
  count: i32,
  K: i32,
): void {
  const height = word(step, CONV_HIN);
  const width = word(step, CONV_WIN);
  const channels = word(step, CONV_CIN) / word(step, CONV_GROUPS);
  const columns = word(step, CONV_WOUT);
  const kh = word(step, CONV_KH);
  const kw = word(step, CONV_KW);
  const strideH = word(step, CONV_STRIDEH);
  const strideW = word(step, CONV_STRIDEW);
  const dilationH = word(step, CONV_DILATIONH);
  const dilationW = word(step, CONV_DILATIONW);
  const plane: usize = (height * width) << 2;
  const tiles = (count + TILE - 1) / TILE;
  const tileBytes: usize = K << 5;
  const padTop = word(step, CONV_PADTOP);
  const padLeft = word(step, CONV_PADLEFT);
  let x =
    address(step, CONV_X) + <usize>(batch * word(step, CONV_CIN) + group * channels) * plane;
  // a plain 1x1 convolution reads every position where it is
  if (kh * kw == 1 && strideH * strideW == 1 && padTop == 0 && padLeft == 0 && columns == width) {
    x += first << 2;
    for (let c = 0; c < channels; c++) {
      let to = panel + (c << 5);
      let j = 0;
      for (; j + TILE <= count; j += TILE) {
        v128.store(to, v128.load(x + (j << 2), 0), 0);
        v128.store(to, v128.load(x + (j << 2), 16), 16);
        to += tileBytes;
      }
      for (let i = 0; j + i < count; i++) store<f32>(to + (i << 2), load<f32>(x + ((j + i) << 2)));
      x += plane;
    }
    return;
  }
  const together = table + 1024;
  let row = first / columns;
  let column = first - row * columns;
  for (let j = 0; j < tiles * TILE; j++) {
    if ((j & 7) == 0) {
      const whole = strideW <= 2 && column + TILE <= columns && j + TILE <= count;
      store<i32>(together + (j >> 1), whole ? strideW : 0);
    }
    // behind the last position there is nothing to read
    store<i32>(table + (j << 3), j < count ? row * strideH - padTop : -(1 << 28));
    store<i32>(table + (j << 3), column * strideW - padLeft, 4);
    if (++column == columns) {
      column = 0;
      row++;
    }
  }
  let k = 0;
  for (let c = 0; c < channels; c++) {
    for (let ky = 0; ky < kh; ky++) {
      for (let kx = 0; kx < kw; kx++) {
        const dy = ky * dilationH;
        const dx = kx * dilationW;
        let to = panel + (k << 5);
        for (let t = 0; t < tiles; t++) {
          const entry = table + (t << 6);
          const iy = load<i32>(entry) + dy;
          const ix = load<i32>(entry, 4) + dx;
          // columns from one to the next in a tile of one row; 0 when it goes over several
          const apart = load<i32>(together + (t << 2));
          const from = x + ((iy * width + ix) << 2);
          const inside = <u32>iy < <u32>height && ix >= 0 && ix + apart * TILE <= width;
          if (inside && apart == 1) {
            v128.store(to, v128.load(from, 0), 0);
            v128.store(to, v128.load(from, 16), 16);
          } else if (inside && apart == 2) {
            v128.store(to, everyOther(from), 0);
            v128.store(to, everyOther(from + 32), 16);
          } else {
            fillTile(entry, to, x, dy, dx, height, width);
          }
          to += tileBytes;
        }
        k++;
      }
    }
    x += plane;
  }
}

/** Four values, one of two. */
@inline
function everyOther(at: usize): v128 {
  return i32x4.shuffle(v128.load(at, 0), v128.load(at, 16), 0, 2, 4, 6);
}

/** Eight values of a tile one by one. */
function fillTile(
  entry: usize,
  to: usize,
  x: usize,
  dy: i32,
  dx: i32,
  height: i32,
  width: i32,
): void {
  for (let j = 0; j < TILE; j++) {
    const iy = load<i32>(entry + (j << 3)) + dy;
    const ix = load<i32>(entry + (j << 3), 4) + dx;
    const inside = <u32>iy < <u32>height && <u32>ix < <u32>width;
    store<f32>(to + (j << 2), inside ? load<f32>(x + ((iy * width + ix) << 2)) : 0);
  }
}

function multiplyPanel(
  step: usize,
  panel: usize,
  scratch: usize,
  batch: i32,
  group: i32,
  first: i32,
  count: i32,
  K: i32,
): void {
  const channels = word(step, CONV_COUT) / word(step, CONV_GROUPS);
  const positions = word(step, CONV_HOUT) * word(step, CONV_WOUT);
  const bytes = K << 2;
  const bias = address(step, CONV_BIAS);
  let o = group * channels;
  const end = o + channels;
  while (o < end) {
    const rows = end - o >= 4 ? 4 : 1;
    const w = address(step, CONV_W) + o * bytes;
    let b = panel;
    for (let j = 0; j < count; j += TILE) {
      if (rows == 4) tile4x8(w, bytes, b, 32, K, scratch);
      else tile1x8(w, b, 32, K, scratch);
      for (let r = 0; r < rows; r++) {
        const at = (batch * word(step, CONV_COUT) + o + r) * positions + first + j;
        const tile = scratch + (r << 5);
        const start = bias ? v128.load32_splat(bias + ((o + r) << 2)) : f32x4.splat(0);
        finish(step, v128.load(tile, 0), start, at, count - j);
        if (count - j > 4) finish(step, v128.load(tile, 16), start, at + 4, count - j - 4);
      }
      b += K << 5;
    }
    o += rows;
  }
}

/** Bias, residual, activation of up to four results, from element `at` of the output on. */
@inline
export function finish(step: usize, t: v128, bias: v128, at: i32, count: i32): void {
  const residual = address(step, CONV_RESIDUAL);
  const kind = word(step, CONV_ACTIVATION);
  t = f32x4.add(t, bias);
  if (residual | kind) t = behind(step, t, residual, kind, at, count);
  storeUpTo(address(step, CONV_Y) + (at << 2), t, count);
}

/** What seldom stands behind a convolution, and what costs a call. */
function behind(step: usize, t: v128, residual: usize, kind: i32, at: i32, count: i32): v128 {
  let rest = f32x4.splat(0);
  if (residual) rest = loadUpTo(residual + (at << 2), count);
  const before = word(step, CONV_RESIDUALFIRST) != 0;
  if (residual && before) t = f32x4.add(t, rest);
  if (kind == ACT_RELU) t = f32x4.max(t, f32x4.splat(0));
  else if (kind) {
    const alpha = f32x4.splat(float(step, CONV_ALPHA));
    t = activate(kind, t, alpha, f32x4.splat(float(step, CONV_BETA)));
  }
  return residual && !before ? f32x4.add(t, rest) : t;
}
