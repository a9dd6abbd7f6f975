/** Node 20 cannot run relaxed SIMD rightly, so this folder runs again under Node 22 with both binaries. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { versions } from 'node:process';
import test from 'node:test';
import { probeKernels } from '../../runtime/wasm/probe.ts';
import { node22 } from '../support/node22.ts';

const folder = import.meta.dirname;
const newer = node22();
const files = readdirSync(folder).filter(
  (name) =>
    name.endsWith('.test.ts') &&
    !['relaxed.test.ts', 'build.test.ts', 'unoptimized.test.ts'].includes(name),
);

test(
  'every kernel test passes with the relaxed binary under Node 22',
  { skip: typeof newer === 'string' ? false : newer.message },
  () => {
    const script = files
      .map((name) => `await import(${JSON.stringify(join(folder, name))});`)
      .join('');
    const { status, stdout, stderr } = spawnSync(
      String(newer),
      ['--import', 'tsx', '--test-reporter', 'tap', '--input-type=module', '-e', script],
      { encoding: 'utf8', cwd: join(folder, '../..'), timeout: 120_000 },
    );
    assert.equal(status, 0, `${stdout.slice(-4000)}\n${stderr.slice(-2000)}`);
    assert.match(stdout, /^ok \d+ - relaxed: LINEAR W4/m, 'the relaxed binary ran');
    assert.match(stdout, /^# fail 0$/m);
  },
);

test('Node 20 refuses relaxed SIMD by running it, also behind its flag', async () => {
  if (!versions.node.startsWith('20.')) return;
  assert.equal((await probeKernels()).relaxed, false);
  const script =
    "const { probeKernels } = await import('./runtime/wasm/probe.ts');" +
    'process.stdout.write(JSON.stringify(await probeKernels()));';
  const { stdout } = spawnSync(
    process.execPath,
    ['--experimental-wasm-relaxed-simd', '--import', 'tsx', '--input-type=module', '-e', script],
    { encoding: 'utf8', cwd: join(folder, '../..') },
  );
  const features = JSON.parse(stdout) as { relaxed: boolean; reasons: string[] };
  assert.equal(features.relaxed, false);
  assert.match(features.reasons.join(' '), /wrong results/);
});
