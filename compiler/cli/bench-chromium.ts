/**
 * A headless Chromium for measuring: the runtime as one script in a cross-origin isolated page, the
 * bundle behind a server on 127.0.0.1. One page a measurement, so that every one starts cold.
 *
 * Chromium, its driver and the bundler are no dependencies of the package; who benchmarks installs them.
 */
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Browser, Page } from 'playwright-core';
import { FettleError } from '../../runtime/errors.ts';
import type { BenchPage } from './bench-page.ts';
import type { PageServer } from './bench-server.ts';
import { startServer } from './bench-server.ts';

/** Packages that only `--host chromium` needs. */
const packages = ['playwright-core', '@sparticuz/chromium', 'esbuild'];

/** A page that can measure, alone in its process. */
export interface OpenPage {
  /** The page. */
  readonly page: Page;
  /** Most physical memory its process had, where the system tells; taken before `close`. */
  peakBytes(): Promise<number | undefined>;
  /** Closes it. */
  close(): Promise<void>;
}

/** A running Chromium and its server. */
export interface ChromiumHost {
  /** `Chromium 147.0.…`. */
  readonly version: string;
  /** Folders and files that pages can fetch, by URL prefix; may be added to. */
  readonly served: Record<string, string>;
  /** Opens a page with the runtime in it. */
  open(): Promise<OpenPage>;
  /** Ends everything. */
  close(): Promise<void>;
}

/** How to start. */
export interface ChromiumOptions {
  /** Entry of the page's script. Default: `bench-page.ts`. */
  readonly entry?: string;
  /** More folders by URL prefix. */
  readonly served?: Readonly<Record<string, string>>;
  /** Closes everything. */
  readonly signal?: AbortSignal;
}

/**
 * Starts Chromium and a server for it.
 *
 * @throws {@link FettleError} ENGINE_UNAVAILABLE when a package is not installed or Chromium does not start
 */
export async function startChromium(options: ChromiumOptions = {}): Promise<ChromiumHost> {
  const script = await bundlePage(options.entry ?? besideThis('bench-page'));
  const ort = dirname(createRequire(import.meta.url).resolve('onnxruntime-web'));
  const served: Record<string, string> = { '/onnxruntime-web/': `${ort}/`, ...options.served };
  const server = await startServer({ disk: served, text: { '/': html, '/page.js': script } });
  let browser: Browser;
  try {
    browser = await launch();
  } catch (error) {
    await server.close();
    throw error;
  }
  const close = async (): Promise<void> => {
    options.signal?.removeEventListener('abort', abort);
    await browser.close();
    await server.close();
  };
  const abort = (): void => void close();
  options.signal?.addEventListener('abort', abort);
  return {
    version: `Chromium ${browser.version()}`,
    served,
    open: () => openPage(browser, server),
    close,
  };
}

/** What a page offers, for use inside `page.evaluate`. */
export type PageGlobal = typeof globalThis & { readonly fettleBench: BenchPage };

const imports = {
  'onnxruntime-web/wasm': '/onnxruntime-web/ort.wasm.bundle.min.mjs',
  'onnxruntime-web/webgpu': '/onnxruntime-web/ort.webgpu.bundle.min.mjs',
};

const html = `<!doctype html><title>fettle bench</title>
<script type="importmap">${JSON.stringify({ imports })}</script>
<script type="module" src="/page.js"></script>`;

async function openPage(browser: Browser, server: PageServer): Promise<OpenPage> {
  // another context is another process
  const context = await browser.newContext();
  const page = await context.newPage();
  page.setDefaultTimeout(0);
  const before = await renderers(browser);
  await page.goto(`${server.origin}/`);
  await page.waitForFunction(() => 'fettleBench' in globalThis, undefined, { timeout: 60_000 });
  return {
    page,
    async peakBytes() {
      const after = await renderers(browser);
      const own = after.filter((pid) => !before.includes(pid));
      const peaks = (own.length > 0 ? own : after).flatMap((pid) => peakOf(pid) ?? []);
      return peaks.length === 0 ? undefined : Math.max(...peaks);
    },
    close: () => context.close(),
  };
}

/** Ids of the processes that run pages. */
async function renderers(browser: Browser): Promise<number[]> {
  const connection = await browser.newBrowserCDPSession();
  try {
    const { processInfo } = await connection.send('SystemInfo.getProcessInfo');
    return processInfo.filter(({ type }) => type === 'renderer').map(({ id }) => id);
  } finally {
    await connection.detach();
  }
}

/** Most physical memory a process had, in bytes; Linux only. */
function peakOf(pid: number): number | undefined {
  const file = `/proc/${pid}/status`;
  if (!existsSync(file)) return undefined;
  const kilobytes = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(file, 'utf8'))?.[1];
  return kilobytes === undefined ? undefined : Number(kilobytes) * 1024;
}

async function launch(): Promise<Browser> {
  const { chromium: driver } = await import('playwright-core').catch(notInstalled);
  const { default: chromium } = await import('@sparticuz/chromium').catch(notInstalled);
  try {
    return await driver.launch({
      executablePath: await chromium.executablePath(),
      args: ['--no-sandbox', '--disable-gpu', '--enable-features=SharedArrayBuffer'],
    });
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    const library = /lib[\w.+-]+\.so[.\d]*(?=: cannot open shared object)/.exec(why)?.[0];
    throw new FettleError(
      'ENGINE_UNAVAILABLE',
      `Chromium does not start: ${library === undefined ? why.split('\n').slice(0, 3).join(' ') : `it needs ${library}`}.`,
      { at: { host: 'chromium' }, fix: 'apt-get install libnss3 libnspr4 libexpat1', cause },
    );
  }
}

/** The page's script with everything it imports, but for the packages that the import map names. */
async function bundlePage(entry: string): Promise<string> {
  const { build } = await import('esbuild').catch(notInstalled);
  const { outputFiles } = await build({
    entryPoints: [entry],
    bundle: true,
    format: 'esm',
    target: 'es2022',
    write: false,
    external: [...Object.keys(imports), '@huggingface/*'],
  });
  return outputFiles[0]?.text ?? '';
}

function notInstalled(cause: unknown): never {
  throw new FettleError(
    'ENGINE_UNAVAILABLE',
    `--host chromium needs ${packages.join(', ')}, and not all are installed.`,
    { at: { host: 'chromium' }, fix: `npm install --save-dev ${packages.join(' ')}`, cause },
  );
}

/** A module beside this one, as source or built. */
function besideThis(name: string): string {
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
  return join(dirname(fileURLToPath(import.meta.url)), `${name}.${extension}`);
}
