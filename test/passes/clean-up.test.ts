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
import { cleanUpModels } from '../support/clean-up-models.ts';
import { countNodes } from '../support/count-nodes.ts';
import { expectSame } from '../support/expect-same.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { seededInputs } from '../support/seeded-inputs.ts';

/**
 * Both graphs run without onnxruntime's own optimizations, so clean-up must give the same bits, but
 * where weights have absorbed a scale: those differ by f32 rounding through some tens of layers, as a
 * fraction of the largest output.
 */
const tolerances: Readonly<Record<string, number>> = {
  det: 1e-4,
  rec: 1e-4,
  cls: 1e-4,
};

for (const { name, path, nodes, onnxsim } of cleanUpModels) {
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
      const rounds = reports.filter((report) => report.pass === 'eliminate-dead').length;
      assert.ok(rounds <= 6, `${rounds} rounds`);

      const inputs = inputsFor(decodeModel(bytes), name, path);
      const wanted = await runOnOrt(bytes, inputs);
      const got = await runOnOrt(encodeModel(model), inputs);
      assert.deepEqual([...got.keys()], [...wanted.keys()]);
      for (const [output, tensor] of wanted) {
        const seen = got.get(output);
        assert.ok(seen !== undefined);
        expectSame(seen, tensor, { tolerance: tolerances[name] ?? 0, what: `${name}: ${output}` });
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
  return seededInputs(model, 7, sizes[name] ?? {});
}

/** Sizes of symbols where any would not do. */
const sizes: Readonly<Record<string, Readonly<Record<string, number>>>> = {};
