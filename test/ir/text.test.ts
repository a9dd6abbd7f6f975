/** The text form: what is printed reads back as the same model, and prints the same. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readFileSync } from 'node:fs';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { parseModel } from '../../compiler/ir/parse.ts';
import { printModel, printNode } from '../../compiler/ir/print.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { readNumbers } from '../../compiler/ops/numbers.ts';
import { assertFails } from '../support/errors.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

/** As the printer writes it. */
const canonical = `graph nib (ids: i64[batch, seq], "odd name:0": f32[2], mask: ?) -> (y: f32[batch, seq, 8], "odd name:0": f32[2]) {
  opset 17
  opset com.microsoft 1
  const %table: f32[64, 8] = random(3)
  const %steps: i64[40] = ramp(0, 1)
  const %ones: f16[8, 8] = fill(1)
  const %mixed: f64[3] = {0.1, 1e-300, -0}
  const %half: f16[4] = {0.1, nan, inf, -inf}
  const %big: i64[2] = {9223372036854775807, -9223372036854775808}
  const %nibbles: i4[3] = {-8, 0, 7}
  const %flags: bool[2] = {true, false}
  const %words: string[2] = {"a, \\"b\\"", "}"}
  const %"/x 1": f32[0] = {}
  %x: f32[batch, seq, 8] = Gather(%table, %ids) {axis = 0} @embed
  %h: f32[batch, seq, 8], _, %s: f32[batch, seq, 8] = com.microsoft::SkipLayerNormalization(%x, %x, _, %"odd name:0") {epsilon = 0.00001} @"layer 1/norm"
  %u: ?[batch, \`a b*c\`, max(0, seq - 1)] = acme::Twist:v2(%h) {list = [1, -2], reals = [1.0, 0.5], texts = ["a"], none = ints[], nothing = floats[], t = i8[2] {1, -1}, blob = opaque("AAEC"), n = 3, f = nan}
  %c: bool[] = Constant() {value = bool[] {true}}
  %y: f32[batch, seq, 8] = If(%c) {then_branch = graph yes () -> (p: f32[batch, seq, 8]) {
    const %two: f32[] = {2}
    %p: f32[batch, seq, 8] = Mul(%h, %two)
  }, else_branch = graph () -> (q: f32[batch, seq, 8]) {
    %q: f32[batch, seq, 8] = Neg(%s)
  }}
  acme::Log(%y)
}
`;

test('every construct prints as it was read', () => {
  assert.equal(printModel(parseModel(canonical)), canonical);
});

test('types that are left out are inferred, in subgraphs too', () => {
  const model = parseModel(`graph g (x: f32[n, 4], c: bool[]) -> (y) { // a comment
    opset 17
    const %w: f32[4, 8] = random(1)
    %m = MatMul(%x, %w)
    %y = If(%c) { then_branch = graph t () -> (p) { %p = Relu(%m) },
                  else_branch = graph e () -> (q) { %q = Tanh(%m) } }
  }`);
  verifyModel(model);
  assert.deepEqual(model.graph.outputs[0]?.shape, ['n', 8]);
  const inner = [...model.graph.allNodes()].map((node) => node.output().shape?.join());
  assert.deepEqual(inner, ['n,8', 'n,8', 'n,8', 'n,8']);
});

test('a formula gives the same numbers every time', () => {
  const text =
    'graph g (x: f32[1]) -> (y) { opset 17 const %w: f32[1, 40] = random(5) %y = Mul(%x, %w) }';
  const run = (): ArrayLike<number> => {
    const x = { dtype: 'f32' as const, shape: [1], data: Float32Array.of(1) };
    const result = evaluate(parseModel(text), { x }).get('y');
    assert.ok(result !== undefined);
    return readNumbers(result);
  };
  const numbers = Array.from(run());
  assert.deepEqual(numbers, Array.from(run()));
  assert.ok(numbers.every((value) => value >= -1 && value < 1));
  assert.ok(new Set(numbers).size > 35);
});

test('a large constant prints as a digest that tells contents apart', () => {
  const model = parseModel('graph g () -> (w) { opset 17 const %w: f32[1000] = random(9) }');
  const [value] = model.graph.constants;
  assert.ok(value !== undefined);
  const data = Float32Array.from({ length: 1000 }, (_, i) => Math.sin(i));
  const shown = (): string => {
    value.weight = Weight.of({ dtype: 'f32', shape: [1000], data });
    return /#[0-9a-f]{16}/.exec(printModel(model))?.[0] ?? '';
  };
  const before = shown();
  assert.notEqual(before, '');
  data[777] = 0;
  assert.notEqual(shown(), before);
  assertFails(() => parseModel(printModel(model)), 'MODEL_INVALID', /print the model in full/);
  const full = printModel(model, { everything: true });
  assert.equal(printModel(parseModel(full), { everything: true }), full);
});

test('one node prints alone', () => {
  const [node] = [...parseModel(canonical).graph.nodes()];
  assert.ok(node !== undefined);
  assert.equal(printNode(node), '%x: f32[batch, seq, 8] = Gather(%table, %ids) {axis = 0} @embed');
});

const mistakes: readonly (readonly [text: string, message: RegExp])[] = [
  ['graph g (x: f32[2]) -> (y) { opset 17 %y = Relu(%z) }', /line 1.*"z" is not defined/],
  ['graph g (x: f32[2]) -> (x) {\n opset 17\n %x = Relu(%x) }', /line 3.*"x" is defined twice/],
  ['graph g (x: f33[2]) -> (x) { opset 17 }', /"f33" is not a dtype/],
  ['graph g (x: f32[2]) -> (x) { }', /no "opset"/],
  ['graph g (x: f32[2,]) -> (x) { opset 17 }', /expected a size/],
  ['graph g () -> (w) { opset 17 const %w: i8[2] = {1} }', /1 elements for \[2\]/],
  ['graph g () -> (w) { opset 17 const %w: i64[1] = {1.5} }', /"1.5" is not an integer/],
  ['graph g () -> (w) { opset 17 const %w: f32[4] = magic(1) }', /no formula "magic"/],
  ['graph g () -> (w) { opset 17 const %w: f32[n] = fill(1) }', /a constant has no size "n"/],
  [
    'graph g (x: f32[2]) -> (y) { opset 17 %y = Elu(%x) {alpha = [1, 2.0]} }',
    /a list of ints has a float/,
  ],
  ['graph g (x: f32[2]) -> (y) { opset 17 %y = Relu(%x) ', /expected/],
  ['graph g (x: f32[2]) -> (x) { opset 17 } trailing', /expected the end/],
  ['', /expected "graph"/],
];

test('a mistake in the text names its line and what was expected', () => {
  for (const [text, message] of mistakes)
    assertFails(() => parseModel(text), 'MODEL_INVALID', message);
});

for (const name of ['squeezenet1_1', 'bilstm_ctc', 'vit'])
  test(`${name} survives print and parse`, needsShared('models', 'exports'), () => {
    const bytes = readFileSync(sharedPath('models', 'exports', name, 'model.onnx'));
    const text = printModel(decodeModel(bytes), { everything: true });
    assert.equal(printModel(parseModel(text), { everything: true }), text);
  });
