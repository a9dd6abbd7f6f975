/** Figures of a session: how long things took and how much memory is in use, each with its origin. */

/** How a memory figure was obtained. */
export type MemorySource =
  /** Counted by the engine. */
  | 'counted'
  /** Planned at compile time, exact. */
  | 'planned'
  /** Estimated at compile time. */
  | 'estimated'
  /** The whole process, asked from the operating system. */
  | 'process'
  /** Sum of the other figures, for lack of a better one. */
  | 'sum';

/** Memory of the whole host process, in bytes. */
export interface HostMemory {
  /** Physical memory in use now. */
  readonly residentBytes: number;
  /** Most of it at any time. */
  readonly peakBytes: number;
}

/** Bytes by class. */
export interface MemoryBytes<T = number> {
  /** Weights as the engine holds them. */
  readonly weights: T;
  /** Activations. */
  readonly arena: T;
  /** KV cache and other state, now. */
  readonly state: T;
  /** The engine's code, its threads and the tokenizer, where the bundle tells. */
  readonly engine?: T;
  /** Most at any time so far. */
  readonly peak: T;
}

/** What `session.measure()` reports. */
export interface Measurement {
  /** Variant of the engine's kernels in use, when it has several. */
  readonly kernels?: string;
  /** Threads in use, when the engine can tell. */
  readonly threads?: number;
  /** From the call of `openBundle` to the session, in milliseconds. */
  readonly loadMs: number;
  /** From the start of the latest generation to its first token; tokenizing included. */
  readonly firstTokenMs?: number;
  /** Prompt tokens over the time of the call that took them, latest generation. */
  readonly prefillTokensPerSecond?: number;
  /** Tokens after the first over their time, latest generation. */
  readonly decodeTokensPerSecond?: number;
  /** Of the latest (at most 256) calls of `run`. */
  readonly latencyMs?: { readonly median: number; readonly p95: number; readonly samples: number };
  /** Memory in use. */
  readonly memoryBytes: MemoryBytes;
  /** How each figure of `memoryBytes` was obtained. */
  readonly memorySource: MemoryBytes<MemorySource>;
}

/** The latest figures of something that repeats. */
export class Samples {
  readonly #most: number;
  #values: number[] = [];

  constructor(most = 256) {
    this.#most = most;
  }

  /** Adds one and forgets the oldest. */
  add(value: number): void {
    this.#values.push(value);
    if (this.#values.length > this.#most) this.#values.shift();
  }

  /** Median and 95th percentile (nearest rank), or undefined when there are none. */
  summary(): { median: number; p95: number; samples: number } | undefined {
    const sorted = this.#values.toSorted((a, b) => a - b);
    const samples = sorted.length;
    if (samples === 0) return undefined;
    const rank = (fraction: number): number => sorted[Math.ceil(fraction * samples) - 1] ?? 0;
    const middle = Math.floor(samples / 2);
    const median =
      samples % 2 === 1 ? rank(0.5) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
    return { median, p95: rank(0.95), samples };
  }
}
