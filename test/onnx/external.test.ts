import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { TestContext } from 'node:test';
import { test } from 'node:test';
import type { FileWriter } from '../../compiler/files.ts';
import { MemoryFiles, readFile } from '../../compiler/files.ts';
import { Value } from '../../compiler/ir/graph.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { hashModelSource } from '../../compiler/onnx/hash.ts';
import { decodeModel, readModel } from '../../compiler/onnx/read.ts';
import type { TensorProto } from '../../compiler/onnx/schema.ts';
import { fromNumber } from '../../compiler/onnx/wire.ts';
import { encodeModel, writeModel } from '../../compiler/onnx/write.ts';
import { assertFails } from '../support/errors.ts';
import { outlineModel } from '../support/model-outline.ts';
import { floats, graphAttribute, modelBytes, node, reluGraph, value } from '../support/onnx.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const two = new Uint8Array(Float32Array.of(3, 4).buffer);

/** x + w, with w stored as the entries say. */
function externalModel(
  entries: Readonly<Record<string, string>>,
  more: TensorProto = {},
): Uint8Array {
  const externalData = Object.entries(entries).map(([key, text]) => ({ key, value: text }));
  const w = {
    name: 'w',
    dataType: 1,
    dims: [fromNumber(2)],
    dataLocation: 1,
    externalData,
    ...more,
  };
  return modelBytes(reluGraph({ node: [node('Add', ['x', 'w'], ['y'])], initializer: [w] }));
}

function temporaryFolder(t: TestContext): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fettle-external-'));
  t.after(() => fs.rmSync(folder, { recursive: true }));
  return folder;
}

function weightOf(files: MemoryFiles | NodeFiles, file: string): number[] {
  const [constant] = readModel(files, file).graph.constants;
  return [...((constant?.weight?.tensor().data ?? []) as Float32Array)];
}

test('external data is read on demand from its file', () => {
  const padded = Uint8Array.from([...new Uint8Array(8), ...two, 1, 2, 3]);
  const files = new MemoryFiles({
    'm/model.onnx': externalModel({
      location: 'sub/w.bin',
      offset: '8',
      length: '8',
      checksum: 'ab',
    }),
    'm/sub/w.bin': padded,
    'm/bare.onnx': externalModel({ location: './whole.bin' }),
    'm/whole.bin': two,
  });
  assert.deepEqual(weightOf(files, 'm/model.onnx'), [3, 4]);
  assert.deepEqual(weightOf(files, 'm/bare.onnx'), [3, 4], 'without offset and length');
  const model = readModel(files, 'm/model.onnx');
  files.remove('m/sub/w.bin');
  const [constant] = model.graph.constants;
  assertFails(() => constant?.weight?.bytes(), 'IO_FAILED', /nothing is there/);
});

test('decodeModel asks its caller for external data, or refuses', () => {
  const bytes = externalModel({ location: 'w.bin', offset: '16' });
  assertFails(() => decodeModel(bytes), 'MODEL_INVALID', /external data in "w.bin"/);
  const asked: unknown[] = [];
  const model = decodeModel(bytes, {
    externalData: (...request) => {
      asked.push(request);
      return two;
    },
  });
  const [constant] = model.graph.constants;
  assert.deepEqual([...((constant?.weight?.tensor().data ?? []) as Float32Array)], [3, 4]);
  assert.deepEqual(asked, [['w.bin', 16, 8]]);
  const short = decodeModel(bytes, { externalData: () => two.subarray(1) });
  const [broken] = short.graph.constants;
  assertFails(() => broken?.weight?.bytes(), 'IO_FAILED', /7 bytes/);
});

test('locations outside of the folder of the model are refused', () => {
  for (const location of [
    '../../etc/passwd',
    '..\\w.bin',
    'a/../../w.bin',
    '/etc/passwd',
    '\\\\server\\w.bin',
    'C:\\w.bin',
    'C:w.bin',
    'w.bin\0',
  ]) {
    const files = new MemoryFiles({
      'm/model.onnx': externalModel({ location }),
      'w.bin': two,
      'etc/passwd': two,
    });
    assertFails(
      () => readModel(files, 'm/model.onnx'),
      'MODEL_INVALID',
      /outside of the model's folder/,
    );
  }
});

test('symbolic links may not lead out of the folder, those of a model cache may', (t) => {
  const folder = temporaryFolder(t);
  const files = new NodeFiles();
  t.after(() => files.close());
  fs.mkdirSync(`${folder}/m/sub`, { recursive: true });
  fs.writeFileSync(`${folder}/secret`, two);
  fs.writeFileSync(`${folder}/m/model.onnx`, externalModel({ location: 'w.bin' }));
  fs.symlinkSync(`${folder}/secret`, `${folder}/m/w.bin`);
  assertFails(
    () => readModel(files, `${folder}/m/model.onnx`),
    'MODEL_INVALID',
    /link that leads out/,
  );

  fs.rmSync(`${folder}/m/w.bin`);
  fs.writeFileSync(`${folder}/m/sub/real.bin`, two);
  fs.symlinkSync('sub/real.bin', `${folder}/m/w.bin`);
  assert.deepEqual(
    weightOf(files, `${folder}/m/model.onnx`),
    [3, 4],
    'a link inside of the folder',
  );

  fs.mkdirSync(`${folder}/n`);
  fs.writeFileSync(`${folder}/n/model.onnx`, externalModel({ location: 'out/secret' }));
  fs.symlinkSync(folder, `${folder}/n/out`);
  assertFails(
    () => readModel(files, `${folder}/n/model.onnx`),
    'MODEL_INVALID',
    /link that leads out/,
  );

  // the hub's cache: snapshots/<revision>/* are links to blobs/<hash>
  fs.mkdirSync(`${folder}/blobs`);
  fs.mkdirSync(`${folder}/snapshots/1/onnx`, { recursive: true });
  fs.writeFileSync(`${folder}/blobs/aa`, externalModel({ location: 'w.bin' }));
  fs.writeFileSync(`${folder}/blobs/bb`, two);
  fs.symlinkSync('../../../blobs/aa', `${folder}/snapshots/1/onnx/model.onnx`);
  fs.symlinkSync('../../../blobs/bb', `${folder}/snapshots/1/onnx/w.bin`);
  assert.deepEqual(weightOf(files, `${folder}/snapshots/1/onnx/model.onnx`), [3, 4]);
});

test('a missing data file and ranges that are not there name the file and the tensor', () => {
  const cases: [Readonly<Record<string, string>>, 'IO_FAILED' | 'MODEL_INVALID', RegExp][] = [
    [{ location: 'none.bin' }, 'IO_FAILED', /"none.bin" of the model is missing/],
    [{ location: 'w.bin', offset: '4' }, 'MODEL_INVALID', /8 bytes at 4 of "w.bin", which has 8/],
    [{ location: 'w.bin', offset: '9007199254740991' }, 'MODEL_INVALID', /asks for 8 bytes/],
    [{ location: 'w.bin', offset: '99999999999999999999' }, 'MODEL_INVALID', /no size/],
    [{ location: 'w.bin', offset: '-8' }, 'MODEL_INVALID', /no size/],
    [{ location: 'w.bin', length: 'x' }, 'MODEL_INVALID', /no size/],
    [
      { location: 'w.bin', length: '4' },
      'MODEL_INVALID',
      /4 bytes of external data, but \[2\] of f32 is 8/,
    ],
    [{ offset: '0' }, 'MODEL_INVALID', /names no file/],
  ];
  for (const [entries, code, message] of cases) {
    const files = new MemoryFiles({ 'm.onnx': externalModel(entries), 'w.bin': two });
    const error = assertFails(() => readModel(files, 'm.onnx'), code, message);
    assert.equal(error.at['value'], 'w', error.message);
  }
  const huge = { dims: [fromNumber(2 ** 40)] };
  const files = new MemoryFiles({
    'm.onnx': externalModel({ location: 'w.bin' }, huge),
    'w.bin': two,
  });
  assertFails(() => readModel(files, 'm.onnx'), 'MODEL_INVALID', /4398046511104 bytes/);
});

test('writing with external data keeps small tensors, aligns large ones and stores shared ones once', () => {
  const files = new MemoryFiles();
  const model = decodeModel(
    modelBytes({
      node: [
        node('Concat', ['small', 'large', 'odd'], ['t']),
        node('If', ['c'], ['y'], {
          attribute: ['then_branch', 'else_branch'].map((name) =>
            graphAttribute(name, {
              node: [node('Relu', ['inner'], ['o'])],
              initializer: [
                floats(
                  'inner',
                  Array.from({ length: 500 }, (_, i) => i),
                ),
              ],
              output: [value('o')],
            }),
          ),
        }),
      ],
      initializer: [
        floats('small', [1]),
        floats(
          'large',
          Array.from({ length: 333 }, (_, i) => i),
        ),
        floats(
          'odd',
          Array.from({ length: 301 }, (_, i) => -i),
        ),
      ],
      input: [value('c', [], 9)],
      output: [value('y'), value('t')],
    }),
  );
  const [, large] = model.graph.constants;
  const tied = new Value('tied', { dtype: 'f32', shape: [333] });
  tied.weight = large?.weight;
  model.graph.addConstant(tied);
  writeModel(files, 'out/model.onnx', model, { externalData: { alignBytes: 256 } });
  assert.deepEqual(files.list('out'), ['model.onnx', 'model.onnx.data']);
  // 333 floats, then the next multiple of 256 three times
  assert.equal(
    files.stat('out/model.onnx.data')?.bytes,
    Math.ceil((1536 + 1204) / 256) * 256 + 2048 + 2000,
  );
  const again = readModel(files, 'out/model.onnx');
  assert.deepEqual(outlineModel(again), outlineModel(model));
  const first = readFile(files, 'out/model.onnx');
  writeModel(files, 'out/model.onnx', model, { externalData: { alignBytes: 256 } });
  assert.ok(Buffer.compare(readFile(files, 'out/model.onnx'), first) === 0, 'identical bytes');
  writeModel(files, 'single.onnx', again);
  assert.ok(
    Buffer.compare(readFile(files, 'single.onnx'), encodeModel(model)) === 0,
    'the pieces of writeModel are encodeModel',
  );
});

test('a failure while writing leaves nothing and keeps what was there', (t) => {
  const folder = temporaryFolder(t);
  const files = new NodeFiles();
  t.after(() => files.close());
  fs.writeFileSync(`${folder}/m.onnx`, 'old');
  const model = decodeModel(modelBytes(reluGraph({ initializer: [floats('w', [1, 2])] })));
  const constant = new Value('bad', { dtype: 'u8', shape: [100] });
  constant.weight = Weight.lazy('u8', [100], () => {
    throw new Error('cannot be read');
  });
  model.graph.addConstant(constant);
  for (const options of [
    {},
    { externalData: { thresholdBytes: 0 } },
    { externalData: { thresholdBytes: 200 } },
  ])
    assert.throws(() => writeModel(files, `${folder}/m.onnx`, model, options), /cannot be read/);
  assert.deepEqual(fs.readdirSync(folder), ['m.onnx']);
  assert.equal(fs.readFileSync(`${folder}/m.onnx`, 'utf8'), 'old');
  fs.writeFileSync(`${folder}/file`, '');
  assertFails(() => writeModel(files, `${folder}/file/m.onnx`, model), 'IO_FAILED', /./);
});

/** A file system where a 5 GB data file exists without taking space, and what is written is counted. */
class HugeFiles extends MemoryFiles {
  largestBlock = 0;
  written = 0;
  private readonly zeros = new Uint8Array(16 * 1024 * 1024);
  private readonly hugeBytes: number;

  constructor(model: Uint8Array, hugeBytes: number) {
    super({ 'model.onnx': model, 'huge.bin': new Uint8Array(0) });
    this.hugeBytes = hugeBytes;
  }

  override stat(file: string): ReturnType<MemoryFiles['stat']> {
    return file === 'huge.bin' ? { bytes: this.hugeBytes, kind: 'file' } : super.stat(file);
  }

  override read(file: string, start: number, length: number): Uint8Array {
    if (file !== 'huge.bin') return super.read(file, start, length);
    this.largestBlock = Math.max(this.largestBlock, length);
    return this.zeros.subarray(0, length);
  }

  override create(): FileWriter {
    return {
      write: (bytes) => void (this.written += bytes.length),
      close: () => undefined,
      abort: () => undefined,
    };
  }
}

/** A graph of 20 matrices of 256 MiB in huge.bin. */
function hugeModel(): { bytes: Uint8Array; dataBytes: number } {
  const each = 256 * 1024 * 1024;
  const initializer = Array.from({ length: 20 }, (_, i) => ({
    name: `w${i}`,
    dataType: 1,
    dims: [fromNumber(8192), fromNumber(8192)],
    dataLocation: 1,
    externalData: [
      { key: 'location', value: 'huge.bin' },
      { key: 'offset', value: String(i * each) },
      { key: 'length', value: String(each) },
    ],
  }));
  const nodes = initializer.map(({ name }, i) =>
    node('MatMul', [i === 0 ? 'x' : `t${i}`, name], [`t${i + 1}`]),
  );
  return {
    bytes: modelBytes({ node: nodes, initializer, input: [value('x')], output: [value('t20')] }),
    dataBytes: 20 * each,
  };
}

test('a 5 GB model is written in blocks of a few megabytes', () => {
  const { bytes, dataBytes } = hugeModel();
  const files = new HugeFiles(bytes, dataBytes);
  const model = readModel(files, 'model.onnx');
  assert.equal(files.largestBlock, 0, 'reading the graph reads no weights');
  writeModel(files, 'out.onnx', model, { externalData: {} });
  assert.ok(files.written > dataBytes && files.written < dataBytes + 100_000);
  assert.ok(files.largestBlock <= 8 * 1024 * 1024, `${files.largestBlock}`);
  assertFails(() => writeModel(files, 'out.onnx', model), 'MODEL_INVALID', /2 GB/);
});

test('a 5 GB model is inspected in less than 300 MB', (t) => {
  const folder = temporaryFolder(t);
  const { bytes, dataBytes } = hugeModel();
  fs.writeFileSync(`${folder}/model.onnx`, bytes);
  fs.writeFileSync(`${folder}/huge.bin`, '');
  // sparse: takes no space on disk
  fs.truncateSync(`${folder}/huge.bin`, dataBytes);
  const script = `
    const { NodeFiles } = await import('./compiler/node.ts');
    const { readModel } = await import('./compiler/onnx/read.ts');
    const { processMemory } = await import('./runtime/node.ts');
    const model = readModel(new NodeFiles(), process.argv[1]);
    let bytes = 0;
    for (const { weight } of model.graph.constants) bytes += weight.byteLength + weight.bytes(1000, 4).length;
    console.log(JSON.stringify({ bytes, peakBytes: processMemory().peakBytes }));`;
  const output = execFileSync(
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '-e', script, `${folder}/model.onnx`],
    { cwd: path.join(import.meta.dirname, '../..'), encoding: 'utf8' },
  );
  const { bytes: seen, peakBytes } = JSON.parse(output) as { bytes: number; peakBytes: number };
  assert.equal(seen, dataBytes + 20 * 4);
  assert.ok(peakBytes < 300e6, `peak of ${peakBytes} bytes`);
});

test('the hash covers the graph and its external data, in order', () => {
  const model = externalModel({ location: 'w.bin' });
  const files = new MemoryFiles({ 'm.onnx': model, 'w.bin': two, 'unrelated.bin': two });
  const wanted = createHash('sha256').update(model).update(two).digest('hex');
  assert.equal(hashModelSource(files, 'm.onnx'), wanted);
  files.contents.set(
    'w.bin',
    Uint8Array.from(two, (byte) => byte ^ 1),
  );
  assert.notEqual(hashModelSource(files, 'm.onnx'), wanted);
});

test('the hash of a model on disk is that of its file', needsShared('models'), () => {
  const file = sharedPath('models/nib/onnx/model.onnx');
  const files = new NodeFiles();
  const wanted = createHash('sha256').update(fs.readFileSync(file)).digest('hex');
  assert.equal(hashModelSource(files, file), wanted);
  files.close();
});
