/** Allocations to compare with, and the check that errors add up. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { parseFormat } from '../../compiler/quant/formats.ts';
import { allocate, belowFloor, leastBytes, unitBudget } from '../../compiler/search/allocate.ts';
import { checkAdditivity, likelyPairs, measurePairs } from '../../compiler/search/additivity.ts';
import {
  allocateBaseline,
  baselineNames,
  bytesOf,
  equalLossBits,
} from '../../compiler/search/baselines.ts';
import { plainBytes } from '../../compiler/search/cost.ts';
import { solve } from '../../compiler/search/solver.ts';
import type { Row, SensitivityTable, UnitFacts } from '../../compiler/search/table.ts';
import { decodeTable, encodeTable, errorOf, solverView } from '../../compiler/search/table.ts';
import { createRandom } from '../../runtime/text/random.ts';

const options = ['w2g32', 'w3g32', 'w4g32', 'w8g32', 'w4g64a', 'w3g64a'];

/** Four blocks of two units of 64 x 64; errors fall fourfold per bit. */
function tableOf(seed: number): SensitivityTable {
  const random = createRandom(seed);
  const units: UnitFacts[] = Array.from({ length: 8 }, (_, u) => ({
    name: `u${u}`,
    kind: 'linear',
    role: `L${u >> 1}.${u & 1 ? 'down' : 'up'}`,
    block: u >> 1,
    rows: 64,
    columns: 64,
    gain: 10 ** (-2 * random()),
    hessianTrace: 64 * (0.1 + random()),
    outputEnergy: 10 * (0.1 + random()),
    zd: (u >> 1) / 10,
    lim: 0 - (u >> 1) / 10,
  }));
  const rows = units.flatMap((unit) =>
    options.map((option): Row => {
      const format = parseFormat(option);
      const outputError = 4 ** -format.bits;
      return {
        unit: unit.name,
        option,
        klProxy: unit.gain * outputError,
        tier: 0,
        outputError,
        weightError: outputError,
        bytesDownload: plainBytes(unit, format),
        bytesResident: plainBytes(unit, format),
        decodeUs: { wasm: 1 },
      };
    }),
  );
  return {
    version: 1,
    model: { name: 'toy', sha256: '0', parameters: 8 * 4096 },
    target: 'wasm',
    metric: 'kl',
    calibration: { sha256: '1', tokens: 64 },
    rounding: 'nearest',
    fixedBytes: 0,
    overheadBytes: 0,
    units,
    rows,
    pairs: [],
  };
}

const averageBits = (rows: readonly Row[]): number => (bytesOf(rows) * 8) / (8 * 4096);

test('every baseline stays within the budget, and the solver predicts less error than any', () => {
  for (const bits of [2.6, 3.5, 4.2, 6])
    for (const seed of [1, 2]) {
      const table = tableOf(seed);
      const budget = (bits * 8 * 4096) / 8;
      const best = solve(solverView(table).units, { budget });
      assert.ok(best !== undefined && best.cost <= budget);
      for (const name of baselineNames) {
        const rows = allocateBaseline(name, table, budget);
        assert.equal(rows?.length, 8, `${name} at ${bits}`);
        assert.ok(averageBits(rows) <= bits);
        const error = rows.reduce((sum, row) => sum + errorOf(row), 0);
        assert.ok(best.error <= error + 1e-12, `${name} at ${bits}`);
      }
    }
});

test('a budget below two bits has no baseline', () => {
  for (const name of baselineNames)
    assert.equal(allocateBaseline(name, tableOf(1), 100), undefined);
});

test('orders raise whole blocks from the front, by their own score', () => {
  const table = tableOf(3);
  // halfway between w2g32 (2.5 bits) and w4g32 (4.5 bits): two of four blocks get the higher level
  const budget = (3.55 * 8 * 4096) / 8;
  const raised = (name: 'lim' | 'zd'): string[] =>
    (allocateBaseline(name, table, budget) ?? [])
      .filter(({ option }) => option.startsWith('w4'))
      .map(({ unit }) => unit);
  // lim = -cos: the first block changes most; zd: fewest outlying weights first
  assert.deepEqual(raised('lim'), ['u0', 'u1', 'u2', 'u3']);
  assert.deepEqual(raised('zd'), ['u0', 'u1', 'u2', 'u3']);
});

test('the closed form gives equal losses and the mean that was asked for', () => {
  const random = createRandom(4);
  const losses = Array.from({ length: 50 }, () => 10 ** (4 * random() - 2));
  const bits = equalLossBits(losses, 3.3);
  // exact up to rounding of doubles
  assert.ok(Math.abs(bits.reduce((sum, b) => sum + b, 0) / 50 - 3.3) < 1e-12);
  const each = bits.map((b, i) => (losses[i] ?? 0) * 4 ** -b);
  assert.ok(Math.max(...each) / Math.min(...each) - 1 < 1e-12);
  assert.deepEqual(equalLossBits([2, 2, 2], 4), [4, 4, 4]);
});

test('equal losses give equal bits after rounding too', () => {
  const table = tableOf(5);
  const even = {
    ...table,
    units: table.units.map((unit) => ({ ...unit, outputEnergy: 1 })),
  };
  const rows = allocateBaseline('baq', even, (4.5 * 8 * 4096) / 8);
  assert.deepEqual(new Set(rows?.map(({ option }) => option)).size, 1);
});

test('a table that is written and read gives the same answers', () => {
  const table = tableOf(6);
  const read = decodeTable(encodeTable(table), 'sensitivity.json');
  assert.deepEqual(read.model, table.model);
  // rows that are beaten are left out, three digits are kept
  assert.deepEqual(decodeTable(encodeTable(read), 'sensitivity.json'), read);
  for (const bits of [2.6, 3.3, 4.4]) {
    const bytes = (bits * 8 * 4096) / 8;
    const [a, b] = [allocate(table, { bytes }), allocate(read, { bytes })];
    assert.deepEqual(
      a?.rows.map(({ option }) => option),
      b?.rows.map(({ option }) => option),
    );
  }
});

test('what is no table is refused with the reason', () => {
  const text = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));
  const table = JSON.parse(new TextDecoder().decode(encodeTable(tableOf(1)))) as {
    units: { bytes: number[] }[];
  };
  assert.throws(() => decodeTable(new TextEncoder().encode('{'), 'x.json'), /x\.json/);
  assert.throws(() => decodeTable(text({ version: 2 }), 'x.json'), /version is 2/);
  table.units[2]?.bytes.pop();
  assert.throws(() => decodeTable(text(table), 'x.json'), /columns of unit "u2" differ/);
});

test('a budget below the floor names the floor and what sets it', () => {
  const table = { ...tableOf(1), fixedBytes: 500, overheadBytes: 1500 };
  const budget = unitBudget(table, { maxSize: 9000, averageBits: undefined });
  assert.equal(budget, 7000);
  assert.equal(allocate(table, { bytes: budget }), undefined);
  // eight units of 64 x 64 in w2g32: 2.5 bits
  assert.equal(leastBytes(table), (8 * 4096 * 2.5) / 8);
  const error = belowFloor(table, budget);
  assert.equal(error.code, 'BUDGET_EXCEEDED');
  assert.equal(error.at['bytes'], 10240 + 2000);
  assert.match(error.message, /floor of the bundle is 12240 bytes.*L0\.up/);
  const bits = unitBudget(table, { maxSize: undefined, averageBits: 2 });
  assert.equal(bits, (2 * 32768) / 8 - 500);
  const inBits = belowFloor(table, bits, { averageBits: 2 });
  // (10240 + 500) bytes of 32768 parameters
  assert.match(inBits.message, /floor of the weights is 2\.622 bits a parameter/);
  assert.equal(inBits.fix, 'Allow auto:2.64 or more.');
  const memory = belowFloor(table, 1000, { memory: { most: 9000, fixed: 8000 } });
  assert.match(memory.message, /floor of a session is \d+ bytes: .*8\.00 kB of other weights, act/);
  assert.equal(memory.at['option'], 'maxMemory');
});

const alone = Array.from({ length: 8 }, (_, u) => ({
  name: `u${u}`,
  block: u >> 1,
  error: 0.01 * (u + 1),
}));
const errorNamed = (name: string): number => alone.find((unit) => unit.name === name)?.error ?? 0;

test('errors that add up deviate by nothing, those of parallel vectors by half', async () => {
  const sum = await checkAdditivity(alone, async (a, b) => errorNamed(a) + errorNamed(b));
  assert.equal(sum.pairs, 20);
  assert.ok(sum.medianDeviation < 1e-12);
  const parallel = await checkAdditivity(
    alone,
    async (a, b) => (Math.sqrt(errorNamed(a)) + Math.sqrt(errorNamed(b))) ** 2,
  );
  // 2·sqrt(ab) / (sqrt(a)+sqrt(b))² is at most 1/2, and close to it for similar errors
  assert.ok(parallel.medianDeviation > 0.3 && parallel.medianDeviation <= 0.5);
});

test('interactions of parallel errors have the coefficient 2', async () => {
  const pairs = likelyPairs(alone);
  assert.ok(pairs.length >= 4 && pairs.length <= 16);
  assert.ok(pairs.some(([a, b]) => a.block === b.block));
  const rows = await measurePairs(
    pairs,
    async (a, b) => (Math.sqrt(errorNamed(a)) + Math.sqrt(errorNamed(b))) ** 2,
  );
  for (const { coefficient } of rows) assert.ok(Math.abs(coefficient - 2) < 1e-5);
});
