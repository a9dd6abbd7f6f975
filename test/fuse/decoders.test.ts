/**
 * Fusion of generated decoders: every variant in every spelling becomes the same few ops and computes the
 * same, on the reference evaluator and lowered for onnxruntime.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { findBlocks } from '../../compiler/analyze/blocks.ts';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { buildDecoder } from '../../models/decoder.ts';
import type { MicroName } from '../../models/micro.ts';
import { microDecoders } from '../../models/micro.ts';
import { spellings } from '../../models/spelling/index.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { ortWasm } from '../../targets/ort-wasm.ts';
import { callInputs, inputsOf } from '../support/decoder-call.ts';
import { expectSame } from '../support/expect-same.ts';
import { runOnOrt } from '../support/ort-run.ts';

async function fused(
  name: MicroName,
  spelling: (typeof spellings)[number],
): Promise<readonly [before: Model, after: Model]> {
  const model = buildDecoder(name, microDecoders[name], spelling);
  await runPasses(model, pipelineFrom(['clean-up']));
  const before = cloneModel(model);
  await runPasses(model, pipelineFrom(['fuse']));
  return [before, model];
}

function same(got: ReadonlyMap<string, Tensor>, wanted: ReadonlyMap<string, Tensor>): void {
  for (const [what, tensor] of wanted) {
    const seen = got.get(what);
    assert.ok(seen !== undefined, `${what} is missing`);
    // sums in another order: the issue allows 1e-4, seen is 4e-7
    expectSame(seen, tensor, { tolerance: 1e-5, what });
  }
}

for (const name of Object.keys(microDecoders) as MicroName[])
  for (const spelling of spellings)
    test(`micro:${name} in the spelling of ${spelling.name} is fused and computes the same`, async () => {
      const [before, after] = await fused(name, spelling);
      const { blocks } = findBlocks(after);
      assert.equal(blocks.length, microDecoders[name].layers);
      for (const block of blocks) {
        assert.ok(block.nodes <= 8, `${block.nodes} nodes in a block`);
        const [attention] = block.layers;
        assert.ok(attention?.kind === 'attention');
        const { heads, kvHeads, headSize } = microDecoders[name];
        assert.deepEqual(
          [attention.heads, attention.kvHeads, attention.headSize],
          [heads, kvHeads, headSize],
        );
        assert.equal(attention.cache?.inputs.length, 2);
      }
      const { decoder } = analyzeDecoder(after);
      assert.ok(decoder !== undefined, 'it is driven as a decoder still');
      assert.deepEqual([decoder.mask, decoder.positions], [undefined, undefined]);
      assert.equal(decoder.state.length, 2 * microDecoders[name].layers);
      const inputs = callInputs(before);
      same(evaluate(after, inputsOf(after, inputs)), evaluate(before, inputs));
    });

for (const [name, index] of [
  ['gqa', 0],
  ['interleaved', 0],
  ['partial-rotary', 0],
  ['qk-norm', 0],
  ['parallel', 0],
  ['plus-one', 1],
  ['post-norm', 1],
] as const) {
  const spelling = spellings[index] ?? spellings[0];
  test(`micro:${name} in the spelling of ${spelling.name} computes the same fused and lowered for onnxruntime`, async () => {
    const [before, after] = await fused(name, spelling);
    lowerForOrt(after, ortWasm);
    const inputs = callInputs(before);
    const got = await runOnOrt(encodeModel(after), inputsOf(after, inputs));
    same(got, await runOnOrt(encodeModel(before), inputs));
  });
}
