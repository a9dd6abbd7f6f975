/**
 * The six `light` models of ONNX: the graphs of AlexNet, DenseNet-121, Inception v1, ResNet-50,
 * SqueezeNet and ZFNet-512 with constant weights. The evaluator agrees with onnxruntime-web and with the
 * expected output, and so does the model after read, clean-up and write.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { caseInput, caseTensor, conformanceCases } from '../support/conformance.ts';
import { expectSame } from '../support/expect-same.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

/** A hundred layers of sums of up to 1e4 f32 products, in another order. */
const TOLERANCE = 2e-5;

test(
  'the six light models agree with onnxruntime-web',
  needsShared('onnx-tests/light'),
  async () => {
    const cases = conformanceCases(sharedPath('onnx-tests/light'));
    assert.equal(cases.length, 6);
    for (const path of cases) {
      const what = basename(path);
      const bytes = readFileSync(join(path, 'model.onnx'));
      const model = decodeModel(bytes);
      const inputs = new Map(
        model.graph.inputs.map((value, index) => [value.name, caseInput(path, index, value)]),
      );
      const [wanted] = (await runOnOrt(bytes, inputs)).values();
      const [evaluated] = evaluate(model, inputs).values();
      assert.ok(wanted !== undefined && evaluated !== undefined);
      expectSame(wanted, caseTensor(path, 'output', 0), { tolerance: TOLERANCE, what });
      expectSame(evaluated, wanted, { tolerance: TOLERANCE, what: `${what} evaluated` });
      await runPasses(model, pipelineFrom(['clean-up']));
      const [cleaned] = (await runOnOrt(encodeModel(model), inputs)).values();
      assert.ok(cleaned !== undefined);
      expectSame(cleaned, wanted, { tolerance: TOLERANCE, what: `${what} after clean-up` });
    }
  },
);
