/** Samples: which windows, what is fed, and what is refused with a reason. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  arraySamples,
  chooseWindows,
  partOf,
  tensorSamples,
  windowSamples,
} from '../../compiler/calibrate/samples.ts';
import { tensor } from '../../runtime/tensor.ts';
import { frontModel } from '../support/calibration.ts';
import { ModelBuilder } from '../support/model-builder.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const text = Array.from({ length: 1000 }, (_, index) => index);

test('windows are seeded stretches that do not overlap', () => {
  const windows = chooseWindows(text, 'text', { count: 10, length: 32, seed: 4 });
  assert.equal(windows.length, 10);
  const starts = windows.map(([first = -1]) => first);
  assert.deepEqual(
    starts,
    [...new Set(starts)].sort((a, b) => a - b),
  );
  for (const window of windows) {
    assert.equal((window[0] ?? 1) % 32, 0);
    assert.equal(window.length, 32);
  }
  assert.deepEqual(chooseWindows(text, 'text', { count: 10, length: 32, seed: 4 }), windows);
  assert.notDeepEqual(chooseWindows(text, 'text', { count: 10, length: 32, seed: 5 }), windows);
  assert.equal(chooseWindows(text, 'text', { count: 99, length: 100 }).length, 10);
});

test('a text shorter than a window is refused', () => {
  assert.throws(() => chooseWindows(text, 'short.txt', { length: 2000 }), {
    code: 'USAGE',
    message: /"short.txt" has 1000 tokens.*2000/,
  });
});

test('a decoder is fed ids, an open mask and positions from 0', async () => {
  const { model, decoder } = await frontModel('micro:mask-positions');
  const samples = windowSamples(model, decoder, [text.slice(5, 21)], 'text');
  const feeds = samples.at(0);
  assert.deepEqual([...(feeds.get('input_ids')?.data ?? [])].map(Number), text.slice(5, 21));
  for (const [name, { shape, data }] of feeds) {
    assert.deepEqual(shape, [1, 16], name);
    if (/mask/.test(name)) assert.deepEqual([...data].map(Number), Array(16).fill(1));
    if (/position/.test(name)) assert.deepEqual([...data].map(Number), text.slice(0, 16));
  }
  assert(![...feeds.keys()].some((name) => name.startsWith('past')));
});

test(
  'an encoder is fed ids, an open mask and the first segment',
  needsShared('models/exports/bert_postnorm_gelu'),
  async () => {
    const { model, decoder } = await frontModel(
      sharedPath('models/exports/bert_postnorm_gelu/model.onnx'),
    );
    assert.equal(decoder, undefined);
    const ids = model.graph.inputs.find(({ name }) => /ids/.test(name));
    assert(ids !== undefined);
    const samples = windowSamples(model, decoder, [[1, 2, 3, 4]], 'text');
    assert.deepEqual([...(samples.at(0).get(ids.name)?.data ?? [])].map(Number), [1, 2, 3, 4]);
  },
);

test('ids beyond the vocabulary are those of another tokenizer', async () => {
  const { model, decoder } = await frontModel('micro:gqa');
  assert.throws(() => windowSamples(model, decoder, [[1, 2, 4000]], 'text'), {
    code: 'USAGE',
    message: /token 4000; the model knows 0 to 127/,
    fix: /tokenizer.json/,
  });
});

test('text for a model that takes none is refused', () => {
  const b = new ModelBuilder(17);
  b.output('y', b.op('Relu', [b.input('x', [1, 3])]));
  assert.throws(() => windowSamples(b.model, undefined, [[1]], 'text'), {
    code: 'USAGE',
    message: /takes no text/,
  });
});

test('arrays give one sample a row; bytes are pixels', () => {
  const b = new ModelBuilder(17);
  b.output('y', b.op('Relu', [b.input('x', ['batch', 2, 2])]));
  const data = Uint8Array.from({ length: 12 }, (_, index) => index * 20);
  const array = tensor('u8', [3, 2, 2], data);
  const samples = arraySamples(b.model, new Map([['x', array]]), 'x.npy');
  assert.equal(samples.count, 3);
  assert.deepEqual(samples.shapes.get('x'), [1, 2, 2]);
  const second = samples.at(1).get('x');
  assert(second !== undefined);
  assert.deepEqual(second.shape, [1, 2, 2]);
  assert.deepEqual(
    [...(second.data as Float32Array)],
    [80, 100, 120, 140].map((v) => Math.fround(v / 255)),
  );
  assert.throws(() => arraySamples(b.model, new Map(), 'x.npz'), /nothing for input "x"/);
  const flat = tensor('f32', [3, 4], new Float32Array(12));
  assert.throws(() => arraySamples(b.model, new Map([['x', flat]]), 'x.npy'), {
    code: 'USAGE',
    message: /\[3, 4\]; input "x" takes/,
  });
  const none = tensor('f32', [0, 2, 2], new Float32Array(0));
  assert.throws(() => arraySamples(b.model, new Map([['x', none]]), 'x.npy'), /holds no samples/);
});

test('samples of different shapes are refused', () => {
  const image = (width: number) => tensor('f32', [1, 1, 2, width], new Float32Array(2 * width));
  assert.throws(() => tensorSamples('x', [image(2), image(3)], 'images'), {
    code: 'USAGE',
    message: /differ in shape: \[1, 1, 2, 2\] and \[1, 1, 2, 3\]/,
  });
  assert.throws(() => tensorSamples('x', [], 'images'), /holds no samples/);
});

test('a part has its own hash, and what is fed decides the hash', async () => {
  const { model, decoder } = await frontModel('micro:gqa');
  const windows = [
    [1, 2, 3],
    [4, 5, 6],
    [7, 8, 9],
  ];
  const all = windowSamples(model, decoder, windows, 'a');
  const last = partOf(all, 2, 3);
  assert.equal(last.count, 1);
  assert.deepEqual(last.ids, [[7, 8, 9]]);
  assert.deepEqual([...(last.at(0).get('input_ids')?.data ?? [])].map(Number), [7, 8, 9]);
  assert.notEqual(last.sha256, all.sha256);
  assert.equal(windowSamples(model, decoder, windows, 'b').sha256, all.sha256);
});
