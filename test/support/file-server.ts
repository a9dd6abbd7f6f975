/** A server on 127.0.0.1 that serves files with ranges and validators, and misbehaves when told. */
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/** One file and how it is served. */
export interface ServedFile {
  bytes: Uint8Array;
  /** ETag; default: none. */
  etag?: string;
  /** Last-Modified; default: none. */
  lastModified?: string;
  /** Whether ranges are answered. Default true. */
  ranges?: boolean;
  /** Breaks the connection after so many bytes of the body, once for each number. */
  cuts?: number[];
  /** Answers with these statuses first. */
  failures?: number[];
  /** Content-Type; default application/octet-stream. */
  type?: string;
  /** A Content-Length that is not true. */
  claimedLength?: number;
}

/** A running server. */
export interface FileServer {
  /** Address without a path. */
  readonly origin: string;
  /** Files by path, which tests may change. */
  readonly files: Map<string, ServedFile>;
  /** `METHOD path range` of each request. */
  readonly requests: string[];
  close(): Promise<void>;
}

/** Starts a server. */
export async function serveFiles(files: Record<string, ServedFile>): Promise<FileServer> {
  const served = new Map(Object.entries(files));
  const requests: string[] = [];
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? '/', 'http://host').pathname);
    requests.push([request.method, path, request.headers.range].filter(Boolean).join(' '));
    const file = served.get(path);
    if (file === undefined) {
      response.writeHead(404).end('not here');
      return;
    }
    answer(file, request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return {
    origin: `http://127.0.0.1:${port}`,
    files: served,
    requests,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function answer(file: ServedFile, request: IncomingMessage, response: ServerResponse): void {
  const failure = file.failures?.shift();
  if (failure !== undefined) {
    response.writeHead(failure).end();
    return;
  }
  const { bytes, etag, lastModified } = file;
  response.setHeader('content-type', file.type ?? 'application/octet-stream');
  if (etag !== undefined) response.setHeader('etag', etag);
  if (lastModified !== undefined) response.setHeader('last-modified', lastModified);
  const { headers } = request;
  const unchanged =
    (etag !== undefined && headers['if-none-match'] === etag) ||
    (lastModified !== undefined && headers['if-modified-since'] === lastModified);
  if (unchanged) {
    response.writeHead(304).end();
    return;
  }
  const wanted = /^bytes=(\d+)-$/.exec(headers.range ?? '')?.[1];
  const same = headers['if-range'] === (etag ?? lastModified);
  const start = wanted !== undefined && same && file.ranges !== false ? Number(wanted) : 0;
  if (start > 0) {
    response.statusCode = 206;
    response.setHeader('content-range', `bytes ${start}-${bytes.length - 1}/${bytes.length}`);
  }
  const body = bytes.subarray(start);
  response.setHeader('content-length', file.claimedLength ?? body.length);
  const cut = file.cuts?.shift();
  if (cut === undefined) response.end(body);
  else response.write(body.subarray(0, cut), () => setTimeout(() => response.destroy(), 20));
}
