import assert from 'node:assert/strict';
import test from 'node:test';
import { Algebra } from '../../compiler/algebra/algebra.ts';
import { deflated } from '../../compiler/algebra/generated/algebra.ts';
import { algebraBuild, buildKernels } from '../../runtime/wasm/build-kernels.ts';
import { unpackBinary } from '../../runtime/wasm/module.ts';
import { normalValues, uniform } from '../support/random-values.ts';

const algebra = await Algebra.create();

test('the committed module is what the sources build to', async () => {
  assert.deepEqual(await buildKernels(algebraBuild), await unpackBinary(deflated, 'algebra'));
});

/** Σ_k a[i, k] b[k, j] in doubles. */
function plainProduct(
  a: (i: number, k: number) => number,
  b: (k: number, j: number) => number,
  m: number,
  k: number,
  n: number,
): Float64Array {
  const out = new Float64Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++)
      for (let p = 0; p < k; p++) out[i * n + j] = (out[i * n + j] ?? 0) + a(i, p) * b(p, j);
  return out;
}

function assertNear(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
): void {
  assert.equal(actual.length, expected.length);
  for (let i = 0; i < actual.length; i++) {
    const difference = Math.abs((actual[i] ?? NaN) - (expected[i] ?? NaN));
    assert.ok(difference <= tolerance, `${i}: ${actual[i]}, expected ${expected[i]}`);
  }
}

test('products agree with sums in doubles, whatever the sizes and orientation', () => {
  for (const [m, k, n] of [
    [1, 1, 1],
    [4, 256, 8],
    [7, 300, 13],
    [131, 17, 9],
    [3, 600, 41],
  ] as const) {
    const a = normalValues(m * k, 1);
    const b = normalValues(k * n, 2);
    for (const aTransposed of [false, true])
      for (const bTransposed of [false, true]) {
        const out = algebra.matmul(a, b, m, k, n, { aTransposed, bTransposed });
        const expected = plainProduct(
          (i, p) => a[aTransposed ? p * m + i : i * k + p] ?? 0,
          (p, j) => b[bTransposed ? j * k + p : p * n + j] ?? 0,
          m,
          k,
          n,
        );
        // sums of k products of about 1, rounded to 24 bits at each step
        assertNear(out, expected, 1e-6 * k);
      }
  }
});

test('a Gram matrix is the weighted sum of outer products, and symmetric to the last bit', () => {
  const [tokens, columns] = [900, 21];
  const x = normalValues(tokens * columns, 3);
  const next = uniform(4);
  const weights = Float32Array.from({ length: tokens }, next);
  for (const w of [undefined, weights]) {
    const gram = algebra.gram(columns);
    gram.add(x.subarray(0, 700 * columns), w?.subarray(0, 700));
    gram.add(x.subarray(700 * columns), w?.subarray(700));
    const total = w === undefined ? tokens : w.reduce((sum, value) => sum + value, 0);
    const expected = plainProduct(
      (i, t) => (x[t * columns + i] ?? 0) * (w?.[t] ?? 1) * (2 / total),
      (t, j) => x[t * columns + j] ?? 0,
      columns,
      tokens,
      columns,
    );
    const hessian = gram.hessian();
    assertNear(hessian, expected, 1e-5);
    for (let i = 0; i < columns; i++)
      for (let j = 0; j < i; j++) assert.equal(hessian[i * columns + j], hessian[j * columns + i]);
    gram.dispose();
  }
});

test('a Gram matrix of two inputs is the sum of their outer products', () => {
  const [tokens, columns] = [300, 10];
  const x = normalValues(tokens * columns, 5);
  const y = normalValues(tokens * columns, 6);
  const gram = algebra.gram(columns);
  gram.add(x, undefined, y);
  const expected = plainProduct(
    (i, t) => x[t * columns + i] ?? 0,
    (t, j) => y[t * columns + j] ?? 0,
    columns,
    tokens,
    columns,
  );
  assertNear(gram.matrix(), expected, 1e-4);
  gram.dispose();
});

/** A symmetric positive definite matrix. */
function positive(n: number, seed: number): Float32Array {
  const x = normalValues(2 * n * n, seed);
  const gram = algebra.gram(n);
  gram.add(x);
  const matrix = gram.hessian();
  gram.dispose();
  return matrix;
}

test('a Cholesky factor multiplies back to the matrix, at every size around its tiles', () => {
  for (const n of [1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 70]) {
    const matrix = positive(n, n);
    const lower = algebra.cholesky(matrix, n);
    assert.ok(lower);
    const back = plainProduct(
      (i, k) => lower[i * n + k] ?? 0,
      (k, j) => lower[j * n + k] ?? 0,
      n,
      n,
      n,
    );
    assertNear(back, matrix, 1e-12 * n);
  }
});

test('a matrix that is not positive definite has no factor, until it is damped enough', () => {
  const n = 12;
  const matrix = positive(n, 50);
  for (let j = 0; j < n; j++) matrix[3 * n + j] = matrix[j * n + 3] = 0;
  matrix[3 * n + 3] = -0.5;
  assert.equal(algebra.cholesky(matrix, n), undefined);
  const factor = algebra.inverseFactor(matrix, n, 0.1, 50);
  assert.ok(factor);
  assert.ok(factor.damping > 0.5, `${factor.damping}`);
  assert.equal(algebra.inverseFactor(matrix, n, 1e-6, 3), undefined);
});

test('the inverse factor is upper triangular and gives the identity', () => {
  for (const n of [1, 3, 4, 5, 8, 66]) {
    const matrix = positive(n, 90 + n);
    const factor = algebra.inverseFactor(matrix, n, 0.01);
    assert.ok(factor);
    const { upper, damping } = factor;
    for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) assert.equal(upper[i * n + j], 0);
    const inverse = plainProduct(
      (i, k) => upper[k * n + i] ?? 0,
      (k, j) => upper[k * n + j] ?? 0,
      n,
      n,
      n,
    );
    const identity = plainProduct(
      (i, k) => inverse[i * n + k] ?? 0,
      (k, j) => (matrix[k * n + j] ?? 0) + (k === j ? damping : 0),
      n,
      n,
      n,
    );
    // condition numbers below 1e3, doubles
    assertNear(
      identity,
      Float64Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0)),
      1e-11,
    );
  }
});

test('the Hadamard transform is orthogonal, its own inverse, and runs along either axis', () => {
  const values = normalValues(3 * 64, 7);
  const turned = values.slice();
  algebra.hadamard(turned, 64);
  const energy = (list: Float32Array): number => list.reduce((sum, v) => sum + v * v, 0);
  assert.ok(Math.abs(energy(turned) / energy(values) - 1) < 1e-6);
  assert.ok(
    Math.abs((turned[0] ?? 0) - values.subarray(0, 64).reduce((s, v) => s + v, 0) / 8) < 1e-5,
  );
  algebra.hadamard(turned, 64);
  assertNear(turned, values, 1e-5);
  // [16, 12]: along the first axis it is the transform of every column
  const wide = normalValues(16 * 12, 8);
  const column = Float32Array.from({ length: 16 }, (_, i) => wide[i * 12 + 5] ?? 0);
  algebra.hadamard(column, 16);
  algebra.hadamard(wide, 16, 12);
  assertNear(
    Float32Array.from({ length: 16 }, (_, i) => wide[i * 12 + 5] ?? 0),
    column,
    1e-6,
  );
});

test('memory that is given back is used again', () => {
  const before = algebra.heap.memory.buffer.byteLength;
  const a = normalValues(200 * 200, 9);
  algebra.matmul(a, a, 200, 200, 200);
  const grown = algebra.heap.memory.buffer.byteLength;
  assert.ok(grown > before);
  for (let i = 0; i < 5; i++) algebra.matmul(a, a, 200, 200, 200);
  assert.equal(algebra.heap.memory.buffer.byteLength, grown);
});

test('sizes that do not fit are refused', () => {
  const a = new Float32Array(6);
  assert.throws(() => algebra.matmul(a, a, 2, 2, 3), RangeError);
  assert.throws(() => algebra.gram(4).add(a), RangeError);
  assert.throws(() => algebra.hadamard(a, 3), RangeError);
  assert.throws(() => algebra.cholesky(a, 2), RangeError);
});
