/** How far rounded values are from the ones they stand for. */
import { outOfRange } from '../../runtime/errors.ts';

/**
 * Relative mean-squared error, `‖W - Ŵ‖² / ‖W‖²`.
 *
 * @param original - values before rounding
 * @param rounded - as many values after it
 * @returns 0 when both are all zero
 * @throws RangeError when the lengths differ
 */
export function relativeSquaredError(
  original: ArrayLike<number>,
  rounded: ArrayLike<number>,
): number {
  if (original.length !== rounded.length)
    throw outOfRange('rounded.length', `${original.length}`, rounded.length);
  let error = 0;
  let norm = 0;
  for (let i = 0; i < original.length; i++) {
    const value = original[i] ?? 0;
    error += (value - (rounded[i] ?? 0)) ** 2;
    norm += value ** 2;
  }
  return norm === 0 ? 0 : error / norm;
}
