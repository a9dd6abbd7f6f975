/**
 * A loaded bundle: run, generate, measure, check. Engine-neutral. Calls on one session happen one after
 * the other; a generation keeps the session to itself until it ends. Sessions do not affect each other.
 */
import type { Canary, CheckReport } from './canaries.ts';
import { compareCanary, readCanaries } from './canaries.ts';
import { parseJson } from './check.ts';
import { Decoder } from './decoder.ts';
import type { Program, Sequence, StepTime } from './engine.ts';
import { FettleError, throwIfAborted } from './errors.ts';
import { checkInputs } from './inputs.ts';
import type { DecoderSpec, Manifest } from './manifest.ts';
import type { HostMemory, Measurement, MemorySource } from './measure.ts';
import { Samples } from './measure.ts';
import { Queue } from './queue.ts';
import type { Tensor } from './tensor.ts';
import { tensor } from './tensor.ts';
import type { ChatMessage, JinjaModule } from './text/chat.ts';
import { renderChat } from './text/chat.ts';
import type { GenerateOptions, GenerationResult, GeneratedToken } from './text/generate.ts';
import { Generation, generateTokens, prepareSampler } from './text/generate.ts';
import type { TextTokenizer, TokenizersModule } from './text/tokenizer.ts';
import { createTokenizer } from './text/tokenizer.ts';

/** Packages for text, for pages that bring their own copies. */
export interface TextModules {
  /** `@huggingface/tokenizers`. */
  readonly tokenizers?: () => Promise<TokenizersModule>;
  /** `@huggingface/jinja`. */
  readonly jinja?: () => Promise<JinjaModule>;
}

/** What a session is made of; `openBundle` puts it together. */
export interface SessionParts {
  /** The checked manifest. */
  readonly manifest: Manifest;
  /** The loaded model; the session disposes it. */
  readonly program: Program;
  /** Reads and checks one of `manifest.files`. */
  readonly readFile: (path: string) => Promise<Uint8Array<ArrayBuffer>>;
  /** How long the load took, in milliseconds. */
  readonly loadMs: number;
  /** Packages for text. */
  readonly text?: TextModules;
  /** Memory of the host process. */
  readonly hostMemory?: () => HostMemory;
}

/** A prompt: text, token ids, or a conversation. */
type Prompt =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'ids'; readonly ids: readonly number[] }
  | { readonly kind: 'chat'; readonly messages: readonly ChatMessage[] };

/** A loaded bundle. Made by `openBundle`; `dispose()` it when done. */
export class Session {
  /** What the bundle says about itself. */
  readonly manifest: Manifest;
  readonly #parts: SessionParts;
  readonly #queue = new Queue();
  readonly #latency = new Samples();
  #sequence: Sequence | undefined;
  /** Last generated token: sampled, not fed yet. */
  #pending: number | undefined;
  #tokenizer: Promise<TextTokenizer> | undefined;
  #generating: AbortController | undefined;
  #latest: GenerationResult | undefined;
  #disposed: Promise<void> | undefined;
  #peakBytes = 0;

  constructor(parts: SessionParts) {
    this.manifest = parts.manifest;
    this.#parts = parts;
    this.#notePeak();
  }

  /**
   * Runs the model once. Calls on one session queue up.
   *
   * @param inputs - every input of the model by name; not changed
   * @param options - `signal` rejects with its reason; a call that has begun is not interrupted
   * @returns every output by name; the caller's to keep
   * @throws {@link FettleError} USAGE when an input is missing, unknown or has the wrong dtype or shape,
   *   while a generation runs, or after dispose; DEVICE_LOST, BUDGET_EXCEEDED, MODEL_INVALID from the engine
   *
   * @example
   * const { logits } = await session.run({ image: tensor('f32', [1, 1, 28, 28], pixels) });
   */
  run(
    inputs: Readonly<Record<string, Tensor>>,
    options: { readonly signal?: AbortSignal } = {},
  ): Promise<Record<string, Tensor>> {
    return this.#exclusive(async () => {
      throwIfAborted(options.signal);
      checkInputs(this.manifest.inputs, inputs);
      const startMs = performance.now();
      const { outputs } = await this.#parts.program.run(inputs);
      this.#latency.add(performance.now() - startMs);
      this.#notePeak();
      throwIfAborted(options.signal);
      return { ...outputs };
    });
  }

  /**
   * Generates text from a decoder. Nothing happens until the result is iterated or awaited.
   *
   * @param prompt - text (the bundle must carry a tokenizer) or token ids
   * @throws {@link FettleError} USAGE when the model is no decoder, the prompt does not fit the context, or
   *   another generation runs; RangeError when an option is outside its range
   *
   * @example
   * for await (const { text } of session.generate('Once', { maxTokens: 32, seed: 1 })) show(text);
   */
  generate(prompt: string | readonly number[], options: GenerateOptions = {}): Generation {
    return this.#generation(
      typeof prompt === 'string' ? { kind: 'text', text: prompt } : { kind: 'ids', ids: prompt },
      options,
    );
  }

  /**
   * Generates the next turn of a conversation with the model's chat template. Pass the whole
   * conversation every time: what the session has already seen of it is not computed again.
   *
   * @param messages - oldest first
   * @throws {@link FettleError} USAGE when the bundle has no chat template, or as `generate`
   */
  chat(messages: readonly ChatMessage[], options: GenerateOptions = {}): Generation {
    return this.#generation({ kind: 'chat', messages }, options);
  }

  /**
   * Logits of a whole text at once, for evaluation. Starts anew and leaves nothing behind.
   *
   * @param ids - tokens, at most the context length
   * @returns f32 [ids.length, vocabulary]; row i predicts token i + 1
   * @throws {@link FettleError} USAGE when the model is no decoder or keeps only the last row
   */
  logits(ids: readonly number[]): Promise<Tensor> {
    return this.#exclusive(async () => {
      const { vocabulary } = this.#decoderSpec();
      const sequence = this.#openSequence();
      this.#forget();
      try {
        const data = await sequence.feed(ids, true);
        this.#notePeak();
        return tensor('f32', [ids.length, vocabulary], data);
      } finally {
        this.#forget();
      }
    });
  }

  /**
   * The bundle's tokenizer.
   *
   * @throws {@link FettleError} USAGE when the bundle has none
   */
  tokenizer(): Promise<TextTokenizer> {
    this.#tokenizer ??= this.#loadTokenizer().catch((error: unknown) => {
      // The next call may succeed: a package can be late, a download can have failed.
      this.#tokenizer = undefined;
      throw error;
    });
    return this.#tokenizer;
  }

  /**
   * Runs step by step from now on, which is slower, and returns the times counted so far; undefined when
   * the engine cannot tell.
   */
  profile(): readonly StepTime[] | undefined {
    this.#checkOpen();
    return this.#parts.program.profile?.();
  }

  /** Times and memory so far. */
  measure(): Measurement {
    this.#checkOpen();
    const { memory } = this.manifest;
    const counted = this.#parts.program.memory();
    const host = this.#parts.hostMemory?.();
    const guess: MemorySource = memory.exact ? 'planned' : 'estimated';
    const source = (bytes: number | undefined): MemorySource =>
      bytes === undefined ? guess : 'counted';
    const state = counted.state ?? this.#sequence?.stateBytes ?? 0;
    this.#notePeak();
    const latency = this.#latency.summary();
    const latest = this.#latest;
    const { kernels, threads } = this.#parts.program;
    const engine = this.#engineBytes(threads ?? 1);
    return {
      ...(kernels === undefined ? {} : { kernels }),
      ...(threads === undefined ? {} : { threads }),
      loadMs: this.#parts.loadMs,
      ...(latest === undefined
        ? {}
        : {
            firstTokenMs: latest.firstTokenMs,
            prefillTokensPerSecond: latest.prefillTokensPerSecond,
            decodeTokensPerSecond: latest.decodeTokensPerSecond,
          }),
      ...(latency === undefined ? {} : { latencyMs: latency }),
      memoryBytes: {
        weights: counted.weights ?? memory.weights,
        arena: counted.arena ?? memory.arena,
        state,
        ...(engine === undefined ? {} : { engine }),
        peak: host?.peakBytes ?? this.#peakBytes,
      },
      memorySource: {
        weights: source(counted.weights),
        arena: source(counted.arena),
        state: 'counted',
        ...(engine === undefined ? {} : { engine: 'estimated' }),
        peak: host === undefined ? 'sum' : 'process',
      },
    };
  }

  /**
   * Replays the bundle's canaries on this engine and device.
   *
   * @throws {@link FettleError} USAGE when the bundle has none, BUNDLE_CORRUPT when they cannot be read
   */
  check(): Promise<CheckReport> {
    return this.#exclusive(async () => {
      const { canaries } = this.manifest;
      if (canaries === undefined)
        throw new FettleError('USAGE', 'This bundle carries no canaries to check.', {
          at: { model: this.manifest.model.name },
          fix: 'Compile it with canaries.',
        });
      const cases = readCanaries(await this.#parts.readFile(canaries.file), canaries.file);
      const results = [];
      for (const [index, canary] of cases.entries())
        results.push(...compareCanary(index, canary.outputs, await this.#replay(canary), canaries));
      const { tolerance } = canaries;
      return { passed: results.every((result) => result.passed), tolerance, results };
    });
  }

  /** Ends a running generation and forgets what the model has seen. */
  async reset(): Promise<void> {
    this.#checkOpen();
    this.#generating?.abort();
    await this.#queue.add(() => {
      this.#generating = undefined;
      this.#forget();
      return Promise.resolve();
    });
  }

  /** Ends a running generation and releases everything. May be called again; only `manifest` stays usable. */
  dispose(): Promise<void> {
    this.#generating?.abort();
    this.#disposed ??= this.#queue.add(async () => {
      this.#forget();
      await this.#parts.program.dispose();
    });
    return this.#disposed;
  }

  async #replay({ inputs }: Canary): Promise<Readonly<Record<string, Tensor>>> {
    checkInputs(this.manifest.inputs, inputs);
    return (await this.#parts.program.run(inputs)).outputs;
  }

  /** Runs a task when earlier ones are done; refuses when the session cannot be used. */
  #exclusive<T>(task: () => Promise<T>): Promise<T> {
    return this.#queue.add(() => {
      this.#checkOpen();
      if (this.#generating !== undefined) throw busy();
      return task();
    });
  }

  #checkOpen(): void {
    if (this.#disposed === undefined) return;
    throw new FettleError('USAGE', 'This session has been disposed.', {
      at: { model: this.manifest.model.name },
      fix: 'Open the bundle again.',
    });
  }

  #decoderSpec(): DecoderSpec {
    const { decoder, model } = this.manifest;
    if (decoder !== undefined) return decoder;
    throw new FettleError('USAGE', `"${model.name}" is no decoder: it cannot generate.`, {
      at: { model: model.name, kind: model.kind },
      fix: 'Use run().',
    });
  }

  #openSequence(): Sequence {
    const { manifest } = this;
    const { program } = this.#parts;
    this.#sequence ??=
      program.sequence?.() ?? new Decoder(program, { ...manifest, decoder: this.#decoderSpec() });
    return this.#sequence;
  }

  #forget(): void {
    this.#sequence?.reset();
    this.#pending = undefined;
  }

  /** What the engine takes beside the model, where the bundle tells. */
  #engineBytes(threads: number): number | undefined {
    const { engine, thread = 0, text = 0 } = this.manifest.memory;
    if (engine === undefined) return undefined;
    return engine + (threads - 1) * thread + (this.#tokenizer === undefined ? 0 : text);
  }

  #notePeak(): void {
    const { memory } = this.manifest;
    const counted = this.#parts.program.memory();
    const bytes =
      (counted.weights ?? memory.weights) +
      (counted.arena ?? memory.arena) +
      (counted.state ?? this.#sequence?.stateBytes ?? 0);
    this.#peakBytes = Math.max(this.#peakBytes, bytes);
  }

  #generation(prompt: Prompt, options: GenerateOptions): Generation {
    this.#checkOpen();
    this.#decoderSpec();
    // Options are checked now, where the caller can see which call was wrong.
    const sampler = prepareSampler(options, this.manifest.text?.generation ?? {});
    return new Generation((onEnd) => this.#tokens(prompt, options, sampler, onEnd));
  }

  async *#tokens(
    prompt: Prompt,
    options: GenerateOptions,
    sampler: ReturnType<typeof prepareSampler>,
    onEnd: (result: GenerationResult) => void,
  ): AsyncGenerator<GeneratedToken, void> {
    const startedMs = performance.now();
    const own = new AbortController();
    await this.#exclusive(() => {
      this.#generating = own;
      return Promise.resolve();
    });
    const signal =
      options.signal === undefined ? own.signal : AbortSignal.any([options.signal, own.signal]);
    try {
      const spec = this.#decoderSpec();
      const sequence = this.#openSequence();
      const ids = await this.#promptIds(prompt, options.continue === true, sequence);
      const tokenizer = await this.#tokenizerFor(prompt);
      // Through the queue, so that reset() and dispose() wait for the call that is under way.
      const queued = <T>(call: () => Promise<T>): Promise<T> =>
        this.#queue.add(async () => {
          signal.throwIfAborted();
          const result = await call();
          this.#notePeak();
          return result;
        });
      const choose = sequence.next?.bind(sequence);
      const guarded: Sequence = {
        ids: sequence.ids,
        get stateBytes(): number {
          return sequence.stateBytes;
        },
        feed: (next, all) => queued(() => sequence.feed(next, all, signal)),
        ...(choose === undefined ? {} : { next: (next) => queued(() => choose(next, signal)) }),
        reset: () => sequence.reset(),
      };
      const inputs = { sequence: guarded, spec, prompt: ids, tokenizer, startedMs };
      yield* generateTokens(inputs, sampler, { ...options, signal }, (result) => {
        this.#latest = result;
        if (!own.signal.aborted) this.#pending = result.tokens.at(-1);
        onEnd(result);
      });
    } finally {
      if (this.#generating === own) this.#generating = undefined;
    }
  }

  /** Ids in, ids out works without the tokenizer's package; text does not. */
  async #tokenizerFor(prompt: Prompt): Promise<TextTokenizer | undefined> {
    if (this.manifest.text === undefined) return undefined;
    return this.tokenizer().catch((error: unknown) => {
      const absent = error instanceof FettleError && error.code === 'ENGINE_UNAVAILABLE';
      if (prompt.kind === 'ids' && absent) return undefined;
      throw error;
    });
  }

  /** Ids to feed: what the sequence has not seen yet. Resets it when nothing of it can be used. */
  async #promptIds(prompt: Prompt, more: boolean, sequence: Sequence): Promise<readonly number[]> {
    const ids = await this.#encode(prompt, more && sequence.ids.length > 0);
    if (prompt.kind === 'chat') {
      const seen = sequence.ids;
      if (seen.length > 0 && seen.length < ids.length && seen.every((id, i) => id === ids[i])) {
        this.#pending = undefined;
        return ids.slice(seen.length);
      }
    } else if (more && sequence.ids.length > 0) {
      const pending = this.#pending === undefined ? [] : [this.#pending];
      return [...pending, ...ids];
    }
    this.#forget();
    return ids;
  }

  async #encode(prompt: Prompt, more: boolean): Promise<readonly number[]> {
    if (prompt.kind === 'ids') return prompt.ids;
    const tokenizer = await this.tokenizer();
    if (prompt.kind === 'chat') return tokenizer.encode(await this.#render(prompt.messages), false);
    const ids = tokenizer.encode(prompt.text, !more);
    const { startId } = this.#decoderSpec();
    return startId === undefined || more || ids[0] === startId ? ids : [startId, ...ids];
  }

  async #render(messages: readonly ChatMessage[]): Promise<string> {
    const { text } = this.manifest;
    if (text?.chatTemplate === undefined)
      throw new FettleError('USAGE', 'This bundle carries no chat template.', {
        at: { model: this.manifest.model.name },
        fix: 'Write the prompt as text and use generate().',
      });
    const config = await this.#readJson(text.tokenizerConfig);
    return renderChat(text.chatTemplate, messages, config, this.#parts.text?.jinja);
  }

  async #loadTokenizer(): Promise<TextTokenizer> {
    const { text, model } = this.manifest;
    if (text === undefined)
      throw new FettleError('USAGE', 'This bundle carries no tokenizer.', {
        at: { model: model.name },
        fix: 'Pass token ids, or compile the model with its tokenizer.json.',
      });
    return createTokenizer(
      await this.#readJson(text.tokenizer),
      await this.#readJson(text.tokenizerConfig),
      this.#parts.text?.tokenizers,
    );
  }

  async #readJson(path: string | undefined): Promise<Readonly<Record<string, unknown>>> {
    return path === undefined ? {} : parseJson(await this.#parts.readFile(path), path).object();
  }
}

function busy(): FettleError {
  return new FettleError('USAGE', 'A generation is running on this session.', {
    at: { call: 'session' },
    fix: 'Finish it, leave its loop, call reset(), or open a second session.',
  });
}
