import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Tensors } from '../../compiler/emit/canaries.ts';
import { canaryInputs, encodeCanaries } from '../../compiler/emit/canaries.ts';
import { jsonBytes } from '../../compiler/emit/json.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import { readCanaries } from '../../runtime/canaries.ts';
import { tensor } from '../../runtime/tensor.ts';
import { ModelBuilder } from '../support/model-builder.ts';

const decoder: DecoderSpec = {
  ids: 'ids',
  mask: 'mask',
  positions: 'positions',
  flags: [{ input: 'seqlens', value: 'last-position' }],
  logits: 'logits',
  vocabulary: 50,
  contextLength: 64,
  state: [{ input: 'past', output: 'present', dtype: 'f16', shape: ['b', 2, 'p', 4], axis: 2 }],
  endIds: [],
};

function decoderModel(): ModelBuilder {
  const b = new ModelBuilder();
  b.input('ids', ['b', 's'], 'i64');
  b.input('mask', ['b', 'p + s'], 'i64');
  b.input('positions', ['b', 's'], 'i64');
  b.input('seqlens', ['b'], 'i32');
  b.input('past', ['b', 2, 'p', 4], 'f16');
  return b;
}

function contents(call: Tensors | undefined, name: string): BigInt64Array {
  const data = call?.get(name)?.data;
  assert.ok(data instanceof BigInt64Array);
  return data;
}

test('a decoder gets a first call and a later one that agree with its contract', () => {
  const [first, later, ...more] = canaryInputs(decoderModel().model, decoder, 1);
  assert.equal(more.length, 0);
  const shapes = (call: typeof first): unknown =>
    Object.fromEntries([...(call ?? [])].map(([name, { shape }]) => [name, shape]));
  assert.deepEqual(shapes(first), {
    ids: [1, 2],
    mask: [1, 2],
    positions: [1, 2],
    seqlens: [1],
    past: [1, 2, 0, 4],
  });
  assert.deepEqual(shapes(later), {
    ids: [1, 1],
    mask: [1, 3],
    positions: [1, 1],
    seqlens: [1],
    past: [1, 2, 2, 4],
  });
  assert.deepEqual(later?.get('positions')?.data, BigInt64Array.of(2n));
  assert.deepEqual(later?.get('seqlens')?.data, Int32Array.of(2));
  assert.ok(contents(first, 'ids').every((id) => id >= 0n && id < 50n));
});

test('inputs depend on the seed and nothing else', () => {
  const of = (seed: number): unknown => canaryInputs(decoderModel().model, decoder, seed);
  assert.deepEqual(of(3), of(3));
  assert.notDeepEqual(of(3), of(4));
});

test('inputs of other models get small sizes, contents that fit, and masks of ones', () => {
  const b = new ModelBuilder();
  b.input('image', ['batch', 3, 'h', 'w']);
  const types = b.input('types', ['batch', 'n'], 'i64');
  b.input('attention_mask', ['batch', 'n'], 'i64');
  b.input('rate', [], 'i64');
  b.input('flag', [2], 'bool');
  b.op('Gather', [b.floats('table', [2, 4], new Float32Array(8)), types]);
  const [inputs] = canaryInputs(b.model, undefined, 1);
  assert.deepEqual(inputs?.get('image')?.shape, [1, 3, 64, 64]);
  assert.ok(contents(inputs, 'types').every((id) => id === 0n || id === 1n));
  assert.deepEqual(inputs?.get('attention_mask')?.data, new BigInt64Array(8).fill(1n));
  assert.deepEqual(inputs?.get('rate')?.data, BigInt64Array.of(1n));
  assert.deepEqual(inputs?.get('flag')?.data, Uint8Array.of(0, 1));
});

test('an input of unknown rank has no canary, and says so', () => {
  const b = new ModelBuilder();
  const input = b.input('x', [1]);
  input.shape = undefined;
  assert.throws(
    () => canaryInputs(b.model, undefined, 1),
    /No canary can be made for the input "x"/,
  );
});

test('the runtime reads back what was written', () => {
  const one = {
    inputs: new Map([
      ['x', tensor('f32', [3], Float32Array.of(1, 2, 3))],
      ['empty', tensor('i64', [0], new BigInt64Array(0))],
    ]),
    outputs: new Map([['y', tensor('f16', [1], Uint16Array.of(0x3c00))]]),
  };
  const file = encodeCanaries([one, one]);
  const cases = readCanaries(new Uint8Array(file), 'canaries.bin');
  assert.deepEqual(
    cases,
    [one, one].map(({ inputs, outputs }) => ({
      inputs: Object.fromEntries(inputs),
      outputs: Object.fromEntries(outputs),
    })),
  );
});

test('JSON has its keys in order at every level and leaves undefined out', () => {
  const text = new TextDecoder().decode(
    jsonBytes({ b: [{ d: 1, c: undefined, a: null }], a: 'x' }),
  );
  assert.equal(text, '{"a":"x","b":[{"a":null,"d":1}]}');
});
