/**
 * What is on disk of one download: the bytes so far, the complete file, and what the server said about
 * each. A record that does not fit its file counts as none.
 */
import { createHash } from 'node:crypto';
import fs from 'node:fs';

/** What a server said about a version of a file. */
export interface Version {
  /** SHA-256 of the URL: the URL itself may hold a secret. */
  readonly urlSha256: string;
  /** ETag header. */
  readonly etag: string | undefined;
  /** Last-Modified header. */
  readonly lastModified: string | undefined;
  /** Bytes of the whole file. */
  readonly bytes: number | undefined;
}

/** A version that has arrived completely. */
export interface Finished extends Version {
  readonly bytes: number;
  /** Lower-case hex. */
  readonly sha256: string;
}

/** The files of one download. */
export class DownloadState {
  /** Where the complete file goes. */
  readonly file: string;
  /** Where bytes are collected. */
  readonly part: string;
  private readonly partRecord: string;
  private readonly record: string;

  /** @param file - where the complete file goes */
  constructor(file: string) {
    this.file = file;
    this.part = `${file}.part`;
    this.partRecord = `${file}.part.json`;
    this.record = `${file}.download.json`;
  }

  /** Bytes collected so far. */
  get partBytes(): number {
    return sizeOf(this.part);
  }

  /** The collected bytes, when they are a true beginning of the file at this URL. */
  partial(urlSha256: string): { readonly size: number; readonly version: Version } | undefined {
    const size = this.partBytes;
    const version = readJson<Version>(this.partRecord);
    if (size === 0 || version === undefined || version.urlSha256 !== urlSha256) return undefined;
    return version.bytes !== undefined && size >= version.bytes ? undefined : { size, version };
  }

  /** Says what the bytes collected from now on belong to. */
  begin(version: Version): void {
    writeJson(this.partRecord, version);
  }

  /** Forgets the collected bytes. */
  drop(): void {
    fs.rmSync(this.part, { force: true });
    fs.rmSync(this.partRecord, { force: true });
  }

  /** Makes the collected bytes the complete file. */
  finish(finished: Finished): void {
    fs.renameSync(this.part, this.file);
    writeJson(this.record, finished);
    fs.rmSync(this.partRecord, { force: true });
  }

  /** The record of the complete file, when its bytes are still those that arrived. */
  finished(): Finished | undefined {
    const record = readJson<Finished>(this.record);
    if (record === undefined || !fs.existsSync(this.file)) return undefined;
    if (sizeOf(this.file) !== record.bytes) return undefined;
    return hashOf(this.file) === record.sha256 ? record : undefined;
  }
}

function hashOf(file: string): string {
  const hash = createHash('sha256');
  const descriptor = fs.openSync(file, 'r');
  try {
    const block = Buffer.allocUnsafe(1 << 22);
    for (let at = 0, count = 1; count > 0; at += count) {
      count = fs.readSync(descriptor, block, 0, block.length, at);
      hash.update(block.subarray(0, count));
    }
  } finally {
    fs.closeSync(descriptor);
  }
  return hash.digest('hex');
}

function sizeOf(file: string): number {
  return fs.statSync(file, { throwIfNoEntry: false })?.size ?? 0;
}

function readJson<T>(file: string): T | undefined {
  try {
    return JSON.parse(fs.readFileSync(file, 'utf8')) as T;
  } catch {
    // absent or damaged: as if nothing had been downloaded
    return undefined;
  }
}

function writeJson(file: string, value: object): void {
  fs.writeFileSync(`${file}.tmp`, JSON.stringify(value));
  fs.renameSync(`${file}.tmp`, file);
}
