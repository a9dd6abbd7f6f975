import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import onnxProto from 'onnx-proto';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { decodeModel, readModel } from '../../compiler/onnx/read.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { outlineModel } from '../support/model-outline.ts';
import { needsShared, sharedFiles, sharedPath } from '../support/shared.ts';

for (const folder of ['models', 'onnx-tests'])
  test(
    `every model of shared/${folder} survives decoding and encoding`,
    needsShared(folder),
    () => {
      const paths = sharedFiles('.onnx', folder);
      assert.ok(paths.length >= 10, `only ${paths.length} models`);
      for (const path of paths) {
        const model = decodeModel(readFileSync(path));
        const bytes = encodeModel(model);
        assert.deepEqual(outlineModel(decodeModel(bytes)), outlineModel(model), path);
        const again = encodeModel(decodeModel(bytes));
        assert.ok(Buffer.compare(again, bytes) === 0, `${path}: the second encoding differs`);
      }
    },
  );

test('what is written reads the same with onnx-proto', needsShared('models'), () => {
  for (const path of sharedFiles('model.onnx', 'models', 'exports')) {
    const source = onnxProto.onnx.ModelProto.decode(readFileSync(path)).graph;
    const written = onnxProto.onnx.ModelProto.decode(
      encodeModel(decodeModel(readFileSync(path))),
    ).graph;
    assert.ok(source && written);
    const nodes = (graph: onnxProto.onnx.IGraphProto): unknown =>
      graph.node?.map(({ opType, input, output, name, attribute }) => ({
        opType,
        input,
        output,
        name,
        // tensors are compared through the initializers below: their storage form may change
        attribute: attribute?.map((a) => ({
          name: a.name,
          type: a.type,
          f: a.f,
          i: a.i,
          s: Buffer.from(a.s ?? '').toString('hex'),
          ints: a.ints,
          floats: a.floats,
        })),
      }));
    assert.deepEqual(nodes(written), nodes(source), path);
    const constants = (graph: onnxProto.onnx.IGraphProto): unknown =>
      graph.initializer?.map(({ name, dims, dataType, rawData }) => ({
        name,
        dims,
        dataType,
        contents: createHash('sha256')
          .update(rawData ?? '')
          .digest('hex'),
      }));
    assert.deepEqual(constants(written), constants(source), path);
    assert.deepEqual(written.output, source.output, path);
  }
});

test(
  'reading from a file gives the same model as decoding its bytes',
  needsShared('models'),
  () => {
    const files = new NodeFiles();
    for (const path of sharedFiles('model.onnx', 'models', 'exports'))
      assert.deepEqual(
        outlineModel(readModel(files, path)),
        outlineModel(decodeModel(readFileSync(path))),
      );
    files.close();
  },
);

test('a model that was read does not keep the file in memory', needsShared('models'), async () => {
  setFlagsFromString('--expose-gc');
  const collect: unknown = runInNewContext('gc');
  assert.ok(typeof collect === 'function');
  const files = new NodeFiles();
  collect();
  const before = process.memoryUsage().arrayBuffers;
  const model = readModel(files, sharedPath('models/nib/onnx/model.onnx'));
  // buffers are freed a little after they are collected
  let kept = Infinity;
  for (let wait = 0; wait < 20 && kept > 1e6; wait++) {
    await setTimeout(20);
    collect();
    kept = process.memoryUsage().arrayBuffers - before;
  }
  // the file has 25.7 MB; its constants up to 16 KB stay in memory
  assert.ok(kept < 1e6, `${kept} bytes stay for ${model.graph.nodeCount} nodes`);
  files.close();
});

test('a clone is equal and shares nothing that can change', needsShared('onnx-tests'), () => {
  const paths = sharedFiles('model.onnx', 'onnx-tests', 'node').filter((path) =>
    /test_(if|loop|scan)/.test(path),
  );
  assert.ok(paths.length >= 4);
  for (const path of paths) {
    const model = decodeModel(readFileSync(path));
    const before = outlineModel(model);
    const clone = cloneModel(model);
    assert.deepEqual(outlineModel(clone), before, path);
    const originals = new Set(
      [...model.graph.allNodes()].flatMap((node) => [...node.inputs, ...node.outputs, node]),
    );
    for (const node of clone.graph.allNodes())
      for (const part of [...node.inputs, ...node.outputs, node])
        assert.ok(
          part === undefined || !originals.has(part),
          `${path}: ${node.describe()} is shared`,
        );
    const [name] = [...clone.graph.nodes()][0]?.outputs ?? [];
    assert.equal(clone.claimName(name?.name ?? ''), false, 'names stay claimed');
  }
});
