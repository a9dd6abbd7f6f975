/**
 * The values that integer codes stand for: `(step · code - zero) · scale`.
 *
 *   8, 4 bits   step 1, zero 0..2^b-1: one of the levels is 0 whatever the zero point
 *   3, 2 bits   step 2, zero 0..2·(2^b-1): the scale is half the distance of two levels, so that zero
 *               may lie in the middle between two of them
 *
 * Few levels have to be spread evenly around where the weights are: of a normal distribution four levels
 * -3, -1, 1, 3 lose 0.119 of the energy, -2, 0, 2, 4 lose 0.150 (eight levels: 0.038 and 0.041).
 */

/** From one code to the next, in units of the scale. */
export function codeStep(bits: number): 1 | 2 {
  return bits < 4 ? 2 : 1;
}

/** From the lowest level to the highest, in units of the scale; also the largest zero point. */
export function levelSpan(bits: number): number {
  return codeStep(bits) * (2 ** bits - 1);
}

/** The zero point where none is stored: 128, 8, 7 and 3 for 8, 4, 3 and 2 bits. */
export function middleZero(bits: number): number {
  return Math.ceil(levelSpan(bits) / 2);
}

/** Bits of a stored zero point. */
export function zeroBits(bits: number): number {
  return bits === 8 ? 8 : 4;
}
