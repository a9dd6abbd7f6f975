import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { openSource } from '../../compiler/source.ts';
import { openDecoder } from '../support/ort-decoder.ts';
import { planBundle } from '../support/plan-session.ts';
import { rangeDistance } from '../support/range-distance.ts';
import { checkRounded } from '../support/rounded-reference.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const { skip } = needsShared('models/nib');
const source = (): ReturnType<typeof openSource> =>
  openSource(new NodeFiles(), sharedPath('models/nib'));

test('nib in f32 gives the logits of the original on onnxruntime', { skip }, async () => {
  const ids = Array.from({ length: 160 }, (_, i) => (i * 37 + 11) % 4096);
  const original = readFileSync(sharedPath('models/nib', 'onnx/model.onnx'));
  const decoder = await openDecoder(original, { layers: 12, kvHeads: 2, headSize: 32 });
  const want = await decoder.logits(ids);
  await decoder.close();
  const { config, read } = source();
  const model = read();
  inferModel(model, { contradictions: 'warn' });
  await runPasses(model, pipelineFrom(['clean-up', 'fuse', 'eliminate-dead']), {});
  const analysis = analyzeDecoder(model, config);
  const session = await (await planBundle(model, analysis.decoder)).open();
  const got = (await session.logits(ids)).data as Float32Array;
  await session.dispose();
  // both in f32, in different orders; the issue asks for 1e-4
  assert.ok(rangeDistance(got, want) <= 1e-4, `${rangeDistance(got, want)}`);
});

const formats = [
  'w8g32',
  'w4g32',
  'w4g32a',
  'w3g32a',
  'w2g32a',
  'c4g32',
  'w8',
  'w4',
  'w4g16',
  'f16',
];

for (const format of formats)
  test(`nib in ${format} gives the reference's logits`, { skip }, async () => {
    const { config, read } = source();
    const model = read();
    inferModel(model, { contradictions: 'warn' });
    const steps = ['clean-up', 'fuse', ['quantize-weights', { format, clip: false }]] as const;
    await runPasses(model, pipelineFrom(steps), {});
    const { decoder } = analyzeDecoder(model, config);
    assert.ok(decoder !== undefined);
    const session = await (await planBundle(model, decoder)).open();
    // eight prompts, for the format the product is about
    for (let prompt = 0; prompt < (format === 'w4g32' ? 8 : 1); prompt++) {
      const length = 5 + 3 * prompt;
      const ids = Array.from({ length }, (_, i) => (i * 37 + 37 * (prompt + 1) ** 2) % 4096);
      // f32 sums against f64 sums; the issue asks for 2e-3
      const logits = await checkRounded(model, decoder, ids, 1e-5);
      assert.deepEqual((await session.logits(ids)).data, logits);
    }
    await session.dispose();
  });
