/** Clean-up on real models: how much it leaves, and that results stay. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { readNpy } from '../../models/npy.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount, tensor } from '../../runtime/tensor.ts';
import { cleanUpModels } from '../support/clean-up-models.ts';
import { countNodes } from '../support/count-nodes.ts';
import { expectSame } from '../support/expect-same.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { normalValues } from '../support/random-values.ts';
import { seededInputs } from '../support/seeded-inputs.ts';

/**
 * Both graphs run without onnxruntime's own optimizations, so clean-up must give the same bits, but
 * where weights have absorbed a scale: these three end in probabilities, whose logits (up to 40) differ
 * by f32 rounding through some tens of layers. Allowed: the largest difference.
 */
const allowed: Readonly<Record<string, number>> = { det: 1e-5, rec: 1e-5, cls: 1e-5 };

for (const { name, path, nodes, fettle, onnxsim } of cleanUpModels) {
  const skip = existsSync(path) ? false : `${path} is not there`;
  test(
    `clean-up of ${name} leaves no more nodes than onnxsim and the same results`,
    { skip },
    async () => {
      const bytes = readFileSync(path);
      const model = decodeModel(bytes);
      assert.equal(countNodes(model), nodes, 'the file is another one');
      const reports = await runPasses(model, pipelineFrom(['clean-up']));
      assert.ok(
        countNodes(model) <= onnxsim,
        `${countNodes(model)} nodes, onnxsim leaves ${onnxsim}`,
      );
      assert.equal(
        countNodes(model),
        fettle,
        'clean-up leaves another number of nodes than it did',
      );
      const rounds = reports.filter((report) => report.pass === 'eliminate-dead').length;
      assert.ok(rounds <= 6, `${rounds} rounds`);

      const inputs = inputsFor(decodeModel(bytes), name, path);
      const wanted = await runOnOrt(bytes, inputs);
      const got = await runOnOrt(encodeModel(model), inputs);
      assert.deepEqual([...got.keys()], [...wanted.keys()]);
      for (const [output, tensor] of wanted) {
        const seen = got.get(output);
        assert.ok(seen !== undefined);
        expectSame(seen, tensor, {
          tolerance: 0,
          absolute: allowed[name] ?? 0,
          what: `${name}: ${output}`,
        });
      }
    },
  );
}

/** The inputs stored beside the model, or seeded ones at sizes the model runs at. */
function inputsFor(model: Model, name: string, path: string): ReadonlyMap<string, Tensor> {
  const stored = readdirSync(dirname(path)).filter((file) => file.endsWith('.npy'));
  if (stored.length > 0)
    return new Map(
      model.graph.inputs.map((input) => [
        input.name,
        readNpy(readFileSync(join(dirname(path), `${input.name}.npy`))),
      ]),
    );
  const inputs = seededInputs(model, 7, sizes[name] ?? {});
  for (const [input, shape] of Object.entries(shapes[name] ?? {}))
    inputs.set(input, normal(shape, input.length));
  if (inputs.has('sr')) inputs.set('sr', tensor('i64', [], BigInt64Array.of(16_000n)));
  return inputs;
}

function normal(shape: readonly number[], seed: number): Tensor {
  return tensor('f32', shape, normalValues(elementCount(shape), seed));
}

/** Sizes of symbols where any would not do. */
const sizes: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  nib: { batch_size: 2, sequence_length: 3, past_sequence_length: 5, total_sequence_length: 8 },
  det: { 'p2o.DynamicDimension.0': 1, 'p2o.DynamicDimension.1': 64, 'p2o.DynamicDimension.2': 96 },
};

/** Inputs whose sizes have no name. */
const shapes: Readonly<Record<string, Readonly<Record<string, readonly number[]>>>> = {
  silero_vad_v5: { input: [1, 512], state: [2, 1, 128] },
  silero_vad_legacy: { input: [1, 512], h: [2, 1, 64], c: [2, 1, 64] },
};
