/** A decoder without a cache gets one, and then computes a sequence in parts as it did in one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { parseModel } from '../../compiler/ir/parse.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import type { PassReport } from '../../compiler/passes/pass.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { tensor } from '../../runtime/tensor.ts';
import { buildDecoder } from '../../models/decoder.ts';
import { microDecoders } from '../../models/micro.ts';
import { spellings } from '../../models/spelling/index.ts';
import { plainGpt, withoutCache } from '../support/uncached.ts';
import { expectSame } from '../support/expect-same.ts';

/** One layer: embedding, causal attention, output head. */
const uncached = (
  mask: string,
  ids = 'b, s',
): string => `graph (input_ids: i64[${ids}]) -> (logits) {
  opset 17
  const %table: f32[5, 4] = {1, 2, -1, 0, 0.5, 1, 2, -1, 0, 1, 1, 0, -2, 1, 0, 1, 1, -1, 0.5, 2}
  const %wq: f32[4, 4] = {1, 0, 2, 1, 0, 1, -1, 0, 1, 1, 0, 2, 0, 1, 1, -1}
  const %head: f32[4, 5] = {1, 0, 2, 1, 0, 1, -1, 0, 1, 1, 0, 2, 0, 1, 1, -1, 1, 2, 0, 1}
  %x = Gather(%table, %input_ids)
  %q = fettle::Linear(%x, %wq) {transposed = 0}
  %y = fettle::Attention(%q, %x, %x) {heads = 2, kvHeads = 2, headSize = 2, scale = 0.5, ${mask}}
  %logits = fettle::Linear(%y, %head) {transposed = 0}
}`;

async function inserted(text: string): Promise<readonly [Model, PassReport]> {
  const model = parseModel(text);
  const [report] = await runPasses(model, pipelineFrom(['insert-kv-cache']), {
    checkChanged: true,
  });
  assert.ok(report !== undefined);
  verifyModel(model);
  return [model, report];
}

const ids = (...values: readonly bigint[]): Tensor =>
  tensor('i64', [1, values.length], BigInt64Array.from(values));

test('a causal decoder gets a cache and computes the same in parts', async () => {
  const text = uncached('causal = 1');
  const [model] = await inserted(text);
  assert.deepEqual(
    [...model.graph.inputs, ...model.graph.outputs].map(({ name }) => name),
    [
      'input_ids',
      'past_key_values.0.key',
      'past_key_values.0.value',
      'logits',
      'present.0.key',
      'present.0.value',
    ],
  );
  assert.equal(analyzeDecoder(model).decoder?.state.length, 2);
  const whole = evaluate(parseModel(text), { input_ids: ids(1n, 4n, 2n, 0n) }).get('logits');
  const empty = tensor('f32', [1, 2, 0, 2], new Float32Array(0));
  const first = evaluate(model, {
    input_ids: ids(1n, 4n),
    'past_key_values.0.key': empty,
    'past_key_values.0.value': empty,
  });
  const second = evaluate(model, {
    input_ids: ids(2n, 0n),
    'past_key_values.0.key': first.get('present.0.key') ?? empty,
    'past_key_values.0.value': first.get('present.0.value') ?? empty,
  }).get('logits');
  assert.ok(whole?.data instanceof Float32Array && second !== undefined);
  const wanted = tensor('f32', [1, 2, 5], whole.data.slice(10));
  // the same sums in the same order
  expectSame(second, wanted, { tolerance: 1e-6, what: 'logits' });
});

for (const [what, text, why] of [
  ['sees later tokens', uncached('causal = 0'), /not causal/],
  ['has a fixed length', uncached('causal = 1', '1, 8'), /fixed to 8/],
  [
    'counts positions',
    uncached('causal = 1')
      .replace('%q = fettle::Linear(%x', '%c = CumSum(%x, %one)\n  %q = fettle::Linear(%c')
      .replace('const %wq', 'const %one: i64[] = {1}\n  const %wq'),
    /CumSum is not known to treat tokens one by one/,
  ],
] as const)
  test(`a model that ${what} is refused a cache`, async () => {
    const [, report] = await inserted(text);
    assert.equal(report.changed, false);
    assert.match(report.refusals[0]?.why ?? '', why);
  });

/** Logits of a sequence in parts, driven as the runtime drives a decoder. */
function inParts(model: Model, tokens: readonly number[], parts: readonly number[]): Float32Array {
  const decoder = analyzeDecoder(model).decoder;
  assert.ok(decoder !== undefined, 'no decoder');
  let before = 0;
  const logits: number[] = [];
  const state = new Map<string, Tensor>();
  for (const { input, shape, dtype } of decoder.state) {
    const sizes = shape.map((dim) => (typeof dim === 'number' ? dim : 0));
    state.set(input, tensor(dtype, [1, ...sizes.slice(1)], new Float32Array(0)));
  }
  for (const part of parts) {
    const feeds = new Map(state);
    const row = (values: readonly number[]): Tensor =>
      tensor('i64', [1, values.length], BigInt64Array.from(values, BigInt));
    feeds.set(decoder.ids, row(tokens.slice(before, before + part)));
    const places = Array.from({ length: part }, (_, i) => before + i);
    if (decoder.positions !== undefined) feeds.set(decoder.positions, row(places));
    if (decoder.mask !== undefined) feeds.set(decoder.mask, row(Array(before + part).fill(1)));
    const got = evaluate(model, feeds);
    for (const { input, output } of decoder.state) state.set(input, defined(got.get(output)));
    logits.push(...(defined(got.get('logits')).data as Float32Array));
    before += part;
  }
  return Float32Array.from(logits);
}

function defined<T>(value: T | undefined): T {
  assert.ok(value !== undefined);
  return value;
}

const text = [3, 17, 5, 41, 0, 8, 22, 9, 30, 1, 2];

async function withCache(model: Model, contextLength?: number): Promise<readonly PassReport[]> {
  const reports = await runPasses(model, pipelineFrom(['clean-up', 'fuse', 'insert-kv-cache']), {
    checkChanged: true,
    ...(contextLength === undefined ? {} : { contextLength }),
  });
  verifyModel(model);
  return reports;
}

function whole(model: Model): Float32Array {
  const feeds = new Map([['input_ids', ids(...text.map(BigInt))]]);
  const ones = new BigInt64Array(text.length).fill(1n);
  for (const { name } of model.graph.inputs) {
    if (name === 'attention_mask') feeds.set(name, tensor('i64', [1, text.length], ones));
    if (name === 'position_ids') feeds.set(name, ids(...text.map((_, i) => BigInt(i))));
  }
  return defined(evaluate(model, feeds).get('logits')).data as Float32Array;
}

for (const positions of ['learned', 'learned-input', 'sinusoidal', 'rotary', 'alibi'] as const)
  test(`a GPT with ${positions} positions gets a cache and computes the same in parts`, async () => {
    const model = plainGpt(positions);
    const wanted = whole(model);
    await withCache(model);
    assert.equal(analyzeDecoder(model).decoder?.state.length, 4);
    for (const parts of [[11], [1, 1, 9], [4, 5, 2]]) {
      const got = tensor('f32', [wanted.length], inParts(model, text, parts));
      // sums in another order; a slope's term is moved by a number of the query, which a softmax ignores
      expectSame(got, tensor('f32', [wanted.length], wanted), { tolerance: 2e-6, what: positions });
    }
  });

for (const [what, model, why] of [
  ['a GPT that is not causal', plainGpt('learned', false), /not causal/],
  ['ALiBi without a causal mask', plainGpt('alibi', false), /sees later tokens/],
  ['a mask of buckets', plainGpt('buckets'), /more than a term of how far on/],
] as const)
  test(`${what} is refused a cache`, async () => {
    const report = (await withCache(model)).at(-1);
    assert.equal(report?.changed, false);
    assert.match(report.refusals[0]?.why ?? '', why);
  });

for (const [index, [name, config]] of Object.entries(microDecoders).entries())
  test(`micro:${name} without its cache gets one`, async () => {
    const spelling = defined([...spellings].filter((one) => one.name !== 'ort')[index % 3]);
    const model = withoutCache(buildDecoder(name, config, spelling));
    const wanted = whole(model);
    await withCache(model, config.contextLength);
    assert.equal(analyzeDecoder(model).decoder?.state.length, 2 * config.layers);
    const got = tensor('f32', [wanted.length], inParts(model, text, [6, 1, 4]));
    expectSame(got, tensor('f32', [wanted.length], wanted), { tolerance: 1e-5, what: name });
  });
