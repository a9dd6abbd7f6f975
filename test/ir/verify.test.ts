/** Every rule of a legal model has a case that breaks it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Model, Node } from '../../compiler/ir/graph.ts';
import { Graph, Value } from '../../compiler/ir/graph.ts';
import { parseModel } from '../../compiler/ir/parse.ts';
import { findFailures, verifyModel } from '../../compiler/ir/verify.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { assertFails } from '../support/errors.ts';

const text = `graph g (x: f32[2, 3], c: bool[]) -> (y) {
  opset 17
  const %w: f32[3] = {1, 2, 3}
  %a = Add(%x, %w) @add
  %b = Relu(%a) @relu
  %y = If(%c) {
    then_branch = graph t () -> (p) { %p = Mul(%b, %w) },
    else_branch = graph e () -> (q) { %q = Identity(%b) }
  } @if
}`;

interface Parts {
  readonly model: Model;
  readonly graph: Graph;
  readonly add: Node;
  readonly relu: Node;
  readonly branch: Graph;
}

function parts(): Parts {
  const model = parseModel(text);
  const [add, relu, choice] = [...model.graph.nodes()];
  const branch = choice?.subgraph('then_branch');
  assert.ok(add !== undefined && relu !== undefined && branch !== undefined);
  return { model, graph: model.graph, add, relu, branch };
}

/** Breaks a legal model and checks that the first failure is the one expected. */
function breaks(damage: (parts: Parts) => void, message: RegExp): void {
  const all = parts();
  verifyModel(all.model);
  damage(all);
  assert.match(findFailures(all.model)[0]?.problem ?? 'nothing', message);
  assertFails(() => verifyModel(all.model), 'MODEL_INVALID', message);
}

test('a legal model passes, with a branch that reads values from outside', () => {
  assert.deepEqual(findFailures(parts().model), []);
});

test('a node that reads what comes after it', () => {
  breaks(({ graph, add, relu }) => {
    graph.move(relu, add);
  }, /Relu "relu": input 0, "a", is not defined before it/);
});

test('a node that reads from inside a subgraph', () => {
  breaks(({ relu, branch }) => {
    relu.setInput(0, branch.outputs[0]);
  }, /Relu "relu": input 0, "p", is not defined/);
});

test('two values with one name', () => {
  breaks(({ add, relu }) => {
    add.output().name = 'same';
    relu.output().name = 'same';
  }, /Two values are called "same"/);
});

test('a value with no name', () => {
  breaks(({ add }) => {
    add.output().name = '';
  }, /no name/);
});

test('an output that its graph does not compute', () => {
  breaks(({ graph, branch }) => {
    const inside = branch.outputs[0];
    assert.ok(inside !== undefined);
    graph.setOutput(inside, 0);
  }, /Output "p" is not computed in its graph/);
});

test('a use list that misses a use', () => {
  breaks(({ add, relu }) => {
    add.output().users.delete(relu);
  }, /use list of "a" is wrong/);
});

test('a miscounted output', () => {
  breaks(({ graph }) => {
    const [output] = graph.outputs;
    assert.ok(output !== undefined);
    output.outputCount++;
  }, /"y" miscounts the outputs/);
});

test('a constant whose type is not that of its contents', () => {
  breaks(({ graph }) => {
    const [constant] = graph.constants;
    assert.ok(constant !== undefined);
    constant.weight = Weight.of({ dtype: 'i32', shape: [3], data: Int32Array.of(1, 2, 3) });
  }, /Constant "w" says f32\[3\] and holds i32\[3\]/);
});

test('an input that a node also computes', () => {
  breaks(({ graph, add }) => {
    graph.inputs.push(add.output());
  }, /Input "a" is also computed/);
});

test('a subgraph that belongs to another node', () => {
  breaks(({ add, branch }) => {
    branch.owner = add;
  }, /subgraph "t" belongs to another node/);
});

test('too many inputs', () => {
  breaks(({ relu, add }) => {
    relu.setInput(1, add.output());
  }, /Relu "relu" has 2 inputs; Relu has 1/);
});

test('a required input that is absent', () => {
  breaks(({ add }) => {
    add.setInput(0, undefined);
  }, /Add "add": input 0 is required and absent/);
});

test('dtypes that the op does not mix', () => {
  breaks(({ graph, add }) => {
    const other = new Value('other', { dtype: 'i32', shape: [3] });
    graph.inputs.push(other);
    add.setInput(1, other);
  }, /Add "add": inputs must have one dtype, got f32 and i32/);
});

test('a declared dtype that the op does not give', () => {
  breaks(({ relu }) => {
    relu.output().dtype = 'f16';
  }, /"b" is declared as f16\[2, 3\], but the op gives f32\[2, 3\]/);
});

test('a declared shape that the op does not give', () => {
  breaks(({ relu }) => {
    relu.output().shape = [2, 4];
  }, /"b" is declared as f32\[2, 4\], but the op gives f32\[2, 3\]/);
});

test('every failure is found, three are spelt out', () => {
  const { model, graph, add, relu } = parts();
  add.output().dtype = 'f16';
  relu.output().dtype = 'i8';
  graph.outputs[0]?.users.clear();
  add.output().outputCount++;
  relu.output().name = '';
  assert.equal(findFailures(model).length, 4);
  const error = assertFails(
    () => verifyModel(model),
    'MODEL_INVALID',
    /failures: .* And \d+ more\./,
  );
  assert.equal(error.at['failures'], findFailures(model).length);
});

test('an empty graph is legal', () => {
  const model = parseModel('graph () -> () { opset 17 }');
  verifyModel(model);
  assert.equal(new Graph('').nodeCount, model.graph.nodeCount);
});
