/** The small parts of the runtime: hashing, sizes, paths, samples, the queue. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Samples } from '../../runtime/measure.ts';
import { isSafePath } from '../../runtime/paths.ts';
import { Queue } from '../../runtime/queue.ts';
import { sha256 } from '../../runtime/sha256.ts';
import { bindSizes, evaluateSize, findConflict } from '../../runtime/sizes.ts';
import { hashOf } from '../support/tiny-bundle.ts';

test('sha256 in JavaScript equals the platform’s at every padding boundary', () => {
  for (const length of [0, 1, 55, 56, 63, 64, 65, 119, 120, 127, 128, 1000, 100_003]) {
    const bytes = new Uint8Array(length).map((_, i) => i * 7 + length);
    assert.equal(sha256(bytes), hashOf(bytes), `${length} bytes`);
  }
});

test('sizes evaluate sums and products of names, and nothing else', () => {
  const sizes = new Map([
    ['past', 3],
    ['sequence', 4],
    ['`my size`', 5],
  ]);
  const cases: readonly [string | number, number | undefined][] = [
    [7, 7],
    ['sequence', 4],
    ['past + sequence', 7],
    ['past+sequence-1', 6],
    ['2*past - sequence', 2],
    ['past*sequence', 12],
    ['-1 + past', 2],
    ['`my size` + 1', 6],
    ['batch', undefined],
    ['past + batch', undefined],
    ['floordiv(past, 2)', undefined],
    ['max(past, 1)', undefined],
    ['', undefined],
  ];
  for (const [spec, wanted] of cases) assert.equal(evaluateSize(spec, sizes), wanted, `${spec}`);
});

test('names bind where they stand alone, and conflicts name the axis', () => {
  const sizes = new Map<string, number>();
  assert.equal(bindSizes(['batch', 'past + sequence', 5], [2, 9, 5], sizes), undefined);
  assert.equal(bindSizes(['batch', 'sequence'], [2, 4], sizes), undefined);
  assert.deepEqual(
    [...sizes],
    [
      ['batch', 2],
      ['sequence', 4],
    ],
  );
  assert.deepEqual(bindSizes(['batch'], [3], sizes), { axis: 0, wanted: 2, got: 3 });
  assert.deepEqual(findConflict(['batch', 6], [2, 5], sizes), { axis: 1, wanted: 6, got: 5 });
  assert.equal(findConflict(['past + sequence'], [99], sizes), undefined);
});

test('safe paths are plain relative names', () => {
  for (const path of ['a', 'weights-00.bin', 'text/tokenizer.json', '_x', 'A.b-c_d'])
    assert.ok(isSafePath(path), path);
  const bad = [
    '',
    '/',
    '/a',
    'a/',
    'a//b',
    '.',
    '..',
    '../a',
    'a/../b',
    '.a',
    '-a',
    'a\\b',
    'C:a',
    'a%2e',
    'a b',
    'a?b',
    'a#b',
    'é',
    'a\0',
    'a\n',
    'x'.repeat(201),
  ];
  for (const path of bad) assert.ok(!isSafePath(path), JSON.stringify(path));
});

test('samples give median and 95th percentile of the latest', () => {
  const samples = new Samples(100);
  assert.equal(samples.summary(), undefined);
  samples.add(5);
  assert.deepEqual(samples.summary(), { median: 5, p95: 5, samples: 1 });
  samples.add(7);
  assert.deepEqual(samples.summary(), { median: 6, p95: 7, samples: 2 });
  for (let i = 1; i <= 100; i++) samples.add(i);
  assert.deepEqual(samples.summary(), { median: 50.5, p95: 95, samples: 100 });
});

test('the queue keeps order and goes on after a failure', async () => {
  const queue = new Queue();
  const order: number[] = [];
  const task = (id: number, ms: number) => async (): Promise<number> => {
    await new Promise((resolve) => setTimeout(resolve, ms));
    order.push(id);
    if (id === 2) throw new Error('two');
    return id;
  };
  const results = await Promise.allSettled([
    queue.add(task(1, 10)),
    queue.add(task(2, 1)),
    queue.add(task(3, 0)),
  ]);
  assert.deepEqual(order, [1, 2, 3]);
  assert.deepEqual(
    results.map(({ status }) => status),
    ['fulfilled', 'rejected', 'fulfilled'],
  );
});
