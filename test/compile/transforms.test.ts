/**
 * Every transform that a recipe can ask for, through compile(): before rounding the logits stay as they
 * are, and after it the bundle has what was asked for.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { windowSamples } from '../../compiler/calibrate/samples.ts';
import { compile } from '../../compiler/compile.ts';
import type { CompileResult } from '../../compiler/compile-options.ts';
import { logitsModel } from '../../compiler/evaluate/decoder.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { folderSource } from '../../compiler/run-bundle.ts';
import { transformSpellings } from '../../compiler/transforms.ts';
import { FettleError } from '../../runtime/errors.ts';
import { openBundle } from '../../runtime/node.ts';
import { createRandom } from '../../runtime/text/random.ts';
import { engines } from '../support/calibration.ts';

const MODEL = 'micro:gqa';

/** Compiles with random ids for calibration data, unless there is to be none. */
async function compiled(
  recipe: Readonly<Record<string, unknown>>,
  { reference = MODEL, data = true } = {},
): Promise<{ readonly result: CompileResult; readonly logits: () => Promise<Float32Array> }> {
  const files = new MemoryFiles();
  const source = await resolveModel(reference, { cacheFolder: 'unused' });
  const random = createRandom(1);
  const result = await compile(source, {
    targets: ['wasm'],
    files,
    out: 'out',
    recipe: parseRecipe({ canaries: false, ...recipe }),
    ...(data
      ? {
          calibration: {
            engines,
            samples: async (model, decoder) => {
              const most = decoder?.vocabulary ?? 32;
              const windows = Array.from({ length: 6 }, () =>
                Array.from({ length: 16 }, () => Math.floor(random() * most)),
              );
              return windowSamples(model, decoder, windows, 'random ids');
            },
          },
        }
      : {}),
  });
  const logits = async (): Promise<Float32Array> => {
    const session = await openBundle(folderSource(files, 'out'));
    try {
      return (await logitsModel(session).logits([1, 5, 9, 2, 7, 7, 3, 4])).slice();
    } finally {
      await session.dispose();
    }
  };
  return { result, logits };
}

function difference(wanted: Float32Array, got: Float32Array): number {
  let [most, range] = [0, 0];
  wanted.forEach((value, i) => {
    most = Math.max(most, Math.abs(value - (got[i] ?? NaN)));
    range = Math.max(range, Math.abs(value));
  });
  return most / range;
}

const original = await (await compiled({ weights: 'f32' }, { data: false })).logits();

/** Passes that a transform has to have changed the model by. */
const changedBy: Readonly<Record<string, string>> = {
  'equalize-layers': 'equalize-layers',
  'rotate-spine': 'rotate-spine',
  'rotate-values': 'rotate-values',
  'scale-channels': 'scale-channels',
};

for (const transform of [...transformSpellings, transformSpellings.join()])
  test(`before rounding ${transform} leaves the logits as they are`, async () => {
    const list = [...new Map(transform.split(',').map((one) => [one.split(':')[0], one])).values()];
    const { result, logits } = await compiled({ weights: 'f32', transforms: list });
    const changed = result.passes.filter((report) => report.changed).map(({ pass }) => pass);
    for (const one of list) {
      const pass = changedBy[one.split(':')[0] ?? ''];
      // its activations are not in the range that logarithms are for
      if (pass !== undefined && one !== 'scale-channels:logarithmic')
        assert(changed.includes(pass), `${one}: ${changed.join()}`);
    }
    const found = difference(original, await logits());
    // weights are multiplied and rounded to f32 once more
    assert(found < 1e-4, `${found}`);
  });

test('biases make up for rounding, in one format and in formats of their own', async () => {
  for (const weights of ['w2g32a', 'auto:6']) {
    const reference = 'micro:gqa';
    const recipe = { weights, rounding: 'nearest' };
    const plain = await compiled(recipe, { reference });
    const { result } = await compiled({ ...recipe, transforms: 'correct-bias' }, { reference });
    const report = result.passes.find(({ pass }) => pass === 'correct-bias');
    assert(report?.changed === true && (report.rewrites['shift'] ?? 0) > 0, weights);
    assert.notEqual(result.bundles[0]?.sha256, plain.result.bundles[0]?.sha256);
    if (weights === 'auto:6') assert((result.bundles[0]?.averageBits ?? 9) <= 6);
  }
});

test('transforms are made before codes are, by every way of rounding', async () => {
  for (const rounding of ['nearest', 'gptq', 'rsq']) {
    const transforms = 'rotate-spine:untie,rotate-values,scale-channels';
    const recipe = { weights: 'w8g32', rounding, transforms };
    const { result, logits } = await compiled(recipe);
    const order = result.passes.map(({ pass }) => pass);
    assert(order.indexOf('rotate-spine') < order.indexOf('scale-channels'), order.join());
    assert(order.indexOf('scale-channels') < order.indexOf('quantize-weights'), order.join());
    // 8 bits of weights and of activations
    assert(difference(original, await logits()) < 0.05, rounding);
  }
});

test('what data decides is refused without data', async () => {
  for (const transforms of ['scale-channels', 'correct-bias'])
    await assert.rejects(
      compiled({ weights: 'w4g32', transforms }, { data: false }),
      (error: unknown) =>
        error instanceof FettleError &&
        error.code === 'USAGE' &&
        error.message.includes(transforms) &&
        /--calibrate/.test(error.fix ?? ''),
    );
});
