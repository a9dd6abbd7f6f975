/**
 * Clean-up on the ONNX conformance cases: whatever onnxruntime-web can run gives the same bits after
 * reading, cleaning up and writing.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { caseTensor, conformanceCases } from '../support/conformance.ts';
import { expectSame } from '../support/expect-same.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

/** Cases of each folder that onnxruntime-web 1.30 runs with the inputs given; fewer means trouble. */
const suites = { node: 560, 'pytorch-operator': 15, 'pytorch-converted': 33 } as const;

for (const [suite, fewest] of Object.entries(suites))
  test(
    `every ${suite} case that onnxruntime-web runs gives the same bits after clean-up`,
    needsShared('onnx-tests', suite),
    async () => {
      const failures: string[] = [];
      let compared = 0;
      for (const path of conformanceCases(sharedPath('onnx-tests', suite))) {
        const bytes = readFileSync(join(path, 'model.onnx'));
        const inputs = inputsOf(path, bytes);
        const wanted = inputs && (await runOnOrt(bytes, inputs).catch(() => undefined));
        if (inputs === undefined || wanted === undefined) continue;
        compared++;
        await compare(bytes, inputs, wanted).catch((error: unknown) =>
          failures.push(`${basename(path)}: ${error instanceof Error ? error.message : error}`),
        );
      }
      assert.deepEqual(failures, []);
      assert.ok(compared >= fewest, `only ${compared} cases ran`);
    },
  );

async function compare(
  bytes: Uint8Array,
  inputs: ReadonlyMap<string, Tensor>,
  wanted: ReadonlyMap<string, Tensor>,
): Promise<void> {
  const model = decodeModel(bytes);
  await runPasses(model, pipelineFrom(['clean-up']));
  const got = await runOnOrt(encodeModel(model), inputs);
  assert.deepEqual([...got.keys()], [...wanted.keys()]);
  for (const [what, tensor] of wanted) {
    const seen = got.get(what);
    assert.ok(seen !== undefined);
    expectSame(seen, tensor, { tolerance: 0, what });
  }
}

/** Undefined for cases with sequences and the like, which are not compared here. */
function inputsOf(path: string, bytes: Uint8Array): Map<string, Tensor> | undefined {
  try {
    const { inputs } = decodeModel(bytes).graph;
    return new Map(
      inputs.map((value, index) => [value.name, caseTensor(path, 'input', index)] as const),
    );
  } catch {
    return undefined;
  }
}
