/** The WASM engine in headless Chromium: the same tokens as in Node, on one thread and on two. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import type { Browser, Page } from 'playwright-core';
import { readFile } from '../../compiler/files.ts';
import type * as Runtime from '../../runtime/index.ts';
import type { PageServer } from '../support/browser.ts';
import { BrowserMissing, bundleScript, launchChromium, startServer } from '../support/browser.ts';
import { fusedDecoder } from '../support/fused-decoder.ts';
import type { PlanBundle } from '../support/plan-session.ts';
import { planBundle } from '../support/plan-session.ts';

const prompt = [3, 14, 15, 9, 26, 53, 58];
const options = { maxTokens: 24, temperature: 0, ignoreEnd: true };

/** Generates in the page. */
async function generateInPage(
  page: Page,
  threads: number,
): Promise<{ tokens: readonly number[]; kernels: string | undefined; warnings: string[] }> {
  return page.evaluate(
    async ({ prompt, options, threads }) => {
      const path = '/runtime.js';
      const { openBundle } = (await import(path)) as typeof Runtime;
      const warnings: string[] = [];
      const session = await openBundle('/bundle/', {
        // no function of our own: tsx names functions with a helper that the page does not have
        wasm: { threads, onWarning: warnings.push.bind(warnings) },
      });
      const { tokens } = await session.generate(prompt, options).result();
      const { kernels } = session.measure();
      await session.dispose();
      return { tokens, kernels, warnings };
    },
    { prompt, options, threads },
  );
}

describe('the WASM engine in Chromium', () => {
  let server: PageServer | undefined;
  let browser: Browser | undefined;
  let page: Page | undefined;
  let bundle: PlanBundle | undefined;
  let missing: string | undefined;

  before(async () => {
    const { model, decoder } = fusedDecoder({ format: 'w4g32' });
    const made = await planBundle(model, decoder, { threads: 2 });
    bundle = made;
    const script = await bundleScript("export * from './runtime/index.ts';", [
      'onnxruntime-web',
      'onnxruntime-web/*',
      '@huggingface/*',
    ]);
    server = await startServer((path) => {
      if (path === '/') return '<!doctype html><title>wasm</title>';
      if (path === '/runtime.js') return script;
      return path.startsWith('/bundle/') ? readFile(made.files, path.slice(1)) : undefined;
    });
    try {
      browser = await launchChromium();
      page = await browser.newPage();
      await page.goto(`${server.origin}/`);
    } catch (error) {
      if (!(error instanceof BrowserMissing)) throw error;
      missing = error.message;
    }
  });

  after(async () => {
    await browser?.close();
    await server?.close();
  });

  for (const threads of [1, 2])
    test(`on ${threads} threads it generates what it generates in Node`, async (context) => {
      if (page === undefined || bundle === undefined) return context.skip(missing);
      const session = await bundle.open({ wasm: { threads: 1, plainSimd: true } });
      const { tokens } = await session.generate(prompt, options).result();
      await session.dispose();
      const got = await generateInPage(page, threads);
      assert.deepEqual(got.tokens, tokens);
      assert.deepEqual(got.warnings, []);
      // Chromium has relaxed SIMD, and the server isolates its pages
      assert.equal(got.kernels, threads > 1 ? 'relaxed-threads' : 'relaxed');
    });
});
