/** Small floats, packed integers and the reading and writing of every dtype. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DType } from '../../runtime/tensor.ts';
import { castTensor } from '../../compiler/ops/cast.ts';
import type { SmallFloat } from '../../compiler/ops/float-formats.ts';
import { decodeSmallFloat, encodeSmallFloat } from '../../compiler/ops/float-formats.ts';
import {
  gatherElements,
  readBigInts,
  readNumbers,
  readStrings,
  writeBigInts,
  writeNumbers,
} from '../../compiler/ops/numbers.ts';
import { takePositions } from '../../compiler/ops/shapes.ts';

const formats: readonly (readonly [SmallFloat, bits: number])[] = [
  ['f16', 16],
  ['bf16', 16],
  ['f8e4m3fn', 8],
  ['f8e4m3fnuz', 8],
  ['f8e5m2', 8],
  ['f8e5m2fnuz', 8],
  ['f8e8m0', 8],
  ['f4e2m1', 4],
];

for (const [dtype, bits] of formats)
  test(`every ${dtype} pattern is the one its value rounds to`, () => {
    for (let pattern = 0; pattern < 2 ** bits; pattern++) {
      const value = decodeSmallFloat(dtype, pattern);
      const again = encodeSmallFloat(dtype, value, { saturate: false });
      // NaN has many patterns
      if (Number.isNaN(value)) assert.ok(Number.isNaN(decodeSmallFloat(dtype, again)));
      else assert.equal(again, pattern, `${value}`);
    }
  });

test('small floats round to the nearest value, ties to even', () => {
  for (const [dtype, bits] of formats) {
    if (dtype === 'f8e8m0' || bits > 8) continue;
    const finite = Array.from({ length: 2 ** bits }, (_, i) => decodeSmallFloat(dtype, i))
      .filter((value) => Number.isFinite(value) && value > 0)
      .sort((a, b) => a - b);
    for (const [i, low] of finite.entries()) {
      const high = finite[i + 1];
      if (high === undefined) continue;
      const round = (x: number): number => decodeSmallFloat(dtype, encodeSmallFloat(dtype, x));
      const middle = (low + high) / 2;
      assert.equal(round(low * 0.51 + high * 0.49), low);
      assert.equal(round(low * 0.49 + high * 0.51), high);
      const even: number = encodeSmallFloat(dtype, low) % 2 === 0 ? low : high;
      assert.equal(round(middle), even, `${dtype} ${middle}`);
      assert.equal(round(-middle), -even);
    }
  }
});

test('what does not fit saturates, or becomes infinity or NaN', () => {
  const at = (dtype: SmallFloat, value: number, saturate: boolean): number =>
    decodeSmallFloat(dtype, encodeSmallFloat(dtype, value, { saturate }));
  // the table of https://onnx.ai/onnx/technical/float8.html
  assert.equal(at('f8e4m3fn', 1e6, true), 448);
  assert.equal(at('f8e4m3fn', -Infinity, true), -448);
  assert.ok(Number.isNaN(at('f8e4m3fn', 1e6, false)));
  assert.equal(at('f8e5m2', 1e6, true), 57344);
  assert.equal(at('f8e5m2', -1e6, false), -Infinity);
  assert.ok(Number.isNaN(at('f8e5m2fnuz', Infinity, false)));
  assert.equal(encodeSmallFloat('f8e4m3fnuz', -0), 0);
  assert.equal(at('f4e2m1', -100, true), -6);
  assert.equal(encodeSmallFloat('f8e8m0', 3, { direction: 'up' }), 129);
  assert.equal(encodeSmallFloat('f8e8m0', 3, { direction: 'down' }), 128);
});

test('packed integers are stored low bits first and wrap around', () => {
  const packed = writeNumbers('i4', [5], [1, -2, 7, -8, 9]);
  assert.deepEqual([...(packed.data as Uint8Array)], [0xe1, 0x87, 0x09]);
  assert.deepEqual([...readNumbers(packed)], [1, -2, 7, -8, -7]);
  assert.deepEqual([...readNumbers(writeNumbers('u2', [5], [0, 1, 2, 3, 4]))], [0, 1, 2, 3, 0]);
  assert.deepEqual([...readNumbers(writeNumbers('i2', [4], [0, 1, -2, -1]))], [0, 1, -2, -1]);
});

test('64-bit integers survive exactly and wrap around', () => {
  const big = writeBigInts('u64', [2], [2n ** 64n - 1n, 2n ** 64n + 3n]);
  assert.deepEqual([...readBigInts(big)], [2n ** 64n - 1n, 3n]);
  assert.deepEqual([...readNumbers(castTensor(big, 'i8'))], [-1, 3]);
  assert.deepEqual([...readNumbers(writeBigInts('i4', [2], [17n, -9n]))], [1, 7]);
});

test('numbers become text the way NumPy writes them, and come back', () => {
  const numbers = writeNumbers('f32', [6], [0.1, -2, 1e-7, 1e20, NaN, -Infinity]);
  const texts = castTensor(numbers, 'string');
  assert.deepEqual(readStrings(texts), ['0.1', '-2.0', '1e-07', '1e+20', 'NaN', '-INF']);
  assert.deepEqual([...readNumbers(castTensor(texts, 'f32'))], [...readNumbers(numbers)]);
});

const everyDType: readonly DType[] = [
  'f32',
  'f64',
  'f16',
  'bf16',
  'i8',
  'i16',
  'i32',
  'i64',
  'u8',
  'u16',
  'u32',
  'u64',
  'i4',
  'u4',
  'i2',
  'u2',
  'f8e4m3fn',
  'f8e5m2',
  'f4e2m1',
  'c64',
];

test('elements of every dtype can be moved and filled', () => {
  for (const dtype of everyDType) {
    const width = dtype === 'c64' ? 2 : 1;
    const source = writeNumbers(dtype, [3], [0, 1, 0, 1, 0, 1].slice(0, 3 * width));
    const numbers = readNumbers(source);
    const moved = gatherElements(source, [4], [2, 1, 0, 1]);
    const wanted = [2, 1, 0, 1].flatMap((i) => [...numbers.subarray(i * width, (i + 1) * width)]);
    assert.deepEqual([...readNumbers(moved)], wanted, dtype);
    if (width === 2) continue;
    const one = writeNumbers(dtype, [], [1]);
    assert.deepEqual([...readNumbers(gatherElements(source, [2], [-1, 0], one))], [1, 0], dtype);
  }
});

test('positions are taken along every axis, with holes', () => {
  const { shape, indices } = takePositions(
    [2, 3],
    [
      [1, -1],
      [2, 0],
    ],
  );
  assert.deepEqual([...shape], [2, 2]);
  assert.deepEqual([...indices], [5, 3, -1, -1]);
});
