import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { layoutWeights } from '../../compiler/emit/layout.ts';
import { writeWeights } from '../../compiler/emit/weights.ts';
import { MemoryFiles, concatBytes } from '../../compiler/files.ts';
import { Graph, Model, Node, Value } from '../../compiler/ir/graph.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { bytesOf } from '../../runtime/tensor.ts';

const silent = { progress: () => {}, signal: undefined };

/** A model whose nodes read constants in the order given, after all were added in another one. */
function modelReading(weights: Readonly<Record<string, Weight>>, order: readonly string[]): Model {
  const model = new Model(new Graph('test'), new Map([['', 21]]));
  const values = new Map(
    Object.entries(weights).map(([name, weight]) => {
      const value = new Value(name, { dtype: weight.dtype, shape: weight.shape });
      value.weight = weight;
      model.graph.addConstant(value);
      return [name, value];
    }),
  );
  for (const name of order) {
    const node = new Node('Neg', [new Value(`${name}_out`)]);
    node.setInput(0, values.get(name));
    model.graph.insert(node);
  }
  return model;
}

function floats(count: number, first = 0): Weight {
  const data = Float32Array.from({ length: count }, (_, i) => first + i);
  return Weight.of({ dtype: 'f32', shape: [count], data });
}

test('weights lie in the order of first use, aligned, and small ones stay in the graph', () => {
  const weights = { a: floats(300), b: floats(256), small: floats(255), unused: floats(400) };
  const layout = layoutWeights(modelReading(weights, ['b', 'small', 'a', 'b']));
  assert.deepEqual(
    layout.placed.map(({ name, offset }) => [name, offset]),
    [
      ['b', 0],
      ['a', 1024],
      ['unused', 1024 + 1280],
    ],
  );
  // 1600 bytes of the last one, rounded up to the alignment
  assert.equal(layout.bytes, 1024 + 1280 + 1792);
  assert.equal(layout.offsets.get(weights.a), 1024);
  assert.equal(layout.offsets.get(weights.small), undefined);
});

test('constants that share their storage are placed once', () => {
  const shared = floats(512);
  const layout = layoutWeights(modelReading({ a: shared, b: shared }, ['a', 'b']));
  assert.deepEqual(
    layout.placed.map(({ name }) => name),
    ['a'],
  );
});

test('the buffer is cut into chunks that tensors may span, each with its own hash', async () => {
  // 20 MiB in three tensors: a sixteenth is 1.25 MiB a chunk, so sixteen chunks
  const weights = {
    a: floats(3 * 2 ** 20),
    b: floats(2 ** 20 - 7, 0.5),
    c: floats(2 ** 20, 0.25),
  };
  const layout = layoutWeights(modelReading(weights, ['a', 'b', 'c']));
  const files = new MemoryFiles();
  files.makeDirectory('out');
  const { files: written } = await writeWeights(files, 'out', layout, silent);
  assert.equal(layout.chunkBytes, 1.25 * 2 ** 20);
  assert.deepEqual(
    written.map(({ path }) => path),
    Array.from({ length: 16 }, (_, i) => `weights-${String(i).padStart(2, '0')}.bin`),
  );
  for (const { path, bytes, sha256 } of written) {
    const content = files.read(`out/${path}`, 0, bytes);
    assert.equal(createHash('sha256').update(content).digest('hex'), sha256);
  }
  const whole = concatBytes(written.map(({ path, bytes }) => files.read(`out/${path}`, 0, bytes)));
  assert.equal(whole.length, layout.bytes);
  for (const { weight, offset } of layout.placed)
    // deepEqual takes seconds for so many bytes
    assert.equal(
      Buffer.compare(
        whole.subarray(offset, offset + weight.byteLength),
        bytesOf(weight.tensor().data),
      ),
      0,
    );
  // b ends 28 bytes before a multiple of 256
  assert.deepEqual(whole.subarray(16 * 2 ** 20 - 28, 16 * 2 ** 20), new Uint8Array(28));
});

test('chunks stay between 1 and 16 MiB, and a model without weights has none', async () => {
  const huge = Weight.lazy('u8', [2 ** 31], () => assert.fail('read'));
  assert.equal(layoutWeights(modelReading({ huge }, [])).chunkBytes, 16 << 20);
  assert.equal(layoutWeights(modelReading({ a: floats(2000) }, [])).chunkBytes, 1 << 20);
  const { files } = await writeWeights(
    new MemoryFiles(),
    '',
    layoutWeights(modelReading({}, [])),
    silent,
  );
  assert.deepEqual(files, []);
});

test('weights are read a few megabytes at a time', async () => {
  const reads: number[] = [];
  const lazy = Weight.lazy('u8', [10 * 2 ** 20], (_, length) => {
    reads.push(length);
    return new Uint8Array(length);
  });
  await writeWeights(new MemoryFiles(), '', layoutWeights(modelReading({ lazy }, [])), silent);
  assert.deepEqual(
    reads.map((bytes) => bytes / 2 ** 20),
    [4, 4, 2],
  );
});

test('weights with NaN or infinity are named; the -infinity of masks is not', async () => {
  const of = (value: number): Weight =>
    Weight.of({ dtype: 'f32', shape: [300], data: new Float32Array(300).fill(value, 7, 8) });
  const half = Weight.of({ dtype: 'f16', shape: [600], data: new Uint16Array(600).fill(0x7c01) });
  const weights = { fine: of(-1), mask: of(-Infinity), nan: of(NaN), inf: of(Infinity), half };
  const layout = layoutWeights(modelReading(weights, []));
  const { notFinite } = await writeWeights(new MemoryFiles(), '', layout, silent);
  assert.deepEqual(notFinite, ['nan', 'inf', 'half']);
});

test('an abort or a failing read leaves no chunk half-written', async () => {
  const controller = new AbortController();
  const files = new MemoryFiles();
  const layout = layoutWeights(modelReading({ a: floats(3 * 2 ** 20) }, []));
  const progress = (): void => controller.abort(new Error('stop'));
  const stopped = writeWeights(files, '', layout, { progress, signal: controller.signal });
  await assert.rejects(stopped, /stop/);
  const before = [...files.contents.keys()];
  // 4 MiB were written when the abort came: four whole chunks of 1 MiB, and nothing of the fifth
  assert.deepEqual(
    before,
    [0, 1, 2, 3].map((i) => `weights-0${i}.bin`),
  );
});
