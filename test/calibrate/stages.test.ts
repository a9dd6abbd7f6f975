/** Stages run one after another give what the whole model gives, and can be run with other weights. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { openStage } from '../../compiler/calibrate/stage-runner.ts';
import type { Values } from '../../compiler/calibrate/stage-runner.ts';
import { splitStages } from '../../compiler/calibrate/stages.ts';
import type { Stage } from '../../compiler/calibrate/stages.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { unitRows, weightUnits } from '../../compiler/passes/weight-units.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { engines, fixedFront, recognition, seededFeeds } from '../support/calibration.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const cases = [
  { name: 'builtin:nib', model: 'builtin:nib', shapes: { input_ids: [1, 32] }, skip: false },
  ...['gqa', 'post-norm', 'parallel', 'partial-rotary'].map((name) => ({
    name: `micro:${name}`,
    model: `micro:${name}`,
    shapes: { input_ids: [1, 24] },
    skip: false as string | false,
  })),
  {
    name: 'vit',
    model: sharedPath('models/exports/vit/model.onnx'),
    shapes: { input: [1, 3, 64, 64] },
    ...needsShared('models/exports/vit'),
  },
  {
    name: 'digits-cnn',
    model: sharedPath('models/digits-cnn/model.onnx'),
    shapes: { image: [1, 1, 28, 28] },
    ...needsShared('models/digits-cnn'),
  },
  {
    name: 'PP-OCRv4 rec',
    model: recognition,
    shapes: { x: [1, 3, 48, 64] },
    skip: existsSync(recognition) ? false : `${recognition} is not there`,
  },
];

async function runAll(model: Model, stages: readonly Stage[], feeds: Values): Promise<Values> {
  const held = new Map(feeds);
  const units = weightUnits(model);
  for (const stage of stages) {
    const runner = await openStage(stage.model(stage.outputs), { engines, units });
    for (const [name, value] of await runner.run(held)) held.set(name, value);
    await runner.dispose();
  }
  return held;
}

async function runWhole(model: Model, feeds: Values): Promise<Values> {
  const runner = await openStage(model, { engines, units: [] });
  const outputs = await runner.run(feeds);
  await runner.dispose();
  return outputs;
}

function largestDifference(a: Tensor | undefined, b: Tensor | undefined): number {
  assert(a !== undefined && b !== undefined);
  const [x, y] = [a.data as Float32Array, b.data as Float32Array];
  assert.equal(x.length, y.length);
  const range = x.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return x.reduce((most, value, i) => Math.max(most, Math.abs(value - (y[i] ?? NaN))), 0) / range;
}

for (const { name, model: reference, shapes, skip } of cases)
  test(`the stages of ${name} give the outputs of the whole`, { skip }, async () => {
    const { model } = await fixedFront(reference, shapes);
    const units = weightUnits(model, { minElements: 0 });
    const feeds = seededFeeds(model, 3, 100);
    const whole = await runWhole(model, feeds);
    for (const grain of ['block', 'linear'] as const) {
      const stages = splitStages(model, units, { grain });
      assert(stages.length > 1, `${grain}: ${stages.length} stages`);
      const parts = await runAll(model, stages, feeds);
      for (const { name: output } of model.graph.outputs)
        // the same kernels in the same order; fused steps may differ at the cuts
        assert(
          largestDifference(whole.get(output), parts.get(output)) < 1e-5,
          `${grain} ${output}`,
        );
      const covered = new Set(stages.flatMap((stage) => stage.units.map((unit) => unit.name)));
      assert.deepEqual([...covered].sort(), units.map((unit) => unit.name).sort());
    }
  });

test('one residual stream crosses the cuts of a decoder', async () => {
  const { model } = await fixedFront('builtin:nib', { input_ids: [1, 32] });
  const stages = splitStages(model, weightUnits(model));
  // the head is a stage of its own
  assert.equal(stages.length, 13);
  for (const stage of stages.slice(0, -1)) assert.equal(stage.outputs.length, 1);
});

test('inputs of products are known before any product of a linear stage has run', async () => {
  const { model } = await fixedFront('builtin:nib', { input_ids: [1, 16] });
  const units = weightUnits(model);
  const stages = splitStages(model, units, { grain: 'linear' });
  // embedding and qkv, then out, gate with up, down of each layer; the head
  assert.equal(stages.length, 4 * 12 + 1);
  const names = new Set(units.map((unit) => unit.name));
  for (const stage of stages.slice(1)) {
    const { index, taps, inputs } = stage;
    const wanted = [...new Set([...taps.values()].flat())].filter((tap) => !inputs.includes(tap));
    const used = [...stage.model(wanted).graph.constants].filter((constant) =>
      names.has(constant.name),
    );
    assert.deepEqual(used, [], `stage ${index}`);
  }
});

test('a matrix can be replaced in place and put back, a tied table in both of its stages', async () => {
  const { model } = await fixedFront('builtin:nib', { input_ids: [1, 16] });
  const units = weightUnits(model);
  const feeds = seededFeeds(model, 5, 4000);
  const runner = await openStage(model, { engines, units });
  const logits = async (): Promise<Float32Array> =>
    (await runner.run(feeds)).get('logits')?.data as Float32Array;
  const before = await logits();
  for (const unit of units.filter((_, index) => index < 4)) {
    const rows = unitRows(unit).read(0, unit.rows).slice();
    const scaled = rows.map((value, i) => value * (i % 3 === 0 ? 1.5 : 1));
    runner.setWeight(unit.name, scaled);
    const during = await logits();
    const opened = await openStage(model, {
      engines,
      units,
      weights: new Map([[unit.name, scaled]]),
    });
    const anew = (await opened.run(feeds)).get('logits')?.data as Float32Array;
    await opened.dispose();
    assert.notDeepEqual(during, before, unit.name);
    assert.deepEqual(during, anew, unit.name);
    runner.setWeight(unit.name, rows);
    assert.deepEqual(await logits(), before, unit.name);
    runner.setWeight(unit.name);
    assert.deepEqual(await logits(), before, unit.name);
  }
  await runner.dispose();
});
