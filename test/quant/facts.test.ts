/**
 * The numeric facts of ../shared/ALGORITHMS.md as tests. The 33 of 0.3 and 0.4 that concern quantization,
 * one by one, with the test that holds each:
 *
 *   B2  1 the gain of a norm folds into its readers      ../golden/fold-norm-gains, ../calibrate/transforms
 *       2 layer norm = rms norm behind I - 11ᵀ/d         ../calibrate/transforms (micro:layer-norm), ../golden/rotate-spine
 *   B4  3-6 blocks of H keep 0.084 (all), 0.171 (128), 0.317 (64), 0.585 (32) of the error of rounding to
 *       nearest, on a layer that is not given: held to be less than 1 and to rise in this order
 *                                                        round-unit.test.ts, "blocks of the Hessian"
 *   B5  7 the knapsack finds what trying everything finds, 8 also under a second constraint
 *                                                        ../search/solver.test.ts
 *   B7  9 factors tied in a pair pass RoPE, 10 untied ones do not, 11 permutations of pairs do with their
 *       frequencies, 12 any map of V does, per kv head   here; 12 on models: ../calibrate/transforms
 *   B8  13 turning a tied stream at its ends takes 2 d² weights   ../calibrate/transforms
 *   0.4 14-27 the 14 rows of the table of errors, each on normal and on Laplace values   error-table.test.ts
 *       28-33 bits of scales (4.5, 4.25, 4.125) and zero points (0.125, 0.0625, 0.031)   here
 *
 * Of the entries on methods, those that another file holds:
 *
 *   B4 dead inputs, damping, factors               round-unit.test.ts, ../algebra/algebra.test.ts
 *   Q1 BN folding, equalisation, bias correction   ../golden/{fold-batch-norm,equalize-layers,correct-bias},
 *                                                  ../calibrate/channel-scales.test.ts
 *   Q5 equal losses and the mean to 1e-12          ../search/baselines.test.ts
 *   Q6 flips, GPTQ with H = I, proxy below RTN     round-unit.test.ts
 *   Q7 uniform token weights                       here; other weights: ../calibrate/sequential.test.ts
 *   Q9 logarithmic equalisation                    ../calibrate/channel-scales.test.ts
 *   Q15 k-means monotone, unique values, NF4       codebook.test.ts, error-table.test.ts
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import { Algebra } from '../../compiler/algebra/algebra.ts';
import { bipolar } from '../../compiler/quant/codebook.ts';
import { gaussNewtonTrace, hutchinsonTrace } from '../../compiler/quant/curvature.ts';
import { bitsPerWeight, parseFormat } from '../../compiler/quant/formats.ts';
import { Rotation } from '../../compiler/quant/rotation.ts';
import { logSpaceUse } from '../../compiler/quant/space-use.ts';
import { outlyingShare } from '../../compiler/search/block-scores.ts';
import { correlatedInputs } from '../support/correlated-inputs.ts';
import { normalValues } from '../support/random-values.ts';

const algebra = await Algebra.create();

function hessianOf(inputs: Float32Array, columns: number, weights?: Float32Array): Float32Array {
  const gram = algebra.gram(columns);
  gram.add(inputs, weights);
  const hessian = gram.hessian();
  gram.dispose();
  return hessian;
}

test('0.4: scales and zero points cost the bits per weight that are stated', () => {
  for (const [name, bits] of [
    ['w4g32', 4.5],
    ['w4g64', 4.25],
    ['w4g128', 4.125],
    ['w4g32a', 4.5 + 0.125],
    ['w4g64a', 4.25 + 0.0625],
    ['w4g128a', 4.125 + 0.03125],
  ] as const)
    assert.equal(bitsPerWeight(parseFormat(name), 1024), bits, name);
});

/** A row turned by its position: pairs are (i, i + size / 2), as in Llama. */
function rotated(row: ArrayLike<number>, position: number, frequencies: readonly number[]) {
  const half = row.length / 2;
  return Float64Array.from(row, (value, i) => {
    const angle = position * (frequencies[i % half] ?? 0);
    const other = i < half ? -(row[i + half] ?? 0) : (row[i - half] ?? 0);
    return value * Math.cos(angle) + other * Math.sin(angle);
  });
}

/** Largest change of q·k at any two positions when both are mapped before RoPE. */
function changeOfScores(
  mapQ: (row: Float64Array) => Float64Array,
  mapK: (row: Float64Array) => Float64Array,
  after: (frequencies: readonly number[]) => readonly number[] = (same) => same,
): number {
  const [tokens, size] = [12, 16];
  const frequencies = Array.from({ length: size / 2 }, (_, i) => 10_000 ** ((-2 * i) / size));
  const rows = (seed: number): Float64Array[] => {
    const values = normalValues(tokens * size, seed);
    return Array.from({ length: tokens }, (_, t) =>
      Float64Array.from(values.subarray(t * size, (t + 1) * size)),
    );
  };
  const [queries, keys] = [rows(21), rows(22)];
  const dot = (a: Float64Array, b: Float64Array): number =>
    a.reduce((sum, value, i) => sum + value * (b[i] ?? 0), 0);
  let most = 0;
  queries.forEach((q, t) =>
    keys.forEach((k, u) => {
      const before = dot(rotated(q, t, frequencies), rotated(k, u, frequencies));
      const mapped = after(frequencies);
      const now = dot(rotated(mapQ(q), t, mapped), rotated(mapK(k), u, mapped));
      most = Math.max(most, Math.abs(now - before));
    }),
  );
  return most;
}

test('B7: factors tied in a pair and permutations of pairs leave scores as they are, others do not', () => {
  const factors = [2, 0.5, 3, 1, 4, 0.25, 1.5, 1];
  const tied = (by: (factor: number) => number) => (row: Float64Array) =>
    row.map((value, i) => value * by(factors[i % 8] ?? 1));
  assert.ok(
    changeOfScores(
      tied((factor) => factor),
      tied((factor) => 1 / factor),
    ) < 1e-12,
  );
  const untied = (by: (factor: number) => number) => (row: Float64Array) =>
    row.map((value, i) => (i < 8 ? value * by(factors[i] ?? 1) : value));
  assert.ok(
    changeOfScores(
      untied((factor) => factor),
      untied((factor) => 1 / factor),
    ) > 0.1,
  );
  const order = [3, 0, 7, 1, 6, 2, 5, 4];
  const permuted = (row: Float64Array): Float64Array =>
    row.map((_, i) => row[(order[i % 8] ?? 0) + (i < 8 ? 0 : 8)] ?? 0);
  const moved = (list: readonly number[]): readonly number[] => order.map((i) => list[i] ?? 0);
  assert.ok(changeOfScores(permuted, permuted, moved) < 1e-12);
  assert.ok(changeOfScores(permuted, permuted) > 0.1, 'frequencies have to move along');
});

test('B7: any map of the values of a kv head is undone behind the attention of its query heads', () => {
  const [tokens, size, outputs] = [6, 8, 5];
  const product = (
    a: ArrayLike<number>,
    b: ArrayLike<number>,
    rows: number,
    inner: number,
  ): Float64Array => {
    const columns = b.length / inner;
    return Float64Array.from({ length: rows * columns }, (_, i) => {
      const [row, column] = [Math.floor(i / columns), i % columns];
      let sum = 0;
      for (let k = 0; k < inner; k++)
        sum += (a[row * inner + k] ?? 0) * (b[k * columns + column] ?? 0);
      return sum;
    });
  };
  const rotation = new Rotation(size, 7);
  // not orthogonal: its rows are stretched
  const stretch = Array.from({ length: size }, (_, i) => 1 + i / 3);
  const turn = rotation.matrix().map((value, i) => value * (stretch[Math.floor(i / size)] ?? 1));
  const back = Float64Array.from({ length: size * size }, (_, i) => {
    const [row, column] = [Math.floor(i / size), i % size];
    return (rotation.matrix()[column * size + row] ?? 0) / (stretch[column] ?? 1);
  });
  const values = normalValues(tokens * size, 31);
  // two query heads that share the kv head
  for (const seed of [32, 33]) {
    const attention = normalValues(tokens * tokens, seed).map(Math.abs);
    const out = normalValues(size * outputs, seed + 10);
    const plain = product(product(attention, values, tokens, tokens), out, tokens, size);
    const turned = product(
      product(attention, product(values, turn, tokens, size), tokens, tokens),
      product(back, out, size, size),
      tokens,
      size,
    );
    plain.forEach((value, i) => assert.ok(Math.abs(value - (turned[i] ?? NaN)) < 1e-10));
  }
});

test('Q2: of normal weights 0.1587 are more than a deviation above the mean', () => {
  const share = outlyingShare([normalValues(1 << 18, 1), normalValues(1 << 18, 2)]);
  // deviation of a share of 2^19 values: 0.0005
  assert.ok(Math.abs(share - 0.1587) < 0.002, `${share}`);
});

test('Q3: 2,000 random vectors give the trace of a quadratic within 3%', () => {
  const size = 64;
  const matrix = hessianOf(correlatedInputs(500, size, 3), size);
  let trace = 0;
  for (let i = 0; i < size; i++) trace += matrix[i * size + i] ?? 0;
  const multiply = (v: Float64Array): Float64Array =>
    Float64Array.from({ length: size }, (_, i) =>
      v.reduce((sum, value, j) => sum + value * (matrix[i * size + j] ?? 0), 0),
    );
  const found = hutchinsonTrace(size, multiply, { vectors: 2000 });
  assert.ok(Math.abs(found / trace - 1) < 0.03, `${found}, expected ${trace}`);
});

test('Q3: the Gauss-Newton trace of a linear map is the square of its norm, and never below 0', () => {
  const [inputs, outputs] = [24, 40];
  const map = normalValues(inputs * outputs, 4);
  const norm = map.reduce((sum, value) => sum + value * value, 0);
  const evaluate = (moved: Float64Array): Float64Array =>
    Float64Array.from({ length: outputs }, (_, o) =>
      moved.reduce((sum, value, i) => sum + (1 + value) * (map[o * inputs + i] ?? 0), 0),
    );
  const found = gaussNewtonTrace(inputs, evaluate, 1e-3, { vectors: 2000 });
  assert.ok(Math.abs(found / norm - 1) < 0.03, `${found}, expected ${norm}`);
  assert.ok(gaussNewtonTrace(inputs, evaluate, 1e-3, { vectors: 1, seed: 9 }) > 0);
});

test('Q7: equal token weights give the plain Hessian', () => {
  const [tokens, columns] = [300, 20];
  const inputs = correlatedInputs(tokens, columns, 5);
  const plain = hessianOf(inputs, columns);
  const weighted = hessianOf(inputs, columns, new Float32Array(tokens).fill(0.25));
  // a power of two: no rounding
  assert.deepEqual(weighted, plain);
});

test('Q8: whitened inputs use the most space, and turning loud channels away uses more', () => {
  const size = 64;
  const inputs = correlatedInputs(4000, size, 6);
  const identity = new Float32Array(size * size);
  for (let i = 0; i < size; i++) identity[i * size + i] = 3;
  assert.ok(Math.abs(logSpaceUse(algebra, identity, size)) < 1e-12);
  for (let t = 0; t < 4000; t++) inputs[t * size + 9] = 20 * (inputs[t * size + 9] ?? 0);
  const before = logSpaceUse(algebra, hessianOf(inputs, size), size);
  const rotation = new Rotation(size, 1);
  const turned = Float64Array.from(inputs);
  for (let t = 0; t < 4000; t++) rotation.apply(turned, t * size);
  const after = logSpaceUse(algebra, hessianOf(Float32Array.from(turned), size), size);
  assert.ok(before < after && after < 0, `${before}, ${after}`);
});

test('Q10: with 119 as the range of the first level, codes of the second never leave int8', () => {
  const worst = (range: number): number => {
    let most = 0;
    for (let low = -range; low <= range; low++)
      for (let high = Math.max(low, -range); high <= range; high++) {
        const [least, greatest] = [Math.min(low, 0), Math.max(high, 0)];
        const step = Math.max(1, Math.round((greatest - least) / 15));
        const zero = Math.min(15, Math.max(0, Math.round(-least / step)));
        for (const value of [low, high]) {
          const code = Math.min(15, Math.max(0, Math.round(value / step) + zero));
          most = Math.max(most, Math.abs((code - zero) * step));
        }
      }
    return most;
  };
  assert.ok(worst(119) <= 127, `${worst(119)}`);
  assert.ok(worst(127) > 127, `${worst(127)}`);
});

test('Q17: bipolar integers are the odd numbers, and their products count equal bits', () => {
  assert.deepEqual(bipolar(3).levels, [-7, -5, -3, -1, 1, 3, 5, 7]);
  const bits = 3;
  const codes = [0, 3, 5, 7, 1, 6, 2, 4];
  const others = [7, 2, 5, 0, 6, 6, 1, 3];
  const value = (code: number): number => bipolar(bits).levels[code] ?? 0;
  const direct = codes.reduce((sum, code, i) => sum + value(code) * value(others[i] ?? 0), 0);
  let counted = 0;
  for (let i = 0; i < bits; i++)
    for (let j = 0; j < bits; j++) {
      const equal = codes.filter((code, k) => ((code >> i) & 1) === (((others[k] ?? 0) >> j) & 1));
      counted += 2 ** (i + j) * (2 * equal.length - codes.length);
    }
  assert.equal(counted, direct);
});
