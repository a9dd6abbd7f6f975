/**
 * The runtime in Node: everything of `fettle/runtime`, bundle folders and `.fettle` files on disk, process
 * memory, and the Node entry of onnxruntime-web. The only file of the runtime that uses Node's modules.
 */
import { createHash } from 'node:crypto';
import { openAsBlob, readFileSync, statSync } from 'node:fs';
import { open, realpath } from 'node:fs/promises';
import { join, resolve, sep } from 'node:path';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { inflateRawSync } from 'node:zlib';

import type {
  BundleSource,
  HostMemory,
  OpenOptions,
  Session,
  SourceLike,
  StartWorker,
} from './index.ts';
import { FettleError, missingFile, openBundle as openAnywhere } from './index.ts';
import { sourceFrom } from './source.ts';

export * from './index.ts';

/**
 * Opens a bundle, as `openBundle` of `fettle/runtime` does, but also from disk.
 *
 * @param from - folder of a bundle, path of a `.fettle` file, `file:` URL of either, or anything that
 *   `fettle/runtime` accepts (`http:` and `https:` URLs, bytes, Blob, source)
 *
 * @example
 * const session = await openBundle('dist/nib-ort-wasm');
 */
export async function openBundle(from: SourceLike, options: OpenOptions = {}): Promise<Session> {
  return openAnywhere(await onDisk(from), {
    hostMemory: processMemory,
    // Unlike crypto.subtle, without a copy of each chunk.
    digest: (bytes) => createHash('sha256').update(bytes).digest('hex'),
    ...options,
    // Its browser entries do not start in Node: they ask for modules that a bundle cannot reach.
    ort: { module: () => import('onnxruntime-web'), ...options.ort },
    wasm: { startWorker, unpack, cores: availableParallelism(), ...options.wasm },
  });
}

/**
 * The files of a bundle, without loading it.
 *
 * @param from - as {@link openBundle}
 */
export async function bundleSource(from: SourceLike): Promise<BundleSource> {
  return sourceFrom(await onDisk(from));
}

async function onDisk(from: SourceLike): Promise<SourceLike> {
  if (from instanceof URL && from.protocol !== 'file:') return from;
  if (typeof from === 'string' && /^https?:/i.test(from)) return from;
  if (typeof from !== 'string' && !(from instanceof URL)) return from;
  const isUrl = from instanceof URL || /^file:/i.test(from);
  const path = isUrl ? fileURLToPath(from) : from;
  const stats = statSync(path, { throwIfNoEntry: false });
  if (stats === undefined)
    throw new FettleError('IO_FAILED', `Cannot open "${path}": there is no such file or folder.`, {
      at: { file: path },
      fix: 'Check the path, or compile the bundle first.',
    });
  return stats.isDirectory() ? directorySource(path) : openAsBlob(path);
}

/**
 * A bundle folder on disk. Only files inside the folder are read: paths are checked, and symbolic links
 * must not lead out of it.
 *
 * @param folder - of the bundle
 */
export function directorySource(folder: string): BundleSource {
  const root = resolve(folder);
  const locate = async (path: string): Promise<string> => {
    const missing = (cause: unknown): never => {
      if (isNodeError(cause) && (cause.code === 'ENOENT' || cause.code === 'ENOTDIR'))
        throw missingFile(root, path, cause);
      throw cause;
    };
    const inside = await realpath(root).catch(missing);
    const found = await realpath(join(inside, path)).catch(missing);
    if (found.startsWith(inside + sep)) return found;
    throw new FettleError('BUNDLE_CORRUPT', `"${path}" leads out of the bundle folder.`, {
      at: { source: root, file: path },
      fix: 'Replace the link by the file, or compile the bundle again.',
    });
  };
  return {
    name: root,
    async size(path) {
      const file = await open(await locate(path));
      try {
        return (await file.stat()).size;
      } finally {
        await file.close();
      }
    },
    async read(path) {
      return streamOf(await open(await locate(path)));
    },
    async readInto(path, target, { signal }) {
      const file = await open(await locate(path));
      try {
        let offset = 0;
        while (offset < target.length) {
          signal?.throwIfAborted();
          const length = Math.min(READ_BYTES, target.length - offset);
          const { bytesRead } = await file.read(target, offset, length, offset);
          if (bytesRead === 0) break;
          offset += bytesRead;
        }
        return offset;
      } finally {
        await file.close();
      }
    },
  };
}

/** Few large reads: the default 64 KiB would mean thousands of turns of the event loop. */
const READ_BYTES = 2 ** 20;

function streamOf(file: Awaited<ReturnType<typeof open>>): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        // `position` null: continue where the last read ended.
        const { bytesRead, buffer } = await file.read(
          new Uint8Array(READ_BYTES),
          0,
          READ_BYTES,
          null,
        );
        if (bytesRead > 0) return controller.enqueue(buffer.subarray(0, bytesRead));
        await file.close();
        controller.close();
      },
      cancel: () => file.close(),
    },
    { highWaterMark: 0 },
  );
}

const workerPrelude = `
const { parentPort, workerData } = require('node:worker_threads');
const send = (message) => parentPort.postMessage(message);
const receive = (callback) => callback(workerData);
`;

/** Starts a thread of the WASM engine with `node:worker_threads`. */
export const startWorker: StartWorker = (source, task) => {
  const worker = new Worker(workerPrelude + source, { eval: true, workerData: task });
  // a session that nobody disposed must not keep the process alive
  worker.unref();
  const ready = new Promise<void>((fulfil, reject) => {
    worker.on('error', reject);
    worker.on('message', (message) =>
      message === 'ready' ? fulfil() : reject(new Error(String(message))),
    );
  });
  return { ready, terminate: () => void worker.terminate() };
};

/** Web streams and `Response` are written in JavaScript here, and loading them takes megabytes. */
function unpack(text: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(inflateRawSync(Buffer.from(text, 'base64')));
}

/** Memory of this process: resident now and at its peak, in bytes. */
export function processMemory(): HostMemory {
  return {
    residentBytes: process.memoryUsage.rss(),
    peakBytes: peakResidentBytes(),
  };
}

/**
 * Linux hands a process the peak of the one that started it along with `maxRSS`; its own stands in
 * `/proc`.
 */
function peakResidentBytes(): number {
  try {
    const [, kib] = /^VmHWM:\s*(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
    if (kib !== undefined) return Number(kib) * 1024;
  } catch {
    // no such file: not Linux
  }
  return process.resourceUsage().maxRSS * 1024;
}

function isNodeError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'code' in error;
}
