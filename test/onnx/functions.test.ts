import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeModel } from '../../compiler/onnx/read.ts';
import type { FunctionProto, GraphProto } from '../../compiler/onnx/schema.ts';
import { fromNumber } from '../../compiler/onnx/wire.ts';
import { assertRoundTrip, outlineNodes } from '../support/model-outline.ts';
import { graphAttribute, modelBytes, node, nodesOf, value } from '../support/onnx.ts';

const opset = {
  opsetImport: [{ version: fromNumber(17) }, { domain: 'local', version: fromNumber(1) }],
};

test('functions are inlined: nested, with attributes, defaults and optional inputs', () => {
  const inner: FunctionProto = {
    domain: 'local',
    name: 'Scale',
    input: ['a', 'unused'],
    output: ['b'],
    attribute: ['factor'],
    attributeProto: [{ name: 'beta', f: 0.5, type: 1 }],
    node: [
      node('LeakyRelu', ['a'], ['t'], {
        attribute: [{ name: 'alpha', refAttrName: 'factor', type: 1 }],
      }),
      node('HardSigmoid', ['t'], ['u'], {
        attribute: [{ name: 'alpha', refAttrName: 'missing', type: 1 }],
      }),
      node('Clip', ['u', '', 'unused'], ['v']),
      node('Elu', ['v'], ['b'], { attribute: [{ name: 'alpha', refAttrName: 'beta', type: 1 }] }),
    ],
    opsetImport: [{ version: fromNumber(17) }],
  };
  const outer: FunctionProto = {
    domain: 'local',
    name: 'Twice',
    input: ['p'],
    output: ['q', 'p'],
    attribute: ['k'],
    node: [
      node('Scale', ['r'], ['q'], {
        domain: 'local',
        attribute: [{ name: 'factor', refAttrName: 'k', type: 1 }],
      }),
      node('Scale', ['p'], ['r'], {
        domain: 'local',
        attribute: [{ name: 'factor', f: 3, type: 1 }],
      }),
    ],
    opsetImport: opset.opsetImport,
  };
  const call = node('Twice', ['x'], ['y', 'same'], {
    name: 'call',
    domain: 'local',
    attribute: [{ name: 'k', f: 7, type: 1 }],
  });
  const graph = { node: [call], input: [value('x')], output: [value('y'), value('same')] };
  const model = decodeModel(modelBytes(graph, { ...opset, functions: [outer, inner] }));
  const ops = nodesOf(model);
  assert.deepEqual(
    ops.map(({ op }) => op),
    [
      'LeakyRelu',
      'HardSigmoid',
      'Clip',
      'Elu',
      'LeakyRelu',
      'HardSigmoid',
      'Clip',
      'Elu',
      'Identity',
    ],
  );
  assert.equal(ops[0]?.float('alpha'), 3);
  assert.equal(ops[4]?.float('alpha'), 7, 'a reference to an attribute of the caller');
  assert.equal(ops[3]?.float('alpha'), 0.5, 'a default');
  assert.equal(ops[1]?.float('alpha'), undefined, 'an attribute nobody gives is left out');
  assert.deepEqual(ops[2]?.inputs.slice(1), [undefined, undefined], 'an input the call leaves out');
  assert.equal(ops[7]?.output(), model.graph.outputs[0]);
  assert.equal(model.graph.outputs[0]?.name, 'y');
  assert.deepEqual(outlineNodes(model)[8], 'Identity(x) -> same');
  assert.deepEqual(ops[0]?.from, ['call']);
  assertRoundTrip(model);
});

test('the overload of a function is respected', () => {
  const body = (overload: string, op: string): FunctionProto => ({
    domain: 'local',
    name: 'F',
    overload,
    input: ['a'],
    output: ['b'],
    node: [node(op, ['a'], ['b'])],
    opsetImport: [{ version: fromNumber(17) }],
  });
  const calls = [
    node('F', ['x'], ['t'], { domain: 'local', overload: 'one' }),
    node('F', ['t'], ['y'], { domain: 'local', overload: 'two' }),
    node('F', ['t'], ['z'], { domain: 'local', overload: 'three' }),
  ];
  const graph = { node: calls, input: [value('x')], output: [value('y'), value('z')] };
  const functions = [body('one', 'Relu'), body('two', 'Neg')];
  const model = decodeModel(modelBytes(graph, { ...opset, functions }));
  assert.deepEqual(
    nodesOf(model).map(({ op, overload }) => op + overload),
    ['Relu', 'Neg', 'Fthree'],
  );
  assertRoundTrip(model);
});

test('a function body may have subgraphs that use its attributes and values', () => {
  const branch = (op: string): GraphProto => ({
    node: [node(op, ['a'], ['o'], { attribute: [{ name: 'alpha', refAttrName: 'k', type: 1 }] })],
    output: [value('o')],
  });
  const body: FunctionProto = {
    domain: 'local',
    name: 'F',
    input: ['cond', 'a'],
    output: ['b'],
    attribute: ['k', 'other'],
    node: [
      node('If', ['cond'], ['b'], {
        attribute: [
          graphAttribute('then_branch', branch('Elu')),
          { name: 'else_branch', refAttrName: 'other', type: 5 },
        ],
      }),
    ],
    opsetImport: [{ version: fromNumber(17) }],
  };
  const call = node('F', ['c', 'x'], ['y'], {
    domain: 'local',
    attribute: [
      { name: 'k', f: 2, type: 1 },
      // sees the caller's names, not those of the body
      graphAttribute('other', { node: [node('Neg', ['x'], ['n'])], output: [value('n')] }),
    ],
  });
  const graph = { node: [call], input: [value('c', [], 9), value('x')], output: [value('y')] };
  const model = decodeModel(modelBytes(graph, { ...opset, functions: [body] }));
  const [choice] = nodesOf(model);
  const [elu] = [...(choice?.subgraph('then_branch')?.nodes() ?? [])];
  const [neg] = [...(choice?.subgraph('else_branch')?.nodes() ?? [])];
  assert.equal(elu?.float('alpha'), 2);
  assert.equal(elu?.input(0), model.graph.inputs[1]);
  assert.equal(neg?.input(0), model.graph.inputs[1]);
  assertRoundTrip(model);
});
