/**
 * Threads run for a while before V8 optimizes them, and 11.3 (Node 20) loses a local at every wait until then
 * (claims.ts). So their tests run again without optimization.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { env, execPath } from 'node:process';
import test from 'node:test';

test('threads give the bits of one before V8 optimizes them', () => {
  const script = `await import(${JSON.stringify(join(import.meta.dirname, 'threads.test.ts'))});`;
  const flags = ['--liftoff-only', '--import', 'tsx', '--test-reporter', 'tap'];
  const { status, stdout, stderr } = spawnSync(
    execPath,
    [...flags, '--input-type=module', '-e', script],
    {
      encoding: 'utf8',
      cwd: join(import.meta.dirname, '../..'),
      // or it would report to this run in a format of its own
      env: { ...env, NODE_TEST_CONTEXT: undefined },
      timeout: 60_000,
    },
  );
  assert.equal(status, 0, `${stdout.slice(-4000)}\n${stderr.slice(-2000)}`);
  assert.match(stdout, /^ok \d+ - simd: 2 threads give the bits of one for 101 tokens/m);
  assert.match(stdout, /^# fail 0$/m);
});
