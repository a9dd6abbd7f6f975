import assert from 'node:assert/strict';
import { test } from 'node:test';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { hubConfig } from '../../models/hub-config.ts';
import { generatedDecoders, generatedModel } from '../../models/index.ts';
import { spellings } from '../../models/spelling/index.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import { openDecoder } from '../support/ort-decoder.ts';
import { planBundle } from '../support/plan-session.ts';
import { rangeDistance } from '../support/range-distance.ts';
import { checkRounded } from '../support/rounded-reference.ts';

const ids = Array.from({ length: 19 }, (_, i) => (i * 37 + 11) % 128);

const micros = [...generatedDecoders.keys()].filter((name) => name.startsWith('micro:'));

/** A fused model, its weights in a format, and how it is driven. */
async function prepared(
  reference: string,
  format?: string,
): Promise<{ readonly model: Model; readonly decoder: DecoderSpec }> {
  const { config, build } = generatedModel(reference);
  const model = build();
  inferModel(model);
  const quantize = ['quantize-weights', { format: format ?? '', clip: false }] as const;
  const steps = ['clean-up', 'fuse', ...(format === undefined ? [] : [quantize]), 'eliminate-dead'];
  await runPasses(model, pipelineFrom(steps), {});
  const { decoder, reasons } = analyzeDecoder(model, hubConfig(config));
  assert.ok(decoder !== undefined, reasons.join('; '));
  return { model, decoder: { ...decoder, contextLength: 64 } };
}

for (const base of micros)
  for (const [index, { name: spelling }] of spellings.entries()) {
    const reference = `${base}@${spelling}`;
    test(`${reference}: the wasm engine gives onnxruntime's logits of the original`, async () => {
      const { config, build } = generatedModel(reference);
      const original = await openDecoder(encodeModel(build()), config);
      const want = await original.logits(ids);
      await original.close();
      const { model, decoder } = await prepared(reference);
      const session = await (await planBundle(model, decoder, { chunk: 8 })).open();
      const got = (await session.logits(ids)).data as Float32Array;
      await session.dispose();
      // both in f32, in different orders
      const distance = rangeDistance(got, want);
      assert.ok(distance <= 1e-4, `${distance}`);
    });
    // spellings end in the same graph, so that one of them meets every format
    const formats = ['w4g32', 'w8g32', 'w3g32a', 'w2g32a', 'c4g32'];
    for (const format of formats.slice(0, index === 0 ? undefined : 1))
      test(`${reference} in ${format} gives the reference's logits`, async () => {
        const { model, decoder } = await prepared(reference, format);
        // f32 sums against f64 sums; the issue asks for 2e-3
        await checkRounded(model, decoder, ids, 1e-5);
      });
  }
