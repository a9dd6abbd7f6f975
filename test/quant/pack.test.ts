import assert from 'node:assert/strict';
import test from 'node:test';
import { packRow, packRows, packedRowBytes, unpackRows } from '../../compiler/quant/pack.ts';
import { uniform } from '../support/random-values.ts';

test('codes are packed low bits first, as the layout says', () => {
  const packed = (codes: readonly number[], bits: number): number[] => {
    const bytes = new Uint8Array(packedRowBytes(bits, codes.length));
    packRow(Uint8Array.from(codes), bits, bytes);
    return [...bytes];
  };
  assert.deepEqual(packed([1, 2, 15], 4), [0x21, 0x0f]);
  assert.deepEqual(packed([1, 2, 3, 0, 3], 2), [0b00111001, 0b11]);
  assert.deepEqual(packed([200, 7], 8), [200, 7]);
  // 3 bits: 5 = 101, 6 = 110, 7 = 111 -> 111 110 101
  assert.deepEqual(packed([5, 6, 7], 3), [0b11110101, 0b1]);
});

test('every width survives packing and unpacking, row by row', () => {
  const next = uniform(3);
  for (const bits of [2, 3, 4, 8])
    for (const [rows, columns] of [
      [1, 1],
      [3, 7],
      [4, 32],
      [5, 33],
      [2, 0],
    ] as const) {
      const codes = Uint8Array.from({ length: rows * columns }, () => next() * 2 ** bits);
      const packed = packRows(codes, bits, rows, columns);
      assert.equal(packed.length, rows * Math.ceil((bits * columns) / 8));
      assert.deepEqual(unpackRows(packed, bits, rows, columns), codes, `${bits} bits`);
    }
});

test('sizes that disagree are a RangeError', () => {
  assert.throws(() => packRows(new Uint8Array(5), 4, 2, 3), RangeError);
  assert.throws(() => unpackRows(new Uint8Array(5), 4, 2, 3), RangeError);
});
