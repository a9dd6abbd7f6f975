/** What a session promises whatever the engine, on the WASM engine. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { lowerForWasm } from '../../compiler/lower/wasm.ts';
import type { FettleError } from '../../runtime/errors.ts';
import type { Session } from '../../runtime/node.ts';
import { fusedDecoder } from '../support/fused-decoder.ts';
import { planBundle } from '../support/plan-session.ts';
import { rangeDistance } from '../support/range-distance.ts';

const CONTEXT = 48;
const ids = Array.from({ length: 23 }, (_, i) => (i * 37 + 11) % 80);
const greedy = { temperature: 0, ignoreEnd: true } as const;

async function open(options: Parameters<typeof fusedDecoder>[0] = {}): Promise<Session> {
  const { model, decoder } = fusedDecoder(options);
  return (await planBundle(model, decoder, { chunk: 8 })).open();
}

function hasCode(code: string, message: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.equal((error as FettleError).code, code);
    assert.match((error as FettleError).message, message);
    return true;
  };
}

test('a context is filled to the last token, and no further', async () => {
  const session = await open();
  const full = Array.from({ length: CONTEXT }, (_, i) => i % 80);
  const { shape } = await session.logits(full);
  assert.deepEqual(shape, [CONTEXT, 80]);
  await assert.rejects(session.logits([...full, 1]), hasCode('USAGE', /context holds 48 tokens/));
  await assert.rejects(
    session.generate([...full, 1], greedy).result(),
    hasCode('USAGE', /context holds 48 tokens/),
  );
  const result = await session.generate(ids, { ...greedy, maxTokens: 500 }).result();
  assert.equal(result.finish, 'length');
  // the last token is chosen from the logits of a full context, and not fed
  assert.equal(ids.length + result.tokens.length, CONTEXT + 1);
  await session.dispose();
});

for (const format of ['f32', 'w4g32'])
  test(`${format}: a conversation that goes on is the one that starts again`, async () => {
    const [cached, fresh] = [await open({ format }), await open({ format })];
    const first = await cached.generate(ids, { ...greedy, maxTokens: 5 }).result();
    const next = [3, 1, 4];
    const on = await cached.generate(next, { ...greedy, maxTokens: 6, continue: true }).result();
    const whole = [...ids, ...first.tokens, ...next];
    const again = await fresh.generate(whole, { ...greedy, maxTokens: 6 }).result();
    assert.deepEqual(on.tokens, again.tokens);
    await Promise.all([cached.dispose(), fresh.dispose()]);
  });

test('tokens fed one by one give the logits of one call', async () => {
  const { model, decoder } = fusedDecoder();
  const [one, whole] = [
    await (await planBundle(model, decoder, { chunk: 1 })).open(),
    await (await planBundle(model, decoder)).open(),
  ];
  const got = (await one.logits(ids)).data as Float32Array;
  const want = (await whole.logits(ids)).data as Float32Array;
  // one token at a time and four at a time are different kernels: sums in another order
  assert.ok(rangeDistance(got, want) <= 1e-5);
  await Promise.all([one.dispose(), whole.dispose()]);
});

test('two sessions of one bundle generate at once without touching each other', async () => {
  const { model, decoder } = fusedDecoder({ format: 'w8g32' });
  const bundle = await planBundle(model, decoder);
  const [a, b] = [await bundle.open(), await bundle.open()];
  const prompts = [ids, ids.toReversed()] as const;
  const alone = [];
  for (const prompt of prompts)
    alone.push((await a.generate(prompt, { ...greedy, maxTokens: 12 }).result()).tokens);
  const tokens: number[][] = [[], []];
  const generations = [
    a.generate(prompts[0], { ...greedy, maxTokens: 12 }),
    b.generate(prompts[1], { ...greedy, maxTokens: 12 }),
  ].map((generation) => generation[Symbol.asyncIterator]());
  for (let i = 0; i < 12; i++)
    for (const [index, generation] of generations.entries())
      tokens[index]?.push((await generation.next()).value?.id ?? -1);
  for (const generation of generations) await generation.return?.();
  assert.deepEqual(tokens, alone);
  await a.dispose();
  // the other one lives on
  assert.deepEqual(
    (await b.generate(prompts[0], { ...greedy, maxTokens: 12 }).result()).tokens,
    alone[0],
  );
  await b.dispose();
});

test('after dispose() a session says so, and dispose() may be called again', async () => {
  const session = await open();
  await session.dispose();
  await session.dispose();
  await assert.rejects(session.logits(ids), hasCode('USAGE', /disposed/));
  assert.throws(() => session.generate(ids, greedy), hasCode('USAGE', /disposed/));
});

test('a plan that no memory holds is refused when it is made, with its size', () => {
  const { model, decoder } = fusedDecoder();
  const endless = { ...decoder, contextLength: 2 ** 26 };
  assert.throws(
    () => lowerForWasm(model, { decoder: endless, threads: 1 }),
    hasCode('BUDGET_EXCEEDED', /needs \d+ bytes; a WebAssembly memory holds/),
  );
});

test('a host without the memory that was planned is told so before weights are read', async (t) => {
  const { model, decoder } = fusedDecoder();
  const bundle = await planBundle(model, decoder);
  const { Memory } = WebAssembly;
  t.after(() => Object.assign(WebAssembly, { Memory }));
  const reads: string[] = [];
  const readFile = bundle.files.read.bind(bundle.files);
  bundle.files.read = (path, ...rest) => {
    reads.push(path);
    return readFile(path, ...rest);
  };
  Object.assign(WebAssembly, {
    Memory: class {
      constructor() {
        throw new RangeError('WebAssembly.Memory(): could not allocate memory');
      }
    },
  });
  await assert.rejects(
    bundle.open(),
    hasCode('BUDGET_EXCEEDED', /Cannot allocate the \d+ bytes that were planned/),
  );
  assert.ok(!reads.some((path) => path.includes('weights')), reads.join());
});
