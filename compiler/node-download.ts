/**
 * One file from a server to disk, once: an interrupted transfer goes on where it stopped, a complete
 * one is asked for again only when the server says that it changed.
 *
 *   model.onnx                 appears when it is complete and its size is right
 *   model.onnx.part            bytes so far; .part.json says of which version
 *   model.onnx.download.json   validators, size and SHA-256 of the complete file
 *
 * Source: RFC 9110, sections 13 (conditional requests) and 14 (ranges).
 */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { FettleError } from '../runtime/errors.ts';
import type { Progress } from './passes/pass.ts';
import { DownloadLock } from './node-download-lock.ts';
import type { Finished, Version } from './node-download-state.ts';
import { DownloadState } from './node-download-state.ts';

/** How to download. */
export interface DownloadOptions {
  /** Called as bytes arrive; `total` is 0 while it is unknown. */
  readonly progress?: Progress | undefined;
  /** Stops the transfer; what has arrived stays for the next time. */
  readonly signal?: AbortSignal | undefined;
  /** Attempts in a row that bring no new byte before it is given up. Default 3. */
  readonly attempts?: number | undefined;
  /** Pause before the second attempt, doubled each time. Default 500. */
  readonly retryDelayMs?: number | undefined;
  /** Whether the file may be missing; then `absent` is no error. Default false. */
  readonly optional?: boolean | undefined;
  /** Told what the user should know: that the server could not be reached and the cache was used. */
  readonly warn?: ((message: string) => void) | undefined;
}

/** What became of a download; `offline`: the server cannot be reached and the copy on disk stays. */
export type DownloadResult = 'downloaded' | 'unchanged' | 'absent' | 'offline';

/** An attempt that failed in a way that another may mend. */
class Interrupted extends Error {}

/**
 * Downloads a file unless it is there already.
 *
 * @param url - http or https
 * @param file - where it goes; its folder must exist
 * @throws FettleError IO_FAILED when the server does not give it, the size is wrong or the disk is full
 * @throws the signal's reason when aborted
 */
export async function download(
  url: URL,
  file: string,
  options: DownloadOptions = {},
): Promise<DownloadResult> {
  const { attempts = 3, retryDelayMs = 500, signal } = options;
  const lock = new DownloadLock(file);
  const state = new DownloadState(file);
  try {
    for (let failures = 0; ;) {
      signal?.throwIfAborted();
      const before = state.partBytes;
      try {
        return await new Transfer(url, state, options).run();
      } catch (error) {
        signal?.throwIfAborted();
        if (!(error instanceof Interrupted)) throw error;
        failures = state.partBytes > before ? 0 : failures + 1;
        if (failures >= attempts) {
          if (state.finished() !== undefined) {
            options.warn?.(`${show(url)} cannot be reached; the copy in the cache is used.`);
            return 'offline';
          }
          throw gaveUp(url, state, error);
        }
        await pause(retryDelayMs * 2 ** Math.max(0, failures - 1), signal);
      }
    }
  } finally {
    lock.release();
  }
}

/** One request and what it brings. */
class Transfer {
  private readonly url: URL;
  private readonly state: DownloadState;
  private readonly options: DownloadOptions;
  private readonly urlSha256: string;

  constructor(url: URL, state: DownloadState, options: DownloadOptions) {
    this.url = url;
    this.state = state;
    this.options = options;
    this.urlSha256 = createHash('sha256').update(url.href).digest('hex');
  }

  async run(): Promise<DownloadResult> {
    const { options } = this;
    const finished = this.state.finished();
    const partial = finished === undefined ? this.state.partial(this.urlSha256) : undefined;
    const response = await this.request(finished, partial);
    const { status } = response;
    if (status === 304 && finished !== undefined) return 'unchanged';
    if (status === 206 || status === 200) {
      if (/^text\/html/i.test(response.headers.get('content-type') ?? '')) {
        await response.body?.cancel();
        if (options.optional === true) return 'absent';
        throw this.failed('the server answered with a web page instead of the file', {
          fix: 'Use the address of the file itself (on the hub: …/resolve/main/…).',
        });
      }
      if (finished !== undefined && this.isSame(finished, response)) {
        await response.body?.cancel();
        return 'unchanged';
      }
      await this.receive(response, status === 206 ? partial?.size : 0);
      return 'downloaded';
    }
    await response.body?.cancel();
    if ((status === 404 || status === 410) && options.optional === true) return 'absent';
    if (status === 416) {
      this.state.drop();
      throw new Interrupted('the server has no such range');
    }
    if (status >= 500 || status === 408 || status === 429)
      throw new Interrupted(`the server answered ${status} ${response.statusText}`.trim());
    throw this.failed(`the server answered ${status} ${response.statusText}`.trim(), {
      status,
      fix:
        status === 401 || status === 403
          ? 'Download the file with your account and name the local file.'
          : 'Check the address.',
    });
  }

  private async request(
    finished: Finished | undefined,
    partial: { size: number; version: Version } | undefined,
  ): Promise<Response> {
    const headers = new Headers({ 'accept-encoding': 'identity' });
    if (finished?.etag !== undefined) headers.set('if-none-match', finished.etag);
    else if (finished?.lastModified !== undefined)
      headers.set('if-modified-since', finished.lastModified);
    const validator = partial === undefined ? undefined : strongValidator(partial.version);
    if (partial !== undefined && validator !== undefined) {
      headers.set('range', `bytes=${partial.size}-`);
      headers.set('if-range', validator);
    }
    try {
      return await fetch(this.url, { headers, signal: this.options.signal ?? null });
    } catch (error) {
      throw new Interrupted(reasonOf(error), { cause: error });
    }
  }

  /** Without validators, a copy of the same address and size passes for the same file. */
  private isSame(finished: Finished, response: Response): boolean {
    return (
      finished.etag === undefined &&
      finished.lastModified === undefined &&
      finished.urlSha256 === this.urlSha256 &&
      Number(response.headers.get('content-length') ?? NaN) === finished.bytes
    );
  }

  private async receive(response: Response, start: number | undefined): Promise<void> {
    const { headers } = response;
    const range = contentRange(headers.get('content-range'));
    if (response.status === 206 && (start === undefined || range?.start !== start)) {
      this.state.drop();
      await response.body?.cancel();
      throw new Interrupted('the server sent another range than was asked for');
    }
    const encoded = (headers.get('content-encoding') ?? 'identity') !== 'identity';
    const length = headers.get('content-length');
    const version: Version = {
      urlSha256: this.urlSha256,
      etag: headers.get('etag') ?? undefined,
      lastModified: headers.get('last-modified') ?? undefined,
      // the length of compressed content says nothing about the file
      bytes: range?.total ?? (encoded || length === null ? undefined : Number(length)),
    };
    const from = start ?? 0;
    this.checkSpace((version.bytes ?? 0) - from);
    this.onDisk(() => this.state.begin(version));
    const hash = createHash('sha256');
    if (from > 0)
      for await (const bytes of fs.createReadStream(this.state.part)) hash.update(bytes);
    const size = await this.append(response, from, version.bytes, hash);
    if (version.bytes !== undefined && size !== version.bytes) {
      if (size > version.bytes) this.state.drop();
      throw new Interrupted(`${size} of ${version.bytes} bytes arrived`);
    }
    this.onDisk(() => this.state.finish({ ...version, bytes: size, sha256: hash.digest('hex') }));
  }

  /** Writes the body behind byte `from` of the part; returns the size of the part. */
  private async append(
    response: Response,
    from: number,
    total: number | undefined,
    hash: { update(bytes: Uint8Array): unknown },
  ): Promise<number> {
    const descriptor = this.onDisk(() => fs.openSync(this.state.part, from > 0 ? 'r+' : 'w'));
    let size = from;
    try {
      for await (const bytes of response.body ?? []) {
        this.onDisk(() => {
          for (let done = 0; done < bytes.length;)
            done += fs.writeSync(descriptor, bytes, done, bytes.length - done, size + done);
        });
        hash.update(bytes);
        size += bytes.length;
        this.options.progress?.(`download ${show(this.url)}`, size, total ?? 0);
      }
    } catch (error) {
      if (error instanceof FettleError) throw error;
      const part = total === undefined ? `${size} bytes` : `${size} of ${total} bytes`;
      throw new Interrupted(`the connection broke after ${part} (${reasonOf(error)})`, {
        cause: error,
      });
    } finally {
      fs.closeSync(descriptor);
    }
    return size;
  }

  private checkSpace(bytes: number): void {
    const disk = this.onDisk(() => fs.statfsSync(path.dirname(this.state.file)));
    const free = disk.bavail * disk.bsize;
    // a file system that does not tell its size says 0 blocks
    if (disk.blocks > 0 && bytes > free)
      throw this.failed(`it needs ${bytes} more bytes and the disk has ${free}`, {
        fix: 'Free some space, or choose another cache directory.',
      });
  }

  private onDisk<T>(operation: () => T): T {
    try {
      return operation();
    } catch (error) {
      const full = ['ENOSPC', 'EDQUOT'].includes(codeOf(error));
      throw this.failed(full ? 'the disk is full' : reasonOf(error), {
        fix: full
          ? 'Free some space and run it again; it goes on where it stopped.'
          : 'Check the permissions of the cache directory.',
        cause: error,
      });
    }
  }

  private failed(
    why: string,
    { fix, cause, status }: { fix: string; cause?: unknown; status?: number },
  ): FettleError {
    return new FettleError('IO_FAILED', `Cannot download ${show(this.url)}: ${why}.`, {
      at: {
        url: show(this.url),
        file: this.state.file,
        ...(status === undefined ? {} : { status }),
      },
      fix,
      cause,
    });
  }
}

/** The URL without what may be secret. */
function show(url: URL): string {
  return `${url.origin}${url.pathname}`;
}

function gaveUp(url: URL, state: DownloadState, cause: Error): FettleError {
  const { file, partBytes: kept } = state;
  return new FettleError('IO_FAILED', `Cannot download ${show(url)}: ${cause.message}.`, {
    at: { url: show(url), file, offset: kept },
    fix:
      kept > 0
        ? `Run it again; it goes on after the ${kept} bytes that arrived.`
        : 'Check the address and the connection.',
    cause,
  });
}

/** What If-Range accepts: a strong entity tag, else the date. */
function strongValidator({ etag, lastModified }: Version): string | undefined {
  return etag !== undefined && !etag.startsWith('W/') ? etag : lastModified;
}

function contentRange(
  text: string | null,
): { start: number; total: number | undefined } | undefined {
  const match = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(text ?? '');
  if (match === null) return undefined;
  return { start: Number(match[1]), total: match[2] === '*' ? undefined : Number(match[2]) };
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : '';
}

/** The innermost message: fetch hides the reason in `cause`. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error ? reasonOf(error.cause) : error.message || codeOf(error);
}

async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(done, ms);
    function done(): void {
      signal?.removeEventListener('abort', stop);
      resolve();
    }
    function stop(): void {
      clearTimeout(timer);
      reject(signal?.reason instanceof Error ? signal.reason : new Error('aborted'));
    }
    signal?.addEventListener('abort', stop, { once: true });
  });
}
