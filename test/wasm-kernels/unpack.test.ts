import assert from 'node:assert/strict';
import test from 'node:test';
import { zeroBits } from '../../compiler/quant/grid.ts';
import { groupCount, dequantizeMatrix } from '../../compiler/quant/matrix.ts';
import type { QuantizedMatrix } from '../../compiler/quant/matrix.ts';
import { packedRowBytes } from '../../compiler/quant/pack.ts';
import { floatToHalf } from '../../runtime/half.ts';
import { KernelBench, hostVariants } from '../support/kernels.ts';
import { uniform } from '../support/random-values.ts';

const [rows, columns] = [12, 37];

function matrix(
  bits: number,
  group: number,
  kind: 'plain' | 'zeros' | 'codebook',
): QuantizedMatrix {
  const next = uniform(bits * 100 + group);
  const bytes = (count: number): Uint8Array<ArrayBuffer> =>
    Uint8Array.from({ length: count }, () => Math.floor(next() * 256));
  const groups = groupCount({ columns, group });
  return {
    rows,
    columns,
    bits,
    group,
    codes: bytes(rows * packedRowBytes(bits, columns)),
    scales: Uint16Array.from({ length: rows * groups }, () => floatToHalf(next())),
    zeros: kind === 'zeros' ? bytes(rows * packedRowBytes(zeroBits(bits), groups)) : undefined,
    codebook:
      kind === 'codebook' ? Int8Array.from({ length: 48 }, () => next() * 127 - 64) : undefined,
  };
}

for (const variant of await hostVariants())
  test(`${variant}: UNPACK gives what codes stand for, in both orientations`, async () => {
    for (const bits of [2, 3, 4, 8])
      for (const group of [16, 9, columns])
        for (const kind of ['plain', 'zeros', 'codebook'] as const)
          for (const turned of [false, true]) {
            if (kind === 'codebook' && bits !== 4) continue;
            const bench = await KernelBench.open(variant);
            const m = matrix(bits, group, kind);
            const Y = bench.allot(rows * columns * 4);
            bench.run('UNPACK', {
              CODES: bench.bytes(m.codes),
              SCALES: bench.halves(m.scales),
              ZEROS: m.zeros === undefined ? 0 : bench.bytes(m.zeros),
              CODEBOOK:
                m.codebook === undefined ? 0 : bench.bytes(new Uint8Array(m.codebook.buffer)),
              BOOKROWS: 4,
              Y,
              YROW: turned ? 4 : columns * 4,
              YCOLUMN: turned ? rows * 4 : 4,
              ROWS: rows,
              COLUMNS: columns,
              BITS: bits,
              GROUP: group,
            });
            const got = bench.readFloats(Y, rows * columns);
            // one product of the same two numbers
            assert.deepEqual(got, dequantizeMatrix(m, turned), `${bits} ${group} ${kind}`);
          }
  });
