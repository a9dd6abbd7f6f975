/**
 * Where activations lie: how long each buffer is needed, which may share storage with what they are
 * computed from, and an offset for each in one arena.
 *
 *   lifetimes   first and last step that names a buffer; inputs from the start, outputs to the end
 *   in place    a step's output takes over its input's storage when that is not read any more
 *   offsets     largest buffer first, each into the tightest gap among those alive with it
 *
 * The lower bound of any plan is the largest sum of bytes alive at one step; `bytes` is compared with it.
 * Source: Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020
 * (greedy by size for offset calculation).
 */
import type { Buffer, Step } from './plan.ts';
import { isAddress } from './plan.ts';

/** Alignment of buffers in the arena, in bytes. */
export const ARENA_ALIGNMENT = 64;

/** First and last step a buffer is needed at. */
export interface Lifetime {
  readonly first: number;
  readonly last: number;
  readonly bytes: number;
}

/** Places in the arena. */
export interface ArenaPlan {
  /** Byte offset of every arena buffer. */
  readonly offsets: ReadonlyMap<Buffer, number>;
  /** Bytes of the arena. */
  readonly bytes: number;
  /** No arrangement takes less: most bytes alive at one step. */
  readonly lowerBound: number;
  /** Buffers that took over the storage of another one. */
  readonly inPlace: number;
}

interface Storage {
  readonly buffers: Buffer[];
  first: number;
  last: number;
  bytes: number;
}

/**
 * Plans the arena.
 *
 * @param steps - in the order they run
 * @param bytesOf - most bytes a buffer takes
 */
export function planArena(steps: readonly Step[], bytesOf: (buffer: Buffer) => number): ArenaPlan {
  const storages = storagesOf(steps, bytesOf);
  const inPlace = mergeInPlace(steps, storages);
  const distinct = [...new Set(storages.values())];
  const placed = bestFit(distinct);
  const offsets = new Map<Buffer, number>();
  for (const [index, { buffers }] of distinct.entries())
    for (const buffer of buffers) offsets.set(buffer, placed.offsets[index] ?? 0);
  return { offsets, bytes: placed.bytes, lowerBound: liveBytes(distinct), inPlace };
}

/** The arena buffers that a step names, each once. */
export function buffersOf(step: Step): Set<Buffer> {
  const found = new Set<Buffer>();
  for (const word of step.words)
    if (isAddress(word) && word.buffer.region === 'arena') found.add(word.buffer);
  return found;
}

function storagesOf(
  steps: readonly Step[],
  bytesOf: (buffer: Buffer) => number,
): Map<Buffer, Storage> {
  const storages = new Map<Buffer, Storage>();
  steps.forEach((step, at) => {
    for (const buffer of buffersOf(step)) {
      const known = storages.get(buffer);
      if (known === undefined)
        storages.set(buffer, {
          buffers: [buffer],
          first: buffer.input === true ? -1 : at,
          last: buffer.output === true ? steps.length : at,
          bytes: align(bytesOf(buffer)),
        });
      else known.last = Math.max(known.last, at);
    }
  });
  return storages;
}

/** Lets outputs take over the storage of inputs whose last use is the same step. */
function mergeInPlace(steps: readonly Step[], storages: Map<Buffer, Storage>): number {
  let merged = 0;
  steps.forEach((step, at) => {
    for (const [written, read] of step.inPlace) {
      const [to, from] = [storages.get(written), storages.get(read)];
      if (to === undefined || from === undefined || to === from) continue;
      if (to.first !== at || from.last !== at || to.bytes > from.bytes) continue;
      from.buffers.push(...to.buffers);
      from.last = to.last;
      for (const buffer of to.buffers) storages.set(buffer, from);
      merged++;
    }
  });
  return merged;
}

/** Offsets for buffers that are alive from `first` to `last`, largest first, tightest gap first. */
export function bestFit(lifetimes: readonly Lifetime[]): {
  readonly offsets: readonly number[];
  readonly bytes: number;
} {
  const offsets = lifetimes.map(() => 0);
  const order = lifetimes
    .map((_, index) => index)
    // ties in the order of the program, so that the plan is the same everywhere
    .sort((a, b) => bytesAt(lifetimes, b) - bytesAt(lifetimes, a) || a - b);
  const done: number[] = [];
  let total = 0;
  for (const index of order) {
    const own = lifetimes[index];
    if (own === undefined) continue;
    const taken = done
      .flatMap((other): [number, number][] => {
        const life = lifetimes[other];
        if (life === undefined || life.last < own.first || life.first > own.last) return [];
        const start = offsets[other] ?? 0;
        return [[start, start + life.bytes]];
      })
      .sort(([a], [b]) => a - b);
    let end = 0;
    let best: number | undefined;
    let slack = Infinity;
    for (const [start, stop] of taken) {
      const gap = start - end;
      if (gap >= own.bytes && gap - own.bytes < slack) [best, slack] = [end, gap - own.bytes];
      end = Math.max(end, stop);
    }
    const offset = best ?? end;
    offsets[index] = offset;
    total = Math.max(total, offset + own.bytes);
    done.push(index);
  }
  return { offsets, bytes: total };
}

/** Most bytes alive at one step. */
export function liveBytes(lifetimes: readonly Lifetime[]): number {
  const changes = new Map<number, number>();
  for (const { first, last, bytes } of lifetimes) {
    changes.set(first, (changes.get(first) ?? 0) + bytes);
    changes.set(last + 1, (changes.get(last + 1) ?? 0) - bytes);
  }
  let alive = 0;
  let most = 0;
  for (const [, change] of [...changes].sort(([a], [b]) => a - b)) {
    alive += change;
    most = Math.max(most, alive);
  }
  return most;
}

function bytesAt(lifetimes: readonly Lifetime[], index: number): number {
  return lifetimes[index]?.bytes ?? 0;
}

function align(bytes: number): number {
  return Math.ceil(bytes / ARENA_ALIGNMENT) * ARENA_ALIGNMENT;
}
