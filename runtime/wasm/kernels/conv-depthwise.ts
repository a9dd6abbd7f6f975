/**
 * Depthwise convolutions of CONV: one channel in, one out. A band of output rows of one plane at a time: the
 * input rows under it are copied into the panel with their padding, columns sorted by their remainder of the
 * stride, so that four neighbouring results read four neighbouring values under every tap.
 *
 *   panel row: STRIDEW runs of `run` columns; column c of the padded input is at run c % STRIDEW, c / STRIDEW
 */
import {
  CONV_BATCH,
  CONV_BIAS,
  CONV_COUT,
  CONV_DILATIONH,
  CONV_DILATIONW,
  CONV_HIN,
  CONV_HOUT,
  CONV_KH,
  CONV_KW,
  CONV_PADLEFT,
  CONV_PADTOP,
  CONV_PANEL,
  CONV_PANELBYTES,
  CONV_STRIDEH,
  CONV_STRIDEW,
  CONV_W,
  CONV_WIN,
  CONV_WOUT,
  CONV_X,
  DEPTHWISE_BAND,
} from './abi.ts';
import { finish } from './conv.ts';
import { address, fused, shareStart, word } from './core.ts';

export function depthwise(step: usize, thread: i32, threads: i32): void {
  const rows = word(step, CONV_HOUT);
  const bands = (rows + DEPTHWISE_BAND - 1) / DEPTHWISE_BAND;
  const items = word(step, CONV_BATCH) * word(step, CONV_COUT) * bands;
  const panel = address(step, CONV_PANEL) + thread * word(step, CONV_PANELBYTES);
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const plane = i / bands;
    const first = (i - plane * bands) * DEPTHWISE_BAND;
    band(step, panel, plane, first, min(DEPTHWISE_BAND, rows - first));
  }
}

/** Columns of a run: results, what the last tap reads beyond them, and whole vectors. */
@inline
function runOf(step: usize): i32 {
  const beyond = ((word(step, CONV_KW) - 1) * word(step, CONV_DILATIONW)) / word(step, CONV_STRIDEW);
  return ((word(step, CONV_WOUT) + 3) & ~3) + ((beyond + 4) & ~3);
}

/** `count` output rows of a plane from `first` on; planes count batches and channels. */
function band(step: usize, panel: usize, plane: i32, first: i32, count: i32): void {
  const height = word(step, CONV_HIN);
  const columns = word(step, CONV_WOUT);
  const kh = word(step, CONV_KH);
  const kw = word(step, CONV_KW);
  const strideH = word(step, CONV_STRIDEH);
  const dilationH = word(step, CONV_DILATIONH);
  const run = runOf(step);
  const rowBytes: usize = (run * word(step, CONV_STRIDEW)) << 2;
  const channel = plane % word(step, CONV_COUT);
  const w = address(step, CONV_W) + ((channel * kh * kw) << 2);
  const bias = address(step, CONV_BIAS);
  const start = bias ? v128.load32_splat(bias + (channel << 2)) : f32x4.splat(0);
  // where each tap of a row starts, in front of the rows
  const offsets = panel;
  const stride = word(step, CONV_STRIDEW);
  for (let kx = 0; kx < kw; kx++) {
    const ahead = kx * word(step, CONV_DILATIONW);
    store<u32>(offsets + (kx << 2), ((ahead % stride) * run + ahead / stride) << 2);
  }
  const o0: usize = load<u32>(offsets, 0);
  const o1: usize = load<u32>(offsets, 4);
  const o2: usize = load<u32>(offsets, 8);
  panel += ((kw + 3) & ~3) << 2;
  // input rows of the band; those of the padding are left out of the sums
  const top = first * strideH - word(step, CONV_PADTOP);
  const above = max(0, top);
  const below = min(height, top + (count - 1) * strideH + (kh - 1) * dilationH + 1);
  for (let row = above; row < below; row++) {
    copyRow(step, plane, row, panel + (row - above) * rowBytes, run);
  }
  for (let i = 0; i < count; i++) {
    const from = top + i * strideH;
    let at = (plane * word(step, CONV_HOUT) + first + i) * columns;
    // taps whose row lies inside
    const low = from < 0 ? (dilationH - 1 - from) / dilationH : 0;
    const high = min(kh, (height - from + dilationH - 1) / dilationH);
    const lines = panel + (from + low * dilationH - above) * rowBytes;
    const weights = w + ((low * kw) << 2);
    const down = dilationH * rowBytes;
    let column = 0;
    for (; column + 8 <= columns; column += 8) {
      let a = f32x4.splat(0);
      let b = a;
      let line = lines + (column << 2);
      let tap = weights;
      for (let ky = low; ky < high; ky++) {
        if (kw == 3) {
          const w0 = v128.load32_splat(tap, 0);
          const w1 = v128.load32_splat(tap, 4);
          const w2 = v128.load32_splat(tap, 8);
          a = fused(v128.load(line + o0, 0), w0, a);
          b = fused(v128.load(line + o0, 16), w0, b);
          a = fused(v128.load(line + o1, 0), w1, a);
          b = fused(v128.load(line + o1, 16), w1, b);
          a = fused(v128.load(line + o2, 0), w2, a);
          b = fused(v128.load(line + o2, 16), w2, b);
          tap += 12;
        } else {
          for (let kx = 0; kx < kw; kx++) {
            const values = line + load<u32>(offsets + (kx << 2));
            const weight = v128.load32_splat(tap);
            a = fused(v128.load(values, 0), weight, a);
            b = fused(v128.load(values, 16), weight, b);
            tap += 4;
          }
        }
        line += down;
      }
      finish(step, a, start, at, 4);
      finish(step, b, start, at + 4, 4);
      at += 8;
    }
    for (; column < columns; column += 4) {
      let a = f32x4.splat(0);
      let line = lines + (column << 2);
      let tap = weights;
      for (let ky = low; ky < high; ky++) {
        for (let kx = 0; kx < kw; kx++) {
          const values = line + load<u32>(offsets + (kx << 2));
          a = fused(v128.load(values), v128.load32_splat(tap), a);
          tap += 4;
        }
        line += down;
      }
      finish(step, a, start, at, columns - column);
      at += 4;
    }
  }
}

/** One input row of a plane, padded and sorted into runs. */
function copyRow(step: usize, plane: i32, row: i32, to: usize, run: i32): void {
  const width = word(step, CONV_WIN);
  const stride = word(step, CONV_STRIDEW);
  const left = word(step, CONV_PADLEFT);
  const x = address(step, CONV_X) + (((plane * word(step, CONV_HIN) + row) * width) << 2);
  for (let p = 0; p < stride; p++) {
    // entries of the run that lie inside: 0 <= q * stride + p - left < width
    const from = min(run, max(0, (left - p + stride - 1) / stride));
    const until = min(run, max(from, (width + left - p + stride - 1) / stride));
    let q = 0;
    for (; q < from; q++) store<f32>(to + (q << 2), 0);
    if (stride == 1) {
      const line = x - (left << 2);
      for (; q + 4 <= until; q += 4) v128.store(to + (q << 2), v128.load(line + (q << 2)));
      for (; q < until; q++) store<f32>(to + (q << 2), load<f32>(line + (q << 2)));
    } else {
      const line = x + ((p - left) << 2);
      for (; q < until; q++) store<f32>(to + (q << 2), load<f32>(line + ((q * stride) << 2)));
    }
    for (; q < run; q++) store<f32>(to + (q << 2), 0);
    to += run << 2;
  }
}
