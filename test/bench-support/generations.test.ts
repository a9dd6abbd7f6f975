import assert from 'node:assert/strict';
import test from 'node:test';
import type { GenerationSpeed } from '../../compiler/cli/bench-row.ts';
import { measureGenerations } from '../../compiler/cli/bench-session.ts';

const settings = { promptTokens: 1, tokens: 1, repeat: 3 };

/** Generations that take `ms` each; their first-token time is their index. */
function taking(ms: number): (index: number) => Promise<GenerationSpeed> {
  return async (index) => {
    const end = performance.now() + ms;
    while (performance.now() < end) await new Promise(setImmediate);
    return { firstTokenMs: index, prefillTokensPerSecond: 1, decodeTokensPerSecond: 1 };
  };
}

const indices = (speeds: readonly GenerationSpeed[]): number[] =>
  speeds.map(({ firstTokenMs }) => firstTokenMs);

test('without a warm-up the samples follow the cold generation', async () => {
  const { cold, warmUps, steady } = await measureGenerations(settings, taking(0));
  assert.equal(cold.firstTokenMs, 0);
  assert.equal(warmUps, 1);
  assert.deepEqual(indices(steady), [1, 2, 3]);
});

test('a fast engine warms up for a number of generations, then gives all samples', async () => {
  const limits = { warmUp: { generations: 4, ms: 10_000 }, repeatMs: 10_000 };
  const { cold, warmUps, steady } = await measureGenerations({ ...settings, ...limits }, taking(0));
  assert.equal(cold.firstTokenMs, 0);
  assert.equal(warmUps, 4);
  assert.deepEqual(indices(steady), [4, 5, 6]);
});

test('a slow engine warms up for a time, then gives one sample or more', async () => {
  const limits = { warmUp: { generations: 4, ms: 30 }, repeatMs: 10 };
  const { warmUps, steady } = await measureGenerations({ ...settings, ...limits }, taking(20));
  // two of 20 ms, or one that a busy machine has made longer
  assert.ok(warmUps >= 1 && warmUps <= 2, `${warmUps}`);
  assert.deepEqual(indices(steady), [warmUps]);
});
