/** The command line: every command, its JSON keys, and its exit codes, on one small bundle. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { readNpy, writeNpy } from '../../models/npy.ts';
import { tensor } from '../../runtime/tensor.ts';
import { assertKeys, fettle, fettleFails, fettleJson } from '../support/cli.ts';
import { serveFiles } from '../support/file-server.ts';
import { modelBytes, node, value } from '../support/onnx.ts';
import { needsShared, sharedPath } from '../support/shared.ts';
import { root } from '../package/sources.ts';

const folder = mkdtempSync(join(tmpdir(), 'fettle-cli-'));
const nib = join(folder, 'nib.fettle');
const text = join(folder, 'text.txt');
const doubling = join(folder, 'doubling.onnx');

before(async () => {
  writeFileSync(
    text,
    'The river ran under the bridge, and the bridge had been closed. '.repeat(20),
  );
  const graph = {
    node: [node('Add', ['image', 'image'], ['doubled'])],
    input: [value('image', [1, 1, 4, 4])],
    output: [value('doubled', [1, 1, 4, 4])],
  };
  writeFileSync(doubling, modelBytes(graph));
});

after(() => rmSync(folder, { recursive: true, force: true }));

describe('lists', () => {
  it('targets, passes and formats are tables for people and objects for programs', async () => {
    const { targets } = await fettleJson('targets');
    assertKeys(targets[0], 'id', 'engine', 'features', 'limits', 'weightFormats', 'summary');
    const { passes } = await fettleJson('passes');
    assertKeys(passes[0], 'name', 'summary');
    const { formats } = await fettleJson('formats');
    assertKeys(formats[0], 'name', 'bitsPerWeight', 'engines', 'errorBound');
    for (const [command, word] of [
      ['targets', targets[0].id],
      ['passes', passes[0].name],
      ['formats', 'w4g32'],
    ]) {
      const { exitCode, stdout, stderr } = await fettle(command);
      assert.equal(exitCode, 0);
      assert.ok(stdout.includes(word) && stderr === '', command);
    }
  });

  it('the help of the program names every command of the design', async () => {
    const help = await new Promise<string>((resolve, reject) => {
      const bin = join(root, 'compiler/cli/fettle.mjs');
      execFile(process.execPath, [bin, '--help'], (error, stdout) =>
        error === null ? resolve(stdout) : reject(error),
      );
    });
    for (const command of 'inspect compile run generate evaluate bench report targets passes formats demo'.split(
      ' ',
    ))
      assert.match(help, new RegExp(`^  fettle ${command}\\b`, 'm'));
  });
});

describe('compile', () => {
  it('writes a bundle and says what was done', async () => {
    const result = await fettleJson(
      'compile',
      'builtin:nib',
      '--target',
      'ort-wasm',
      '--weights',
      'w4g32',
      '--out',
      nib,
    );
    assertKeys(result, 'bundles', 'passes', 'wallMs', 'peakRssBytes');
    const [bundle] = result.bundles;
    assertKeys(bundle, 'path', 'target', 'bytes', 'weightBytes', 'files', 'sha256');
    assert.equal(bundle.path, nib);
    assert.ok(bundle.bytes < 4e6 && bundle.weightBytes < bundle.bytes);
    assert.match(bundle.sha256, /^[0-9a-f]{64}$/);
    assertKeys(result.passes[0], 'pass', 'changed', 'before', 'after', 'wallMs');
    assert.ok(result.peakRssBytes > 1e7);
  });

  it('takes recipes, shapes, several targets, and explains and dumps what it did', async () => {
    const recipe = join(folder, 'recipe.json');
    writeFileSync(recipe, '{ "weights": "w8g32", "canaries": false }');
    const out = join(folder, 'two');
    const dump = join(folder, 'dump');
    const { exitCode, stdout, stderr } = await fettle(
      'compile',
      'micro:gqa',
      '--target',
      'ort-wasm,ort-webgpu',
      '--recipe',
      recipe,
      '--shape',
      'batch_size=1',
      '--out',
      out,
      '--dump',
      dump,
      '--explain',
    );
    assert.equal(exitCode, 0, stderr);
    assert.match(stdout, /ort-wasm .*w8g32/);
    assert.match(stdout, /simplify-shapes +[\d,]+ -> [\d,]+/);
    assert.match(stdout, /ort-wasm: activations: f32 /);
    // each weight with its format and why
    assert.match(stdout, /L0\.qkv .* w8g32 .* as asked for/);
    for (const target of ['ort-wasm', 'ort-webgpu']) {
      const manifest = JSON.parse(readFileSync(join(out, target, 'manifest.json'), 'utf8'));
      assert.equal(manifest.target, target);
      assert.equal(manifest.recipe.weights, 'w8g32');
      assert.deepEqual(manifest.inputs[0].shape.slice(0, 1), [1]);
    }
    assert.ok(readdirSync(dump).length > 2);
    assert.match(readFileSync(join(dump, '00-input.txt'), 'utf8'), /input_ids/);
  });

  it('two compilations of a language and a vision model give the same bytes', async () => {
    for (const model of ['micro:tied-copy', doubling]) {
      const hashes = [];
      for (const out of ['one', 'other']) {
        const { bundles } = await fettleJson(
          'compile',
          model,
          '--target',
          'ort-wasm',
          '--out',
          join(folder, out),
        );
        hashes.push(bundles[0].sha256);
        hashes.push(readdirSync(join(folder, out)).join());
      }
      assert.equal(hashes[0], hashes[2]);
      assert.equal(hashes[1], hashes[3]);
    }
  });

  it('misses a budget with exit code 3 and leaves nothing', async () => {
    const out = join(folder, 'missed');
    const compile = ['compile', 'micro:gqa', '--target', 'ort-wasm', '--out', out];
    const size = await fettleFails([...compile, '--max-size', '1kB'], 3, 'BUDGET_EXCEEDED');
    assert.match(size.message, /smallest/);
    await fettleFails([...compile, '--max-memory', '1kB'], 3, 'BUDGET_EXCEEDED');
    assert.equal(existsSync(out), false);
  });

  it('a loss budget is measured on the data, kept or missed', async () => {
    const out = join(folder, 'loss');
    const compile = ['compile', 'builtin:nib', '--target', 'ort-wasm', '--calibrate', text];
    const kept = [...compile, '--weights', 'w8g32', '--max-loss', '5%', '--out', out];
    const { loss } = await fettleJson(...kept);
    assertKeys(loss, 'metric', 'before', 'after');
    assert.ok(Math.abs(loss.after / loss.before - 1) < 0.05);
    const plain = ['--weights', 'w2g32', '--rounding', 'nearest'];
    const missed = [...compile, ...plain, '--max-loss', '1%', '--out', `${out}-2`];
    await fettleFails(missed, 3, 'BUDGET_EXCEEDED');
    assert.equal(existsSync(`${out}-2`), false);
  });
});

describe('inspect', () => {
  const keys = ['kind', 'nodes', 'ops', 'parameters', 'bytes', 'blocks', 'inputs', 'outputs'];

  it('describes models of every kind, with an estimate for each target', async () => {
    for (const model of ['builtin:nib', 'shape:smollm2-135m', 'micro:gqa', doubling]) {
      const result = await fettleJson('inspect', model);
      assertKeys(result, ...keys, 'memory', 'targets');
      assert.equal(result.kind, 'model');
      assert.ok(result.targets.some(({ target }: { target: string }) => target === 'ort-wasm'));
    }
  });

  it('describes bundles by what they planned', async () => {
    const result = await fettleJson('inspect', nib);
    assertKeys(result, ...keys);
    assertKeys(result.memory, 'weights', 'arena', 'state');
    assert.equal(result.kind, 'bundle');
    assert.ok(result.bytes.w4g32 > 2e6);
    assert.match((await fettle('inspect', nib)).stdout, /nib for ort-wasm/);
  });
});

describe('run', () => {
  const input = join(folder, 'input.npy');

  it('feeds .npy files and images, and saves outputs', async () => {
    writeFileSync(input, writeNpy(tensor('f32', [1, 1, 4, 4], new Float32Array(16).fill(1.5))));
    const output = join(folder, 'outputs');
    const result = await fettleJson(
      'run',
      doubling,
      '--input',
      `image=${input}`,
      '--output',
      output,
    );
    assert.deepEqual(result.outputs[0].shape, [1, 1, 4, 4]);
    const saved = join(output, 'doubled.npy');
    assert.deepEqual(
      [...readNpy(readFileSync(saved)).data],
      Array.from({ length: 16 }, () => 3),
    );

    const { default: sharp } = await import('sharp');
    const image = join(folder, 'white.png');
    const create = { width: 9, height: 7, channels: 3, background: 'white' } as const;
    await sharp({ create }).png().toFile(image);
    const { exitCode, stdout, stderr } = await fettle('run', doubling, '--input', image);
    assert.equal(exitCode, 0, stderr);
    assert.match(stdout, /doubled +f32 +1x1x4x4 +2\.000 2\.000/);
  });

  it('refuses inputs that are not the model’s, and files that are not there', async () => {
    const wrong = await fettleFails(['run', doubling, '--input', `imag=${input}`], 2, 'USAGE');
    assert.equal(wrong.fix, 'Did you mean "image"?');
    await fettleFails(['run', doubling, '--input', 'image=nothing.npy'], 1, 'IO_FAILED');
    writeFileSync(input, writeNpy(tensor('f32', [1, 1, 4, 5], new Float32Array(20))));
    const shape = await fettle('run', doubling, '--input', `image=${input}`, '--json');
    assert.equal(shape.exitCode, 2);
    assert.match(shape.stdout, /wanted .*4.*got/);
  });
});

describe('generate', () => {
  it('streams text, and the same seed gives the same text', async () => {
    const args = ['generate', nib, '--prompt', 'The river', '--max-tokens', '6', '--seed', '7'];
    const result = await fettleJson(...args, '--temperature', '0.8', '--top-k', '40');
    assertKeys(
      result,
      'text',
      'tokens',
      'finish',
      'prefillTokensPerSecond',
      'decodeTokensPerSecond',
    );
    assert.equal(result.tokens.length, 6);
    assert.equal(result.finish, 'length');
    const again = await fettle(...args, '--temperature', '0.8', '--top-k', '40');
    assert.equal(again.stdout.trimEnd(), result.text.trimEnd());
    assert.match(again.stderr, /6 tokens/);
  });

  it('refuses options out of range as misuse', async () => {
    const args = ['generate', nib, '--prompt', 'x', '--temperature', '-1'];
    await fettleFails(args, 2, 'USAGE');
    await fettleFails(['generate', doubling, '--prompt', 'x'], 2, 'USAGE');
  });
});

describe('evaluate', () => {
  const keys = ['task', 'metric', 'value', 'unit', 'samples', 'model', 'engine', 'dataSha256'];

  it('perplexity has the same meaning for a model and its bundle', async () => {
    const args = ['--task', 'perplexity', '--data', text, '--max-tokens', '200'];
    const values = [];
    for (const model of ['builtin:nib', nib]) {
      const result = await fettleJson('evaluate', model, ...args);
      assertKeys(result, ...keys, 'tokens', 'bitsPerToken');
      assert.equal(result.tokens, 199);
      assert.ok(Math.abs(2 ** result.bitsPerToken / result.value - 1) < 1e-9);
      values.push(result.value);
    }
    assert.ok(Math.abs((values[1] ?? 0) / (values[0] ?? 1) - 1) < 0.2, values.join());
  });

  it('distance compares decoders on text or random tokens, and other models on random inputs', async () => {
    const random = ['--task', 'distance', '--samples', '1'];
    for (const args of [
      [nib, ...random, '--against', 'builtin:nib'],
      [nib, ...random, '--against', 'builtin:nib', '--data', text, '--max-tokens', '40'],
    ]) {
      const result = await fettleJson('evaluate', ...args);
      assertKeys(result, ...keys, 'maxError', 'meanError', 'cosine', 'topOneAgreement');
      assertKeys(result, 'klDivergence');
      assert.ok(result.cosine > 0.98 && result.cosine < 1, `${result.cosine}`);
    }
    const same = await fettleJson('evaluate', doubling, ...random, '--against', doubling);
    assert.equal(same.maxError, 0);
    assert.equal(same.dataSha256, null);
  });

  it('says what a task lacks', async () => {
    await fettleFails(['evaluate', nib, '--task', 'perplexity'], 2, 'USAGE');
    await fettleFails(['evaluate', nib, '--task', 'distance'], 2, 'USAGE');
    const missing = ['evaluate', nib, '--task', 'perplexity', '--data', join(folder, 'none.txt')];
    await fettleFails(missing, 1, 'IO_FAILED');
  });
});

describe('bench and report', () => {
  it('bench measures bundles and models with the same keys', async () => {
    const args = ['--repeat', '1', '--tokens', '3', '--prompt-tokens', '4'];
    const decoder = await fettleJson('bench', nib, ...args);
    const common = ['model', 'engine', 'host', 'threads', 'kernels', 'loadMs', 'memoryBytes'];
    assertKeys(decoder, ...common, 'samples', 'firstTokenMs');
    assertKeys(decoder, 'prefillTokensPerSecond', 'decodeTokensPerSecond');
    assertKeys(decoder.memoryBytes, 'weights', 'arena', 'state', 'peak');
    const plain = await fettleJson('bench', doubling, ...args);
    assertKeys(plain, ...common, 'latencyMs');
    assertKeys(plain.latencyMs, 'median', 'p95');
  });

  it('report writes the format that its name ends in', async () => {
    for (const [file, pattern] of [
      ['report.html', /<table/],
      ['report.md', /\| *ort-wasm/],
      ['report.json', /"bundles"/],
    ] as const) {
      const out = join(folder, file);
      await fettleJson('report', nib, '--no-measure', '--out', out);
      assert.match(readFileSync(out, 'utf8'), pattern);
    }
    await fettleFails(['report', nib, '--out', 'report.doc'], 2, 'USAGE');
  });
});

describe('where models come from', () => {
  it('a folder in the hub layout and the URL of one are the same model', async () => {
    const hub = join(folder, 'hub');
    cpSync(join(root, 'models/nib'), hub, { recursive: true });
    const file = (path: string): [string, { bytes: Uint8Array; etag: string }] => [
      `/nib/${path}`,
      { bytes: readFileSync(join(hub, path)), etag: `"${path}"` },
    ];
    const names = ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'onnx/model.onnx'];
    const server = await serveFiles(Object.fromEntries(names.map(file)));
    const cache = process.env['XDG_CACHE_HOME'];
    process.env['XDG_CACHE_HOME'] = join(folder, 'cache');
    try {
      const here = await fettleJson('inspect', hub);
      const there = await fettleJson('inspect', `${server.origin}/nib`);
      assert.deepEqual(there.ops, here.ops);
      assert.equal(there.decoder, here.decoder);
      await fettleFails(['inspect', `${server.origin}/none`], 1, 'IO_FAILED');
    } finally {
      if (cache === undefined) delete process.env['XDG_CACHE_HOME'];
      else process.env['XDG_CACHE_HOME'] = cache;
      await server.close();
    }
  });
});

describe('digits', () => {
  const data = (kind: string): string => sharedPath('data', `digits-${kind}-images.npy`);
  const cnn = sharedPath('models/digits-cnn/model.onnx');

  it('a classifier keeps its accuracy and its loss budget', needsShared('data'), async () => {
    const out = join(folder, 'digits');
    const args = ['compile', cnn, '--target', 'ort-wasm', '--weights', 'w8g32', '--out', out];
    const budget = ['--max-loss', '1%', '--calibrate', data('calibration')];
    const { loss } = await fettleJson(...args, ...budget);
    assert.equal(loss.metric, 'top-1 disagreement');
    const test = ['--task', 'classify', '--data', data('test')];
    const result = await fettleJson('evaluate', out, ...test);
    assertKeys(result, 'task', 'metric', 'value', 'unit', 'samples', 'dataSha256');
    assert.equal(result.samples, 1500);
    // the original reaches 98.8%
    assert.ok(result.value > 0.98, `${result.value}`);
  });
});
