/**
 * COLUMNS, RESAMPLE, CUMULATE: sums over windows, over weighted elements, over what came before.
 */
import {
  COLUMNS_BATCH,
  COLUMNS_BIAS,
  COLUMNS_COUT,
  COLUMNS_DILATIONH,
  COLUMNS_DILATIONW,
  COLUMNS_HIN,
  COLUMNS_HOUT,
  COLUMNS_KH,
  COLUMNS_KW,
  COLUMNS_PADLEFT,
  COLUMNS_PADTOP,
  COLUMNS_STRIDEH,
  COLUMNS_STRIDEW,
  COLUMNS_WIN,
  COLUMNS_WOUT,
  COLUMNS_X,
  COLUMNS_Y,
  CUMULATE_EXCLUSIVE,
  CUMULATE_INNER,
  CUMULATE_LENGTH,
  CUMULATE_OUTER,
  CUMULATE_REVERSE,
  CUMULATE_X,
  CUMULATE_Y,
  RESAMPLE_COUNT,
  RESAMPLE_FILL,
  RESAMPLE_INNER,
  RESAMPLE_LENGTH,
  RESAMPLE_OUTER,
  RESAMPLE_TABLE,
  RESAMPLE_TAPS,
  RESAMPLE_X,
  RESAMPLE_Y,
} from './abi.ts';
import { address, float, shareStart, word } from './core.ts';

export function columns(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const channels = word(step, COLUMNS_COUT);
  const height = word(step, COLUMNS_HOUT);
  const rows = word(step, COLUMNS_BATCH) * channels * height;
  const end = shareStart(rows, thread + 1, threads);
  for (let i = shareStart(rows, thread, threads); i < end; i++) {
    columnsRow(step, i / height, i % height, (i / height) % channels);
  }
}

/** One row of one plane of the result: what each tap adds to it, in order. */
function columnsRow(step: usize, plane: i32, row: i32, channel: i32): void {
  const width = word(step, COLUMNS_WOUT);
  const height = word(step, COLUMNS_HOUT);
  const hin = word(step, COLUMNS_HIN);
  const win = word(step, COLUMNS_WIN);
  const kw = word(step, COLUMNS_KW);
  const kh = word(step, COLUMNS_KH);
  const strideH = word(step, COLUMNS_STRIDEH);
  const strideW = word(step, COLUMNS_STRIDEW);
  const y = address(step, COLUMNS_Y) + (((plane * height + row) * width) << 2);
  const bias = address(step, COLUMNS_BIAS);
  const first: f32 = bias ? load<f32>(bias + (channel << 2)) : 0;
  for (let j = 0; j < width; j++) store<f32>(y + (j << 2), first);
  for (let ky = 0; ky < kh; ky++) {
    const above = row + word(step, COLUMNS_PADTOP) - ky * word(step, COLUMNS_DILATIONH);
    if (above < 0 || above % strideH != 0 || above / strideH >= hin) continue;
    for (let kx = 0; kx < kw; kx++) {
      const tap = ((plane * kh + ky) * kw + kx) * hin + above / strideH;
      const x = address(step, COLUMNS_X) + ((tap * win) << 2);
      const offset = kx * word(step, COLUMNS_DILATIONW) - word(step, COLUMNS_PADLEFT);
      // inputs that land inside: offset + i * stride in 0..width-1
      let i = offset < 0 ? (strideW - 1 - offset) / strideW : 0;
      for (; i < win; i++) {
        const j = offset + i * strideW;
        if (j >= width) break;
        store<f32>(y + (j << 2), load<f32>(y + (j << 2)) + load<f32>(x + (i << 2)));
      }
    }
  }
}

export function resample(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const length = word(step, RESAMPLE_LENGTH);
  const inner = word(step, RESAMPLE_INNER);
  const count = word(step, RESAMPLE_COUNT);
  const taps = word(step, RESAMPLE_TAPS);
  // many short rows, or a few long ones: both split
  const items = word(step, RESAMPLE_OUTER) * count;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const outer = i / count;
    const table = address(step, RESAMPLE_TABLE) + (((i - outer * count) * taps) << 3);
    const x = address(step, RESAMPLE_X) + ((outer * length * inner) << 2);
    sample(x, address(step, RESAMPLE_Y) + ((i * inner) << 2), table, taps, inner, float(step, RESAMPLE_FILL));
  }
}

/** One element of the axis: `inner` sums of `taps` products. */
function sample(x: usize, y: usize, table: usize, taps: i32, inner: i32, fill: f32): void {
  let i = 0;
  for (; i + 4 <= inner; i += 4) {
    let sum = f32x4.splat(0);
    for (let t = 0; t < taps; t++) {
      const from = load<i32>(table + (t << 3));
      const values = from < 0 ? f32x4.splat(fill) : v128.load(x + ((from * inner + i) << 2));
      sum = f32x4.add(sum, f32x4.mul(values, v128.load32_splat(table + (t << 3), 4)));
    }
    v128.store(y + (i << 2), sum);
  }
  for (; i < inner; i++) {
    let sum: f32 = 0;
    for (let t = 0; t < taps; t++) {
      const from = load<i32>(table + (t << 3));
      const value = from < 0 ? fill : load<f32>(x + ((from * inner + i) << 2));
      sum += value * load<f32>(table + (t << 3), 4);
    }
    store<f32>(y + (i << 2), sum);
  }
}

export function cumulate(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const length = word(step, CUMULATE_LENGTH);
  const inner = word(step, CUMULATE_INNER);
  const exclusive = word(step, CUMULATE_EXCLUSIVE) != 0;
  const reverse = word(step, CUMULATE_REVERSE) != 0;
  const items = word(step, CUMULATE_OUTER) * inner;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const first: usize = ((i / inner) * length * inner + (i % inner)) << 2;
    let sum: f32 = 0;
    for (let k = 0; k < length; k++) {
      const at = first + (((reverse ? length - 1 - k : k) * inner) << 2);
      const value = load<f32>(address(step, CUMULATE_X) + at);
      const before = sum;
      sum += value;
      store<f32>(address(step, CUMULATE_Y) + at, exclusive ? before : sum);
    }
  }
}
