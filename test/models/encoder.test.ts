import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inferModel } from '../../compiler/ir/infer.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { miniLmL6 } from '../../models/encoder.ts';
import { generatedEncoders } from '../../models/index.ts';

test('shape:minilm is a valid model of the published size, the same each time', async () => {
  const source = await resolveModel('shape:minilm', { cacheFolder: '/nowhere' });
  assert.equal(source.name, 'minilm');
  const model = source.read();
  inferModel(model);
  verifyModel(model);
  const parameters = [...model.graph.constants]
    .filter(({ weight }) => weight?.dtype === 'f32')
    .reduce((sum, { weight }) => sum + (weight?.byteLength ?? 0) / 4, 0);
  // all-MiniLM-L6-v2 without its pooler, which sentence embeddings do not use, and a few scalars
  assert.ok(Math.abs(parameters - 22_565_376) < 16, `${parameters}`);
  const [output] = model.graph.outputs;
  assert.deepEqual(output?.shape, ['batch_size', 'sequence_length', miniLmL6.width]);
  const name = 'encoder.layer.3.intermediate.dense.weight';
  const bytes = (): Uint8Array | undefined =>
    [...(generatedEncoders.get('shape:minilm')?.build().graph.constants ?? [])]
      .find((value) => value.name === name)
      ?.weight?.bytes(0, 64);
  assert.ok((bytes()?.length ?? 0) === 64);
  assert.deepEqual(bytes(), bytes());
});
