import assert from 'node:assert/strict';
import { test } from 'node:test';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { hubConfig } from '../../models/hub-config.ts';
import { generatedDecoders, generatedModel } from '../../models/index.ts';
import { spellings } from '../../models/spelling/index.ts';
import { openDecoder } from '../support/ort-decoder.ts';
import { planBundle } from '../support/plan-session.ts';

const ids = Array.from({ length: 19 }, (_, i) => (i * 37 + 11) % 128);

const micros = [...generatedDecoders.keys()].filter((name) => name.startsWith('micro:'));

for (const base of micros)
  for (const { name: spelling } of spellings) {
    const reference = `${base}@${spelling}`;
    test(`${reference}: the wasm engine gives onnxruntime's logits of the original`, async () => {
      const { config, build } = generatedModel(reference);
      const decoder = await openDecoder(encodeModel(build()), config);
      const want = await decoder.logits(ids);
      await decoder.close();
      const model = build();
      inferModel(model);
      await runPasses(model, pipelineFrom(['clean-up', 'fuse', 'eliminate-dead']), {});
      const analysis = analyzeDecoder(model, hubConfig(config));
      assert.ok(analysis.decoder !== undefined, analysis.reasons.join('; '));
      const bundle = await planBundle(
        model,
        { ...analysis.decoder, contextLength: 64 },
        { chunk: 8 },
      );
      const session = await bundle.open();
      const got = (await session.logits(ids)).data as Float32Array;
      await session.dispose();
      assert.equal(got.length, want.length);
      const range = Math.max(...want) - Math.min(...want);
      const worst = want.reduce(
        (most, value, i) => Math.max(most, Math.abs(value - (got[i] ?? 0))),
        0,
      );
      // both in f32, in different orders
      assert.ok(worst / range <= 1e-4, `${worst / range}`);
    });
  }
