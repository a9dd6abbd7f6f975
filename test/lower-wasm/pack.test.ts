import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Weight } from '../../compiler/ir/weight.ts';
import type { CodePacking } from '../../compiler/lower/pack-weights.ts';
import {
  codePacking,
  groupsOf,
  packedCodebook,
  packedFloats,
  packedMatrix,
  tileBytes,
} from '../../compiler/lower/pack-weights.ts';
import { zeroBits } from '../../compiler/quant/grid.ts';
import { packRows } from '../../compiler/quant/pack.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { uniform } from '../support/random-values.ts';

function u8(data: Uint8Array<ArrayBuffer>): Weight {
  return Weight.of({ dtype: 'u8', shape: [data.length], data });
}

/** A packed matrix as the kernels' contract says (runtime/wasm/kernels/abi.ts), written out once more. */
class Packed {
  readonly bytes: Uint8Array;
  private readonly packing: CodePacking;
  private readonly head: number;

  constructor(bytes: Uint8Array, packing: CodePacking, asymmetric: boolean) {
    this.bytes = bytes;
    this.packing = packing;
    this.head = asymmetric ? 48 : 32;
  }

  /** Where group `g` of a tile starts. */
  private start(tile: number, g: number): number {
    const { columns, block, groupBlocks } = this.packing;
    const blocks = Math.ceil(columns / block);
    const groups = Math.ceil(blocks / groupBlocks);
    const tileBytes = groups * this.head + blocks * this.blockBytes;
    return tile * tileBytes + g * (this.head + groupBlocks * this.blockBytes);
  }

  private get blockBytes(): number {
    const { block, format } = this.packing;
    const bits = { [abi.W8]: 8, [abi.W4]: 4, [abi.W3]: 3, [abi.W2]: 2 }[format] ?? 0;
    return 2 * block * bits;
  }

  code(n: number, k: number): number {
    const { block, format, groupBlocks } = this.packing;
    const [r, b, kb] = [n & 15, Math.floor(k / block), k % block];
    const g = Math.floor(b / groupBlocks);
    const lane = (r >> 2) * 16 + (r & 3) * 4 + (kb & 3);
    const at = this.start(n >> 4, g) + this.head + (b - g * groupBlocks) * this.blockBytes + lane;
    const byte = (offset: number): number => this.bytes[at + offset] ?? Number.NaN;
    if (format === abi.W8) return byte((kb >> 2) * 64);
    if (format === abi.W4) return (byte((kb >> 3) * 64) >> (4 * ((kb >> 2) & 1))) & 15;
    const low = (byte((kb >> 4) * 64) >> (2 * ((kb >> 2) & 3))) & 3;
    return format === abi.W2 ? low : low | (((byte(128) >> (kb >> 2)) & 1) << 2);
  }

  scale(n: number, g: number): number {
    const view = new DataView(this.bytes.buffer, this.bytes.byteOffset);
    return view.getUint16(this.start(n >> 4, g) + 2 * (n & 15), true);
  }

  zero(n: number, g: number): number {
    return this.bytes[this.start(n >> 4, g) + 32 + (n & 15)] ?? Number.NaN;
  }
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
  for (const asymmetric of [false, true])
    test(`${bits} bits in groups of ${group}, ${rows} x ${columns}${asymmetric ? ', with zeros' : ''}: every code, scale and zero is where kernels look`, () => {
      const next = uniform(bits * 1000 + group);
      const random = (count: number, below: number): Uint8Array<ArrayBuffer> =>
        Uint8Array.from({ length: count }, () => Math.floor(next() * below));
      const packing = codePacking(rows, columns, bits, group);
      assert.ok(typeof packing === 'object');
      const groups = groupsOf(packing);
      const codes = random(rows * columns, 2 ** bits);
      const zeros = random(rows * groups, 2 ** zeroBits(bits));
      const scales = Uint16Array.from({ length: rows * groups }, () => Math.floor(next() * 65536));
      const parts = {
        codes: u8(packRows(codes, bits, rows, columns)),
        scales: Weight.of({ dtype: 'f16', shape: [rows, groups], data: scales }),
        zeros: asymmetric ? u8(packRows(zeros, zeroBits(bits), rows, groups)) : undefined,
      };
      const weight = packedMatrix(parts, packing);
      const tiles = Math.ceil(rows / 16);
      assert.equal(weight.byteLength, tiles * tileBytes(packing, asymmetric));
      const packed = new Packed(weight.bytes(), packing, asymmetric);
      // 3 bits in blocks of 16 are stored as 4: doubled, and with a middle of 8 instead of 7
      const wider = bits === 3 && packing.format === abi.W4;
      const written = (code: number): number => (wider ? 2 * code + (asymmetric ? 0 : 1) : code);
      for (let n = 0; n < rows; n++) {
        for (let k = 0; k < columns; k++)
          assert.equal(packed.code(n, k), written(codes[n * columns + k] ?? 0));
        for (let g = 0; g < groups; g++) {
          assert.equal(packed.scale(n, g), scales[n * groups + g]);
          if (asymmetric) assert.equal(packed.zero(n, g), zeros[n * groups + g]);
        }
      }
      // a group is as many blocks as the kernel believes
      for (let k = 0; k < columns; k++)
        assert.equal(
          Math.floor(Math.floor(k / packing.block) / packing.groupBlocks),
          group >= columns ? 0 : Math.floor(k / group),
        );
      // rows of padding have no scale
      for (let n = rows; n < tiles * 16; n++)
        for (let g = 0; g < groups; g++) assert.equal(packed.scale(n, g), 0);
    });

test('any part of a packed matrix is what the whole has there', () => {
  const packing = codePacking(40, 64, 4, 32);
  assert.ok(typeof packing === 'object');
  const codes = Uint8Array.from({ length: 40 * 32 }, (_, i) => (i * 97) & 255);
  const scales = Uint16Array.from({ length: 40 * 2 }, (_, i) => i * 257);
  const packed = packedMatrix(
    {
      codes: Weight.of({ dtype: 'u8', shape: [40, 32], data: codes }),
      scales: Weight.of({ dtype: 'f16', shape: [40, 2], data: scales }),
    },
    packing,
  );
  const whole = packed.bytes();
  for (const [start, length] of [
    [0, 1],
    [575, 2],
    [576, 576],
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
