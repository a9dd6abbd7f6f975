/**
 * The compiler's parts that need Node: files on disk.
 */
import fs from 'node:fs';
import path from 'node:path';
import { FettleError } from '../runtime/errors.ts';
import type { FileStat, FileSystem, FileWriter } from './files.ts';
import { missing, tooShort } from './files.ts';

/** Open descriptors kept at most; a model rarely has more data files. */
const MAX_OPEN = 16;

/** Largest single system call; Node refuses reads of 2 GiB. */
const MAX_READ_BYTES = 1 << 30;

/** Files on disk. Keeps a few files open for reading; {@link NodeFiles.close} lets go of them. */
export class NodeFiles implements FileSystem {
  private readonly open = new Map<string, number>();
  private temporaryCount = 0;

  stat(file: string): FileStat | undefined {
    const stat = attempt('look at', file, () => fs.statSync(file, { throwIfNoEntry: false }));
    if (stat === undefined) return undefined;
    if (stat.isDirectory()) return { bytes: 0, kind: 'directory' };
    return { bytes: stat.size, kind: stat.isFile() ? 'file' : 'other' };
  }

  read(file: string, start: number, length: number): Uint8Array {
    return attempt('read', file, () => {
      const descriptor = this.descriptor(file);
      const size = fs.fstatSync(descriptor).size;
      // before allocating: a wrong length must not cost memory
      if (start + length > size) throw tooShort(file, start, length, size);
      const bytes = new Uint8Array(length);
      for (let done = 0; done < length;) {
        const wanted = Math.min(length - done, MAX_READ_BYTES);
        const count = fs.readSync(descriptor, bytes, done, wanted, start + done);
        if (count === 0) throw tooShort(file, start, length, start + done);
        done += count;
      }
      return bytes;
    });
  }

  realPath(file: string): string {
    const real = attempt('resolve', file, () => fs.realpathSync(file));
    return path.sep === '/' ? real : real.replaceAll(path.sep, '/');
  }

  list(directory: string): readonly string[] {
    return attempt('list', directory, () => fs.readdirSync(directory).sort());
  }

  makeDirectory(directory: string): void {
    attempt('make the directory', directory, () => makeLevels(path.resolve(directory)));
  }

  create(file: string): FileWriter {
    // the process id keeps two compilations into one directory apart
    const temporary = `${file}.${process.pid}-${++this.temporaryCount}.tmp`;
    return new DiskWriter(file, temporary, () => this.forget(file));
  }

  rename(from: string, to: string): void {
    this.close();
    attempt('rename', from, () => fs.renameSync(from, to));
  }

  remove(file: string): void {
    this.close();
    attempt('remove', file, () => fs.rmSync(file, { recursive: true, force: true }));
  }

  /** Closes the files kept open for reading; a later read opens them again. */
  close(): void {
    for (const descriptor of this.open.values()) fs.closeSync(descriptor);
    this.open.clear();
  }

  private forget(file: string): void {
    const key = path.resolve(file);
    const descriptor = this.open.get(key);
    if (descriptor !== undefined) fs.closeSync(descriptor);
    this.open.delete(key);
  }

  /** An open descriptor; the one opened first gives way when there are too many. */
  private descriptor(file: string): number {
    const key = path.resolve(file);
    const known = this.open.get(key);
    if (known !== undefined) return known;
    const descriptor = fs.openSync(file, 'r');
    for (const [oldest] of this.open) {
      if (this.open.size < MAX_OPEN) break;
      this.forget(oldest);
    }
    this.open.set(key, descriptor);
    return descriptor;
  }
}

/** Writes to a temporary name; see {@link FileWriter}. */
class DiskWriter implements FileWriter {
  private readonly file: string;
  private readonly temporary: string;
  private readonly replaced: () => void;
  private descriptor: number | undefined;
  private finished = false;

  constructor(file: string, temporary: string, replaced: () => void) {
    this.file = file;
    this.temporary = temporary;
    this.replaced = replaced;
    this.descriptor = attempt('write', file, () => fs.openSync(temporary, 'wx'));
  }

  write(bytes: Uint8Array): void {
    this.orAbort((descriptor) => {
      for (let done = 0; done < bytes.length;)
        done += fs.writeSync(descriptor, bytes, done, bytes.length - done);
    });
  }

  close(): void {
    this.orAbort((descriptor) => {
      this.descriptor = undefined;
      fs.closeSync(descriptor);
      fs.renameSync(this.temporary, this.file);
      this.finished = true;
      this.replaced();
    });
  }

  abort(): void {
    if (this.finished) return;
    this.finished = true;
    try {
      if (this.descriptor !== undefined) fs.closeSync(this.descriptor);
    } finally {
      this.descriptor = undefined;
      fs.rmSync(this.temporary, { force: true });
    }
  }

  private orAbort(step: (descriptor: number) => void): void {
    try {
      attempt('write', this.file, () => {
        if (this.descriptor === undefined) throw new Error('the writer was closed');
        step(this.descriptor);
      });
    } catch (error) {
      this.abort();
      throw error;
    }
  }
}

/**
 * Makes a directory level by level: `mkdirSync` with `recursive` never returns where the parent exists
 * and the system answers ENOENT, as below /proc (Node 20).
 */
function makeLevels(directory: string): void {
  if (fs.statSync(directory, { throwIfNoEntry: false })?.isDirectory() === true) return;
  const parent = path.dirname(directory);
  if (parent !== directory) makeLevels(parent);
  try {
    fs.mkdirSync(directory);
  } catch (error) {
    // somebody else may have made it in the meantime
    if (!fs.statSync(directory, { throwIfNoEntry: false })?.isDirectory()) throw error;
  }
}

/** Runs a file operation; turns Node's errors into IO_FAILED with a remedy. */
function attempt<T>(what: string, file: string, operation: () => T): T {
  try {
    return operation();
  } catch (error) {
    if (error instanceof FettleError) throw error;
    const code = error instanceof Error && 'code' in error ? String(error.code) : '';
    if (code === 'ENOENT' && what !== 'write') throw missing(file);
    const reason = error instanceof Error ? error.message : String(error);
    throw new FettleError('IO_FAILED', `Cannot ${what} "${file}": ${reason}.`, {
      at: { file },
      fix: fixes[code] ?? 'Check the path and its permissions.',
      cause: error,
    });
  }
}

const fixes: Readonly<Record<string, string>> = {
  EACCES: 'Check the permissions of the file and its directory.',
  EDQUOT: 'Free some space or choose another disk.',
  EISDIR: 'Name a file, not a directory.',
  ENOENT: 'Create the directory first.',
  ENOSPC: 'Free some space or choose another disk.',
  ENOTDIR: 'Choose a path below a directory.',
  EPERM: 'Check the permissions of the file and its directory.',
  EROFS: 'Choose a directory on a writable disk.',
};
