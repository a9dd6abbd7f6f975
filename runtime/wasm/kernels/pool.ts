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
  // what an average that counts padding may count: no further than the padding reaches
  const bottomEdge = height + word(step, POOL_PADBOTTOM);
  const rightEdge = width + word(step, POOL_PADRIGHT);
  let result: f32 = kind == 0 ? -Infinity : 0;
  let count = 0;
  for (let ky = 0; ky < kh; ky++) {
    const iy = top + ky * word(step, POOL_DILATIONH);
    for (let kx = 0; kx < kw; kx++) {
      const ix = left + kx * word(step, POOL_DILATIONW);
      if (iy >= 0 && iy < height && ix >= 0 && ix < width) {
        const value = load<f32>(x + ((iy * width + ix) << 2));
        result = kind == 0 ? max<f32>(result, value) : result + value;
        count++;
      } else if (kind == 2 && iy < bottomEdge && ix < rightEdge) count++;
    }
  }
  return kind == 0 || count == 0 ? result : result / <f32>count;
}
