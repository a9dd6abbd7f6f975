/** Samples of the comparison -> rows, with what the machine allows beside every figure. */
import type { GenerationSpeed, Limits, Row } from '../../compiler/cli/bench-row.ts';
import { median, medianLimits, medianSpeed } from '../../compiler/cli/bench-row.ts';
import type { SessionFigures } from '../../compiler/cli/bench-session.ts';

/** What a row needs to know of an engine. */
export interface RowPeer {
  readonly name: string;
  /** Bits of a weight in memory while it runs, scales included. */
  readonly weightBits: number;
  /** Which limit its products have. */
  readonly products: 'integer' | 'float';
}

/** All samples of one engine on one host with one number of threads. */
export interface SampleGroup {
  readonly model: string;
  readonly host: string;
  readonly threads: number;
  readonly peer: RowPeer;
  /** Weights of the products of one token. */
  readonly weights: { readonly blocks: number; readonly head: number };
  readonly samples: readonly SessionFigures[];
}

/** A row of the comparison: a row of `fettle bench`, how far samples lie apart, and the limits. */
export interface PeerRow extends Row {
  /** Generations before the steady ones of a sample, the cold one included. */
  readonly warmUps: number;
  /** Least and most of the steady samples. */
  readonly range: {
    readonly prefillTokensPerSecond: readonly [number, number];
    readonly decodeTokensPerSecond: readonly [number, number];
  };
  /** What the machine allows at most, and the fraction of it that was reached. */
  readonly limit: {
    readonly prefillTokensPerSecond: number;
    readonly decodeTokensPerSecond: number;
    readonly prefillFraction: number;
    readonly decodeFraction: number;
  };
}

/**
 * One row; every figure is the median of the samples.
 *
 * @param group - at least one sample, each with one steady generation or more
 * @param probes - limits of one thread of the host, one for every repetition
 */
export function peerRow(group: SampleGroup, probes: readonly Limits[]): PeerRow {
  const { model, host, threads, peer, samples } = group;
  const [first] = samples;
  const steady = samples.flatMap((sample) => sample.steady);
  const speed = medianSpeed(steady);
  const cold = medianSpeed(samples.flatMap((sample) => sample.cold ?? []));
  if (first === undefined || speed === undefined || cold === undefined)
    throw new RangeError(`No samples of ${peer.name}.`);
  const limits = medianLimits(probes);
  const atMost = limitOf(group, limits);
  const bytes = (key: 'weights' | 'arena' | 'state' | 'peak'): number =>
    median(samples.map((sample) => sample.memoryBytes[key]));
  const range = (key: keyof GenerationSpeed): [number, number] => {
    const values = steady.map((one) => one[key]);
    return [Math.min(...values), Math.max(...values)];
  };
  return {
    model,
    engine: peer.name,
    host,
    threads,
    kernels: first.kernels,
    loadMs: median(samples.map((sample) => sample.loadMs)),
    ...speed,
    cold,
    warmUps: median(samples.map((sample) => sample.warmUps ?? 1)),
    memoryBytes: {
      weights: bytes('weights'),
      arena: bytes('arena'),
      state: bytes('state'),
      peak: bytes('peak'),
      source: first.memorySource,
    },
    probes: limits,
    samples: samples.length,
    range: {
      prefillTokensPerSecond: range('prefillTokensPerSecond'),
      decodeTokensPerSecond: range('decodeTokensPerSecond'),
    },
    limit: {
      ...atMost,
      prefillFraction: speed.prefillTokensPerSecond / atMost.prefillTokensPerSecond,
      decodeFraction: speed.decodeTokensPerSecond / atMost.decodeTokensPerSecond,
    },
  };
}

/**
 * Tokens per second that the probes allow. Decoding reads every weight once a token and multiplies with
 * it once: the slower of the two. Reading is shared by the tokens of a prompt, and only the last one needs
 * the head. Several threads are allowed as many times as much, which memory may not keep.
 */
function limitOf(
  { peer, weights, threads }: SampleGroup,
  { readGBps, dotGMACps, fmaGFLOPps }: Limits,
): { readonly prefillTokensPerSecond: number; readonly decodeTokensPerSecond: number } {
  const products = (peer.products === 'integer' ? dotGMACps : fmaGFLOPps / 2) * 1e9;
  const all = weights.blocks + weights.head;
  const readSeconds = (all * peer.weightBits) / 8 / (readGBps * 1e9);
  return {
    prefillTokensPerSecond: (threads * products) / weights.blocks,
    decodeTokensPerSecond: threads / Math.max(readSeconds, all / products),
  };
}

/** How many times as fast the one is as the other. */
export interface Ratio {
  readonly model: string;
  readonly host: string;
  readonly threads: number;
  readonly engine: string;
  readonly against: string;
  readonly prefill: number;
  readonly decode: number;
}

/** Fettle's rows against every other engine's on the same model, host and number of threads. */
export function ratiosOf(rows: readonly PeerRow[]): Ratio[] {
  const own = rows.filter(({ engine }) => engine.startsWith('wasm'));
  return own.flatMap((mine) =>
    rows
      .filter((row) => !own.includes(row) && sameConditions(row, mine))
      .map((row) => ({
        model: mine.model,
        host: mine.host,
        threads: mine.threads,
        engine: mine.engine,
        against: row.engine,
        prefill: (mine.prefillTokensPerSecond ?? 0) / (row.prefillTokensPerSecond ?? 0),
        decode: (mine.decodeTokensPerSecond ?? 0) / (row.decodeTokensPerSecond ?? 0),
      })),
  );
}

function sameConditions(a: PeerRow, b: PeerRow): boolean {
  return a.model === b.model && a.host === b.host && a.threads === b.threads;
}
