/** The runtime stays small. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { kib, sizes } from './size.ts';

/** Limits in KiB, minified and brotli, with room: without engines, and for a language model. */
const LIMIT_KIB = 30;
const LANGUAGE_MODEL_KIB = 60_000 / 1024;

test(`the runtime is at most ${LIMIT_KIB} KiB without engines, and 60 KB for a language model`, async (t) => {
  const [base, languageModel] = await sizes();
  for (const { entry, minifiedBytes, brotliBytes } of [base, languageModel])
    t.diagnostic(`${entry}: ${kib(minifiedBytes)} minified, ${kib(brotliBytes)} with brotli`);
  assert.ok(base.brotliBytes > 1024, 'hardly anything was bundled');
  assert.ok(base.brotliBytes <= LIMIT_KIB * 1024, kib(base.brotliBytes));
  assert.ok(languageModel.brotliBytes > base.brotliBytes + 8192, 'the kernels were not counted');
  assert.ok(languageModel.brotliBytes <= LANGUAGE_MODEL_KIB * 1024, kib(languageModel.brotliBytes));
});
