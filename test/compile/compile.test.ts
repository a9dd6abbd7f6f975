import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { CompileOptions, CompileResult } from '../../compiler/index.ts';
import { bundleRunner, compile, MemoryFiles, parseRecipe, VERSION } from '../../compiler/index.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { folderSource } from '../../compiler/run-bundle.ts';
import type { ModelSource } from '../../compiler/source.ts';
import { generatedModel } from '../../models/index.ts';
import { hubConfig, hubGenerationConfig } from '../../models/hub-config.ts';
import { parseManifest } from '../../runtime/bundle.ts';
import type { FettleError } from '../../runtime/errors.ts';
import type { Session } from '../../runtime/node.ts';
import { openBundle } from '../../runtime/node.ts';
import packageJson from '../../package.json' with { type: 'json' };

/** A micro decoder as a source; nothing of it is on disk. */
function micro(name = 'gqa'): ModelSource {
  const generated = generatedModel(`micro:${name}`);
  const { config } = generated;
  return {
    reference: generated.reference,
    name: generated.name,
    config: { config: hubConfig(config), generationConfig: hubGenerationConfig(config) },
    text: undefined,
    read: () => generated.build(),
    bytes: () => 0,
    sha256: () => 'ab'.repeat(32),
  };
}

/** Compiles into memory; the reference evaluator computes the canaries unless a runner is given. */
async function compileMicro(
  recipe: object,
  options: Partial<CompileOptions> = {},
): Promise<CompileResult & { readonly files: MemoryFiles }> {
  const files = (options.files as MemoryFiles | undefined) ?? new MemoryFiles();
  const result = await compile(micro(), {
    targets: ['ort-wasm'],
    out: 'out',
    recipe: parseRecipe(recipe),
    ...options,
    files,
  });
  return { ...result, files };
}

function contentsOf(files: MemoryFiles, folder = ''): ReadonlyMap<string, string> {
  return new Map(
    [...files.contents]
      .filter(([path]) => path.startsWith(folder))
      .map(([path, bytes]) => [path.slice(folder.length), Buffer.from(bytes).toString('base64')]),
  );
}

function fails(code: string, message: RegExp): (error: unknown) => boolean {
  return (error) => {
    const { code: got, message: text, fix } = error as FettleError;
    assert.equal(got, code, String(error));
    assert.match(text, message);
    assert.ok(fix !== undefined && fix !== '', `no fix: ${text}`);
    return true;
  };
}

test('two compilations give identical bytes, and so does one with a second target', async () => {
  const recipe = { weights: 'w4g32' };
  const first = await compileMicro(recipe);
  const second = await compileMicro(recipe);
  assert.deepEqual(contentsOf(first.files), contentsOf(second.files));
  assert.equal(first.bundles[0]?.sha256, second.bundles[0]?.sha256);
  const both = await compileMicro(recipe, { targets: ['ort-webgpu', 'ort-wasm'] });
  assert.deepEqual(
    both.bundles.map(({ path }) => path),
    ['out/ort-webgpu', 'out/ort-wasm'],
  );
  assert.deepEqual(contentsOf(both.files, 'out/ort-wasm/'), contentsOf(first.files, 'out/'));
});

test('the manifest is what the runtime accepts and says where the bundle comes from', async () => {
  const { files, bundles, passes } = await compileMicro({ weights: 'w4g32', seed: 3 });
  const bytes = files.contents.get('out/manifest.json') ?? new Uint8Array(0);
  const manifest = parseManifest(bytes);
  assert.equal(manifest.compiler, `fettle ${packageJson.version}`);
  assert.equal(VERSION, packageJson.version);
  assert.equal(manifest.target, 'ort-wasm');
  assert.equal(manifest.model.name, 'gqa');
  assert.equal(manifest.model.sha256, 'ab'.repeat(32));
  assert.equal(manifest.model.kind, 'decoder');
  assert.equal(manifest.decoder?.state.length, 4);
  assert.deepEqual(parseRecipe(manifest.recipe), parseRecipe({ weights: 'w4g32', seed: 3 }));
  assert.deepEqual(
    manifest.passes.map((report) => (report as { pass: string }).pass),
    passes.map(({ pass }) => pass),
  );
  assert.ok(!new TextDecoder().decode(bytes).includes('wallMs'));
  assert.ok(manifest.weights.tensors.some(({ format }) => format === 'w4g32'));
  // the codes of every layer: 2 x (q, k, v, o, gate, up, down) and the tied table, half a byte each
  const [bundle] = bundles;
  const total = [...files.contents.values()].reduce((sum, { length }) => sum + length, 0);
  assert.equal(bundle?.bytes, total);
  assert.equal(bundle?.files, files.contents.size);
  assert.equal(bundle?.weightBytes, manifest.weights.bytes);
});

test('the bundle runs on its engine, and its canaries replay', async () => {
  const files = new MemoryFiles();
  const open = { run: bundleRunner(files, openBundle), files };
  const { bundles } = await compileMicro({ weights: 'w4g32' }, open);
  assert.deepEqual(
    bundles[0]?.warnings.filter((warning) => /canar/.test(warning)),
    [],
  );
  const session = await openBundle(folderSource(files, 'out'));
  try {
    const report = await session.check();
    assert.equal(report.passed, true);
    assert.equal(report.results.length, 2);
    const { tokens } = await session.generate([5, 6, 7], { maxTokens: 4, temperature: 0 }).result();
    assert.ok(tokens.length > 0);
  } finally {
    await session.dispose();
  }
});

test('without an engine the reference evaluator computes the canaries, and the engine agrees', async () => {
  const { files } = await compileMicro({ weights: 'w8g32' });
  const session = await openBundle(folderSource(files, 'out'));
  try {
    assert.equal((await session.check()).passed, true);
  } finally {
    await session.dispose();
  }
});

test('a canary that no longer holds is found', async () => {
  const { files } = await compileMicro({});
  const chunk = files.contents.get('out/weights-00.bin');
  assert.ok(chunk !== undefined);
  // every weight doubled, as another version of an engine might read them
  for (const [i, value] of new Float32Array(chunk.slice().buffer).entries())
    chunk.set(new Uint8Array(Float32Array.of(2 * value).buffer), 4 * i);
  const session = await openBundle(folderSource(files, 'out'), { verify: false });
  try {
    assert.equal((await session.check()).passed, false);
  } finally {
    await session.dispose();
  }
});

test('a size budget without a format gets the best uniform format that fits, by exact size', async () => {
  const sizes = new Map<string | undefined, number>();
  for (const weights of [undefined, 'f16', 'w8g32', 'w4g32']) {
    const { bundles } = await compileMicro(weights === undefined ? {} : { weights });
    sizes.set(weights, bundles[0]?.bytes ?? 0);
  }
  assert.deepEqual(
    [...sizes.values()].toSorted((a, b) => b - a),
    [...sizes.values()],
  );
  for (const [weights, bytes] of sizes) {
    // the recipe in the manifest names the budget, so sizes differ by the digits of a number
    const { bundles } = await compileMicro({ maxSize: bytes + 40 });
    assert.equal(bundles[0]?.weights, weights);
  }
});

test('when nothing fits, the floor is named and the place stays empty', async () => {
  const files = new MemoryFiles();
  let floor = 0;
  await assert.rejects(compileMicro({ maxSize: '20kB' }, { files }), (error) => {
    floor = Number((error as FettleError).at['bytes']);
    return fails(
      'BUDGET_EXCEEDED',
      new RegExp(`the smallest, w4g128, takes ${floor} bytes`),
    )(error);
  });
  assert.equal(files.contents.size, 0);
  // five digits and five: the same manifest, so the floor itself fits
  const { bundles } = await compileMicro({ maxSize: floor + 10 });
  assert.equal(bundles[0]?.weights, 'w4g128');
});

test('a format that is named and too large misses the budget', async () => {
  const files = new MemoryFiles();
  await assert.rejects(
    compileMicro({ weights: 'w8g32', maxSize: '50kB' }, { files }),
    fails('BUDGET_EXCEEDED', /takes \d+ kB with weights in w8g32; the budget is 50\.0 kB/),
  );
  assert.equal(files.contents.size, 0);
});

test('budgets of memory and loss are held too', async () => {
  await assert.rejects(
    compileMicro({ maxMemory: '200kB' }),
    fails(
      'BUDGET_EXCEEDED',
      /needs .* \(.* weights, .* activations, .* state\); the budget is 200 kB/,
    ),
  );
  await assert.rejects(compileMicro({ maxLoss: '1%' }), fails('USAGE', /needs data/));
  const quality = { metric: 'perplexity', before: 100, after: 104, dataSha256: 'cd'.repeat(32) };
  const measure = { measure: () => Promise.resolve(quality) };
  await assert.rejects(
    compileMicro({ maxLoss: '1%' }, measure),
    fails('BUDGET_EXCEEDED', /perplexity goes from 100 to 104, a loss of 4\.00%/),
  );
  const { files, loss } = await compileMicro({ maxLoss: '5%' }, measure);
  assert.deepEqual(loss, { metric: 'perplexity', before: 100, after: 104 });
  assert.deepEqual(
    parseManifest(files.contents.get('out/manifest.json') ?? new Uint8Array()).quality,
    quality,
  );
});

test('a failure or an abort on the way leaves nothing, and an older bundle as it was', async () => {
  const { files } = await compileMicro({});
  const before = contentsOf(files);
  const controller = new AbortController();
  const progress = (what: string): void => {
    if (what === 'write weights') controller.abort(new Error('stop here'));
  };
  await assert.rejects(
    compileMicro({ weights: 'f16' }, { files, progress, signal: controller.signal }),
    /stop here/,
  );
  assert.deepEqual(contentsOf(files), before);

  const create = files.create.bind(files);
  files.create = (path) => {
    const writer = create(path);
    if (!path.includes('weights')) return writer;
    return {
      ...writer,
      write: () => {
        throw new Error('no space left');
      },
    };
  };
  await assert.rejects(compileMicro({ weights: 'f16' }, { files }), /no space left/);
  files.create = create;
  assert.deepEqual(contentsOf(files), before);
  await compileMicro({ weights: 'f16' }, { files });
  assert.notDeepEqual(contentsOf(files), before);
});

test('a place on disk that cannot be written is found out before the model is read', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'fettle-'));
  const untouched = { ...micro(), read: () => assert.fail('the model was read') };
  const attempt = (out: string): Promise<unknown> =>
    compile(untouched, { targets: ['ort-wasm'], files: new NodeFiles(), out });
  try {
    writeFileSync(join(folder, 'file'), 'mine');
    await assert.rejects(attempt(join(folder, 'file')), fails('IO_FAILED', /a file is there/));
    await assert.rejects(attempt(join(folder, 'file', 'out')), fails('IO_FAILED', /Cannot/));
    await assert.rejects(attempt(join(folder, 'file', 'a.fettle')), fails('IO_FAILED', /Cannot/));
    await assert.rejects(
      attempt(folder),
      fails('IO_FAILED', /"file" in it is not part of a bundle/),
    );
    await assert.rejects(attempt('/proc/nowhere/out'), fails('IO_FAILED', /Cannot/));
    assert.deepEqual(readdirSync(folder), ['file']);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('a bundle on disk replaces an older one and leaves nothing beside it', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'fettle-'));
  const write = (recipe: object): Promise<CompileResult> =>
    compile(micro(), {
      targets: ['ort-wasm'],
      files: new NodeFiles(),
      out: join(folder, 'deep', 'out'),
      recipe: parseRecipe(recipe),
    });
  try {
    await write({});
    const { bundles } = await write({ weights: 'w4g32' });
    assert.deepEqual(readdirSync(join(folder, 'deep')), ['out']);
    assert.equal(readdirSync(join(folder, 'deep', 'out')).length, bundles[0]?.files);
    const session = await openBundle(join(folder, 'deep', 'out'));
    assert.equal((await session.check()).passed, true);
    await session.dispose();
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('a packed bundle is the same bundle in one file', async () => {
  const packed = await compileMicro({ weights: 'w4g32' }, { out: 'nib.fettle' });
  const folder = await compileMicro({ weights: 'w4g32' });
  assert.deepEqual([...packed.files.contents.keys()], ['nib.fettle']);
  assert.equal(packed.bundles[0]?.sha256, folder.bundles[0]?.sha256);
  const archive = packed.files.contents.get('nib.fettle') ?? new Uint8Array(0);
  assert.equal(packed.bundles[0]?.bytes, archive.length);
  const session = await openBundle(archive);
  assert.equal((await session.check()).passed, true);
  await session.dispose();
  const both = await compileMicro({}, { out: 'm.fettle', targets: ['ort-wasm', 'ort-webgpu'] });
  assert.deepEqual(
    both.bundles.map(({ path }) => path),
    ['m.ort-wasm.fettle', 'm.ort-webgpu.fettle'],
  );
});

test('tokenizer files, chat template and sampling defaults travel with the bundle', async () => {
  const files = new MemoryFiles();
  const json = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));
  const source: ModelSource = {
    ...micro(),
    config: {
      ...micro().config,
      generationConfig: { temperature: 0.7, do_sample: true, max_length: 9, top_k: 'many' },
    },
    text: { tokenizer: json({ a: 1 }), tokenizerConfig: json({}), chatTemplate: '{{ messages }}' },
  };
  await compile(source, { targets: ['ort-wasm'], files, out: 'out' });
  const manifest = parseManifest(files.contents.get('out/manifest.json') ?? new Uint8Array());
  assert.deepEqual(manifest.text, {
    tokenizer: 'tokenizer.json',
    tokenizerConfig: 'tokenizer_config.json',
    chatTemplate: '{{ messages }}',
    generation: { do_sample: true, temperature: 0.7 },
  });
  assert.deepEqual(files.contents.get('out/tokenizer.json'), json({ a: 1 }));
});

test('shapes of the recipe are fixed in the bundle', async () => {
  const { files } = await compileMicro({ shapes: { input_ids: [1, '?'] } });
  const manifest = parseManifest(files.contents.get('out/manifest.json') ?? new Uint8Array());
  const ids = manifest.inputs.find(({ name }) => name === 'input_ids');
  assert.equal(ids?.shape[0], 1);
  assert.equal(typeof ids?.shape[1], 'string');
  assert.equal(manifest.decoder?.state[0]?.shape[0], 1);
});

test('canaries can be left out, and the texts of the model can be had after every pass', async () => {
  const dumped: string[] = [];
  const { files } = await compileMicro(
    { canaries: false, weights: 'w4g32' },
    { dump: (name, text) => dumped.push(`${name} ${text.length > 0}`) },
  );
  assert.equal(files.stat('out/canaries.bin'), undefined);
  assert.equal(dumped[0], '00-input true');
  assert.deepEqual(dumped, dumped.toSorted());
  assert.ok(dumped.includes('ort-wasm-01-quantize-weights true'), dumped.join());
});

test('a recipe may shorten the context, and with it the state; it cannot lengthen it', async () => {
  const { files } = await compileMicro({ contextLength: 64 });
  const manifest = parseManifest(files.contents.get('out/manifest.json') ?? new Uint8Array());
  assert.equal(manifest.decoder?.contextLength, 64);
  assert.equal(manifest.memory.tokens, 64);
  // 2 layers of keys and values, 2 heads of 16, f32
  assert.equal(manifest.memory.state, 2 * 2 * 2 * 16 * 4 * 64);
  await assert.rejects(
    compileMicro({ contextLength: 257 }),
    fails('USAGE', /a context of 257 tokens; the model has 256/),
  );
});

test('targets and formats that do not exist or do not fit are refused before any work', async () => {
  const untouched = { ...micro(), read: () => assert.fail('the model was read') };
  const attempt = (targets: string[], recipe: object = {}): Promise<unknown> =>
    compile(untouched, {
      targets,
      out: 'out',
      files: new MemoryFiles(),
      recipe: parseRecipe(recipe),
    });
  await assert.rejects(attempt(['ort-wsam']), fails('TARGET_UNKNOWN', /"ort-wsam"/));
  await assert.rejects(attempt([]), fails('USAGE', /No target/));
  await assert.rejects(attempt(['ort-wasm', 'ort-wasm']), fails('USAGE', /given twice/));
  await assert.rejects(
    attempt(['ort-webgpu'], { weights: 'w4g64' }),
    fails('USAGE', /"ort-webgpu" does not run weights in w4g64/),
  );
});

test('canaries of codes are computed with rounded activations, to a bound that finds a wrong code', async () => {
  for (const weights of ['w8g32', 'w4g32', 'w2g32a']) {
    const { files } = await compileMicro({ weights }, { targets: ['wasm'] });
    const session = await openBundle(folderSource(files, 'out'));
    const report = await session.check();
    assert.ok(report.passed, JSON.stringify(report));
    // without values that round either way, f32 sums are all that differs
    assert.equal(report.tolerance, 1e-3, weights);
    const { maxError, range } = report.results[0] ?? assert.fail();
    assert.ok(maxError <= 1e-5 * range, `${maxError} of ${range}`);
    await session.dispose();
  }
});

test('a recipe may ask for a cache in f16: half the state, and the canaries pass', async () => {
  const open = async (kv: string): Promise<Session> => {
    const recipe = { weights: 'w8g32', kv };
    const { files } = await compileMicro(recipe, { targets: ['wasm'] });
    return openBundle(folderSource(files, 'out'));
  };
  const [half, whole] = [await open('f16'), await open('source')];
  assert.equal(half.manifest.memory.state * 2, whole.manifest.memory.state);
  assert.equal(half.measure().memoryBytes.state, half.manifest.memory.state);
  assert.equal(half.manifest.recipe['kv'], 'f16');
  const report = await half.check();
  assert.ok(report.passed, JSON.stringify(report));
  await Promise.all([half.dispose(), whole.dispose()]);
  // an engine that keeps the cache as it is refuses
  await assert.rejects(
    compileMicro({ kv: 'f16' }),
    fails('USAGE', /"ort-wasm" does not keep the KV cache in f16/),
  );
});
