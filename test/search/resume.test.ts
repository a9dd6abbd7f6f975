/** A choice of formats that is interrupted goes on where it was: nothing that took time is done twice. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { windowSamples } from '../../compiler/calibrate/samples.ts';
import { compile } from '../../compiler/compile.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { createRandom } from '../../runtime/text/random.ts';
import { engines } from '../support/calibration.ts';
import { InterruptibleCache } from '../support/interruptible-cache.ts';

/** Compiles a small random decoder; resolves to the hash of its bundle. */
async function compiled(cache: InterruptibleCache, stages: string[] = []): Promise<string> {
  const random = createRandom(1);
  const { bundles } = await compile(await resolveModel('micro:gqa', { cacheFolder: 'unused' }), {
    targets: ['wasm'],
    files: new MemoryFiles(),
    out: 'out',
    recipe: parseRecipe({ canaries: false, weights: 'auto:5' }),
    progress: (stage) => void stages.push(stage),
    calibration: {
      engines,
      cache,
      samples: async (model, decoder) => {
        const windows = Array.from({ length: 10 }, () =>
          Array.from({ length: 16 }, () => Math.floor(random() * (decoder?.vocabulary ?? 32))),
        );
        return windowSamples(model, decoder, windows, 'random ids');
      },
    },
  });
  const [bundle] = bundles;
  assert.ok(bundle !== undefined);
  return bundle.sha256;
}

test('an interrupted search goes on from every point, and keeps each finding once', async (t) => {
  const all = new InterruptibleCache();
  const wanted = await compiled(all);
  const parts = all.written.length;
  assert.equal(new Set(all.written).size, parts);
  t.diagnostic(`${parts} parts`);
  const points = [1, ...[0.3, 0.6, 0.9].map((part) => Math.round(part * parts))];
  for (const point of points) {
    const cache = new InterruptibleCache(point);
    await assert.rejects(compiled(cache), { name: 'AbortError' });
    assert.deepEqual(cache.written, all.written.slice(0, point));
    assert.equal(await compiled(cache), wanted, `after ${point}`);
    // what the second run wrote is what was missing: ratings, sums, gains, codes
    assert.deepEqual(cache.written, all.written, `after ${point}`);
  }
});

test('statistics whose Hessians are kept are not collected again', async () => {
  const cache = new InterruptibleCache();
  const first = await compiled(cache);
  const stages: string[] = [];
  assert.equal(await compiled(cache, stages), first);
  assert.deepEqual(
    ['calibrate', 'noise gains'].filter((stage) => stages.includes(stage)),
    [],
  );
});
