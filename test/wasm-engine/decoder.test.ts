import assert from 'node:assert/strict';
import { test } from 'node:test';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import type { Session } from '../../runtime/node.ts';
import { startWorker } from '../../runtime/node.ts';
import { tensor, zeros } from '../../runtime/tensor.ts';
import type { KernelVariant } from '../../runtime/wasm/module.ts';
import { probeKernels } from '../../runtime/wasm/probe.ts';
import type { FusedDecoderOptions } from '../support/fused-decoder.ts';
import { fusedDecoder } from '../support/fused-decoder.ts';
import { planBundle } from '../support/plan-session.ts';
import { rangeDistance } from '../support/range-distance.ts';
import { checkRounded } from '../support/rounded-reference.ts';

/** Kernels that this host runs right. */
const variants: readonly KernelVariant[] = (await probeKernels()).relaxed
  ? ['simd', 'relaxed']
  : ['simd'];

const ids = Array.from({ length: 23 }, (_, i) => (i * 37 + 11) % 80);

/** Logits of the reference evaluator. */
function reference(model: Model, decoder: DecoderSpec): Float32Array {
  const feeds = new Map([
    [
      'input_ids',
      { dtype: 'i64' as const, shape: [1, ids.length], data: BigInt64Array.from(ids, BigInt) },
    ],
    ...decoder.state.map(
      ({ input, shape }) =>
        [
          input,
          zeros(
            'f32',
            shape.map((dim, axis) => (axis === 2 ? 0 : typeof dim === 'number' ? dim : 1)),
          ),
        ] as const,
    ),
  ]);
  return evaluate(model, feeds).get('logits')?.data as Float32Array;
}

// f32: both sum in f32, in different orders
const cases: readonly (readonly [string, FusedDecoderOptions, number])[] = [
  ['f32', {}, 1e-5],
  ['packed q, k and v', { packed: true }, 1e-5],
  ['norms of heads', { headNorms: true }, 1e-5],
  ['a sliding window', { window: 5 }, 1e-5],
  ['an untied head', { tied: false }, 1e-5],
];

for (const [name, options, most] of cases)
  test(`a decoder with ${name} gives the evaluator's logits, whatever the chunks`, async () => {
    const { model, decoder } = fusedDecoder(options);
    const want = reference(model, decoder);
    for (const chunk of [7, 64]) {
      const session = await (await planBundle(model, decoder, { chunk })).open();
      const { data } = await session.logits(ids);
      const distance = rangeDistance(data as Float32Array, want);
      assert.ok(distance <= most, `${distance}`);
      await session.dispose();
    }
  });

const greedy = async (session: Session): Promise<readonly number[]> =>
  (await session.generate(ids.slice(0, 9), { maxTokens: 32, ignoreEnd: true }).result()).tokens;

for (const format of [
  'w8g32',
  'w8',
  'w4g32',
  'w4g32a',
  'w4g16',
  'w3g32',
  'w3g16',
  'w2g16',
  'w4',
  'c4g32',
  'c4g16',
])
  test(`${format}: logits are those of the reference with activations rounded alike`, async () => {
    const { model, decoder } = fusedDecoder({ format });
    for (const variant of variants) await checkRounded(model, decoder, ids, 1e-5, variant);
  });

for (const options of [{}, { packed: true }, { headNorms: true }, { window: 5 }])
  test(`a cache in f16 takes half the memory: ${JSON.stringify(options)}`, async () => {
    const { model, decoder } = fusedDecoder(options);
    const whole = await planBundle(model, decoder);
    const half = await planBundle(model, decoder, { kv: 'f16' });
    assert.equal(half.plan.memory.state * 2, whole.plan.memory.state);
    assert.equal(half.plan.layout.state.bytes * 2, whole.plan.layout.state.bytes);
    const [a, b] = [await whole.open(), await half.open()];
    const want = (await a.logits(ids)).data as Float32Array;
    const got = (await b.logits(ids)).data as Float32Array;
    // 11 bits of each key and value: 2^-12 of a value at most, less where errors cancel
    const distance = rangeDistance(got, want);
    assert.ok(distance <= 2 ** -11, `${distance}`);
    assert.ok(distance > 0, 'the cache is not in f16');
    assert.deepEqual(await greedy(b), await greedy(a));
    // chunks read from the cache what one call reads from it too
    const parts = await (await planBundle(model, decoder, { kv: 'f16', chunk: 7 })).open();
    const split = (await parts.logits(ids)).data as Float32Array;
    assert.ok(rangeDistance(split, got) <= 1e-5);
    for (const session of [a, b, parts]) await session.dispose();
  });

test('a cache in f16: the same tokens with and without relaxed SIMD, on 1 and 2 threads', async () => {
  const { model, decoder } = fusedDecoder({ format: 'w4g32' });
  const bundle = await planBundle(model, decoder, { kv: 'f16', threads: 2 });
  const results = [];
  for (const plainSimd of [false, true])
    for (const threads of [1, 2]) {
      const session = await bundle.open({ wasm: { startWorker, threads, plainSimd } });
      results.push({ tokens: await greedy(session), logits: (await session.logits(ids)).data });
      await session.dispose();
    }
  for (const other of results) assert.deepEqual(other, results[0]);
});

test('a long prompt is aborted between its parts, and the sequence goes on from there', async () => {
  const { model, decoder } = fusedDecoder({ context: 4096 });
  const session = await (await planBundle(model, decoder, { chunk: 16 })).open();
  const prompt = Array.from({ length: 3000 }, (_, i) => (i * 7) % 80);
  const stop = new AbortController();
  setTimeout(() => stop.abort(), 30);
  const result = await session.generate(prompt, { maxTokens: 4, signal: stop.signal }).result();
  assert.equal(result.finish, 'abort');
  assert.deepEqual(result.tokens, []);
  const again = await session.generate(ids, { maxTokens: 4, temperature: 0 }).result();
  assert.equal(again.tokens.length, 4);
  await session.dispose();
});

test('run() gives logits of all tokens and does not disturb a conversation', async () => {
  const { model, decoder } = fusedDecoder();
  const session = await (await planBundle(model, decoder)).open();
  const options = { maxTokens: 6, temperature: 0, ignoreEnd: true };
  const whole = await session.generate(ids, { ...options, maxTokens: 12 }).result();
  const first = await session.generate(ids, options).result();
  const input = tensor('i64', [1, 4], BigInt64Array.of(3n, 1n, 4n, 1n));
  const { logits } = await session.run({ input_ids: input });
  assert.deepEqual(logits?.shape, [1, 4, 80]);
  const direct = (await session.logits([3, 1, 4, 1])).data;
  assert.deepEqual(logits?.data, direct);
  assert.deepEqual(first.tokens, whole.tokens.slice(0, 6));
  await session.dispose();
});

test('memory is counted as it was planned, and never grows', async () => {
  const { model, decoder } = fusedDecoder({ format: 'w4g32' });
  const bundle = await planBundle(model, decoder);
  const session = await bundle.open();
  await session.generate(ids, { maxTokens: 8, ignoreEnd: true }).result();
  const { weights, arena, state } = session.measure().memoryBytes;
  const { memory } = session.manifest;
  assert.deepEqual([weights, arena, state], [memory.weights, memory.arena, memory.state]);
  assert.deepEqual(session.measure().memorySource.state, 'counted');
  await session.dispose();
});
