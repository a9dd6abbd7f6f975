import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { buildEncoder, miniLmL6 } from '../../models/encoder.ts';
import { openCompiled } from '../support/compile-in-memory.ts';
import { encoderFeeds, leastCosine } from '../support/encoder-feeds.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { rangeDistance } from '../support/range-distance.ts';

// the shape of MiniLM-L6 with fewer words, which only make a test slower
const config = { ...miniLmL6, vocabulary: 2000 };
const TOKENS = 128;

test('an encoder of the MiniLM shape agrees with onnxruntime on the original', async () => {
  const build = (): ReturnType<typeof buildEncoder> => buildEncoder('minilm', config);
  const original = encodeModel(build());
  const float = await openCompiled('minilm', build, {});
  const coded = await openCompiled('minilm', build, { weights: 'w8g32', clip: 'none' });
  for (const [tokens, padding] of [
    [TOKENS, 40],
    [9, 2],
  ] as const) {
    const feeds = encoderFeeds(config.vocabulary, tokens, tokens + padding, padding);
    const outputs = await runOnOrt(original, new Map(Object.entries(feeds)));
    const want = outputs.get('last_hidden_state')?.data as Float32Array;
    const { last_hidden_state: f32 } = await float.run(feeds);
    const { last_hidden_state: w8 } = await coded.run(feeds);
    // both in f32, in different orders; the issue asks for 1e-4
    const distance = rangeDistance(f32?.data as Float32Array, want);
    assert.ok(distance <= 1e-5, `${distance} at ${tokens} tokens`);
    // 8-bit weights and activations; the issue asks for 0.999 of the whole output, this is the worst token
    const least = leastCosine(w8?.data as Float32Array, want, config.width);
    assert.ok(least >= 0.999, `${least} at ${tokens} tokens`);
  }
  await Promise.all([float.dispose(), coded.dispose()]);
});
