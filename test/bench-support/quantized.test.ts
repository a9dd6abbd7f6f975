/** The peers' quantized models compute what their weights say, on onnxruntime-web. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inferModel } from '../../compiler/ir/infer.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { quantizeWeights } from '../../compiler/passes/quantize-weights.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import type { DecoderConfig } from '../../models/decoder-config.ts';
import { buildDecoder } from '../../models/decoder.ts';
import { microDecoders } from '../../models/micro.ts';
import { ortSpelling } from '../../models/spelling/ort.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { withDynamicInt8, withMatMulNBits } from '../bench/peer-quantized.ts';
import { ortWasm } from '../../targets/ort-wasm.ts';
import { openDecoder } from '../support/ort-decoder.ts';

const config: DecoderConfig = {
  ...microDecoders.gqa,
  // onnxruntime wants at least 8 pairs to turn: heads of 32
  heads: 2,
  kvHeads: 1,
  headSize: 32,
  head: 'untied',
};
const ids = [3, 99, 17, 4, 60];

type Change = (model: Model) => Promise<void>;

/** The same weights in the same codes, unpacked to f32. */
function unpacked(format: string): Change {
  return async (model) => {
    inferModel(model);
    await runPasses(model, [
      quantizeWeights({ format, clip: false, embeddings: 'keep', minElements: 1 }),
    ]);
    lowerForOrt(model, ortWasm);
  };
}

async function logits(change: Change): Promise<Float32Array> {
  const model = buildDecoder('micro', config, ortSpelling);
  await change(model);
  const decoder = await openDecoder(encodeModel(model), config);
  try {
    return await decoder.logits(ids);
  } finally {
    await decoder.close();
  }
}

function cosine(a: Float32Array, b: Float32Array): number {
  const dot = (x: Float32Array, y: Float32Array): number =>
    x.reduce((sum, value, i) => sum + value * (y[i] ?? 0), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

for (const [name, format, change, op] of [
  ['MatMulNBits', 'w4g32', withMatMulNBits, 'MatMulNBits'],
  ['dynamic int8', 'w8', withDynamicInt8, 'MatMulInteger'],
] as const)
  test(`a decoder with ${name} gives what its weights in ${format} give, and has no other product`, async () => {
    const wanted = await logits(unpacked(format));
    const got = await logits(change);
    assert.equal(got.length, ids.length * config.vocabulary);
    const similarity = cosine(wanted, got);
    // activations in 8 bits: each is off by less than 0.4% of the largest, sums by less
    assert.ok(similarity >= 0.999, `cosine ${similarity}`);
    const model = buildDecoder('micro', config, ortSpelling);
    await change(model);
    const ops = [...model.graph.nodes()].map((node) => node.op);
    assert.ok(!ops.includes('MatMul'), 'a product is left in f32');
    // 7 a layer and the head
    assert.equal(ops.filter((one) => one === op).length, 7 * config.layers + 1);
  });

test('the table of a tied head is kept for lookups, and the head gets codes of its own', async () => {
  const model = buildDecoder('micro', { ...config, head: 'tied' }, ortSpelling);
  await withMatMulNBits(model);
  const gather = [...model.graph.nodes()].find(
    (node) => node.op === 'Gather' && node.input(0).dtype === 'f32',
  );
  assert.deepEqual(gather?.input(0).shape, [config.vocabulary, config.width]);
  const products = [...model.graph.nodes()].filter((node) => node.op === 'MatMulNBits');
  assert.equal(products.length, 7 * config.layers + 1);
});
