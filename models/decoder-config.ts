/**
 * What a decoder is, apart from how an exporter writes it down: sizes, rotary embedding, norms, order
 * of a block. `decoder.ts` builds the graph, `hub-config.ts` writes the matching config.json.
 */

/** How positions turn queries and keys. */
export interface RotaryConfig {
  /** Base of the frequencies (`rope_theta`). */
  readonly base: number;
  /** Which channels form a pair: `half` (i, i + n/2) as in Llama, `interleaved` (2i, 2i+1) as in GPT-J. */
  readonly pairs: 'half' | 'interleaved';
  /** Fraction of each head that is turned, in [0, 1]; the rest passes unchanged. */
  readonly fraction: number;
  /** Llama 3.1's stretching of the low frequencies. */
  readonly scaling?: {
    readonly factor: number;
    readonly lowFrequencyFactor: number;
    readonly highFrequencyFactor: number;
    readonly originalContextLength: number;
  };
}

/** Variants of attention. */
export interface AttentionConfig {
  /** Scores become `cap * tanh(score / cap)` (Gemma 2). */
  readonly softcap?: number;
  /** Most keys a query sees, in turn over the layers; 0 for all (Gemma 2 and 3, gpt-oss). */
  readonly windows?: readonly number[];
  /** Whether a trained logit per head takes part in each softmax (gpt-oss). */
  readonly sinks?: boolean;
  /** Whether scores fall with the distance, by head (ALiBi: BLOOM, MPT). */
  readonly linearBias?: boolean;
}

/** A decoder-only transformer. */
export interface DecoderConfig {
  /** `model_type` of the public family whose config.json describes it. */
  readonly family: string;
  /** Blocks. */
  readonly layers: number;
  /** Width of the residual stream. */
  readonly width: number;
  /** Query heads. */
  readonly heads: number;
  /** Key/value heads; divides `heads`. */
  readonly kvHeads: number;
  /** Channels of one head. */
  readonly headSize: number;
  /** Feed-forward part: `gated` is down(act(gate(x)) * up(x)), `plain` is down(act(up(x))). */
  readonly mlp: {
    readonly kind: 'gated' | 'plain';
    readonly width: number;
    readonly activation: 'silu' | 'gelu' | 'gelu-tanh';
  };
  /** Tokens. */
  readonly vocabulary: number;
  /** Most tokens, past and present. */
  readonly contextLength: number;
  readonly rotary: RotaryConfig;
  /** `plusOne`: the stored RMS gain g acts as 1 + g (Gemma). A layer norm has a bias. */
  readonly norm: {
    readonly kind: 'rms' | 'layer';
    readonly epsilon: number;
    readonly plusOne?: boolean;
  };
  /**
   * Where the norms sit. `pre`: x + f(norm(x)). `parallel`: x + attn(n) + mlp(n), n = norm(x).
   * `post`: norm(x + f(x)), no final norm. `output`: x + norm(f(x)).
   */
  readonly order: 'pre' | 'parallel' | 'post' | 'output';
  /** Norm over each query and key head before the rotary embedding (Qwen3, Gemma3). */
  readonly queryKeyNorm: boolean;
  /** What attention does besides the usual; absent: nothing. */
  readonly attention?: AttentionConfig;
  /** Logits become `cap * tanh(logit / cap)` (Gemma 2). */
  readonly logitSoftcap?: number;
  /** Which linear layers have a bias. */
  readonly biases: {
    readonly queryKeyValue: boolean;
    readonly attentionOutput: boolean;
    readonly mlp: boolean;
  };
  /**
   * The output head: its own matrix, the embedding table through a Transpose node, or a second,
   * transposed copy of the table (what PyTorch's constant folding leaves).
   */
  readonly head: 'untied' | 'tied' | 'tied-copy';
  /** Factor on the embeddings (Gemma: sqrt(width)). */
  readonly embeddingScale?: number;
  /** `input`: position_ids is an input. `mask`: positions are counted from attention_mask. */
  readonly positions: 'input' | 'mask';
  /** Begin-of-text id. */
  readonly startId: number;
  /** End-of-text id. */
  readonly endId: number;
}

/** Channels of a head that the rotary embedding turns. */
export function rotarySize(config: DecoderConfig): number {
  return Math.round((config.headSize * config.rotary.fraction) / 2) * 2;
}

/**
 * Angle per position of each rotary pair, in radians.
 *
 * Scaling after `_compute_llama3_parameters` of Hugging Face transformers: wavelengths beyond the
 * original context are stretched by `factor`, short ones kept, those between blended.
 */
export function rotaryFrequencies(config: DecoderConfig): Float32Array<ArrayBuffer> {
  const { base, scaling } = config.rotary;
  const size = rotarySize(config);
  return Float32Array.from({ length: size / 2 }, (_, i) => {
    const frequency = base ** ((-2 * i) / size);
    if (scaling === undefined) return frequency;
    const turns = (scaling.originalContextLength * frequency) / (2 * Math.PI);
    const { factor, lowFrequencyFactor: low, highFrequencyFactor: high } = scaling;
    const kept = Math.min(Math.max((turns - low) / (high - low), 0), 1);
    return kept * frequency + ((1 - kept) * frequency) / factor;
  });
}

/** Most keys a query of a layer sees; 0 for all. */
export function windowOf({ attention }: DecoderConfig, layer: number): number {
  const windows = attention?.windows ?? [0];
  return windows[layer % windows.length] ?? 0;
}

/**
 * Slope of each head's linear bias: powers of 2 ** (-8 / heads).
 *
 * Source: https://arxiv.org/abs/2108.12409, for a power of two of heads.
 */
export function biasSlopes({ heads }: DecoderConfig): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: heads }, (_, head) => 2 ** ((-8 * (head + 1)) / heads));
}
