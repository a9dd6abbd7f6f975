/** A decoder on onnxruntime-web with its cache kept between calls. */
import type { Tensor as OrtTensor } from 'onnxruntime-web/wasm';
import * as ort from 'onnxruntime-web/wasm';

/** Sizes of the cache. */
export interface CacheSizes {
  readonly layers: number;
  readonly kvHeads: number;
  readonly headSize: number;
}

/** A decoder that can be asked for logits. */
export interface OrtDecoder {
  /**
   * Logits [tokens * vocabulary] of a sequence.
   *
   * @param options - `continued`: after the tokens of the last call; `padding`: leading tokens to mask
   */
  logits(
    ids: readonly number[],
    options?: { continued?: boolean; padding?: number },
  ): Promise<Float32Array>;
  close(): Promise<void>;
}

/** Opens a decoder with the usual names of inputs and outputs. */
export async function openDecoder(bytes: Uint8Array, sizes: CacheSizes): Promise<OrtDecoder> {
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(bytes, {
    executionProviders: ['wasm'],
    logSeverityLevel: 3,
  });
  const { layers, kvHeads, headSize } = sizes;
  const parts = Array.from({ length: layers }, (_, layer) => [
    `${layer}.key`,
    `${layer}.value`,
  ]).flat();
  const i64 = (values: readonly number[]): OrtTensor =>
    new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
  let cache: Record<string, OrtTensor> = {};
  let before = 0;
  return {
    async logits(ids, { continued = false, padding = 0 } = {}) {
      if (!continued) {
        before = 0;
        cache = Object.fromEntries(
          parts.map((part) => [
            `past_key_values.${part}`,
            new ort.Tensor('float32', new Float32Array(0), [1, kvHeads, 0, headSize]),
          ]),
        );
      }
      const total = before + ids.length;
      const feeds = {
        ...cache,
        input_ids: i64(ids),
        attention_mask: i64(Array.from({ length: total }, (_, i) => (i < padding ? 0 : 1))),
        position_ids: i64(ids.map((_, i) => before + i)),
      };
      const known = Object.entries(feeds).filter(([name]) => session.inputNames.includes(name));
      const outputs = await session.run(Object.fromEntries(known));
      before = total;
      cache = Object.fromEntries(
        parts.map((part) => [`past_key_values.${part}`, outputs[`present.${part}`] as OrtTensor]),
      );
      return (outputs['logits'] as OrtTensor).data as Float32Array;
    },
    close: () => session.release(),
  };
}
