/**
 * Fettle's engine against onnxruntime-web and wllama: same shape, same prompt, same hosts, random weights.
 *
 *   npm run bench:peers -- [--json] [--models lm5m,smollm2-135m] [--engines wasm,ort-fp32,…]
 *     [--hosts chromium,node] [--threads 1,2] [--repeat 5] [--prompt-tokens 128] [--tokens 32] [--out file.json]
 *     [--reuse: bundles that an earlier run compiled for Fettle's engine]
 *
 * A sample is a fresh page or process: load, a cold generation, more until four are made or 5 s have passed, then
 * steady ones, three or as many as fit 1 s, at least one. The rule is the same for every engine, and what engines
 * spend compiling is in the cold figures only. Engines and thread counts take turns, and the machine's limits are
 * measured once a repetition too. Figures are medians.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus, loadavg, totalmem } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { Limits } from '../../compiler/cli/bench-row.ts';
import { medianLimits, medianSpeed } from '../../compiler/cli/bench-row.ts';
import type { SessionFigures } from '../../compiler/cli/bench-session.ts';
import { table } from '../../compiler/cli/text.ts';
import type { PeerHost } from './peer-hosts.ts';
import { chromiumHost, nodeHost } from './peer-hosts.ts';
import type { Peer, PeerModel } from './peer-models.ts';
import { peerShapes, peers, productWeights } from './peer-models.ts';
import type { PeerRow } from './peer-rows.ts';
import { peerRow, ratiosOf } from './peer-rows.ts';

const { values: options } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    models: { type: 'string', default: Object.keys(peerShapes).toReversed().join(',') },
    engines: { type: 'string', default: peers.map(({ name }) => name).join(',') },
    hosts: { type: 'string', default: 'chromium,node' },
    threads: { type: 'string', default: '1,2' },
    repeat: { type: 'string', default: '5' },
    'prompt-tokens': { type: 'string', default: '128' },
    tokens: { type: 'string', default: '32' },
    reuse: { type: 'boolean', default: false },
    out: { type: 'string' },
  },
});

const settings = {
  promptTokens: count(options['prompt-tokens']),
  tokens: count(options.tokens),
  warmUp: { generations: 4, ms: 5000 },
  repeat: 3,
  repeatMs: 1000,
};
const threadCounts = options.threads.split(',').map(count);
const threaded = threadCounts.some((threads) => threads > 1);
const repetitions = count(options.repeat);
const hostNames = oneOf(options.hosts, ['chromium', 'node']);
const engineNames = oneOf(
  options.engines,
  peers.map(({ name }) => name),
);
const shapes = oneOf(options.models, Object.keys(peerShapes));

/** Why something is not in the result. */
const absent: { engine: string; model?: string; host?: string; threads?: number; why: string }[] =
  [];
const rows: PeerRow[] = [];
const probes: Record<string, Limits[]> = {};
const started = { date: new Date().toISOString(), loadAverage: loadavg() };

const hosts: PeerHost[] = [];
try {
  if (hostNames.includes('chromium')) hosts.push(await chromiumHost());
  if (hostNames.includes('node')) hosts.push(await nodeHost());
  for (const shape of shapes) await compare(shape, await prepare(shape));
} finally {
  for (const host of hosts) await host.close();
}
const result = summary();
if (options.out !== undefined) writeFileSync(options.out, `${JSON.stringify(result, null, 2)}\n`);
process.stdout.write(options.json ? `${JSON.stringify(result)}\n` : `${text()}\n`);

/** Models of the engines that take part. */
async function prepare(shape: string): Promise<Map<Peer, PeerModel>> {
  const models = new Map<Peer, PeerModel>();
  for (const peer of peers) {
    if (!engineNames.includes(peer.name)) continue;
    const why = peer.absent();
    if (why === undefined) {
      note(`${shape}: model for ${peer.name}`);
      try {
        models.set(peer, await peer.prepare(shape, { threaded, reuse: options.reuse }));
      } catch (error) {
        leaveOut({ engine: peer.name, model: shape, why: messageOf(error) });
      }
    } else if (!absent.some(({ engine }) => engine === peer.name))
      leaveOut({ engine: peer.name, why });
  }
  return models;
}

/** All rows of one shape: engines and thread counts take turns, so that all of them see the same machine. */
async function compare(shape: string, models: ReadonlyMap<Peer, PeerModel>): Promise<void> {
  for (const host of hosts) {
    const taking = new Set(
      [...models]
        .filter(([peer]) => peer.hosts.includes(host.name))
        .flatMap(([peer, model]) => threadCounts.map((threads) => ({ peer, model, threads }))),
    );
    const samples = new Map([...taking].map((one): [typeof one, SessionFigures[]] => [one, []]));
    for (let repetition = 0; repetition < repetitions; repetition++) {
      (probes[host.name] ??= []).push(await host.limits());
      for (const one of taking) {
        const { peer, model, threads } = one;
        const where = { engine: peer.name, model: shape, host: host.name, threads };
        try {
          const figures = await host.measure({ peer, shape, model, threads, settings });
          if (figures.threads !== undefined && figures.threads !== threads)
            throw new Error(`It ran on ${figures.threads} threads.`);
          samples.get(one)?.push(figures);
          note(
            `${Object.values(where).join(' ')} ${repetition + 1}/${repetitions}: ${brief(figures)}`,
          );
        } catch (error) {
          // what fails once would fail again
          taking.delete(one);
          leaveOut({ ...where, why: messageOf(error) });
        }
      }
    }
    const weights = productWeights(shape);
    for (const one of taking) {
      const { peer, threads } = one;
      const figures = samples.get(one) ?? [];
      const group = { model: shape, host: host.name, threads, peer, weights, samples: figures };
      rows.push(peerRow(group, probes[host.name] ?? []));
    }
    // a long run that is stopped leaves what it has
    if (options.out !== undefined)
      writeFileSync(options.out, `${JSON.stringify(summary(), null, 2)}\n`);
  }
}

function summary(): object {
  const version = (name: string): string =>
    (
      JSON.parse(
        readFileSync(join(import.meta.dirname, '../../node_modules', name, 'package.json'), 'utf8'),
      ) as { version: string }
    ).version;
  return {
    command: `npm run bench:peers -- ${process.argv.slice(2).join(' ')}`,
    rows,
    ratios: ratiosOf(rows),
    machine: {
      cpu: cpus()[0]?.model.trim() ?? 'unknown',
      cores: cpus().length,
      memoryBytes: totalmem(),
      hosts: Object.fromEntries(hosts.map(({ name, version: of }) => [name, of])),
      packages: Object.fromEntries(
        ['onnxruntime-web', '@wllama/wllama'].map((name) => [name, version(name)]),
      ),
      started,
      loadAverage: loadavg(),
    },
    probes: Object.fromEntries(
      Object.entries(probes).map(([host, limits]) => [host, medianLimits(limits)]),
    ),
    settings: { ...settings, repetitions },
    absent,
  };
}

function text(): string {
  const head = [
    'model',
    'host',
    'threads',
    'engine',
    'load ms',
    'prefill',
    'decode',
    'cold prefill',
  ];
  return table(
    [...head, 'cold decode', '% of limit (prefill)', '% of limit (decode)', 'peak MB'],
    rows.map((row) => [
      row.model,
      row.host,
      row.threads,
      row.engine,
      row.loadMs.toFixed(0),
      row.prefillTokensPerSecond?.toFixed(1),
      row.decodeTokensPerSecond?.toFixed(1),
      row.cold?.prefillTokensPerSecond.toFixed(1),
      row.cold?.decodeTokensPerSecond.toFixed(1),
      (row.limit.prefillFraction * 100).toFixed(0),
      (row.limit.decodeFraction * 100).toFixed(0),
      (row.memoryBytes.peak / 1e6).toFixed(0),
    ]),
  );
}

function brief({ loadMs, steady, warmUps }: SessionFigures): string {
  const speed = medianSpeed(steady);
  const speeds = `${speed?.prefillTokensPerSecond.toFixed(1)} / ${speed?.decodeTokensPerSecond.toFixed(1)}`;
  return `${speeds} tokens/s after ${warmUps} generations, loaded in ${loadMs.toFixed(0)} ms`;
}

function leaveOut(one: (typeof absent)[number]): void {
  absent.push(one);
  const { why, ...where } = one;
  note(`absent: ${Object.values(where).join(' ')}: ${why}`);
}

function note(message: string): void {
  process.stderr.write(`${message}\n`);
}

function messageOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n').slice(0, 4).join(' ');
}

function count(value: string): number {
  const number = Number(value);
  if (!Number.isInteger(number) || number < 1) throw new RangeError(`${value} is no count.`);
  return number;
}

function oneOf(list: string, known: readonly string[]): string[] {
  const names = list.split(',');
  const odd = names.find((name) => !known.includes(name));
  if (odd !== undefined) throw new RangeError(`No "${odd}"; there are ${known.join(', ')}.`);
  return names;
}
