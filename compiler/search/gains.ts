/**
 * Noise gains: how much the model's output moves when the output of one unit does, measured once per
 * unit with random noise in its weights. One gain prices every format of the unit.
 *
 *   gain = error(W + N) / (σ² · rows · tr(H) / tr(W H Wᵀ)),   N ~ σ · normal
 *
 * Source: ../shared/ALGORITHMS.md Z3 (suffixGain), Q3 (forward-only Gauss-Newton).
 */
import { throwIfAborted } from '../../runtime/errors.ts';
import { createRandom } from '../../runtime/text/random.ts';
import type { Progress } from '../passes/pass.ts';
import type { RowSource } from '../quant/matrix.ts';

/** A model whose weights can be replaced and whose output is compared with the original's. */
export interface ModelProbe {
  /** Error of the model as it is set now, in the metric of the table. */
  error(): Promise<number>;
  /** Replaces the matrix of a unit, [rows, columns]; absent: its own again. */
  setWeight(unit: string, values?: Float32Array): void | Promise<void>;
}

/** What is known of a unit before its gain is measured. */
export interface GainSubject {
  /** Name. */
  readonly name: string;
  /** Its matrix. */
  readonly matrix: RowSource;
  /** Trace of the Hessian of its inputs; 0 for a table that nothing multiplies by. */
  readonly hessianTrace: number;
  /** `tr(W H Wᵀ)`. */
  readonly outputEnergy: number;
}

/** Relative energy of the noise: about that of a format of 4 bits, where errors are still small. */
const NOISE_ENERGY = 0.01;

/**
 * Measures gains, by unit.
 *
 * @param seed - of the noise
 */
export async function measureGains(
  probe: ModelProbe,
  subjects: readonly GainSubject[],
  { seed = 1, progress, signal }: { seed?: number; progress?: Progress; signal?: AbortSignal } = {},
): Promise<Map<string, number>> {
  const gains = new Map<string, number>();
  for (const [index, subject] of subjects.entries()) {
    throwIfAborted(signal);
    const { values, energy } = withNoise(subject, seed + index);
    if (energy > 0) {
      await probe.setWeight(subject.name, values);
      const error = await probe.error();
      await probe.setWeight(subject.name);
      gains.set(subject.name, Math.max(0, error) / energy);
    } else gains.set(subject.name, 0);
    progress?.('noise gains', index + 1, subjects.length);
  }
  return gains;
}

/** The matrix with noise, and the relative energy that the noise has in its output. */
function withNoise(
  { matrix, hessianTrace, outputEnergy }: GainSubject,
  seed: number,
): { readonly values: Float32Array; readonly energy: number } {
  const values = matrix.read(0, matrix.rows).slice();
  const norm = values.reduce((sum, value) => sum + value * value, 0);
  if (norm === 0) return { values, energy: 0 };
  const isMultiplied = hessianTrace > 0 && outputEnergy > 0;
  // energy of noise of deviation 1 in each weight, relative to what the output has
  const unit = isMultiplied ? (matrix.rows * hessianTrace) / outputEnergy : values.length / norm;
  const deviation = Math.sqrt(NOISE_ENERGY / unit);
  const random = createRandom(seed);
  for (let i = 0; i < values.length; i += 2) {
    const radius = deviation * Math.sqrt(-2 * Math.log(1 - random()));
    const angle = 2 * Math.PI * random();
    values[i] = (values[i] ?? 0) + radius * Math.cos(angle);
    if (i + 1 < values.length) values[i + 1] = (values[i + 1] ?? 0) + radius * Math.sin(angle);
  }
  return { values, energy: NOISE_ENERGY };
}
