/**
 * The same bundle in headless Chromium, on WebAssembly and on WebGPU (SwiftShader), gives what it gives in
 * Node. The page is cross-origin isolated and gets the runtime as one script; onnxruntime-web and the
 * tokenizer come through an import map, as they would in an app.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import type { Browser, Page } from 'playwright-core';
import { openBundle, tensor } from '../../runtime/node.ts';
import type { PageServer } from '../support/browser.ts';
import {
  BrowserMissing,
  bundleScript,
  launchChromium,
  moduleRoute,
  startServer,
} from '../support/browser.ts';
import { nibBundle } from '../support/nib-bundle.ts';
import { needsShared } from '../support/shared.ts';
import type { Files } from '../support/tiny-bundle.ts';
import { decoderBundle, linearBundle, memorySource, packTar } from '../support/tiny-bundle.ts';

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
  openBundle: typeof import('../../runtime/index.ts').openBundle;
  tensor: typeof tensor;
}

type Provider = 'wasm' | 'webgpu';

/** Bundles served under /<name>/ and, packed, under /<name>.fettle. */
const bundles: Record<string, Files> = { linear: linearBundle(), decoder: decoderBundle() };
if (needsShared('models/nib').skip === false) bundles['nib'] = nibBundle();

let server: PageServer;
let browser: Browser | undefined;
let page: Page;
let missing: string | undefined;

before(async () => {
  const code = await bundleScript(script, Object.keys(imports));
  server = await startServer(
    (path) => (path === '/' ? html : path === '/fettle.js' ? code : undefined),
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

/** Generates in the page; two sessions at once when `twice`. */
function generate(
  provider: Provider,
  url: string,
  prompt: string | number[],
  maxTokens: number,
): Promise<{ tokens: readonly number[]; text: string; logits: number[]; stateBytes: number }> {
  return page.evaluate(
    async ({ url, provider, prompt, maxTokens }) => {
      const { openBundle } = (globalThis as unknown as { fettle: PageFettle }).fettle;
      const session = await openBundle(url, { ort: { provider } });
      const { tokens, text } = await session.generate(prompt, { maxTokens }).result();
      const stateBytes = session.measure().memoryBytes.state;
      const logits = await session.logits([1, 2, 3]);
      await session.dispose();
      return { tokens, text, stateBytes, logits: Array.from(logits.data as Float32Array) };
    },
    { url, provider, prompt, maxTokens },
  );
}

/** Largest |difference| over the range of what was wanted. */
function distance(got: readonly number[], wanted: readonly number[]): number {
  assert.equal(got.length, wanted.length);
  let [low, high, most] = [Infinity, -Infinity, 0];
  wanted.forEach((value, i) => {
    [low, high] = [Math.min(low, value), Math.max(high, value)];
    most = Math.max(most, Math.abs(value - (got[i] ?? NaN)));
  });
  return most / (high - low);
}

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
    const { tokens, stateBytes } = await generate(provider, '/decoder/', [1, 2], 8);
    assert.deepEqual(tokens, [3, 6, 4, 0]);
    assert.equal(stateBytes, 5 * 4);
  });

  test(
    `the trained model writes the same text in Chromium on ${provider} as in Node`,
    needsShared('models/nib'),
    async (t) => {
      if (missing !== undefined) return t.skip(missing);
      const prompt = 'The old man walked down to the';
      const there = await generate(provider, '/nib/', prompt, 6);
      const session = await openBundle(memorySource(bundles['nib'] ?? new Map(), 2 ** 20));
      const here = await session.generate(prompt, { maxTokens: 6 }).result();
      const { data } = await session.logits([1, 2, 3]);
      await session.dispose();
      assert.equal(there.text, here.text);
      assert.deepEqual(there.tokens, here.tokens);
      // f32 on both sides, sums of up to 512 terms in another order: 1e-4 of the range is the project's bound.
      assert.ok(distance(there.logits, Array.from(data as Float32Array)) < 1e-4);
    },
  );
}

test('two sessions run at once in Chromium, on one WebGPU device', async (t) => {
  if (missing !== undefined) return t.skip(missing);
  const [linear, decoder, again] = await Promise.all([
    runLinear('webgpu', '/linear/'),
    generate('webgpu', '/decoder/', [1, 2], 8),
    generate('webgpu', '/decoder/', [5], 1),
  ]);
  assert.deepEqual(linear, [101, 202, 303, 110, 211, 312]);
  assert.deepEqual(decoder.tokens, [3, 6, 4, 0]);
  assert.deepEqual(again.tokens, [5]);
});

test('a bundle that a server answers with its front page is refused in the browser too', async (t) => {
  if (missing !== undefined) return t.skip(missing);
  const error = await page.evaluate(async () => {
    const { openBundle } = (globalThis as unknown as { fettle: PageFettle }).fettle;
    return openBundle('/nowhere/').then(
      () => 'opened',
      (problem: { code: string; message: string }) => `${problem.code} ${problem.message}`,
    );
  });
  assert.match(error, /^BUNDLE_CORRUPT Cannot find "manifest.json" in http/);
});
