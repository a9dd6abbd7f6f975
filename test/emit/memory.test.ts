import assert from 'node:assert/strict';
import { test } from 'node:test';
import { estimateMemory, stateBytes } from '../../compiler/emit/memory.ts';
import { int, ints } from '../../compiler/ir/attribute.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import { ModelBuilder } from '../support/model-builder.ts';

const folding = { foldsConstants: true, foldsDequantize: true };
const dense = { foldsConstants: false, foldsDequantize: false };

test('the arena is the largest sum of activations alive at one node', () => {
  const b = new ModelBuilder();
  const x = b.input('x', [1, 100]);
  const w = b.floats('w', [100, 400], new Float32Array(40_000));
  const wide = b.op('MatMul', [x, w]); // 1600 B beside x, 400 B
  const positive = b.op('Relu', [wide]); // 1600 B beside wide; x is free
  const narrow = b.op('MatMul', [positive, b.floats('v', [400, 10], new Float32Array(4000))]);
  b.output('y', narrow);
  const { memory, assumed } = estimateMemory(b.model, dense);
  assert.deepEqual(memory, { weights: 176_000, arena: 3200, state: 0, tokens: 0, exact: false });
  assert.equal(assumed.size, 0);
});

test('a view shares the storage of what it shows, and keeps it alive', () => {
  const b = new ModelBuilder();
  const x = b.input('x', [10]);
  const first = b.op('Relu', [x]);
  const view = b.op('Reshape', [first, b.integers('s', [2, 5])]);
  const second = b.op('Neg', [x]);
  b.output('y', b.op('Reshape', [second, b.integers('t', [2, 5])]));
  b.output('z', b.op('Add', [view, view]));
  // x, first (seen through view), second; then first, second and z
  assert.equal(estimateMemory(b.model, dense).memory.arena, 3 * 40);
});

test('weights that an engine folds count as it holds them', () => {
  const b = new ModelBuilder(21);
  const x = b.input('x', [1, 64]);
  const codes = b.constant('codes', { dtype: 'u4', shape: [64, 32], data: new Uint8Array(1024) });
  const scales = b.floats('scales', [2, 32], new Float32Array(64));
  const zero = b.constant('zero', { dtype: 'u4', shape: [2, 32], data: new Uint8Array(32) });
  const attributes = { axis: int(0), block_size: int(32) };
  const weight = b.op('DequantizeLinear', [codes, scales, zero], attributes);
  const half = b.constant('half', { dtype: 'f16', shape: [32, 8], data: new Uint16Array(256) });
  const cast = b.op('Cast', [half], { to: int(1) });
  b.output('y', b.op('MatMul', [b.op('MatMul', [x, weight]), cast]));
  const weights = (options: object): number =>
    estimateMemory(b.model, { ...folding, ...options }).memory.weights;
  assert.equal(weights({}), 64 * 32 * 4 + 32 * 8 * 4);
  assert.equal(weights({ foldsDequantize: false }), 1024 + 256 + 32 + 32 * 8 * 4);
  assert.equal(weights({ foldsConstants: false }), 1024 + 256 + 32 + 512);
});

test('open sizes are assumed and named; those of the batch are 1', () => {
  const b = new ModelBuilder();
  const x = b.input('x', ['batch', 3, 'height', 'width']);
  const ids = b.input('ids', ['batch', 'sequence'], 'i64');
  b.output('y', b.op('Relu', [x]));
  b.output('z', b.op('Neg', [ids]));
  const { memory, assumed } = estimateMemory(b.model, dense);
  assert.deepEqual(
    [...assumed],
    [
      ['height', 224],
      ['width', 224],
      ['sequence', 128],
    ],
  );
  // Relu: two images, and the ids that wait for Neg
  assert.equal(memory.arena, 2 * 3 * 224 * 224 * 4 + 128 * 8);
});

test('state is the cache at the context length, and no part of the arena', () => {
  const b = new ModelBuilder();
  const ids = b.input('ids', ['batch', 'sequence'], 'i64');
  const past = b.input('past', ['batch', 2, 'past', 8]);
  const table = b.floats('table', [10, 16], new Float32Array(160));
  const rows = b.op('Gather', [table, ids]); // [batch, sequence, 16]
  const split = b.op('Reshape', [rows, b.integers('shape', [0, -1, 2, 8])]);
  const now = b.op('Transpose', [split], { perm: ints([0, 2, 1, 3]) });
  b.output('present', b.op('Concat', [past, now], { axis: int(2) }));
  b.output('logits', b.op('MatMul', [rows, b.floats('head', [16, 10], new Float32Array(160))]));
  const decoder: DecoderSpec = {
    ids: 'ids',
    logits: 'logits',
    vocabulary: 10,
    contextLength: 1000,
    state: [
      { input: 'past', output: 'present', dtype: 'f32', shape: ['batch', 2, 'past', 8], axis: 2 },
    ],
    endIds: [],
  };
  const { memory } = estimateMemory(b.model, { ...dense, decoder });
  assert.equal(memory.tokens, 1000);
  assert.equal(memory.state, 64_000);
  assert.equal(stateBytes(decoder, 1), 64);
  // Concat, one token at a full context: the new cache, the token's row and its transposed copy
  assert.equal(memory.arena, 64_000 + 64 + 64);
  const short = estimateMemory(b.model, { ...dense, decoder, contextLength: 100 });
  assert.equal(short.memory.state, 6400);
  // a prompt of 100 tokens: the same three, now equally large
  assert.equal(short.memory.arena, 3 * 6400);
});
