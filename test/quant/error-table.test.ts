/**
 * The table of expected rounding errors, ../shared/ALGORITHMS.md 0.4: relative weight MSE of
 * round-to-nearest on 2^20 independent values.
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import { Algebra } from '../../compiler/algebra/algebra.ts';
import type { Codebook } from '../../compiler/quant/codebook.ts';
import { bipolar, fp4, nf4, roundToCodebook } from '../../compiler/quant/codebook.ts';
import { relativeSquaredError } from '../../compiler/quant/error.ts';
import type { CodeBits } from '../../compiler/quant/formats.ts';
import { dequantizeMatrix, quantizeMatrix } from '../../compiler/quant/matrix.ts';
import { laplaceValues, normalValues } from '../support/random-values.ts';

const algebra = await Algebra.create();

const count = 1 << 20;

const samples = { normal: normalValues(count, 1), laplace: laplaceValues(count, 2) };

/** Bits, symmetric, group, clip search, expected error on N(0, 1) and on Laplace. */
const integers: readonly (readonly [CodeBits, boolean, number, boolean, number, number])[] = [
  [4, true, 32, false, 0.0094, 0.0147],
  [4, false, 32, false, 0.0065, 0.0089],
  [4, true, 64, false, 0.0116, 0.0199],
  [4, false, 64, false, 0.0083, 0.0127],
  [4, false, 128, false, 0.0102, 0.017],
  [4, false, 64, true, 0.0076, 0.0118],
  [3, false, 64, false, 0.0381, 0.056],
  [2, false, 32, false, 0.165, 0.189],
  [2, false, 16, false, 0.122, 0.13],
  [8, false, 1024, false, 5e-5, 1.2e-4],
];

/** Codebook, group, expected error on N(0, 1) and on Laplace. */
const codebooks: readonly (readonly [Codebook, number, number, number])[] = [
  [fp4, 32, 0.0102, 0.0105],
  [fp4, 128, 0.0119, 0.0146],
  [nf4, 64, 0.0085, 0.0107],
  [bipolar(4), 32, 0.0082, 0.0132],
];

/**
 * The table states 3%. An entry of a single digit (5e-5) is known to half a unit of that digit, which
 * is more than 3%.
 */
function assertNear(actual: number, expected: number, what: string): void {
  const [mantissa = '', exponent = '0'] = expected.toExponential().split('e');
  const halfUnit = mantissa.length === 1 ? 0.5 * 10 ** Number(exponent) : 0;
  const tolerance = Math.max(0.03 * expected, halfUnit);
  assert.ok(
    Math.abs(actual - expected) <= tolerance,
    `${what}: error ${actual}, expected ${expected} ± ${tolerance}`,
  );
}

for (const [bits, symmetric, group, clip, normal, laplace] of integers) {
  const name = `int${bits} ${symmetric ? 'sym' : 'asym'} g${group}${clip ? ' with clip search' : ''}`;
  test(`${name} has the error of the table`, () => {
    for (const [kind, expected] of [
      ['normal', normal],
      ['laplace', laplace],
    ] as const) {
      const values = samples[kind];
      const columns = 1024;
      const source = {
        rows: count / columns,
        columns,
        read: (start: number, rows: number) =>
          values.subarray(start * columns, (start + rows) * columns),
      };
      const result = quantizeMatrix(source, { bits, symmetric, group }, algebra, clip);
      assert.ok('matrix' in result);
      // the table's grids of 2 and 3 bits have a level at zero; ours need not, and lose less (quant/grid.ts)
      if (bits < 4) {
        const share = result.relativeError / expected;
        assert.ok(share > 0.75 && share < 1.01, `${name}, ${kind}: ${share} of the table`);
      } else assertNear(result.relativeError, expected, `${name}, ${kind}`);
      // what is reported is what the stored codes give
      const stored = relativeSquaredError(values, dequantizeMatrix(result.matrix));
      assert.ok(Math.abs(stored / result.relativeError - 1) < 1e-4, `${stored}`);
    }
  });
}

for (const [codebook, group, normal, laplace] of codebooks)
  test(`${codebook.name} g${group} has the error of the table`, () => {
    for (const [kind, expected] of [
      ['normal', normal],
      ['laplace', laplace],
    ] as const) {
      const values = samples[kind];
      const rounded = roundToCodebook(values, codebook, group);
      assertNear(relativeSquaredError(values, rounded), expected, `${codebook.name}, ${kind}`);
    }
  });
