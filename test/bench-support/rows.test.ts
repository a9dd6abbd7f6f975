/** Rows of the benchmarks: their keys, medians and limits. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { median, quantile } from '../../compiler/cli/bench-row.ts';
import type { SessionFigures } from '../../compiler/cli/bench-session.ts';
import { benchmarkPrompt } from '../../compiler/cli/bench-session.ts';
import { peers } from '../bench/peer-models.ts';
import type { SampleGroup } from '../bench/peer-rows.ts';
import { peerRow, ratiosOf } from '../bench/peer-rows.ts';

const speed = (rate: number): SessionFigures['steady'][number] => ({
  firstTokenMs: 1000 / rate,
  prefillTokensPerSecond: rate * 4,
  decodeTokensPerSecond: rate,
});

const sample = (rate: number): SessionFigures => ({
  kernels: 'relaxed',
  loadMs: 10 * rate,
  cold: speed(rate / 2),
  steady: [speed(rate)],
  callMs: [],
  memoryBytes: { weights: 100, arena: 10, state: 1, peak: 111 + rate },
  memorySource: { weights: 'counted', arena: 'counted', state: 'counted', peak: 'process' },
});

const group: SampleGroup = {
  model: 'lm5m',
  host: 'chromium',
  threads: 1,
  peer: { name: 'wasm', weightBits: 4, products: 'integer' },
  weights: { blocks: 60, head: 40 },
  samples: [sample(30), sample(10), sample(20)],
};

// 100 weights of half a byte at 1 GB/s: 50 ns; 100 products at 1 G/s: 100 ns
const probes = [{ readGBps: 1, dotGMACps: 1, fmaGFLOPps: 1 }];

test('a row has the keys of fettle bench', () => {
  const row: Readonly<Record<string, unknown>> = { ...peerRow(group, probes) };
  // DESIGN section 5; a decoder has no latencyMs
  for (const key of [
    'model',
    'engine',
    'host',
    'threads',
    'kernels',
    'loadMs',
    'firstTokenMs',
    'prefillTokensPerSecond',
    'decodeTokensPerSecond',
    'memoryBytes',
    'probes',
    'samples',
  ])
    assert.ok(row[key] !== undefined, key);
  assert.deepEqual(Object.keys(row['probes'] as object), ['readGBps', 'dotGMACps', 'fmaGFLOPps']);
  const bytes = row['memoryBytes'] as Readonly<Record<string, number>>;
  assert.deepEqual(
    [bytes['weights'], bytes['arena'], bytes['state'], bytes['peak']],
    [100, 10, 1, 131],
  );
});

test('figures are medians of the samples, cold ones apart', () => {
  const row = peerRow(group, probes);
  assert.equal(row.decodeTokensPerSecond, 20);
  assert.equal(row.prefillTokensPerSecond, 80);
  assert.equal(row.cold?.decodeTokensPerSecond, 10);
  assert.equal(row.loadMs, 200);
  assert.equal(row.samples, 3);
  assert.deepEqual(row.range.decodeTokensPerSecond, [10, 30]);
});

test('decoding is limited by the slower of reading and multiplying, a prompt by multiplying', () => {
  const { limit } = peerRow(group, probes);
  assert.ok(Math.abs(limit.decodeTokensPerSecond - 1e7) < 1);
  assert.ok(Math.abs(limit.prefillTokensPerSecond - 1e9 / 60) < 1);
  assert.ok(Math.abs(limit.decodeFraction - 20 / 1e7) < 1e-12);
  const slowRead = peerRow(group, [{ readGBps: 0.25, dotGMACps: 1, fmaGFLOPps: 1 }]);
  assert.ok(Math.abs(slowRead.limit.decodeTokensPerSecond - 5e6) < 1);
  // a multiply-add is two operations
  const float = peerRow({ ...group, peer: { ...group.peer, products: 'float' } }, probes);
  assert.ok(Math.abs(float.limit.prefillTokensPerSecond - 0.5e9 / 60) < 1);
});

test('there is no row without samples', () => {
  assert.throws(() => peerRow({ ...group, samples: [] }, probes), RangeError);
});

test('ratios compare with other engines under the same conditions only', () => {
  const mine = peerRow(group, probes);
  const peer = { ...group.peer, name: 'ort-fp32' };
  const other = peerRow({ ...group, peer, samples: [sample(5)] }, probes);
  const elsewhere = peerRow({ ...group, peer, host: 'node' }, probes);
  const [ratio, more] = ratiosOf([mine, other, elsewhere]);
  assert.equal(more, undefined);
  assert.deepEqual([ratio?.engine, ratio?.against], ['wasm', 'ort-fp32']);
  assert.deepEqual([ratio?.prefill, ratio?.decode], [4, 4]);
});

test('medians and quantiles of figures in any order', () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 2, 3]), 2.5);
  assert.equal(quantile([4, 1, 2, 3], 0.95), 4);
  assert.equal(quantile([4, 1, 2, 3], 0.5), 2);
});

test('the engines that issue 4 names take part', () => {
  const names = peers.map(({ name }) => name);
  for (const name of [
    'wasm',
    'ort-fp32',
    'ort-q4',
    'ort-q4-folded',
    'ort-q8',
    'wllama-q4',
    'wllama-q8',
  ])
    assert.ok(names.includes(name), name);
});

test('a benchmark prompt has the wanted length and only tokens of the vocabulary', () => {
  const prompt = benchmarkPrompt(128, 50);
  assert.equal(prompt.length, 128);
  assert.ok(prompt.every((id) => Number.isInteger(id) && id >= 0 && id < 50));
  assert.ok(new Set(prompt).size > 20);
});
