/**
 * The vision models after clean-up and fusion: every convolution carries its bias, activation and
 * residual, what is left is explained, and onnxruntime-web computes the same from the lowered model.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { cloneModel } from '../../compiler/ir/clone.ts';
import type { Model, Node } from '../../compiler/ir/graph.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { isFusedConv } from '../../compiler/ops/fused-conv.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import type { Refusal } from '../../compiler/passes/pass.ts';
import { activationOps } from '../../compiler/passes/single-activation.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { ortWasm } from '../../targets/index.ts';
import { expectSame } from '../support/expect-same.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { seededInputs } from '../support/seeded-inputs.ts';
import { visionModels } from '../support/vision-models.ts';

/** Why a node behind a convolution was left, or nothing. */
function unexplained(model: Model, refusals: readonly Refusal[]): string[] {
  const places = new Set(refusals.map(({ at }) => at));
  const explained = (node: Node): boolean =>
    places.has(node.name) || node.outputs.some((output) => places.has(output?.name ?? ''));
  const left: string[] = [];
  for (const node of model.graph.allNodes()) {
    const follows = node.inputs.some((input) => isFusedConv(input?.producer));
    const candidate = activationOps.includes(node.op) || node.op === 'Add';
    if (node.op === 'BatchNormalization' || (follows && candidate && !explained(node)))
      left.push(node.describe());
  }
  return left;
}

for (const { name, path, sizes, convs, nodes } of visionModels)
  test(
    `${name}: every convolution carries what follows it`,
    {
      skip: existsSync(path) ? false : `${path} is not there`,
    },
    async () => {
      const original = decodeModel(readFileSync(path));
      const model = cloneModel(original);
      const steps = ['clean-up', 'fuse', 'fuse-expression', 'eliminate-dead'];
      const reports = await runPasses(model, pipelineFrom(steps));
      const refusals = reports.flatMap((report) => report.refusals);
      const all = [...model.graph.allNodes()];
      assert.deepEqual(unexplained(model, refusals), []);
      assert.equal(all.filter(isFusedConv).length, convs);
      assert.ok(all.length <= nodes, `${all.length} nodes, wanted at most ${nodes}`);

      lowerForOrt(model, ortWasm);
      const inputs = seededInputs(original, 1, sizes);
      const wanted = await runOnOrt(encodeModel(original), inputs);
      const got = await runOnOrt(encodeModel(model), inputs);
      for (const [output, tensor] of wanted) {
        const seen = got.get(output);
        assert.ok(seen !== undefined);
        // batch norms go into weights, which are rounded once to f32: 1e-7 a layer, of dozens of layers
        // and a probability near 0 is near 0
        expectSame(seen, tensor, { tolerance: 2e-5, absolute: 1e-6, what: output });
      }
    },
  );
