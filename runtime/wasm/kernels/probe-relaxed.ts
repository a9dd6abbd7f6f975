/**
 * Executes every relaxed instruction that the kernels rely on, with operands where a wrong engine shows:
 * Node 20 behind its flag makes 6 of relaxed_dot's 1*3, and saturating implementations differ at the
 * extremes. Returns 0 when all are right, else a bit for each that is not.
 */

/** Keeps the compiler from computing the answers at build time. */
function at(address: usize): v128 {
  return v128.load(address);
}

@inline
function same(x: v128, y: v128): bool {
  return i8x16.all_true(i8x16.eq(x, y));
}

/**
 * `scratch`: 64 bytes of memory, overwritten. Called often enough for the optimizing compiler, because
 * engines have been wrong in one of their compilers only.
 */
export function probe(scratch: usize): i32 {
  let wrong = 0;
  // pairs: the i16 form with the largest operands of the narrow tiles, and a 7-bit extreme
  v128.store(scratch, i8x16(127, 127, -127, -127, 1, 0, 0, 1, -128, -128, 5, -7, 127, 127, -1, 3));
  v128.store(scratch + 16, i8x16(15, 15, 15, 15, 3, 9, 9, 3, 15, 15, 11, 13, 127, 127, 15, 1));
  const pairs = i16x8(3810, -3810, 3, 3, -3840, -36, 32258, -12);
  if (!same(v128.relaxed_dot<i16>(at(scratch), at(scratch + 16)), pairs)) wrong |= 1;
  // the same accumulated into i32, which the limits measure
  v128.store(scratch + 32, i32x4(1000000, -1000000, 7, -7));
  const quads = i32x4.add(
    i32x4(1000000, -1000000, 7, -7),
    i32x4(0, 6, -3876, 32246),
  );
  const dots = i32x4.relaxed_dot_i8x16_i7x16_add_s(at(scratch), at(scratch + 16), at(scratch + 32));
  if (!same(dots, quads)) wrong |= 2;
  // table look-ups with indices in range
  v128.store(scratch + 48, i8x16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  const reversed = i8x16(3, -1, 127, 127, -7, 5, -128, -128, 1, 0, 0, 1, -127, -127, 127, 127);
  if (!same(i8x16.relaxed_swizzle(at(scratch), at(scratch + 48)), reversed)) wrong |= 4;
  // multiply-add, exact with or without fusing
  v128.store(scratch, f32x4(1.5, -2, 3, 0.5));
  const sums = f32x4.relaxed_madd(at(scratch), f32x4.splat(4), f32x4.splat(1));
  if (!same(sums, f32x4(7, -7, 13, 3))) wrong |= 8;
  return wrong;
}
