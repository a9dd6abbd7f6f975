/**
 * Where a bundle comes from: a folder behind a URL, a packed file behind a URL, a Blob, bytes, or
 * anything that can hand out files by path (a cache, a database, a folder on disk in `node.ts`).
 */
import { renew } from './check.ts';
import { FettleError, wrongType } from './errors.ts';
import type { RandomAccess } from './tar.ts';
import { indexTar } from './tar.ts';

/** What a source is told about a read. */
export interface ReadOptions {
  /** Aborts the read. */
  readonly signal?: AbortSignal;
}

/**
 * Hands out the files of a bundle. Paths are safe by the time they get here (see docs/bundle.md). A
 * missing file rejects with {@link missingFile}; other failures may be any error.
 */
export interface BundleSource {
  /** Name for messages: a URL, a folder. */
  readonly name: string;
  /** Contents of a file, whole or as a stream. */
  read(path: string, options: ReadOptions): Promise<ReadableStream<Uint8Array> | Uint8Array>;
  /**
   * Reads a file straight into `target`, when the source can: no pieces to collect. Resolves to the bytes
   * read, which is less than `target.length` when the file is shorter; a longer file is read in part.
   */
  readInto?(path: string, target: Uint8Array, options: ReadOptions): Promise<number>;
  /** Size of a file in bytes when that is cheap to know; lets a truncated file fail before allocation. */
  size?(path: string, options: ReadOptions): Promise<number | undefined>;
}

/** What `openBundle` accepts. */
export type SourceLike = string | URL | Blob | ArrayBuffer | Uint8Array | BundleSource;

/**
 * The source for whatever the caller has.
 *
 * @param from - a URL of a bundle folder, of its manifest or of a `.fettle` file; the bytes of a packed
 *   bundle; or a source, which is returned as it is
 * @throws TypeError for anything else
 */
export async function sourceFrom(
  from: SourceLike,
  options: ReadOptions = {},
): Promise<BundleSource> {
  if (typeof from === 'string' || from instanceof URL) return urlSource(absoluteUrl(from), options);
  if (from instanceof Blob) return packedSource(blobAccess(from), 'packed bundle', options);
  if (from instanceof ArrayBuffer) return sourceFrom(new Uint8Array(from), options);
  if (from instanceof Uint8Array) return packedSource(bytesAccess(from), 'packed bundle', options);
  if (typeof from === 'object' && from !== null && typeof from.read === 'function') return from;
  throw wrongType('source', 'a URL, Blob, Uint8Array or BundleSource', from);
}

/** The error for a file that a source does not have. */
export function missingFile(source: string, path: string, cause?: unknown): FettleError {
  return new FettleError('BUNDLE_CORRUPT', `Cannot find "${path}" in ${source}.`, {
    at: { source, file: path },
    fix: path === 'manifest.json' ? 'Check that the source is a compiled bundle.' : renew,
    ...(cause === undefined ? {} : { cause }),
  });
}

/** The error for a source that could not be read for a reason outside the bundle. */
export function readFailed(
  source: string,
  path: string,
  why: string,
  cause?: unknown,
): FettleError {
  return new FettleError('IO_FAILED', `Cannot read "${path}" from ${source}: ${why}.`, {
    at: { source, file: path },
    fix: 'Check the connection and the permissions, then try again.',
    ...(cause === undefined ? {} : { cause }),
  });
}

function absoluteUrl(from: string | URL): URL {
  const base: string | undefined = globalThis.location?.href;
  try {
    return new URL(from, base);
  } catch (cause) {
    throw new FettleError('USAGE', `Cannot open "${String(from)}": it is not a URL.`, {
      at: { url: String(from) },
      fix: 'Pass an absolute URL, or use openBundle from fettle/runtime/node for a folder.',
      cause,
    });
  }
}

async function urlSource(url: URL, options: ReadOptions): Promise<BundleSource> {
  if (url.pathname.endsWith('.fettle'))
    return packedSource(await httpAccess(url, options), url.href, options);
  const folder = new URL(url);
  folder.pathname = url.pathname.replace(/(?:\/manifest\.json|\/)?$/, '/');
  return {
    name: folder.href,
    async read(path, { signal }) {
      const file = new URL(folder);
      file.pathname += path;
      const response = await get(file, folder.href, path, signal, {});
      return response.body ?? new Uint8Array(await response.arrayBuffer());
    },
  };
}

async function get(
  url: URL,
  source: string,
  path: string,
  signal: AbortSignal | undefined,
  headers: Readonly<Record<string, string>>,
): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, { headers, ...(signal === undefined ? {} : { signal }) });
  } catch (cause) {
    signal?.throwIfAborted();
    throw readFailed(source, path, 'the server could not be reached', cause);
  }
  if (response.ok) return response;
  await response.body?.cancel();
  if (response.status === 404 || response.status === 410) throw missingFile(source, path);
  throw readFailed(source, path, `the server answered ${response.status}`);
}

/** Random access to the files in a packed bundle. */
interface PackedAccess extends RandomAccess {
  /** Like `read`, for long ranges. */
  stream(
    start: number,
    end: number,
    signal?: AbortSignal,
  ): Promise<ReadableStream<Uint8Array> | Uint8Array>;
}

async function packedSource(
  archive: PackedAccess,
  name: string,
  options: ReadOptions,
): Promise<BundleSource> {
  const entries = await indexTar(archive);
  options.signal?.throwIfAborted();
  return {
    name,
    read(path, { signal }) {
      const entry = entries.get(path);
      if (entry === undefined) return Promise.reject(missingFile(name, path));
      return archive.stream(entry.start, entry.start + entry.bytes, signal);
    },
    size: (path) => Promise.resolve(entries.get(path)?.bytes),
  };
}

function bytesAccess(bytes: Uint8Array): PackedAccess {
  const read = (start: number, end: number): Promise<Uint8Array> =>
    Promise.resolve(bytes.subarray(start, end));
  return { bytes: bytes.length, read, stream: read };
}

function blobAccess(blob: Blob): PackedAccess {
  return {
    bytes: blob.size,
    read: async (start, end) => new Uint8Array(await blob.slice(start, end).arrayBuffer()),
    stream: (start, end) => Promise.resolve(blob.slice(start, end).stream()),
  };
}

/** The first request asks for this much: the manifest and the small files come first. */
const FIRST_BYTES = 2 ** 18;

async function httpAccess(url: URL, { signal }: ReadOptions): Promise<PackedAccess> {
  const first = await get(url, url.href, '', signal, { range: `bytes=0-${FIRST_BYTES - 1}` });
  const total = Number(/\/(\d+)$/.exec(first.headers.get('content-range') ?? '')?.[1]);
  // A server without ranges sends everything at once.
  if (first.status !== 206) return blobAccess(await first.blob());
  // Another origin must expose the header that tells the size; most do not.
  if (!Number.isSafeInteger(total)) {
    await first.body?.cancel();
    return blobAccess(await (await get(url, url.href, '', signal, {})).blob());
  }
  const head = new Uint8Array(await first.arrayBuffer());
  const stream = async (
    start: number,
    end: number,
    abort?: AbortSignal,
  ): Promise<ReadableStream<Uint8Array> | Uint8Array> => {
    if (end <= head.length) return head.subarray(start, end);
    if (start === end) return new Uint8Array(0);
    const range = `bytes=${start}-${end - 1}`;
    const response = await get(url, url.href, range, abort, { range });
    if (response.status !== 206) {
      await response.body?.cancel();
      throw readFailed(url.href, range, 'the server stopped answering range requests');
    }
    return response.body ?? new Uint8Array(await response.arrayBuffer());
  };
  return {
    bytes: total,
    stream,
    async read(start, end) {
      const part = await stream(start, end, signal);
      return part instanceof Uint8Array
        ? part
        : new Uint8Array(
            await new Response(part as ReadableStream<Uint8Array<ArrayBuffer>>).arrayBuffer(),
          );
    },
  };
}
