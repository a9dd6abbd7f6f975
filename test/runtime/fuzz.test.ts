/**
 * A thousand seeded damages to a bundle's files. With verification on, every outcome is a FettleError or
 * a load that gives exactly the original weights; never another error, a hang or wrong data.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { FettleError, openBundle } from '../../runtime/index.ts';
import { createRandom } from '../../runtime/text/random.ts';
import { fakeEngine } from '../support/fake-engine.ts';
import type { Files } from '../support/tiny-bundle.ts';
import { decoderBundle, memorySource, packTar } from '../support/tiny-bundle.ts';

const CASES = 1000;

/** Flips bits in, cuts, lengthens or replaces part of some bytes. */
function damage(bytes: Uint8Array<ArrayBuffer>, random: () => number): Uint8Array<ArrayBuffer> {
  const at = Math.floor(random() * bytes.length);
  const kind = Math.floor(random() * 4);
  if (kind === 0) return bytes.slice(0, at);
  const copy = new Uint8Array(bytes.length + (kind === 1 ? 1 + Math.floor(random() * 600) : 0));
  copy.set(bytes);
  if (kind === 2) copy[at] = (copy[at] ?? 0) ^ (1 << Math.floor(random() * 8));
  // JSON has many digits: another digit in its place is the damage a parser does not see.
  if (kind === 3) copy[at] = 0x30 + Math.floor(random() * 10);
  return copy;
}

async function outcome(
  from: Parameters<typeof openBundle>[0],
  seed: number,
): Promise<'loaded' | 'refused'> {
  const engine = fakeEngine();
  try {
    const session = await openBundle(from, { engine });
    await session.dispose();
  } catch (error) {
    if (!(error instanceof FettleError)) throw new Error(`seed ${seed}`, { cause: error });
    assert.ok(
      error.fix !== undefined && Object.keys(error.at).length > 0,
      `seed ${seed}: ${error.message}`,
    );
    return 'refused';
  }
  assert.deepEqual(engine.weights, original, `seed ${seed}`);
  return 'loaded';
}

const files = decoderBundle();
const original = new Uint8Array(
  Buffer.concat(
    [...files].filter(([path]) => path.startsWith('weights-')).map(([, bytes]) => bytes),
  ),
);

test(`${CASES} damaged bundles are refused or load exactly`, async () => {
  const seen = { loaded: 0, refused: 0 };
  for (let seed = 0; seed < CASES; seed++) {
    const random = createRandom(seed);
    if (seed % 4 === 0) {
      seen[await outcome(damage(packTar(files), random), seed)]++;
      continue;
    }
    const paths = [...files.keys()];
    // Half of the cases damage the manifest, where the checks are.
    const path =
      random() < 0.5 ? 'manifest.json' : (paths[Math.floor(random() * paths.length)] ?? '');
    const damaged: Files = new Map(files);
    damaged.set(path, damage(files.get(path) ?? new Uint8Array(1), random));
    seen[await outcome(memorySource(damaged, 4096), seed)]++;
  }
  // Both must happen, or the test shows nothing: damage to a name or a text is no damage to the load.
  assert.ok(seen.loaded > 20 && seen.refused > 500, JSON.stringify(seen));
});
