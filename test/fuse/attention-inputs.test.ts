/**
 * Attention as other exporters and frameworks write it, with projections in front and behind: each becomes
 * one product for queries, keys and values, one attention and one product behind it, computes the same,
 * and computes the same on onnxruntime.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { parseModel } from '../../compiler/ir/parse.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import {
  attentionInputs,
  isFusedAttention,
  readAttention,
} from '../../compiler/ops/fused-attention.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { tensor } from '../../runtime/tensor.ts';
import { ortWasm } from '../../targets/ort-wasm.ts';
import { expectSame } from '../support/expect-same.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { random } from '../support/rng.ts';
import { seededInputs } from '../support/seeded-inputs.ts';

/** A constant of seeded numbers. */
function weight(name: string, ...shape: number[]): string {
  const next = random(
    Array.from(name).reduce((sum, c) => sum * 31 + (c.codePointAt(0) ?? 0), shape.length),
  );
  const count = shape.reduce((a, b) => a * b, 1);
  const values = Array.from({ length: count }, () => (next() * 2 - 1).toFixed(3));
  return `const %${name}: f32[${shape.join(', ')}] = {${values.join(', ')}}`;
}

const list = (name: string, ...values: number[]): string =>
  `const %${name}: i64[${values.length}] = {${values.join(', ')}}`;
const number = (name: string, value: number): string => `const %${name}: i64[] = {${value}}`;
const half = 'const %half: f32[] = {0.5}';
const square = ['wq', 'wk', 'wv', 'wo'].map((name) => weight(name, 8, 8)).join('\n');

/** Two heads of four columns, from three products. */
const projected = `${square}
  ${half}
  ${list('heads', 0, 0, 2, 4)}
  ${list('rows', 0, 0, 8)}
  %q0 = MatMul(%x, %wq)
  %k0 = MatMul(%x, %wk)
  %v0 = MatMul(%x, %wv)
  %q1 = Reshape(%q0, %heads)
  %k1 = Reshape(%k0, %heads)
  %v1 = Reshape(%v0, %heads)`;

/** The result as rows, and the product behind it. */
const rows = `%ot = Transpose(%o) {perm = [0, 2, 1, 3]}
  %oo = Reshape(%ot, %rows)
  %y = MatMul(%oo, %wo)
}`;

const plain = `%sc = MatMul(%q, %k)
  %ss = Mul(%sc, %half)
  %p = Softmax(%ss) {axis = -1}
  %o = MatMul(%p, %v)
  ${rows}`;

/** Turns pairs of neighbours as complex numbers. */
const complex = (from: string, to: string): string => `%${to}5 = Reshape(%${from}, %pairs)
  %${to}re = Gather(%${to}5, %zero) {axis = 4}
  %${to}im = Gather(%${to}5, %one) {axis = 4}
  %${to}a = Mul(%${to}re, %cos)
  %${to}b = Mul(%${to}im, %sin)
  %${to}c = Sub(%${to}a, %${to}b)
  %${to}d = Mul(%${to}re, %sin)
  %${to}e = Mul(%${to}im, %cos)
  %${to}f = Add(%${to}d, %${to}e)
  %${to}g = Unsqueeze(%${to}c, %a4)
  %${to}h = Unsqueeze(%${to}f, %a4)
  %${to}i = Concat(%${to}g, %${to}h) {axis = 4}
  %${to} = Reshape(%${to}i, %heads)`;

const cases: Readonly<Record<string, string>> = {
  'Keras: dense layers and products as Einsum, biases of heads': `graph (x: f32[b, s, 8]) -> (y) {
  opset 17
  ${['wq', 'wk', 'wv'].map((name) => weight(name, 8, 2, 4)).join('\n')}
  ${['bq', 'bk', 'bv'].map((name) => weight(name, 2, 4)).join('\n')}
  ${weight('wo', 2, 4, 8)}
  ${weight('bo', 8)}
  ${half}
  %q0 = Einsum(%x, %wq) {equation = "abc,cde->abde"}
  %q = Add(%q0, %bq)
  %k0 = Einsum(%x, %wk) {equation = "abc,cde->abde"}
  %k = Add(%k0, %bk)
  %v0 = Einsum(%x, %wv) {equation = "abc,cde->abde"}
  %v = Add(%v0, %bv)
  %qs = Mul(%q, %half)
  %sc = Einsum(%k, %qs) {equation = "aecd,abcd->acbe"}
  %p = Softmax(%sc) {axis = -1}
  %o = Einsum(%p, %v) {equation = "acbe,aecd->abcd"}
  %y0 = Einsum(%o, %wo) {equation = "abcd,cde->abe"}
  %y = Add(%y0, %bo)
}`,
  'GPT-NeoX: q, k and v of a head beside each other': `graph (x: f32[b, s, 8]) -> (y) {
  opset 17
  ${weight('w', 8, 24)}
  ${weight('c', 24)}
  ${weight('wo', 8, 8)}
  ${half}
  ${list('groups', 0, 0, 2, 12)}
  ${list('rows', 0, 0, 8)}
  ${list('parts', 4, 4, 4)}
  %l0 = MatMul(%x, %w)
  %l = Add(%c, %l0)
  %r = Reshape(%l, %groups)
  %q0, %k0, %v0 = Split(%r, %parts) {axis = -1}
  %q = Transpose(%q0) {perm = [0, 2, 1, 3]}
  %k = Transpose(%k0) {perm = [0, 2, 3, 1]}
  %v = Transpose(%v0) {perm = [0, 2, 1, 3]}
  ${plain}`,
  'Falcon: queries of a group beside their key and value': `graph (x: f32[b, s, 8]) -> (y) {
  opset 17
  ${weight('w', 8, 32)}
  ${weight('wo', 16, 8)}
  ${half}
  ${list('groups', 0, 0, 2, 4, 4)}
  ${list('heads', 0, 0, 4, 4)}
  ${list('rows', 0, 0, 16)}
  ${list('twice', 1, 1, 2, 1, 1)}
  ${list('apart', 0, 4, -1, 4)}
  ${list('a0', 0)}
  ${list('a2', 2)}
  ${list('a3', 3)}
  ${number('two', 2)}
  ${number('three', 3)}
  %l = MatMul(%x, %w)
  %r = Reshape(%l, %groups)
  %q0 = Slice(%r, %a0, %a2, %a3)
  %k0 = Gather(%r, %two) {axis = 3}
  %v0 = Gather(%r, %three) {axis = 3}
  %q1 = Reshape(%q0, %heads)
  %q = Transpose(%q1) {perm = [0, 2, 1, 3]}
  %k1 = Transpose(%k0) {perm = [0, 2, 1, 3]}
  %v1 = Transpose(%v0) {perm = [0, 2, 1, 3]}
  %k2 = Unsqueeze(%k1, %a2)
  %v2 = Unsqueeze(%v1, %a2)
  %k3 = Tile(%k2, %twice)
  %v3 = Tile(%v2, %twice)
  %k4 = Reshape(%k3, %apart)
  %v = Reshape(%v3, %apart)
  %k = Transpose(%k4) {perm = [0, 1, 3, 2]}
  ${plain}`,
  'grouped queries as Einsum in five dimensions': `graph (x: f32[b, s, 8]) -> (y) {
  opset 17
  ${weight('wq', 8, 16)}
  ${weight('wk', 8, 8)}
  ${weight('wv', 8, 8)}
  ${weight('wo', 16, 8)}
  ${half}
  ${list('groups', 0, 0, 2, 2, 4)}
  ${list('heads', 0, 0, 2, 4)}
  ${list('rows', 0, 0, 16)}
  %q0 = MatMul(%x, %wq)
  %k0 = MatMul(%x, %wk)
  %v0 = MatMul(%x, %wv)
  %q = Reshape(%q0, %groups)
  %k = Reshape(%k0, %heads)
  %v = Reshape(%v0, %heads)
  %sc = Einsum(%q, %k) {equation = "bskgd,btkd->bkgst"}
  %ss = Mul(%sc, %half)
  %p = Softmax(%ss) {axis = -1}
  %o = Einsum(%p, %v) {equation = "bkgst,btkd->bskgd"}
  %oo = Reshape(%o, %rows)
  %y = MatMul(%oo, %wo)
}`,
  'a rotary embedding of complex numbers': `graph (x: f32[b, s, 8]) -> (y) {
  opset 17
  ${projected}
  ${list('pairs', 0, 0, 2, 2, 2)}
  ${list('a4', 4)}
  ${list('a02', 0, 2)}
  ${number('zero', 0)}
  ${number('one', 1)}
  const %frequency: f32[2] = {1, 0.1}
  %shape = Shape(%x)
  %s = Gather(%shape, %one)
  %places = Range(%zero, %s, %one)
  %floats = Cast(%places) {to = 1}
  %angles = Einsum(%floats, %frequency) {equation = "i,j->ij"}
  %c0 = Cos(%angles)
  %s0 = Sin(%angles)
  %cos = Unsqueeze(%c0, %a02)
  %sin = Unsqueeze(%s0, %a02)
  ${complex('q1', 'qr')}
  ${complex('k1', 'kr')}
  %q = Transpose(%qr) {perm = [0, 2, 1, 3]}
  %k = Transpose(%kr) {perm = [0, 2, 3, 1]}
  %v = Transpose(%v1) {perm = [0, 2, 1, 3]}
  ${plain}`,
  'com.microsoft Attention: weights, bias and mask inside': `graph (x: f32[b, s, 8], mask: i32[b, s]) -> (y) {
  opset 17
  opset com.microsoft 1
  ${weight('w', 8, 24)}
  ${weight('c', 24)}
  ${weight('wo', 8, 8)}
  %oo = com.microsoft::Attention(%x, %w, %c, %mask) {num_heads = 2}
  %y = MatMul(%oo, %wo)
}`,
  'com.microsoft MultiHeadAttention: packed, with a bias': `graph (x: f32[b, s, 8]) -> (y) {
  opset 17
  opset com.microsoft 1
  ${weight('w', 8, 24)}
  ${weight('c', 24)}
  ${weight('wo', 8, 8)}
  ${list('packed', 0, 0, 2, 3, 4)}
  %l = MatMul(%x, %w)
  %r = Reshape(%l, %packed)
  %oo = com.microsoft::MultiHeadAttention(%r, _, _, %c) {num_heads = 2}
  %y = MatMul(%oo, %wo)
}`,
  'T5: a bias by distance and a mask in one sum': `graph (x: f32[b, s, 8], attention_mask: i64[b, s]) -> (y) {
  opset 17
  ${projected}
  ${list('a0', 0)}
  ${list('a1', 1)}
  ${list('a12', 1, 2)}
  ${number('zero', 0)}
  ${number('one', 1)}
  ${number('off', 3)}
  ${number('last', 7)}
  const %whole: f32[] = {1}
  const %low: f32[] = {-3.4e38}
  ${weight('table', 8, 2)}
  %shape = Shape(%x)
  %s = Gather(%shape, %one)
  %places = Range(%zero, %s, %one)
  %column = Unsqueeze(%places, %a1)
  %row = Unsqueeze(%places, %a0)
  %far = Sub(%row, %column)
  %moved = Add(%far, %off)
  %least = Max(%moved, %zero)
  %bucket = Min(%least, %last)
  %e = Gather(%table, %bucket)
  %et = Transpose(%e) {perm = [2, 0, 1]}
  %eb = Unsqueeze(%et, %a0)
  %mu = Unsqueeze(%attention_mask, %a12)
  %mf = Cast(%mu) {to = 1}
  %mi = Sub(%whole, %mf)
  %mm = Mul(%mi, %low)
  %bias = Add(%eb, %mm)
  %q = Transpose(%q1) {perm = [0, 2, 1, 3]}
  %k = Transpose(%k1) {perm = [0, 2, 3, 1]}
  %v = Transpose(%v1) {perm = [0, 2, 1, 3]}
  %sc = MatMul(%q, %k)
  %ss = Add(%sc, %bias)
  %p = Softmax(%ss) {axis = -1}
  %o = MatMul(%p, %v)
  ${rows}`,
};

/** What the attention reads besides queries, keys and values. */
const extra: Readonly<Record<string, readonly string[]>> = {
  'a rotary embedding of complex numbers': ['cos', 'sin'],
  'com.microsoft Attention: weights, bias and mask inside': ['mask'],
  'T5: a bias by distance and a mask in one sum': ['mask', 'bias'],
};

for (const [name, text] of Object.entries(cases))
  test(name, async () => {
    const model = parseModel(text);
    const original = cloneModel(model);
    await runPasses(model, pipelineFrom(['clean-up', 'fuse']));
    verifyModel(model);
    const nodes = [...model.graph.nodes()];
    const attention = nodes.find(isFusedAttention);
    assert.ok(attention !== undefined, 'no attention was recognised');
    assert.equal(nodes.filter(({ op }) => op === 'Linear').length, 2, 'one product each side');
    // what T5's buckets are computed from stays; everything else is the three nodes
    if (!name.startsWith('T5')) assert.equal(nodes.length, 3);
    assert.equal(readAttention(attention).headSize, 4);
    const given = Object.entries(attentionInputs)
      .filter(([, index]) => index > 2 && attention.inputs[index] !== undefined)
      .map(([input]) => input);
    assert.deepEqual(given.sort(), [...(extra[name] ?? [])].sort());
    const inputs = seededInputs(original, 2, { b: 2, s: 6 });
    for (const [input, { data }] of inputs)
      if (input.includes('mask'))
        for (let i = 0; i < data.length; i++)
          if (data instanceof BigInt64Array) data[i] = i % 5 === 4 ? 0n : 1n;
          else if (data instanceof Int32Array) data[i] = i % 5 === 4 ? 0 : 1;
    const wanted = evaluate(original, inputs).get('y');
    const got = evaluate(model, inputs).get('y');
    lowerForOrt(model, ortWasm);
    const ran = (await runOnOrt(encodeModel(model), inputs)).get('y');
    assert.ok(wanted !== undefined && got !== undefined && ran !== undefined);
    // sums in another order, in f32
    expectSame(got, wanted, { tolerance: 2e-6, what: 'fused' });
    expectSame(ran, wanted, { tolerance: 1e-5, what: 'on onnxruntime' });
  });

test('GPT-2: keys and values of a layer stacked in one cache get a cache each', async () => {
  const model =
    parseModel(`graph (input_ids: i64[b, s], past_0: f32[2, b, 2, p, 4]) -> (logits, present_0) {
  opset 17
  opset com.microsoft 1
  ${weight('table', 5, 8)}
  ${weight('w', 8, 24)}
  ${weight('c', 24)}
  ${weight('wo', 8, 5)}
  %x = Gather(%table, %input_ids)
  %y, %present_0 = com.microsoft::Attention(%x, %w, %c, _, %past_0) {num_heads = 2, unidirectional = 1}
  %logits = MatMul(%y, %wo)
}`);
  const original = cloneModel(model);
  await runPasses(model, pipelineFrom(['clean-up', 'fuse']));
  verifyModel(model);
  assert.equal(model.graph.nodeCount, 4);
  const names = [...model.graph.inputs, ...model.graph.outputs].map(({ name }) => name);
  const caches = ['past_0.key', 'past_0.value', 'present_0.key', 'present_0.value'];
  assert.deepEqual(names, ['input_ids', ...caches.slice(0, 2), 'logits', ...caches.slice(2)]);
  assert.equal(analyzeDecoder(model).decoder?.state.length, 2);
  const inputs = seededInputs(original, 2, { b: 1, s: 3, p: 4 });
  const past = inputs.get('past_0')?.data as Float32Array;
  const halves = [past.slice(0, past.length / 2), past.slice(past.length / 2)];
  const split = new Map(inputs);
  split.delete('past_0');
  caches.slice(0, 2).forEach((name, index) => {
    split.set(name, tensor('f32', [1, 2, 4, 4], halves[index] ?? past));
  });
  const wanted = evaluate(original, inputs);
  const got = evaluate(model, split);
  const [logits, present] = [wanted.get('logits'), wanted.get('present_0')];
  const stacked = caches.slice(2).flatMap((name) => Array.from(got.get(name)?.data ?? [], Number));
  assert.ok(logits !== undefined && present !== undefined);
  const seen = got.get('logits');
  assert.ok(seen !== undefined);
  // sums in another order
  expectSame(seen, logits, { tolerance: 1e-6, what: 'logits' });
  expectSame(tensor('f32', present.shape, Float32Array.from(stacked)), present, {
    tolerance: 1e-6,
    what: 'caches',
  });
});
