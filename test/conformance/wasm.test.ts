/**
 * The ONNX conformance cases on the WASM engine. Whatever it does not refuse by name it computes right, and
 * the ops that models of language, speech and vision are made of are refused in no case.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { conformanceCases } from '../support/conformance.ts';
import { needsShared, sharedPath } from '../support/shared.ts';
import type { WasmCaseResult } from './wasm-case.ts';
import { runWasmCase } from './wasm-case.ts';

/** Cases whose numbers the engine, which computes in f32, does not have. */
const beyondF32: ReadonlySet<string> = new Set([
  'test_operator_add_size1_right_broadcast',
  'test_operator_add_size1_singleton_broadcast',
  'test_operator_addconstant',
]);

/** Ops without a kernel, or with forms that have none; everything else that the cases hold runs. */
const refused: ReadonlySet<string> = new Set([
  // windows over three axes
  'AveragePool',
  'Conv',
  'MaxPool',
  // a formula of more parts than there are registers
  'Acos',
  'Asin',
  // statistics as outputs
  'LayerNormalization',
  // seven axes
  'GatherElements',
  // results whose sizes depend on values
  'Compress',
  'Loop',
  'NonMaxSuppression',
  'Scan',
  'Unique',
  // training
  'NegativeLogLikelihoodLoss',
  'SoftmaxCrossEntropyLoss',
  // seldom met
  'DFT',
  'Det',
  'Einsum',
  'EyeLike',
  'GridSample',
  'LRN',
  'MaxUnpool',
  'STFT',
]);

/** Ops that no case may be refused for. */
const required =
  'Add Cast Clip Concat ConvInteger ConvTranspose CumSum DepthToSpace DynamicQuantizeLinear Elu Equal Expand GRU Gather GatherND Gemm InstanceNormalization LSTM Less MatMul MatMulInteger ' +
  'Mod Not OneHot Pad Pow PRelu QLinearConv QLinearMatMul QuantizeLinear RNN ReduceLogSumExp Resize ScatterElements ScatterND Slice Softmax Split Tile TopK Transpose Trilu Where';

for (const suite of ['node', 'pytorch-operator', 'pytorch-converted'])
  test(
    `${suite} cases give the expected outputs or are refused by name`,
    needsShared('onnx-tests', suite),
    async () => {
      const results: WasmCaseResult[] = [];
      for (const path of conformanceCases(sharedPath('onnx-tests', suite)))
        results.push(await runWasmCase(path));
      const wrong = results.filter(
        ({ name, outcome }) => outcome === 'failed' && !beyondF32.has(name),
      );
      assert.deepEqual(wrong, []);
      const unlisted = results.filter(
        ({ outcome, ops }) => outcome === 'refused' && !ops.some((op) => refused.has(op)),
      );
      assert.deepEqual(unlisted, []);
      assert.ok(results.filter(({ outcome }) => outcome === 'passed').length > 20, suite);
    },
  );

test(
  'ops that real models are made of are refused in no case',
  needsShared('onnx-tests'),
  async () => {
    const passed = new Set<string>();
    for (const path of conformanceCases(sharedPath('onnx-tests', 'node'))) {
      const { ops, outcome } = await runWasmCase(path);
      if (outcome === 'passed') for (const op of ops) passed.add(op);
    }
    assert.deepEqual(
      required.split(' ').filter((op) => !passed.has(op)),
      [],
    );
  },
);
