/** `fettle bench`: speed and memory of models and bundles, beside what the machine can do. */
import { mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { EngineId, OpenOptions, Session } from '../../runtime/node.ts';
import { NodeFiles } from '../node-files.ts';
import { formatBytes } from '../units.ts';
import type { ChromiumHost, PageGlobal } from './bench-chromium.ts';
import { startChromium } from './bench-chromium.ts';
import type { MeasuredBundle } from './bench-page.ts';
import { measureLimits } from './bench-limits.ts';
import type { Limits, Row } from './bench-row.ts';
import { medianSpeed, quantile } from './bench-row.ts';
import type { MeasureSettings, SessionFigures } from './bench-session.ts';
import { measureSession } from './bench-session.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { bundlePath, compileAsIs, isBundle, modelSource, openRunnable } from './opening.ts';
import type { Output } from './output.ts';
import { formatMs, table } from './text.ts';

/** What the options say. */
interface Settings extends MeasureSettings {
  readonly threads: number;
  readonly engine: EngineId | undefined;
  readonly signal: AbortSignal;
}

/** Something that measures one model after the other. */
interface Host {
  /** Of a row. */
  readonly name: string;
  measure(reference: string): Promise<MeasuredBundle>;
  limits(): Promise<Limits>;
  close(): Promise<void>;
}

/** Measures speed and memory. */
export const bench: Command = command({
  usage: 'bench <model..>',
  summary: 'measure speed and memory of models and bundles',
  options: (parser) =>
    parser
      .positional('model', {
        type: 'string',
        array: true,
        demandOption: true,
        describe: 'bundles or models',
      })
      .option('host', { choices: ['node', 'chromium'], default: 'node', describe: 'where to run' })
      .option('engine', { choices: ['ort'], describe: 'another engine than the bundle names' })
      .option('threads', { type: 'number', default: 1, describe: 'threads of the engine' })
      .option('prompt-tokens', { type: 'number', default: 128, describe: 'tokens of the prompt' })
      .option('tokens', { type: 'number', default: 32, describe: 'tokens to generate' })
      .option('repeat', { type: 'number', default: 5, describe: 'samples to take' })
      .option('profile', {
        type: 'boolean',
        default: false,
        describe: 'also say which kernels the time goes to (wasm targets)',
      }),
  run: async (args, output) => {
    for (const name of ['threads', 'prompt-tokens', 'tokens', 'repeat'] as const)
      if (!Number.isInteger(args[name]) || args[name] < 1)
        throw new RangeError(`--${name} must be a whole number >= 1, not ${args[name]}.`);
    const { threads, promptTokens, tokens, repeat, profile } = args;
    const engine = args.engine as EngineId | undefined;
    const { signal } = output;
    const settings = { threads, promptTokens, tokens, repeat, profile, engine, signal };
    const host =
      args.host === 'chromium' ? await chromiumHost(settings, output) : nodeHost(settings, output);
    const rows: Row[] = [];
    try {
      const probes = await host.limits();
      for (const reference of args.model) {
        output.progress(`bench ${reference}`, rows.length, args.model.length);
        const { model, engine, figures } = await host.measure(reference);
        const used = figures.threads ?? threads;
        if (used !== threads)
          output.warn(
            `${model} ran on ${used} of ${threads} threads; compile it for wasm-threads.`,
          );
        rows.push(rowOf(model, engine, host.name, settings, figures, probes));
      }
    } finally {
      await host.close();
    }
    const [only, second] = rows;
    const machine = { cpu: cpus()[0]?.model.trim() ?? 'unknown', node: process.version };
    output.result(
      only !== undefined && second === undefined ? { ...only, machine } : { rows, machine },
      describe(rows),
    );
  },
});

/** One short measurement, for a report: the figures are then in `session.measure()`. */
export async function warmRun(session: Session, signal: AbortSignal): Promise<void> {
  await measureSession(session, { promptTokens: 32, tokens: 16, repeat: 3, signal });
}

function openOptions({ threads, engine }: Settings): OpenOptions {
  return { ort: { threads }, wasm: { threads }, ...(engine === undefined ? {} : { engine }) };
}

function nodeHost(settings: Settings, output: Output): Host {
  return {
    name: 'node',
    limits: measureLimits,
    close: () => Promise.resolve(),
    async measure(reference) {
      const { session, name } = await openRunnable(reference, output, openOptions(settings));
      try {
        const figures = await measureSession(session, settings);
        return { model: name, engine: session.manifest.engine, figures };
      } finally {
        await session.dispose();
      }
    },
  };
}

async function chromiumHost(settings: Settings, output: Output): Promise<Host> {
  const chromium = await startChromium({ signal: output.signal });
  const scratch = mkdtempSync(join(tmpdir(), 'fettle-bench-'));
  let count = 0;
  return {
    name: 'chromium',
    limits: () =>
      inPage(chromium, ({ page }) =>
        page.evaluate(() => (globalThis as PageGlobal).fettleBench.limits()),
      ),
    async close() {
      await chromium.close();
      rmSync(scratch, { recursive: true, force: true });
    },
    async measure(reference) {
      let place = bundlePath(reference);
      if (!isBundle(reference)) {
        place = join(scratch, `${count}`);
        const source = await modelSource(reference, output);
        await compileAsIs(source, new NodeFiles(), place, output.signal);
      }
      const url = serve(chromium, place, count++);
      const open = openOptions(settings);
      const { signal, promptTokens, tokens, repeat, profile = false } = settings;
      const plain = { promptTokens, tokens, repeat, profile };
      const result = await inPage(chromium, async (opened) => {
        const measured = await opened.page.evaluate(
          ([at, how, what]) => (globalThis as PageGlobal).fettleBench.measure(at, how, what),
          [url, open, plain] as const,
        );
        return { ...measured, peak: await opened.peakBytes() };
      });
      signal.throwIfAborted();
      return { ...result, figures: withProcessPeak(result.figures, result.peak) };
    },
  };
}

/** What the system says about the page's process instead of what the page can sum up. */
function withProcessPeak(figures: SessionFigures, peak: number | undefined): SessionFigures {
  if (peak === undefined) return figures;
  return {
    ...figures,
    memoryBytes: { ...figures.memoryBytes, peak },
    memorySource: { ...figures.memorySource, peak: 'process' },
  };
}

/** Makes a bundle reachable for pages; a URL already is. */
function serve(chromium: ChromiumHost, place: string, index: number): string {
  if (/^https?:/.test(place)) return place;
  const url = place.endsWith('.fettle') ? `/bundles/${index}.fettle` : `/bundles/${index}/`;
  chromium.served[url] = resolve(place);
  return url;
}

async function inPage<T>(
  chromium: ChromiumHost,
  work: (opened: Awaited<ReturnType<ChromiumHost['open']>>) => Promise<T>,
): Promise<T> {
  const opened = await chromium.open();
  try {
    return await work(opened);
  } finally {
    await opened.close();
  }
}

function rowOf(
  model: string,
  engine: string,
  host: string,
  settings: Settings,
  figures: SessionFigures,
  probes: Limits,
): Row {
  const { callMs, cold, memorySource } = figures;
  return {
    model,
    engine,
    host,
    threads: figures.threads ?? settings.threads,
    kernels: figures.kernels,
    loadMs: figures.loadMs,
    ...medianSpeed(figures.steady),
    ...(callMs.length === 0
      ? {}
      : { latencyMs: { median: quantile(callMs, 0.5), p95: quantile(callMs, 0.95) } }),
    ...(cold === undefined ? {} : { cold }),
    memoryBytes: { ...figures.memoryBytes, source: memorySource },
    probes,
    ...(figures.profile === undefined ? {} : { profile: figures.profile }),
    samples: settings.repeat,
  };
}

function describe(rows: readonly Row[]): string {
  const [first] = rows;
  const measured = table(
    [
      'model',
      'engine',
      'threads',
      'load',
      'prefill tokens/s',
      'decode tokens/s',
      'latency',
      'p95',
      'peak memory',
    ],
    rows.map((row) => [
      row.model,
      row.engine,
      row.threads,
      formatMs(row.loadMs),
      row.prefillTokensPerSecond?.toFixed(1),
      row.decodeTokensPerSecond?.toFixed(1),
      row.latencyMs === undefined ? undefined : formatMs(row.latencyMs.median),
      row.latencyMs === undefined ? undefined : formatMs(row.latencyMs.p95),
      formatBytes(row.memoryBytes.peak),
    ]),
  );
  if (first === undefined) return measured;
  const { readGBps, dotGMACps, fmaGFLOPps } = first.probes;
  const profiles = rows.filter(({ profile }) => profile !== undefined).map(describeProfile);
  return (
    `${[measured, ...profiles].join('\n\n')}\n\nOne thread of this ${first.host} at most: reads ${readGBps.toFixed(1)} GB/s, ` +
    `${dotGMACps.toFixed(1)} integer GMAC/s, ${fmaGFLOPps.toFixed(1)} f32 GFLOP/s.`
  );
}

/** Kernels by phase, and how far decoding is from reading the weights once a token. */
function describeProfile({ model, profile = [], memoryBytes, probes, threads }: Row): string {
  if (profile.length === 0) return `${model}: its engine does not say where the time goes.`;
  const total = (phase: string): number =>
    profile.filter((one) => one.phase === phase).reduce((sum, { ms }) => sum + ms, 0);
  const times = table(
    ['phase', 'kernel', 'steps', 'ms', 'share'],
    profile.map(({ phase, kernel, steps, ms }) => [
      phase,
      kernel,
      steps.toFixed(0),
      ms.toFixed(3),
      `${((100 * ms) / total(phase)).toFixed(1)}%`,
    ]),
  );
  const decodeMs = total('decode');
  if (decodeMs === 0 || threads > 1) return `${model}\n${times}`;
  const limitMs = memoryBytes.weights / probes.readGBps / 1e6;
  return (
    `${model}\n${times}\nReading ${formatBytes(memoryBytes.weights)} of weights takes ${limitMs.toFixed(2)} ms, ` +
    `${((100 * limitMs) / decodeMs).toFixed(0)}% of the steps of a token.`
  );
}
