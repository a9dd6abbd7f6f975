/**
 * Reads a bundle's files from its source: weights are streamed straight into one buffer that has the
 * final size from the start, a few chunks at a time, and each chunk is hashed where it lies.
 *
 * Peak beside the buffer: the pieces in flight, and one chunk copied by the platform's SHA-256 (chunks
 * are at most a sixteenth of the weights, see docs/bundle.md; larger ones are hashed in JavaScript).
 */
import { fileAt, MANIFEST_BYTES, MANIFEST_PATH, parseManifest } from './bundle.ts';
import { renew } from './check.ts';
import { FettleError } from './errors.ts';
import type { FileSpec, Manifest } from './manifest.ts';
import { hex, sha256 } from './sha256.ts';
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
  /** SHA-256 as lower-case hex, where the host has one that does not copy. Default: the platform's. */
  readonly digest?: (bytes: Uint8Array) => string;
  /** Aborts the load; whatever was allocated is let go. */
  readonly signal?: AbortSignal;
  /** Called as bytes arrive. */
  readonly onProgress?: (progress: LoadProgress) => void;
}

/** Chunks read at the same time: enough to hide latency, few enough to bound buffered pieces. */
const CHUNKS_IN_FLIGHT = 3;
/** A chunk up to this size is always hashed by the platform. */
const SMALL_CHUNK_BYTES = 2 ** 20;

/** Reads and checks `manifest.json`. */
export async function readManifest(source: BundleSource, options: LoadOptions): Promise<Manifest> {
  const pieces: Uint8Array[] = [];
  let total = 0;
  for await (const piece of streamOf(source, MANIFEST_PATH, options.signal)) {
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
  await fill(source, file, bytes, options.signal, () => {});
  if (options.verify !== false) await checkHash(file, digestOf(bytes, options, true));
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
  let hashing: Promise<void> = Promise.resolve();
  const work = async (): Promise<void> => {
    for (let next = chunks.shift(); next !== undefined; next = chunks.shift()) {
      const { file, view } = next;
      await fill(source, file, view, signal, arrived);
      if (options.verify === false) continue;
      const native = view.length <= Math.max(SMALL_CHUNK_BYTES, manifest.weights.bytes / 5);
      // One at a time, so that at most one chunk is copied.
      hashing = hashing.then(() => checkHash(file, digestOf(view, options, native)));
      await hashing;
    }
  };
  try {
    const workers = Array.from({ length: CHUNKS_IN_FLIGHT }, () =>
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

async function fill(
  source: BundleSource,
  file: FileSpec,
  target: Uint8Array,
  signal: AbortSignal | undefined,
  arrived: (bytes: number) => void,
): Promise<void> {
  let offset = 0;
  if (source.readInto !== undefined) {
    offset =
      (await guarded(source, file.path, signal, async () =>
        source.readInto?.(file.path, target, signal === undefined ? {} : { signal }),
      )) ?? 0;
    arrived(offset);
    if (offset < target.length) throw wrongSize(file.path, `${file.bytes}`, `${offset}`);
    return;
  }
  for await (const piece of streamOf(source, file.path, signal)) {
    if (offset + piece.length > target.length)
      throw wrongSize(file.path, `${file.bytes}`, `at least ${offset + piece.length}`);
    target.set(piece, offset);
    offset += piece.length;
    arrived(piece.length);
  }
  if (offset < target.length) throw wrongSize(file.path, `${file.bytes}`, `${offset}`);
}

/** The bytes of a file as they come; a piece is valid until the next one is asked for. */
async function* streamOf(
  source: BundleSource,
  path: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void> {
  const contents = await guarded(source, path, signal, () =>
    source.read(path, signal === undefined ? {} : { signal }),
  );
  if (contents instanceof Uint8Array) {
    yield contents;
    return;
  }
  const { reader, read } = readerOf(contents);
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
const PIECE_BYTES = 2 ** 18;

interface Reader {
  readonly reader: { cancel(): Promise<void> };
  readonly read: () => Promise<{ readonly done: boolean; readonly value?: Uint8Array | undefined }>;
}

/**
 * Reads into one buffer again and again where the stream can, as that of a response does: buffers of
 * its own would lie around until the heap is collected.
 */
function readerOf(stream: ReadableStream<Uint8Array>): Reader {
  try {
    const reader = stream.getReader({ mode: 'byob' });
    let buffer = new ArrayBuffer(PIECE_BYTES);
    const read = async (): ReturnType<Reader['read']> => {
      const step = await reader.read(new Uint8Array(buffer));
      if (step.value !== undefined) buffer = step.value.buffer;
      return step;
    };
    return { reader, read };
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

/** The platform's digest copies what it hashes and refuses shared memory; ours does neither, but is slow. */
async function digestOf(
  bytes: Uint8Array,
  { digest }: LoadOptions,
  native: boolean,
): Promise<string> {
  if (digest !== undefined) return digest(bytes);
  // Absent outside secure contexts.
  const subtle: SubtleCrypto | undefined = globalThis.crypto?.subtle;
  if (!native || subtle === undefined || !(bytes.buffer instanceof ArrayBuffer))
    return sha256(bytes);
  return hex(new Uint8Array(await subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>)));
}

async function checkHash(file: FileSpec, digest: Promise<string>): Promise<void> {
  const got = await digest;
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
