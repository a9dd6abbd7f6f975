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
import { MAGNITUDE, RELAXED, address, constant, shareStart, word } from './core.ts';

/** Bytes of a record of `blocks` blocks. */
@inline
export function recordBytes(blocks: i32, block: i32): i32 {
  return blocks * (3 * block + 16);
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
  if (left < block) x = padBlock(x, left, block, scratch);
  // magnitudes order as integers too, with NaN above all numbers
  const magnitude = constant(MAGNITUDE);
  let largest = i32x4.splat(0);
  let other = largest;
  for (let i = 0; i < block; i += 8) {
    largest = i32x4.max_s(largest, v128.and(v128.load(x + (i << 2), 0), magnitude));
    other = i32x4.max_s(other, v128.and(v128.load(x + (i << 2), 16), magnitude));
  }
  const peak = largestLane(i32x4.max_s(largest, other));
  // an empty block, and one with NaN or infinities (which have no codes), keep what they have in the scale
  const inverse: f32 = peak > 0 && peak < Infinity ? 127 / peak : 0;
  const factor = f32x4.splat(inverse);
  const magic = f32x4.splat(load<f32>(roundingMagic));
  let sum = i32x4.splat(0);
  const codes = record + b * (block + 8);
  const pairs = record + blocks * (block + 8) + b * (2 * block + 8);
  for (let i = 0; i < block; i += 8) {
    const at = x + (i << 2);
    const low = round(f32x4.mul(v128.load(at, 0), factor), magic);
    const high = round(f32x4.mul(v128.load(at, 16), factor), magic);
    sum = i32x4.add(sum, i32x4.add(low, high));
    const both = i16x8.narrow_i32x4_s(low, high);
    if (narrow) v128.store64_lane(codes + i, i8x16.narrow_i16x8_s(both, both), 0);
    if (wide) {
      const order = i8x16.shuffle(both, both, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
      v128.store(pairs + (i << 1), order);
    }
  }
  const even = i32x4.extract_lane(sum, 0) + i32x4.extract_lane(sum, 1);
  const odd = i32x4.extract_lane(sum, 2) + i32x4.extract_lane(sum, 3);
  const sums = (-even & 0xffff) | (-odd << 16);
  if (narrow) {
    store<f32>(codes + block, peak / 127);
    store<i32>(codes + block, sums, 4);
  }
  if (wide) {
    store<f32>(pairs + 2 * block, peak / 127);
    store<i32>(pairs + 2 * block, sums, 4);
  }
}

/** 1.5 * 2^23: adding it to a small number rounds that half to even, into the low mantissa bits. */
const roundingMagic: usize = memory.data<f32>([12582912]);

/** The i32 nearest to each lane, half to even; |x| < 2^22. */
@inline
function round(x: v128, magic: v128): v128 {
  return i32x4.sub(f32x4.add(x, magic), magic);
}

/** The f32 whose bits are the largest of four positive lanes. */
@inline
function largestLane(x: v128): f32 {
  x = i32x4.max_s(x, i8x16.shuffle(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = i32x4.max_s(x, i8x16.shuffle(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  return f32x4.extract_lane(x, 0);
}

/** The last, partial block of a row, followed by zeros. */
function padBlock(x: usize, left: i32, block: i32, scratch: usize): usize {
  memory.copy(scratch, x, left << 2);
  memory.fill(scratch + (left << 2), 0, (block - left) << 2);
  return scratch;
}
