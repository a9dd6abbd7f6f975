/** onnxruntime's GroupQueryAttention agrees with onnxruntime-web. */
import type { Tensor } from '../../runtime/tensor.ts';
import type { OpCase } from '../support/op-case.ts';
import { floatsIn, testOpCases, values } from '../support/op-case.ts';

// sums over keys run in another order and precision than onnxruntime's
const tolerance = 2e-5;
const cases = (list: readonly OpCase[]): OpCase[] => list.map((one) => ({ tolerance, ...one }));

const qkv = (columns: number, seed: number, rows = 3, batch = 2): Tensor =>
  floatsIn([batch, rows, columns], seed);
const cache = (rows: number, seed: number, batch = 2): Tensor =>
  floatsIn([batch, 2, rows, 16], seed);
const lengths = (...last: number[]): Tensor => values('i32', [last.length], last);
const total = (count: number): Tensor => values('i32', [], [count]);
const cos = floatsIn([16, 8], 20);
const sin = floatsIn([16, 8], 21);
const grouped = { num_heads: 4, kv_num_heads: 2 };

testOpCases('GroupQueryAttention agrees with onnxruntime', 'com.microsoft', [
  ...cases([
    {
      name: 'first prompt, empty past',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1),
        qkv(32, 2),
        qkv(32, 3),
        cache(0, 4),
        cache(0, 5),
        lengths(2, 2),
        total(3),
      ],
      attributes: grouped,
      outputs: 3,
    },
    {
      name: 'first prompt, packed, no past, rotary',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(128, 1),
        undefined,
        undefined,
        undefined,
        undefined,
        lengths(2, 2),
        total(3),
        cos,
        sin,
      ],
      attributes: { ...grouped, do_rotary: 1 },
      outputs: 3,
    },
    {
      name: 'one token behind caches of different length, rotary interleaved',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1, 1),
        qkv(32, 2, 1),
        qkv(32, 3, 1),
        cache(5, 4),
        cache(5, 5),
        lengths(3, 5),
        total(6),
        cos,
        sin,
      ],
      attributes: { ...grouped, do_rotary: 1, rotary_interleaved: 1 },
      outputs: 3,
      compared: [0],
    },
    {
      name: 'one token, scale and softcap, present',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1, 1),
        qkv(32, 2, 1),
        qkv(32, 3, 1),
        cache(5, 4),
        cache(5, 5),
        lengths(5, 5),
        total(6),
      ],
      attributes: { ...grouped, scale: 0.7, softcap: 0.5 },
      outputs: 3,
    },
    {
      name: 'a past buffer of full length',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1, 1),
        qkv(32, 2, 1),
        qkv(32, 3, 1),
        cache(9, 4),
        cache(9, 5),
        lengths(5, 5),
        total(6),
        cos,
        sin,
      ],
      attributes: { ...grouped, do_rotary: 1 },
      outputs: 3,
      compared: [0],
    },
    {
      name: 'local window in a prompt',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1, 7),
        qkv(32, 2, 7),
        qkv(32, 3, 7),
        cache(0, 4),
        cache(0, 5),
        lengths(6, 6),
        total(7),
      ],
      attributes: { ...grouped, local_window_size: 3 },
      outputs: 3,
    },
    {
      name: 'local window while generating',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1, 1),
        qkv(32, 2, 1),
        qkv(32, 3, 1),
        cache(8, 4),
        cache(8, 5),
        lengths(8, 8),
        total(9),
      ],
      attributes: { ...grouped, local_window_size: 4 },
      outputs: 3,
    },
    {
      name: 'several tokens behind a cache',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1, 3, 1),
        qkv(32, 2, 3, 1),
        qkv(32, 3, 3, 1),
        cache(4, 4, 1),
        cache(4, 5, 1),
        lengths(6),
        total(7),
        cos,
        sin,
      ],
      attributes: { ...grouped, do_rotary: 1 },
      outputs: 3,
    },
    {
      name: 'smooth softmax',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1),
        qkv(32, 2),
        qkv(32, 3),
        cache(0, 4),
        cache(0, 5),
        lengths(2, 2),
        total(3),
      ],
      attributes: { ...grouped, smooth_softmax: 1 },
      outputs: 3,
    },
    {
      name: 'sinks, bias, position ids, of which a first prompt uses the first',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1),
        qkv(32, 2),
        qkv(32, 3),
        cache(0, 4),
        cache(0, 5),
        lengths(2, 2),
        total(3),
        cos,
        sin,
        values('i64', [2, 3], [0, 1, 2, 5, 6, 7]),
        floatsIn([1, 4, 3, 3], 6),
        floatsIn([4], 7),
      ],
      attributes: { ...grouped, do_rotary: 1, softcap: 0.8 },
      outputs: 3,
    },
    {
      name: 'not causal',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1),
        qkv(32, 2),
        qkv(32, 3),
        cache(0, 4),
        cache(0, 5),
        lengths(2, 2),
        total(3),
      ],
      attributes: { ...grouped, causal: 0 },
      outputs: 3,
    },
    {
      name: 'position ids behind a cache',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1, 1),
        qkv(32, 2, 1),
        qkv(32, 3, 1),
        cache(5, 4),
        cache(5, 5),
        lengths(5, 5),
        total(6),
        cos,
        sin,
        values('i64', [2, 1], [9, 3]),
      ],
      attributes: { ...grouped, do_rotary: 1 },
      outputs: 3,
    },
    {
      name: 'scores after softmax',
      op: 'GroupQueryAttention',
      inputs: [
        qkv(64, 1),
        qkv(32, 2),
        qkv(32, 3),
        cache(0, 4),
        cache(0, 5),
        lengths(2, 2),
        total(3),
      ],
      attributes: { ...grouped, qk_output: 2 },
      outputs: 4,
    },
  ]),
]);
