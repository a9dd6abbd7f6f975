/**
 * Bad calibration data as users meet it: through the command line, on a trained decoder and a trained
 * classifier, or on graphs made for the purpose. Every failure has a code, a place and a remedy, comes
 * before the long work, and leaves nothing behind.
 */
import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { fromNumber } from '../../compiler/onnx/wire.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { writeNpy } from '../../models/npy.ts';
import { tensor } from '../../runtime/tensor.ts';
import { fettleFails, fettleJson } from '../support/cli.ts';
import { npzOf } from '../support/npz.ts';
import { floats, modelBytes, node, value } from '../support/onnx.ts';
import { normalValues } from '../support/random-values.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const folder = mkdtempSync(join(tmpdir(), 'fettle-bad-data-'));
const results = join(folder, 'out');
mkdirSync(results);
after(() => rmSync(folder, { recursive: true, force: true }));

const file = (name: string, contents: string | Uint8Array): string => {
  const path = join(folder, name);
  writeFileSync(path, contents);
  return path;
};
const zeros = (...shape: number[]): ReturnType<typeof tensor> =>
  tensor('f32', shape, new Float32Array(shape.reduce((product, size) => product * size, 1)));

async function fails(
  model: string,
  data: readonly string[],
  code = 'USAGE',
  exit = 2,
): ReturnType<typeof fettleFails> {
  const cache = ['--calibration-cache', join(folder, 'cache'), '--no-canaries'];
  const args = ['compile', model, '--target', 'wasm', '--weights', 'w4g32', ...cache, ...data];
  const error = await fettleFails([...args, '--out', join(results, 'b')], exit, code);
  assert.deepEqual(readdirSync(results), []);
  return error;
}

describe('text', () => {
  it('that is empty, missing or too short is refused by name', async () => {
    const empty = file('empty.txt', ' \n');
    assert.match((await fails('builtin:nib', ['--calibrate', empty])).message, /holds nothing/);
    await fails('builtin:nib', ['--calibrate', join(folder, 'none.txt')], 'IO_FAILED', 1);
    const short = file('short.txt', 'A few words only.');
    const { message } = await fails('builtin:nib', ['--calibrate', short]);
    assert.match(message, /short\.txt.* has \d+ tokens; .* needs 64 at least/);
  });

  it('to measure on that is too short is refused before anything is calibrated', async () => {
    const text = file(
      'long.txt',
      Array.from({ length: 400 }, (_, i) => `${i * 7919} words`).join('\n'),
    );
    const short = file('short.txt', 'A few words only.');
    const { message } = await fails('builtin:nib', ['--calibrate', text, '--evaluate', short]);
    assert.match(message, /short\.txt" has \d+ tokens; measuring needs 64/);
    assert.match(
      (await fails('builtin:nib', ['--calibrate', text, '--evaluate', text])).message,
      /calibrated on .*100% of it/,
    );
  });

  it(
    'whose tokenizer belongs to another model is refused with a token that is none',
    needsShared('models/nib'),
    async () => {
      // a vocabulary of a few dozen with the tokenizer of 4,096
      const place = join(folder, 'other');
      mkdirSync(place);
      const { read } = await resolveModel('micro:gqa', { cacheFolder: '' });
      writeFileSync(join(place, 'model.onnx'), encodeModel(read()));
      for (const name of ['tokenizer.json', 'tokenizer_config.json'])
        copyFileSync(sharedPath('models/nib', name), join(place, name));
      const text = file('words.txt', Array.from({ length: 400 }, (_, i) => `word ${i}`).join('\n'));
      const { message, fix } = await fails(place, ['--calibrate', text]);
      assert.match(message, /gives token \d+; the model knows 0 to \d+\. The tokenizer is not/);
      assert.match(fix, /tokenizer\.json/);
    },
  );

  it('for a model without a tokenizer is refused', needsShared('models/digits-cnn'), async () => {
    const text = file('words.txt', 'word '.repeat(400));
    const model = sharedPath('models/digits-cnn/model.onnx');
    assert.match((await fails(model, ['--calibrate', text])).message, /no tokenizer/);
  });
});

describe('arrays', needsShared('models/digits-cnn'), () => {
  const model = sharedPath('models/digits-cnn/model.onnx');
  const long = tensor('i64', [9, 1, 28, 28], new BigInt64Array(9 * 784));
  const cases: readonly (readonly [what: string, bytes: Uint8Array, name: string, RegExp])[] = [
    ['another shape', writeNpy(zeros(9, 3, 28, 28)), 'a.npy', /takes \[batch, 1, 28, 28\]/],
    ['another rank', writeNpy(zeros(9, 784)), 'a.npy', /takes \[batch, 1, 28, 28\]/],
    ['another dtype', writeNpy(long), 'a.npy', /is i64; input "image" takes f32/],
    ['no axis of samples', writeNpy(zeros()), 'a.npy', /holds nothing/],
    ['no samples', writeNpy(zeros(0, 1, 28, 28)), 'a.npy', /holds 0 samples/],
    ['one sample', writeNpy(zeros(1, 1, 28, 28)), 'a.npy', /holds 1 sample; .* 3 at least/],
    [
      'other names than the inputs',
      npzOf({ a: zeros(9, 2), b: zeros(9, 2) }, false),
      'a.npz',
      /nothing for input "image"/,
    ],
  ];
  for (const [what, bytes, name, message] of cases)
    it(`of ${what} are refused`, async () => {
      assert.match((await fails(model, ['--calibrate', file(name, bytes)])).message, message);
    });

  it('that are damaged are refused as no arrays', async () => {
    const cut = file('cut.npy', writeNpy(zeros(9, 1, 28, 28)).slice(0, 200));
    const { message } = await fails(model, ['--calibrate', cut], 'MODEL_INVALID', 1);
    assert.match(message, /cut\.npy" as a \.npy file/);
    const empty = file('empty.npz', npzOf({}, false));
    await fails(model, ['--calibrate', empty], 'MODEL_INVALID', 1);
  });

  it('that are no token ids are refused by decoders', async () => {
    const images = file('images.npy', writeNpy(zeros(9, 1, 28, 28)));
    const { message } = await fails('builtin:nib', ['--calibrate', images]);
    assert.match(message, /takes token ids, integers \[windows, tokens\]/);
    const ids = tensor('i64', [9, 32], new BigInt64Array(9 * 32).fill(99_999n));
    const wrong = await fails('builtin:nib', ['--calibrate', file('ids.npy', writeNpy(ids))]);
    assert.match(wrong.message, /token 99999; the model knows 0 to 4095/);
  });

  it('with NaN are named as the reason, with the sample', async () => {
    const images = zeros(9, 1, 28, 28);
    (images.data as Float32Array)[784 * 2 + 5] = NaN;
    const data = file('nan.npy', writeNpy(images));
    const { message, at } = await fails(model, ['--calibrate', data], 'MODEL_INVALID', 1);
    assert.match(message, /^Sample 2 of ".*nan\.npy.*" holds NaN or infinity for input "image"/);
    assert.deepEqual({ ...at, data: '' }, { data: '', input: 'image', sample: 2 });
  });
});

describe('images', needsShared('models/digits-cnn'), () => {
  const model = sharedPath('models/digits-cnn/model.onnx');

  it('that do not decode are named', async () => {
    const { default: sharp } = await import('sharp');
    const place = join(folder, 'images');
    mkdirSync(place);
    const pixels = { width: 28, height: 28, channels: 3 as const, background: '#456' };
    const good = await sharp({ create: pixels }).png().toBuffer();
    for (const name of ['a.png', 'b.png', 'd.png']) writeFileSync(join(place, name), good);
    writeFileSync(join(place, 'c.png'), 'this is no image');
    const { message, fix } = await fails(model, ['--calibrate', place], 'MODEL_INVALID', 1);
    assert.match(message, /Cannot decode the image ".*c\.png"/);
    assert.match(fix, /PNG/);
    rmSync(join(place, 'c.png'));
    rmSync(join(place, 'd.png'));
    const few = await fails(model, ['--calibrate', place]);
    assert.match(few.message, /holds 2 samples; .* 3 at least/);
  });

  it('for a model that takes none are refused', async () => {
    const place = join(folder, 'images');
    for (const name of ['d.png', 'e.png']) copyFileSync(join(place, 'a.png'), join(place, name));
    const model32 = file('rows.onnx', rowsModel());
    const { message } = await fails(model32, ['--calibrate', place]);
    assert.match(message, /takes f32 \[n, 64\], which is no image/);
  });
});

/** x [n, 64] -> Linear -> something in between -> Linear. */
function rowsModel(weights: Float32Array = normalValues(64 * 64, 1), op = 'Relu'): Uint8Array {
  const dims = [64, 64].map(fromNumber);
  return modelBytes({
    node: [
      node('MatMul', ['x', 'w'], ['a'], { name: 'first' }),
      node(op, ['a'], ['b'], { name: 'middle' }),
      node('Mul', ['b', 'b'], ['c'], { name: 'square' }),
      node('MatMul', ['c', 'v'], ['y'], { name: 'second' }),
    ],
    input: [value('x', ['n', 64])],
    output: [value('y', ['n', 64])],
    initializer: [
      { ...floats('w', [...weights]), dims },
      { ...floats('v', [...normalValues(64 * 64, 2)]), dims },
    ],
  });
}

describe('values that are not finite', () => {
  const data = (): string =>
    file('rows.npy', writeNpy(tensor('f32', [8, 64], normalValues(8 * 64, 3))));

  it('are traced to the node that makes them, which no product reads', async () => {
    const model = file('log.onnx', rowsModel(undefined, 'Log'));
    const { message, at } = await fails(model, ['--calibrate', data()], 'MODEL_INVALID', 1);
    assert.match(message, /"b" of sample 0, which node "middle" computes/);
    assert.deepEqual(at, { node: 'middle', value: 'b', sample: 0 });
  });

  it('are traced to the weights that hold them', async () => {
    const weights = normalValues(64 * 64, 1);
    weights[77] = NaN;
    const model = file('weights.onnx', rowsModel(weights));
    const { message } = await fails(model, ['--calibrate', data()], 'MODEL_INVALID', 1);
    assert.match(message, /node "first" computes; its weights "w" hold NaN/);
  });
});

it('data that fits is named by hash in the bundle, both of it', async () => {
  const model = file('good.onnx', rowsModel());
  const rows = normalValues(12 * 64, 4);
  const all = file('all.npy', writeNpy(tensor('f32', [12, 64], rows)));
  const place = join(folder, 'good');
  const cache = ['--calibration-cache', join(folder, 'cache')];
  const compile = ['compile', model, '--target', 'wasm', '--weights', 'w4g32', ...cache];
  const { loss } = await fettleJson(...compile, '--calibrate', all, '--out', place);
  // two outputs of 64: a classifier, by its looks
  assert.equal(loss.metric, 'top-1 disagreement');
  const { calibration, quality } = await fettleJson('inspect', place);
  assert.match(calibration.dataSha256, /^[0-9a-f]{64}$/);
  assert.match(quality.dataSha256, /^[0-9a-f]{64}$/);
  assert.notEqual(calibration.dataSha256, quality.dataSha256);
});
