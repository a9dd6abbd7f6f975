/**
 * Tells tables of sines and cosines (rotary and sinusoidal position embeddings) from learned ones.
 * Positions must stay exact, and such a table is small, so it is not worth a single bit.
 */
import type { RowSource } from './matrix.ts';

/** Rounding of f16 tables, twice. */
const tolerance = 4e-3;

/**
 * Whether every column of a table is `m cos(f p)` or `sin(f p)` of its row number p = 0, 1, 2, by the
 * double-angle formulas: `c2 m = 2 c1² - m²` and `s2² = 4 s1² (1 - s1²)`.
 *
 * @param table - any table; fewer than three rows are never sinusoids
 */
export function isSinusoidal(table: RowSource): boolean {
  const { rows, columns } = table;
  if (rows < 3 || columns === 0) return false;
  const head = table.read(0, 3);
  const at = (row: number, column: number): number => head[row * columns + column] ?? 0;
  for (let column = 0; column < columns; column++) {
    const [zero, one, two] = [at(0, column), at(1, column), at(2, column)];
    const cosine = zero > 0 && near(two * zero, 2 * one * one - zero * zero, zero * zero);
    const sine =
      zero === 0 &&
      Math.abs(one) <= 1 &&
      near(two * two, 4 * one * one * (1 - one * one), two * two + one * one);
    if (!cosine && !sine) return false;
  }
  // a row of padding is zero too, and so may be the rows after it
  return head.some((value) => value !== 0);
}

function near(a: number, b: number, scale: number): boolean {
  return Math.abs(a - b) <= tolerance * scale;
}
