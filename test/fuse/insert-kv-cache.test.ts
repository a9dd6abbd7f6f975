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
    /CumSum may count or mix tokens/,
  ],
] as const)
  test(`a model that ${what} is refused a cache`, async () => {
    const [, report] = await inserted(text);
    assert.equal(report.changed, false);
    assert.match(report.refusals[0]?.why ?? '', why);
  });
