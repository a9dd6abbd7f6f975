/**
 * POOL: largest or mean value of windows of f32 planes [HIN, WIN] -> [HOUT, WOUT].
 */
import {
  POOL_DILATIONH,
  POOL_DILATIONW,
  POOL_HIN,
  POOL_HOUT,
  POOL_KH,
  POOL_KIND,
  POOL_KW,
  POOL_PADBOTTOM,
  POOL_PADLEFT,
  POOL_PADRIGHT,
  POOL_PADTOP,
  POOL_PLANES,
  POOL_STRIDEH,
  POOL_STRIDEW,
  POOL_WIN,
  POOL_WOUT,
  POOL_X,
  POOL_Y,
} from './abi.ts';
import { address, shareStart, word } from './core.ts';
import { storeUpTo } from './epilogue.ts';

/** Columns that fit a thread's scratch. */
const MOST_COLUMNS = 4000;

export function pool(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const height = word(step, POOL_HIN);
  const width = word(step, POOL_WIN);
  const rows = word(step, POOL_HOUT);
  const columns = word(step, POOL_WOUT);
  const stride = word(step, POOL_STRIDEW);
  const items = word(step, POOL_PLANES) * rows;
  // columns under all windows of a row, padding included
  const under = (columns - 1) * stride + (word(step, POOL_KW) - 1) * word(step, POOL_DILATIONW) + 1;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const plane = i / rows;
    const top = (i - plane * rows) * word(step, POOL_STRIDEH) - word(step, POOL_PADTOP);
    const x = address(step, POOL_X) + ((plane * height * width) << 2);
    const y = address(step, POOL_Y) + ((i * columns) << 2);
    if (under + 8 * stride <= MOST_COLUMNS && word(step, POOL_KIND) == 0) {
      largestOfRow(step, scratch, x, y, top, height, width, columns, under);
      continue;
    }
    for (let column = 0; column < columns; column++) {
      const left = column * stride - word(step, POOL_PADLEFT);
      store<f32>(y + (column << 2), poolWindow(step, x, top, left, height, width));
    }
  }
}

/** One row of largest values: of the rows under it first, column by column, then of neighbouring columns. */
function largestOfRow(
  step: usize,
  scratch: usize,
  x: usize,
  y: usize,
  top: i32,
  height: i32,
  width: i32,
  columns: i32,
  under: i32,
): void {
  const stride = word(step, POOL_STRIDEW);
  const dilationH = word(step, POOL_DILATIONH);
  const dilationW = word(step, POOL_DILATIONW);
  const kw = word(step, POOL_KW);
  const left = word(step, POOL_PADLEFT);
  const y0 = top < 0 ? (dilationH - 1 - top) / dilationH : 0;
  const y1 = min(word(step, POOL_KH), (height - top + dilationH - 1) / dilationH);
  const none = f32x4.splat(-Infinity);
  // what vectors read behind the last window is never used
  for (let j = 0; j < under + 8 * stride; j += 4) v128.store(scratch + (j << 2), none);
  const inside = min(width, under - left);
  const to = scratch + (left << 2);
  for (let ky = y0; ky < y1; ky++) {
    const line = x + (((top + ky * dilationH) * width) << 2);
    let j = 0;
    for (; j + 4 <= inside; j += 4) {
      const at: usize = j << 2;
      v128.store(to + at, f32x4.max(v128.load(to + at), v128.load(line + at)));
    }
    for (; j < inside; j++) {
      const at: usize = j << 2;
      store<f32>(to + at, max<f32>(load<f32>(to + at), load<f32>(line + at)));
    }
  }
  for (let column = 0; column < columns; column += 4) {
    let largest = none;
    for (let kx = 0; kx < kw; kx++) {
      const at = scratch + ((column * stride + kx * dilationW) << 2);
      let values: v128;
      if (stride == 1) values = v128.load(at);
      else if (stride == 2) values = i32x4.shuffle(v128.load(at, 0), v128.load(at, 16), 0, 2, 4, 6);
      else {
        const step4: usize = stride << 2;
        values = f32x4(
          load<f32>(at),
          load<f32>(at + step4),
          load<f32>(at + 2 * step4),
          load<f32>(at + 3 * step4),
        );
      }
      largest = f32x4.max(largest, values);
    }
    storeUpTo(y + (column << 2), largest, columns - column);
  }
}

function poolWindow(step: usize, x: usize, top: i32, left: i32, height: i32, width: i32): f32 {
  const kind = word(step, POOL_KIND);
  const kh = word(step, POOL_KH);
  const kw = word(step, POOL_KW);
  const dilationH = word(step, POOL_DILATIONH);
  const dilationW = word(step, POOL_DILATIONW);
  // taps inside the image
  const y0 = top < 0 ? (dilationH - 1 - top) / dilationH : 0;
  const y1 = min(kh, (height - top + dilationH - 1) / dilationH);
  const x0 = left < 0 ? (dilationW - 1 - left) / dilationW : 0;
  const x1 = min(kw, (width - left + dilationW - 1) / dilationW);
  const stepX: usize = dilationW << 2;
  let result: f32 = kind == 0 ? -Infinity : 0;
  for (let ky = y0; ky < y1; ky++) {
    let at = x + (((top + ky * dilationH) * width + left + x0 * dilationW) << 2);
    if (kind == 0) {
      for (let kx = x0; kx < x1; kx++) {
        result = max<f32>(result, load<f32>(at));
        at += stepX;
      }
    } else {
      for (let kx = x0; kx < x1; kx++) {
        result += load<f32>(at);
        at += stepX;
      }
    }
  }
  if (kind == 0) return result;
  let count = max(0, y1 - y0) * max(0, x1 - x0);
  if (kind == 2) {
    // padding counts, but no further than it reaches
    const bottom = height + word(step, POOL_PADBOTTOM) - top;
    const right = width + word(step, POOL_PADRIGHT) - left;
    const inH = min(kh, (bottom + dilationH - 1) / dilationH);
    count = inH * min(kw, (right + dilationW - 1) / dilationW);
  }
  return count == 0 ? result : result / <f32>count;
}
