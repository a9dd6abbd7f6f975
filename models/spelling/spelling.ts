/**
 * A spelling is how one exporter writes a decoder: the same mathematics in other nodes. The builder
 * (`../decoder.ts`) knows the model, a spelling knows how a norm, an attention layer with its cache
 * and mask, and an activation look.
 */
import type { Model, Value } from '../../compiler/ir/graph.ts';
import type { DecoderConfig } from '../decoder-config.ts';
import type { Emitter } from '../emitter.ts';

/** Trained parameters of a norm. */
export interface NormWeights {
  /** Gain, [size]. */
  readonly gain: Value;
  /** Bias, [size], of a layer norm. */
  readonly bias?: Value;
}

/** Keys and values of one layer. */
export interface LayerCache {
  /** [batch, kvHeads, tokens, headSize]. */
  readonly key: Value;
  /** [batch, kvHeads, tokens, headSize]. */
  readonly value: Value;
}

/** Graph inputs that the layers share. */
export interface DecoderInputs {
  /** i64 [batch, sequence]. */
  readonly ids: Value;
  /** i64 [batch, total], 1 for a token and 0 for padding; total = past + sequence, or the whole context. */
  readonly mask: Value;
  /** i64 [sequence], places of the tokens in a cache of fixed length; absent when the cache grows. */
  readonly places: Value | undefined;
  /** i64 [batch, sequence]; absent when they are counted from the mask. */
  readonly positions: Value | undefined;
  /** Cache of the tokens before. */
  readonly past: readonly LayerCache[];
}

/** What an attention layer works on. */
export interface AttentionInputs {
  /** [batch, sequence, heads * headSize]. */
  readonly query: Value;
  /** [batch, sequence, kvHeads * headSize]. */
  readonly key: Value;
  /** [batch, sequence, kvHeads * headSize]. */
  readonly value: Value;
  /** Number of the layer. */
  readonly layer: number;
  /** Logit of a sink, [heads]; absent without sinks. */
  readonly sinks: Value | undefined;
  /** Norm of each query head. */
  readonly queryNorm: NormWeights | undefined;
  /** Norm of each key head. */
  readonly keyNorm: NormWeights | undefined;
  /** Cache of the tokens before. */
  readonly past: LayerCache;
}

/** The parts of one model in one spelling. Node names start with `path`. */
export interface Parts {
  /** x -> norm(x) over the last axis. */
  norm(path: string, x: Value, weights: NormWeights): Value;
  /** (skip, branch) -> skip + branch and its norm. */
  addNorm(
    path: string,
    skip: Value,
    branch: Value,
    weights: NormWeights,
  ): { readonly sum: Value; readonly normed: Value };
  /** Heads, rotary embedding, cache, mask, softmax -> [batch, sequence, heads * headSize]. */
  attention(
    path: string,
    inputs: AttentionInputs,
  ): { readonly context: Value; readonly present: LayerCache };
  /** The configured activation. */
  activation(path: string, x: Value): Value;
}

/** One exporter's way of writing. */
export interface Spelling {
  /** Name after `@` in a model reference. */
  readonly name: string;
  /** One line for lists. */
  readonly summary: string;
  /** Opset version by domain. */
  readonly opsets: Readonly<Record<string, number>>;
  /** Whether a position_ids input has a use; false when the attention op counts positions itself. */
  readonly takesPositions: boolean;
  /** `grows`: past and new tokens are joined. `fixed`: new tokens are written into the whole context. */
  readonly cache: 'grows' | 'fixed';
  /** Whether the 1 of a Gemma gain 1 + g is in the stored gain. */
  readonly foldsGainOffset: boolean;
  /** Writes what all layers share (mask, positions, rotary tables) and returns the parts. */
  start(emitter: Emitter, config: DecoderConfig, inputs: DecoderInputs): Parts;
  /** Changes the whole model when it has been written. */
  readonly finish?: (model: Model) => void;
}
