/** Perplexity and distance against values worked out by hand. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DistanceMeter } from '../../compiler/evaluate/distance.ts';
import type { LogitsModel } from '../../compiler/evaluate/perplexity.ts';
import { perplexity } from '../../compiler/evaluate/perplexity.ts';

/** Always gives token 1 the probability `p` and shares the rest among the others. */
function biased(vocabulary: number, p: number, calls: number[][] = []): LogitsModel {
  const row = Float32Array.from({ length: vocabulary }, (_, i) =>
    Math.log(i === 1 ? p : (1 - p) / (vocabulary - 1)),
  );
  return {
    vocabulary,
    contextLength: 8,
    logits: async (ids) => {
      calls.push([...ids]);
      return Float32Array.from(
        { length: ids.length * vocabulary },
        (_, i) => row[i % vocabulary] ?? 0,
      );
    },
  };
}

test('a uniform model has the perplexity of its vocabulary', async () => {
  const result = await perplexity(
    biased(16, 1 / 16),
    Array.from({ length: 40 }, (_, i) => i % 16),
  );
  assert.ok(Math.abs(result.perplexity - 16) < 1e-4); // f32 logits: 7 digits
  assert.ok(Math.abs(result.bitsPerToken - 4) < 1e-5);
  assert.equal(result.tokens, 39);
});

test('every token after the first is predicted exactly once, whatever the stride', async () => {
  for (const strideTokens of [8, 5, 1]) {
    const calls: number[][] = [];
    const ids = [1, 1, 2, 3, 1, 1, 1, 4, 5, 1, 1, 2, 1];
    const result = await perplexity(biased(6, 0.5, calls), ids, { windowTokens: 8, strideTokens });
    assert.equal(result.tokens, 12);
    // 8 of the 12 targets are token 1 with p = 1/2, the others have p = 1/10
    const wanted = Math.exp(-(7 * Math.log(0.5) + 5 * Math.log(0.1)) / 12);
    assert.ok(Math.abs(result.perplexity - wanted) < 1e-4, `${result.perplexity} and ${wanted}`);
    assert.ok(calls.every((call) => call.length <= 8));
  }
});

test('text that is too short and windows that do not fit are refused', async () => {
  await assert.rejects(perplexity(biased(4, 0.5), [1]), { code: 'USAGE' });
  await assert.rejects(perplexity(biased(4, 0.5), [1, 2, 3], { windowTokens: 9 }), RangeError);
  await assert.rejects(perplexity(biased(4, 0.5), [1, 2, 3], { strideTokens: 9 }), RangeError);
});

test('logits that are not finite are an error, not a number', async () => {
  const broken: LogitsModel = {
    ...biased(4, 0.5),
    logits: async (ids) => new Float32Array(ids.length * 4).fill(NaN),
  };
  await assert.rejects(perplexity(broken, [1, 2, 3]), { code: 'MODEL_INVALID' });
});

test('an abort ends between windows', async () => {
  await assert.rejects(
    perplexity(biased(4, 0.5), [1, 2, 3], { signal: AbortSignal.abort(new Error('enough')) }),
    /enough/,
  );
});

test('equal outputs have no distance', () => {
  const meter = new DistanceMeter();
  meter.add([1, 2, 3, 4], [1, 2, 3, 4], 2);
  assert.deepEqual(meter.result(), {
    maxError: 0,
    meanError: 0,
    relativeError: 0,
    cosine: 1,
    topOneAgreement: 1,
    klDivergence: 0,
    rows: 2,
  });
});

test('errors, cosine, agreement and divergence follow their definitions', () => {
  const meter = new DistanceMeter();
  meter.add([0, Math.log(3)], [Math.log(3), 0], 2); // p = (1/4, 3/4), q = (3/4, 1/4)
  const { maxError, meanError, relativeError, cosine, topOneAgreement, klDivergence } =
    meter.result();
  assert.ok(Math.abs(maxError - Math.log(3)) < 1e-12);
  assert.ok(Math.abs(meanError - Math.log(3)) < 1e-12);
  assert.ok(Math.abs(relativeError - 1) < 1e-12);
  assert.equal(cosine, 0);
  assert.equal(topOneAgreement, 0);
  assert.ok(Math.abs(klDivergence - 0.5 * Math.log(3)) < 1e-12);
});

test('a NaN on one side only is an infinite error', () => {
  const meter = new DistanceMeter();
  meter.add([1, 2], [1, NaN], 2);
  assert.equal(meter.result().maxError, Infinity);
});
