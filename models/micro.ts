/**
 * Micro decoders: two layers of width 64, one for each way that decoders differ, so that a rewrite is
 * tried on all of them in milliseconds. The list is that of ALGORITHMS Z8.
 */
import type { DecoderConfig } from './decoder-config.ts';

const gqa: DecoderConfig = {
  family: 'llama',
  layers: 2,
  width: 64,
  heads: 4,
  kvHeads: 2,
  headSize: 16,
  mlp: { kind: 'gated', width: 128, activation: 'silu' },
  vocabulary: 128,
  contextLength: 256,
  rotary: { base: 10_000, pairs: 'half', fraction: 1 },
  norm: { kind: 'rms', epsilon: 1e-5 },
  order: 'pre',
  queryKeyNorm: false,
  head: 'tied',
  positions: 'input',
  biases: { queryKeyValue: false, attentionOutput: false, mlp: false },
  startId: 0,
  endId: 1,
};

// onnxruntime wants at least 8 pairs to turn: half of a head of 32
const wideHeads = {
  heads: 2,
  kvHeads: 1,
  headSize: 32,
  rotary: { ...gqa.rotary, fraction: 0.5 },
} as const;
const allBiases = { queryKeyValue: true, attentionOutput: true, mlp: true };
const layerNorm = { kind: 'layer', epsilon: 1e-5 } as const;
const plainMlp = { kind: 'plain', width: 128, activation: 'gelu' } as const;

/** Names after `micro:`. */
export type MicroName =
  | 'gqa'
  | 'mha'
  | 'mqa'
  | 'interleaved'
  | 'partial-rotary'
  | 'scaled-rotary'
  | 'qk-norm'
  | 'qkv-bias'
  | 'biases'
  | 'untied'
  | 'tied-copy'
  | 'layer-norm'
  | 'plus-one'
  | 'parallel'
  | 'post-norm'
  | 'output-norm'
  | 'mask-positions'
  | 'softcap-windows'
  | 'sinks'
  | 'linear-bias';

/** Micro decoders by the name after `micro:`; each differs from `gqa` in what its name says. */
export const microDecoders: Readonly<Record<MicroName, DecoderConfig>> = {
  /** Grouped queries: 4 query heads share 2 key/value heads; the base of the others. */
  gqa,
  /** As many key/value heads as query heads. */
  mha: { ...gqa, kvHeads: 4 },
  /** One key/value head. */
  mqa: { ...gqa, kvHeads: 1 },
  /** Rotary pairs (2i, 2i+1), as GPT-J. */
  interleaved: { ...gqa, family: 'gptj', rotary: { ...gqa.rotary, pairs: 'interleaved' } },
  /** Half of each head turned, as Phi. */
  'partial-rotary': { ...gqa, ...wideHeads, family: 'phi' },
  /** Llama 3.1's frequency scaling. */
  'scaled-rotary': {
    ...gqa,
    rotary: {
      ...gqa.rotary,
      scaling: {
        factor: 8,
        lowFrequencyFactor: 1,
        highFrequencyFactor: 4,
        originalContextLength: 32,
      },
    },
  },
  /** Norm of query and key heads, as Qwen3. */
  'qk-norm': { ...gqa, family: 'qwen3', queryKeyNorm: true },
  /** Biases of query, key and value, as Qwen2. */
  'qkv-bias': { ...gqa, family: 'qwen2', biases: { ...gqa.biases, queryKeyValue: true } },
  /** Biases of every linear layer. */
  biases: { ...gqa, biases: allBiases },
  /** An output head of its own. */
  untied: { ...gqa, head: 'untied' },
  /** The table stored a second time, transposed. */
  'tied-copy': { ...gqa, head: 'tied-copy' },
  /** Layer norm with bias, plain GELU feed-forward. */
  'layer-norm': {
    ...gqa,
    family: 'stablelm',
    norm: layerNorm,
    mlp: plainMlp,
    biases: allBiases,
  },
  /** Gains of 1 + g, tanh GELU, scaled embeddings, as Gemma. */
  'plus-one': {
    ...gqa,
    family: 'gemma',
    norm: { kind: 'rms', epsilon: 1e-6, plusOne: true },
    mlp: { kind: 'gated', width: 128, activation: 'gelu-tanh' },
    embeddingScale: 8,
  },
  /** Attention and feed-forward side by side, as Phi. */
  parallel: {
    ...gqa,
    family: 'phi',
    order: 'parallel',
    norm: layerNorm,
    mlp: { ...plainMlp, activation: 'gelu-tanh' },
    biases: allBiases,
    ...wideHeads,
    head: 'untied',
  },
  /** Norm after the residual addition. */
  'post-norm': { ...gqa, order: 'post', norm: layerNorm, mlp: plainMlp, biases: allBiases },
  /** Norm of each branch before the addition, as OLMo 2. */
  'output-norm': { ...gqa, family: 'olmo2', order: 'output' },
  /** No position_ids: positions are counted from the mask. */
  'mask-positions': { ...gqa, positions: 'mask' },
  /** Soft caps on scores and logits, every other layer sees a window, as Gemma 2 and 3. */
  'softcap-windows': {
    ...gqa,
    family: 'gemma2',
    attention: { softcap: 5, windows: [4, 0] },
    logitSoftcap: 30,
  },
  /** A trained logit in each softmax, every other layer sees a window, as gpt-oss. */
  sinks: { ...gqa, family: 'gpt_oss', attention: { sinks: true, windows: [4, 0] } },
  /** Scores that fall with the distance instead of a rotary embedding, as BLOOM and MPT. */
  'linear-bias': {
    ...gqa,
    family: 'bloom',
    kvHeads: 4,
    rotary: { ...gqa.rotary, fraction: 0 },
    attention: { linearBias: true },
    norm: layerNorm,
    mlp: { ...plainMlp, activation: 'gelu-tanh' },
    biases: allBiases,
  },
};
