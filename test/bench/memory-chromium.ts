/**
 * Memory of a session in Chromium (Linux), from the renderer's own `/proc` files, read every millisecond.
 * The page is driven by its own script and not through a debugger: an inspector that watches the network
 * keeps every response, which is a copy of the weights.
 */
import { spawn } from 'node:child_process';
import { createReadStream, existsSync, mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { rmSync, statSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { MemorySpec } from '../../runtime/manifest.ts';
import { bundleScript, unpackChromium } from '../support/browser.ts';
import type { SessionMemory } from '../support/session-memory-child.ts';

/** Most time of a measurement. */
const MOST_MS = 120_000;

const tokenizers = join(
  import.meta.dirname,
  '../../node_modules/@huggingface/tokenizers/dist/tokenizers.mjs',
);
const importMap = { imports: { '@huggingface/tokenizers': '/tokenizers.mjs' } };

/** What the page does; it says when it begins, when the bundle is open, and when its context is full. */
const html = (threads: number): string => `<!doctype html>
<script type="importmap">${JSON.stringify(importMap)}</script>
<script type="module">
const say = (what, body = null) =>
  fetch('/say/' + what, { method: 'POST', body: JSON.stringify(body) });
try {
  const { openBundle } = await import('/runtime.js');
  await new Promise((resolve) => setTimeout(resolve, 500));
  await say('begin');
  const startMs = performance.now();
  const session = await openBundle('/bundle/', { wasm: { threads: ${threads} } });
  const { memory, decoder } = session.manifest;
  const tokens = decoder.contextLength - 8;
  await say('open', { memory, tokens, loadMs: performance.now() - startMs });
  const prompt = Array.from({ length: tokens }, (_, i) => (i * 37) % decoder.vocabulary);
  await session.generate(prompt, { maxTokens: 8, ignoreEnd: true, temperature: 0 }).result();
  await say('end');
} catch (error) {
  await say('failed', String(error.stack));
}
</script>`;

/** What the page said, with the bytes of its process then, and the most so far. */
interface Said {
  readonly body: unknown;
  readonly now: number;
  readonly most: number;
}

/** Opens a bundle in a page of a fresh Chromium and fills its context. */
export async function chromiumMemory(bundle: string, threads = 1): Promise<SessionMemory> {
  const script = await bundleScript("export * from './runtime/index.ts';", [
    'onnxruntime-web',
    'onnxruntime-web/*',
    '@huggingface/*',
  ]);
  const pages = new Map([
    ['/', ['text/html', html(threads)]],
    ['/runtime.js', ['text/javascript', script]],
    ['/tokenizers.mjs', ['text/javascript', readFileSync(tokenizers, 'utf8')]],
  ] as const);
  const profile = mkdtempSync(join(tmpdir(), 'fettle-profile-'));
  const said = new Map<string, Said>();
  let renderer = 0;
  let browser = 0;
  // The kernel's own mark of the peak counts pages of files, which are Chromium's code: it is not used.
  let most = 0;
  const look = (): void => {
    if (renderer !== 0) most = Math.max(most, ownBytes(renderer));
  };
  const looking = setInterval(look, 1);
  let finish = (): void => {};
  const finished = new Promise<void>((resolve) => (finish = resolve));
  const answer = (request: IncomingMessage, response: ServerResponse): void => {
    const path = new URL(request.url ?? '/', 'http://localhost').pathname;
    if (path.startsWith('/say/')) {
      let text = '';
      request.on('data', (part: Buffer) => (text += part.toString()));
      request.on('end', () => {
        if (path === '/say/begin') {
          renderer = rendererOf(browser);
          most = 0;
        }
        look();
        said.set(path.slice(5), { body: JSON.parse(text), now: ownBytes(renderer), most });
        response.end();
        if (path === '/say/end' || path === '/say/failed') finish();
      });
      return;
    }
    const file = path.startsWith('/bundle/') ? join(bundle, path.slice(8)) : '';
    const page = pages.get(path as '/');
    const isFile = page === undefined && existsSync(file);
    response.writeHead(page !== undefined || isFile ? 200 : 404, {
      'content-type': page?.[0] ?? 'application/octet-stream',
      ...(isFile ? { 'content-length': statSync(file).size } : {}),
      'cross-origin-opener-policy': 'same-origin',
      'cross-origin-embedder-policy': 'require-corp',
    });
    if (isFile) createReadStream(file).pipe(response);
    else response.end(page?.[1]);
  };
  const server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run'];
  const started = spawn(
    await unpackChromium(),
    [
      ...flags,
      '--enable-features=SharedArrayBuffer',
      `--user-data-dir=${profile}`,
      `http://127.0.0.1:${port}/`,
    ],
    { stdio: 'ignore' },
  );
  browser = started.pid ?? 0;
  const exited = new Promise((resolve) => started.on('exit', resolve));
  const timer = setTimeout(finish, MOST_MS);
  try {
    await Promise.race([finished, exited]);
  } finally {
    clearTimeout(timer);
    clearInterval(looking);
    started.kill();
    await exited;
    server.closeAllConnections();
    server.close();
    rmSync(profile, { recursive: true, force: true });
  }
  const [begin, open, end] = ['begin', 'open', 'end'].map((what) => said.get(what));
  if (begin === undefined || open === undefined || end === undefined)
    throw new Error(`Chromium measured nothing: ${String(said.get('failed')?.body)}`);
  const about = open.body as { memory: MemorySpec; tokens: number; loadMs: number };
  const [load, peak, held] = [open.most, end.most, end.now].map((bytes) => bytes - begin.now);
  return { ...about, load: load ?? 0, peak: peak ?? 0, held: held ?? 0 };
}

/** Resident bytes of a process that are its own or shared with others, as what a host buffers of a response. */
function ownBytes(pid: number): number {
  const text = contents(pid, 'status');
  const bytes = (key: string): number =>
    1024 * Number(new RegExp(`^${key}:\\s*(\\d+) kB`, 'm').exec(text)?.[1] ?? 0);
  return bytes('RssAnon') + bytes('RssShmem');
}

/** The process of the page: the largest renderer that descends from a browser. */
function rendererOf(browser: number): number {
  const descends = (pid: number): boolean => {
    if (pid <= 1) return false;
    const parent = Number(/^PPid:\s*(\d+)/m.exec(contents(pid, 'status'))?.[1] ?? 0);
    return parent === browser || descends(parent);
  };
  const own = readdirSync('/proc')
    .map(Number)
    .filter((pid) => contents(pid, 'cmdline').includes('--type=renderer') && descends(pid));
  const [first] = own.toSorted((a, b) => ownBytes(b) - ownBytes(a));
  if (first === undefined) throw new Error('Chromium runs no page.');
  return first;
}

/** A file about a process; empty when the process has ended. */
function contents(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8');
  } catch {
    return '';
  }
}
