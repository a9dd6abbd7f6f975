/** Models that come in 8-bit integers, as onnxruntime's quantizers leave them, on the WASM engine. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { canaryInputs } from '../../compiler/emit/canaries.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { parseModel } from '../../compiler/ir/parse.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { isDequantize } from '../../compiler/ops/quantized.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { sizeOfModel } from '../../compiler/run-passes.ts';
import { openSource } from '../../compiler/source.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { wasm } from '../../targets/wasm.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { rangeDistance } from '../support/range-distance.ts';
import { runOnWasm } from '../support/run-on-wasm.ts';
import { seededInputs } from '../support/seeded-inputs.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

type Feeds = ReadonlyMap<string, Tensor>;

/** What the target's pipeline makes of a model that is not to be rounded again, and what that gives. */
async function onWasm(model: Model, feeds: Feeds): Promise<ReadonlyMap<string, Tensor>> {
  await runPasses(model, pipelineFrom(wasm.pipeline), {});
  return runOnWasm(model, feeds);
}

const distance = (own: Tensor | undefined, other: Tensor | undefined): number =>
  rangeDistance(own?.data as Float32Array, other?.data as Float32Array);

/** A float model of the shared folder with inputs. */
function floatModel(name: string): { readonly model: Model; readonly feeds: Feeds } {
  const model = openSource(new NodeFiles(), sharedPath('models', name)).read();
  inferModel(model);
  const [feeds = new Map<string, Tensor>()] = canaryInputs(model, undefined, 1);
  for (const input of model.graph.inputs) input.shape = feeds.get(input.name)?.shape;
  inferModel(model);
  return { model, feeds };
}

/** Least and greatest of every float, as a static quantizer wants to know them. */
function rangesOf(model: Model, feeds: Feeds): Record<string, readonly number[]> {
  const ranges: Record<string, readonly number[]> = {};
  evaluate(model, feeds, {
    onValue: ({ name }, { dtype, data }) => {
      if (dtype !== 'f32') return;
      const values = data as Float32Array;
      const range = [
        values.reduce((a, b) => Math.min(a, b)),
        values.reduce((a, b) => Math.max(a, b)),
      ];
      ranges[name] = ranges[`${name}:product`] = range;
    },
  });
  return ranges;
}

for (const name of ['digits-cnn', 'digits-vit'])
  for (const kind of ['static', 'dynamic'])
    test(
      `${name}, quantized ${kind}, gives onnxruntime's outputs from weights in their codes`,
      needsShared('models', name),
      async () => {
        const { model, feeds } = floatModel(name);
        await runPasses(model, pipelineFrom(['clean-up']), {});
        const [floats] = (await runOnOrt(encodeModel(model), feeds)).values();
        const before = sizeOfModel(model).weightBytes;
        const options = kind === 'static' ? { ranges: rangesOf(model, feeds) } : {};
        await runPasses(
          model,
          pipelineFrom([['quantize-activations', options], 'eliminate-dead']),
          {},
        );
        const [want] = (await runOnOrt(encodeModel(model), feeds)).values();
        const [got] = (await onWasm(model, feeds)).values();
        // products round activations per 32 values besides; the quantizer's own error is as large
        assert.ok(distance(got, want) <= 1e-2, `${distance(got, want)}`);
        assert.ok(distance(got, floats) <= 1e-2, `${distance(got, floats)}`);
        const nodes = [...model.graph.nodes()];
        if (name === 'digits-vit' || kind === 'static') {
          assert.ok(nodes.filter(isDequantize).length >= 20);
          assert.ok(sizeOfModel(model).weightBytes < 0.4 * before);
        }
        assert.deepEqual(
          nodes.filter(({ op }) => /Linear$|Integer$/.test(op) && op !== 'Linear'),
          [],
        );
      },
    );

test('integer convolutions and products of computed integers are right to the last bit', async () => {
  const model = parseModel(`graph (x: f32[1, 4, 6, 6], m: f32[3, 40]) -> (y, z) {
  opset 17
  const %xs: f32[] = {0.02}
  const %xz: u8[] = {120}
  const %w: i8[8, 4, 3, 3] = random(1)
  const %ws: f32[8] = {0.004, 0.0067, 0.004, 0.0067, 0.004, 0.0067, 0.004, 0.0067}
  const %wz: i8[8] = {0, 0, 0, 0, 0, 0, 0, 0}
  const %ys: f32[] = {0.25}
  const %yz: u8[] = {100}
  const %bias: i32[8] = {100, -50, 3, 4, 5, 6, 7, 8}
  const %v: u8[40, 24] = random(2)
  const %vz: u8[] = {100}
  %q = QuantizeLinear(%x, %xs, %xz)
  %y = QLinearConv(%q, %xs, %xz, %w, %ws, %wz, %ys, %yz, %bias) {kernel_shape = [3, 3], pads = [1, 1, 1, 1]}
  %a, %as, %az = DynamicQuantizeLinear(%m)
  %z = MatMulInteger(%a, %v, %az, %vz)
}`);
  inferModel(model);
  const feeds = seededInputs(model, 1);
  const want = await runOnOrt(encodeModel(model), feeds);
  const got = await onWasm(model, feeds);
  for (const [name, tensor] of want) assert.deepEqual(got.get(name)?.data, tensor.data, name);
});
