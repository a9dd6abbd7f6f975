/**
 * The numeric facts of ../shared/ALGORITHMS.md 0.3 and 0.4 and of the entries on quantization, each as a
 * test. Those that another file holds:
 *
 *   0.4, every row of the table of errors         error-table.test.ts
 *   B4 GPTQ, dead inputs, damping, blocks          round-unit.test.ts, ../algebra/algebra.test.ts
 *   B5 the knapsack against brute force            ../search/solver.test.ts
 *   B2, B7, B8 folding, rotation, untying          ../calibrate/transforms.test.ts, ../golden/rotate-*
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
