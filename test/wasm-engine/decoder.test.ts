import assert from 'node:assert/strict';
import { test } from 'node:test';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import { zeros } from '../../runtime/tensor.ts';
import type { FusedDecoderOptions } from '../support/fused-decoder.ts';
import { fusedDecoder } from '../support/fused-decoder.ts';
import { planBundle } from '../support/plan-session.ts';

const ids = Array.from({ length: 23 }, (_, i) => (i * 37 + 11) % 80);

/** Logits of the reference evaluator. */
function reference(model: Model, decoder: DecoderSpec): Float32Array {
  const feeds = new Map([
    [
      'input_ids',
      { dtype: 'i64' as const, shape: [1, ids.length], data: BigInt64Array.from(ids, BigInt) },
    ],
    ...decoder.state.map(
      ({ input, shape }) =>
        [
          input,
          zeros(
            'f32',
            shape.map((dim, axis) => (axis === 2 ? 0 : typeof dim === 'number' ? dim : 1)),
          ),
        ] as const,
    ),
  ]);
  return evaluate(model, feeds).get('logits')?.data as Float32Array;
}

/** Largest difference as a fraction of the range of the reference. */
function distance(got: ArrayLike<number>, want: Float32Array): number {
  assert.equal(got.length, want.length);
  let worst = 0;
  let [low, high] = [Infinity, -Infinity];
  want.forEach((value, i) => {
    worst = Math.max(worst, Math.abs(value - (got[i] ?? Number.NaN)));
    assert.ok(Number.isFinite(got[i]), `element ${i} is ${got[i]}`);
    [low, high] = [Math.min(low, value), Math.max(high, value)];
  });
  return worst / (high - low);
}

// f32: both sum in f32, in different orders
const cases: readonly (readonly [string, FusedDecoderOptions, number])[] = [
  ['f32', {}, 1e-5],
  ['packed q, k and v', { packed: true }, 1e-5],
  ['norms of heads', { headNorms: true }, 1e-5],
  ['a sliding window', { window: 5 }, 1e-5],
  ['an untied head', { tied: false }, 1e-5],
];

for (const [name, options, most] of cases)
  test(`a decoder with ${name} gives the evaluator's logits, whatever the chunks`, async () => {
    const { model, decoder } = fusedDecoder(options);
    const want = reference(model, decoder);
    for (const chunk of [7, 64]) {
      const session = await (await planBundle(model, decoder, { chunk })).open();
      const { data } = await session.logits(ids);
      assert.ok(
        distance(data as Float32Array, want) <= most,
        `${distance(data as Float32Array, want)}`,
      );
      await session.dispose();
    }
  });
