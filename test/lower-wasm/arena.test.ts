import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bestFit, liveBytes, planArena } from '../../compiler/lower/arena.ts';
import type { Buffer, Step } from '../../compiler/lower/plan.ts';
import { addressOf } from '../../compiler/lower/plan.ts';
import { uniform } from '../support/random-values.ts';

const buffer = (name: string, bytes: number, more: Partial<Buffer> = {}): Buffer => ({
  name,
  region: 'arena',
  bytes,
  segment: 'body',
  ...more,
});

const step = (reads: readonly Buffer[], writes: Buffer, inPlace: Step['inPlace'] = []): Step => ({
  kernel: 'FILL',
  segment: 'body',
  words: [...reads, writes].map((used) => addressOf(used)),
  node: writes.name,
  why: '',
  inPlace,
});

const bytesOf = (used: Buffer): number => Number(used.bytes);

test('what is not needed at the same time shares bytes', () => {
  const [a, b, c] = [
    buffer('a', 64, { input: true }),
    buffer('b', 128),
    buffer('c', 64, { output: true }),
  ];
  const plan = planArena([step([a], b), step([b], c)], bytesOf);
  assert.equal(plan.lowerBound, 192);
  assert.equal(plan.bytes, 192);
  assert.equal(plan.offsets.get(a), plan.offsets.get(c));
  assert.notEqual(plan.offsets.get(a), plan.offsets.get(b));
});

test('a result takes over the storage of an input that nothing reads any more', () => {
  const [a, b, c] = [
    buffer('a', 256, { input: true }),
    buffer('b', 256),
    buffer('c', 256, { output: true }),
  ];
  const inPlace = planArena([step([a], b, [[b, a]]), step([b], c, [[c, b]])], bytesOf);
  assert.equal(inPlace.bytes, 256);
  assert.equal(inPlace.inPlace, 2);
  // a is read again: the first step must not overwrite it
  const kept = planArena([step([a], b, [[b, a]]), step([a, b], c, [[c, b]])], bytesOf);
  assert.equal(kept.inPlace, 1);
  assert.notEqual(kept.offsets.get(a), kept.offsets.get(b));
  // a smaller input has no room for the result
  const small = buffer('small', 64, { input: true });
  assert.equal(planArena([step([small], c, [[c, small]])], bytesOf).inPlace, 0);
  // what the caller reads afterwards stays
  const shown = buffer('shown', 256, { input: true, output: true });
  assert.equal(planArena([step([shown], c, [[c, shown]])], bytesOf).inPlace, 0);
});

test('buffers that are alive together never overlap, and the arena is near its lower bound', () => {
  const next = uniform(7);
  let total = 0;
  let bound = 0;
  for (let round = 0; round < 50; round++) {
    const lives = Array.from({ length: 40 }, () => {
      const first = Math.floor(next() * 60);
      return {
        first,
        last: first + Math.floor(next() * 12),
        bytes: 64 * (1 + Math.floor(next() * 40)),
      };
    });
    const { offsets, bytes } = bestFit(lives);
    lives.forEach((one, i) =>
      lives.slice(0, i).forEach((other, j) => {
        if (one.last < other.first || other.last < one.first) return;
        const [a, b] = [offsets[i] ?? 0, offsets[j] ?? 0];
        assert.ok(a + one.bytes <= b || b + other.bytes <= a, `${i} and ${j} overlap`);
      }),
    );
    const least = liveBytes(lives);
    assert.ok(bytes >= least);
    total += bytes;
    bound += least;
  }
  // random lives are harder than those of networks; greedy by size stays within a tenth
  assert.ok(total / bound <= 1.1, `${total / bound}`);
});
