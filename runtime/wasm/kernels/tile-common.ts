/**
 * What the inner tiles of LINEAR share: sums that start at minus the zero points, their end, and a fence
 * for the optimizer.
 *
 * Sums of codes are sum((code - zero) * x), of W3 and W2 sum((2 * code - zero) * x). They start, or end, with
 * -zero * sum(x), which QUANTIZE has stored for each block as a pair of i16: minus the sum over inputs k with
 * k % 4 of 0 or 1, and of 2 or 3, which is how dot products of neighbours fall into i16 lanes.
 */
import { C4, W2, W3, W4, W8 } from './abi.ts';
import { ONES16, constant } from './core.ts';

/** Bytes of scales of 16 rows. */
export const SCALE_BYTES: usize = 32;

/** Bytes in front of the codes of a group: scales, and zero points where there are some. */
@inline
export function headBytes(asymmetric: i32): i32 {
  return asymmetric ? 48 : <i32>SCALE_BYTES;
}

/** Bytes of the codes of 16 rows x a block. */
export function blockBytes(format: i32, block: i32): i32 {
  const quarters = format == W8 ? 16 : format == W3 ? 6 : format == W2 ? 4 : 8;
  return quarters * block;
}

/** The zero point of symmetric weights; C4 is centred at 64. */
@inline
export function middleZero(format: i32): i32 {
  return format == W8 ? 128 : format == C4 ? 64 : format == W4 ? 8 : format == W3 ? 7 : 3;
}

/** From one code to the next in units of the scale, as a shift: zero points of W3 and W2 count half steps. */
@inline
export function stepShift(format: i32): i32 {
  return format == W3 || format == W2 ? 1 : 0;
}

/** Zero points of four rows, u8 at `zeros`, as i16 pairs. */
@inline
export function zeroPairs(zeros: usize): v128 {
  const x = i16x8.extend_low_i8x16_u(v128.load32_zero(zeros));
  return v128.shuffle<i16>(x, x, 0, 0, 1, 1, 2, 2, 3, 3);
}

/**
 * Where i16 sums of four rows start, given `zeroPairs`. They may wrap on the way: sums of a block, 16 inputs a lane, end
 * within 16 * 127 * 15.
 */
@inline
export function start16(zeros: v128, pair: v128): v128 {
  return i16x8.mul(zeros, pair);
}

/** Where i32 sums of four rows start, given `zeroPairs`. */
@inline
export function start32(zeros: v128, pair: v128): v128 {
  return i32x4.dot_i16x8_s(zeros, pair);
}

/** Where sums of symmetric weights start, all rows alike; i16 ones only of W4. */
@inline
export function startMiddle(format: i32, wide: bool, pair: v128): v128 {
  if (!wide) return i16x8.shl(pair, 3);
  const sum = i32x4.dot_i16x8_s(pair, constant(ONES16));
  const middle = middleZero(format);
  if (stepShift(format)) return i32x4.sub(i32x4.shl(sum, middle == 7 ? 3 : 2), sum);
  return i32x4.shl(sum, middle == 128 ? 7 : middle == 64 ? 6 : 3);
}

/**
 * i32 sums with minus the zero points of four rows, u8 at `zeros`, for formats of which codes count two: these
 * are taken last, so that codes need not be doubled one by one. `head` says whether there are zero points.
 */
@inline
export function doubled(format: i32, sum: v128, head: i32, zeros: usize, pair: v128): v128 {
  const start =
    head == SCALE_BYTES ? startMiddle(format, true, pair) : start32(zeroPairs(zeros), pair);
  return i32x4.add(i32x4.shl(sum, 1), start);
}

/** Four f16 scales in 32-bit lanes as f32 times 2^-112: what is multiplied by one of `record scales * 2^112`. Exact. */
@inline
export function smallScales(halves: v128): v128 {
  return i32x4.shl(halves, 13);
}

/** f + c * (w * s), in this order of operations everywhere. */
@inline
export function scaled(f: v128, c: v128, w: v128, s: v128): v128 {
  return f32x4.add(f, f32x4.mul(f32x4.convert_i32x4_s(c), f32x4.mul(w, s)));
}

/**
 * A place where these sums must have been computed. Left alone, Binaryen moves each sum to where it is read,
 * which keeps all loaded operands alive until then: more than there are registers. `at` is never `n`.
 */
@inline
export function fence(
  at: usize,
  n: usize,
  a: v128,
  b: v128,
  c: v128,
  d: v128,
  e: v128,
  f: v128,
  g: v128,
  h: v128,
): void {
  if (at == n) {
    never(a, b, c, d, e, f, g, h);
    unreachable();
  }
}

/** The same for four sums. */
@inline
export function fence4(at: usize, n: usize, a: v128, b: v128, c: v128, d: v128): void {
  if (at == n) {
    never(a, b, c, d, a, b, c, d);
    unreachable();
  }
}

/** Reads its arguments in a way that no optimizer sees through; runs never. */
function never(a: v128, b: v128, c: v128, d: v128, e: v128, f: v128, g: v128, h: v128): void {
  v128.store(0, a);
  v128.store(16, b);
  v128.store(32, c);
  v128.store(48, d);
  v128.store(64, e);
  v128.store(80, f);
  v128.store(96, g);
  v128.store(112, h);
  never(b, c, d, e, f, g, h, a);
}
