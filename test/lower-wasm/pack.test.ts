import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Weight } from '../../compiler/ir/weight.ts';
import type { CodePacking } from '../../compiler/lower/pack-weights.ts';
import {
  codePacking,
  groupsOf,
  packedCodebook,
  packedCodes,
  packedFloats,
  packedScales,
  packedZeros,
  tileBytes,
} from '../../compiler/lower/pack-weights.ts';
import { packRows } from '../../compiler/quant/pack.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { uniform } from '../support/random-values.ts';

/** One code as the kernels' contract says (runtime/wasm/kernels/abi.ts), written out once more. */
function codeAt(bytes: Uint8Array, packing: CodePacking, n: number, k: number): number {
  const { columns, block: B, format } = packing;
  const Kp = Math.ceil(columns / B) * B;
  const [t, r, b, kb] = [n >> 4, n & 15, Math.floor(k / B), k % B];
  const lane = (r >> 2) * 16 + (r & 3) * 4 + (kb & 3);
  const byte = (at: number): number => bytes[at] ?? Number.NaN;
  if (format === abi.W8) return byte(t * 16 * Kp + b * 16 * B + (kb >> 2) * 64 + lane);
  if (format === abi.W4)
    return (byte(t * 8 * Kp + b * 8 * B + (kb >> 3) * 64 + lane) >> (4 * ((kb >> 2) & 1))) & 15;
  if (format === abi.W2)
    return (byte(t * 4 * Kp + b * 4 * B + (kb >> 4) * 64 + lane) >> (2 * ((kb >> 2) & 3))) & 3;
  const start = t * 6 * Kp + b * 192;
  const low = (byte(start + (kb >> 4) * 64 + lane) >> (2 * ((kb >> 2) & 3))) & 3;
  return low | (((byte(start + 128 + lane) >> (kb >> 2)) & 1) << 2);
}

const cases: readonly (readonly [bits: number, group: number, rows: number, columns: number])[] = [
  [8, 32, 20, 96],
  [8, 200, 16, 200],
  [4, 32, 33, 64],
  [4, 16, 17, 48],
  [4, 64, 16, 100],
  [4, 40, 5, 40],
  [3, 32, 18, 70],
  [3, 16, 18, 70],
  [2, 32, 35, 64],
  [2, 16, 16, 16],
];

for (const [bits, group, rows, columns] of cases)
  test(`${bits} bits in groups of ${group}, ${rows} x ${columns}: every code, scale and zero is where kernels look`, () => {
    const next = uniform(bits * 1000 + group);
    const random = (count: number, below: number): Uint8Array<ArrayBuffer> =>
      Uint8Array.from({ length: count }, () => Math.floor(next() * below));
    const packing = codePacking(rows, columns, bits, group);
    assert.ok(typeof packing === 'object');
    const groups = groupsOf(packing);
    const codes = random(rows * columns, 2 ** bits);
    const zeros = random(rows * groups, 2 ** bits);
    const scales = Uint16Array.from({ length: rows * groups }, () => Math.floor(next() * 65536));
    const u8 = (data: Uint8Array<ArrayBuffer>): Weight =>
      Weight.of({ dtype: 'u8', shape: [data.length], data });
    const packed = packedCodes(u8(packRows(codes, bits, rows, columns)), packing);
    const tiles = Math.ceil(rows / 16);
    assert.equal(packed.byteLength, tiles * tileBytes(packing));
    const bytes = packed.bytes();
    // 3 bits in blocks of 16 are stored as 4, whose middle is 8 instead of 4
    const shift = bits === 3 && packing.format === abi.W4 ? 4 : 0;
    const laidScales = packedScales(
      Weight.of({ dtype: 'f16', shape: [rows, groups], data: scales }),
      packing,
    ).bytes();
    const laidZeros = packedZeros(u8(packRows(zeros, bits, rows, groups)), packing).bytes();
    const scaleView = new DataView(laidScales.buffer, laidScales.byteOffset);
    for (let n = 0; n < rows; n++) {
      for (let k = 0; k < columns; k++)
        assert.equal(codeAt(bytes, packing, n, k), (codes[n * columns + k] ?? 0) + shift);
      for (let g = 0; g < groups; g++) {
        const at = ((n >> 4) * groups + g) * 16 + (n & 15);
        assert.equal(scaleView.getUint16(at * 2, true), scales[n * groups + g]);
        assert.equal(laidZeros[at], (zeros[n * groups + g] ?? 0) + shift);
      }
    }
    // a group is as many blocks as the kernel believes
    for (let k = 0; k < columns; k++)
      assert.equal(
        Math.floor(Math.floor(k / packing.block) / packing.groupBlocks),
        group >= columns ? 0 : Math.floor(k / group),
      );
    // rows of padding have no scale
    if (rows % 16 !== 0) assert.equal(scaleView.getUint16(laidScales.length - 2, true), 0);
  });

test('any part of a packed matrix is what the whole has there', () => {
  const packing = codePacking(40, 64, 4, 32);
  assert.ok(typeof packing === 'object');
  const codes = Uint8Array.from({ length: 40 * 32 }, (_, i) => (i * 97) & 255);
  const packed = packedCodes(Weight.of({ dtype: 'u8', shape: [40, 32], data: codes }), packing);
  const whole = packed.bytes();
  for (const [start, length] of [
    [0, 1],
    [511, 2],
    [512, 512],
    [700, 800],
    [whole.length - 1, 1],
  ] as const)
    assert.deepEqual([...packed.bytes(start, length)], [...whole.subarray(start, start + length)]);
});

test('floats lie in tiles of 16 rows, from either orientation', () => {
  const [rows, columns] = [19, 5];
  const values = Float32Array.from({ length: rows * columns }, (_, i) => i / 8);
  for (const transposed of [false, true])
    for (const half of [false, true]) {
      const bytes = packedFloats(() => values, { rows, columns, transposed, half }).bytes();
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      assert.equal(bytes.length, 2 * columns * 16 * (half ? 2 : 4));
      const want = (n: number, k: number): number =>
        values[transposed ? k * rows + n : n * columns + k] ?? 0;
      if (!half)
        for (let n = 0; n < rows; n++)
          for (let k = 0; k < columns; k++)
            assert.equal(
              view.getFloat32((((n >> 4) * columns + k) * 16 + (n & 15)) * 4, true),
              want(n, k),
            );
    }
});

test('a codebook is repeated for each tile of its rows, 64 added', () => {
  const levels = Int8Array.from({ length: 32 }, (_, i) => (i < 16 ? 8 * i - 64 : 63 - i));
  const weight = Weight.of({ dtype: 'i8', shape: [2, 16], data: levels });
  const packing = codePacking(96, 32, 4, 32, 2);
  assert.ok(typeof packing === 'object');
  assert.equal(packing.format, abi.C4);
  const bytes = packedCodebook(weight, packing).bytes();
  assert.equal(bytes.length, 6 * 16);
  for (let tile = 0; tile < 6; tile++)
    for (let code = 0; code < 16; code++)
      assert.equal(bytes[tile * 16 + code], (levels[(tile < 3 ? 0 : 16) + code] ?? 0) + 64);
  assert.match(String(codePacking(48, 32, 4, 32, 2)), /no whole tiles/);
});

test('groups that no block divides have no layout', () => {
  assert.match(String(codePacking(16, 100, 4, 20)), /no multiple of 16/);
  assert.match(String(codePacking(16, 64, 5, 32)), /5 bits/);
});
