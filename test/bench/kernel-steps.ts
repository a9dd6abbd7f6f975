/**
 * Times single kernel steps at the SmolLM2-135M shape, what is left of a token beside the linear layers
 * (test/bench/kernels.ts): microseconds a step, and times its number in a forward pass. JSON on stdout.
 *
 *   node --import tsx test/bench/kernel-steps.ts
 */
import { stdout, version } from 'node:process';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { chooseVariant, probeKernels } from '../../runtime/wasm/probe.ts';
import { floatBits } from '../../runtime/wasm/step.ts';
import { KernelBench, noise, stepOf } from '../support/kernels.ts';

const variant = chooseVariant(await probeKernels(), 1);
const bench = await KernelBench.open(variant, 2000);
const width = 576;
const hidden = 1536;
const packed = 960;
const size = 64;
const context = 1024;
const vocabulary = 49152;

const x = bench.floats(noise(128 * hidden));
const y = bench.allot(128 * hidden * 4);
const z = bench.allot(64 * 56 * 56 * 4);
const state = bench.allot(3 * context * size * 4);
const table = bench.floats(noise(context * 32));
const logits = bench.floats(noise(vocabulary));
const weights = bench.floats(noise(width * hidden));
const image = bench.allot(64 * 56 * 56 * 4);

/** Best microseconds of a step; the median would measure the machine's other work. */
function time(step: Int32Array): number {
  const count = bench.write([step]);
  let best = Infinity;
  for (let round = 0; round < 40; round++) {
    const start = performance.now();
    for (let i = 0; i < 10; i++) bench.kernels.run(bench.plan, 0, count, 0, 1);
    best = Math.min(best, (performance.now() - start) * 100);
  }
  return best;
}

function attention(rows: number, keys: number, half: boolean): Int32Array {
  const token = size * (half ? 2 : 4);
  return stepOf('ATTENTION', {
    Q: x,
    QTOKEN: packed * 4,
    K: state,
    KTOKEN: token,
    KHEAD: context * token,
    V: state,
    VTOKEN: token,
    VHEAD: context * token,
    KVTYPE: half ? abi.TYPE_F16 : abi.TYPE_F32,
    Y: y,
    YTOKEN: width * 4,
    BATCH: 1,
    QUERIES: rows,
    KEYS: keys,
    HEADS: 9,
    KVHEADS: 3,
    SIZE: size,
    VSIZE: size,
    SCALE: floatBits(0.125),
    CAUSAL: 1,
    PAST: keys - rows,
  });
}

const rows: { step: string; us: number; count: number; ms: number }[] = [];
function row(step: string, count: number, words: Int32Array): void {
  const us = time(words);
  rows.push({ step, us, count, ms: (us * count) / 1000 });
}

for (const tokens of [1, 128]) {
  const name = (kernel: string): string => `${kernel}, ${tokens} tokens`;
  const norm = { X: x, XROW: width * 4, Y: y, YROW: width * 4, ROWS: tokens, HEADS: 1, N: width };
  row(name('norm + skip'), 61, stepOf('NORM', { ...norm, SKIP: x, SUM: z, GAIN: table }));
  for (const K of [width, hidden])
    row(
      name(`quantize ${K}`),
      K === width ? 90 : 30,
      stepOf('QUANTIZE', { X: x, XROW: K * 4, Y: z, ROWS: tokens, K, BLOCK: 32, FORMS: 1 }),
    );
  const rotary = { X: x, XROW: packed * 4, Y: y, YROW: packed * 4, ROWS: tokens, HEADS: 12 };
  const angles = { SIZE: size, DIMS: size, COS: table, SIN: table, TABLEROWS: context };
  row(name('rotary'), 30, stepOf('ROTARY', { ...rotary, ...angles, SEQUENCE: tokens }));
  for (const keys of [160, 512])
    for (const half of [false, true])
      row(
        name(`attention over ${keys} keys ${half ? 'f16' : 'f32'}`),
        30,
        attention(tokens, keys, half),
      );
}
const whole = { OUTER: 1, LENGTH: vocabulary, INNER: 1 };
row(
  'argmax of the logits',
  1,
  stepOf('ARGMAX', { X: logits, Y: y, YTYPE: abi.TYPE_I32, ...whole }),
);
row('softmax of the logits', 1, stepOf('SOFTMAX', { X: logits, Y: z, ...whole }));
row(
  'f32 linear 128 x 576 x 1536',
  1,
  stepOf('DENSE', {
    X: x,
    XROW: width * 4,
    Y: y,
    YROW: hidden * 4,
    ROWS: 128,
    K: width,
    N: hidden,
    W: weights,
  }),
);
const convolution = {
  BATCH: 1,
  CIN: 64,
  HIN: 56,
  WIN: 56,
  COUT: 64,
  HOUT: 56,
  WOUT: 56,
  KH: 3,
  KW: 3,
};
const window = {
  STRIDEH: 1,
  STRIDEW: 1,
  DILATIONH: 1,
  DILATIONW: 1,
  PADTOP: 1,
  PADLEFT: 1,
  GROUPS: 1,
};
row(
  'conv 3x3, 64 channels of 56x56',
  1,
  stepOf('CONV', {
    X: image,
    Y: z,
    ...convolution,
    ...window,
    W: weights,
    PANEL: y,
    PANELBYTES: 576 * 64,
  }),
);
stdout.write(`${JSON.stringify({ host: version, variant, rows }, null, 2)}\n`);
