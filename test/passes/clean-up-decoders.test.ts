/** Clean-up on generated decoders: the same bits, tied tables stored once, and scale. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses, sizeOfModel } from '../../compiler/run-passes.ts';
import { buildDecoder } from '../../models/decoder.ts';
import { generatedModel } from '../../models/index.ts';
import type { MicroName } from '../../models/micro.ts';
import { microDecoders } from '../../models/micro.ts';
import { ortSpelling } from '../../models/spelling/ort.ts';
import { torchSpelling } from '../../models/spelling/torch.ts';
import { countNodes } from '../support/count-nodes.ts';
import { expectSame } from '../support/expect-same.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { seededInputs } from '../support/seeded-inputs.ts';

const cases: readonly (readonly [MicroName, 'torch' | 'ort'])[] = [
  ['gqa', 'torch'],
  ['interleaved', 'torch'],
  ['partial-rotary', 'torch'],
  ['plus-one', 'torch'],
  ['tied-copy', 'torch'],
  ['mask-positions', 'torch'],
  ['gqa', 'ort'],
  ['qk-norm', 'ort'],
];

/** GroupQueryAttention wants one sequence, or one token, when there is a past. */
const sizes = {
  batch_size: 1,
  sequence_length: 3,
  past_sequence_length: 4,
  total_sequence_length: 7,
};

for (const [name, spelling] of cases)
  test(`clean-up of micro:${name} in the spelling of ${spelling} gives the same bits`, async () => {
    const how = spelling === 'torch' ? torchSpelling : ortSpelling;
    const original = buildDecoder(name, microDecoders[name], how);
    const model = buildDecoder(name, microDecoders[name], how);
    await runPasses(model, pipelineFrom(['clean-up']), { checkChanged: true });
    const inputs = seededInputs(original, 3, sizes);
    const mask = inputs.get('attention_mask');
    if (mask?.data instanceof BigInt64Array) mask.data.fill(1n);
    const wanted = await runOnOrt(encodeModel(original), inputs);
    const got = await runOnOrt(encodeModel(model), inputs);
    for (const [what, tensor] of wanted) {
      const seen = got.get(what);
      assert.ok(seen !== undefined);
      expectSame(seen, tensor, { tolerance: 0, what });
    }
  });

test('a tied table that is stored twice is stored once', async () => {
  const config = microDecoders['tied-copy'];
  const model = buildDecoder('tied-copy', config, torchSpelling);
  const before = sizeOfModel(model).weightBytes;
  const reports = await runPasses(
    model,
    pipelineFrom([['deduplicate-weights', { minTransposedBytes: 1024 }]]),
  );
  const table = config.vocabulary * config.width * 4;
  assert.equal(reports[0]?.rewrites['transposed'], 1);
  assert.ok(before - sizeOfModel(model).weightBytes >= table);
});

test('clean-up of a decoder of 135M parameters reads little of it and takes away a quarter', async () => {
  const model = generatedModel('shape:smollm2-135m').build();
  const before = countNodes(model);
  await runPasses(model, pipelineFrom(['clean-up']));
  assert.ok(countNodes(model) < 0.75 * before, `${countNodes(model)} of ${before} nodes`);
});
