/**
 * A linear memory that grows, and blocks of it: first fit over a list of free blocks, neighbours joined
 * again. The algebra holds a handful of large blocks at a time, so a list is all it takes.
 */
import { assert, FettleError } from '../../runtime/errors.ts';

/** Bytes of a page of WebAssembly memory. */
const PAGE_BYTES = 65536;

/** Most pages of a 32-bit memory. */
const MAX_PAGES = 65536;

/** Blocks start at multiples of it, so that vectors do not straddle cache lines more than they must. */
const ALIGNMENT = 64;

interface Span {
  start: number;
  end: number;
}

/** Blocks of a WebAssembly memory. Views are valid until the next allocation. */
export class Heap {
  /** The memory; imported by the kernels. */
  readonly memory: WebAssembly.Memory = new WebAssembly.Memory({ initial: 1 });
  private readonly free: Span[];
  private readonly used = new Map<number, number>();

  /** @param reserved - bytes at the start that belong to the kernels */
  constructor(reserved: number) {
    this.free = [{ start: align(reserved), end: PAGE_BYTES }];
  }

  /**
   * Allocates bytes, not cleared.
   *
   * @returns the address
   * @throws {@link FettleError} BUDGET_EXCEEDED when the memory cannot grow
   */
  allocate(bytes: number): number {
    const size = align(Math.max(bytes, 1));
    let span = this.free.find(({ start, end }) => end - start >= size);
    if (span === undefined) {
      this.grow(size);
      span = this.free.find(({ start, end }) => end - start >= size);
      assert(span !== undefined, 'algebra heap: no room after growing');
    }
    const { start } = span;
    span.start += size;
    if (span.start === span.end) this.free.splice(this.free.indexOf(span), 1);
    this.used.set(start, size);
    return start;
  }

  /** Gives a block back. */
  release(address: number): void {
    const size = this.used.get(address);
    assert(size !== undefined, `algebra heap: no block at ${address}`);
    this.used.delete(address);
    this.insert({ start: address, end: address + size });
  }

  /**
   * Runs `work` with a way to allocate blocks that are given back when it returns or throws.
   */
  scope<T>(work: (allocate: (bytes: number) => number) => T): T {
    const blocks: number[] = [];
    try {
      return work((bytes) => {
        const block = this.allocate(bytes);
        blocks.push(block);
        return block;
      });
    } finally {
      for (const block of blocks) this.release(block);
    }
  }

  /** `count` f32 at an address. */
  f32(address: number, count: number): Float32Array<ArrayBuffer> {
    return new Float32Array(this.memory.buffer, address, count);
  }

  /** `count` f64 at an address. */
  f64(address: number, count: number): Float64Array<ArrayBuffer> {
    return new Float64Array(this.memory.buffer, address, count);
  }

  /** `count` i32 at an address. */
  i32(address: number, count: number): Int32Array<ArrayBuffer> {
    return new Int32Array(this.memory.buffer, address, count);
  }

  /** `count` bytes at an address. */
  u8(address: number, count: number): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.memory.buffer, address, count);
  }

  private insert(span: Span): void {
    const at = this.free.findIndex(({ start }) => start > span.start);
    const index = at < 0 ? this.free.length : at;
    const before = this.free[index - 1];
    const after = this.free[index];
    if (before?.end === span.start) {
      before.end = span.end;
      if (after?.start === before.end) {
        before.end = after.end;
        this.free.splice(index, 1);
      }
    } else if (after?.start === span.end) after.start = span.start;
    else this.free.splice(index, 0, span);
  }

  private grow(bytes: number): void {
    const end = this.memory.buffer.byteLength;
    const last = this.free.at(-1);
    const missing = last?.end === end ? bytes - (last.end - last.start) : bytes;
    const pages = Math.ceil(missing / PAGE_BYTES);
    try {
      this.memory.grow(pages);
    } catch (cause) {
      const held = end / PAGE_BYTES;
      throw new FettleError(
        'BUDGET_EXCEEDED',
        `Linear algebra needs ${held + pages} pages of memory; this host gives at most ${MAX_PAGES}, or less.`,
        { fix: 'Round with a block-diagonal Hessian (blockDiagonal: 512).', cause },
      );
    }
    this.insert({ start: end, end: end + pages * PAGE_BYTES });
  }
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
