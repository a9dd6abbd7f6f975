/**
 * Public decoders as configurations: real sizes, random weights. Each from the `config.json` of the
 * model's repository on the Hugging Face hub.
 */
import type { DecoderConfig } from './decoder-config.ts';

/** What these three share. */
const llamaLike = {
  norm: { kind: 'rms', epsilon: 1e-5 },
  order: 'pre',
  queryKeyNorm: false,
  head: 'tied',
  positions: 'input',
  biases: { queryKeyValue: false, attentionOutput: false, mlp: false },
} as const;

/** https://huggingface.co/HuggingFaceTB/SmolLM2-135M/blob/main/config.json */
export const smollm2Of135M: DecoderConfig = {
  ...llamaLike,
  family: 'llama',
  layers: 30,
  width: 576,
  heads: 9,
  kvHeads: 3,
  headSize: 64,
  mlp: { kind: 'gated', width: 1536, activation: 'silu' },
  vocabulary: 49152,
  contextLength: 8192,
  rotary: { base: 100_000, pairs: 'half', fraction: 1 },
  startId: 0,
  endId: 0,
};

/** https://huggingface.co/Qwen/Qwen2.5-0.5B/blob/main/config.json */
export const qwen25Of500M: DecoderConfig = {
  ...llamaLike,
  family: 'qwen2',
  layers: 24,
  width: 896,
  heads: 14,
  kvHeads: 2,
  headSize: 64,
  mlp: { kind: 'gated', width: 4864, activation: 'silu' },
  vocabulary: 151_936,
  contextLength: 32_768,
  rotary: { base: 1_000_000, pairs: 'half', fraction: 1 },
  norm: { kind: 'rms', epsilon: 1e-6 },
  biases: { queryKeyValue: true, attentionOutput: false, mlp: false },
  startId: 151_643,
  endId: 151_643,
};

/** https://huggingface.co/meta-llama/Llama-3.2-1B/blob/main/config.json */
export const llama32Of1B: DecoderConfig = {
  ...llamaLike,
  family: 'llama',
  layers: 16,
  width: 2048,
  heads: 32,
  kvHeads: 8,
  headSize: 64,
  mlp: { kind: 'gated', width: 8192, activation: 'silu' },
  vocabulary: 128_256,
  contextLength: 131_072,
  rotary: {
    base: 500_000,
    pairs: 'half',
    fraction: 1,
    scaling: {
      factor: 32,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalContextLength: 8192,
    },
  },
  startId: 128_000,
  endId: 128_001,
};

/** Real shapes by the name after `shape:`. */
export const shapeDecoders: Readonly<Record<string, DecoderConfig>> = {
  'smollm2-135m': smollm2Of135M,
  'qwen2.5-0.5b': qwen25Of500M,
  'llama-3.2-1b': llama32Of1B,
};
