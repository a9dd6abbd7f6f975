/**
 * A calibrated compilation that is interrupted goes on where it was: by Ctrl-C, and by a kill that nothing
 * can be done about. What the second run makes anew is counted, and its bundle is the same.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { rowsOf } from '../../compiler/cli/calibration-data.ts';
import { readNpy, writeNpy } from '../../models/npy.ts';
import { root } from '../package/sources.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const folder = mkdtempSync(join(tmpdir(), 'fettle-resume-'));
after(() => rmSync(folder, { recursive: true, force: true }));

interface Finished {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
}

describe('interrupted', needsShared('models/digits-vit'), () => {
  const samples = join(folder, 'samples.npy');
  const cacheOf = (name: string): string => join(folder, `cache-${name}`);
  const keptIn = (name: string): number =>
    existsSync(cacheOf(name)) ? readdirSync(cacheOf(name)).length : 0;

  /** Compiles in a process of its own, which is sent a signal once so many parts are kept. */
  async function compile(
    name: string,
    stop?: { readonly parts: number; readonly signal: NodeJS.Signals },
  ): Promise<Finished> {
    const model = sharedPath('models/digits-vit/model.onnx');
    const args = ['compile', model, '--target', 'wasm', '--weights', 'w3g32', '--no-canaries'];
    const data = ['--calibrate', samples, '--calibration-cache', cacheOf(name), '--json'];
    const out = join(folder, name);
    const bin = join(root, 'compiler/cli/fettle.mjs');
    const child = spawn(process.execPath, [bin, ...args, ...data, '--out', out]);
    let stdout = '';
    child.stdout.on('data', (text: Buffer) => (stdout += text.toString()));
    const watch = setInterval(() => {
      if (stop === undefined || keptIn(name) < stop.parts) return;
      clearInterval(watch);
      // once: the second Ctrl-C ends it at once
      child.kill(stop.signal);
    }, 10);
    return new Promise((resolve) => {
      child.on('close', (code, signal) => {
        clearInterval(watch);
        resolve({ code, signal, stdout });
      });
    });
  }

  const finished = ({ code, stdout }: Finished) => {
    assert.equal(code, 0, stdout);
    const { bundles, calibrationParts } = JSON.parse(stdout) as {
      readonly bundles: readonly { readonly sha256: string }[];
      readonly calibrationParts: { readonly found: number; readonly made: number };
    };
    return { sha256: bundles[0]?.sha256, ...calibrationParts };
  };

  it('by Ctrl-C or killed, it goes on', { timeout: 300_000 }, async (t) => {
    mkdirSync(folder, { recursive: true });
    const all = sharedPath('data/digits-calibration-images.npy');
    writeFileSync(samples, writeNpy(rowsOf(readNpy(readFileSync(all), all), 0, 40)));
    const whole = finished(await compile('whole'));
    assert.equal(whole.found, 0);
    assert(whole.made >= 10, `${whole.made}`);
    for (const signal of ['SIGINT', 'SIGKILL'] as const) {
      const stopped = await compile(signal, { parts: Math.ceil(whole.made / 2), signal });
      if (signal === 'SIGKILL') assert.equal(stopped.signal, signal);
      else assert.match(stopped.stdout, /"code":"INTERRUPTED"/);
      assert(!existsSync(join(folder, signal)), 'there is a bundle');
      const kept = keptIn(signal);
      assert(kept < whole.made, 'it was too late to interrupt');
      const resumed = finished(await compile(signal));
      t.diagnostic(`${signal}: ${resumed.found} parts found, ${resumed.made} made`);
      assert.equal(resumed.sha256, whole.sha256);
      assert.equal(resumed.found + resumed.made, whole.made);
      // the last part may have been half-written
      assert(resumed.found >= kept - 1 && resumed.found > 0, `${resumed.found} of ${kept}`);
    }
  });
});
