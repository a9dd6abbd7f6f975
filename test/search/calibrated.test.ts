/** Formats chosen by data on a small decoder: rounding, the search, budgets that hold, bundles that carry their table. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { compile } from '../../compiler/compile.ts';
import type { CompileResult } from '../../compiler/compile-options.ts';
import { MemoryFiles, readFile } from '../../compiler/files.ts';
import { windowSamples } from '../../compiler/calibrate/samples.ts';
import { explainChoice } from '../../compiler/cli/explain-formats.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { bitMap } from '../../compiler/report/bit-map.ts';
import { allocate, unitBudget } from '../../compiler/search/allocate.ts';
import { decodeTable } from '../../compiler/search/table.ts';
import type { Manifest } from '../../runtime/manifest.ts';
import { FettleError } from '../../runtime/errors.ts';
import { createRandom } from '../../runtime/text/random.ts';
import { engines } from '../support/calibration.ts';

/** Compiles a small random decoder with calibration on random ids. */
async function compiled(
  recipe: Readonly<Record<string, unknown>>,
): Promise<{ readonly result: CompileResult; readonly files: MemoryFiles }> {
  const files = new MemoryFiles();
  const source = await resolveModel('micro:gqa', { cacheFolder: 'unused' });
  const random = createRandom(1);
  const result = await compile(source, {
    targets: ['wasm'],
    files,
    out: 'out',
    recipe: parseRecipe({ canaries: false, ...recipe }),
    calibration: {
      engines,
      samples: async (model, decoder) => {
        const windows = Array.from({ length: 10 }, () =>
          Array.from({ length: 16 }, () => Math.floor(random() * (decoder?.vocabulary ?? 32))),
        );
        return windowSamples(model, decoder, windows, 'random ids');
      },
    },
  });
  return { result, files };
}

function manifestOf(files: MemoryFiles): Manifest {
  return JSON.parse(new TextDecoder().decode(readFile(files, 'out/manifest.json'))) as Manifest;
}

test('average bits are kept, everything in the weight files counted', async () => {
  const { result, files } = await compiled({ weights: 'auto:6' });
  const [bundle] = result.bundles;
  assert.ok(bundle !== undefined && bundle.averageBits <= 6, `${bundle?.averageBits}`);
  // formats come in steps, and small matrices in large ones
  assert.ok(bundle.averageBits > 5, `${bundle.averageBits}`);
  assert.equal(bundle.weights, 'mixed');
  const manifest = manifestOf(files);
  assert.equal(manifest.calibration?.samples, 8);
  assert.equal(manifest.recipe['weights'], 'auto:6');
  // the table travels with the bundle and gives the same answer without the model
  const table = decodeTable(readFile(files, 'out/sensitivity.json'), 'sensitivity.json');
  assert.ok(table.whole !== undefined && table.whole.measured > 0 && table.whole.predicted > 0);
  const budget = unitBudget(table, { averageBits: 6, maxSize: undefined });
  const again = allocate(table, { bytes: budget });
  const chosen = Object.fromEntries(again?.rows.map(({ unit, option }) => [unit, option]) ?? []);
  assert.deepEqual(chosen, table.chosen);
  const formats = new Map(bitMap(manifest)?.cells.map(({ name, format }) => [name, format]));
  for (const [unit, option] of Object.entries(chosen))
    if (option !== 'f16' && option !== 'f32') assert.equal(formats.get(unit), option);
  const explained = explainChoice(table);
  assert.equal(explained.length, table.units.length);
  for (const { smaller, larger } of explained) {
    assert.ok(smaller === undefined || (smaller.bytes < 0 && smaller.error >= 0));
    assert.ok(larger === undefined || (larger.bytes > 0 && larger.error <= 0));
  }
});

test('a size is never exceeded, and one below the floor names the floor', async () => {
  const { result: free } = await compiled({ weights: 'w8g32', rounding: 'nearest' });
  const maxSize = Math.floor((free.bundles[0]?.bytes ?? 0) * 1.1);
  const { result } = await compiled({ maxSize });
  const [bundle] = result.bundles;
  assert.ok(bundle !== undefined && bundle.bytes <= maxSize);
  assert.equal(bundle.weights, 'mixed');
  await assert.rejects(compiled({ maxSize: 1000 }), (error: unknown) => {
    assert.ok(error instanceof FettleError);
    assert.equal(error.code, 'BUDGET_EXCEEDED');
    assert.match(error.message, /floor of the bundle is \d+ bytes/);
    return true;
  });
});

test('memory is never exceeded, and less than any choice needs names what it takes', async () => {
  const sum = ({ weights, arena, state, stack = 0 }: CompileResult['bundles'][number]['memory']) =>
    weights + arena + state + stack;
  const { result: large } = await compiled({ weights: 'f16' });
  const { result: small } = await compiled({ weights: 'w2g32' });
  const [most, least] = [large, small].map(({ bundles }) => bundles[0] && sum(bundles[0].memory));
  assert.ok(most !== undefined && least !== undefined && least < most);
  const maxMemory = Math.floor((most + least) / 2);
  const { result } = await compiled({ maxMemory });
  const [bundle] = result.bundles;
  assert.ok(bundle !== undefined && sum(bundle.memory) <= maxMemory);
  assert.equal(bundle.weights, 'mixed');
  await assert.rejects(
    compiled({ maxMemory: 1000 }),
    (error: unknown) =>
      error instanceof FettleError &&
      error.code === 'BUDGET_EXCEEDED' &&
      /floor of a session is \d+ bytes/.test(error.message),
  );
});

test('baselines and refinement keep the same budget', async () => {
  for (const recipe of [{ allocate: 'baq' }, { refine: 'evolve' }]) {
    const { result } = await compiled({ weights: 'auto:6', ...recipe });
    const [bundle] = result.bundles;
    assert.ok(bundle !== undefined && bundle.averageBits <= 6, `${bundle?.averageBits}`);
  }
});

test('one format for all is rounded by data when there is some', async () => {
  const { files } = await compiled({ weights: 'w4g32' });
  const fitted = manifestOf(files);
  assert.equal(fitted.recipe['weights'], 'w4g32');
  assert.ok(fitted.calibration !== undefined);
  assert.equal(
    fitted.files.some(({ path }) => path === 'sensitivity.json'),
    false,
  );
  const { files: plain } = await compiled({ weights: 'w4g32', rounding: 'nearest' });
  assert.notDeepEqual(readFile(files, 'out/weights-00.bin'), readFile(plain, 'out/weights-00.bin'));
});

test('choosing formats without data is refused with what to add', async () => {
  const source = await resolveModel('micro:gqa', { cacheFolder: 'unused' });
  for (const recipe of [{ weights: 'auto:4' }, { weights: 'w4g32', rounding: 'gptq' }])
    await assert.rejects(
      compile(source, {
        targets: ['wasm'],
        files: new MemoryFiles(),
        out: 'out',
        recipe: parseRecipe(recipe),
      }),
      (error: unknown) => error instanceof FettleError && /--calibrate/.test(error.fix ?? ''),
    );
});
