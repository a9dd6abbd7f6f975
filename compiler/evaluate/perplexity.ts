/**
 * Perplexity of a decoder on a text, by sliding windows.
 *
 * Every token after the first is predicted exactly once. A window holds `windowTokens` inputs and each
 * window starts `strideTokens` after the one before it; only the targets that no earlier window
 * predicted are counted. With stride = window (the default) windows do not overlap, which is the
 * cheapest and the most pessimistic reading: the first targets of each window have little context.
 *
 *   perplexity = exp(mean of -ln p(token | tokens before it in the window))
 */
import { FettleError, outOfRange, throwIfAborted } from '../../runtime/errors.ts';
import type { Progress } from '../passes/pass.ts';

/** A decoder as evaluation sees it. */
export interface LogitsModel {
  /** Size of the vocabulary. */
  readonly vocabulary: number;
  /** Most tokens of one call. */
  readonly contextLength: number;
  /**
   * Logits of every position, with nothing before them.
   *
   * @param ids - 1 to `contextLength` token ids
   * @returns [ids.length, vocabulary], row-major; valid until the next call
   */
  logits(ids: readonly number[]): Promise<Float32Array>;
}

/** How to walk over the text. */
export interface PerplexityOptions {
  /** Inputs of a window. Default 256, at most the model's context. */
  readonly windowTokens?: number;
  /** Distance between windows. Default `windowTokens`. */
  readonly strideTokens?: number;
  /** Stop after this many tokens of text. Default: all. */
  readonly maxTokens?: number;
  /** Told after each window. */
  readonly progress?: Progress;
  /** Aborts between windows. */
  readonly signal?: AbortSignal | undefined;
}

/** Result of {@link perplexity}. */
export interface Perplexity {
  /** exp(mean negative log likelihood). */
  readonly perplexity: number;
  /** Mean negative log2 likelihood. */
  readonly bitsPerToken: number;
  /** Targets counted. */
  readonly tokens: number;
  /** Windows run. */
  readonly windows: number;
}

/**
 * Measures perplexity.
 *
 * @param model - the decoder
 * @param ids - token ids of the text, at least 2
 * @throws {@link FettleError} USAGE when the text is too short; MODEL_INVALID when the logits are not
 *   finite where a target needs them
 */
export async function perplexity(
  model: LogitsModel,
  ids: readonly number[],
  options: PerplexityOptions = {},
): Promise<Perplexity> {
  const windowTokens = options.windowTokens ?? Math.min(256, model.contextLength);
  const strideTokens = options.strideTokens ?? windowTokens;
  if (!(windowTokens >= 1 && windowTokens <= model.contextLength))
    throw outOfRange('windowTokens', `1 to ${model.contextLength}`, windowTokens);
  if (!(strideTokens >= 1 && strideTokens <= windowTokens))
    throw outOfRange('strideTokens', `1 to ${windowTokens}`, strideTokens);
  const text = ids.slice(0, options.maxTokens ?? ids.length);
  if (text.length < 2)
    throw new FettleError(
      'USAGE',
      `Perplexity needs a text of at least 2 tokens, got ${text.length}.`,
      { fix: 'Give a longer text.' },
    );

  let nats = 0;
  let counted = 0; // targets up to here (exclusive of the first token) have been predicted
  let windows = 0;
  for (let start = 0; counted < text.length - 1; start += strideTokens) {
    throwIfAborted(options.signal);
    const inputs = text.slice(start, Math.min(start + windowTokens, text.length - 1));
    const logits = await model.logits(inputs);
    for (let i = counted - start; i < inputs.length; i++) {
      const target = text[start + i + 1] ?? 0;
      nats += negativeLogLikelihood(logits, i * model.vocabulary, model.vocabulary, target);
    }
    if (!Number.isFinite(nats))
      throw new FettleError('MODEL_INVALID', 'Perplexity met logits that are not finite.', {
        at: { window: windows, token: start },
        fix: 'Check the weights for NaN or infinity: fettle inspect reports them.',
      });
    counted = start + inputs.length;
    windows++;
    options.progress?.('perplexity', counted, text.length - 1);
  }
  const mean = nats / counted;
  return {
    perplexity: Math.exp(mean),
    bitsPerToken: mean / Math.LN2,
    tokens: counted,
    windows,
  };
}

/** -ln softmax(row)[target] of the row that starts at `offset`. */
export function negativeLogLikelihood(
  logits: Float32Array,
  offset: number,
  vocabulary: number,
  target: number,
): number {
  let highest = -Infinity;
  for (let i = offset; i < offset + vocabulary; i++) highest = Math.max(highest, logits[i] ?? 0);
  let sum = 0;
  for (let i = offset; i < offset + vocabulary; i++) sum += Math.exp((logits[i] ?? 0) - highest);
  return highest + Math.log(sum) - (logits[offset + target] ?? NaN);
}
