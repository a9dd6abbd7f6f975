/**
 * Bad input as users meet it: each file or bundle through the command line, which must fail with a
 * code, a place and a remedy, print no stack, and leave nothing behind. What the library refuses
 * beyond this stands in test/onnx/bad-input.test.ts, test/onnx/external.test.ts (external data) and
 * test/runtime/ (tensors of a wrong shape, aborts, two sessions, use after dispose).
 */
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { GraphProto, TensorProto } from '../../compiler/onnx/schema.ts';
import { fromNumber } from '../../compiler/onnx/wire.ts';
import { root } from '../package/sources.ts';
import { fettle, fettleFails, fettleJson } from '../support/cli.ts';
import { floats, modelBytes, node, reluGraph, value } from '../support/onnx.ts';

const folder = mkdtempSync(join(tmpdir(), 'fettle-bad-'));
const bundle = join(folder, 'good');
const out = join(folder, 'out', 'bundle');
const model = join(folder, 'model.onnx');

after(() => rmSync(folder, { recursive: true, force: true }));

/** x + w, with `w` as given. */
function addGraph(w: TensorProto): GraphProto {
  return {
    node: [node('Add', ['x', 'w'], ['y'])],
    input: [value('x', [3])],
    output: [value('y', [3])],
    initializer: [{ name: 'w', dataType: 1, ...w }],
  };
}

/** x + w, with the contents of `w` in another file. */
function externalGraph(location: string, offset = 0): Uint8Array {
  const externalData = Object.entries({ location, offset: `${offset}`, length: '12' }).map(
    ([key, text]) => ({ key, value: text }),
  );
  return modelBytes(addGraph({ dims: [fromNumber(3)], dataLocation: 1, externalData }));
}

const sized = (...dims: number[]): Uint8Array =>
  modelBytes(addGraph({ dims: dims.map(fromNumber), rawData: new Uint8Array(12) }));
const graphs = (graph: GraphProto): Uint8Array => modelBytes(graph);
const good = modelBytes(addGraph(floats('w', [1, 2, 3])));
const cycle = {
  node: [node('Add', ['x', 'b'], ['a']), node('Relu', ['a'], ['b'])],
  input: [value('x')],
  output: [value('b')],
};
const twice = {
  node: [node('Relu', ['x'], ['y']), node('Neg', ['x'], ['y'])],
  input: [value('x')],
  output: [value('y')],
};

const models: readonly (readonly [what: string, bytes: Uint8Array, code: string])[] = [
  ['a truncated file', good.subarray(0, good.length - 9), 'MODEL_INVALID'],
  ['garbage', Uint8Array.from({ length: 999 }, (_, i) => (i * 197) ^ (i >> 3)), 'MODEL_INVALID'],
  ['an empty file', new Uint8Array(0), 'MODEL_INVALID'],
  ['another format', new TextEncoder().encode('PK\u0003\u0004 a zip archive'), 'MODEL_INVALID'],
  ['a cyclic graph', graphs(cycle), 'MODEL_INVALID'],
  ['duplicate names', graphs(twice), 'MODEL_INVALID'],
  ['an empty graph', graphs({ node: [], input: [], output: [] }), 'MODEL_INVALID'],
  ['a missing external file', externalGraph('nowhere.bin'), 'IO_FAILED'],
  ['an external path that leaves', externalGraph('../../etc/passwd'), 'MODEL_INVALID'],
  ['an absolute external path', externalGraph('/etc/passwd'), 'MODEL_INVALID'],
  ['an external symlink that leaves', externalGraph('link.bin'), 'MODEL_INVALID'],
  ['an offset past the end', externalGraph('data.bin', 4096), 'MODEL_INVALID'],
  ['a negative dimension', sized(-3), 'MODEL_INVALID'],
  ['overflowing dimensions', sized(2 ** 40, 2 ** 40), 'MODEL_INVALID'],
  ['a tensor of 2^31 elements that is not there', sized(2 ** 31), 'MODEL_INVALID'],
  ['a newer opset', modelBytes(reluGraph(), { opsetImport: [{ version: fromNumber(99) }] }), ''],
  ['an op nobody knows', graphs({ ...twice, node: [node('Frob', ['x'], ['y'])] }), ''],
];

describe('models', () => {
  before(() => {
    writeFileSync(join(folder, 'data.bin'), new Uint8Array(64));
    symlinkSync('/etc/passwd', join(folder, 'link.bin'));
    mkdirSync(join(folder, 'out'));
  });

  for (const [what, bytes, code] of models)
    it(`${what} is refused and leaves nothing`, async () => {
      writeFileSync(model, bytes);
      const compile = ['compile', model, '--target', 'ort-wasm', '--out', out];
      const { at } = await fettleFails(compile, 1, code === '' ? 'OP_UNSUPPORTED' : code);
      assert.ok(Object.keys(at).length > 0, 'no place');
      assert.deepEqual(readdirSync(join(folder, 'out')), []);
    });

  it('inputs of 2^31 elements are described, and nothing is allocated for them', async () => {
    const dims = [value('x', [2 ** 31])];
    const output = [value('y', [2 ** 31])];
    writeFileSync(model, graphs({ ...reluGraph(), input: dims, output }));
    const place = join(folder, 'large');
    const { bundles } = await fettleJson('compile', model, '--target', 'ort-wasm', '--out', place);
    assert.match(bundles[0].warnings.join('\n'), /more than the .* of target/);
    assert.match(bundles[0].warnings.join('\n'), /no canaries: .* 2147483648 elements/);
  });

  it('weights with NaN and infinity are kept and reported', async () => {
    writeFileSync(model, modelBytes(addGraph(floats('w', [1, NaN, Infinity]))));
    const place = join(folder, 'nan');
    const args = ['compile', model, '--target', 'ort-wasm', '--out', place];
    const { bundles } = await fettleJson(...args);
    assert.match(bundles[0].warnings.join('\n'), /"w" holds NaN or infinity; it is kept/);
    const { warnings } = await fettleJson('inspect', place);
    assert.match(warnings.join('\n'), /"w" holds NaN/);
  });
});

describe('places', () => {
  before(() => writeFileSync(model, good));

  it('a misspelt target is met with the nearest one', async () => {
    const args = ['compile', model, '--target', 'ort-wams', '--out', out];
    assert.match((await fettleFails(args, 2, 'TARGET_UNKNOWN')).fix, /Did you mean "ort-wasm"/);
  });

  it('an output that cannot be written is refused', async () => {
    const file = join(folder, 'data.bin', 'below', 'a', 'file');
    await fettleFails(['compile', model, '--target', 'ort-wasm', '--out', file], 1, 'IO_FAILED');
    const mine = join(folder, 'mine');
    mkdirSync(mine);
    writeFileSync(join(mine, 'thesis.txt'), 'years of work');
    await fettleFails(['compile', model, '--target', 'ort-wasm', '--out', mine], 1, 'IO_FAILED');
    assert.deepEqual(readdirSync(mine), ['thesis.txt']);
  });

  it('a disk that is full leaves nothing half-written', async () => {
    const full = join(folder, 'full');
    mkdirSync(full);
    const bin = join(root, 'compiler/cli/fettle.mjs');
    // no file may grow beyond 1 MB, as if the disk ended there
    const script = `ulimit -f 1000; exec "$0" "$@"`;
    const args = ['compile', 'builtin:nib', '--target', 'ort-wasm', '--weights', 'w8g32'];
    const finished = await new Promise<{ code: unknown; stdout: string }>((resolve) => {
      const all = [process.execPath, bin, ...args, '--out', join(full, 'nib'), '--json'];
      execFile('bash', ['-c', script, ...all], (error, stdout) =>
        resolve({ code: error?.code, stdout }),
      );
    });
    assert.equal(finished.code, 1, finished.stdout);
    const { error } = JSON.parse(finished.stdout) as { error: { code: string; fix: string } };
    assert.equal(error.code, 'IO_FAILED');
    assert.notEqual(error.fix, '');
    assert.deepEqual(readdirSync(full), []);
  });

  it('Ctrl-C ends a compilation and leaves nothing', { timeout: 60_000 }, async () => {
    const place = join(folder, 'stopped');
    mkdirSync(place);
    const bin = join(root, 'compiler/cli/fettle.mjs');
    const args = ['compile', 'shape:smollm2-135m', '--target', 'ort-wasm', '--weights', 'w4g32'];
    const child = spawn(process.execPath, [bin, ...args, '--json', '--out', join(place, 'out')]);
    let stdout = '';
    child.stdout.on('data', (text: Buffer) => (stdout += text.toString()));
    // once the place is reserved, the work has begun; a second signal would end it at once
    const watch = setInterval(() => {
      if (readdirSync(place).length === 0) return;
      clearInterval(watch);
      child.kill('SIGINT');
    }, 100);
    const code = await new Promise((resolve) => child.on('exit', resolve));
    clearInterval(watch);
    assert.equal(code, 1, stdout);
    assert.match(stdout, /"code":"INTERRUPTED"/);
    assert.deepEqual(readdirSync(place), []);
  });
});

describe('bundles', () => {
  const damaged = join(folder, 'damaged');
  const generate = ['generate', damaged, '--prompt', 'x', '--max-tokens', '1'];

  before(async () => {
    const args = ['--target', 'ort-wasm', '--weights', 'w4g32', '--no-canaries', '--out', bundle];
    await fettleJson('compile', 'builtin:nib', ...args);
  });

  /** The good bundle with one change. */
  function spoil(change: () => void): void {
    rmSync(damaged, { recursive: true, force: true });
    cpSync(bundle, damaged, { recursive: true });
    change();
  }

  const chunk = join(damaged, 'weights-00.bin');
  const manifest = join(damaged, 'manifest.json');
  const edit = (from: RegExp, to: string) => (): void => {
    const text = readFileSync(manifest, 'utf8');
    assert.match(text, from);
    writeFileSync(manifest, text.replace(from, to));
  };
  const cases: readonly (readonly [what: string, change: () => void, message: RegExp])[] = [
    [
      'a flipped byte',
      () => {
        const bytes = readFileSync(chunk);
        bytes[1000] = (bytes[1000] ?? 0) ^ 4;
        writeFileSync(chunk, bytes);
      },
      /weights-00\.bin/,
    ],
    ['a missing chunk', () => rmSync(chunk), /weights-00\.bin/],
    ['a chunk that is too short', () => truncateSync(chunk, 5000), /weights-00\.bin/],
    ['a newer version', edit(/"version":\s*1\b/, '"version": 2'), /version/],
    ['a path that leaves', edit(/"weights-00\.bin"/, '"../weights-00.bin"'), /\.\.\/weights/],
    ['a manifest that is no JSON', () => truncateSync(manifest, 700), /manifest/],
  ];
  for (const [what, change, message] of cases)
    it(`${what} is BUNDLE_CORRUPT`, async () => {
      spoil(change);
      const error = await fettleFails(generate, 1, 'BUNDLE_CORRUPT');
      assert.match(error.message, message);
      assert.ok(Object.keys(error.at).length > 0, 'no place');
    });

  it('the good one generates', async () => {
    spoil(() => {});
    const { exitCode, stderr } = await fettle(...generate);
    assert.equal(exitCode, 0, stderr);
  });
});

it('a 5 GB model is inspected in less than 300 MB by the command itself', async () => {
  const bytes = 5 * 2 ** 30;
  const externalData = [{ key: 'location', value: 'huge.bin' }];
  const dims = [fromNumber(bytes / 4 / 1024), fromNumber(1024)];
  const huge = {
    node: [node('Gather', ['w', 'x'], ['y'])],
    input: [value('x', [3], 7)],
    output: [value('y', [3, 1024])],
    initializer: [{ name: 'w', dataType: 1, dims, dataLocation: 1, externalData }],
  };
  const file = join(folder, 'huge.onnx');
  writeFileSync(file, modelBytes(huge));
  writeFileSync(join(folder, 'huge.bin'), '');
  // sparse: takes no space on disk
  truncateSync(join(folder, 'huge.bin'), bytes);
  const script = `
    const { main } = await import(${JSON.stringify(join(root, 'compiler/cli/main.ts'))});
    const { processMemory } = await import(${JSON.stringify(join(root, 'runtime/node.ts'))});
    process.exitCode = await main(['inspect', ${JSON.stringify(file)}, '--json']);
    console.error(processMemory().peakBytes);`;
  const { stdout, stderr } = await new Promise<{ stdout: string; stderr: string }>(
    (resolve, reject) => {
      const args = ['--import', 'tsx', '--input-type=module', '-e', script];
      execFile(process.execPath, args, { cwd: root }, (error, text, log) =>
        error === null ? resolve({ stdout: text, stderr: log }) : reject(error),
      );
    },
  );
  assert.equal((JSON.parse(stdout) as { bytes: { f32: number } }).bytes.f32, bytes);
  const peakBytes = Number(stderr.trim());
  assert.ok(peakBytes > 0 && peakBytes < 300e6, `peak of ${stderr} bytes`);
});
