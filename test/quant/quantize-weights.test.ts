/** The pass that stores weights in fewer bits, on small models of every kind of site. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { int, ints } from '../../compiler/ir/attribute.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { isDequantize, readDequantize } from '../../compiler/ops/quantized.ts';
import type { PassReport } from '../../compiler/passes/pass.ts';
import type { QuantizeWeightsOptions } from '../../compiler/passes/quantize-weights.ts';
import { quantizeWeights } from '../../compiler/passes/quantize-weights.ts';
import type { QuantizedTensorNote } from '../../compiler/passes/store-halves.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { toHalfArray } from '../../runtime/half.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { FettleError } from '../../runtime/errors.ts';
import { ModelBuilder } from '../support/model-builder.ts';
import { normalValues } from '../support/random-values.ts';

async function quantized(model: Model, options: QuantizeWeightsOptions): Promise<PassReport> {
  const [report] = await runPasses(model, [quantizeWeights(options)], { checkChanged: true });
  assert.ok(report !== undefined);
  return report;
}

function ops(model: Model): string[] {
  return [...model.graph.nodes()].map((node) => node.op);
}

function run(model: Model, inputs: Record<string, Tensor>): number[] {
  const [output] = evaluate(model, inputs).values();
  assert.ok(output !== undefined && typeof output.data[0] !== 'string');
  return Array.from(output.data as Float32Array, Number);
}

function notes(report: PassReport): QuantizedTensorNote[] {
  return report.notes['tensors'] as QuantizedTensorNote[];
}

/** x [2, K] -> MatMul w [K, N] */
function linear(rows = 24, columns = 64): ModelBuilder {
  const b = new ModelBuilder();
  const x = b.input('x', [2, columns]);
  const w = b.floats('w', [columns, rows], normalValues(rows * columns, 1));
  return b.output('y', b.op('MatMul', [x, w]));
}

const small = { minElements: 1 };

/** Relative difference of two outputs in the root mean square. */
function difference(a: readonly number[], b: readonly number[]): number {
  const norm = a.reduce((sum, value) => sum + value ** 2, 0);
  return Math.sqrt(a.reduce((sum, value, i) => sum + (value - (b[i] ?? NaN)) ** 2, 0) / norm);
}

test('a linear layer keeps its result within the error of its format', async () => {
  const x: Tensor = { dtype: 'f32', shape: [2, 64], data: normalValues(128, 2) };
  const expected = run(linear().model, { x });
  for (const [format, within] of [
    ['w8g32', 0.01],
    ['w8', 0.01],
    ['w4g32', 0.13],
    ['w4g16a', 0.1],
    ['c4g32', 0.1],
    ['w3g32a', 0.25],
    ['w2g16a', 0.5],
  ] as const) {
    const { model } = linear();
    const report = await quantized(model, { format, ...small });
    assert.deepEqual(ops(model), ['Dequantize', 'MatMul'], format);
    assert.deepEqual(report.rewrites, { [format]: 1 });
    // output error of independent errors is about the relative error of the weights
    const measured = difference(expected, run(model, { x }));
    const [note] = notes(report);
    assert.ok(note !== undefined && measured < within && note.relativeError < within ** 2, format);
    assert.ok(measured < 2 * Math.sqrt(note.relativeError), `${format}: ${measured}`);
    assert.equal(report.after.weightBytes, note.bytes);
  }
});

test('groups run along the inputs, whichever way the weight is stored and read', async () => {
  const values = normalValues(24 * 64, 3);
  const flipped = Float32Array.from(
    values,
    (_, i) => values[(i % 24) * 64 + Math.floor(i / 24)] ?? 0,
  );
  const x: Tensor = { dtype: 'f32', shape: [2, 64], data: normalValues(128, 4) };
  const codes: string[] = [];
  for (const form of ['matmul', 'gemm', 'gemm-transposed', 'transpose', 'fused'] as const) {
    const b = new ModelBuilder(17, { 'com.microsoft': 1 });
    const input = b.input('x', [2, 64]);
    const rowMajor = form === 'gemm-transposed' || form === 'transpose' || form === 'fused';
    const w = rowMajor ? b.floats('w', [24, 64], values) : b.floats('w', [64, 24], flipped);
    const y =
      form === 'matmul'
        ? b.op('MatMul', [input, w])
        : form === 'gemm'
          ? b.op('Gemm', [input, w])
          : form === 'gemm-transposed'
            ? b.op('Gemm', [input, w], { transB: int(1) })
            : form === 'transpose'
              ? b.op('MatMul', [input, b.op('Transpose', [w], { perm: ints([1, 0]) })])
              : b.op('FusedMatMul', [input, w], { transB: int(1) }, { domain: 'com.microsoft' });
    b.output('y', y);
    const expected = run(b.model, { x });
    await quantized(b.model, { format: 'w4g32', ...small });
    assert.equal(ops(b.model).length, 2, form);
    assert.ok(difference(expected, run(b.model, { x })) < 0.13, form);
    const [node] = b.model.graph.nodes();
    assert.ok(isDequantize(node));
    assert.equal(readDequantize(node).transposed, !rowMajor || form === 'transpose');
    codes.push(String(node.input(0).constant()?.data));
  }
  assert.equal(new Set(codes).size, 1);
});

test('a tied table keeps one set of codes', async () => {
  const b = new ModelBuilder();
  const ids = b.input('ids', [3], 'i64');
  const table = b.floats('table', [40, 32], normalValues(1280, 5));
  const rows = b.op('Gather', [table, ids]);
  const head = b.op('Transpose', [table], { perm: ints([1, 0]) });
  b.output('logits', b.op('MatMul', [rows, head]));
  const inputs = {
    ids: { dtype: 'i64', shape: [3], data: BigInt64Array.of(1n, 7n, 39n) },
  } as const;
  const expected = run(b.model, inputs);
  const report = await quantized(b.model, { format: 'w8g32', ...small });
  assert.deepEqual(ops(b.model), ['Dequantize', 'Dequantize', 'Gather', 'MatMul']);
  assert.deepEqual(
    [...b.model.graph.constants].map((c) => c.name),
    ['table.codes', 'table.scales'],
  );
  assert.equal(report.after.weightBytes, 40 * 32 + 40 * 2);
  assert.ok(difference(expected, run(b.model, inputs)) < 0.02);
});

test('tables follow their own option', async () => {
  for (const [embeddings, dtype] of [
    ['keep', 'f32'],
    ['w8', 'u8'],
    ['f16', 'f16'],
  ] as const) {
    const b = new ModelBuilder();
    const table = b.floats('table', [40, 32], normalValues(1280, 5));
    const rows = b.op('Gather', [table, b.input('ids', [3], 'i64')]);
    const w = b.floats('w', [32, 8], normalValues(256, 6));
    b.output('y', b.op('MatMul', [rows, w]));
    await quantized(b.model, { format: 'w4g32', embeddings, ...small });
    const stored = [...b.model.graph.constants].find((c) => c.name.startsWith('table'));
    assert.equal(stored?.dtype, dtype);
    assert.ok([...b.model.graph.constants].some((c) => c.name === 'w.codes'));
  }
});

test('convolutions and recurrent weights are stored by output channel', async () => {
  const conv = (channels: number, group = 1): ModelBuilder => {
    const b = new ModelBuilder();
    const x = b.input('x', [1, channels * group, 5, 5]);
    const w = b.floats('w', [8, channels, 3, 3], normalValues(72 * channels, 7));
    return b.output('y', b.op('Conv', [x, w], { group: int(group) }));
  };
  const x: Tensor = { dtype: 'f32', shape: [1, 16, 5, 5], data: normalValues(400, 8) };
  const b = conv(16);
  const expected = run(b.model, { x });
  await quantized(b.model, { format: 'w8', ...small });
  assert.deepEqual(ops(b.model), ['Dequantize', 'Reshape', 'Conv']);
  assert.ok(difference(expected, run(b.model, { x })) < 0.01);

  // 9 inputs per output channel: 8 bits
  const depthwise = await quantized(conv(1, 8).model, { format: 'w4g32', ...small });
  assert.match(depthwise.refusals[0]?.why ?? '', /9 inputs .* are few; stored as w8 instead/);
  assert.deepEqual(depthwise.rewrites, { w8: 1 });
  const all = await quantized(conv(1, 8).model, { format: 'w4g32', convolutions: 'all', ...small });
  assert.deepEqual(all.rewrites, { w4: 1 });

  const kept = await quantized(conv(16).model, { format: 'w8', convolutions: 'none', ...small });
  assert.match(kept.refusals[0]?.why ?? '', /kept by option/);

  const r = new ModelBuilder();
  const [size, hidden] = [32, 16];
  const sequence = r.input('x', [3, 1, size]);
  const w = r.floats('w', [1, 4 * hidden, size], normalValues(4 * hidden * size, 9));
  const u = r.floats('r', [1, 4 * hidden, hidden], normalValues(4 * hidden * hidden, 10));
  r.output('y', r.op('LSTM', [sequence, w, u], { hidden_size: int(hidden) }));
  await quantized(r.model, { format: 'w8g16', ...small });
  assert.deepEqual(ops(r.model), ['Dequantize', 'Reshape', 'Dequantize', 'Reshape', 'LSTM']);
});

test('a weight whose inputs are no whole groups says what it was stored as instead', async () => {
  for (const [columns, stored] of [
    [48, 'w4g16'],
    [50, 'w4'],
    [90, 'w8'],
  ] as const) {
    const { model } = linear(8, columns);
    const report = await quantized(model, { format: 'w4g32', ...small });
    assert.deepEqual(report.rewrites, { [stored]: 1 });
    assert.match(
      report.refusals[0]?.why ?? '',
      new RegExp(`no multiple of 32; stored as ${stored} `),
    );
  }
});

test('what has no code, is small, skipped, shared with another op or an output is left alone', async () => {
  const cases: readonly [string, () => ModelBuilder, QuantizeWeightsOptions, RegExp | undefined][] =
    [
      ['small', () => linear(), {}, undefined],
      ['skipped by name', () => linear(), { ...small, skip: ['w'] }, /skip list/],
      ['skipped by pattern', () => linear(), { ...small, skip: ['*w*'] }, /skip list/],
      [
        'read by another op',
        () => {
          const b = linear();
          const w = [...b.model.graph.constants][0];
          return b.output('z', b.op('Relu', [w]));
        },
        small,
        /Relu reads it too/,
      ],
      [
        'an output',
        () => {
          const b = linear();
          const w = [...b.model.graph.constants][0];
          if (w !== undefined) b.model.graph.setOutput(w);
          return b;
        },
        small,
        /output of the model/,
      ],
      [
        'gathered by column',
        () => {
          const b = new ModelBuilder();
          const table = b.floats('table', [16, 16], normalValues(256, 11));
          const ids = b.input('ids', [3], 'i64');
          const columns = b.op('Gather', [table, ids], { axis: int(1) });
          return b.output('y', b.op('MatMul', [b.input('x', [1, 16]), table])).output('c', columns);
        },
        small,
        /gathered along another axis/,
      ],
      [
        'summed over both axes',
        () => {
          const b = new ModelBuilder();
          const w = b.floats('w', [16, 16], normalValues(256, 11));
          const x = b.input('x', [1, 16]);
          b.output('y', b.op('Gemm', [x, w]));
          return b.output('z', b.op('Gemm', [x, w], { transB: int(1) }));
        },
        small,
        /sums over another axis/,
      ],
    ];
  for (const [what, build, options, why] of cases) {
    const { model } = build();
    const before = ops(model);
    const report = await quantized(model, { format: 'w4g16', ...options });
    assert.equal(report.changed, false, what);
    assert.deepEqual(ops(model), before);
    if (why !== undefined) assert.match(report.refusals[0]?.why ?? '', why, what);
  }
});

test('tables of sines and cosines are left alone, learned tables with a zero row are not', async () => {
  const [positions, width] = [64, 16];
  const angle = (i: number): number => Math.floor(i / width) * 100 ** (-(i % width) / width);
  const learned = normalValues(positions * width, 13);
  learned.fill(0, 0, width); // the row of the padding token
  const tables: readonly [string, Float32Array, boolean][] = [
    ['cos', Float32Array.from(learned, (_, i) => Math.cos(angle(i))), true],
    ['scaled cos', Float32Array.from(learned, (_, i) => 1.2 * Math.cos(angle(i))), true],
    ['sin', Float32Array.from(learned, (_, i) => Math.sin(angle(i))), true],
    ['both', Float32Array.from(learned, (_, i) => (i % 2 ? Math.cos : Math.sin)(angle(i))), true],
    ['learned', learned, false],
    ['small', learned.map((value) => value / 100), false],
  ];
  for (const [name, values, kept] of tables) {
    const b = new ModelBuilder();
    const table = b.floats('table', [positions, width], values);
    b.output('y', b.op('Gather', [table, b.input('positions', [3], 'i64')]));
    const report = await quantized(b.model, { format: 'w8', ...small });
    assert.equal(report.changed, !kept, name);
    if (kept) assert.match(report.refusals[0]?.why ?? '', /sines or cosines/);
  }
});

test('NaN and infinities are reported and kept', async () => {
  for (const bad of [NaN, Infinity]) {
    const b = linear();
    const w = [...b.model.graph.constants][0]?.constant();
    assert.ok(w?.data instanceof Float32Array);
    w.data[100] = bad; // [K 64, N 24]: row 100 % 24, column 100 / 24
    const warnings: string[] = [];
    const log = { info: () => undefined, warn: (message: string) => void warnings.push(message) };
    const [report] = await runPasses(b.model, [quantizeWeights({ format: 'w4g32', ...small })], {
      log,
    });
    assert.equal(report?.changed, false);
    assert.match(report?.refusals[0]?.why ?? '', new RegExp(`row 4, column 4 is ${bad}`));
    assert.match(warnings[0] ?? '', /"w" stays f32/);
  }
});

test('f16 stores every large f32 constant in half precision', async () => {
  const b = linear();
  const x: Tensor = { dtype: 'f32', shape: [2, 64], data: normalValues(128, 2) };
  const expected = run(b.model, { x });
  const report = await quantized(b.model, { format: 'f16', minElements: 100 });
  assert.deepEqual(ops(b.model), ['Cast', 'MatMul']);
  assert.equal(report.after.weightBytes * 2, report.before.weightBytes);
  assert.ok(difference(expected, run(b.model, { x })) < 1e-3); // 2^-11 per weight

  const big = linear();
  const w = [...big.model.graph.constants][0]?.constant();
  assert.ok(w?.data instanceof Float32Array);
  w.data[3] = 1e6;
  const refused = await quantized(big.model, { format: 'f16', ...small });
  assert.match(refused.refusals[0]?.why ?? '', /1000000 is beyond the largest f16/);
});

test('weights that are f16 already are quantized and read as f16', async () => {
  const b = new ModelBuilder();
  const x = b.input('x', [2, 64], 'f16');
  const data = toHalfArray(normalValues(64 * 24, 12));
  const w = b.constant('w', { dtype: 'f16', shape: [64, 24], data });
  b.output('y', b.op('MatMul', [x, w]));
  await quantized(b.model, { format: 'w4g32', ...small });
  const [node] = b.model.graph.nodes();
  assert.ok(isDequantize(node));
  assert.equal(node.output().dtype, 'f16');
});

test('a format, an option or a choice that does not exist is a FettleError', () => {
  assert.throws(() => quantizeWeights({ format: 'w5' }), FettleError);
  assert.throws(() => quantizeWeights({ format: 'w4g32', embeddings: 'smae' }), FettleError);
  assert.throws(() => quantizeWeights({ convolutions: 'some' }), FettleError);
});

test('f32 changes nothing', async () => {
  const { model } = linear();
  assert.equal((await quantized(model, { format: 'f32', ...small })).changed, false);
});
