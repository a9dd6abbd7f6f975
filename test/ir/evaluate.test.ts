/** The reference evaluator: scopes, wanted values, release, and its errors. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { evaluate, evaluateNode } from '../../compiler/ir/evaluate.ts';
import { parseModel } from '../../compiler/ir/parse.ts';
import { readNumbers, writeNumbers } from '../../compiler/ops/numbers.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { assertFails } from '../support/errors.ts';

function floats(...values: readonly number[]): Tensor {
  return writeNumbers('f32', [values.length], Float32Array.from(values));
}

function numbersOf(tensor: Tensor | undefined): readonly number[] {
  assert.ok(tensor !== undefined);
  return Array.from(readNumbers(tensor));
}

const chain = parseModel(`graph g (x: f32[n]) -> (z) { opset 17
  %a = Neg(%x)
  %b = Abs(%a)
  %y = Relu(%x)
  %z = Add(%b, %a)
}`);

test('outputs come by name, from a map or an object', () => {
  const wanted = [0, 6];
  assert.deepEqual(numbersOf(evaluate(chain, { x: floats(2, -3) }).get('z')), wanted);
  assert.deepEqual(numbersOf(evaluate(chain, new Map([['x', floats(2, -3)]])).get('z')), wanted);
});

test('only what the wanted values need is computed', () => {
  const seen: string[] = [];
  const outputs = evaluate(
    chain,
    { x: floats(2, -3) },
    { outputs: ['b', 'a'], onValue: (value) => seen.push(value.name) },
  );
  assert.deepEqual([...outputs.keys()], ['b', 'a']);
  assert.deepEqual(numbersOf(outputs.get('a')), [-2, 3]);
  assert.deepEqual(seen, ['x', 'a', 'b']);
});

test('an interior value that does not exist suggests one that does', () => {
  assert.throws(
    () => evaluate(chain, { x: floats(1) }, { outputs: ['zz'] }),
    /RangeError|wanted "z"/,
  );
});

test('a missing input and one that does not fit are misuse', () => {
  assert.throws(() => evaluate(chain, {}), TypeError);
  const ints: Tensor = { dtype: 'i32', shape: [1], data: Int32Array.of(1) };
  assert.throws(() => evaluate(chain, { x: ints }), TypeError);
  const matrix: Tensor = { dtype: 'f32', shape: [1, 1], data: Float32Array.of(1) };
  assert.throws(() => evaluate(chain, { x: matrix }), RangeError);
});

test('NaN and infinities are kept', () => {
  const model = parseModel(`graph g (x: f32[4]) -> (y) { opset 17
    const %low: f32[] = {-1} const %high: f32[] = {1}
    %r = Relu(%x) %c = Clip(%r, %low, %high) %y = Max(%c, %x) }`);
  const y = numbersOf(evaluate(model, { x: floats(NaN, -Infinity, Infinity, 0.5) }).get('y'));
  assert.deepEqual(y, [NaN, 0, Infinity, 0.5]);
});

test('a loop carries values, collects others and reads from outside', () => {
  const model = parseModel(`graph g (x: f32[1], step: f32[1]) -> (last, all) { opset 17
    const %n: i64[] = {4} const %go: bool[] = {true}
    %last, %all = Loop(%n, %go, %x) { body = graph body (i: i64[], ok: bool[], v: f32[1]) -> (on, next, copy) {
      const %limit: f32[1] = {10}
      %next = Add(%v, %step)
      %less = Less(%next, %limit)
      const %axes: i64[1] = {0}
      %on = Squeeze(%less, %axes)
      %copy = Identity(%next)
    } } }`);
  const outputs = evaluate(model, { x: floats(1), step: floats(2) });
  assert.deepEqual(numbersOf(outputs.get('all')), [3, 5, 7, 9]);
  assert.deepEqual(outputs.get('all')?.shape, [4, 1]);
  // the condition ends it before the count does
  const short = evaluate(model, { x: floats(1), step: floats(5) });
  assert.deepEqual(numbersOf(short.get('all')), [6, 11]);
  assert.deepEqual(numbersOf(short.get('last')), [11]);
});

test('a loop of no iterations gives its input and an empty list', () => {
  const model = parseModel(`graph g (x: f32[2], n: i64[]) -> (last, all) { opset 17
    const %go: bool[] = {true}
    %last, %all = Loop(%n, %go, %x) { body = graph body (i: i64[], ok: bool[], v: f32[2]) -> (on, next, copy) {
      %on = Identity(%ok) %next = Neg(%v) %copy = Neg(%v) } } }`);
  const n: Tensor = { dtype: 'i64', shape: [], data: BigInt64Array.of(0n) };
  const outputs = evaluate(model, { x: floats(1, 2), n });
  assert.deepEqual(numbersOf(outputs.get('last')), [1, 2]);
  assert.deepEqual(outputs.get('all')?.shape, [0, 2]);
});

test('a scan runs backwards and along other axes', () => {
  const model = parseModel(`graph g (sum: f32[1], x: f32[1, 3]) -> (total, sums) { opset 17
    %total, %sums = Scan(%sum, %x) { num_scan_inputs = 1, scan_input_axes = [1],
      scan_input_directions = [1], scan_output_directions = [1],
      body = graph body (s: f32[1], v: f32[1]) -> (next, out) { %next = Add(%s, %v) %out = Identity(%next) } } }`);
  const x = writeNumbers('f32', [1, 3], Float32Array.of(1, 10, 100));
  const outputs = evaluate(model, { sum: floats(0), x });
  assert.deepEqual(numbersOf(outputs.get('total')), [111]);
  assert.deepEqual(numbersOf(outputs.get('sums')), [111, 110, 100]);
});

test('random ops repeat with their seed', () => {
  const model = (seed: string): Tensor | undefined =>
    evaluate(
      parseModel(
        `graph g () -> (y) { opset 17 %y = RandomNormal() {shape = [500], seed = ${seed}} }`,
      ),
      {},
    ).get('y');
  const first = numbersOf(model('1.0'));
  assert.deepEqual(first, numbersOf(model('1.0')));
  assert.notDeepEqual(first, numbersOf(model('2.0')));
  const mean = first.reduce((a, b) => a + b, 0) / first.length;
  const variance = first.reduce((a, b) => a + (b - mean) ** 2, 0) / first.length;
  // three standard errors of 500 samples
  assert.ok(Math.abs(mean) < 3 / Math.sqrt(500), `mean ${mean}`);
  assert.ok(Math.abs(variance - 1) < 3 * Math.sqrt(2 / 500), `variance ${variance}`);
});

test('one node can be evaluated alone', () => {
  const [neg] = [...chain.graph.nodes()];
  assert.ok(neg !== undefined);
  assert.deepEqual(numbersOf(evaluateNode(neg, chain, [floats(1, -2)])[0]), [-1, 2]);
});

test('an op without an evaluation is named', () => {
  const model = parseModel(
    'graph g (x: f32[1]) -> (y) { opset 17 %y: f32[1] = acme::Twist(%x) @t }',
  );
  assertFails(() => evaluate(model, { x: floats(1) }), 'OP_UNSUPPORTED', /acme\.Twist "t"/);
});

test('indices out of range are an error, not a wrong element', () => {
  const model = parseModel(
    'graph g (x: f32[3], i: i64[1]) -> (y) { opset 17 %y = Gather(%x, %i) @pick }',
  );
  const i: Tensor = { dtype: 'i64', shape: [1], data: BigInt64Array.of(3n) };
  assertFails(
    () => evaluate(model, { x: floats(1, 2, 3), i }),
    'MODEL_INVALID',
    /Gather "pick": index 3 is outside 0 to 2/,
  );
});

test('an abort stops between two nodes', () => {
  const controller = new AbortController();
  const stop = new Error('stop');
  assert.throws(
    () =>
      evaluate(
        chain,
        { x: floats(1) },
        {
          signal: controller.signal,
          onValue: (value) => value.name === 'a' && controller.abort(stop),
        },
      ),
    stop,
  );
});

test('a large product is quick: 256 x 1024 x 1024', () => {
  const model = parseModel(`graph g (x: f32[256, 1024]) -> (y) { opset 17
    const %w: f32[1024, 1024] = random(1) %y = MatMul(%x, %w) }`);
  const x = writeNumbers('f32', [256, 1024], new Float32Array(256 * 1024).fill(1));
  assert.equal(evaluate(model, { x }).get('y')?.shape.join(), '256,1024');
});
