/**
 * Counts how often every piece of code under a folder runs, as V8's own coverage counts blocks: work that
 * depends on nothing but what was computed, so that growth can be tested without a clock.
 */
import { Session } from 'node:inspector/promises';

/** Runs of one function: of its body, loops and branches, added up. */
export interface Work {
  /** All of it. */
  readonly total: number;
  /** By `file function`, most first. */
  readonly byFunction: ReadonlyMap<string, number>;
}

/** Counts from when it is opened; what ran before is not seen. */
export class WorkCounter {
  private readonly session = new Session();
  private readonly folder: string;

  /** @param folder - part of the path of the files that count, such as `/compiler/` */
  constructor(folder: string) {
    this.folder = folder;
  }

  /** Starts counting. Everything runs several times slower from now on. */
  async open(): Promise<void> {
    this.session.connect();
    await this.session.post('Profiler.enable');
    await this.session.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });
  }

  /** Runs something and counts. */
  async count(run: () => Promise<unknown>): Promise<Work> {
    await this.session.post('Profiler.takePreciseCoverage');
    await run();
    const { result } = await this.session.post('Profiler.takePreciseCoverage');
    const byFunction = new Map<string, number>();
    let total = 0;
    for (const { url, functions } of result) {
      const place = url.indexOf(this.folder);
      if (place < 0) continue;
      for (const { functionName, ranges } of functions) {
        const count = ranges.reduce((sum, range) => sum + range.count, 0);
        const name = functionName === '' ? `at ${ranges[0]?.startOffset ?? 0}` : functionName;
        const key = `${url.slice(place + this.folder.length)} ${name}`;
        byFunction.set(key, (byFunction.get(key) ?? 0) + count);
        total += count;
      }
    }
    return { total, byFunction: new Map([...byFunction].sort((a, b) => b[1] - a[1])) };
  }

  /** Stops counting. */
  async close(): Promise<void> {
    await this.session.post('Profiler.stopPreciseCoverage');
    this.session.disconnect();
  }
}
