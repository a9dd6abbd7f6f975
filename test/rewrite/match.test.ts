/** Patterns and the matcher. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Value } from '../../compiler/ir/graph.ts';
import { match } from '../../compiler/rewrite/match.ts';
import {
  anything,
  constant,
  maybe,
  oneOf,
  op,
  scalar,
  value,
} from '../../compiler/rewrite/pattern.ts';
import { explainMismatch } from '../../compiler/rewrite/apply.ts';
import { refuse, rule } from '../../compiler/rewrite/rule.ts';
import { tensor } from '../../runtime/tensor.ts';
import type { Sketch } from '../support/sketch.ts';
import { nodeOf, sketch } from '../support/sketch.ts';

const bias = (one: Sketch, values: readonly number[], name = 'b'): Value =>
  one.rewriter.constant(name, tensor('f32', [values.length], Float32Array.from(values)));

function linear(biasFirst: boolean): Sketch {
  const one = sketch();
  const x = one.rewriter.graphInput('x', { dtype: 'f32', shape: [2, 3] });
  const w = one.rewriter.constant('w', tensor('f32', [3, 4], new Float32Array(12)));
  const product = one.rewriter.op('MatMul', [x, w]);
  const b = bias(one, [1, 2, 3, 4]);
  one.rewriter.graphOutput('y', one.rewriter.op('Add', biasFirst ? [b, product] : [product, b]));
  return one;
}

const matMulAdd = op('Add', [
  op('MatMul', [value('x'), constant('w')]).as('product'),
  constant('b'),
]);

test('captures are the values and nodes at their places', () => {
  const { model } = linear(false);
  const found = match(matMulAdd, nodeOf(model, 'Add'));
  assert.equal(found?.bindings.x.name, 'x');
  assert.equal(found?.bindings.w.name, 'w');
  assert.equal(found?.bindings.b.name, 'b');
  assert.equal(found?.bindings.product.op, 'MatMul');
  assert.deepEqual(
    found?.nodes.map(({ op: name }) => name),
    ['Add', 'MatMul'],
  );
});

test('inputs of a commutative op are tried both ways round', () => {
  assert.ok(match(matMulAdd, nodeOf(linear(true).model, 'Add')));
});

test('inputs of other ops are not exchanged', () => {
  const { model, rewriter } = sketch();
  const x = rewriter.graphInput('x', { dtype: 'f32', shape: [2] });
  const y = rewriter.op('Sub', [rewriter.op('Relu', [x]), x]);
  rewriter.graphOutput('y', y);
  assert.ok(match(op('Sub', [op('Relu', [anything]), anything]), nodeOf(model, 'Sub')));
  assert.equal(
    match(op('Sub', [anything, op('Relu', [anything])]), nodeOf(model, 'Sub')),
    undefined,
  );
});

test('an exchange deep inside is undone when a later part fails', () => {
  // Mul(Add(a, b), a): the capture "a" decides which way round Add matched
  const { model, rewriter } = sketch();
  const a = rewriter.graphInput('a', { dtype: 'f32', shape: [2] });
  const b = rewriter.graphInput('b', { dtype: 'f32', shape: [2] });
  rewriter.graphOutput('y', rewriter.op('Mul', [rewriter.op('Add', [b, a]), a]));
  const found = match(
    op('Mul', [op('Add', [value('p'), value('q')]), value('p')]),
    nodeOf(model, 'Mul'),
  );
  assert.equal(found?.bindings.p.name, 'a');
  assert.equal(found?.bindings.q.name, 'b');
});

test('an interior value used elsewhere is no match, unless the pattern allows it', () => {
  const { model, rewriter } = linear(false);
  const product = nodeOf(model, 'MatMul').output();
  rewriter.graphOutput('z', rewriter.op('Relu', [product]));
  assert.equal(match(matMulAdd, nodeOf(model, 'Add')), undefined);
  const open = op('Add', [
    op('MatMul', [value('x'), constant('w')], { uses: 'any' }),
    constant('b'),
  ]);
  const found = match(open, nodeOf(model, 'Add'));
  assert.deepEqual(
    found?.nodes.map(({ op: name }) => name),
    ['Add'],
  );
});

test('an interior value that is a graph output is no match', () => {
  const { model, rewriter } = linear(false);
  rewriter.graphOutput('z', nodeOf(model, 'MatMul').output());
  assert.equal(match(matMulAdd, nodeOf(model, 'Add')), undefined);
});

test('optional wrappers and alternatives match with and without', () => {
  const { model, rewriter } = sketch();
  const x = rewriter.graphInput('x', { dtype: 'f32', shape: [2] });
  const half = rewriter.constant('half', tensor('f32', [], Float32Array.of(0.5)));
  rewriter.graphOutput('y', rewriter.op('Mul', [rewriter.op('Sqrt', [x]), half]));
  const pattern = op('Mul', [maybe('Cast', op(['Sqrt', 'Exp'], [value('x')])), scalar(0.5)]);
  assert.ok(match(pattern, nodeOf(model, 'Mul')));
  const either = op('Mul', [oneOf(op('Exp', [value('e')]), op('Sqrt', [value('s')])), scalar(0.5)]);
  const found = match(either, nodeOf(model, 'Mul'));
  assert.equal(found?.bindings.e, undefined);
  assert.equal(found?.bindings.s?.name, 'x');
});

test('scalars compare with a relative tolerance', () => {
  const { model, rewriter } = sketch();
  const x = rewriter.graphInput('x', { dtype: 'f32', shape: [2] });
  const c = rewriter.constant('c', tensor('f32', [1], Float32Array.of(0.044715)));
  rewriter.graphOutput('y', rewriter.op('Mul', [x, c]));
  assert.ok(match(op('Mul', [value('x'), scalar(0.0447)]), nodeOf(model, 'Mul')));
  assert.equal(match(op('Mul', [value('x'), scalar(0.045)]), nodeOf(model, 'Mul')), undefined);
});

test('an absent optional input is written null, further inputs need moreInputs', () => {
  const { model, rewriter } = sketch();
  const x = rewriter.graphInput('x', { dtype: 'f32', shape: [2] });
  const low = rewriter.constant('low', tensor('f32', [], Float32Array.of(0)));
  rewriter.graphOutput('y', rewriter.op('Clip', [x, low]));
  const clip = nodeOf(model, 'Clip');
  assert.ok(match(op('Clip', [value('x'), constant('low'), null]), clip));
  assert.equal(match(op('Clip', [value('x')]), clip), undefined);
  assert.ok(match(op('Clip', [value('x')], { moreInputs: true }), clip));
});

test('attributes are compared or tested', () => {
  const { model, rewriter } = sketch();
  const x = rewriter.graphInput('x', { dtype: 'f32', shape: [2, 3] });
  rewriter.graphOutput('y', rewriter.op('Softmax', [x], { axis: { kind: 'int', value: -1n } }));
  const softmax = nodeOf(model, 'Softmax');
  assert.ok(match(op('Softmax', [anything], { attributes: { axis: -1 } }), softmax));
  assert.equal(match(op('Softmax', [anything], { attributes: { axis: 0 } }), softmax), undefined);
  assert.ok(
    match(
      op('Softmax', [anything], { attributes: { axis: (node) => node.int('axis', 0) < 0 } }),
      softmax,
    ),
  );
});

test('the trail names the furthest place and what was wanted there', () => {
  const one = sketch();
  const x = one.rewriter.graphInput('x', { dtype: 'f32', shape: [3, 3] });
  const product = one.rewriter.op('MatMul', [x, x]);
  one.rewriter.graphOutput('y', one.rewriter.op('Add', [product, bias(one, [1])]));
  const gemm = rule({
    name: 'gemm',
    pattern: matMulAdd,
    build: ({ x: at }) => refuse('never', at),
  });
  const why = explainMismatch(gemm, nodeOf(one.model, 'Add'));
  assert.equal(why?.at, 'x');
  assert.match(why?.why ?? '', /wanted a constant "w", saw a graph input/);
});
