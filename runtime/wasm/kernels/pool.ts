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

export function pool(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const height = word(step, POOL_HIN);
  const width = word(step, POOL_WIN);
  const rows = word(step, POOL_HOUT);
  const columns = word(step, POOL_WOUT);
  const items = word(step, POOL_PLANES) * rows;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const plane = i / rows;
    const top = (i - plane * rows) * word(step, POOL_STRIDEH) - word(step, POOL_PADTOP);
    const x = address(step, POOL_X) + ((plane * height * width) << 2);
    const y = address(step, POOL_Y) + ((i * columns) << 2);
    for (let column = 0; column < columns; column++) {
      const left = column * word(step, POOL_STRIDEW) - word(step, POOL_PADLEFT);
      store<f32>(y + (column << 2), poolWindow(step, x, top, left, height, width));
    }
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
