/** `fettle bench`: speed and memory of models and bundles, beside what the machine can do. */
import { cpus } from 'node:os';
import { FettleError } from '../../runtime/errors.ts';
import type { GenerationResult, Session } from '../../runtime/node.ts';
import { randomFeeds } from '../evaluate/random-feeds.ts';
import { formatBytes } from '../units.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { openRunnable } from './opening.ts';
import { formatMs, table } from './text.ts';

interface Settings {
  readonly promptTokens: number;
  readonly tokens: number;
  readonly repeat: number;
  readonly signal: AbortSignal;
}

/** One row of the result; keys are stable. */
interface Row {
  readonly model: string;
  readonly engine: string;
  readonly host: string;
  readonly threads: number;
  readonly kernels: string;
  readonly loadMs: number;
  readonly firstTokenMs?: number;
  readonly prefillTokensPerSecond?: number;
  readonly decodeTokensPerSecond?: number;
  readonly latencyMs?: { readonly median: number; readonly p95: number };
  readonly memoryBytes: object;
  readonly samples: number;
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
      .option('repeat', { type: 'number', default: 5, describe: 'samples to take' }),
  run: async (args, output) => {
    if (args.host !== 'node')
      throw new FettleError('USAGE', `--host ${args.host} is not supported yet.`, {
        fix: 'Use --host node.',
      });
    if (args.threads !== 1)
      throw new FettleError('USAGE', 'onnxruntime-web runs on one thread in Node.', {
        fix: 'Use --threads 1.',
      });
    const settings = { ...args, signal: output.signal };
    const rows: Row[] = [];
    for (const reference of args.model) {
      const { session, name } = await openRunnable(reference, output);
      try {
        output.progress(`bench ${name}`, 0, 1);
        rows.push(await measure(session, name, settings));
      } finally {
        await session.dispose();
      }
    }
    const [only, second] = rows;
    const machine = { cpu: cpus()[0]?.model.trim() ?? 'unknown', node: process.version };
    output.result(
      only !== undefined && second === undefined ? { ...only, machine } : { rows, machine },
      describe(rows),
    );
  },
});

async function measure(session: Session, model: string, settings: Settings): Promise<Row> {
  const { manifest } = session;
  const speed =
    manifest.decoder === undefined
      ? await measureCalls(session, settings)
      : await measureGeneration(session, manifest.decoder.vocabulary, settings);
  const { loadMs, memoryBytes, memorySource } = session.measure();
  return {
    model,
    engine: manifest.engine,
    host: 'node',
    threads: 1,
    kernels: 'onnxruntime-web',
    loadMs,
    ...speed,
    memoryBytes: { ...memoryBytes, source: memorySource },
    samples: settings.repeat,
  };
}

async function measureCalls(session: Session, settings: Settings): Promise<Partial<Row>> {
  const [feeds] = randomFeeds(session.manifest, 1, 1);
  if (feeds === undefined) return {};
  await session.run(feeds); // the first call also allocates
  const times: number[] = [];
  for (let i = 0; i < settings.repeat; i++) {
    const startMs = performance.now();
    await session.run(feeds, { signal: settings.signal });
    times.push(performance.now() - startMs);
  }
  return { latencyMs: { median: quantile(times, 0.5), p95: quantile(times, 0.95) } };
}

async function measureGeneration(
  session: Session,
  vocabulary: number,
  settings: Settings,
): Promise<Partial<Row>> {
  const prompt = Array.from(
    { length: settings.promptTokens },
    (_, i) => (i * 37 + 11) % vocabulary,
  );
  const options = {
    maxTokens: settings.tokens,
    temperature: 0,
    ignoreEnd: true,
    signal: settings.signal,
  };
  await session.generate(prompt, { ...options, maxTokens: 2 }).result();
  const results: GenerationResult[] = [];
  for (let i = 0; i < settings.repeat; i++)
    results.push(await session.generate(prompt, options).result());
  const median = (pick: (one: GenerationResult) => number): number =>
    quantile(results.map(pick), 0.5);
  return {
    firstTokenMs: median((one) => one.firstTokenMs),
    prefillTokensPerSecond: median((one) => one.prefillTokensPerSecond),
    decodeTokensPerSecond: median((one) => one.decodeTokensPerSecond),
  };
}

/** One short measurement, for a report: the figures are then in `session.measure()`. */
export async function warmRun(session: Session, signal: AbortSignal): Promise<void> {
  await measure(session, '', { promptTokens: 32, tokens: 16, repeat: 3, signal });
}

/** Nearest-rank quantile. */
function quantile(values: readonly number[], fraction: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(fraction * sorted.length) - 1)] ?? 0;
}

function describe(rows: readonly Row[]): string {
  return table(
    [
      'model',
      'engine',
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
      formatMs(row.loadMs),
      row.prefillTokensPerSecond?.toFixed(1),
      row.decodeTokensPerSecond?.toFixed(1),
      row.latencyMs === undefined ? undefined : formatMs(row.latencyMs.median),
      row.latencyMs === undefined ? undefined : formatMs(row.latencyMs.p95),
      formatBytes((row.memoryBytes as { readonly peak: number }).peak),
    ]),
  );
}
