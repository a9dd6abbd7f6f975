/**
 * Generation: prompt -> logits -> sample -> next token, with stop ids, stop strings, limits and abort.
 * Knows a Sequence and a tokenizer, and nothing of sessions or engines.
 */
import type { Sequence } from '../engine.ts';
import { FettleError, outOfRange } from '../errors.ts';
import type { DecoderSpec } from '../manifest.ts';
import type { Sampler, SamplingOptions } from './sampling.ts';
import { createSampler } from './sampling.ts';
import { StopStrings } from './stop.ts';
import type { TextTokenizer } from './tokenizer.ts';
import { TextStream } from './tokenizer.ts';

/** Options of `session.generate`. */
export interface GenerateOptions extends SamplingOptions {
  /** Most tokens to generate. Default 256; the context length limits it too. */
  readonly maxTokens?: number;
  /** Text that ends the generation and is not part of the result. */
  readonly stop?: string | readonly string[];
  /** Ids that end the generation, beside the model's own. */
  readonly stopIds?: readonly number[];
  /** Keep generating after the model's end ids, for measuring. Default false. */
  readonly ignoreEnd?: boolean;
  /** Append to what the session has seen instead of starting anew. Default false. */
  readonly continue?: boolean;
  /** Ends the generation before the next token, with finish `abort`. */
  readonly signal?: AbortSignal;
}

/** One generated token. */
export interface GeneratedToken {
  /** The token. */
  readonly id: number;
  /** Text that became certain with this token; empty inside a character or a possible stop string. */
  readonly text: string;
}

/** Why a generation ended: an end id or stop string, a limit, or the caller. */
export type FinishReason = 'stop' | 'length' | 'abort';

/** A finished generation. */
export interface GenerationResult {
  /** Generated ids; an id that ended the generation is the last one. */
  readonly tokens: readonly number[];
  /** Their text, without stop strings and special tokens; empty without a tokenizer. */
  readonly text: string;
  /** Why it ended. */
  readonly finish: FinishReason;
  /** Tokens fed before the first generated one. */
  readonly promptTokens: number;
  /** The sampling seed, to repeat the generation. */
  readonly seed: number;
  /** Until the first token was chosen, in milliseconds. */
  readonly firstTokenMs: number;
  /** Prompt tokens over the time of the call that took them. */
  readonly prefillTokensPerSecond: number;
  /** Tokens after the first over their time; 0 when there were none. */
  readonly decodeTokensPerSecond: number;
}

/** What a generation works with. */
export interface GenerationInputs {
  /** What the model has seen; the prompt is appended to it. */
  readonly sequence: Sequence;
  /** Limits and end ids. */
  readonly spec: DecoderSpec;
  /** Ids to feed first; at least one. */
  readonly prompt: readonly number[];
  /** Turns tokens into text, when there is one. */
  readonly tokenizer: TextTokenizer | undefined;
  /** When the caller asked, from `performance.now()`. */
  readonly startedMs: number;
}

/**
 * Checks options and fills in the model's own sampling defaults.
 *
 * @param defaults - under Hugging Face names; used only where the caller says nothing. Without
 *   `do_sample` the default is greedy, as in transformers.
 * @throws RangeError when an option is outside its range
 */
export function prepareSampler(
  options: GenerateOptions,
  defaults: Readonly<Record<string, number | boolean>>,
): Sampler {
  const { maxTokens = 256 } = options;
  if (!Number.isInteger(maxTokens) || maxTokens < 1)
    throw outOfRange('maxTokens', 'a whole number >= 1', maxTokens);
  const number = (name: string): number | undefined => {
    const value = defaults[name];
    return typeof value === 'number' ? value : undefined;
  };
  const sampled = defaults['do_sample'] === true;
  const filled: Record<string, number | undefined> = {
    temperature: options.temperature ?? (sampled ? (number('temperature') ?? 1) : 0),
    topK: options.topK ?? number('top_k'),
    topP: options.topP ?? number('top_p'),
    minP: options.minP ?? number('min_p'),
    repetitionPenalty: options.repetitionPenalty ?? number('repetition_penalty'),
    seed: options.seed,
  };
  return createSampler(
    Object.fromEntries(Object.entries(filled).filter(([, value]) => value !== undefined)),
  );
}

/**
 * Generates token by token; returns the result when it ends by itself. A consumer that stops early
 * leaves the result to `onEnd`, which is called exactly once in any case but an error.
 */
export async function* generateTokens(
  { sequence, spec, prompt, tokenizer, startedMs }: GenerationInputs,
  sampler: Sampler,
  options: GenerateOptions,
  onEnd: (result: GenerationResult) => void,
): AsyncGenerator<GeneratedToken, void> {
  const stops = stopStrings(options, tokenizer);
  const ends = new Set([...(options.ignoreEnd ? [] : spec.endIds), ...(options.stopIds ?? [])]);
  const stream = tokenizer === undefined ? undefined : new TextStream(tokenizer);
  const tokens: number[] = [];
  let text = '';
  let finish: FinishReason = 'abort';
  let [firstMs, prefillMs, lastMs] = [startedMs, 0, startedMs];
  const aborted = (): boolean => options.signal?.aborted === true;
  let failed = false;
  try {
    let next = prompt;
    while (!aborted()) {
      const beforeMs = performance.now();
      const chosen = sampler.greedy ? await sequence.next?.(next, options.signal) : undefined;
      const id =
        chosen ?? sampler.choose(await sequence.feed(next, false, options.signal), sequence.ids);
      if (aborted()) return;
      lastMs = performance.now();
      if (tokens.length === 0) [firstMs, prefillMs] = [lastMs, lastMs - beforeMs];
      tokens.push(id);
      next = [id];
      const ended = ends.has(id);
      let piece = stops.push(ended ? '' : (stream?.push(id) ?? ''));
      const full =
        tokens.length >= (options.maxTokens ?? 256) || sequence.ids.length >= spec.contextLength;
      const last = ended || stops.stopped || full;
      if (last) {
        piece += stops.push(stream?.flush() ?? '') + stops.flush();
        finish = ended || stops.stopped ? 'stop' : 'length';
      }
      text += piece;
      yield { id, text: piece };
      if (last) return;
    }
  } catch (error) {
    // A call that was aborted while it waited is an end like any other.
    failed = !aborted();
    if (failed) throw error;
  } finally {
    if (!failed)
      onEnd({
        tokens,
        text,
        finish,
        promptTokens: prompt.length,
        seed: sampler.seed,
        firstTokenMs: firstMs - startedMs,
        prefillTokensPerSecond: perSecond(prompt.length, prefillMs),
        decodeTokensPerSecond: perSecond(tokens.length - 1, lastMs - firstMs),
      });
  }
}

function perSecond(count: number, ms: number): number {
  return count > 0 && ms > 0 ? (count * 1000) / ms : 0;
}

function stopStrings(options: GenerateOptions, tokenizer: TextTokenizer | undefined): StopStrings {
  const { stop = [] } = options;
  const stops = typeof stop === 'string' ? [stop] : stop;
  if (stops.length > 0 && tokenizer === undefined)
    throw new FettleError('USAGE', 'Stop strings need a tokenizer, and the bundle has none.', {
      at: { option: 'stop' },
      fix: 'Use stopIds, or compile the model with its tokenizer.json.',
    });
  return new StopStrings(stops);
}

/**
 * A running generation: iterate it for the tokens, await `result()` for the whole.
 *
 * @example
 * const generation = session.generate('Once upon a time', { maxTokens: 64 });
 * for await (const { text } of generation) show(text);
 * const { finish, decodeTokensPerSecond } = await generation.result();
 */
export class Generation implements AsyncIterable<GeneratedToken> {
  readonly #tokens: AsyncGenerator<GeneratedToken, void>;
  readonly #ended: Promise<GenerationResult>;
  #started = false;

  /** @internal */
  constructor(
    run: (onEnd: (result: GenerationResult) => void) => AsyncGenerator<GeneratedToken, void>,
  ) {
    const { promise, resolve, reject } = deferred<GenerationResult>();
    this.#ended = promise;
    // Whoever iterates gets the error; nobody has to ask for the result as well.
    promise.catch(() => {});
    this.#tokens = (async function* (): AsyncGenerator<GeneratedToken, void> {
      try {
        yield* run(resolve);
      } catch (error) {
        reject(error);
        throw error;
      }
    })();
  }

  /** The tokens as they come. Can be iterated once; leaving the loop ends the generation. */
  [Symbol.asyncIterator](): AsyncGenerator<GeneratedToken, void> {
    if (this.#started)
      throw new FettleError('USAGE', 'A generation can be iterated once.', {
        at: { call: 'generate' },
        fix: 'Use result() for the whole, or generate again.',
      });
    this.#started = true;
    return this.#tokens;
  }

  /** The whole generation. Runs it to its end when nobody iterates; otherwise waits for whoever does. */
  async result(): Promise<GenerationResult> {
    if (!this.#started) for await (const token of this) void token;
    return this.#ended;
  }
}

/** A promise and its ends. (`Promise.withResolvers` is missing in Node 20.) */
function deferred<T>(): {
  promise: Promise<T>;
  resolve: (value: T) => void;
  reject: (error: unknown) => void;
} {
  const ends: { resolve?: (value: T) => void; reject?: (error: unknown) => void } = {};
  const promise = new Promise<T>((resolve, reject) => Object.assign(ends, { resolve, reject }));
  return { promise, resolve: (value) => ends.resolve?.(value), reject: (e) => ends.reject?.(e) };
}
