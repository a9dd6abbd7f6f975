/**
 * How much of the cube that a quantizer covers is filled by data: the volume of the ellipsoid of their
 * covariance over that of the cube around it, as a logarithm per dimension.
 *
 *     (½ Σ log λ_i)/d - log max_i √(Σ_ii)
 *
 * Largest, 0, for data of one variance in all directions; a rotation can bring the widest channel down to
 * the mean variance and no further. It says whether turning a layer's inputs can help before it is tried.
 * Source: OSTQuant's QSUR in the form of ../shared/ALGORITHMS.md Q8, constants left out.
 */
import type { Algebra } from '../algebra/algebra.ts';
import { outOfRange } from '../../runtime/errors.ts';

/**
 * Logarithm of the share of space used, per dimension.
 *
 * @param covariance - [size, size], symmetric; a Hessian does as well, a factor changes nothing
 * @returns at most 0; -Infinity when some direction has no variance
 */
export function logSpaceUse(algebra: Algebra, covariance: Float32Array, size: number): number {
  if (covariance.length !== size * size)
    throw outOfRange('covariance.length', `${size} x ${size}`, covariance.length);
  const lower = algebra.cholesky(covariance, size);
  if (lower === undefined) return -Infinity;
  let volume = 0;
  let widest = 0;
  for (let i = 0; i < size; i++) {
    volume += Math.log(lower[i * size + i] ?? 0);
    widest = Math.max(widest, covariance[i * size + i] ?? 0);
  }
  return volume / size - Math.log(widest) / 2;
}
