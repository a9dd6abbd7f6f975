/**
 * Panels: 8 rows of packed weights taken apart once for all tokens of a call, so that the tiles of
 * tile-panel.ts have nothing to do but multiply and add. In working memory, for each block of inputs:
 *
 *   f32 scales [8]
 *   i16 zero points [8][2], twice each because sums begin with pairs
 *   codes, narrow: u8 [block / 4][8 rows][4 inputs]
 *          wide: i16 [block / 4][inputs 0 and 2, then 1 and 3][8 rows][2 inputs], as QUANTIZE stores activations
 */
import { C4, W2, W3, W4, W8 } from './abi.ts';
import {
  BYTES16,
  FOURS,
  HALF_FACTOR,
  NIBBLES,
  TWO_BITS,
  constant,
  lookup,
  positiveHalves,
} from './core.ts';
import { SCALE_BYTES, blockBytes, middleZero, stepShift, zeroPairs } from './tile-common.ts';

/** Bytes of a block before its codes. */
const HEAD: usize = 64;

/** Bytes of a block. */
@inline
export function panelBytes(wide: bool, block: i32): i32 {
  return <i32>HEAD + (wide ? 16 : 8) * block;
}

/** Codes of inputs 4s..4s+3 of 16 of four rows, of which `p` has the bytes and `h` the high bits of W3. */
@inline
function codes(format: i32, s: i32, p: v128, h: v128, mask: v128, book: v128): v128 {
  if (format == W8) return p;
  if (format == W4 || format == C4) {
    const code = v128.and((s & 1) == 0 ? p : i16x8.shr_u(p, 4), mask);
    return format == C4 ? lookup(book, code) : code;
  }
  const low = v128.and(s == 0 ? p : i16x8.shr_u(p, 2 * s), mask);
  if (format == W2) return low;
  return v128.or(low, v128.and(s < 2 ? i16x8.shl(h, 2 - s) : i16x8.shr_u(h, s - 2), book));
}

/** Stores inputs 4s..4s+3 of 16, as multiples of half a step where zero points are. */
@inline
function put(format: i32, wide: bool, out: usize, s: i32, code: v128, bytes: v128): void {
  if (stepShift(format)) code = i8x16.add(code, code);
  if (wide) {
    v128.store(out + 64 * s, v128.and(code, bytes), 0);
    v128.store(out + 64 * s, i16x8.shr_u(code, 8), 32);
  } else v128.store(out + 32 * s, code);
}

/** 16 inputs of four rows. */
@inline
function put16(
  format: i32,
  wide: bool,
  w: usize,
  h: v128,
  out: usize,
  mask: v128,
  book: v128,
  bytes: v128,
): void {
  // inputs whose bits lie in the same bytes: 4, 8 or 16
  const first = v128.load(w, 0);
  const second = format == W8 ? v128.load(w, 64) : first;
  const third = format == W2 || format == W3 ? first : format == W8 ? v128.load(w, 128) : v128.load(w, 64);
  const last = format == W8 ? v128.load(w, 192) : third;
  put(format, wide, out, 0, codes(format, 0, first, h, mask, book), bytes);
  put(format, wide, out, 1, codes(format, 1, second, h, mask, book), bytes);
  put(format, wide, out, 2, codes(format, 2, third, h, mask, book), bytes);
  put(format, wide, out, 3, codes(format, 3, last, h, mask, book), bytes);
}

/**
 * Takes `blocks` blocks of 8 rows apart, beginning with block `skip` of the group at `group`; the rows are the
 * first (`half` 0) or last (1) of its 16.
 */
@inline
export function unpackPanel(
  format: i32,
  wide: bool,
  group: usize,
  half: i32,
  skip: i32,
  head: i32,
  codebook: usize,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
  out: usize,
): void {
  const mask = constant(format == W4 || format == C4 ? NIBBLES : TWO_BITS);
  const book = format == C4 ? v128.load(codebook) : constant(FOURS);
  const bytes = constant(BYTES16);
  const factor = constant(HALF_FACTOR);
  const middle = i16x8.splat(<i16>middleZero(format));
  let left = groupBlocks - skip;
  let scales = group + 16 * half;
  let zeros = group + SCALE_BYTES + 8 * half;
  let w = group + head + skip * blockBytes(format, block) + 32 * half;
  for (; blocks > 0; blocks--) {
    if (left == 0) {
      left = groupBlocks;
      scales = w - 16 * half;
      zeros = w + SCALE_BYTES - 24 * half;
      w += head;
    }
    left--;
    v128.store(out, positiveHalves(scales, factor), 0);
    v128.store(out, positiveHalves(scales + 8, factor), 16);
    v128.store(out, head == SCALE_BYTES ? middle : zeroPairs(zeros), 32);
    v128.store(out, head == SCALE_BYTES ? middle : zeroPairs(zeros + 4), 48);
    out += HEAD;
    for (let i = 0; i < block; i += 16) {
      let g = mask;
      let h = mask;
      if (format == W3) {
        // the high bits of 32 inputs lie behind their low ones
        g = i16x8.shr_u(v128.load(w + 128 - (i << 2), 0), i >> 2);
        h = i16x8.shr_u(v128.load(w + 128 - (i << 2), 16), i >> 2);
      }
      put16(format, wide, w, g, out, mask, book, bytes);
      put16(format, wide, w + 16, h, out + 16, mask, book, bytes);
      w += format == W8 ? 256 : format == W4 || format == C4 ? 128 : 64;
      out += wide ? 256 : 128;
    }
    if (format == W3) w += 64;
  }
}
