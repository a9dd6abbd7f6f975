/**
 * Seeded random weights that can be read from any byte on: element i of a tensor depends on the seed
 * and i alone, so a model of any size needs no file, no memory and no order.
 *
 * (seed, i) -> 32 hash bits -> the normal quantile at that fraction, linear between 4,096 steps.
 * Hash: the two-multiply integer finalizer found by the search of
 * https://github.com/skeeto/hash-prospector (`lowbias32`). Quantile function: P. J. Acklam's rational
 * approximation (relative error below 1.2e-9).
 */
import { Weight } from '../compiler/ir/weight.ts';
import { outOfRange } from '../runtime/errors.ts';
import { elementCount } from '../runtime/tensor.ts';

/** A normal distribution. */
export interface Normal {
  /** Mean; default 0. */
  readonly mean?: number;
  /** Standard deviation. */
  readonly deviation: number;
}

const STEPS = 4096;

/**
 * A 32-bit seed made from a text (FNV-1a), so that a tensor's values depend on its name and not on
 * when it was made.
 */
export function seedOf(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** 32 well-mixed bits of element `index` under `seed`. */
export function hashBits(seed: number, index: number): number {
  // the seed is mixed first: neighbouring seeds must not give shifted copies of one sequence
  let bits = mix(seed) ^ (index | 0);
  bits = mix(bits);
  return bits >>> 0;
}

function mix(value: number): number {
  let bits = value;
  bits ^= bits >>> 16;
  bits = Math.imul(bits, 0x7feb352d);
  bits ^= bits >>> 15;
  bits = Math.imul(bits, 0x846ca68b);
  return bits ^ (bits >>> 16);
}

/** A stream of uniform numbers in [0, 1), for small choices in tests and inputs. */
export function uniformStream(seed: number): () => number {
  let index = 0;
  return () => hashBits(seed, index++) / 2 ** 32;
}

/**
 * A lazy f32 weight of normally distributed values, truncated near 3.7 deviations. About 4 ns an
 * element; nothing is kept between reads.
 *
 * @param shape - at most 2^32 elements
 * @param seed - see {@link seedOf}
 * @param normal - distribution
 * @throws RangeError for more than 2^32 elements
 */
export function randomWeight(shape: readonly number[], seed: number, normal: Normal): Weight {
  const count = elementCount(shape);
  if (count > 2 ** 32) throw outOfRange('shape', 'at most 2^32 elements', `[${shape}]`);
  const { deviation, mean = 0 } = normal;
  return Weight.lazy('f32', shape, (start, length) =>
    byteRange(start, length, (first, values) => {
      fillNormal(values, seed, first, mean, deviation);
    }),
  );
}

/**
 * The transpose of {@link randomWeight}, as its own bytes: what an exporter writes that stores a tied
 * table a second time, ready for MatMul.
 *
 * @param rows - rows of the original
 * @param columns - columns of the original, rows of this one
 */
export function transposedRandomWeight(
  rows: number,
  columns: number,
  seed: number,
  normal: Normal,
): Weight {
  const one = new Float32Array(1);
  const { deviation, mean = 0 } = normal;
  return Weight.lazy('f32', [columns, rows], (start, length) =>
    byteRange(start, length, (first, values) => {
      for (let i = 0; i < values.length; i++) {
        const row = (first + i) % rows;
        const column = Math.floor((first + i) / rows);
        fillNormal(one, seed, row * columns + column, mean, deviation);
        values[i] = one[0] ?? 0;
      }
    }),
  );
}

function fillNormal(
  values: Float32Array,
  seed: number,
  first: number,
  mean: number,
  deviation: number,
): void {
  const key = mix(seed);
  const { length } = values;
  for (let i = 0; i < length; i++) {
    // mix() by hand: this loop makes hundreds of millions of numbers
    let bits = key ^ ((first + i) | 0);
    bits ^= bits >>> 16;
    bits = Math.imul(bits, 0x7feb352d);
    bits ^= bits >>> 15;
    bits = Math.imul(bits, 0x846ca68b);
    bits ^= bits >>> 16;
    const step = bits >>> 20;
    const low = quantiles[step] as number;
    const high = quantiles[step + 1] as number;
    values[i] = mean + deviation * (low + (high - low) * ((bits & 0xfffff) * 2 ** -20));
  }
}

/** Bytes `start` to `start + length` of f32 values that `fill` makes from an element index on. */
function byteRange(
  start: number,
  length: number,
  fill: (first: number, values: Float32Array) => void,
): Uint8Array {
  const first = Math.floor(start / 4);
  const values = new Float32Array(Math.ceil((start + length) / 4) - first);
  fill(first, values);
  return new Uint8Array(values.buffer, start - first * 4, length);
}

/** Normal quantiles at i / 4096, the ends pulled in by an eighth of a step so that they are finite. */
const quantiles: Float64Array = Float64Array.from({ length: STEPS + 1 }, (_, i) => {
  const fraction = Math.min(Math.max(i, 0.125), STEPS - 0.125) / STEPS;
  // rounded, so that an engine whose Math.log differs in the last bit makes the same weights
  return Math.round(normalQuantile(fraction) * 2 ** 20) / 2 ** 20;
});

function normalQuantile(fraction: number): number {
  if (fraction > 0.5) return -normalQuantile(1 - fraction);
  if (fraction < 0.02425) {
    const q = Math.sqrt(-2 * Math.log(fraction));
    return (
      horner(
        q,
        -7.784894002430293e-3,
        -0.3223964580411365,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
      ) /
      horner(q, 7.784695709041462e-3, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1)
    );
  }
  const q = fraction - 0.5;
  const r = q * q;
  return (
    (q *
      horner(
        r,
        -39.69683028665376,
        220.9460984245205,
        -275.9285104469687,
        138.357751867269,
        -30.66479806614716,
        2.506628277459239,
      )) /
    horner(
      r,
      -54.47609879822406,
      161.5858368580409,
      -155.6989798598866,
      66.80131188771972,
      -13.28068155288572,
      1,
    )
  );
}

/** A polynomial, highest power first. */
function horner(x: number, ...coefficients: readonly number[]): number {
  return coefficients.reduce((sum, coefficient) => sum * x + coefficient, 0);
}
