/** Serves files to a benchmark's page from 127.0.0.1, with the headers that threads need. */
import { createReadStream, statSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { extname, join } from 'node:path';

/** What a server offers: by URL prefix a folder or one file, or by path a text. */
export interface Served {
  /** Folders and files of the disk by URL prefix, `/models/x/` or `/models/x.fettle`. */
  readonly disk: Readonly<Record<string, string>>;
  /** Texts by path. */
  readonly text: Readonly<Record<string, string>>;
}

/** A running server. */
export interface PageServer {
  /** `http://127.0.0.1:port`. */
  readonly origin: string;
  /** Stops it. */
  close(): Promise<void>;
}

const types: Readonly<Record<string, string>> = {
  '': 'text/html; charset=utf-8',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.mjs': 'text/javascript; charset=utf-8',
  '.json': 'application/json',
  '.wasm': 'application/wasm',
};

/** Starts a server on an unused port; `served` may gain entries while it runs. */
export async function startServer(served: Served): Promise<PageServer> {
  const server = createServer(({ url = '/' }, response) => {
    const path = decodeURIComponent(new URL(url, 'http://localhost').pathname);
    const headers = {
      'content-type': types[path === '/' ? '' : extname(path)] ?? 'application/octet-stream',
      'cross-origin-opener-policy': 'same-origin',
      'cross-origin-embedder-policy': 'require-corp',
      'cross-origin-resource-policy': 'same-origin',
      'cache-control': 'no-store',
    };
    const text = served.text[path];
    if (text !== undefined) return void response.writeHead(200, headers).end(text);
    const file = fileOf(path, served.disk);
    const size = file === undefined ? undefined : sizeOf(file);
    if (file === undefined || size === undefined) return void response.writeHead(404).end();
    response.writeHead(200, { ...headers, 'content-length': size });
    createReadStream(file, { highWaterMark: 2 ** 20 })
      .on('error', () => response.destroy())
      .pipe(response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** The file behind a path; nothing outside the folders. */
function fileOf(path: string, disk: Served['disk']): string | undefined {
  if (path.split('/').includes('..')) return undefined;
  const prefix = Object.keys(disk).find((one) => path.startsWith(one));
  const place = prefix === undefined ? undefined : disk[prefix];
  if (prefix === undefined || place === undefined) return undefined;
  return path === prefix
    ? place
    : prefix.endsWith('/')
      ? join(place, path.slice(prefix.length))
      : undefined;
}

function sizeOf(file: string): number | undefined {
  const stat = statSync(file, { throwIfNoEntry: false });
  return stat?.isFile() === true ? stat.size : undefined;
}
