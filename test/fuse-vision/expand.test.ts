/** Fused convolutions and expressions, expanded for onnxruntime-web, compute what they say. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Attributes } from '../../compiler/ir/attribute.ts';
import { float, int, ints, string } from '../../compiler/ir/attribute.ts';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model, Value } from '../../compiler/ir/graph.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { activations } from '../../compiler/ops/activation-table.ts';
import { expressionFunctions } from '../../compiler/ops/fused-expression.ts';
import { internalDomain } from '../../compiler/ops/quantized.ts';
import { ortWasm } from '../../targets/index.ts';
import { assertFails } from '../support/errors.ts';
import { expectSame } from '../support/expect-same.ts';
import { ModelBuilder } from '../support/model-builder.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { planBundle } from '../support/plan-session.ts';
import { normalValues } from '../support/random-values.ts';
import { seededInputs } from '../support/seeded-inputs.ts';

const names = Object.keys(activations);

function weights(b: ModelBuilder, name: string, shape: readonly number[], seed: number): Value {
  const size = shape.reduce((product, dim) => product * dim, 1);
  return b.floats(name, shape, normalValues(size, seed));
}

/** Evaluates a model, lowers it and runs it on onnxruntime-web. */
async function agreesWithOrt(b: ModelBuilder): Promise<string[]> {
  const inputs = seededInputs(b.model, 1);
  const wanted = evaluate(b.model, inputs);
  const lowered = cloneModel(b.model);
  lowerForOrt(lowered, ortWasm);
  const got = await runOnOrt(encodeModel(lowered), inputs);
  for (const [name, tensor] of wanted) {
    const seen = got.get(name);
    assert.ok(seen !== undefined);
    // sums of 18 products in f32 and in doubles, then a function of slope up to 1.13
    expectSame(seen, tensor, { tolerance: 2e-6, what: name });
  }
  return [...lowered.graph.nodes()].map(({ op }) => op);
}

/** Evaluates a model of fixed sizes and runs it on the wasm engine. */
async function agreesWithWasm(model: Model): Promise<void> {
  const inputs = seededInputs(model, 1);
  const wanted = evaluate(model, inputs);
  const session = await (await planBundle(model)).open();
  try {
    const got = await session.run(Object.fromEntries(inputs));
    for (const [name, tensor] of wanted) {
      const seen = got[name];
      assert.ok(seen !== undefined);
      // kernels approximate exp, log, sin and erf to a few units of 6e-8
      expectSame(seen, tensor, { tolerance: 2e-6, what: name });
    }
  } finally {
    await session.dispose();
  }
}

/** A fused convolution with each activation, some with a bias, some with a residual before or after. */
function everyActivation(opset: number, batch: number | string): ModelBuilder {
  const b = new ModelBuilder(opset);
  const x = b.input('x', [batch, 2, 5, 4]);
  const w = weights(b, 'w', [3, 2, 3, 3], 1);
  const bias = weights(b, 'b', [3], 2);
  for (const [index, activation] of names.entries()) {
    const residual = b.op('Conv', [x, weights(b, `r${index}`, [3, 2, 1, 1], index)]);
    const attributes: Attributes = {
      pads: ints([1, 1, 1, 1]),
      activation: string(activation),
      residualFirst: int(index % 2),
      ...(activation === 'clip' ? { alpha: float(-0.5), beta: float(0.75) } : {}),
      ...(activation === 'hard-sigmoid' ? { alpha: float(0.125), beta: float(0.25) } : {}),
    };
    const inputs = index % 3 === 0 ? [x, w, undefined, residual] : [x, w, bias];
    b.output(`y${index}`, b.op('Conv', inputs, attributes, { domain: internalDomain }));
  }
  return b;
}

for (const opset of [9, 17, 20])
  test(`a fused convolution with each activation runs on onnxruntime, opset ${opset}`, async () => {
    await agreesWithOrt(everyActivation(opset, 'n'));
  });

test('a fused convolution with each activation runs on the wasm engine', async () => {
  await agreesWithWasm(everyActivation(17, 2).model);
});

test('a fused transposed convolution runs on onnxruntime', async () => {
  const b = new ModelBuilder(17);
  const x = b.input('x', ['n', 2, 3, 4]);
  const attributes = { strides: ints([2, 2]), activation: string('relu') };
  const inputs = [x, weights(b, 'w', [2, 3, 2, 2], 1), weights(b, 'b', [3], 2)];
  b.output('y', b.op('ConvTranspose', inputs, attributes, { domain: internalDomain }));
  assert.deepEqual(await agreesWithOrt(b), ['ConvTranspose', 'Relu']);
});

/** Every function of the language, each in an expression with two inputs that broadcast. */
function everyFunction(): ModelBuilder {
  const b = new ModelBuilder(17);
  const x = b.op('Abs', [b.input('x', [3, 2, 5])]);
  const row = b.op('Exp', [b.input('row', [2, 1])]);
  for (const [name, apply] of Object.entries(expressionFunctions)) {
    // parameters of activations are numbers
    const numbers = Object.hasOwn(activations, name);
    const parts = ['a', numbers ? '0.25' : 'b', '1.5'].slice(0, apply.length);
    const expression = string(`add(${name}(${parts.join(', ')}), mul(a, b))`);
    const made = b.op('Expression', [x, row], { expression }, { domain: internalDomain });
    b.output(`y_${name}`, made);
  }
  return b;
}

test('every function of an expression runs on onnxruntime', async () => {
  const ops = await agreesWithOrt(everyFunction());
  assert.ok(!ops.includes('Expression'));
});

test('every function of an expression runs on the wasm engine', async () => {
  await agreesWithWasm(everyFunction().model);
});

test('an expression that cannot be read names its node', () => {
  for (const text of ['add(a)', 'add(a, c)', 'twist(a)', 'add(a, b) b', '', '(a)']) {
    const b = new ModelBuilder(17);
    const inputs = [b.input('x', [2]), b.input('z', [2])];
    const attributes = { expression: string(text) };
    assertFails(
      () => b.op('Expression', inputs, attributes, { domain: internalDomain, name: 'here' }),
      'MODEL_INVALID',
      /"here": cannot read the expression/,
    );
  }
});
