import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ints } from '../../compiler/ir/attribute.ts';
import { lowerForWasm } from '../../compiler/lower/wasm.ts';
import { addressOf, linearOf, sizeAt } from '../../compiler/lower/plan.ts';
import { decodePlan, sizeOf } from '../../runtime/plan.ts';
import { assertFails } from '../support/errors.ts';
import { fusedDecoder } from '../support/fused-decoder.ts';
import { ModelBuilder } from '../support/model-builder.ts';

const one = { decoder: undefined, threads: 1 };

test('sizes that a patch can compute are told from those it cannot', () => {
  assert.deepEqual(linearOf(7), { c: 7, s: 0, p: 0, sp: 0 });
  assert.deepEqual(linearOf('S'), { c: 0, s: 1, p: 0, sp: 0 });
  assert.deepEqual(linearOf('3*P*S + 2*S - P + 5'), { c: 5, s: 2, p: -1, sp: 3 });
  assert.equal(linearOf('S*S'), undefined);
  assert.equal(linearOf('height'), undefined);
  assert.equal(linearOf('floordiv(S, 2)'), undefined);
  assert.equal(sizeAt('4*P + S', 3, 5), 23);
  assert.equal(addressOf({ name: 'a', region: 'arena', bytes: 4, segment: 'body' }).offset, 0);
});

test('every missing op is named at once', () => {
  const b = new ModelBuilder();
  const x = b.input('x', [1, 4, 8]);
  const y = b.op('Compress', [x, b.input('kept', [4], 'bool')]);
  const z = b.op('Det', [b.op('MatMul', [x, b.op('Transpose', [x], { perm: ints([0, 2, 1]) })])]);
  b.output('y', y).output('z', z);
  const error = assertFails(
    () => lowerForWasm(b.model, one),
    'OP_UNSUPPORTED',
    /Compress.*Det|Det.*Compress/,
  );
  assert.match(error.fix ?? '', /wasm,ort-wasm/);
});

test('open heights and widths are refused with what to do', () => {
  const b = new ModelBuilder();
  const x = b.input('image', ['batch', 3, 'height', 'width']);
  b.output('y', b.op('Relu', [x]));
  const error = assertFails(() => lowerForWasm(b.model, one), 'SHAPE_UNKNOWN', /"height", "width"/);
  assert.match(error.fix ?? '', /--shape/);
});

test('the plan is exact: regions follow each other, nothing overlaps, and the file says the same', () => {
  const { model, decoder } = fusedDecoder({ format: 'w4g32' });
  const { bytes, layout, memory } = lowerForWasm(model, { decoder, threads: 2, chunk: 16 });
  const read = decodePlan(bytes, 'plan.bin');
  assert.deepEqual(read.layout, JSON.parse(JSON.stringify(layout)));
  const { weights, arena, state, memoryBytes } = layout;
  assert.equal(weights.address % 256, 0);
  assert.ok(layout.image + read.words.length <= weights.address);
  assert.ok(weights.address + weights.bytes <= arena.address);
  assert.ok(arena.address + arena.bytes <= state.address);
  assert.equal(state.address + state.bytes, memoryBytes);
  const { stack = 0 } = memory;
  assert.equal(memory.weights + memory.arena + memory.state + stack, memoryBytes);
  assert.equal(memory.exact, true);
  // 2 layers of keys and values, 2 heads of 16, 48 tokens, f32
  assert.equal(memory.state, 2 * 2 * 2 * 16 * 48 * 4);
  assert.ok(arena.bytes >= layout.arenaLowerBound && arena.bytes <= 1.1 * layout.arenaLowerBound);
  const [ids] = layout.inputs;
  assert.ok(ids !== undefined);
  assert.equal(sizeOf(ids.elements, 9, 30), 9);
});

test('the same model gives the same bytes', () => {
  const make = (): Uint8Array => {
    const { model, decoder } = fusedDecoder({ format: 'w4g32', packed: true });
    return lowerForWasm(model, { decoder, threads: 1 }).bytes;
  };
  assert.deepEqual(make(), make());
});

test('a longer prompt needs no more memory, a longer context only state', () => {
  const { model, decoder } = fusedDecoder({ context: 512 });
  const arena = (chunk: number, contextLength: number): number =>
    lowerForWasm(model, { decoder: { ...decoder, contextLength }, threads: 1, chunk }).memory.arena;
  assert.equal(arena(16, 64), arena(16, 512));
  assert.ok(arena(16, 512) < arena(128, 512));
});

test('a tied head is stored once', () => {
  const bytes = (tied: boolean): number => {
    const { model, decoder } = fusedDecoder({ format: 'w4g32', tied });
    return lowerForWasm(model, { decoder, threads: 1 }).memory.weights;
  };
  // codes and scales of 80 x 64, each aligned to 256 bytes
  assert.equal(bytes(false) - bytes(true), (80 * 64) / 2 + Math.ceil((80 * 2 * 2) / 256) * 256);
});

test('rows that only lead to the logits are computed for the rows that are asked for', () => {
  const { model, decoder } = fusedDecoder();
  const { layout } = lowerForWasm(model, { decoder, threads: 1 });
  const head = layout.steps.slice(layout.body.steps).map(({ kernel }) => kernel);
  // o_proj, norm, gate and up, down, norm, logits of the last layer
  assert.deepEqual(head, ['DENSE', 'NORM', 'DENSE', 'DENSE', 'NORM', 'DENSE']);
});
