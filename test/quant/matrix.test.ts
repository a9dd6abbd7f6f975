import assert from 'node:assert/strict';
import test from 'node:test';
import { Algebra } from '../../compiler/algebra/algebra.ts';
import { roundToHalf } from '../../compiler/quant/affine.ts';
import { relativeSquaredError } from '../../compiler/quant/error.ts';
import type { IntegerFormat } from '../../compiler/quant/formats.ts';
import { bitsPerWeight, numberFormats } from '../../compiler/quant/formats.ts';
import { codeStep, levelSpan, middleZero, zeroBits } from '../../compiler/quant/grid.ts';
import type { RowSource } from '../../compiler/quant/matrix.ts';
import { dequantizeMatrix, quantizeMatrix } from '../../compiler/quant/matrix.ts';
import { unpackRows } from '../../compiler/quant/pack.ts';
import { matrixRows } from '../../compiler/quant/rows.ts';
import { floatToHalf, halfToFloat, toHalfArray } from '../../runtime/half.ts';
import { bytesOf } from '../../runtime/tensor.ts';
import { laplaceValues, normalValues, uniform } from '../support/random-values.ts';

const algebra = await Algebra.create();

function source(values: Float32Array, columns: number): RowSource {
  return {
    rows: values.length / columns,
    columns,
    read: (start, count) => values.subarray(start * columns, (start + count) * columns),
  };
}

const integerFormats = numberFormats.filter((format) => format.kind === 'integer');

test('no value is further off than the error bound of its format', () => {
  const columns = 160; // not a multiple of 64 or 128: the last group is shorter
  const values = laplaceValues(40 * columns, 5);
  for (const format of integerFormats) {
    const result = quantizeMatrix(source(values, columns), format, algebra, false);
    assert.ok('matrix' in result);
    const rounded = dequantizeMatrix(result.matrix);
    const group = result.matrix.group;
    for (let start = 0; start < values.length;) {
      const end = Math.min(start + group, (Math.floor(start / columns) + 1) * columns);
      const largest = values.subarray(start, end).reduce((m, v) => Math.max(m, Math.abs(v)), 0);
      for (let i = start; i < end; i++) {
        const difference = Math.abs((values[i] ?? 0) - (rounded[i] ?? 0));
        assert.ok(
          difference <= largest * (format.errorBound ?? 0),
          `${format.name}: ${values[i]} became ${rounded[i]}, largest ${largest}`,
        );
      }
      start = end;
    }
  }
});

test('stored bytes are the bits per weight that the format states', () => {
  const columns = 256;
  const values = normalValues(8 * columns, 6);
  for (const format of integerFormats) {
    const result = quantizeMatrix(source(values, columns), format, algebra, false);
    assert.ok('matrix' in result);
    const { codes, scales, zeros } = result.matrix;
    const bits = 8 * (codes.length + scales.byteLength + (zeros?.length ?? 0));
    // rows of zero points are padded to whole bytes: at most 7 bits a row
    const stated = bitsPerWeight(format, columns) * values.length;
    assert.ok(bits >= stated && bits < stated + 8 * 8, `${format.name}: ${bits}, stated ${stated}`);
  }
});

test('clip search never increases the error', () => {
  const columns = 96;
  const values = laplaceValues(64 * columns, 7);
  for (const format of integerFormats) {
    const plain = quantizeMatrix(source(values, columns), format, algebra, false);
    const clipped = quantizeMatrix(source(values, columns), format, algebra, true);
    assert.ok('matrix' in plain && 'matrix' in clipped);
    assert.ok(clipped.relativeError <= plain.relativeError, format.name);
  }
});

/** The search in doubles, one candidate after the other. */
function searched(
  values: Float32Array,
  { bits, symmetric }: Pick<IntegerFormat, 'bits' | 'symmetric'>,
  clip: boolean,
): { readonly codes: number[]; readonly scale: number; readonly zero: number } {
  const [middle, step, span] = [middleZero(bits), codeStep(bits), levelSpan(bits)];
  const low = values.reduce((least, value) => Math.min(least, value), 0);
  const high = values.reduce((most, value) => Math.max(most, value), 0);
  const full = symmetric ? Math.max(high, -low) / (span - middle) : (high - low) / span;
  // the order in which errors are summed
  const inner = [...values].filter((value) => value !== low && value !== high).toReversed();
  const ordered = [...values].filter((value) => value === low || value === high).concat(inner);
  const codeOf = (value: number, scale: number, zero: number): number => {
    // levels are integers, or lie in the middle between two
    const off = (((span - zero) / step) % 1) + 0;
    const exact = value * (1 / (scale * step)) - off;
    const even = 2 * Math.round(exact / 2);
    const level = Math.abs(exact - Math.trunc(exact)) === 0.5 ? even : Math.round(exact);
    return Math.min((span - zero) / step, Math.max(-zero / step, level + off)) + zero / step;
  };
  let [least, scale, zero] = [Infinity, 0, middle];
  for (let i = 0; i < (clip ? 26 : 1); i++) {
    const factor = 1 - i / 50;
    const candidate = roundToHalf(full * factor);
    if (candidate === 0) break;
    const wanted = (-low * factor) / candidate;
    const nearest = Math.round(wanted);
    const both = [nearest, wanted < nearest ? nearest - 1 : nearest + 1];
    const zeros = symmetric ? [middle] : step === 1 ? [nearest] : both;
    for (const z of zeros.map((one) => Math.max(0, Math.min(span, one)))) {
      let error = 0;
      for (const value of ordered)
        error += (value - candidate * step * (codeOf(value, candidate, z) - z / step)) ** 2;
      if (error < least) [least, scale, zero] = [error, candidate, z];
    }
  }
  const none = Math.ceil(zero / step);
  const codes = Array.from(values, (value) => (scale === 0 ? none : codeOf(value, scale, zero)));
  return { codes, scale, zero: zero + 0 };
}

test('codes, scales and zero points are those of a search in doubles, bit for bit', () => {
  const columns = 100; // groups of 32 and 64 leave a short one
  const kinds: readonly (readonly [string, Float32Array])[] = [
    ['normal', normalValues(160 * columns, 11)],
    ['laplace', laplaceValues(160 * columns, 12)],
    ['on the grid', laplaceValues(160 * columns, 13).map((value) => Math.round(8 * value) / 8)],
    ['positive', normalValues(160 * columns, 14).map(Math.abs)],
    ['tiny', normalValues(160 * columns, 15).map((value) => value * 2 ** -26)],
    ['large', normalValues(160 * columns, 16).map((value) => value * 2 ** 12)],
    ['sparse', normalValues(160 * columns, 17).map((value, i) => (i % 7 === 0 ? value : 0))],
  ];
  for (const [kind, values] of kinds)
    for (const format of integerFormats)
      for (const clip of [false, true]) {
        const result = quantizeMatrix(source(values, columns), format, algebra, clip);
        assert.ok('matrix' in result, kind);
        const { matrix } = result;
        const { rows, bits, group } = matrix;
        const groups = Math.ceil(columns / group);
        const codes = unpackRows(matrix.codes, bits, rows, columns);
        const zeros = matrix.zeros && unpackRows(matrix.zeros, zeroBits(bits), rows, groups);
        for (let row = 0; row < rows; row++)
          for (let g = 0; g < groups; g++) {
            const start = row * columns + g * group;
            const end = Math.min(start + group, (row + 1) * columns);
            const wanted = searched(values.subarray(start, end), format, clip);
            const at = row * groups + g;
            const got = {
              codes: [...codes.subarray(start, end)],
              scale: halfToFloat(matrix.scales[at] ?? 0),
              zero: zeros?.[at] ?? middleZero(bits),
            };
            assert.deepEqual(got, wanted, `${kind}, ${format.name}, row ${row}, group ${g}`);
          }
      }
});

test('a group of zeros stays zero, and zero stays zero in every format of 4 bits and more', () => {
  const values = normalValues(64, 8);
  values.fill(0, 0, 32);
  values[40] = 0;
  for (const format of integerFormats) {
    const result = quantizeMatrix(source(values, 64), format, algebra, true);
    assert.ok('matrix' in result);
    const rounded = dequantizeMatrix(result.matrix);
    // fewer levels may lie on both sides of zero
    const isWhole = format.group === 16 || format.group === 32;
    const end = format.bits >= 4 ? 64 : isWhole ? 32 : 0;
    for (let i = 0; i < end; i++) if (values[i] === 0) assert.ok(rounded[i] === 0, format.name);
  }
});

test('values without a code are refused with their place, and a scale beyond f16 too', () => {
  for (const [bad, reason] of [
    [NaN, /row 1, column 3 is NaN/],
    [Infinity, /row 1, column 3 is Infinity/],
    [-Infinity, /row 1, column 3 is -Infinity/],
    [3e38, /row 1 needs a scale beyond/],
  ] as const) {
    const values = normalValues(64, 9);
    values[35] = bad;
    const result = quantizeMatrix(
      source(values, 32),
      { bits: 4, group: 32, symmetric: true },
      algebra,
    );
    assert.ok('refused' in result);
    assert.match(result.refused, reason);
  }
});

test('a matrix reads the same rows from any dtype and orientation', () => {
  const [rows, columns] = [37, 50];
  const values = Float32Array.from({ length: rows * columns }, (_, i) => (i % 251) - 125);
  const flipped = Float32Array.from(
    values,
    (_, i) => values[(i % rows) * columns + Math.floor(i / rows)] ?? 0,
  );
  for (const transposed of [false, true]) {
    const stored = transposed ? flipped : values;
    const bf16 = new Uint16Array(new Uint32Array(stored.slice().buffer).map((w) => w >>> 16));
    for (const [dtype, data] of [
      ['f32', stored],
      ['f64', Float64Array.from(stored)],
      ['f16', toHalfArray(stored)],
      ['bf16', bf16],
    ] as const) {
      const bytes = bytesOf(data);
      const matrix = matrixRows({
        dtype,
        rows,
        columns,
        transposed,
        bytes: (start, length) => bytes.subarray(start, start + length),
      });
      const read = [...matrix.read(0, 30), ...matrix.read(30, 7)];
      // whole numbers below 256 are exact in all of them
      assert.deepEqual(read, [...values], `${dtype} ${transposed}`);
    }
  }
});

test('the transposed reading of a quantized matrix is its transpose', () => {
  const values = normalValues(5 * 48, 10);
  const result = quantizeMatrix(
    source(values, 48),
    { bits: 3, group: 16, symmetric: false },
    algebra,
  );
  assert.ok('matrix' in result);
  const plain = dequantizeMatrix(result.matrix);
  const transposed = dequantizeMatrix(result.matrix, true);
  for (let row = 0; row < 5; row++)
    for (let column = 0; column < 48; column++)
      assert.equal(transposed[column * 5 + row], plain[row * 48 + column]);
  assert.ok(relativeSquaredError(values, plain) < 0.04);
});

test('rounding to f16 is that of the hardware format', () => {
  const next = uniform(11);
  for (let i = 0; i < 20_000; i++) {
    const value = 2 ** (next() * 40 - 25);
    const expected = halfToFloat(floatToHalf(Math.fround(value)));
    // ties may go either way: f32 and double values of random numbers are none
    if (value < 65504) assert.equal(roundToHalf(Math.fround(value)), expected, `${value}`);
  }
});
