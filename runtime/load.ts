/**
 * Reads a bundle's files from its source: weights are streamed straight into one buffer that has the
 * final size from the start, a few chunks at a time where that is little beside the weights.
 *
 * Peak beside the buffer: a piece and what the host buffers of a response, for each chunk at a time. Bytes
 * are hashed as they come: the platform's SHA-256 would take a copy of a whole chunk. A response is read as
 * soon as it is there: Chromium copies one that waits into its heap.
 */
import { fileAt, MANIFEST_BYTES, MANIFEST_PATH, parseManifest } from './bundle.ts';
import { renew } from './check.ts';
import { FettleError } from './errors.ts';
import type { FileSpec, Manifest } from './manifest.ts';
import { Sha256 } from './sha256.ts';
import type { BundleSource } from './source.ts';
import { readFailed } from './source.ts';

/** How far a load has come. */
export interface LoadProgress {
  /** `download` while bytes arrive, `prepare` while the engine builds its program, then `ready`. */
  readonly stage: 'download' | 'prepare' | 'ready';
  /** Bytes of weights and program read so far. */
  readonly loadedBytes: number;
  /** Bytes of weights and program. */
  readonly totalBytes: number;
}

/** How a bundle is read. */
export interface LoadOptions {
  /** Compare every file with its SHA-256. Default true; sizes are always compared. */
  readonly verify?: boolean;
  /** SHA-256 as lower-case hex, where the host has a quicker one that does not copy. */
  readonly digest?: (bytes: Uint8Array) => string;
  /** Aborts the load; whatever was allocated is let go. */
  readonly signal?: AbortSignal;
  /** Called as bytes arrive. */
  readonly onProgress?: (progress: LoadProgress) => void;
}

/** Chunks read at the same time: enough to hide latency. */
const MOST_CHUNKS = 3;
/** Weights that are worth one more chunk at a time, whose response Chromium gives up to 2 MiB of buffer. */
const BYTES_PER_CHUNK = 2 ** 25;

/** Reads and checks `manifest.json`. */
export async function readManifest(source: BundleSource, options: LoadOptions): Promise<Manifest> {
  const pieces: Uint8Array[] = [];
  let total = 0;
  for await (const piece of streamOf(source, MANIFEST_PATH, options.signal, new Pieces())) {
    total += piece.length;
    if (total > MANIFEST_BYTES) throw wrongSize(MANIFEST_PATH, `at most ${MANIFEST_BYTES}`, 'more');
    pieces.push(piece.slice());
  }
  const bytes = new Uint8Array(total);
  let offset = 0;
  for (const piece of pieces) {
    bytes.set(piece, offset);
    offset += piece.length;
  }
  return parseManifest(bytes);
}

/** Reads one of `manifest.files` whole. */
export async function readListedFile(
  source: BundleSource,
  manifest: Manifest,
  path: string,
  options: LoadOptions,
): Promise<Uint8Array<ArrayBuffer>> {
  const file = fileAt(manifest, path);
  await checkSize(source, file, options.signal);
  const bytes = new Uint8Array(file.bytes);
  await fill(source, file, bytes, options, () => {}, new Pieces(file.bytes));
  return bytes;
}

/**
 * Streams all weight chunks into `target`.
 *
 * @param target - `manifest.weights.bytes` bytes, may be shared memory
 * @param arrived - called with the size of each piece as it is written
 * @throws {@link FettleError} BUNDLE_CORRUPT naming the chunk that is missing, cut short, too long or changed
 */
export async function readWeights(
  source: BundleSource,
  manifest: Manifest,
  target: Uint8Array,
  options: LoadOptions,
  arrived: (bytes: number) => void,
): Promise<void> {
  const stop = new AbortController();
  const signal =
    options.signal === undefined ? stop.signal : AbortSignal.any([options.signal, stop.signal]);
  const chunks = placeChunks(manifest.weights.files, target);
  for (const { file } of chunks) await checkSize(source, file, signal);
  const work = async (): Promise<void> => {
    const pieces = new Pieces();
    for (let next = chunks.shift(); next !== undefined; next = chunks.shift()) {
      const { file, view } = next;
      await fill(source, file, view, { ...options, signal }, arrived, pieces);
    }
  };
  const most = Math.floor(manifest.weights.bytes / BYTES_PER_CHUNK);
  const atATime = Math.max(1, Math.min(most, MOST_CHUNKS));
  try {
    const workers = Array.from({ length: atATime }, () =>
      work().catch((error: unknown) => {
        stop.abort(error);
        throw error;
      }),
    );
    const results = await Promise.allSettled(workers);
    options.signal?.throwIfAborted();
    if (stop.signal.aborted) throw stop.signal.reason;
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  } finally {
    stop.abort();
  }
}

function placeChunks(
  files: readonly FileSpec[],
  target: Uint8Array,
): { readonly file: FileSpec; readonly view: Uint8Array }[] {
  let offset = 0;
  return files.map((file) => {
    const view = target.subarray(offset, offset + file.bytes);
    offset += file.bytes;
    return { file, view };
  });
}

/** Fails early, before anything is allocated or downloaded, when the source knows a wrong size. */
async function checkSize(
  source: BundleSource,
  file: FileSpec,
  signal: AbortSignal | undefined,
): Promise<void> {
  const size = await source.size?.(file.path, signal === undefined ? {} : { signal });
  if (size !== undefined && size !== file.bytes)
    throw wrongSize(file.path, `${file.bytes}`, `${size}`);
}

/** Reads a file into its place, and checks it. */
async function fill(
  source: BundleSource,
  file: FileSpec,
  target: Uint8Array,
  { signal, verify = true, digest }: LoadOptions,
  arrived: (bytes: number) => void,
  pieces: Pieces,
): Promise<void> {
  const { path } = file;
  const running = verify && digest === undefined ? new Sha256() : undefined;
  const take = (bytes: number, offset: number): void => {
    running?.update(target.subarray(offset, offset + bytes));
    arrived(bytes);
  };
  let offset = 0;
  if (source.readInto === undefined) {
    for await (const piece of streamOf(source, path, signal, pieces)) {
      if (offset + piece.length > target.length)
        throw wrongSize(path, `${file.bytes}`, `at least ${offset + piece.length}`);
      target.set(piece, offset);
      take(piece.length, offset);
      offset += piece.length;
    }
  } else {
    const read = async (): Promise<number | undefined> =>
      source.readInto?.(path, target, signal === undefined ? {} : { signal });
    offset = (await guarded(source, path, signal, read)) ?? 0;
    take(offset, 0);
  }
  if (offset < target.length) throw wrongSize(path, `${file.bytes}`, `${offset}`);
  if (verify) checkHash(file, running?.hex() ?? digest?.(target) ?? '');
}

/** The bytes of a file as they come; a piece is valid until the next one is asked for. */
async function* streamOf(
  source: BundleSource,
  path: string,
  signal: AbortSignal | undefined,
  pieces: Pieces,
): AsyncGenerator<Uint8Array, void> {
  const contents = await guarded(source, path, signal, () =>
    source.read(path, signal === undefined ? {} : { signal }),
  );
  if (contents instanceof Uint8Array) {
    yield contents;
    return;
  }
  const { reader, read } = readerOf(contents, pieces);
  try {
    for (;;) {
      const step = await guarded(source, path, signal, read);
      if (step.done || step.value === undefined) return;
      yield step.value;
    }
  } finally {
    // Also reached when the consumer stops early: the connection must not stay open.
    await reader.cancel().catch(() => {});
  }
}

/** Bytes that are asked for at a time, where a stream can write them into a buffer. */
const PIECE_BYTES = 2 ** 16;

/**
 * The buffer of what is read next, again and again: buffers of its own for every piece or file would lie
 * around until the heap is collected.
 */
class Pieces {
  readonly #bytes: number;
  #buffer: ArrayBuffer;

  constructor(mostBytes = PIECE_BYTES) {
    this.#bytes = Math.min(mostBytes, PIECE_BYTES);
    this.#buffer = new ArrayBuffer(0);
  }

  /** Reads a piece; the buffer goes to the stream and comes back with it. */
  async read(reader: ReadableStreamBYOBReader): ReturnType<Reader['read']> {
    const buffer = this.#buffer.byteLength === 0 ? new ArrayBuffer(this.#bytes) : this.#buffer;
    this.#buffer = new ArrayBuffer(0);
    const step = await reader.read(new Uint8Array(buffer));
    if (step.value !== undefined) this.#buffer = step.value.buffer;
    return step;
  }
}

interface Reader {
  readonly reader: { cancel(): Promise<void> };
  readonly read: () => Promise<{ readonly done: boolean; readonly value?: Uint8Array | undefined }>;
}

/** Reads into the buffer of `pieces` where the stream can, as that of a response does. */
function readerOf(stream: ReadableStream<Uint8Array>, pieces: Pieces): Reader {
  try {
    const reader = stream.getReader({ mode: 'byob' });
    return { reader, read: () => pieces.read(reader) };
  } catch {
    // no stream of bytes
    const reader = stream.getReader();
    return { reader, read: () => reader.read() };
  }
}

/** A step of a source: foreign errors become IO_FAILED, aborts stay what they are. */
async function guarded<T>(
  source: BundleSource,
  path: string,
  signal: AbortSignal | undefined,
  step: () => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted();
  try {
    const result = await step();
    signal?.throwIfAborted();
    return result;
  } catch (cause) {
    signal?.throwIfAborted();
    if (cause instanceof FettleError) throw cause;
    const why = cause instanceof Error ? cause.message : String(cause);
    throw readFailed(source.name, path, why, cause);
  }
}

function checkHash(file: FileSpec, got: string): void {
  if (got === file.sha256) return;
  throw new FettleError(
    'BUNDLE_CORRUPT',
    `"${file.path}" has changed: wanted SHA-256 ${file.sha256}, got ${got}.`,
    { at: { file: file.path }, fix: renew },
  );
}

function wrongSize(path: string, wanted: string, got: string): FettleError {
  return new FettleError(
    'BUNDLE_CORRUPT',
    `"${path}" has the wrong size: wanted ${wanted} bytes, got ${got}.`,
    {
      at: { file: path },
      fix: renew,
    },
  );
}
