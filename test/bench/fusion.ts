/**
 * Nodes of each model: as exported, after clean-up, after fusion, after onnxsim, and what onnxruntime's
 * own optimizer leaves of the same file (`graphOptimizationLevel: 'all'`, the kernels of its profiling
 * trace). With `--time` also how long onnxruntime-web takes for the fused and lowered model as a ratio to
 * the cleaned-up one. Prints JSON with `--json`, else Markdown.
 *
 *     npm run bench:fusion [-- --json] [--time] [name …]
 */
import fs from 'node:fs';
import { cpus } from 'node:os';
import { cloneModel } from '../../compiler/ir/clone.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import type { OrtModule, OrtSession, OrtTensor } from '../../runtime/ort/module.ts';
import { loadOrt } from '../../runtime/ort/module.ts';
import { toOrt } from '../../runtime/ort/tensors.ts';
import { ortWasm } from '../../targets/index.ts';
import { buildDecoder } from '../../models/decoder.ts';
import { shapeDecoders } from '../../models/shapes.ts';
import { spellings } from '../../models/spelling/index.ts';
import { countNodes } from '../support/count-nodes.ts';
import { decoderSizes, fusionModels } from '../support/fusion-models.ts';
import { seededInputs } from '../support/seeded-inputs.ts';

interface Row {
  readonly model: string;
  readonly nodes: number;
  readonly cleanUp: number;
  readonly fused: number;
  readonly onnxsim: number | string;
  /** What onnxruntime leaves of the file, and of the fused model lowered for it. */
  readonly ort: number | string;
  readonly ortOfFused: number | string;
  /** Milliseconds of the fused model over those of the cleaned-up one. */
  readonly timeRatio?: number | string;
}

/** The feeds of one run. */
type Feeds = Readonly<Record<string, OrtTensor>>;

const RUNS = 20;
const SAMPLE_US = 10_000;
const arguments_ = process.argv.slice(2);
const [asJson, timed] = ['--json', '--time'].map((flag) => arguments_.includes(flag));
const names = arguments_.filter((argument) => !argument.startsWith('--'));

// onnxruntime-web prints its trace, and its errors, past the console
let printed: string[] = [];
const { writeSync } = fs;
Object.assign(fs, {
  writeSync: (file: number, ...rest: readonly unknown[]): number => {
    if (file === 1 || file === 2) return printed.push(String(rest[0]));
    return Reflect.apply(writeSync, fs, [file, ...rest]) as number;
  },
});
const print = (text: string): boolean => process.stdout.write(`${text}\n`);
console.log = console.info = console.warn = console.error = (): void => {};

const ort = await loadOrt({ threads: 1 }, 'wasm');
const { simplify } = await import('onnxsim');
const rows: Row[] = [];
for (const { name, read, sizes } of [...shapes(), ...files()]) {
  if (names.length > 0 && !names.includes(name)) continue;
  const bytes = read();
  const original = decodeModel(bytes);
  const cleaned = cloneModel(original);
  await runPasses(cleaned, pipelineFrom(['clean-up']));
  const fused = cloneModel(cleaned);
  await runPasses(fused, pipelineFrom(['fuse', 'fuse-expression', 'eliminate-dead']));
  const feeds = feedsOf(original, sizes);
  const lowered = await attempt(() => lower(fused));
  const isBytes = typeof lowered === 'object';
  const lowFeeds = isBytes ? feedsOf(decodeModel(lowered), sizes) : feeds;
  rows.push({
    model: name,
    nodes: countNodes(original),
    cleanUp: countNodes(cleaned),
    fused: countNodes(fused),
    onnxsim: await attempt(async () => countNodes(decodeModel((await simplify(bytes)).model))),
    ort: await attempt(() => nodesRun(bytes, feeds)),
    ortOfFused: isBytes ? await attempt(() => nodesRun(lowered, lowFeeds)) : lowered,
    ...(timed === true && isBytes
      ? {
          timeRatio: await attempt(() => ratio([encodeModel(cleaned), feeds], [lowered, lowFeeds])),
        }
      : {}),
  });
}
const machine = `${cpus()[0]?.model ?? 'unknown'} x ${cpus().length}, Node ${process.version}`;
if (asJson === true) print(JSON.stringify({ machine, runs: RUNS, rows }, null, 2));
else printTable();

/** A model to measure. */
interface Measured {
  readonly name: string;
  readonly sizes: Readonly<Record<string, number>>;
  read(): Uint8Array;
}

function files(): readonly Measured[] {
  return fusionModels().map(({ name, path, sizes }) => ({
    name,
    sizes,
    read: () => fs.readFileSync(path),
  }));
}

/** The public decoders with all their layers and heads, narrow: as many nodes, and small enough to run. */
function shapes(): readonly Measured[] {
  return Object.entries(shapeDecoders).map(([name, config]) => ({
    name: `shape:${name}`,
    sizes: decoderSizes,
    read: () => {
      const narrow = { width: 64, headSize: 32, vocabulary: 64, contextLength: 64 };
      const mlp = { ...config.mlp, width: 64 };
      return encodeModel(buildDecoder(name, { ...config, ...narrow, mlp }, spellings[0]));
    },
  }));
}

function printTable(): void {
  const heads = ['model', 'nodes', 'clean-up', 'fused', 'onnxsim', "onnxruntime 'all'"];
  const all = [...heads, "fused, onnxruntime 'all'", ...(timed === true ? ['time ratio'] : [])];
  print(`${machine}\n`);
  print(`| ${all.join(' | ')} |`);
  print(`|${all.map(() => '---').join('|')}|`);
  for (const row of rows) print(`| ${Object.values(row).join(' | ')} |`);
}

function lower(model: Model): Uint8Array {
  const copy = cloneModel(model);
  lowerForOrt(copy, ortWasm);
  return encodeModel(copy);
}

function feedsOf(model: Model, sizes: Readonly<Record<string, number>>): Feeds {
  const inputs = seededInputs(model, 1, sizes);
  return Object.fromEntries([...inputs].map(([name, tensor]) => [name, toOrt(ort, tensor)]));
}

/** Distinct kernels of one run with every optimization on. */
async function nodesRun(model: Uint8Array, feeds: Feeds): Promise<number> {
  const session = (await open(ort, model, { enableProfiling: true })) as OrtSession & {
    endProfiling(): void;
  };
  printed = [];
  try {
    await session.run(feeds);
    session.endProfiling();
  } finally {
    await session.release();
  }
  const kernels = new Set<string>();
  for (const [, name, index] of printed
    .join('')
    .matchAll(/"name" :"([^"]*)_kernel_time".*"node_index" : "(\d+)"/g))
    kernels.add(`${name} ${index}`);
  if (kernels.size === 0) throw new Error('no trace');
  return kernels.size;
}

function open(
  module: OrtModule,
  model: Uint8Array,
  options: Readonly<Record<string, unknown>> = {},
): Promise<OrtSession> {
  const fixed = {
    executionProviders: ['wasm'],
    graphOptimizationLevel: 'all',
    logSeverityLevel: 3,
  };
  return module.InferenceSession.create(model, { ...fixed, ...options });
}

type Timed = readonly [model: Uint8Array, feeds: Feeds];

/**
 * Least processor time of `b` over that of `a`, which other work on the machine disturbs less than the
 * clock on the wall. Each in two sessions, opened and run in the order a b b a, since which session is
 * opened first makes a difference of its own; as many calls to a sample as take 10 ms, which is more than
 * the clock and a context switch blur.
 */
async function ratio(...pair: readonly [a: Timed, b: Timed]): Promise<number> {
  const order = [0, 1, 1, 0] as const;
  const sessions: OrtSession[] = [];
  for (const index of order) sessions.push(await open(ort, pair[index][0]));
  const least: [number, number] = [Infinity, Infinity];
  let calls = 1;
  for (let run = 0; run < RUNS; run++)
    for (const [place, session] of sessions.entries()) {
      const index = order[place] ?? 0;
      const start = process.cpuUsage();
      for (let call = 0; call < calls; call++) await session.run(pair[index][1]);
      const each = process.cpuUsage(start).user / calls;
      // the first two rounds warm up and tell how many calls to make
      if (run < 2) calls = Math.max(calls, Math.ceil(SAMPLE_US / Math.max(1, each)));
      else least[index] = Math.min(least[index], each);
    }
  for (const session of sessions) await session.release();
  return Math.round((100 * least[1]) / least[0]) / 100;
}

/** The result, or the first words of what went wrong. */
async function attempt<T>(make: () => T | Promise<T>): Promise<T | string> {
  try {
    return await make();
  } catch (error) {
    return (error instanceof Error ? error.message : String(error)).slice(0, 200);
  }
}
