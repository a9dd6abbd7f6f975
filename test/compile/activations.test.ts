/** What products multiply weights with: choices, refusals and what bundles say about it. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { arraySamples, partOf } from '../../compiler/calibrate/samples.ts';
import { compile } from '../../compiler/compile.ts';
import type { CompiledBundle } from '../../compiler/compile-options.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { activationText } from '../../compiler/report/activations.ts';
import { readNpy } from '../../models/npy.ts';
import { FettleError } from '../../runtime/errors.ts';
import { engines } from '../support/calibration.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

async function compiled(
  reference: string,
  target: string,
  recipe: Readonly<Record<string, unknown>>,
  data?: string,
): Promise<CompiledBundle> {
  const source = await resolveModel(reference, { cacheFolder: '' });
  const { bundles } = await compile(source, {
    targets: [target],
    files: new MemoryFiles(),
    out: 'out',
    recipe: parseRecipe({ canaries: false, ...recipe }),
    ...(data === undefined
      ? {}
      : {
          calibration: {
            engines,
            samples: async (model) => {
              const array = readNpy(readFileSync(sharedPath('data', data)), data);
              const name = model.graph.inputs[0]?.name ?? '';
              return partOf(arraySamples(model, new Map([[name, array]]), data), 0, 16);
            },
          },
        }),
  });
  const [bundle] = bundles;
  assert(bundle !== undefined);
  return bundle;
}

const refused = (message: RegExp, fix: RegExp) => (error: unknown) =>
  error instanceof FettleError &&
  error.code === 'USAGE' &&
  message.test(error.message) &&
  fix.test(error.fix ?? '');

test('activations are chosen for all products or by name, in JSON and in one line', () => {
  const { activations } = parseRecipe({ activations: 'int8,head*=f32' });
  assert.deepEqual(activations, { '*': 'int8', 'head*': 'f32' });
  assert.deepEqual(parseRecipe({ activations: { a: 'int8' } }).activations, { a: 'int8' });
  assert.equal(parseRecipe({ activations: 'auto' }).activations, 'auto');
  for (const wrong of ['int4', 'a=int4', '=f32', '', {}, { a: 'auto' }, [], 8])
    assert.throws(
      () => parseRecipe({ activations: wrong }),
      refused(/^activations: wanted/, /int8/),
    );
});

test('what an engine cannot do is refused with what to do instead', async () => {
  const cases = [
    ['wasm', { weights: 'w4g32', activations: 'f32' }, /never by f32/, /f16|ort-wasm/],
    ['wasm', { weights: 'w4g32', activations: { 'a*': 'f32' } }, /never by f32/, /--skip/],
    ['wasm', { activations: 'int8' }, /where weights are in codes/, /--weights/],
    ['wasm-threads', { weights: 'f16', activations: 'int8' }, /in codes/, /--weights/],
    ['ort-wasm', { weights: 'w4g32', activations: 'int8' }, /w8, .* not by w4g32/, /w8/],
    ['ort-webgpu', { activations: 'int8' }, /no products of 8-bit/, /ort-wasm/],
  ] as const;
  for (const [target, recipe, message, fix] of cases)
    await assert.rejects(compiled('micro:gqa', target, recipe), refused(message, fix));
});

test('the own kernels round activations as they come wherever weights are in codes, and say so', async () => {
  const { activations } = await compiled('micro:gqa', 'wasm', { weights: 'w8g32' });
  assert(activations.int8 > 0, JSON.stringify(activations));
  assert.match(activationText(activations), /8 bits in \d+ of \d+ products, rounded as they come/);
  const plain = await compiled('micro:gqa', 'wasm', { weights: 'f16', activations: 'f32' });
  assert.equal(plain.activations.int8, 0);
  assert(plain.activations.f32 > 0);
});

test('onnxruntime keeps f32 unless it is asked for 8 bits', async () => {
  const { activations } = await compiled('micro:gqa', 'ort-wasm', { weights: 'w8g32' });
  assert.equal(activations.int8, 0);
  assert.match(activations.why, /faster with f32/);
  // gated pairs are products too; nothing has a range, so all are rounded as they come
  const bundle = await compiled('micro:gqa', 'ort-wasm', { activations: 'int8' });
  assert.equal(bundle.weights, 'w8');
  assert(bundle.activations.int8 >= 8, JSON.stringify(bundle.activations));
  assert.match(bundle.activations.how ?? '', /^0 in ranges/);
});

test(
  'with data convolutions get ranges, without they stay in f32 and the bundle says so',
  needsShared('models/digits-cnn'),
  async () => {
    const model = sharedPath('models/digits-cnn/model.onnx');
    const images = 'digits-calibration-images.npy';
    const all = await compiled(model, 'ort-wasm', { activations: 'int8' }, images);
    assert.deepEqual([all.activations.int8, all.activations.f32], [28, 0]);
    const free = await compiled(model, 'ort-wasm', { activations: 'int8' });
    assert.equal(free.activations.int8, 1);
    assert.match(free.warnings.join('\n'), /27 convolutions stay in f32: .*--calibrate/);
    // a third of the bytes: what stays is the rest of the graph
    assert(all.weightBytes < 0.4 * free.weightBytes, `${all.weightBytes} ${free.weightBytes}`);
    const some = await compiled(
      model,
      'ort-wasm',
      { activations: { '*': 'int8', '/f/f.3/*': 'f32', nothing: 'f32' } },
      images,
    );
    assert(
      some.activations.int8 < 28 && some.activations.f32 > 0,
      JSON.stringify(some.activations),
    );
  },
);
