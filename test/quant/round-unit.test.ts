/** Rounding with statistics of the inputs: GPTQ, sweeps, codebooks, and what is refused. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { Algebra } from '../../compiler/algebra/algebra.ts';
import type { CodeFormat } from '../../compiler/quant/formats.ts';
import { codebookFormat, integerFormat, numberFormats } from '../../compiler/quant/formats.ts';
import type { RowSource } from '../../compiler/quant/matrix.ts';
import { dequantizeMatrix, quantizeMatrix } from '../../compiler/quant/matrix.ts';
import { roundUnit } from '../../compiler/quant/round-unit.ts';
import type { RoundingMethod } from '../../compiler/quant/rounding.ts';
import { methodForTable } from '../../compiler/quant/rounding.ts';
import { FettleError } from '../../runtime/errors.ts';
import { correlatedInputs } from '../support/correlated-inputs.ts';
import { normalValues } from '../support/random-values.ts';

const algebra = await Algebra.create();

function source(values: Float32Array, columns: number): RowSource {
  return {
    rows: values.length / columns,
    columns,
    read: (start, count) => values.subarray(start * columns, (start + count) * columns),
  };
}

/** The Hessian of inputs, damping not included. */
function hessianOf(inputs: Float32Array, columns: number): Float32Array {
  const gram = algebra.gram(columns);
  gram.add(inputs);
  const hessian = gram.hessian();
  gram.dispose();
  return hessian;
}

/** Σ (w - ŵ) H (w - ŵ)ᵀ in doubles. */
function lossOf(
  values: Float32Array,
  rounded: Float32Array,
  hessian: Float32Array,
  columns: number,
): number {
  let sum = 0;
  for (let start = 0; start < values.length; start += columns) {
    const error = Float64Array.from(
      { length: columns },
      (_, j) => (values[start + j] ?? 0) - (rounded[start + j] ?? 0),
    );
    for (let i = 0; i < columns; i++)
      for (let j = 0; j < columns; j++)
        sum += (error[i] ?? 0) * (hessian[i * columns + j] ?? 0) * (error[j] ?? 0);
  }
  return sum;
}

const columns = 160; // groups of 64 and 128 end in a shorter one
const rows = 21; // not a multiple of the 8 that are rounded together
const values = normalValues(rows * columns, 1);
const hessian = hessianOf(correlatedInputs(2000, columns, 2), columns);
const codeFormats = numberFormats.filter(
  (format): format is CodeFormat => format.kind === 'integer' || format.kind === 'codebook',
);

const plain: RoundingMethod = { name: 'gptq', sweeps: 0, order: 'none' };

test('every format: the loss reported is that of the stored codes, and sweeps never raise it', () => {
  for (const format of codeFormats) {
    let before = Infinity;
    for (const sweeps of [0, 1, 2, 5]) {
      const rounded = roundUnit(
        source(values, columns),
        format,
        { ...plain, sweeps },
        { hessian },
        algebra,
      );
      const stored = dequantizeMatrix(rounded.matrix);
      const loss = lossOf(values, stored, hessian, columns);
      // sums of 160 x 160 products in f32 against doubles
      assert.ok(
        Math.abs(rounded.loss / loss - 1) < 1e-3,
        `${format.name}: ${rounded.loss} ${loss}`,
      );
      // the damping is part of what sweeps lower, at 1% of the mean diagonal, and not of this loss
      assert.ok(
        loss <= before * 1.005,
        `${format.name}, ${sweeps} sweeps: ${loss} after ${before}`,
      );
      before = loss;
    }
  }
});

test('without damping, flips and rescaling never raise the loss', () => {
  for (const format of codeFormats) {
    const group = format.group === 'channel' ? columns : format.group;
    if (group > 128) continue;
    let before = Infinity;
    for (const sweeps of [0, 1, 2, 3, 4]) {
      const method = { ...plain, sweeps, damping: 1e-9 };
      const rounded = roundUnit(source(values, columns), format, method, { hessian }, algebra);
      const loss = lossOf(values, dequantizeMatrix(rounded.matrix), hessian, columns);
      // f32 sums decide what is lower
      assert.ok(loss <= before * (1 + 1e-5), `${format.name}: ${loss} after ${before}`);
      before = loss;
    }
  }
});

test('GPTQ with the identity for a Hessian is rounding to nearest with clip search', () => {
  const identity = new Float32Array(columns * columns);
  for (let j = 0; j < columns; j++) identity[j * columns + j] = 1;
  for (const format of codeFormats) {
    if (format.kind !== 'integer') continue;
    const nearest = quantizeMatrix(source(values, columns), format, algebra);
    assert.ok('matrix' in nearest);
    const gptq = roundUnit(source(values, columns), format, plain, { hessian: identity }, algebra);
    // candidates of nearly equal error may swap places between f32 and doubles
    const ratio = gptq.relativeError / nearest.relativeError;
    // of 2 and 3 bits one zero point more is tried here
    const narrow = format.bits < 4 && !format.symmetric;
    assert.ok(ratio < 1 + 1e-3 && ratio > (narrow ? 0.98 : 1 - 1e-3), `${format.name}: ${ratio}`);
    const same = gptq.matrix.codes.filter((code, i) => code === nearest.matrix.codes[i]).length;
    assert.ok(
      same > (narrow ? 0.8 : 0.98) * gptq.matrix.codes.length,
      `${format.name}: ${same} bytes are equal`,
    );
  }
});

test('the loss of GPTQ is below that of rounding to nearest, in every order of columns', () => {
  for (const format of codeFormats) {
    if (format.bits === 8) continue;
    const nearest = roundUnit(
      source(values, columns),
      format,
      { name: 'nearest' },
      { hessian },
      algebra,
    );
    const atNearest = lossOf(values, dequantizeMatrix(nearest.matrix), hessian, columns);
    for (const order of ['none', 'groups', 'columns'] as const) {
      const method = { ...plain, order };
      const gptq = roundUnit(source(values, columns), format, method, { hessian }, algebra);
      // ALGORITHMS Q6 saw 0.71 on its example
      assert.ok(gptq.loss < 0.8 * atNearest, `${format.name} ${order}: ${gptq.loss / atNearest}`);
    }
  }
});

test('blocks of the Hessian keep the part of the gain that ALGORITHMS B4 states', () => {
  const wide = 512;
  const weights = normalValues(64 * wide, 3);
  const full = hessianOf(correlatedInputs(4096, wide, 4), wide);
  const format = integerFormat(3, 32, false);
  const lossWith = (method: RoundingMethod): number =>
    lossOf(
      weights,
      dequantizeMatrix(
        roundUnit(source(weights, wide), format, method, { hessian: full }, algebra).matrix,
      ),
      full,
      wide,
    );
  const nearest = lossWith({ name: 'nearest' });
  const ratio = (blockDiagonal: number): number => lossWith({ ...plain, blockDiagonal }) / nearest;
  const ratios = [512, 128, 64, 32].map(ratio);
  const [whole = 1, b128 = 1, b64 = 1, b32 = 1] = ratios;
  // B4: 0.084, 0.171, 0.317, 0.585 on a layer it does not give; the order and the rough size carry over
  const rises = whole < b128 && b128 < b64 && b64 < b32 && b32 < 1;
  assert.ok(rises && whole < 0.35, `${ratios.join(', ')}`);
});

test('inputs that never occur do not disturb, and their weights round to zero', () => {
  const inputs = correlatedInputs(500, columns, 5);
  for (let t = 0; t < 500; t++) inputs[t * columns + 7] = inputs[t * columns + 100] = 0;
  const dead = hessianOf(inputs, columns);
  for (const order of ['none', 'groups', 'columns'] as const) {
    const format = integerFormat(4, 32, false);
    const method = { ...plain, order, sweeps: 2 };
    const { matrix } = roundUnit(
      source(values, columns),
      format,
      method,
      { hessian: dead },
      algebra,
    );
    const rounded = dequantizeMatrix(matrix);
    for (let row = 0; row < rows; row++)
      for (const column of [7, 100]) assert.equal(rounded[row * columns + column], 0);
  }
});

test('statistics of the model before rounding move the target: outputs come closer to the original', () => {
  // inputs of the rounded model: the original ones, mixed and with noise
  const tokens = 3000;
  const original = correlatedInputs(tokens, columns, 6);
  const noise = normalValues(tokens * columns, 7);
  const changed = original.map(
    (x, i) => 0.9 * x + 0.2 * (original[i ^ 1] ?? 0) + 0.1 * (noise[i] ?? 0),
  );
  const gram = algebra.gram(columns);
  gram.add(original, undefined, changed);
  const cross = gram.matrix(2 / tokens);
  gram.dispose();
  const statistics = { hessian: hessianOf(changed, columns), cross };
  const distance = (matrix: Float32Array): number => {
    const wanted = algebra.matmul(original, values, tokens, columns, rows, { bTransposed: true });
    const got = algebra.matmul(changed, matrix, tokens, columns, rows, { bTransposed: true });
    return wanted.reduce((sum, y, i) => sum + (y - (got[i] ?? 0)) ** 2, 0);
  };
  const format = integerFormat(4, 32, false);
  const [without = 0, with_ = 0] = [0, 1].map((strength) =>
    distance(
      dequantizeMatrix(
        roundUnit(
          source(values, columns),
          format,
          { ...plain, propagation: strength },
          statistics,
          algebra,
        ).matrix,
      ),
    ),
  );
  assert.ok(with_ < 0.6 * without, `${with_} against ${without}`);
});

test('values and Hessians that are not finite are refused by place', () => {
  const format = integerFormat(4, 32, true);
  for (const [bad, pattern] of [
    [NaN, /row 9, column 130 is NaN/],
    [Infinity, /row 9, column 130 is Infinity/],
    [3e38, /row 9 needs a scale/],
  ] as const) {
    const broken = values.slice();
    broken[9 * columns + 130] = bad;
    assert.throws(
      () => roundUnit(source(broken, columns), format, plain, { hessian }, algebra),
      (error) =>
        error instanceof FettleError &&
        error.code === 'MODEL_INVALID' &&
        pattern.test(error.message),
    );
  }
  const broken = hessian.slice();
  broken[33 * columns + 33] = NaN;
  assert.throws(
    () => roundUnit(source(values, columns), format, plain, { hessian: broken }, algebra),
    (error) => error instanceof FettleError && /column 33/.test(error.message),
  );
  assert.throws(
    () =>
      roundUnit(source(values, columns), format, plain, { hessian: new Float32Array(5) }, algebra),
    RangeError,
  );
});

test('a codebook for each run of rows is stored and read back', () => {
  const even = normalValues(24 * 64, 8);
  even.forEach((value, i) => (even[i] = i < 12 * 64 ? value : Math.sign(value)));
  const own = hessianOf(correlatedInputs(500, 64, 9), 64);
  const method: RoundingMethod = { name: 'gptq', codebooks: 2 };
  const two = roundUnit(source(even, 64), codebookFormat(32), method, { hessian: own }, algebra);
  assert.equal(two.matrix.codebook?.length, 32);
  const loss = lossOf(even, dequantizeMatrix(two.matrix), own, 64);
  assert.ok(Math.abs(two.loss / loss - 1) < 1e-3);
});

test('a table keeps its rows close where the product does not look', () => {
  const format = integerFormat(3, 32, false);
  const method: RoundingMethod = { name: 'gptq' };
  const [own, table] = [method, methodForTable(method)].map((one) =>
    roundUnit(source(values, columns), format, one, { hessian }, algebra),
  );
  const nearest = roundUnit(
    source(values, columns),
    format,
    { name: 'nearest' },
    { hessian },
    algebra,
  );
  assert.ok(own !== undefined && table !== undefined);
  assert.ok(table.relativeError < own.relativeError);
  assert.ok(own.loss < table.loss && table.loss < nearest.loss);
});
