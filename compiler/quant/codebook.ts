/**
 * Formats whose levels are a list of numbers, one scale per group: FP4 (E2M1), NF4 and bipolar
 * integers. They are here to be measured against: no engine runs them yet, and `c4g32`, which will,
 * learns its list from the weights.
 *
 * Sources: E2M1 is OCP Microscaling Formats v1.0, section 5.3.3; NF4 is QLoRA, arXiv 2305.14314,
 * appendix E; bipolar integers (odd levels, no zero) are ../shared/ALGORITHMS.md Q17.
 */
import { roundToHalf } from './affine.ts';

/** A list of levels, ascending. */
export interface Codebook {
  /** Name in tables. */
  readonly name: string;
  /** Levels in ascending order; the largest magnitude is where a group's largest value goes. */
  readonly levels: readonly number[];
}

const e2m1Magnitudes: readonly number[] = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** Four-bit floating point: sign, two exponent bits, one mantissa bit. */
export const fp4: Codebook = {
  name: 'fp4',
  levels: [
    ...e2m1Magnitudes
      .slice(1)
      .map((level) => -level)
      .reverse(),
    ...e2m1Magnitudes,
  ],
};

/** Quantiles of a normal distribution, with an exact zero. */
export const nf4: Codebook = {
  name: 'nf4',
  levels: [
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1,
  ],
};

/** Odd levels only: -15, -13, …, 15 for four bits. */
export function bipolar(bits: number): Codebook {
  const count = 2 ** bits;
  return {
    name: `bipolar-int${bits}`,
    levels: Array.from({ length: count }, (_, index) => 2 * index - count + 1),
  };
}

/**
 * Replaces every value by the level nearest to it, the scale of a group such that its largest
 * magnitude meets the largest level.
 *
 * @param values - groups follow each other; the last may be shorter
 * @param codebook - levels
 * @param group - values that share a scale
 * @returns the rounded values
 */
export function roundToCodebook(
  values: Float32Array,
  codebook: Codebook,
  group: number,
): Float32Array<ArrayBuffer> {
  const { levels } = codebook;
  const largest = levels.reduce((most, level) => Math.max(most, Math.abs(level)), 0);
  const middles = levels.slice(1).map((level, index) => (level + (levels[index] ?? 0)) / 2);
  const rounded = new Float32Array(values.length);
  for (let start = 0; start < values.length; start += group) {
    const end = Math.min(start + group, values.length);
    let range = 0;
    for (let i = start; i < end; i++) range = Math.max(range, Math.abs(values[i] ?? 0));
    const scale = roundToHalf(range / largest);
    if (scale === 0) continue;
    for (let i = start; i < end; i++)
      rounded[i] = scale * (levels[bracket(middles, (values[i] ?? 0) / scale)] ?? 0);
  }
  return rounded;
}

/** How many of the ascending `middles` are below `value`. */
function bracket(middles: readonly number[], value: number): number {
  let from = 0;
  let to = middles.length;
  while (from < to) {
    const at = (from + to) >> 1;
    if ((middles[at] ?? 0) < value) from = at + 1;
    else to = at;
  }
  return from;
}
