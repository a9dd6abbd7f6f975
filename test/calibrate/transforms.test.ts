/** Equivalent transforms leave what real models give as it was, and do what they are for. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { fixedModel } from '../../compiler/calibrate/fixed-model.ts';
import { stageModel } from '../../compiler/calibrate/stage-model.ts';
import type { Values } from '../../compiler/calibrate/stage-runner.ts';
import { openStage } from '../../compiler/calibrate/stage-runner.ts';
import { cloneModel } from '../../compiler/ir/clone.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { isNorm } from '../../compiler/ops/fused-norm.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import type { PassReport } from '../../compiler/passes/pass.ts';
import { Rotation } from '../../compiler/quant/rotation.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { transformSteps } from '../../compiler/transforms.ts';
import type { PipelineStep } from '../../targets/target.ts';
import { engines, frontModel, recognition, seededFeeds } from '../support/calibration.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

/** The outputs of a model before and after passes, as the WASM engine computes them. */
async function transformed(
  reference: string,
  shapes: Readonly<Record<string, readonly number[]>>,
  steps: readonly PipelineStep[],
): Promise<{
  readonly before: Values;
  readonly after: Values;
  readonly reports: readonly PassReport[];
  readonly models: readonly [Model, Model];
  readonly feeds: Values;
}> {
  const { model, decoder } = await frontModel(reference);
  const changed = cloneModel(model);
  const reports = await runPasses(changed, pipelineFrom(steps));
  const fixed = await Promise.all(
    [model, changed].map((one) => fixedModel(one, decoder, new Map(Object.entries(shapes)))),
  );
  const [first = model, second = changed] = fixed;
  const feeds = seededFeeds(first, 3, 100);
  const run = async (one: Model): Promise<Values> => {
    const runner = await openStage(one, { engines, units: [] });
    const outputs = await runner.run(feeds);
    await runner.dispose();
    return outputs;
  };
  return {
    before: await run(first),
    after: await run(second),
    reports,
    models: [first, second],
    feeds,
  };
}

function difference(before: Values, after: Values): number {
  let worst = 0;
  for (const [name, { data }] of before) {
    const [x, y] = [data as Float32Array, after.get(name)?.data as Float32Array];
    const range = x.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    x.forEach((value, i) => {
      worst = Math.max(worst, Math.abs(value - (y[i] ?? NaN)) / range);
    });
  }
  return worst;
}

function countOf(reports: readonly PassReport[], pass: string): number {
  const report = reports.find((one) => one.pass === pass);
  return Object.values(report?.rewrites ?? {}).reduce((sum, times) => sum + times, 0);
}

const rotations: readonly PipelineStep[] = ['fold-norm-gains', 'rotate-spine', 'rotate-values'];

const decoders = [
  ['builtin:nib', 12],
  ['micro:untied', 2],
  ['micro:gqa', 2],
  ['micro:qkv-bias', 2],
  ['micro:layer-norm', 2],
  ['micro:parallel', 2],
  ['micro:partial-rotary', 2],
  ['micro:qk-norm', 2],
] as const;

for (const [reference, layers] of decoders)
  test(`rotations leave the logits of ${reference} as they are`, async () => {
    const shapes = { input_ids: [1, 16] };
    const { before, after, reports } = await transformed(reference, shapes, rotations);
    assert.equal(countOf(reports, 'rotate-spine'), 1, JSON.stringify(reports[1]?.refusals));
    assert.equal(countOf(reports, 'rotate-values'), layers, JSON.stringify(reports[2]?.refusals));
    // f32 weights are rounded once more, and sums run over other numbers
    assert(difference(before, after) < 1e-4, `${difference(before, after)}`);
  });

test('a table that is the output matrix too is stored twice when the stream is to be turned throughout', async () => {
  const steps = transformSteps(['rotate-spine:untie', 'rotate-values']);
  const shapes = { input_ids: [1, 16] };
  const { before, after, reports, models } = await transformed('builtin:nib', shapes, steps);
  assert.equal(countOf(reports, 'untie-tables'), 1);
  // nothing is left to be turned when it runs
  assert(![...models[1].graph.constants].some(({ name }) => name.startsWith('rotation')));
  assert(difference(before, after) < 1e-4, `${difference(before, after)}`);
});

test(
  'rotations leave the classes of vit as they are',
  needsShared('models/exports/vit'),
  async () => {
    const model = sharedPath('models/exports/vit/model.onnx');
    const shapes = { input: [1, 3, 64, 64] };
    const { before, after, reports } = await transformed(model, shapes, rotations);
    assert.equal(countOf(reports, 'rotate-spine'), 1, JSON.stringify(reports[1]?.refusals));
    assert(difference(before, after) < 1e-4, `${difference(before, after)}`);
  },
);

test('turning the stream of a tied table at both ends takes two small products of d x d', async () => {
  const steps = transformSteps(['rotate-spine:tied']);
  const { models } = await transformed('builtin:nib', { input_ids: [1, 16] }, steps);
  let elements = 0;
  for (const { name, shape } of models[1].graph.constants)
    if (name.startsWith('rotation'))
      elements += (shape ?? []).reduce<number>((product, size) => product * Number(size), 1);
  assert.equal(elements, 2 * 192 ** 2);
});

test('no channel of the turned stream stands out', async () => {
  const { models, feeds } = await transformed('builtin:nib', { input_ids: [1, 64] }, rotations);
  const peaks: number[] = [];
  for (const model of models) {
    const norms = [...model.graph.nodes()].filter(isNorm);
    const x = norms[Math.floor(norms.length / 2)]?.input(0).name ?? '';
    const runner = await openStage(stageModel(model, [], [x]), { engines, units: [] });
    const { data, shape } = (await runner.run(feeds)).get(x) ?? { data: [], shape: [] };
    await runner.dispose();
    const columns = shape.at(-1) ?? 1;
    const rows = (data as Float32Array).length / columns;
    // of the mean squares of the channels
    const squares = Array.from({ length: columns }, (_, j) => {
      let sum = 0;
      for (let row = 0; row < rows; row++)
        sum += ((data as Float32Array)[row * columns + j] ?? 0) ** 2 / rows;
      return sum;
    });
    const mean = squares.reduce((a, b) => a + b, 0) / columns;
    peaks.push(Math.max(...squares) / mean);
  }
  const [before = 0, after = 0] = peaks;
  // the loudest channel relative to the mean of all
  assert(after < before / 3, `${before} -> ${after}`);
});

test(
  'factors between layers leave the outputs of convolutional nets as they are',
  { skip: existsSync(recognition) ? false : `${recognition} is not there` },
  async () => {
    const { before, after, reports } = await transformed(recognition, { x: [1, 3, 48, 64] }, [
      'equalize-layers',
    ]);
    // hard-swish bends most of it
    assert((reports[0]?.refusals.length ?? 0) > 0);
    assert(difference(before, after) < 1e-4, `${difference(before, after)}`);
  },
);

for (const [name, input] of [
  ['mobilenet_v2', [1, 3, 32, 32]],
  ['squeezenet1_1', [1, 3, 64, 64]],
] as const)
  test(
    `factors between layers leave ${name} as it is`,
    needsShared(`models/exports/${name}`),
    async () => {
      const path = sharedPath(`models/exports/${name}/model.onnx`);
      const { model } = await frontModel(path);
      const [x] = model.graph.inputs;
      const sizes = (x?.shape ?? []).map((dim, axis) =>
        typeof dim === 'number' ? dim : (input[axis] ?? 1),
      );
      const shapes = { [x?.name ?? '']: sizes };
      const { before, after } = await transformed(path, shapes, ['equalize-layers']);
      assert(difference(before, after) < 1e-4, `${difference(before, after)}`);
    },
  );

test('rotations are orthogonal at every size, undone by undo, and seeded', () => {
  for (const size of [1, 2, 12, 24, 96, 192, 576]) {
    const rotation = new Rotation(size, 3);
    const matrix = rotation.matrix();
    let worst = 0;
    for (let i = 0; i < size; i += Math.max(1, size >> 4))
      for (let j = 0; j < size; j++) {
        let dot = 0;
        for (let k = 0; k < size; k++)
          dot += (matrix[i * size + k] ?? 0) * (matrix[j * size + k] ?? 0);
        worst = Math.max(worst, Math.abs(dot - (i === j ? 1 : 0)));
      }
    assert(worst < 1e-12, `${size}: ${worst}`);
    const row = Float64Array.from({ length: size }, (_, i) => Math.sin(i + 1));
    const turned = row.slice();
    rotation.apply(turned);
    rotation.undo(turned);
    assert(row.every((value, i) => Math.abs(value - (turned[i] ?? NaN)) < 1e-12));
    assert.deepEqual(new Rotation(size, 3).matrix(), matrix);
  }
  assert.notDeepEqual(new Rotation(8, 1).matrix(), new Rotation(8, 2).matrix());
});
