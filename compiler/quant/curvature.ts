/**
 * Curvature without gradients: the trace of a Hessian from products with random signs, and the
 * Gauss-Newton form of it, whose every sample is at least 0.
 *
 *   Hutchinson     tr(H) = E[vᵀ H v],  v of signs
 *   Gauss-Newton   tr(JᵀJ) = E‖J v‖²,  J v from f(θ + εv) - f(θ) over ε
 *
 * Source: ../shared/ALGORITHMS.md Q3 (HAWQ v2 and the forward-only forms).
 */
import { outOfRange } from '../../runtime/errors.ts';

/** How {@link hutchinsonTrace} samples. */
export interface TraceOptions {
  /** Random vectors. Default 100 */
  readonly vectors?: number;
  /** Seed of their signs. Default 1 */
  readonly seed?: number;
}

/**
 * The trace of a symmetric matrix that is known by its products.
 *
 * @param multiply - v [size] -> H v [size]
 * @returns an estimate without bias; its error falls with the root of the number of vectors
 */
export function hutchinsonTrace(
  size: number,
  multiply: (v: Float64Array) => ArrayLike<number>,
  options: TraceOptions = {},
): number {
  return meanOverSigns(size, options, (v) => {
    const product = multiply(v);
    return v.reduce((sum, sign, i) => sum + sign * (product[i] ?? 0), 0);
  });
}

/**
 * The trace of the Gauss-Newton matrix of a function at a point: how much its outputs move, squared and
 * summed, for parameters that move by one each.
 *
 * @param evaluate - parameters displaced by a vector [size] -> outputs
 * @param step - size of the displacement; about 1e-3 of the root mean square of the parameters
 */
export function gaussNewtonTrace(
  size: number,
  evaluate: (displacement: Float64Array) => ArrayLike<number>,
  step: number,
  options: TraceOptions = {},
): number {
  if (!(step > 0)) throw outOfRange('step', 'above 0', step);
  const origin = Float64Array.from(evaluate(new Float64Array(size)));
  return meanOverSigns(size, { vectors: 12, ...options }, (v) => {
    const moved = evaluate(v.map((sign) => sign * step));
    return origin.reduce((sum, value, i) => sum + ((moved[i] ?? 0) - value) ** 2, 0) / step ** 2;
  });
}

function meanOverSigns(
  size: number,
  { vectors = 100, seed = 1 }: TraceOptions,
  sample: (signs: Float64Array) => number,
): number {
  if (!(vectors >= 1)) throw outOfRange('vectors', 'at least 1', vectors);
  let state = Math.imul(seed + 1, 0x9e3779b1) | 1;
  const signs = new Float64Array(size);
  let sum = 0;
  for (let vector = 0; vector < vectors; vector++) {
    for (let i = 0; i < size; i++) {
      // xorshift; the multiplication decides which bits a sign sees
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      signs[i] = Math.imul(state, 0x2545f491) < 0 ? -1 : 1;
    }
    sum += sample(signs);
  }
  return sum / vectors;
}
