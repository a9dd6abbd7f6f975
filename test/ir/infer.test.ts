/** Shape inference: symbolic sizes, contents of shape tensors, merging with what is declared. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Model, Value } from '../../compiler/ir/graph.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { parseModel } from '../../compiler/ir/parse.ts';
import { assertFails } from '../support/errors.ts';

/** Types of the outputs of a graph whose body is given, after inference. */
function typesOf(inputs: string, body: string, outputs = 'y', opset = 17): readonly string[] {
  const model = parseModel(`graph g (${inputs}) -> (${outputs}) { opset ${opset} ${body} }`);
  inferModel(model);
  return model.graph.outputs.map(typeText);
}

function typeText({ dtype, shape }: Value): string {
  return `${dtype ?? '?'}${shape === undefined ? '' : `[${shape.join(', ')}]`}`;
}

function check(inputs: string, body: string, wanted: string, opset = 17): void {
  assert.deepEqual(typesOf(inputs, body, 'y', opset), [wanted]);
}

test('broadcasting keeps the size that cannot be 1', () => {
  check('a: f32[n, 1], b: f32[5]', '%y = Add(%a, %b)', 'f32[n, 5]');
  check('a: f32[n], b: f32[1]', '%y = Add(%a, %b)', 'f32[n]');
  check('a: f32[n], b: f32[n]', '%y = Mul(%a, %b)', 'f32[n]');
  check('a: f32[n], b: f32[7]', '%y = Sub(%a, %b)', 'f32[7]');
  check('a: f32[n], b: f32', '%y = Sub(%a, %b)', 'f32');
});

test('broadcasting two symbols gives a size of its own', () => {
  check('a: f32[n, 2], b: f32[m, 2]', '%y = Add(%a, %b)', 'f32[?1, 2]');
});

test('a table cut to the sequence broadcasts to the sequence', () => {
  check(
    'x: f32[seq, 8]',
    `const %table: f32[512, 8] = random(1)
     const %zero: i64[1] = {0}
     %shape = Shape(%x) {end = 1}
     %rows = Slice(%table, %zero, %shape)
     %y = Add(%x, %rows)`,
    'f32[seq, 8]',
  );
});

test('a reshape follows sizes through Shape, Gather, Unsqueeze and Concat', () => {
  check(
    'x: f32[batch, seq, 64]',
    `const %i0: i64[] = {0}
     const %i1: i64[] = {1}
     const %axes: i64[1] = {0}
     const %tail: i64[2] = {4, -1}
     %shape = Shape(%x)
     %b = Gather(%shape, %i0)
     %s = Gather(%shape, %i1)
     %b1 = Unsqueeze(%b, %axes)
     %s1 = Unsqueeze(%s, %axes)
     %target = Concat(%b1, %s1, %tail) {axis = 0}
     %y = Reshape(%x, %target)`,
    'f32[batch, seq, 4, 16]',
  );
});

test('arithmetic on sizes reaches Slice, Range, Expand and ConstantOfShape', () => {
  const sizes = `
    const %two: i64[] = {2}
    const %one: i64[] = {1}
    const %zero: i64[] = {0}
    const %axes: i64[1] = {0}
    %shape = Shape(%x)
    %n = Gather(%shape, %zero)`;
  check('x: f32[n]', `${sizes} %m = Add(%n, %two) %y = Range(%zero, %m, %one)`, 'i64[n + 2]');
  check('x: f32[n]', `${sizes} %m = Mul(%n, %two) %y = Range(%zero, %m, %two)`, 'i64[n]');
  check(
    'x: f32[n]',
    `${sizes} %half = Div(%n, %two) %to = Unsqueeze(%half, %axes) %from = Unsqueeze(%zero, %axes)
     %y = Slice(%x, %from, %to)`,
    'f32[min(floordiv(n, 2), n)]',
  );
  check(
    'x: f32[n]',
    `${sizes} %d = Sub(%n, %one) %t = Unsqueeze(%d, %axes) %y = ConstantOfShape(%t) {value = i32[1] {7}}`,
    'i32[n - 1]',
  );
  check(
    'x: f32[n], v: f32[1, 3]',
    `${sizes} const %three: i64[1] = {3} %n1 = Unsqueeze(%n, %axes) %t = Concat(%n1, %three) {axis = 0}
     %y = Expand(%v, %t)`,
    'f32[n, 3]',
  );
});

test("PyTorch's expand, which asks for -1 through Where, keeps its sizes", () => {
  check(
    'x: f32[n, 1]',
    `const %minus: i64[2] = {-1, -1}
     const %seven: i64[1] = {7}
     const %zero: i64[] = {0}
     const %axes: i64[1] = {0}
     const %two: i64[1] = {2}
     %shape = Shape(%x)
     %n = Gather(%shape, %zero)
     %n1 = Unsqueeze(%n, %axes)
     %wanted = Concat(%n1, %seven) {axis = 0}
     %ones = ConstantOfShape(%two) {value = i64[1] {1}}
     %keeps = Equal(%wanted, %minus)
     %target = Where(%keeps, %ones, %wanted)
     %y = Expand(%x, %target)`,
    'f32[n, 7]',
  );
});

test('slices of symbolic axes', () => {
  const slice = (start: string, end: string, step = '1'): string =>
    `const %s: i64[1] = {${start}} const %e: i64[1] = {${end}} const %a: i64[1] = {0}
     const %by: i64[1] = {${step}} %y = Slice(%x, %s, %e, %a, %by)`;
  const past = '9223372036854775807';
  check('x: f32[n]', slice('0', past), 'f32[n]');
  check('x: f32[n]', slice('1', past), 'f32[n - 1]');
  check('x: f32[n]', slice('-1', past), 'f32[1]');
  check('x: f32[n]', slice('0', '-1'), 'f32[n - 1]');
  check('x: f32[n]', slice('0', '5'), 'f32[min(5, n)]');
  check('x: f32[n]', slice('-4', past), 'f32[n - max(0, n - 4)]');
  check('x: f32[2*n]', slice('0', past, '2'), 'f32[n]');
  check('x: f32[n]', slice('-1', '-9223372036854775808', '-1'), 'f32[n]');
  check('x: f32[10]', slice('-3', '100', '2'), 'f32[2]');
});

test('a reshape to -1 divides symbolic sizes', () => {
  const reshape = (target: string): string =>
    `const %t: i64[${target.split(',').length}] = {${target}} %y = Reshape(%x, %t)`;
  check('x: f32[batch, seq, 8, 16]', reshape('0, -1, 128'), 'f32[batch, seq, 128]');
  check('x: f32[batch, 6]', reshape('-1, 3'), 'f32[2*batch, 3]');
  check('x: f32[2, 3]', reshape('-1'), 'f32[6]');
});

test('what is not known is anonymous, the rank stays', () => {
  check('x: f32[6], t: i64[3]', '%y = Reshape(%x, %t)', 'f32[?1, ?2, ?3]');
  check('x: f32[n]', '%y = NonZero(%x)', 'i64[1, ?1]');
});

test('declared sizes sharpen what inference leaves open', () => {
  check('x: f32[6], t: i64[2]', '%y: f32[rows, 3] = Reshape(%x, %t)', 'f32[rows, 3]');
  check('x: f32[n]', '%y: f32[m] = Relu(%x)', 'f32[n]');
  check('x: f32[4]', '%y: f32[m] = Relu(%x)', 'f32[4]');
});

test('a declared size that is certainly wrong names the node and both shapes', () => {
  const model = parseModel('graph g (x: f32[4]) -> (y) { opset 17 %y: f32[5] = Relu(%x) @act }');
  assertFails(() => inferModel(model), 'MODEL_INVALID', /Relu "act": "y" .*\[5\].*\[4\]/);
  inferModel(model, { contradictions: 'warn' });
  assert.deepEqual(model.graph.outputs[0]?.shape, [4]);
  assert.equal(model.warnings.length, 1);
});

test('inputs that do not fit an op name the node', () => {
  const bad = 'graph g (x: f32[4], z: f32[3]) -> (y) { opset 17 %y: ? = Add(%x, %z) @sum }';
  assertFails(() => inferModel(parseModel(bad)), 'MODEL_INVALID', /Add "sum".*\[4\] with \[3\]/);
});

test('an op that is not known warns once and keeps what the file declares', () => {
  const model = parseModel(`graph g (x: f32[4]) -> (b) { opset 17 opset acme 1
    %a: f32[9] = acme::Twist(%x)
    %t: ? = acme::Twist(%a)
    %b: f32[2] = acme::Twist(%t)
  }`);
  inferModel(model);
  assert.deepEqual(model.graph.outputs.map(typeText), ['f32[2]']);
  assert.equal(model.warnings.length, 1);
  assert.match(model.warnings[0] ?? '', /acme\.Twist/);
});

test('inference from a node on leaves what comes before it', () => {
  const text = `graph g (x: f32[4]) -> (b) { opset 17 %a: ? = Relu(%x) %b: ? = Neg(%x) }`;
  const model = parseModel(text);
  const second = [...model.graph.nodes()][1];
  assert.ok(second !== undefined);
  inferModel(model, { from: second });
  const [a, b] = [...model.graph.nodes()].map((node) => typeText(node.output()));
  assert.deepEqual([a, b], ['?', 'f32[4]']);
});

const branches = (condition: string): string => `
  ${condition}
  %y = If(%c) {
    then_branch = graph t () -> (p) { const %axes: i64[1] = {0} %p = Squeeze(%x, %axes) },
    else_branch = graph e () -> (q) { %q = Identity(%x) }
  }`;

test('the branch of an If that is never taken does not matter', () => {
  check('x: f32[3, 2]', branches('const %c: bool[] = {false}'), 'f32[3, 2]');
  check('x: f32[1, 2]', branches('const %c: bool[] = {true}'), 'f32[2]');
});

test('a branch that cannot run at these sizes is left out, with a warning', () => {
  const model = parseModel(`graph g (x: f32[3, 2], c: bool[]) -> (y) { opset 17 ${branches('')} }`);
  inferModel(model);
  assert.deepEqual(model.graph.outputs.map(typeText), ['f32[3, 2]']);
  assert.match(model.warnings[0] ?? '', /one branch cannot run.*Squeeze/);
});

test('branches of different sizes give an anonymous size', () => {
  check(
    'x: f32[3, 2], c: bool[]',
    `%y = If(%c) {
      then_branch = graph t () -> (p) { const %r: i64[2] = {2, 1} %p = Tile(%x, %r) },
      else_branch = graph e () -> (q) { %q = Identity(%x) } }`,
    'f32[?1, 2]',
  );
});

function loop(body: string): string {
  return `const %n: i64[] = {5} const %go: bool[] = {true}
    %last, %all = Loop(%n, %go, %x) { body = graph body (i: i64[], ok: bool[], v: ?) -> (on, next, step) {
      %on: ? = Identity(%ok) ${body}
    } }`;
}

test('a value that a loop grows has an anonymous size, the others keep theirs', () => {
  assert.deepEqual(
    typesOf(
      'x: f32[2, 3]',
      loop('%next: ? = Concat(%v, %v) {axis = 0} %step: ? = Relu(%v)'),
      'last, all',
    ).map((type) => type.replaceAll(/\?\d+/g, '?')),
    ['f32[?, 3]', 'f32[5, ?, 3]'],
  );
  assert.deepEqual(
    typesOf('x: f32[2, 3]', loop('%next: ? = Neg(%v) %step: ? = Relu(%v)'), 'last, all'),
    ['f32[2, 3]', 'f32[5, 2, 3]'],
  );
});

test('inferring twice changes nothing', () => {
  const model = parseModel(`graph g (x: f32[n, 2], z: f32[m, 2], t: i64[3]) -> (y) { opset 17
    %s = Add(%x, %z) %u = Reshape(%s, %t) %y = Relu(%u) }`);
  const types = (): readonly string[] => everyType(model);
  inferModel(model);
  const first = types();
  inferModel(model);
  assert.deepEqual(types(), first);
});

function everyType(model: Model): readonly string[] {
  return [...model.graph.allNodes()].flatMap((node) =>
    node.outputs.map((value) => (value === undefined ? '' : typeText(value))),
  );
}
