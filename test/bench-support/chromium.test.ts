/** `fettle bench --host chromium`, on a decoder small enough to check by hand. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { PageGlobal } from '../../compiler/cli/bench-chromium.ts';
import { startChromium } from '../../compiler/cli/bench-chromium.ts';
import { startServer } from '../../compiler/cli/bench-server.ts';
import { FettleError } from '../../runtime/errors.ts';
import { decoderBundle } from '../support/tiny-bundle.ts';

test('a page measures a bundle from disk, isolated and in a process of its own', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'fettle-bench-test-'));
  for (const [path, bytes] of decoderBundle()) writeFileSync(join(folder, path), bytes);
  try {
    const chromium = await startChromium({ served: { '/bundle/': folder } });
    try {
      assert.match(chromium.version, /^Chromium \d+/);
      const { page, peakBytes, close } = await chromium.open();
      const isolated = await page.evaluate(() => (globalThis as PageGlobal).fettleBench.isolated);
      assert.equal(isolated, true);
      const measured = await page.evaluate(() =>
        (globalThis as PageGlobal).fettleBench.measure(
          '/bundle/',
          { ort: { threads: 1 } },
          { promptTokens: 2, tokens: 3, repeat: 2 },
        ),
      );
      assert.equal(measured.engine, 'ort');
      const { cold, steady, callMs, loadMs } = measured.figures;
      assert.equal(steady.length, 2);
      for (const speed of [cold, ...steady]) assert.ok((speed?.decodeTokensPerSecond ?? 0) > 0);
      assert.deepEqual(callMs, []);
      assert.ok(loadMs > 0);
      // onnxruntime-web alone is several megabytes
      const peak = await peakBytes();
      assert.ok(process.platform !== 'linux' || (peak ?? 0) > 2 ** 24, `${peak}`);
      await close();
    } finally {
      await chromium.close();
    }
  } catch (error) {
    if (!(error instanceof FettleError) || error.code !== 'ENGINE_UNAVAILABLE') throw error;
    t.skip(error.message);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('the server hands out what lies in its folders, and nothing above them', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'fettle-bench-test-'));
  mkdirSync(join(folder, 'public'));
  writeFileSync(join(folder, 'public', 'a.json'), '{}');
  writeFileSync(join(folder, 'secret'), 'x');
  const server = await startServer({
    disk: { '/p/': join(folder, 'public') },
    text: { '/': 'hi' },
  });
  try {
    const get = (path: string): Promise<Response> => fetch(`${server.origin}${path}`);
    const front = await get('/');
    assert.equal(await front.text(), 'hi');
    assert.equal(front.headers.get('cross-origin-embedder-policy'), 'require-corp');
    assert.equal(await (await get('/p/a.json')).text(), '{}');
    for (const path of ['/p/..%2fsecret', '/p/none', '/secret', '/p/'])
      assert.equal((await get(path)).status, 404, path);
  } finally {
    await server.close();
    rmSync(folder, { recursive: true });
  }
});
