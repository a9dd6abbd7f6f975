/**
 * Sentence encoders on Fettle's engine against onnxruntime-web in f32, one thread: milliseconds of one
 * sentence and how far the outputs are from those of onnxruntime on the original. Each run of ours follows
 * one of onnxruntime-web; the ratio is the median of these pairs, times are the best. Runs on Node 22 (relaxed SIMD)
 * when this Node is older. Prints JSON with `--json`, else Markdown.
 *
 *     npm run bench:encoders [-- --json] [--tokens 128] [--rounds 30]
 */
import { execFileSync } from 'node:child_process';
import { cpus, loadavg } from 'node:os';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { generatedEncoders } from '../../models/index.ts';
import type { Session } from '../../runtime/node.ts';
import { loadOrt } from '../../runtime/ort/module.ts';
import { fromOrt, toOrt } from '../../runtime/ort/tensors.ts';
import { openCompiled } from '../support/compile-in-memory.ts';
import { cosine, encoderFeeds, leastCosine } from '../support/encoder-feeds.ts';
import { node22 } from '../support/node22.ts';
import { rangeDistance } from '../support/range-distance.ts';

/** A configuration beside onnxruntime-web in f32. */
interface Row {
  readonly model: string;
  readonly tokens: number;
  readonly weights: string;
  readonly kernels: string;
  readonly weightBytes: number;
  readonly memoryBytes: number;
  readonly ms: number;
  readonly ortMs: number;
  /** Times as fast as onnxruntime-web in f32. */
  readonly ratio: number;
  /** Of the whole output, and of the worst token. */
  readonly cosine: number;
  readonly leastCosine: number;
  /** Largest difference as a fraction of the range. */
  readonly distance: number;
}

const WARM_UP = 8;
const FORMATS = ['w8g32', 'w4g32', 'f16', 'f32'];

const arguments_ = process.argv.slice(2);
const numberOf = (flag: string, otherwise: number): number => {
  const at = arguments_.indexOf(flag);
  return at < 0 ? otherwise : Number(arguments_[at + 1]);
};
const newer = node22();
if (typeof newer === 'string' && newer !== process.execPath) {
  const script = ['--import', 'tsx', import.meta.filename, ...arguments_];
  execFileSync(newer, script, { stdio: 'inherit' });
} else await main(numberOf('--tokens', 128), numberOf('--rounds', 30));

async function main(tokens: number, rounds: number): Promise<void> {
  const rows: Row[] = [];
  for (const encoder of generatedEncoders.values())
    rows.push(...(await compare(encoder.name, encoder, tokens, rounds)));
  const machine = {
    cpu: cpus()[0]?.model,
    cores: cpus().length,
    node: process.versions.node,
    loadAverage: loadavg(),
  };
  if (arguments_.includes('--json')) {
    process.stdout.write(`${JSON.stringify({ machine, rounds, rows }, undefined, 2)}\n`);
    return;
  }
  const lines = rows.map(
    (row) =>
      `| ${row.model}, ${row.tokens} tokens | ${row.weights} | ${row.kernels} | ${(row.weightBytes / 1e6).toFixed(1)} | ${row.ms.toFixed(1)} | ${row.ortMs.toFixed(1)} | ${row.ratio.toFixed(2)} | ${row.cosine.toFixed(5)} |`,
  );
  process.stdout.write(
    [
      '| model | weights | kernels | MB | ms | onnxruntime-web f32, ms | times as fast | cosine |',
      '| --- | --- | --- | --- | --- | --- | --- | --- |',
      ...lines,
      '',
      `Node ${machine.node}, ${machine.cores} x ${machine.cpu}, load ${machine.loadAverage[0]?.toFixed(1)}`,
      '',
    ].join('\n'),
  );
}

async function compare(
  model: string,
  encoder: typeof generatedEncoders extends ReadonlyMap<string, infer E> ? E : never,
  tokens: number,
  rounds: number,
): Promise<Row[]> {
  const ort = await loadOrt({ threads: 1 }, 'wasm');
  const original = await ort.InferenceSession.create(encodeModel(encoder.build()), {
    executionProviders: ['wasm'],
    graphOptimizationLevel: 'all',
    logSeverityLevel: 3,
  });
  const feeds = encoderFeeds(encoder.config.vocabulary, tokens, 1);
  const ortFeeds = Object.fromEntries(
    Object.entries(feeds).map(([name, tensor]) => [name, toOrt(ort, tensor)]),
  );
  const runOrt = async (): Promise<Float32Array> => {
    const { last_hidden_state: output } = await original.run(ortFeeds);
    if (output === undefined) throw new Error('no output');
    return (await fromOrt(output)).data as Float32Array;
  };
  const want = await runOrt();
  const sessions: { weights: string; session: Session; plain: boolean }[] = [];
  for (const weights of FORMATS)
    for (const plain of weights === 'w8g32' || weights === 'w4g32' ? [false, true] : [false]) {
      const wasm = { plainSimd: plain };
      const session = await openCompiled(model, () => encoder.build(), { weights }, { wasm });
      sessions.push({ weights, session, plain });
    }
  const outputs = new Map<Session, Float32Array>();
  const run = async (session: Session): Promise<void> => {
    const { last_hidden_state: output } = await session.run(feeds);
    outputs.set(session, output?.data as Float32Array);
  };
  for (let i = 0; i < WARM_UP; i++) {
    await runOrt();
    for (const { session } of sessions) await run(session);
  }
  const times = sessions.map((): { own: number; ort: number }[] => []);
  for (let round = 0; round < rounds; round++) {
    for (const [index, { session }] of sessions.entries()) {
      const ortMs = await timed(runOrt);
      times[index]?.push({ own: await timed(() => run(session)), ort: ortMs });
    }
  }
  const rows = sessions.map(({ weights, session, plain }, index): Row => {
    const pairs = times[index] ?? [];
    const got = outputs.get(session) ?? new Float32Array();
    const { memory } = session.manifest;
    return {
      model,
      tokens,
      weights,
      kernels: plain ? 'simd' : (session.measure().kernels ?? ''),
      weightBytes: memory.weights,
      memoryBytes: memory.weights + memory.arena + memory.state + (memory.stack ?? 0),
      ms: Math.min(...pairs.map(({ own }) => own)),
      ortMs: Math.min(...pairs.map((pair) => pair.ort)),
      ratio: median(pairs.map((pair) => pair.ort / pair.own)),
      cosine: cosine(got, want),
      leastCosine: leastCosine(got, want, encoder.config.width),
      distance: rangeDistance(got, want),
    };
  });
  for (const { session } of sessions) await session.dispose();
  await original.release();
  return rows;
}

async function timed(run: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await run();
  return performance.now() - start;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0;
}
