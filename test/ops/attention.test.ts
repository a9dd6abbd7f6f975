/** Attention of ONNX and of onnxruntime agrees with onnxruntime-web. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { float, int } from '../../compiler/ir/attribute.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { readNumbers } from '../../compiler/ops/numbers.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { expectSame } from '../support/expect-same.ts';
import { ModelBuilder } from '../support/model-builder.ts';
import type { OpCase } from '../support/op-case.ts';
import { floatsIn, integersIn, testOpCases, values } from '../support/op-case.ts';

// sums over keys run in another order and precision than onnxruntime's
const tolerance = 2e-5;
const cases = (list: readonly OpCase[]): OpCase[] => list.map((one) => ({ tolerance, ...one }));

const q4 = floatsIn([2, 4, 3, 8], 1, 2);
const k4 = floatsIn([2, 2, 5, 8], 2, 2);
const v4 = floatsIn([2, 2, 5, 6], 3);
const past = (seed: number, rows = 3): Tensor => floatsIn([2, 2, rows, 8], seed);

testOpCases('Attention agrees with onnxruntime', '', [
  ...cases([
    { name: 'grouped heads, rank 4', op: 'Attention', opset: 23, inputs: [q4, k4, v4] },
    {
      name: 'rank 3, scale, scores after softmax',
      op: 'Attention',
      opset: 23,
      inputs: [floatsIn([2, 3, 32], 1), floatsIn([2, 5, 16], 2), floatsIn([2, 5, 12], 3)],
      attributes: { q_num_heads: 4, kv_num_heads: 2, scale: 0.3, qk_matmul_output_mode: 3 },
      outputs: 4,
      compared: [0, 3],
    },
    {
      name: 'causal',
      op: 'Attention',
      opset: 23,
      inputs: [q4, floatsIn([2, 2, 3, 8], 2), floatsIn([2, 2, 3, 8], 3)],
      attributes: { is_causal: 1 },
    },
    {
      name: 'past, causal',
      op: 'Attention',
      opset: 23,
      inputs: [
        q4,
        floatsIn([2, 2, 3, 8], 2),
        floatsIn([2, 2, 3, 8], 3),
        undefined,
        past(4),
        past(5),
      ],
      attributes: { is_causal: 1 },
      outputs: 3,
    },
    {
      name: 'float mask with softcap, scores after capping',
      op: 'Attention',
      opset: 23,
      inputs: [q4, k4, v4, floatsIn([3, 5], 6)],
      attributes: { softcap: float(2), qk_matmul_output_mode: 1 },
      outputs: 4,
      compared: [0, 3],
    },
    {
      name: 'float mask, raw scores',
      op: 'Attention',
      opset: 23,
      inputs: [q4, k4, v4, floatsIn([2, 1, 3, 5], 6)],
      attributes: { qk_matmul_output_mode: 0 },
      outputs: 4,
      compared: [0, 3],
    },
    {
      name: 'bool mask per head, scores after mask are not compared: hidden ones differ',
      op: 'Attention',
      opset: 23,
      inputs: [
        q4,
        k4,
        v4,
        values(
          'bool',
          [4, 3, 5],
          Array.from({ length: 60 }, (_, i) => (i % 3 === 1 ? 0 : 1)),
        ),
      ],
    },
    {
      name: 'valid keys per sequence',
      op: 'Attention',
      opset: 24,
      inputs: [q4, k4, v4, undefined, undefined, undefined, values('i64', [2], [2, 5])],
    },
    {
      name: 'valid keys per sequence, causal from the last valid key',
      op: 'Attention',
      opset: 24,
      inputs: [q4, k4, v4, undefined, undefined, undefined, values('i64', [2], [4, 5])],
      attributes: { is_causal: 1 },
    },
    {
      name: 'two halves, ids',
      op: 'RotaryEmbedding',
      opset: 23,
      inputs: [
        floatsIn([2, 4, 3, 8], 1),
        floatsIn([10, 4], 2),
        floatsIn([10, 4], 3),
        integersIn('i64', [2, 3], 0, 10, 4),
      ],
    },
    {
      name: 'rank 3, interleaved, caches per token',
      op: 'RotaryEmbedding',
      opset: 23,
      inputs: [floatsIn([2, 3, 32], 1), floatsIn([2, 3, 4], 2), floatsIn([2, 3, 4], 3)],
      attributes: { num_heads: 4, interleaved: 1 },
    },
    {
      name: 'part of each head',
      op: 'RotaryEmbedding',
      opset: 23,
      inputs: [
        floatsIn([2, 4, 3, 8], 1),
        floatsIn([10, 2], 2),
        floatsIn([10, 2], 3),
        integersIn('i64', [2, 3], 0, 10, 4),
      ],
      attributes: { rotary_embedding_dim: 4 },
    },
    {
      name: 'linear',
      op: 'TensorScatter',
      opset: 24,
      inputs: [floatsIn([2, 3, 6, 4], 1), floatsIn([2, 3, 2, 4], 2), values('i64', [2], [1, 4])],
    },
    {
      name: 'circular',
      op: 'TensorScatter',
      opset: 24,
      inputs: [floatsIn([2, 3, 6, 4], 1), floatsIn([2, 3, 2, 4], 2), values('i64', [2], [5, 4])],
      attributes: { mode: 'circular' },
    },
  ]),
]);

const qkv = (columns: number, seed: number, rows = 3, batch = 2): Tensor =>
  floatsIn([batch, rows, columns], seed);
const eight = { num_heads: 4 };
const narrowCos = floatsIn([16, 4], 22);
const narrowSin = floatsIn([16, 4], 23);

testOpCases('MultiHeadAttention and Attention agree with onnxruntime', 'com.microsoft', [
  ...cases([
    {
      name: 'self attention with bias and padding',
      op: 'MultiHeadAttention',
      inputs: [
        qkv(32, 1),
        qkv(32, 2, 5),
        qkv(24, 3, 5),
        floatsIn([88], 4),
        values('i32', [2, 5], [1, 1, 1, 0, 0, 1, 1, 1, 1, 0]),
      ],
      attributes: eight,
    },
    {
      name: 'padding as lengths',
      op: 'MultiHeadAttention',
      inputs: [qkv(32, 1), qkv(32, 2, 5), qkv(32, 3, 5), undefined, values('i32', [2], [4, 2])],
      attributes: eight,
    },
    {
      name: 'attention bias, past, present, causal',
      op: 'MultiHeadAttention',
      inputs: [
        qkv(32, 1),
        qkv(32, 2),
        qkv(32, 3),
        undefined,
        undefined,
        floatsIn([1, 4, 3, 5], 4),
        floatsIn([2, 4, 2, 8], 5),
        floatsIn([2, 4, 2, 8], 6),
      ],
      attributes: { ...eight, unidirectional: 1, scale: 0.4 },
      outputs: 3,
    },
    {
      name: 'cross attention over split keys',
      op: 'MultiHeadAttention',
      inputs: [qkv(32, 1), floatsIn([2, 4, 5, 8], 2), floatsIn([2, 4, 5, 8], 3)],
      attributes: eight,
    },
    {
      name: 'BERT style with padding mask',
      op: 'Attention',
      inputs: [
        qkv(16, 1),
        floatsIn([16, 96], 2),
        floatsIn([96], 3),
        values('i32', [2, 3], [1, 1, 0, 1, 1, 1]),
      ],
      attributes: eight,
    },
    {
      name: 'lengths and starts as mask',
      op: 'Attention',
      inputs: [
        qkv(16, 1),
        floatsIn([16, 96], 2),
        floatsIn([96], 3),
        values('i32', [4], [3, 2, 1, 0]),
      ],
      attributes: eight,
    },
    {
      name: 'mask per query',
      op: 'Attention',
      inputs: [
        qkv(16, 1),
        floatsIn([16, 96], 2),
        floatsIn([96], 3),
        values('i32', [2, 3, 3], [1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1]),
      ],
      attributes: eight,
    },
    {
      name: 'GPT-2 style with past',
      op: 'Attention',
      inputs: [
        qkv(16, 1),
        floatsIn([16, 96], 2),
        floatsIn([96], 3),
        undefined,
        floatsIn([2, 2, 4, 2, 8], 4),
      ],
      attributes: { ...eight, unidirectional: 1 },
      outputs: 2,
    },
    {
      name: 'values of another width, attention bias',
      op: 'Attention',
      inputs: [
        qkv(16, 1),
        floatsIn([16, 88], 2),
        floatsIn([88], 3),
        undefined,
        undefined,
        floatsIn([2, 1, 3, 3], 4),
      ],
      attributes: { ...eight, qkv_hidden_sizes: [32, 32, 24] },
    },
    {
      name: 'one query, a shared buffer',
      op: 'DecoderMaskedMultiHeadAttention',
      inputs: [
        qkv(32, 1, 1),
        qkv(32, 2, 1),
        qkv(32, 3, 1),
        values('i32', [2, 4], [1, 1, 0, 1, 1, 1, 1, 1]),
        undefined,
        floatsIn([2, 4, 6, 8], 5),
        floatsIn([2, 4, 6, 8], 6),
        values('i32', [1], [3]),
        values('i32', [1], [1]),
      ],
      attributes: { ...eight, past_present_share_buffer: 1 },
      outputs: 3,
      compared: [0],
    },
    {
      name: 'offset',
      op: 'RotaryEmbedding',
      inputs: [qkv(32, 1), values('i64', [1], [4]), narrowCos, narrowSin],
    },
    {
      name: 'ids, interleaved, part of a head',
      op: 'RotaryEmbedding',
      inputs: [qkv(48, 1), integersIn('i64', [2, 3], 0, 16, 2), narrowCos, narrowSin],
      attributes: { num_heads: 4, rotary_embedding_dim: 8, interleaved: 1 },
    },
    {
      name: 'rank 4',
      op: 'RotaryEmbedding',
      inputs: [
        floatsIn([2, 4, 3, 8], 1),
        integersIn('i64', [2, 3], 0, 16, 2),
        narrowCos,
        narrowSin,
      ],
    },
  ]),
]);

test('packed inputs of MultiHeadAttention mean the same as separate ones', () => {
  // onnxruntime has these layouts on GPUs only
  const [q, k, v] = [1, 2, 3].map((seed) => floatsIn([2, 3, 4, 8], seed));
  const pack = (...parts: (Tensor | undefined)[]): Tensor => {
    const data = parts.map((part) => readNumbers(part ?? floatsIn([0])));
    const rows = Array.from({ length: 2 * 3 * 4 }, (_, row) =>
      data.map((part) => [...part.subarray(8 * row, 8 * row + 8)]),
    );
    return values('f32', [2, 3, 4, parts.length, 8], rows.flat(2));
  };
  const flat = (x: Tensor | undefined): Tensor => ({ ...(x ?? floatsIn([0])), shape: [2, 3, 32] });
  const run = (...inputs: Tensor[]): Tensor | undefined => {
    const builder = new ModelBuilder(22, { 'com.microsoft': 1 });
    const operands = inputs.map((input, i) => builder.constant(`in${i}`, input));
    const options = { domain: 'com.microsoft' };
    const attributes = { num_heads: int(4) };
    builder.output('y', builder.op('MultiHeadAttention', operands, attributes, options));
    return evaluate(builder.model, {}).get('y');
  };
  const wanted = run(flat(q), flat(k), flat(v));
  assert.ok(wanted !== undefined);
  for (const got of [run(pack(q, k, v)), run(flat(q), pack(k, v))]) {
    assert.ok(got !== undefined);
    expectSame(got, wanted, { tolerance: 0, what: 'packed' });
  }
});
