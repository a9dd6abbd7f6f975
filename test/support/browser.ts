/**
 * A headless Chromium from npm and a page server for it, with the headers that threads need. WebGPU runs
 * on SwiftShader, which Chromium's package brings along: right results, meaningless timings.
 */
import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { promisify } from 'node:util';

import type { Browser } from 'playwright-core';
import { chromium as playwright } from 'playwright-core';

const root = join(import.meta.dirname, '../..');

/** Answers a path with a body, or undefined for 404. */
export type Route = (path: string) => Uint8Array | string | undefined;

/** A running page server. */
export interface PageServer {
  /** `http://127.0.0.1:port`. */
  readonly origin: string;
  close(): Promise<void>;
}

const types: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.mjs': 'text/javascript; charset=utf-8',
  '.json': 'application/json',
  '.wasm': 'application/wasm',
};

/** Serves pages on an unused port of 127.0.0.1, cross-origin isolated. The first route with an answer wins. */
export async function startServer(...routes: readonly Route[]): Promise<PageServer> {
  const server = createServer(({ url = '/' }, response) => {
    const path = decodeURIComponent(new URL(url, 'http://localhost').pathname);
    for (const route of routes) {
      const body = route(path);
      if (body === undefined) continue;
      response.writeHead(200, {
        'content-type': types[extname(path) || '.html'] ?? 'application/octet-stream',
        'cross-origin-opener-policy': 'same-origin',
        'cross-origin-embedder-policy': 'require-corp',
        'cross-origin-resource-policy': 'same-origin',
      });
      return void response.end(body);
    }
    response.writeHead(404).end();
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

/** Serves the files below a folder under a URL prefix; nothing above it. */
export function folderRoute(prefix: string, folder: string): Route {
  return (path) => {
    if (!path.startsWith(prefix) || path.includes('..')) return undefined;
    const file = join(folder, path.slice(prefix.length));
    return existsSync(file) ? readFileSync(file) : undefined;
  };
}

/** Serves a package of node_modules under `/modules/<name>/`. */
export function moduleRoute(name: string): Route {
  return folderRoute(`/modules/${name}/`, join(root, 'node_modules', name));
}

/** Bundles TypeScript for the page, in memory; `external` packages come through the page's import map. */
export async function bundleScript(contents: string, external: readonly string[]): Promise<string> {
  const { build } = await import('esbuild');
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: root, loader: 'ts' },
    bundle: true,
    format: 'esm',
    target: 'es2022',
    write: false,
    external: [...external],
  });
  return outputFiles[0]?.text ?? '';
}

/** Chromium does not start here, and why; a test that sees it skips with its message. */
export class BrowserMissing extends Error {
  override readonly name = 'BrowserMissing';
}

/**
 * Starts Chromium; close it in a `finally`.
 *
 * @throws {@link BrowserMissing} when it cannot start, naming what to install
 */
export async function launchChromium(): Promise<Browser> {
  try {
    const executablePath = await unpackChromium();
    return await playwright.launch({
      executablePath,
      args: [
        '--no-sandbox',
        '--enable-unsafe-webgpu',
        '--use-webgpu-adapter=swiftshader',
        '--enable-features=SharedArrayBuffer',
      ],
    });
  } catch (cause) {
    throw new BrowserMissing(whyNoBrowser(cause), { cause });
  }
}

/** What to tell someone whose Chromium did not start: the missing Debian packages, when that is why. */
export function whyNoBrowser(cause: unknown): string {
  const why = cause instanceof Error ? cause.message : String(cause);
  const library = /lib[\w.+-]+\.so[.\d]*(?=: cannot open shared object)/.exec(why)?.[0];
  return library === undefined
    ? `Chromium does not start: ${why.split('\n').slice(0, 3).join(' ')}`
    : `Chromium needs ${library}: apt-get install libnss3 libnspr4 libexpat1`;
}

/** Path of the file that tells Vulkan loaders (Dawn in Node) about SwiftShader. */
export async function swiftShaderIcd(): Promise<string> {
  return join(await unpackChromium(), '..', 'vk_swiftshader_icd.json');
}

/**
 * Unpacks the browser once per version. The package unpacks into the temporary folder under fixed names,
 * where a second process would find half a file: so a child unpacks into a folder of its own, which then
 * gets its name in one step.
 */
export async function unpackChromium(): Promise<string> {
  const { version } = JSON.parse(
    readFileSync(join(root, 'node_modules/@sparticuz/chromium/package.json'), 'utf8'),
  ) as { version: string };
  const home = join(tmpdir(), `fettle-chromium-${version}`);
  const executable = join(home, 'chromium');
  if (existsSync(executable)) return executable;
  mkdirSync(tmpdir(), { recursive: true });
  const staging = mkdtempSync(`${home}-`);
  const script = `await (await import('@sparticuz/chromium')).default.executablePath()`;
  await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], {
    cwd: root,
    env: { ...process.env, TMPDIR: staging },
  });
  try {
    renameSync(staging, home);
  } catch (error) {
    // Another process was first.
    rmSync(staging, { recursive: true });
    if (!existsSync(executable)) throw error;
  }
  return executable;
}
