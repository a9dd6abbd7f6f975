/** The runtime stays small. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { kib, sizeOf } from './size.ts';

/** KiB of JavaScript, minified and brotli; a limit with room, not the figure. */
const LIMIT_KIB = 30;

test(`the runtime without engines is at most ${LIMIT_KIB} KiB, minified and compressed`, async (t) => {
  const { minifiedBytes, brotliBytes } = await sizeOf();
  t.diagnostic(`${kib(minifiedBytes)} minified, ${kib(brotliBytes)} with brotli`);
  assert.ok(brotliBytes > 1024, 'hardly anything was bundled');
  assert.ok(brotliBytes <= LIMIT_KIB * 1024, kib(brotliBytes));
});
