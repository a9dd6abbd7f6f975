/** Attention in forms that the generated decoders do not have: recognised, equal, and equal on onnxruntime. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { parseModel } from '../../compiler/ir/parse.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import {
  attentionInputs,
  isFusedAttention,
  readAttention,
} from '../../compiler/ops/fused-attention.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { ortWasm } from '../../targets/ort-wasm.ts';
import { expectSame } from '../support/expect-same.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { seededInputs } from '../support/seeded-inputs.ts';

/** Two heads of queries and keys from projections of x. */
const heads = `const %sh: i64[4] = {0, 0, 2, 2}
  const %rows: i64[3] = {0, 0, 4}
  const %wq: f32[4, 4] = {1, 0, 2, 1, 0, 1, -1, 0, 1, 1, 0, 2, 0, 1, 1, -1}
  const %wk: f32[4, 4] = {0.3, 0, 0.2, 1, 0, 1, -1, 0.5, 1, 0.1, 0, 2, 0, 1, 0.7, -1}
  %ql = MatMul(%x, %wq)
  %kl = MatMul(%x, %wk)
  %q4 = Reshape(%ql, %sh)
  %k4 = Reshape(%kl, %sh)
  %q = Transpose(%q4) {perm = [0, 2, 1, 3]}
  %k = Transpose(%k4) {perm = [0, 2, 1, 3]}
  %kt = Transpose(%k4) {perm = [0, 2, 3, 1]}`;
const tail = `%ot = Transpose(%o) {perm = [0, 2, 1, 3]}
  %y = Reshape(%ot, %rows)
}`;
/** Graphs by what they show. */
const cases = {
  'onnx 23, heads apart': `graph (x: f32[b, s, 4]) -> (y) {
  opset 23
  ${heads}
  %o = Attention(%q, %k, %k) {is_causal = 1, softcap = 5.0}
  ${tail}`,
  'onnx 23, rows of tokens': `graph (x: f32[b, s, 4]) -> (y) {
  opset 23
  ${heads}
  %y = Attention(%ql, %kl, %kl) {is_causal = 1, q_num_heads = 2, kv_num_heads = 2}
}`,
  'com.microsoft MultiHeadAttention': `graph (x: f32[b, s, 4]) -> (y) {
  opset 17
  opset com.microsoft 1
  ${heads}
  %y = com.microsoft::MultiHeadAttention(%ql, %kl, %kl) {num_heads = 2}
}`,
  'a soft cap and a sliding window': `graph (x: f32[b, s, 4]) -> (y) {
  opset 17
  const %cap: f32[] = {3}
  const %zero: i64[] = {0}
  const %one: i64[] = {1}
  const %win: i64[] = {3}
  const %a1: i64[1] = {1}
  const %low: f32[] = {-1e30}
  const %fz: f32[] = {0}
  ${heads}
  %shape = Shape(%x)
  %s = Gather(%shape, %one) {axis = 0}
  %r = Range(%zero, %s, %one)
  %rc = Unsqueeze(%r, %a1)
  %later = Greater(%r, %rc)
  %d = Sub(%rc, %r)
  %far = GreaterOrEqual(%d, %win)
  %hide = Or(%later, %far)
  %m = Where(%hide, %low, %fz)
  %sc = MatMul(%q, %kt)
  %sd = Div(%sc, %cap)
  %th = Tanh(%sd)
  %st = Mul(%th, %cap)
  %sm = Add(%st, %m)
  %p = Softmax(%sm) {axis = -1}
  %o = MatMul(%p, %k)
  ${tail}`,
  'a bias by distance': `graph (x: f32[b, s, 4]) -> (y) {
  opset 17
  const %slope: f32[2, 1, 1] = {0.5, 0.25}
  const %zero: i64[] = {0}
  const %one: i64[] = {1}
  const %a1: i64[1] = {1}
  ${heads}
  %shape = Shape(%x)
  %s = Gather(%shape, %one) {axis = 0}
  %r = Range(%zero, %s, %one)
  %rc = Unsqueeze(%r, %a1)
  %d = Sub(%r, %rc)
  %df = Cast(%d) {to = 1}
  %al = Mul(%slope, %df)
  %sc = MatMul(%q, %kt)
  %sm = Add(%al, %sc)
  %p = Softmax(%sm) {axis = 3}
  %o = MatMul(%p, %k)
  ${tail}`,
  'cross attention with padding': `graph (x: f32[b, s, 4], enc: f32[b, e, 4], encoder_attention_mask: i64[b, e]) -> (y) {
  opset 17
  const %ax: i64[2] = {1, 2}
  const %low: f32[] = {-65504}
  const %onef: f32[] = {1}
  ${heads.replaceAll('%kl = MatMul(%x', '%kl = MatMul(%enc')}
  %u = Unsqueeze(%encoder_attention_mask, %ax)
  %uf = Cast(%u) {to = 1}
  %inv = Sub(%onef, %uf)
  %m = Mul(%inv, %low)
  %sc = MatMul(%q, %kt)
  %sm = Add(%sc, %m)
  %p = Softmax(%sm) {axis = 3}
  %o = MatMul(%p, %k)
  ${tail}`,
} as const;

/** What each comes to: causal, window, soft cap, and the masks that stay as inputs. */
const expected: Readonly<Record<keyof typeof cases, readonly unknown[]>> = {
  'onnx 23, heads apart': [true, 0, 5, []],
  'onnx 23, rows of tokens': [true, 0, 0, []],
  'com.microsoft MultiHeadAttention': [false, 0, 0, []],
  'a soft cap and a sliding window': [true, 3, 3, []],
  'a bias by distance': [false, 0, 0, ['bias']],
  'cross attention with padding': [false, 0, 0, ['mask']],
};

for (const [name, text] of Object.entries(cases))
  test(`${name} is one attention and computes the same`, async () => {
    const model = parseModel(text);
    const original = cloneModel(model);
    await runPasses(model, pipelineFrom(['clean-up', 'fuse']));
    const node = [...model.graph.nodes()].find(isFusedAttention);
    assert.ok(node !== undefined, 'no attention was recognised');
    const { causal, window, softcap } = readAttention(node);
    const masks = (['mask', 'bias'] as const).filter(
      (input) => node.inputs[attentionInputs[input]] !== undefined,
    );
    assert.deepEqual([causal, window, softcap, masks], expected[name as keyof typeof cases]);
    const inputs = seededInputs(original, 2, { b: 2, s: 6, e: 4 });
    for (const [input, { data }] of inputs)
      if (input.includes('mask') && data instanceof BigInt64Array)
        data.set([1n, 1n, 0n, 1n, 1n, 0n, 1n, 1n]);
    const wanted = evaluate(original, inputs).get('y');
    const got = evaluate(model, inputs).get('y');
    lowerForOrt(model, ortWasm);
    const ran = (await runOnOrt(encodeModel(model), inputs)).get('y');
    assert.ok(wanted !== undefined && got !== undefined && ran !== undefined);
    // sums in another order, in f32
    expectSame(got, wanted, { tolerance: 1e-6, what: 'fused' });
    expectSame(ran, wanted, { tolerance: 1e-5, what: 'on onnxruntime' });
  });
