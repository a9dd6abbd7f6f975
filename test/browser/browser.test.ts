/**
 * The same bundle in headless Chromium, on WebAssembly and on WebGPU (SwiftShader), gives what it gives in
 * Node. The page is cross-origin isolated and gets the runtime as one script; onnxruntime-web and the
 * tokenizer come through an import map, as they would in an app.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import type { Browser, Page } from 'playwright-core';
import {
  bundleRunner,
  compile,
  MemoryFiles,
  openSource,
  parseRecipe,
} from '../../compiler/index.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { builtinFolder } from '../../models/builtin.ts';
import type { CheckReport, tensor } from '../../runtime/node.ts';
import { openBundle } from '../../runtime/node.ts';
import type { PageServer } from '../support/browser.ts';
import {
  BrowserMissing,
  bundleScript,
  launchChromium,
  moduleRoute,
  startServer,
  whyNoBrowser,
} from '../support/browser.ts';
import type { Files } from '../support/tiny-bundle.ts';
import { modelBytes, node, value } from '../support/onnx.ts';
import {
  decoderBundle,
  linearBundle,
  makeBundle,
  memorySource,
  packTar,
} from '../support/tiny-bundle.ts';

const imports = {
  'onnxruntime-web/wasm': '/modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs',
  'onnxruntime-web/webgpu': '/modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs',
  '@huggingface/tokenizers': '/modules/@huggingface/tokenizers/dist/tokenizers.min.mjs',
  '@huggingface/jinja': '/modules/@huggingface/jinja/dist/index.js',
};

const html = `<!doctype html><title>fettle</title>
<script type="importmap">${JSON.stringify({ imports })}</script>
<script type="module" src="/fettle.js"></script>`;

/** What runs in the page; typed here, bundled for it. */
const script = `
import { openBundle, tensor } from './runtime/index.ts';
globalThis.fettle = { openBundle, tensor };
`;

/** What the page offers. */
interface PageFettle {
  openBundle: typeof openBundle;
  tensor: typeof tensor;
}

type Provider = 'wasm' | 'webgpu';

/** Bundles served under /<name>/ and, packed, under /<name>.fettle. */
const bundles: Record<string, Files> = {
  linear: linearBundle(),
  decoder: decoderBundle(),
  half: makeBundle({
    graph: modelBytes({
      node: [node('Identity', ['x'], ['y'])],
      input: [value('x', [2], 10)],
      output: [value('y', [2], 10)],
    }),
    inputs: [{ name: 'x', dtype: 'f16', shape: [2] }],
    outputs: [{ name: 'y', dtype: 'f16', shape: [2] }],
  }),
};

let server: PageServer;
let browser: Browser | undefined;
let page: Page;
let missing: string | undefined;

/** Compiles the built-in model for both targets, in memory. */
async function compileNib(): Promise<void> {
  const files = new MemoryFiles();
  await compile(openSource(new NodeFiles(), builtinFolder('builtin:nib')), {
    targets: ['ort-wasm', 'ort-webgpu'],
    recipe: parseRecipe({ weights: 'w4g32' }),
    files,
    out: 'nib',
    run: bundleRunner(files, openBundle),
  });
  for (const target of files.list('nib'))
    bundles[`nib-${target}`] = new Map(
      files.list(`nib/${target}`).map((path) => {
        const place = `nib/${target}/${path}`;
        const bytes = files.read(place, 0, files.stat(place)?.bytes ?? 0);
        return [path, new Uint8Array(bytes)];
      }),
    );
}

/** Runs the linear model in the page and gives its output. */
function runLinear(provider: Provider, url: string): Promise<number[]> {
  return page.evaluate(
    async ({ url, provider }) => {
      const { openBundle, tensor } = (globalThis as unknown as { fettle: PageFettle }).fettle;
      const session = await openBundle(url, { ort: { provider } });
      const x = tensor('f32', [2, 4], Float32Array.of(1, 0, 0, 0, 0, 0, 0, 1));
      const { y } = await session.run({ x });
      await session.dispose();
      return Array.from(y?.data as Float32Array);
    },
    { url, provider },
  );
}

/** Generates in the page, and replays the canaries when the bundle has some. */
function generate(
  url: string,
  prompt: string | number[],
  maxTokens: number,
  provider?: Provider,
): Promise<{
  tokens: readonly number[];
  text: string;
  stateBytes: number;
  report: CheckReport | undefined;
}> {
  return page.evaluate(
    async ({ url, provider, prompt, maxTokens }) => {
      const { openBundle } = (globalThis as unknown as { fettle: PageFettle }).fettle;
      const session = await openBundle(url, provider === undefined ? {} : { ort: { provider } });
      const report = session.manifest.canaries === undefined ? undefined : await session.check();
      const { tokens, text } = await session
        .generate(prompt, { maxTokens, temperature: 0 })
        .result();
      const stateBytes = session.measure().memoryBytes.state;
      await session.dispose();
      return { tokens, text, stateBytes, report };
    },
    { url, provider, prompt, maxTokens },
  );
}

test('a Chromium without its libraries says which packages to install', () => {
  const error = new Error(
    'browserType.launch: Target closed\n/tmp/chromium: error while loading shared libraries: ' +
      'libnss3.so: cannot open shared object file: No such file or directory',
  );
  assert.equal(
    whyNoBrowser(error),
    'Chromium needs libnss3.so: apt-get install libnss3 libnspr4 libexpat1',
  );
  assert.match(whyNoBrowser(new Error('out of memory')), /does not start: out of memory/);
});

// A suite, so that its hooks do not become those of every file that shares the process.
describe('in headless Chromium', () => {
  before(async () => {
    const code = await bundleScript(script, Object.keys(imports));
    server = await startServer(
      (path) => (path === '/fettle.js' ? code : undefined),
      // As single-page apps do: the front page for whatever is not there.
      (path) => (path === '/' || path.startsWith('/app/') ? html : undefined),
      (path) => {
        const [, name = '', file = ''] = path.split('/');
        const packed = bundles[name.replace(/\.fettle$/, '')];
        if (packed !== undefined && name.endsWith('.fettle')) return packTar(packed);
        return bundles[name]?.get(file);
      },
      moduleRoute('onnxruntime-web'),
      moduleRoute('@huggingface/tokenizers'),
      moduleRoute('@huggingface/jinja'),
    );
    try {
      browser = await launchChromium();
      await compileNib();
      page = await browser.newPage();
      await page.goto(`${server.origin}/`);
      await page.waitForFunction(() => 'fettle' in globalThis);
    } catch (error) {
      if (!(error instanceof BrowserMissing)) throw error;
      missing = error.message;
    }
  });

  after(async () => {
    await browser?.close();
    await server.close();
  });

  test('the page is cross-origin isolated and has a WebGPU adapter', async (t) => {
    if (missing !== undefined) return t.skip(missing);
    const host = await page.evaluate(async () => ({
      isolated: globalThis.crossOriginIsolated,
      adapter: (await navigator.gpu?.requestAdapter()) !== null,
    }));
    assert.deepEqual(host, { isolated: true, adapter: true });
  });

  for (const provider of ['wasm', 'webgpu'] as const) {
    test(`a model gives the same in Chromium on ${provider} as in Node`, async (t) => {
      if (missing !== undefined) return t.skip(missing);
      // Small whole numbers: every engine computes them exactly.
      assert.deepEqual(await runLinear(provider, '/linear/'), [101, 202, 303, 110, 211, 312]);
      assert.deepEqual(await runLinear(provider, '/linear.fettle'), [101, 202, 303, 110, 211, 312]);
    });

    test(`a decoder keeps its cache in Chromium on ${provider}`, async (t) => {
      if (missing !== undefined) return t.skip(missing);
      const { tokens, stateBytes } = await generate('/decoder/', [1, 2], 8, provider);
      assert.deepEqual(tokens, [3, 6, 4, 0]);
      assert.equal(stateBytes, 5 * 4);
    });

    test(`the built-in model, compiled for ort-${provider}, gives the same in Chromium as in Node`, async (t) => {
      if (missing !== undefined) return t.skip(missing);
      const files = bundles[`nib-ort-${provider}`] ?? new Map();
      const prompt = 'The old man walked down to the';
      const there = await generate(`/nib-ort-${provider}/`, prompt, 2);
      // The canaries' expected outputs were computed in Node when the bundle was compiled; how far another
      // engine may be off is the bundle's own tolerance.
      assert.ok(there.report?.passed, JSON.stringify(there.report));
      const session = await openBundle(memorySource(files), { ort: { provider: 'wasm' } });
      const here = await session.generate(prompt, { maxTokens: 2, temperature: 0 }).result();
      await session.dispose();
      assert.deepEqual([there.text, there.tokens], [here.text, here.tokens]);
    });
  }

  test('f16 tensors keep their bits, although Chromium has Float16Array', async (t) => {
    if (missing !== undefined) return t.skip(missing);
    const got = await page.evaluate(async () => {
      const { openBundle, tensor } = (globalThis as unknown as { fettle: PageFettle }).fettle;
      const session = await openBundle('/half/');
      const { y } = await session.run({ x: tensor('f16', [2], Uint16Array.of(0x3c00, 0x8001)) });
      await session.dispose();
      const data = y?.data as Uint16Array;
      return [y?.dtype, data instanceof Uint16Array, ...data];
    });
    assert.deepEqual(got, ['f16', true, 0x3c00, 0x8001]);
  });

  test('onnxruntime-web runs on two threads where the page asks for them', async (t) => {
    if (missing !== undefined) return t.skip(missing);
    // A page of its own: the number of threads is fixed when the module starts.
    const other = await browser?.newPage();
    assert.ok(other);
    await other.goto(`${server.origin}/`);
    await other.waitForFunction(() => 'fettle' in globalThis);
    const report = await other.evaluate(async () => {
      const { openBundle } = (globalThis as unknown as { fettle: PageFettle }).fettle;
      const session = await openBundle('/nib-ort-wasm/', { ort: { threads: 2 } });
      return session.check().finally(() => session.dispose());
    });
    await other.close();
    assert.ok(report.passed, JSON.stringify(report));
  });

  test('two sessions run at once in Chromium, on one WebGPU device', async (t) => {
    if (missing !== undefined) return t.skip(missing);
    const [linear, decoder, again] = await Promise.all([
      runLinear('webgpu', '/linear/'),
      generate('/decoder/', [1, 2], 8, 'webgpu'),
      generate('/decoder/', [5], 1, 'webgpu'),
    ]);
    assert.deepEqual(linear, [101, 202, 303, 110, 211, 312]);
    assert.deepEqual(decoder.tokens, [3, 6, 4, 0]);
    assert.deepEqual(again.tokens, [5]);
  });

  test('a bundle that a server answers with its front page is refused in the browser too', async (t) => {
    if (missing !== undefined) return t.skip(missing);
    const error = await page.evaluate(async () => {
      const { openBundle } = (globalThis as unknown as { fettle: PageFettle }).fettle;
      return openBundle('/app/nowhere/').then(
        () => 'opened',
        (problem: { code: string; message: string }) => `${problem.code} ${problem.message}`,
      );
    });
    assert.match(error, /^BUNDLE_CORRUPT Cannot read "manifest.json": it is not JSON/);
  });
});
