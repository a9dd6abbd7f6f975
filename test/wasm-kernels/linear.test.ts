import assert from 'node:assert/strict';
import test from 'node:test';
import { codeStep, levelSpan, middleZero } from '../../compiler/quant/grid.ts';
import { floatToHalf, halfToFloat } from '../../runtime/half.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { floatBits } from '../../runtime/wasm/step.ts';
import type { IntegerFormat } from '../support/kernels.ts';
import {
  KernelBench,
  formatBits,
  formatId,
  hostVariants,
  noise,
  packMatrix,
} from '../support/kernels.ts';

const f = Math.fround;

interface Matrix {
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
  readonly zeros: Uint8Array | undefined;
  /** From one code to the next. */
  readonly step: number;
  readonly book: Uint8Array | undefined;
}

interface Case {
  readonly format: IntegerFormat;
  readonly N: number;
  readonly K: number;
  readonly block: number;
  readonly groupBlocks: number;
  readonly asymmetric: boolean;
}

const sizes = (c: Case): { blocks: number; groups: number } => {
  const blocks = Math.ceil(c.K / c.block);
  return { blocks, groups: Math.ceil(blocks / c.groupBlocks) };
};

function randomMatrix(c: Case, seed: number): Matrix {
  const { groups } = sizes(c);
  const levels = 2 ** formatBits[c.format];
  const pick = (count: number, below: number, s: number): Uint8Array =>
    Uint8Array.from(noise(count, s), (v) => Math.floor(((v + 1) / 2) * below));
  return {
    codes: pick(c.N * c.K, levels, seed),
    scales: noise(c.N * groups, seed + 1).map((v) => halfToFloat(floatToHalf(Math.abs(v) / 50))),
    zeros: c.asymmetric
      ? pick(c.N * groups, c.format === 'C4' ? 128 : levelSpan(formatBits[c.format]) + 1, seed + 2)
      : undefined,
    step: codeStep(formatBits[c.format]),
    book: c.format === 'C4' ? pick(16 * Math.ceil(c.N / 16), 128, seed + 3) : undefined,
  };
}

/** The codes, scale and sum of each block of a row, in f32 as the kernel computes them. */
function quantizeRow(
  x: Float32Array,
  block: number,
): { codes: number[]; scale: number; sum: number }[] {
  return Array.from({ length: Math.ceil(x.length / block) }, (_, b) => {
    const part = Array.from({ length: block }, (_unused, i) => x[b * block + i] ?? 0);
    const peak = Math.max(...part.map(Math.abs));
    const inverse = peak > 0 ? f(127 / peak) : 0;
    const codes = part.map((v) => roundEven(f(v * inverse)));
    return { codes, scale: f(peak / 127), sum: codes.reduce((s, v) => s + v, 0) };
  });
}

function roundEven(v: number): number {
  const r = Math.round(v);
  return Math.abs(v % 1) === 0.5 && r % 2 !== 0 ? r - 1 : r;
}

/** What a code of row `n` stands for: so many steps, or an entry of the codebook of its tile. */
function valueOf(m: Matrix, n: number, code: number): number {
  return m.book === undefined ? m.step * code : (m.book[(n >> 4) * 16 + code] ?? 0);
}

/** One output, in the kernel's order of f32 operations. */
function reference(c: Case, m: Matrix, row: ReturnType<typeof quantizeRow>, n: number): number {
  const { groups } = sizes(c);
  const middle = c.format === 'C4' ? 64 : middleZero(formatBits[c.format]);
  let y = 0;
  row.forEach((block, b) => {
    const g = n * groups + Math.floor(b / c.groupBlocks);
    const zero = m.zeros === undefined ? middle : (m.zeros[g] ?? 0);
    let integer = 0;
    block.codes.forEach((a, i) => {
      const k = b * c.block + i;
      if (k >= c.K) return;
      integer += a * (valueOf(m, n, m.codes[n * c.K + k] ?? 0) - zero);
    });
    y = f(y + f(integer * f((m.scales[g] ?? 0) * block.scale)));
  });
  return y;
}

function place(
  bench: KernelBench,
  c: Case,
  m: Matrix,
): { W: number; ZEROS: number; CODEBOOK: number } {
  const scales = Uint16Array.from(m.scales, floatToHalf);
  return {
    W: bench.bytes(packMatrix({ ...c, ...m, scales })),
    ZEROS: m.zeros === undefined ? 0 : 1,
    CODEBOOK: m.book === undefined ? 0 : bench.bytes(m.book),
  };
}

function quantize(bench: KernelBench, c: Case, x: Float32Array, rows: number): number {
  const { blocks } = sizes(c);
  const Y = bench.allot(rows * blocks * (3 * c.block + 16));
  bench.run('QUANTIZE', {
    X: bench.floats(x),
    XROW: c.K * 4,
    Y,
    ROWS: rows,
    K: c.K,
    BLOCK: c.block,
    FORMS: 3,
  });
  return Y;
}

const cases: Case[] = [];
for (const format of ['W8', 'W4', 'W3', 'W2', 'C4'] as const)
  for (const asymmetric of [false, true]) {
    cases.push({ format, N: 37, K: 160, block: 32, groupBlocks: 1, asymmetric });
    cases.push({ format, N: 16, K: 224, block: 32, groupBlocks: 4, asymmetric });
    if (format !== 'W3')
      cases.push({ format, N: 20, K: 71, block: 16, groupBlocks: 1, asymmetric });
  }

// one more input than scratch holds of the differences that plain SIMD works with, and as many as it holds
for (const K of [4545, 4544])
  cases.push({ format: 'W4', N: 16, K, block: 32, groupBlocks: 1, asymmetric: true });

/** Everything at its ends: what sums have to hold at most. */
function extremes(m: Matrix, levels: number): Matrix {
  const ends = (values: Uint8Array, below: number): Uint8Array =>
    values.map((value) => (value * 2 < below ? 0 : below - 1));
  const { codes, zeros, book } = m;
  const top = book === undefined ? m.step * (levels - 1) + 1 : 128;
  return {
    ...m,
    codes: ends(codes, levels),
    zeros: zeros === undefined ? undefined : ends(zeros, top),
    book: book === undefined ? undefined : ends(book, 128),
  };
}

/** Runs LINEAR and compares every output with integer arithmetic. */
function checkLinear(bench: KernelBench, c: Case, m: Matrix, x: Float32Array, rows: number): void {
  const { blocks } = sizes(c);
  const X = quantize(bench, c, x, rows);
  const y = bench.allot(rows * c.N * 4);
  bench.run('LINEAR', {
    X,
    Y: y,
    YROW: c.N * 4,
    ROWS: rows,
    K: c.K,
    N: c.N,
    FORMAT: formatId[c.format],
    BLOCK: c.block,
    GROUPBLOCKS: c.groupBlocks,
    ...place(bench, c, m),
  });
  const got = bench.readFloats(y, rows * c.N);
  for (let row = 0; row < rows; row++) {
    const quantized = quantizeRow(x.subarray(row * c.K, (row + 1) * c.K), c.block);
    assert.equal(quantized.length, blocks);
    for (let n = 0; n < c.N; n++)
      assert.equal(
        got[row * c.N + n],
        f(reference(c, m, quantized, n) + 0),
        `row ${row}, output ${n}`,
      );
  }
}

for (const variant of await hostVariants())
  for (const c of cases)
    for (const ends of [false, true])
      test(`${variant}: LINEAR ${c.format} of ${c.K} inputs, block ${c.block} x ${c.groupBlocks} ${c.asymmetric ? 'asymmetric' : 'symmetric'} equals integer arithmetic bit for bit${ends ? ', at its extremes' : ''}`, async () => {
        const bench = await KernelBench.open(variant);
        // four tokens at a time, then two single ones or a four that lacks one
        const rows = ends ? 7 : 6;
        const x = noise(rows * c.K, 5).map((v) => (ends ? Math.sign(v + 0.5) : v * 3));
        if (!ends) {
          // an outlier, an empty block, ties at .5
          x[3] = 100;
          x.fill(0, c.block, 2 * c.block);
        }
        const random = randomMatrix(c, 11);
        const m = ends ? extremes(random, 2 ** formatBits[c.format]) : random;
        checkLinear(bench, c, m, x, rows);
      });

for (const variant of await hostVariants())
  for (const format of ['W8', 'W4', 'W3', 'W2', 'C4'] as const)
    test(`${variant}: LINEAR ${format} with rows longer than working memory and more tokens than share a panel equals integer arithmetic`, async () => {
      const bench = await KernelBench.open(variant);
      // pieces of rows end within groups, and the last panel has fewer rows
      const c: Case = { format, N: 20, K: 1450, block: 32, groupBlocks: 4, asymmetric: true };
      checkLinear(bench, c, randomMatrix(c, 17), noise(70 * c.K, 6), 70);
    });

for (const variant of await hostVariants())
  test(`${variant}: LINEAR applies bias, activation, gate and residual in that order`, async () => {
    const bench = await KernelBench.open(variant);
    const c: Case = { format: 'W4', N: 22, K: 96, block: 32, groupBlocks: 1, asymmetric: false };
    const rows = 5;
    const x = noise(rows * c.K, 3);
    const [gate, up] = [randomMatrix(c, 21), randomMatrix(c, 31)];
    const [bias, bias2, residual] = [noise(c.N, 7), noise(c.N, 8), noise(rows * c.N, 9)];
    const second = place(bench, c, up);
    const y = bench.floats(residual);
    bench.run('LINEAR', {
      X: quantize(bench, c, x, rows),
      Y: y,
      YROW: c.N * 4,
      ROWS: rows,
      K: c.K,
      N: c.N,
      FORMAT: abi.W4,
      BLOCK: 32,
      GROUPBLOCKS: 1,
      ...place(bench, c, gate),
      BIAS: bench.floats(bias),
      ACTIVATION: abi.ACT_LEAKYRELU,
      ALPHA: floatBits(0.25),
      RESIDUAL: y,
      RESIDUALROW: c.N * 4,
      W2: second.W,
      BIAS2: bench.floats(bias2),
    });
    const got = bench.readFloats(y, rows * c.N);
    for (let row = 0; row < rows; row++) {
      const quantized = quantizeRow(x.subarray(row * c.K, (row + 1) * c.K), 32);
      for (let n = 0; n < c.N; n++) {
        const g = f(reference(c, gate, quantized, n) + (bias[n] ?? 0));
        const u = f(reference(c, up, quantized, n) + (bias2[n] ?? 0));
        const want = f(f((g < 0 ? f(g * 0.25) : g) * u) + (residual[row * c.N + n] ?? 0));
        assert.equal(got[row * c.N + n], want, `row ${row}, output ${n}`);
      }
    }
  });

for (const variant of await hostVariants())
  for (const c of cases.filter(({ asymmetric }) => asymmetric))
    test(`${variant}: EMBED reads ${c.format} block ${c.block} x ${c.groupBlocks} tables that LINEAR reads`, async () => {
      const bench = await KernelBench.open(variant);
      const m = randomMatrix(c, 41);
      const { groups } = sizes(c);
      const ids = [0, c.N - 1, 5, -1, c.N + 100];
      const y = bench.allot(ids.length * c.K * 4);
      bench.run('EMBED', {
        IDS: bench.longs(ids),
        IDTYPE: abi.TYPE_I64,
        Y: y,
        ROWS: ids.length,
        K: c.K,
        N: c.N,
        FORMAT: formatId[c.format],
        BLOCK: c.block,
        GROUPBLOCKS: c.groupBlocks,
        ...place(bench, c, m),
        MULTIPLY: floatBits(1),
      });
      const got = bench.readFloats(y, ids.length * c.K);
      [0, c.N - 1, 5, c.N - 1, c.N - 1].forEach((n, i) => {
        for (let k = 0; k < c.K; k++) {
          const g = n * groups + Math.floor(Math.floor(k / c.block) / c.groupBlocks);
          const code = m.codes[n * c.K + k] ?? 0;
          assert.equal(
            got[i * c.K + k],
            f((valueOf(m, n, code) - (m.zeros?.[g] ?? 0)) * (m.scales[g] ?? 0)) + 0,
          );
        }
      });
    });
