/**
 * What every kernel uses: reading the words of a step, splitting work between threads, and the few
 * vector idioms whose form matters for speed or for equal results on every engine.
 *
 * Relaxed instructions are used only where every correct engine gives the same bits
 * (relaxed_dot with a 7-bit operand and no overflow, relaxed_swizzle with indices 0..15), and in
 * `fused` for f32 weights, whose results are stated with a bound instead.
 */

/** Whether this binary may use relaxed SIMD. */
@inline
export const RELAXED: bool = ASC_FEATURE_RELAXED_SIMD;

/** An integer parameter of a step. */
@inline
export function word(step: usize, index: i32): i32 {
  return load<i32>(step + (<usize>index << 2));
}

/** An address parameter of a step. */
@inline
export function address(step: usize, index: i32): usize {
  return <usize>load<u32>(step + (<usize>index << 2));
}

/** A float parameter of a step. */
@inline
export function float(step: usize, index: i32): f32 {
  return load<f32>(step + (<usize>index << 2));
}

/** First of a thread's share of `count` items; its end is the next thread's start. */
@inline
export function shareStart(count: i32, thread: i32, threads: i32): i32 {
  return threads == 1 && thread <= 1
    ? count * thread
    : <i32>((<i64>count * <i64>thread) / <i64>threads);
}

/** x*y + z for f32 weights: one rounding in relaxed binaries on machines with FMA, else two. */
@inline
export function fused(x: v128, y: v128, z: v128): v128 {
  if (RELAXED) return f32x4.relaxed_madd(x, y, z);
  return f32x4.add(f32x4.mul(x, y), z);
}

/** Bytes of `table` at `indices` (each 0..15). */
@inline
export function lookup(table: v128, indices: v128): v128 {
  if (RELAXED) return i8x16.relaxed_swizzle(table, indices);
  return i8x16.swizzle(table, indices);
}

/**
 * Vector constants of inner loops. Written as literals they would be built from integers at every use;
 * loaded before the loop they stay in registers.
 */
const constants: usize = memory.data<u32>([
  0x0f0f0f0f, 0x03030303, 0x04040404, 0x000f000f, 0x00030003, 0x00040004, 0x00ff00ff, 0x00010001, 0x77800000,
  0x8fffffff, 0x7fffffff,
]);
export const NIBBLES: usize = 0;
export const TWO_BITS: usize = 4;
export const FOURS: usize = 8;
export const NIBBLES16: usize = 12;
export const TWO_BITS16: usize = 16;
export const FOURS16: usize = 20;
export const BYTES16: usize = 24;
export const ONES16: usize = 28;
/** f32 2^112: what moves the exponent of an f16 to that of an f32. */
export const HALF_FACTOR: usize = 32;

/** What remains of a sign-extended f16 after moving its bits: not the copies of the sign. */
export const HALF_MASK: usize = 36;
/** All but the sign of an f32. */
export const MAGNITUDE: usize = 40;

/** A constant of the list above, in all lanes. */
@inline
export function constant(offset: usize): v128 {
  return v128.load32_splat(constants + offset);
}

/** Four f16 at `at`, none of them negative, infinite or NaN, as f32. Exact. */
@inline
export function positiveHalves(at: usize, halfFactor: v128): v128 {
  return f32x4.mul(i32x4.shl(v128.load16x4_u(at), 13), halfFactor);
}

/** Four f16 at `at` as f32; exact but for infinities and NaN, which become large numbers. */
@inline
export function halves(at: usize, halfMask: v128, halfFactor: v128): v128 {
  return f32x4.mul(v128.and(i32x4.shl(v128.load16x4_s(at), 13), halfMask), halfFactor);
}

/** The four f16 nearest to f32 values clamped to +-65504, ties to even, in the low halves of lanes. */
export function toHalves(values: v128): v128 {
  const bits = v128.and(values, i32x4.splat(0x7fffffff));
  const sign = i32x4.shr_u(v128.xor(values, bits), 16);
  const magnitude = i32x4.min_s(bits, i32x4.splat(0x477fe000));
  const odd = v128.and(i32x4.shr_u(magnitude, 13), i32x4.splat(1));
  const normal = i32x4.shr_u(
    i32x4.add(i32x4.add(magnitude, i32x4.splat(0xfff - 0x38000000)), odd),
    13,
  );
  // below the smallest normal f16, adding 1/2 leaves the rounded multiple of 2^-24 in the low bits
  const subnormal = i32x4.sub(f32x4.add(magnitude, f32x4.splat(0.5)), f32x4.splat(0.5));
  const small = i32x4.lt_s(magnitude, i32x4.splat(0x38800000));
  return v128.or(sign, v128.bitselect(subnormal, normal, small));
}

/** Stores the low halves of four lanes: 8 bytes. */
@inline
export function storeHalves(at: usize, lanes: v128): void {
  v128.store64_lane(at, i8x16.shuffle(lanes, lanes, 0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13), 0);
}

/** Sum of four lanes, always in this order. */
@inline
export function laneSum(x: v128): f32 {
  return (
    f32x4.extract_lane(x, 0) +
    f32x4.extract_lane(x, 2) +
    (f32x4.extract_lane(x, 1) + f32x4.extract_lane(x, 3))
  );
}

/** Largest of four lanes. */
@inline
export function laneMax(x: v128): f32 {
  return max<f32>(
    max<f32>(f32x4.extract_lane(x, 0), f32x4.extract_lane(x, 1)),
    max<f32>(f32x4.extract_lane(x, 2), f32x4.extract_lane(x, 3)),
  );
}
