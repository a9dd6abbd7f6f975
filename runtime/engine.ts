/**
 * What the session needs from an engine. The session, the decoder loop and sampling know nothing else
 * about it, so an engine may keep its KV cache inside (`sequence`) or take and return it (`run`).
 */
import type { Manifest } from './manifest.ts';
import type { Tensor } from './tensor.ts';

/** Engines a manifest can name. */
export type EngineId = Manifest['engine'];

/** An output that stayed with the engine and can only be fed back to it. */
export interface Held {
  /** Bytes it takes. */
  readonly bytes: number;
  /** Lets it go; it must not be fed afterwards. */
  dispose(): void;
}

/** Outputs of one run. */
export interface RunResult {
  /** Outputs that were handed out; the caller owns them. */
  readonly outputs: Readonly<Record<string, Tensor>>;
  /** Outputs named in `keep`; the caller disposes them. */
  readonly held: Readonly<Record<string, Held>>;
}

/** Bytes in use by a program. `undefined`: the engine cannot tell. */
export interface ProgramMemory {
  /** Weights as the engine holds them. */
  readonly weights: number | undefined;
  /** Activations. */
  readonly arena: number | undefined;
  /** KV cache and other state. */
  readonly state: number | undefined;
}

/** Tokens a decoder has seen, and what it remembers of them. One at a time, never in parallel. */
export interface Sequence {
  /** Ids fed so far, oldest first. */
  readonly ids: readonly number[];
  /** Bytes of the cache now. */
  readonly stateBytes: number;
  /**
   * Appends tokens.
   *
   * @param ids - at least one token
   * @param all - logits for every new token instead of the last one only
   * @param signal - stops between parts of a long prompt, rejecting with its reason; engines that take a
   *   prompt in one call do not stop. What has been fed by then stays in `ids`
   * @returns logits, [1 or ids.length, vocabulary], the caller's to keep and change
   * @throws {@link FettleError} USAGE when the context would become too long
   */
  feed(
    ids: readonly number[],
    all?: boolean,
    signal?: AbortSignal,
  ): Promise<Float32Array<ArrayBuffer>>;
  /**
   * Appends tokens and chooses the likeliest next one, the first among equals, without handing logits out.
   * Engines that have nothing quicker than `feed` leave it away.
   */
  next?(ids: readonly number[], signal?: AbortSignal): Promise<number>;
  /** Forgets everything. */
  reset(): void;
}

/** Time of one step of a program. */
export interface StepTime {
  /** Kernel of the step. */
  readonly kernel: string;
  /** Node it computes. */
  readonly node: string;
  /** Time since the profile began, in milliseconds. */
  readonly ms: number;
  /** Runs. */
  readonly calls: number;
}

/** A loaded model. Calls never overlap: the session makes one at a time. */
export interface Program {
  /** Variant of the kernels in use, when the engine has several. */
  readonly kernels?: string;
  /** Threads in use, when the engine can tell. */
  readonly threads?: number;
  /**
   * One call of the model.
   *
   * @param feeds - every input; checked against the manifest by the session
   * @param keep - outputs to leave with the engine
   */
  run(
    feeds: Readonly<Record<string, Tensor | Held>>,
    keep?: ReadonlySet<string>,
  ): Promise<RunResult>;
  /** For decoders, when the engine keeps the cache itself. */
  sequence?(): Sequence;
  /** Runs step by step from now on; returns the times counted so far. For engines that can tell. */
  profile?(): readonly StepTime[];
  /** Bytes in use. */
  memory(): ProgramMemory;
  /** Releases everything. */
  dispose(): Promise<void>;
}

/** A program in the making: memory is there, weights are not. */
export interface Loading {
  /** Where the weight buffer goes: `manifest.weights.bytes` bytes, filled before `start`. */
  readonly weights: Uint8Array;
  /** Builds the program. The caller keeps no reference to `weights`. */
  start(): Promise<Program>;
  /** Lets go of everything when the load fails. */
  dispose(): void;
}

/** What an engine gets to load from. */
export interface EngineContext {
  /** The checked manifest. */
  readonly manifest: Manifest;
  /** Reads and checks one of `manifest.files`. */
  readonly readFile: (path: string) => Promise<Uint8Array<ArrayBuffer>>;
  /** Aborts the load. */
  readonly signal: AbortSignal | undefined;
}

/** Something that runs bundles. */
export interface Engine {
  /** What a manifest calls it. */
  readonly id: EngineId;
  /**
   * Allocates the weights and reads what else is needed.
   *
   * @throws {@link FettleError} ENGINE_UNAVAILABLE when the host lacks something, BUDGET_EXCEEDED when memory does
   */
  open(context: EngineContext): Promise<Loading>;
}
