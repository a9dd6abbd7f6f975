import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compile } from '../../compiler/compile.ts';
import { MemoryFiles, writeFile } from '../../compiler/files.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { openSource } from '../../compiler/source.ts';
import { FettleError } from '../../runtime/errors.ts';
import { ModelBuilder } from '../support/model-builder.ts';

function filesWithModel(): MemoryFiles {
  const b = new ModelBuilder();
  const x = b.input('x', [1, 4, 4]);
  b.output('y', b.op('Relu', [b.op('Det', [x])]));
  const files = new MemoryFiles();
  writeFile(files, 'model.onnx', encodeModel(b.model));
  return files;
}

test('of several targets, one that cannot run the model is left out with the reason', async () => {
  const files = filesWithModel();
  const warned: string[] = [];
  const result = await compile(openSource(files, 'model.onnx'), {
    targets: ['wasm', 'ort-wasm'],
    files,
    out: 'out',
    log: { info: () => {}, warn: (message) => warned.push(message) },
  });
  assert.deepEqual(
    result.bundles.map(({ target, path }) => [target, path]),
    [['ort-wasm', 'out/ort-wasm']],
  );
  const [refused] = result.refused ?? [];
  assert.equal(refused?.target, 'wasm');
  assert.match(refused?.error.message ?? '', /no kernel for: Det/);
  assert.ok(warned.some((message) => /wasm.*Det/.test(message)));
  assert.equal(files.stat('out/wasm'), undefined);
});

test('a single target that cannot run the model fails, and leaves nothing behind', async () => {
  const files = filesWithModel();
  const options = { targets: ['wasm'], files, out: 'out' };
  await assert.rejects(compile(openSource(files, 'model.onnx'), options), (error: unknown) => {
    assert.ok(error instanceof FettleError);
    assert.equal(error.code, 'OP_UNSUPPORTED');
    return true;
  });
  assert.equal(files.stat('out'), undefined);
});
