/**
 * Quantized weights lowered for onnxruntime-web, run there on its CPU provider with the target's session
 * options, against the reference evaluator on the model before lowering.
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import { int, ints } from '../../compiler/ir/attribute.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import type { LoweredModel } from '../../compiler/lower/ort.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import type { QuantizeWeightsOptions } from '../../compiler/passes/quantize-weights.ts';
import { quantizeWeights } from '../../compiler/passes/quantize-weights.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { ortWasm, ortWebgpu } from '../../targets/index.ts';
import type { Target } from '../../targets/target.ts';
import { assertFails } from '../support/errors.ts';
import { expectSame } from '../support/expect-same.ts';
import { ModelBuilder } from '../support/model-builder.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { normalValues } from '../support/random-values.ts';

interface Case {
  readonly build: (opset: number) => ModelBuilder;
  readonly inputs: Readonly<Record<string, Tensor>>;
}

const floats = (shape: readonly number[], seed: number): Tensor => ({
  dtype: 'f32',
  shape,
  data: normalValues(
    shape.reduce((product, dim) => product * dim, 1),
    seed,
  ),
});

function linear(rows: number, columns: number): Case {
  return {
    inputs: { x: floats([2, columns], 1) },
    build(opset) {
      const b = new ModelBuilder(opset);
      const w = b.constant('w', floats([columns, rows], 2));
      return b.output('y', b.op('MatMul', [b.input('x', ['n', columns]), w]));
    },
  };
}

function gemm(rows: number, columns: number, transB: number): Case {
  return {
    inputs: { x: floats([2, columns], 1) },
    build(opset) {
      const b = new ModelBuilder(opset);
      const w = b.constant('w', floats(transB ? [rows, columns] : [columns, rows], 2));
      const bias = b.constant('bias', floats([rows], 3));
      const x = b.input('x', ['n', columns]);
      return b.output('y', b.op('Gemm', [x, w, bias], { transB: int(transB) }));
    },
  };
}

const ids: Tensor = { dtype: 'i64', shape: [1, 3], data: BigInt64Array.of(0n, 47n, 5n) };

function table(rows: number, columns: number): Case {
  return {
    inputs: { ids },
    build(opset) {
      const b = new ModelBuilder(opset);
      const t = b.constant('t', floats([rows, columns], 4));
      return b.output('y', b.op('Gather', [t, b.input('ids', [1, 's'], 'i64')]));
    },
  };
}

/** A table that rows are gathered from and that is the output matrix as well. */
function tied(rows: number, columns: number): Case {
  return {
    inputs: { ids },
    build(opset) {
      const b = new ModelBuilder(opset);
      const t = b.constant('t', floats([rows, columns], 4));
      const hidden = b.op('Gather', [t, b.input('ids', [1, 's'], 'i64')]);
      const head = b.op('Transpose', [t], { perm: ints([1, 0]) });
      return b.output('y', b.op('MatMul', [hidden, head]));
    },
  };
}

const convolution: Case = {
  inputs: { x: floats([1, 16, 6, 6], 5) },
  build(opset) {
    const b = new ModelBuilder(opset);
    const w = b.constant('w', floats([8, 16, 3, 3], 6));
    return b.output('y', b.op('Conv', [b.input('x', [1, 16, 6, 6]), w]));
  },
};

const recurrent: Case = {
  inputs: { x: floats([3, 1, 32], 7) },
  build(opset) {
    const b = new ModelBuilder(opset);
    const w = b.constant('w', floats([1, 64, 32], 8));
    const r = b.constant('r', floats([1, 64, 16], 9));
    const x = b.input('x', [3, 1, 32]);
    return b.output('y', b.op('LSTM', [x, w, r], { hidden_size: int(16) }));
  },
};

async function lowered(
  { build }: Case,
  opset: number,
  options: QuantizeWeightsOptions,
  target: Target,
): Promise<{ before: Model; model: Model; result: LoweredModel }> {
  const models = [build(opset).model, build(opset).model] as const;
  for (const model of models)
    await runPasses(model, [quantizeWeights({ minElements: 1, convolutions: 'all', ...options })]);
  const [before, model] = models;
  const result = lowerForOrt(model, target);
  inferModel(model);
  verifyModel(model);
  return { before, model, result };
}

/** Ops of the main graph with their domain, sorted. */
function ops(model: Model): string[] {
  return [...model.graph.nodes()].map(({ op }) => op).toSorted();
}

function constant(model: Model, name: string): Tensor | undefined {
  return [...model.graph.constants].find((value) => value.name === name)?.constant();
}

/** Runs the lowered model on both and compares with the model before. */
async function check(
  { inputs }: Case,
  { before, model }: { before: Model; model: Model },
  target: Target,
  what: string,
): Promise<void> {
  const wanted = evaluate(before, inputs);
  const options = { optimizations: 'all', sessionOptions: target.sessionOptions ?? {} } as const;
  const onOrt = await runOnOrt(encodeModel(model), new Map(Object.entries(inputs)), options);
  for (const [name, tensor] of wanted) {
    const [reference, engine] = [evaluate(model, inputs).get(name), onOrt.get(name)];
    assert.ok(reference !== undefined && engine !== undefined);
    // the same codes and scales on both sides: only the order of summation differs, over at most 256
    // products of f32
    expectSame(reference, tensor, { tolerance: 2e-6, what: `${what}, evaluator` });
    expectSame(engine, tensor, { tolerance: 1e-5, what: `${what}, onnxruntime` });
  }
}

const formats = [
  'w8g32',
  'w8',
  'w8g32a',
  'w4g32',
  'w4g32a',
  'w4g16',
  'w4',
  'w4a',
  'w3g32a',
  'w2g16',
  'c4g32',
];

const kinds: Readonly<Record<string, Case>> = {
  linear: linear(24, 64),
  gemm: gemm(24, 64, 0),
  'gemm, transposed': gemm(24, 64, 1),
  table: table(48, 64),
  'tied table': tied(48, 64),
  convolution,
  recurrent,
};

for (const [kind, model] of Object.entries(kinds))
  test(`ort-wasm computes a quantized ${kind} as the evaluator does, in every format`, async () => {
    for (const format of formats) {
      const result = await lowered(model, 17, { format }, ortWasm);
      await check(model, result, ortWasm, `${kind} ${format}`);
    }
  });

test('sizes that do not fill bytes, blocks or powers of two are spelt right', async () => {
  for (const model of [
    linear(7, 9),
    gemm(5, 33, 0),
    gemm(5, 33, 1),
    table(48, 9),
    tied(48, 7),
    tied(49, 48),
  ])
    for (const format of ['w4g32', 'w4g16a', 'w8a', 'w8', 'w3', 'w2a']) {
      const result = await lowered(model, 17, { format }, ortWasm);
      await check(model, result, ortWasm, format);
    }
});

test('ort-wasm gets blocked DequantizeLinear in the order that products read', async () => {
  const { model, result } = await lowered(linear(24, 64), 17, { format: 'w4g32' }, ortWasm);
  assert.deepEqual(ops(model), ['Cast', 'DequantizeLinear', 'MatMul']);
  const packed = constant(model, 'w.packed');
  assert.deepEqual([packed?.dtype, packed?.shape], ['i4', [64, 24]]);
  const scale = constant(model, 'w.scale');
  assert.deepEqual([scale?.dtype, scale?.shape], ['f16', [2, 24]]);
  assert.deepEqual(
    [...result.formats],
    [
      ['w.packed', 'w4g32'],
      ['w.scale', 'w4g32'],
    ],
  );
  assert.equal(result.weightBytes, (64 * 24) / 2 + 2 * 24 * 2);
  assert.equal(model.opset, 21);
  assert.match(result.warnings[0] ?? '', /raised from 17 to 21/);
});

test('one scale per channel at 8 bits needs opset 13 only', async () => {
  const { model, result } = await lowered(linear(24, 64), 13, { format: 'w8' }, ortWasm);
  assert.equal(model.opset, 13);
  assert.deepEqual(result.warnings, []);
  assert.deepEqual(constant(model, 'w.scale')?.shape, [24]);
});

test('a table of bytes that is only gathered from raises no opset', async () => {
  for (const format of ['w8', 'w8g32', 'w8g32a']) {
    const result = await lowered(table(48, 64), 11, { format }, ortWasm);
    assert.equal(result.model.opset, 11);
    assert.ok(ops(result.model).includes('GatherBlockQuantized'));
    await check(table(48, 64), result, ortWasm, format);
  }
});

test('a tied table is stored once, gathered packed and multiplied transposed', async () => {
  const { model, result } = await lowered(tied(48, 64), 17, { format: 'w4g32' }, ortWasm);
  assert.deepEqual(ops(model), ['Cast', 'DequantizeLinear', 'FusedMatMul', 'GatherBlockQuantized']);
  assert.equal(result.weightBytes, (48 * 64) / 2 + 48 * 2 * 2);
  assert.equal(model.opsets.get('com.microsoft'), 1);
});

test('three and two bits are stored in four, and said to be', async () => {
  const { model, result } = await lowered(linear(24, 64), 21, { format: 'w2g32' }, ortWasm);
  assert.equal(constant(model, 'w.packed')?.dtype, 'i4');
  assert.equal(result.formats.get('w.packed'), 'w4g32');
  assert.match(result.warnings.join(), /1 weights in 2 bits are stored in 4/);
});

test('codebooks are written out in 8 bits, and said to be', async () => {
  const { model, result } = await lowered(linear(24, 64), 21, { format: 'c4g32' }, ortWasm);
  assert.equal(constant(model, 'w.packed')?.dtype, 'i8');
  assert.match(result.warnings.join(), /1 weights with codebooks are stored in 8 bits/);
});

const fitting: Readonly<Record<string, Case>> = {
  linear: linear(32, 256),
  gemm: gemm(48, 128, 0),
  'gemm, transposed': gemm(48, 128, 1),
  table: table(48, 96),
  'tied table': tied(48, 128),
};

for (const [kind, model] of Object.entries(fitting))
  test(`ort-webgpu's form of a ${kind} computes the same on the CPU provider`, async () => {
    for (const format of ['w4g32', 'w8g32', 'w3g32', 'w2g32', 'c4g32']) {
      const result = await lowered(model, 17, { format }, ortWebgpu);
      assert.deepEqual(result.result.refusals, []);
      assert.ok(!ops(result.model).includes('DequantizeLinear'), `${ops(result.model)}`);
      assert.equal(result.model.opset, 17);
      // MatMulNBits rounds activations nowhere by default
      await check(model, result, ortWebgpu, `${kind} ${format}`);
    }
  });

test('a tied table for ort-webgpu is one constant that a Reshape hands to the product', async () => {
  const { model, result } = await lowered(tied(48, 128), 17, { format: 'w4g32' }, ortWebgpu);
  assert.deepEqual(ops(model), ['Cast', 'GatherBlockQuantized', 'MatMulNBits', 'Reshape']);
  const shapeBytes = 3 * 8;
  assert.equal(result.weightBytes, (48 * 128) / 2 + 48 * 4 * 2 + shapeBytes);
});

test('what MatMulNBits does not take on WebGPU says why and is folded instead', async () => {
  for (const [model, format, why] of [
    [linear(32, 192), 'w4g32', /192 inputs are no multiple of 128/],
    [linear(24, 128), 'w4g32', /24 outputs are no multiple of 16/],
    [linear(32, 128), 'w4g32a', /zero points/],
    [linear(32, 128), 'w4g64', /blocks of 64/],
    [linear(32, 128), 'w8', /blocks of 128/],
    [tied(48, 96), 'w4g32', /96 inputs are no multiple of 128/],
    [convolution, 'w4g16', /Reshape "w_1" has no kernel for packed weights/],
  ] as const) {
    const result = await lowered(model, 17, { format }, ortWebgpu);
    assert.match(result.result.refusals[0]?.why ?? '', why);
    assert.match(result.result.refusals[0]?.why ?? '', /folded to floats at load instead/);
    await check(model, result, ortWebgpu, `${format} ${why}`);
  }
});

test('a model without quantized weights is left as it is', () => {
  const { model } = linear(24, 64).build(11);
  const result = lowerForOrt(model, ortWasm);
  assert.deepEqual([ops(model), model.opset, result.warnings], [['MatMul'], 11, []]);
  assert.equal(result.weightBytes, 24 * 64 * 4);
});

test('a model that quantizes its activations keeps its own fusions, unless weights are to be folded', async () => {
  const build = (): ModelBuilder => {
    const b = linear(24, 64).build(17);
    const scale = b.floats('scale', [], Float32Array.of(0.1));
    const y = [...b.model.graph.outputs][0];
    return b.output('z', b.op('QuantizeLinear', [y, scale]));
  };
  assert.deepEqual(lowerForOrt(build().model, ortWasm).sessionOptions, {});
  const { result } = await lowered({ build, inputs: {} }, 17, { format: 'w8' }, ortWasm);
  assert.deepEqual(result.sessionOptions, ortWasm.sessionOptions);
});

test('an internal op without a form is OP_UNSUPPORTED by name', () => {
  const b = linear(24, 64).build(17);
  b.output('z', b.op('Pack', [b.input('p', [4])], {}, { domain: 'fettle', name: 'layer.pack' }));
  assertFails(() => lowerForOrt(b.model, ortWasm), 'OP_UNSUPPORTED', /fettle\.Pack "layer\.pack"/);
});
