/** Small trained classifiers on the WASM engine, with filters and matrices in few bits. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { inferModel } from '../../compiler/ir/infer.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { quantizeWeights } from '../../compiler/passes/quantize-weights.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { openSource } from '../../compiler/source.ts';
import { readNpy } from '../../models/npy.ts';
import { tensor } from '../../runtime/tensor.ts';
import { wasm } from '../../targets/wasm.ts';
import type { PlanBundle } from '../support/plan-session.ts';
import { planBundle } from '../support/plan-session.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

async function bundleOf(name: string, format: string): Promise<PlanBundle> {
  const path = sharedPath('models', name, 'model.onnx');
  const model = openSource(new NodeFiles(), path).read();
  inferModel(model);
  const steps = wasm.pipeline.filter((step) => step !== 'quantize-weights');
  await runPasses(model, pipelineFrom(steps), {});
  await runPasses(model, [quantizeWeights({ format, minElements: 256 })], {});
  return planBundle(model);
}

/** Share of the first test images that are recognised. */
async function accuracy(bundle: PlanBundle, images: number): Promise<number> {
  const pixels = readNpy(readFileSync(sharedPath('data', 'digits-test-images.npy'))).data;
  const labels = readNpy(readFileSync(sharedPath('data', 'digits-test-labels.npy'))).data;
  const session = await bundle.open();
  const values = Float32Array.from({ length: images * 784 }, (_, i) => Number(pixels[i]) / 255);
  const { logits } = await session.run({ image: tensor('f32', [images, 1, 28, 28], values) });
  await session.dispose();
  const scores = logits?.data as Float32Array;
  let right = 0;
  for (let i = 0; i < images; i++) {
    const own = scores.subarray(i * 10, (i + 1) * 10);
    if (own.indexOf(Math.max(...own)) === Number(labels[i])) right++;
  }
  return right / images;
}

for (const name of ['digits-cnn', 'digits-vit'])
  test(
    `${name} in 4 bits is a fraction of its size and reads digits as before`,
    needsShared('models', name),
    async () => {
      const full = await bundleOf(name, 'f32');
      const best = await accuracy(full, 300);
      assert.ok(best > 0.97, `${best}`);
      for (const [format, share] of [
        ['w4g16', 0.35],
        ['c4g16', 0.35],
        ['w8', 0.4],
      ] as const) {
        const bundle = await bundleOf(name, format);
        const ratio = bundle.plan.layout.weights.bytes / full.plan.layout.weights.bytes;
        assert.ok(ratio < share, `${format}: ${ratio} of the bytes`);
        const got = await accuracy(bundle, 300);
        // 300 images: three more may be wrong
        assert.ok(got >= best - 0.0101, `${format}: ${got}, ${best} in f32`);
      }
    },
  );
