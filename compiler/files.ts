/**
 * How the compiler reaches files. It is synchronous because weights are read where passes look at them
 * (see `ir/weight.ts`); a browser runs the compiler in a worker, where synchronous reads exist.
 *
 * Paths are the host's own; both `/` and, where the host has it, `\` separate. Every failure is a
 * FettleError IO_FAILED that names the path.
 */
import { FettleError } from '../runtime/errors.ts';

/** What is known about a path without reading it. */
export interface FileStat {
  /** Size of a file in bytes; 0 for a directory. */
  readonly bytes: number;
  /** What the path leads to, symbolic links followed. */
  readonly kind: 'file' | 'directory' | 'other';
}

/** A file being written under a temporary name. Exactly one of `close` and `abort` ends it. */
export interface FileWriter {
  /** Appends bytes. On failure the temporary file is removed before the error is thrown. */
  write(bytes: Uint8Array): void;
  /** Puts the complete file at its path, replacing what was there. */
  close(): void;
  /** Removes the temporary file; the path is left as it was. Does nothing after `close`. */
  abort(): void;
}

/** The file operations the compiler needs. Implemented by {@link MemoryFiles} and `NodeFiles`. */
export interface FileSystem {
  /** Kind and size, or undefined when nothing is there. */
  stat(path: string): FileStat | undefined;
  /** Exactly `length` bytes from byte `start`. Throws IO_FAILED when the file is shorter. */
  read(path: string, start: number, length: number): Uint8Array;
  /** The absolute path with symbolic links resolved and `/` as separator. */
  realPath(path: string): string;
  /** Names in a directory, sorted. */
  list(directory: string): readonly string[];
  /** Makes a directory and its parents; does nothing when it exists. */
  makeDirectory(path: string): void;
  /** Starts a file; nothing appears at `path` before the writer is closed. */
  create(path: string): FileWriter;
  /** Moves a file or directory, replacing a file that is there. */
  rename(from: string, to: string): void;
  /** Removes a file, or a directory with what is in it; does nothing when nothing is there. */
  remove(path: string): void;
}

/** The directory part of a path; `.` when there is none. */
export function directoryOf(path: string): string {
  const at = Math.max(path.lastIndexOf('/'), path.lastIndexOf('\\'));
  if (at < 0) return '.';
  return at === 0 ? path.slice(0, 1) : path.slice(0, at);
}

/** The last part of a path. */
export function baseName(path: string): string {
  return path.slice(Math.max(path.lastIndexOf('/'), path.lastIndexOf('\\')) + 1);
}

/** `directory/name`, without a needless `./`. */
export function joinPath(directory: string, name: string): string {
  if (directory === '' || directory === '.') return name;
  return /[\\/]$/.test(directory) ? directory + name : `${directory}/${name}`;
}

/** A whole file. */
export function readFile(files: FileSystem, path: string): Uint8Array {
  const stat = files.stat(path);
  if (stat?.kind !== 'file') throw missing(path, stat);
  return files.read(path, 0, stat.bytes);
}

/** Writes a whole file; on failure nothing is left at the path. */
export function writeFile(files: FileSystem, path: string, bytes: Uint8Array): void {
  const writer = files.create(path);
  try {
    writer.write(bytes);
    writer.close();
  } catch (error) {
    writer.abort();
    throw error;
  }
}

/** The error for a path where a file was wanted. */
export function missing(path: string, stat?: FileStat): FettleError {
  const seen = stat === undefined ? 'nothing is there' : `it is a ${stat.kind}`;
  return new FettleError('IO_FAILED', `Cannot read "${path}": ${seen}.`, {
    at: { file: path },
    fix: 'Check the path.',
  });
}

/** Files held in memory: for tests, and for browsers that got a model from the user. */
export class MemoryFiles implements FileSystem {
  /** Contents by normalized path. */
  readonly contents: Map<string, Uint8Array> = new Map();
  private readonly directories = new Set<string>(['']);

  /** @param files - initial contents by path */
  constructor(files: Readonly<Record<string, Uint8Array>> = {}) {
    for (const [path, bytes] of Object.entries(files)) this.put(normalize(path), bytes);
  }

  stat(path: string): FileStat | undefined {
    const name = normalize(path);
    const bytes = this.contents.get(name);
    if (bytes !== undefined) return { bytes: bytes.length, kind: 'file' };
    return this.directories.has(name) ? { bytes: 0, kind: 'directory' } : undefined;
  }

  read(path: string, start: number, length: number): Uint8Array {
    const bytes = this.contents.get(normalize(path));
    if (bytes === undefined) throw missing(path, this.stat(path));
    if (start + length > bytes.length) throw tooShort(path, start, length, bytes.length);
    return bytes.subarray(start, start + length);
  }

  realPath(path: string): string {
    if (this.stat(path) === undefined) throw missing(path);
    return `/${normalize(path)}`;
  }

  list(directory: string): readonly string[] {
    const name = normalize(directory);
    if (!this.directories.has(name)) throw missing(directory, this.stat(directory));
    const prefix = name === '' ? '' : `${name}/`;
    const entries = new Set<string>();
    for (const path of [...this.contents.keys(), ...this.directories])
      if (path !== name && path.startsWith(prefix))
        entries.add(path.slice(prefix.length).split('/')[0] ?? '');
    return [...entries].sort();
  }

  makeDirectory(path: string): void {
    const parts = normalize(path).split('/');
    parts.forEach((_, i) => {
      const name = parts.slice(0, i + 1).join('/');
      if (this.contents.has(name))
        throw new FettleError(
          'IO_FAILED',
          `Cannot make the directory "${path}": a file is there.`,
          {
            at: { file: path },
            fix: 'Choose another directory.',
          },
        );
      this.directories.add(name);
    });
  }

  create(path: string): FileWriter {
    const name = normalize(path);
    if (!this.directories.has(parentOf(name))) throw missing(directoryOf(path));
    const pieces: Uint8Array[] = [];
    return {
      write: (bytes) => void pieces.push(new Uint8Array(bytes)),
      close: () => this.put(name, concatBytes(pieces)),
      abort: () => void pieces.splice(0),
    };
  }

  rename(from: string, to: string): void {
    const [source, target] = [normalize(from), normalize(to)];
    if (this.stat(from) === undefined) throw missing(from);
    for (const [path, bytes] of Array.from(this.contents))
      if (path === source || path.startsWith(`${source}/`)) {
        this.contents.delete(path);
        this.put(target + path.slice(source.length), bytes);
      }
    if (this.directories.delete(source)) this.directories.add(target);
  }

  remove(path: string): void {
    const name = normalize(path);
    for (const set of [this.contents, this.directories])
      for (const entry of set.keys())
        if (entry === name || entry.startsWith(`${name}/`)) set.delete(entry);
    this.directories.add('');
  }

  private put(name: string, bytes: Uint8Array): void {
    this.makeDirectory(parentOf(name));
    this.contents.set(name, plainBytes(bytes));
  }
}

/** The error for a read past the end of a file. */
export function tooShort(path: string, start: number, length: number, bytes: number): FettleError {
  return new FettleError(
    'IO_FAILED',
    `Cannot read ${length} bytes at ${start} of "${path}": it has ${bytes} bytes.`,
    { at: { file: path, offset: start }, fix: 'Get the file again; it is shorter than expected.' },
  );
}

/** The same bytes as an Uint8Array proper, not a Buffer, whose methods behave differently. */
export function plainBytes(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** One array with the bytes of several. */
export function concatBytes(pieces: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

function parentOf(name: string): string {
  return name.includes('/') ? name.slice(0, name.lastIndexOf('/')) : '';
}

/** `/a/./b/../c` -> `a/c`. */
function normalize(path: string): string {
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '' && part !== '.') parts.push(part);
  }
  return parts.join('/');
}
