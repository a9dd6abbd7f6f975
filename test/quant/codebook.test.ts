/** k-means of numbers, and matrices rounded to the levels it finds (`c4g32`). */
import assert from 'node:assert/strict';
import test from 'node:test';
import { Algebra } from '../../compiler/algebra/algebra.ts';
import { relativeSquaredError } from '../../compiler/quant/error.ts';
import { kMeans } from '../../compiler/quant/k-means.ts';
import { learnLevels, quantizeToCodebook } from '../../compiler/quant/learned-codebook.ts';
import type { QuantizedMatrix, RowSource } from '../../compiler/quant/matrix.ts';
import { dequantizeMatrix, quantizeMatrix, withoutCodebook } from '../../compiler/quant/matrix.ts';
import { laplaceValues, normalValues, uniform } from '../support/random-values.ts';

const algebra = await Algebra.create();

function source(values: Float32Array, columns: number): RowSource {
  return {
    rows: values.length / columns,
    columns,
    read: (start, count) => values.subarray(start * columns, (start + count) * columns),
  };
}

function rounded(result: ReturnType<typeof quantizeToCodebook>): QuantizedMatrix {
  assert.ok('matrix' in result);
  return result.matrix;
}

function loss(values: ArrayLike<number>, weights: ArrayLike<number>, levels: Float64Array): number {
  return Array.from(values).reduce((sum, value, i) => {
    const nearest = levels.reduce(
      (best, level) => Math.min(best, Math.abs(value - level)),
      Infinity,
    );
    return sum + (weights[i] ?? 0) * nearest ** 2;
  }, 0);
}

test('k-means finds clusters that are there', () => {
  const next = uniform(3);
  const centres = [-7, -2, 0, 0.5, 9];
  const values = Array.from(
    { length: 5000 },
    (_, i) => (centres[i % 5] ?? 0) + (next() - 0.5) / 50,
  );
  const levels = kMeans(values, undefined, { levels: 5 });
  levels.forEach((level, i) => assert.ok(Math.abs(level - (centres[i] ?? 0)) < 0.01, `${levels}`));
});

test('the loss of k-means never rises from one step to the next', () => {
  const values = laplaceValues(2000, 5);
  const weights = normalValues(2000, 6).map(Math.abs);
  let before = Infinity;
  for (let steps = 0; steps <= 30; steps++) {
    const now = loss(values, weights, kMeans(values, weights, { steps }));
    assert.ok(now <= before * (1 + 1e-12), `${steps}: ${now} after ${before}`);
    before = now;
  }
});

test('values that repeat and values with weights give the same levels', () => {
  const distinct = Array.from(normalValues(300, 7));
  const counts = distinct.map((_, i) => 1 + (i % 4));
  const repeated = distinct.flatMap((value, i) =>
    Array.from({ length: counts[i] ?? 0 }, () => value),
  );
  const a = kMeans(distinct, counts);
  const b = kMeans(repeated);
  // sums in another order
  a.forEach((level, i) => assert.ok(Math.abs(level - (b[i] ?? 0)) < 1e-9, `${i}`));
});

test('fewer values than levels, and no values', () => {
  assert.deepEqual(new Set(kMeans([3, 3, 5])), new Set([3, 5]));
  assert.throws(() => kMeans([]), RangeError);
  assert.throws(() => kMeans([1, 2], [1]), RangeError);
});

for (const [kind, values, most] of [
  // NF4, which is made for it, has 0.0085 with groups of 64
  ['normal', normalValues(1 << 18, 1), 0.0075],
  ['Laplace', laplaceValues(1 << 18, 2), 0.0095],
] as const)
  test(`learned levels lose less on ${kind} values than integers of the same size`, () => {
    const rows = source(values, 512);
    const result = quantizeToCodebook(rows, { group: 64 });
    const integers = quantizeMatrix(rows, { bits: 4, symmetric: false, group: 64 }, algebra);
    assert.ok('matrix' in result && 'matrix' in integers);
    assert.ok(result.relativeError < most, `${result.relativeError}`);
    assert.ok(result.relativeError < integers.relativeError);
    // what is reported is what the stored codes give
    const stored = relativeSquaredError(values, dequantizeMatrix(result.matrix));
    assert.ok(Math.abs(stored / result.relativeError - 1) < 1e-4, `${stored}`);
  });

test('every code is the nearest level, and levels have 7 bits', () => {
  const values = normalValues(64 * 96, 8);
  const matrix = rounded(quantizeToCodebook(source(values, 96), { group: 32 }));
  const { codebook } = matrix;
  assert.ok(codebook !== undefined);
  assert.ok(codebook.every((level) => level >= -64 && level <= 63));
  assert.deepEqual(
    [...codebook],
    [...codebook].toSorted((a, b) => a - b),
  );
  const near = dequantizeMatrix(matrix);
  const scaleOf = dequantizeMatrix({ ...matrix, codebook: Int8Array.from(codebook, () => 1) });
  values.forEach((value, i) => {
    const scale = scaleOf[i] ?? 0;
    const best = Math.min(...[...codebook].map((level) => Math.abs(value - level * scale)));
    // a tie may go either way
    assert.ok(Math.abs(Math.abs(value - (near[i] ?? 0)) - best) < 1e-6, `${i}`);
  });
});

test('runs of rows have codebooks of their own, which pays when they differ', () => {
  const [normal, laplace] = [normalValues(64 * 128, 3), laplaceValues(64 * 128, 4)];
  const values = Float32Array.of(...normal.map((x) => Math.sign(x) * x * x), ...laplace);
  const one = quantizeToCodebook(source(values, 128), { group: 32 });
  const two = quantizeToCodebook(source(values, 128), { group: 32 }, { codebooks: 2 });
  assert.ok('matrix' in one && 'matrix' in two);
  assert.equal(two.matrix.codebook?.length, 32);
  assert.ok(two.relativeError < one.relativeError);
  assert.throws(
    () => quantizeToCodebook(source(values, 128), { group: 32 }, { codebooks: 3 }),
    RangeError,
  );
});

test('weights of inputs decide what the levels and scales are for', () => {
  const values = normalValues(256 * 64, 9);
  const weights = Array.from({ length: 64 }, (_, i) => (i % 8 === 0 ? 100 : 0.01));
  const weighted = (options: { weights?: number[] }): number => {
    const near = dequantizeMatrix(
      rounded(quantizeToCodebook(source(values, 64), { group: 32 }, options)),
    );
    return values.reduce(
      (sum, value, i) => sum + (weights[i % 64] ?? 0) * (value - (near[i] ?? 0)) ** 2,
      0,
    );
  };
  assert.ok(weighted({ weights }) < 0.7 * weighted({}));
});

test('levels that are given are kept', () => {
  const levels = Int8Array.from({ length: 16 }, (_, i) => 8 * i - 60);
  const values = normalValues(1024, 10);
  const matrix = rounded(quantizeToCodebook(source(values, 64), { group: 32 }, { levels }));
  assert.deepEqual(matrix.codebook, levels);
});

test('in 8 bits without a codebook the values are the same', () => {
  const values = laplaceValues(32 * 40, 11);
  const matrix = rounded(quantizeToCodebook(source(values, 40), { group: 16 }, { codebooks: 2 }));
  const wide = withoutCodebook(matrix);
  assert.equal(wide.bits, 8);
  assert.deepEqual(dequantizeMatrix(wide), dequantizeMatrix(matrix));
});

test('zeros stay zeros, and what has no code is refused by row and column', () => {
  const zeros = quantizeToCodebook(source(new Float32Array(128), 64), { group: 32 });
  assert.ok('matrix' in zeros);
  assert.ok(dequantizeMatrix(zeros.matrix).every((value) => value === 0));
  const values = normalValues(128, 12);
  values[70] = Number.NaN;
  const refused = quantizeToCodebook(source(values, 64), { group: 32 });
  assert.ok('refused' in refused && /row 1, column 6 is NaN/.test(refused.refused));
});

test('levels of many rows are learned from a sample of them', () => {
  const values = normalValues(1 << 21, 13);
  let read = 0;
  const counted: RowSource = {
    ...source(values, 256),
    read(start, count) {
      read += count;
      return values.subarray(start * 256, (start + count) * 256);
    },
  };
  const levels = learnLevels(counted, 0, values.length / 256, 32);
  assert.equal(levels.length, 16);
  assert.ok(read * 256 <= 1 << 20, `${read} rows`);
});
