/** Inputs as a linear layer sees them: channels of different size, correlated with one another. */
import { normalValues, uniform } from './random-values.ts';

/**
 * Rows that mix a few common directions with noise of their own.
 *
 * @returns [tokens, columns]
 */
export function correlatedInputs(
  tokens: number,
  columns: number,
  seed: number,
): Float32Array<ArrayBuffer> {
  const hidden = Math.max(4, columns >> 2);
  const common = normalValues(tokens * hidden, seed);
  const own = normalValues(tokens * columns, seed + 1);
  const mix = normalValues(hidden * columns, seed + 2);
  const next = uniform(seed + 3);
  const size = Float32Array.from({ length: columns }, () => Math.exp(1.5 * (next() - 0.5)));
  const rows = new Float32Array(tokens * columns);
  for (let t = 0; t < tokens; t++)
    for (let j = 0; j < columns; j++) {
      let sum = 0.3 * (own[t * columns + j] ?? 0);
      for (let k = 0; k < hidden; k++)
        sum += ((common[t * hidden + k] ?? 0) * (mix[k * columns + j] ?? 0)) / Math.sqrt(hidden);
      rows[t * columns + j] = sum * (size[j] ?? 1);
    }
  return rows;
}
