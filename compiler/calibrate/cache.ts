/**
 * Results of long work on disk, so that an interrupted compilation goes on where it was. An entry is
 * found by a key that is the hash of everything it depends on; one that is damaged counts as none.
 *
 *   "FCAL" | u32 bytes of JSON | JSON, padded with spaces to 8 | arrays, each at a multiple of 8
 *
 * The JSON names each array with type, offset and length, and has the hash of what is kept and all of them.
 */
import { FettleError } from '../../runtime/errors.ts';
import { Sha256, sha256 } from '../../runtime/sha256.ts';
import type { FileSystem } from '../files.ts';
import { joinPath, readFile, writeFile } from '../files.ts';

/** Arrays an entry can hold. */
export type CachedArray = Float32Array | Uint8Array | Uint16Array | Int32Array | Int8Array;

/** What is kept under one key. */
export interface CacheEntry {
  /** Anything JSON can hold. */
  readonly json: unknown;
  /** Arrays by name. */
  readonly arrays: Readonly<Record<string, CachedArray>>;
}

/** A folder of entries. */
export interface CalibrationCache {
  /** The entry of a key; undefined when there is none, or it is damaged. */
  read(key: string): CacheEntry | undefined;
  /** Keeps an entry. A folder that cannot be written is no error: the work is only not kept. */
  write(key: string, entry: CacheEntry): void;
}

/** Changes when the same options give other statistics, ratings or codes than before. */
const GENERATION = 2;

/** The hash of several things that are JSON. */
export function cacheKey(...parts: readonly unknown[]): string {
  return sha256(new TextEncoder().encode(JSON.stringify([GENERATION, ...parts])));
}

/** Entries as files of a folder. */
export class FolderCache implements CalibrationCache {
  private readonly files: FileSystem;
  private readonly folder: string;

  /**
   * @param files - where the folder is
   * @param folder - made when something is first kept
   */
  constructor(files: FileSystem, folder: string) {
    this.files = files;
    this.folder = folder;
  }

  read(key: string): CacheEntry | undefined {
    const path = this.pathOf(key);
    try {
      if (this.files.stat(path)?.kind !== 'file') return undefined;
      return decodeEntry(readFile(this.files, path));
    } catch (error) {
      if (error instanceof FettleError) return undefined;
      throw error;
    }
  }

  write(key: string, entry: CacheEntry): void {
    try {
      this.files.makeDirectory(this.folder);
      writeFile(this.files, this.pathOf(key), encodeEntry(entry));
    } catch (error) {
      if (!(error instanceof FettleError)) throw error;
    }
  }

  private pathOf(key: string): string {
    return joinPath(this.folder, `${key.slice(0, 40)}.cal`);
  }
}

/** How many entries of a cache were found, and made. */
export interface CacheUse {
  /** Read, whole. */
  found: number;
  /** Written. */
  made: number;
}

/** A cache that counts what is done with it. */
export function countedCache(cache: CalibrationCache, use: CacheUse): CalibrationCache {
  return {
    read(key) {
      const entry = cache.read(key);
      if (entry !== undefined) use.found++;
      return entry;
    },
    write(key, entry) {
      use.made++;
      cache.write(key, entry);
    },
  };
}

const MAGIC = 0x4c414346; // "FCAL"

const types = {
  f32: Float32Array,
  u8: Uint8Array,
  u16: Uint16Array,
  i32: Int32Array,
  i8: Int8Array,
} as const;

interface ArrayHeader {
  readonly name: string;
  readonly type: keyof typeof types;
  readonly offset: number;
  readonly length: number;
}

/** The bytes of an entry. */
export function encodeEntry({ json, arrays }: CacheEntry): Uint8Array {
  const headers: ArrayHeader[] = [];
  const hash = new Sha256().update(jsonBytes(json));
  let end = 0;
  for (const [name, array] of Object.entries(arrays)) {
    const type = (Object.keys(types) as (keyof typeof types)[]).find(
      (one) => array instanceof types[one],
    );
    if (type === undefined) throw new TypeError(`"${name}" is no array that can be kept`);
    headers.push({ name, type, offset: end, length: array.length });
    hash.update(bytesOf(array));
    end = align(end + array.byteLength);
  }
  const text = new TextEncoder().encode(
    JSON.stringify({ json, arrays: headers, sha256: hash.hex() }),
  );
  const start = align(8 + text.length);
  const file = new Uint8Array(start + end).fill(32, 8, start);
  const view = new DataView(file.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, start - 8, true);
  file.set(text, 8);
  headers.forEach(({ name, offset }) => {
    const array = arrays[name];
    if (array !== undefined) file.set(bytesOf(array), start + offset);
  });
  return file;
}

/** The entry in a file; undefined when it is damaged. */
export function decodeEntry(file: Uint8Array): CacheEntry | undefined {
  if (file.length < 8) return undefined;
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const start = 8 + view.getUint32(4, true);
  if (view.getUint32(0, true) !== MAGIC || start > file.length) return undefined;
  try {
    const header = JSON.parse(new TextDecoder().decode(file.subarray(8, start))) as {
      readonly json: unknown;
      readonly arrays: readonly ArrayHeader[];
      readonly sha256: string;
    };
    const hash = new Sha256().update(jsonBytes(header.json));
    const arrays: Record<string, CachedArray> = {};
    for (const { name, type, offset, length } of header.arrays) {
      // a copy: arrays want to be aligned, and the file is let go of
      const bytes = length * types[type].BYTES_PER_ELEMENT;
      const from = start + offset;
      if (from + bytes > file.length) return undefined;
      const copy = file.slice(from, from + bytes);
      hash.update(copy);
      arrays[name] = new types[type](copy.buffer, copy.byteOffset, length);
    }
    return hash.hex() === header.sha256 ? { json: header.json, arrays } : undefined;
  } catch {
    return undefined;
  }
}

function jsonBytes(json: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(json));
}

function bytesOf(array: CachedArray): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

function align(bytes: number): number {
  return Math.ceil(bytes / 8) * 8;
}
