/** Seeded inputs of a sentence encoder, for Fettle and for onnxruntime. */
import type { Tensor } from '../../runtime/tensor.ts';
import { tensor } from '../../runtime/tensor.ts';
import { uniformStream } from '../../models/random.ts';

/** input_ids, attention_mask (the last `padding` tokens are 0) and token_type_ids of one sentence. */
export function encoderFeeds(
  vocabulary: number,
  tokens: number,
  seed: number,
  padding = 0,
): Record<string, Tensor> {
  const next = uniformStream(seed);
  const row = (value: (index: number) => number): Tensor =>
    tensor(
      'i64',
      [1, tokens],
      BigInt64Array.from({ length: tokens }, (_, i) => BigInt(value(i))),
    );
  return {
    input_ids: row(() => Math.floor(next() * vocabulary)),
    attention_mask: row((i) => (i < tokens - padding ? 1 : 0)),
    token_type_ids: row(() => 0),
  };
}

/** Cosine of the angle between two vectors. */
export function cosine(a: Float32Array, b: Float32Array): number {
  let [ab, aa, bb] = [0, 0, 0];
  a.forEach((x, i) => {
    const y = b[i] ?? 0;
    ab += x * y;
    aa += x * x;
    bb += y * y;
  });
  return ab / Math.sqrt(aa * bb);
}

/** The smallest cosine between rows. */
export function leastCosine(a: Float32Array, b: Float32Array, columns: number): number {
  let least = 1;
  for (let at = 0; at < a.length; at += columns)
    least = Math.min(least, cosine(a.subarray(at, at + columns), b.subarray(at, at + columns)));
  return least;
}
