/**
 * QUANTIZE: f32 rows -> int8 codes, a scale and a code sum per block of 16 or 32 inputs.
 *
 * x [ROWS, K] f32 -> records of 3*Kp + 8*blocks bytes (abi.ts). The wide form holds each 4 inputs as
 * i16 in the order 0, 2, 1, 3: the pairs (0, 2) and (1, 3) are what the even and odd bytes of packed
 * weights meet in `dot_i16x8_s`, so weights need no byte shuffles (tile-wide.ts).
 */
import {
  QUANTIZE_BLOCK,
  QUANTIZE_FORMS,
  QUANTIZE_K,
  QUANTIZE_ROWS,
  QUANTIZE_X,
  QUANTIZE_XROW,
  QUANTIZE_Y,
} from './abi.ts';
import { RELAXED, address, laneMax, shareStart, word } from './core.ts';

/** Bytes of a record of `blocks` blocks. */
@inline
export function recordBytes(blocks: i32, block: i32): i32 {
  return blocks * (3 * block + 8);
}

export function quantize(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const K = word(step, QUANTIZE_K);
  const block = word(step, QUANTIZE_BLOCK);
  const blocks = (K + block - 1) / block;
  const stride = recordBytes(blocks, block);
  const xRow = word(step, QUANTIZE_XROW);
  const forms = word(step, QUANTIZE_FORMS);
  const narrow = RELAXED && (forms & 1) != 0;
  const wide = !RELAXED || (forms & 2) != 0;
  // rows and blocks are one list, so that a single row splits too
  const count = word(step, QUANTIZE_ROWS) * blocks;
  const end = shareStart(count, thread + 1, threads);
  for (let i = shareStart(count, thread, threads); i < end; i++) {
    const row = i / blocks;
    const b = i - row * blocks;
    const record = address(step, QUANTIZE_Y) + row * stride;
    const x = address(step, QUANTIZE_X) + row * xRow + ((b * block) << 2);
    const left = K - b * block;
    quantizeBlock(x, record, b, block, blocks, left, narrow, wide, scratch);
  }
}

function quantizeBlock(
  x: usize,
  record: usize,
  b: i32,
  block: i32,
  blocks: i32,
  left: i32,
  narrow: bool,
  wide: bool,
  scratch: usize,
): void {
  const padded = blocks * block;
  if (left < block) x = padBlock(x, left, block, scratch);
  let largest = f32x4.splat(0);
  for (let i = 0; i < block; i += 4) {
    largest = f32x4.max(largest, f32x4.abs(v128.load(x + (i << 2))));
  }
  const peak = laneMax(largest);
  // an empty block, and one with NaN or infinities (which have no codes), keep what they have in the scale
  const inverse: f32 = peak > 0 && peak < Infinity ? 127 / peak : 0;
  const factor = f32x4.splat(inverse);
  let sum = i32x4.splat(0);
  const codes = record + b * block;
  const pairs = record + padded + ((b * block) << 1);
  for (let i = 0; i < block; i += 8) {
    const at = x + (i << 2);
    const low = round(f32x4.mul(v128.load(at, 0), factor));
    const high = round(f32x4.mul(v128.load(at, 16), factor));
    sum = i32x4.add(sum, i32x4.add(low, high));
    const both = i16x8.narrow_i32x4_s(low, high);
    if (narrow) v128.store64_lane(codes + i, i8x16.narrow_i16x8_s(both, both), 0);
    if (wide) {
      const order = i8x16.shuffle(both, both, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
      v128.store(pairs + (i << 1), order);
    }
  }
  const scales = record + 3 * padded + (b << 2);
  store<f32>(scales, peak / 127);
  store<i32>(
    scales + (blocks << 2),
    i32x4.extract_lane(sum, 0) + i32x4.extract_lane(sum, 1) +
      (i32x4.extract_lane(sum, 2) + i32x4.extract_lane(sum, 3)),
  );
}

/** Round half to even; |x| <= 127 (127/peak may round up, so x can be a hair above: still 127). */
@inline
function round(x: v128): v128 {
  return i32x4.trunc_sat_f32x4_s(f32x4.nearest(x));
}

/** The last, partial block of a row, followed by zeros. */
function padBlock(x: usize, left: i32, block: i32, scratch: usize): usize {
  memory.copy(scratch, x, left << 2);
  memory.fill(scratch + (left << 2), 0, (block - left) << 2);
  return scratch;
}
