/** What a benchmark gives: one row a model and engine, and the statistics behind its figures. */
import type { MemoryBytes, MemorySource } from '../../runtime/index.ts';
import type { KernelTime } from './bench-profile.ts';

/** Speed of one generation. */
export interface GenerationSpeed {
  /** From the call to the first token, in milliseconds. */
  readonly firstTokenMs: number;
  /** Prompt tokens over the time of the call that took them. */
  readonly prefillTokensPerSecond: number;
  /** Tokens after the first over their time. */
  readonly decodeTokensPerSecond: number;
}

/** What the machine can do at most, on one thread of the host that ran the row. */
export interface Limits {
  /** Gigabytes (10^9) read per second from memory that no cache holds. */
  readonly readGBps: number;
  /** Integer multiply-accumulates, 10^9 per second. */
  readonly dotGMACps: number;
  /** f32 operations, 10^9 per second; a multiply-add is two. */
  readonly fmaGFLOPps: number;
}

/** One row; the keys are stable. Speeds are steady ones unless they are under `cold`. */
export interface Row extends Partial<GenerationSpeed> {
  /** Name of the model. */
  readonly model: string;
  /** What ran it. */
  readonly engine: string;
  /** `node` or `chromium`, with its version. */
  readonly host: string;
  /** Threads the engine was given. */
  readonly threads: number;
  /** Variant of the engine's kernels. */
  readonly kernels: string;
  /** From opening to ready, in milliseconds. */
  readonly loadMs: number;
  /** Of plain calls. */
  readonly latencyMs?: { readonly median: number; readonly p95: number };
  /** The first generation of a session, while engines still compile. */
  readonly cold?: GenerationSpeed;
  /** Bytes by class, and where each figure is from. */
  readonly memoryBytes: MemoryBytes & { readonly source?: MemoryBytes<MemorySource> };
  /** Measured in the same run. */
  readonly probes: Limits;
  /** Where the time goes, with `--profile`. */
  readonly profile?: readonly KernelTime[];
  /** Measurements behind each median. */
  readonly samples: number;
}

/** Nearest-rank quantile of figures in any order; 0 when there are none. */
export function quantile(values: readonly number[], fraction: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(fraction * sorted.length) - 1)] ?? 0;
}

/** Middle of some figures, the mean of the two middle ones when their number is even. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  const upper = sorted[half] ?? 0;
  return sorted.length % 2 === 1 ? upper : ((sorted[half - 1] ?? upper) + upper) / 2;
}

/** Medians of each figure; undefined when there is nothing. */
export function medianSpeed(speeds: readonly GenerationSpeed[]): GenerationSpeed | undefined {
  if (speeds.length === 0) return undefined;
  const of = (key: keyof GenerationSpeed): number => median(speeds.map((speed) => speed[key]));
  return {
    firstTokenMs: of('firstTokenMs'),
    prefillTokensPerSecond: of('prefillTokensPerSecond'),
    decodeTokensPerSecond: of('decodeTokensPerSecond'),
  };
}

/** Medians of each limit; zeros when there is nothing. */
export function medianLimits(limits: readonly Limits[]): Limits {
  const of = (key: keyof Limits): number => median(limits.map((one) => one[key]));
  return { readGBps: of('readGBps'), dotGMACps: of('dotGMACps'), fmaGFLOPps: of('fmaGFLOPps') };
}
