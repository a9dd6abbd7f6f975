/** Products in 8 bits: what they cost on real models, run by onnxruntime-web. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fixedModel } from '../../compiler/calibrate/fixed-model.ts';
import { activationRanges } from '../../compiler/calibrate/ranges.ts';
import { arraySamples, partOf, windowSamples } from '../../compiler/calibrate/samples.ts';
import type { Samples } from '../../compiler/calibrate/samples.ts';
import { openStage } from '../../compiler/calibrate/stage-runner.ts';
import { cloneModel } from '../../compiler/ir/clone.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { gridOf, quantizeActivations } from '../../compiler/passes/quantize-activations.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { readNpy } from '../../models/npy.ts';
import { engines, frontModel } from '../support/calibration.ts';
import { random } from '../support/rng.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

/** The first output of every sample, and what ran it. */
async function outputsOf(
  model: Model,
  samples: Samples,
): Promise<{ readonly engine: string; readonly outputs: readonly Float32Array[] }> {
  const fixed = await fixedModel(model, undefined, samples.shapes);
  const runner = await openStage(fixed, { engines, units: [] });
  const outputs: Float32Array[] = [];
  for (let index = 0; index < samples.count; index++) {
    const [first] = [...(await runner.run(samples.at(index))).values()];
    outputs.push(first?.data as Float32Array);
  }
  await runner.dispose();
  return { engine: runner.engine, outputs };
}

const bestOf = (scores: Float32Array): number => scores.indexOf(Math.max(...scores));

for (const name of ['digits-cnn', 'digits-vit'])
  test(
    `${name} in 8 bits is as right as in f32, within half a point`,
    needsShared(`models/${name}`),
    async (t) => {
      const read = (file: string) => readNpy(readFileSync(sharedPath('data', file)), file);
      const { model } = await frontModel(sharedPath(`models/${name}/model.onnx`), 'ort-wasm');
      const all = (file: string): Samples =>
        arraySamples(model, new Map([['image', images(read(file))]]), file);
      const calibration = partOf(all('digits-calibration-images.npy'), 0, 100);
      const test = partOf(all('digits-test-images.npy'), 0, 400);
      const labels = Array.from(
        read('digits-test-labels.npy').data as ArrayLike<number | bigint>,
        Number,
      );
      const ranges = await activationRanges(model, undefined, calibration, { engines });
      const changed = cloneModel(model);
      const [report] = await runPasses(changed, [quantizeActivations({ ranges })]);
      const counts = report?.rewrites ?? {};
      const made = Object.values(counts).reduce((sum, count) => sum + count, 0);
      assert(made >= 8, JSON.stringify(counts));
      const right = (outputs: readonly Float32Array[]): number =>
        outputs.filter((scores, index) => bestOf(scores) === labels[index]).length / outputs.length;
      const before = await outputsOf(model, test);
      const after = await outputsOf(changed, test);
      assert.equal(after.engine, 'ort');
      t.diagnostic(
        `${name}: ${right(before.outputs)} -> ${right(after.outputs)}, ${JSON.stringify(counts)}`,
      );
      assert(right(before.outputs) > 0.9);
      assert(right(after.outputs) >= right(before.outputs) - 0.0051, `${right(after.outputs)}`);
    },
  );

/** Images as the models want them: [n, 1, 28, 28]. */
function images(array: ReturnType<typeof readNpy>): ReturnType<typeof readNpy> {
  return { ...array, shape: [array.shape[0] ?? 0, 1, 28, 28] };
}

test(
  'an encoder in 8 bits gives nearly what it gave, static and dynamic',
  needsShared('models/exports/bert_postnorm_gelu'),
  async (t) => {
    const path = sharedPath('models/exports/bert_postnorm_gelu/model.onnx');
    const { model } = await frontModel(path, 'ort-wasm');
    const next = random(3);
    const windows = Array.from({ length: 8 }, () =>
      Array.from({ length: 16 }, () => Math.floor(next() * 50)),
    );
    const samples = windowSamples(model, undefined, windows, 'ids');
    const wanted = (await outputsOf(model, samples)).outputs;
    const ranges = await activationRanges(model, undefined, samples, { engines });
    for (const [kind, options] of [
      ['static', { ranges, staticLimit: 1e9 }],
      ['dynamic', {}],
      ['by range', { ranges }],
    ] as const) {
      const changed = cloneModel(model);
      const [report] = await runPasses(changed, [quantizeActivations(options)]);
      if (kind !== 'by range')
        assert((report?.rewrites[kind] ?? 0) > 0, JSON.stringify(report?.rewrites));
      const { outputs } = await outputsOf(changed, samples);
      let [error, norm] = [0, 0];
      outputs.forEach((output, index) =>
        output.forEach((value, i) => {
          error += (value - (wanted[index]?.[i] ?? 0)) ** 2;
          norm += (wanted[index]?.[i] ?? 0) ** 2;
        }),
      );
      t.diagnostic(
        `${kind}: relative squared error ${error / norm}, ${JSON.stringify(report?.rewrites)}`,
      );
      // 8 bits leave a squared error of 5e-5 of each product (ALGORITHMS.md 0.4), a few layers a few times that
      assert(error / norm < 3e-3, `${kind}: ${error / norm}`);
    }
  },
);

test('a grid of u8 holds 0 exactly', () => {
  for (const range of [
    [-1, 3],
    [2, 5],
    [-4, -1],
    [0, 0],
  ]) {
    const { scale, zero } = gridOf(range);
    assert(Number.isInteger(zero) && zero >= 0 && zero <= 255 && scale > 0, `${range}`);
    const [least = 0, greatest = 0] = range;
    // every value of the range lies within half a step of the grid's ends
    assert(-zero * scale <= Math.min(0, least) + 0.51 * scale);
    assert((255 - zero) * scale >= Math.max(0, greatest) - 0.51 * scale);
  }
  assert.throws(() => quantizeActivations({ ranges: { x: [1, -1] } }), { code: 'USAGE' });
  assert.throws(() => quantizeActivations({ ranges: { x: [1, Number.NaN] } }), { code: 'USAGE' });
});
