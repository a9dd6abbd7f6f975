/** A cache in memory that counts, and can fail after some entries as an interruption would. */
import type { CacheEntry, CalibrationCache } from '../../compiler/calibrate/cache.ts';
import { FolderCache } from '../../compiler/calibrate/cache.ts';
import { MemoryFiles } from '../../compiler/files.ts';

/** A cache, and what was done with it. */
export class InterruptibleCache implements CalibrationCache {
  /** Keys of entries, in the order in which they were written. */
  readonly written: string[] = [];
  /** Entries found. */
  reads = 0;
  private readonly cache = new FolderCache(new MemoryFiles(), 'cache');
  private readonly after: number;

  /** @param after - entries; the last of them interrupts */
  constructor(after: number = Infinity) {
    this.after = after;
  }

  read(key: string): CacheEntry | undefined {
    const entry = this.cache.read(key);
    if (entry !== undefined) this.reads++;
    return entry;
  }

  write(key: string, entry: CacheEntry): void {
    this.cache.write(key, entry);
    this.written.push(key);
    if (this.written.length === this.after) throw new DOMException('interrupted', 'AbortError');
  }
}
