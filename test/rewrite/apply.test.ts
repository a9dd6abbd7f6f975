/** The worklist driver. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { applyRules } from '../../compiler/rewrite/apply.ts';
import { anything, op, value } from '../../compiler/rewrite/pattern.ts';
import { refuse, rule } from '../../compiler/rewrite/rule.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { opsOf, sketch } from '../support/sketch.ts';

const doubleNeg = rule({
  name: 'double-neg',
  pattern: op('Neg', [op('Neg', [value('x')])]),
  build: ({ x }) => x,
});

function chain(length: number): ReturnType<typeof sketch> {
  const one = sketch();
  let value: Value = one.rewriter.graphInput('x', { dtype: 'f32', shape: [2] });
  for (let i = 0; i < length; i++) value = one.rewriter.op('Neg', [value]);
  one.rewriter.graphOutput('y', one.rewriter.op('Relu', [value]));
  return one;
}

test('rules are applied until none fires', () => {
  const one = chain(9);
  assert.equal(applyRules(one.model, [doubleNeg], one.context), true);
  assert.deepEqual(opsOf(one.model), ['Neg', 'Relu']);
  assert.equal(one.counts['double-neg'], 4);
  assert.equal(applyRules(one.model, [doubleNeg], one.context), false);
});

test('a replaced graph output keeps its name', () => {
  const one = sketch();
  const x = one.rewriter.graphInput('x', { dtype: 'f32', shape: [2] });
  one.rewriter.graphOutput('y', one.rewriter.op('Sigmoid', [x]));
  const renamed = rule({
    name: 'swap',
    pattern: op('Sigmoid', [value('x')]),
    build: (bindings, rewriter) => rewriter.op('Tanh', [bindings.x]),
  });
  applyRules(one.model, [renamed], one.context);
  assert.equal(one.model.graph.outputs[0]?.name, 'y');
  assert.deepEqual(opsOf(one.model), ['Tanh']);
});

test('new nodes remember every source node they stand for', () => {
  const one = sketch();
  const x = one.rewriter.graphInput('x', { dtype: 'f32', shape: [2] });
  const inner = one.rewriter.op('Neg', [x], {}, { name: 'first', from: ['first'] });
  const outer = one.rewriter.op('Relu', [inner], {}, { name: 'second', from: ['second'] });
  one.rewriter.graphOutput('y', outer);
  const fused = rule({
    name: 'fused',
    pattern: op('Relu', [op('Neg', [value('x')])]),
    build: (bindings, rewriter) => rewriter.op('Abs', [bindings.x]),
  });
  applyRules(one.model, [fused], one.context);
  assert.deepEqual([...(one.model.graph.outputs[0]?.producer?.from ?? [])].sort(), [
    'first',
    'second',
  ]);
});

test('a refusal is recorded once and changes nothing', () => {
  const one = chain(2);
  const never = rule({
    name: 'never',
    pattern: op('Neg', [value('x')]),
    build: ({ x }) => refuse('it is a test', x),
  });
  assert.equal(applyRules(one.model, [never], one.context), false);
  assert.deepEqual(opsOf(one.model), ['Neg', 'Neg', 'Relu']);
  assert.deepEqual(
    one.refusals.map(({ rule: name, why }) => [name, why]),
    [
      ['never', 'it is a test'],
      ['never', 'it is a test'],
    ],
  );
});

test('rules that undo each other end with an error that names one of them', () => {
  const one = sketch();
  const x = one.rewriter.graphInput('x', { dtype: 'f32', shape: [2] });
  one.rewriter.graphOutput('y', one.rewriter.op('Sin', [x]));
  const swap = (from: string, to: string): ReturnType<typeof rule> =>
    rule({
      name: `${from}-to-${to}`.toLowerCase(),
      pattern: op(from, [value('x')]),
      build: (bindings, rewriter) => rewriter.op(to, [bindings.x]),
    });
  assert.throws(
    () => applyRules(one.model, [swap('Sin', 'Cos'), swap('Cos', 'Sin')], one.context),
    { code: 'PASS_FAILED', message: /does not end; the last rule was "(sin-to-cos|cos-to-sin)"/ },
  );
});

test('a rule that changes a dtype is stopped', () => {
  const one = sketch();
  const x = one.rewriter.graphInput('x', { dtype: 'f32', shape: [2] });
  one.rewriter.graphOutput('y', one.rewriter.op('Sin', [x]));
  const wrong = rule({
    name: 'wrong',
    pattern: op('Sin', [anything]).as('sin'),
    build: ({ sin }, rewriter) => rewriter.op('IsNaN', [sin.input(0)]),
  });
  assert.throws(() => applyRules(one.model, [wrong], one.context), {
    code: 'PASS_FAILED',
    message: /would turn/,
  });
});

test('10,000 nodes against 50 rules match in well under the 2 s the issue allows', () => {
  const one = chain(10_000);
  const rules = Array.from({ length: 50 }, (_, i) =>
    rule({
      name: `rule-${i}`,
      pattern: op('Neg', [op('Neg', [op(`Missing${i}`, [value('x')])])]),
      build: ({ x }) => x,
    }),
  );
  assert.equal(applyRules(one.model, rules, one.context), false);
});
