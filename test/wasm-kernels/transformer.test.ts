import assert from 'node:assert/strict';
import test from 'node:test';
import { floatToHalf, halfToFloat } from '../../runtime/half.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { floatBits } from '../../runtime/wasm/step.ts';
import { KernelBench, close, formatId, hostVariants, noise } from '../support/kernels.ts';

interface Attention {
  readonly batch: number;
  readonly queries: number;
  readonly past: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly size: number;
  readonly causal?: boolean;
  readonly window?: number;
  readonly softcap?: number;
  readonly masked?: boolean;
  readonly biased?: boolean;
  readonly sinks?: boolean;
  readonly half?: boolean;
}

const attentionCases: readonly [string, Attention][] = [
  [
    'decode with keys of its own for each head',
    { batch: 2, queries: 1, past: 133, heads: 3, kvHeads: 3, size: 20, causal: true, masked: true },
  ],
  [
    'the same with f16 state, window, bias, softcap and sinks',
    {
      batch: 1,
      queries: 1,
      past: 90,
      heads: 2,
      kvHeads: 2,
      size: 32,
      causal: true,
      half: true,
      window: 71,
      softcap: 4,
      biased: true,
      sinks: true,
    },
  ],
  [
    'decode over 130 keys, grouped heads',
    { batch: 1, queries: 1, past: 129, heads: 9, kvHeads: 3, size: 64, causal: true },
  ],
  [
    'decode with f16 state',
    { batch: 1, queries: 1, past: 70, heads: 4, kvHeads: 2, size: 32, causal: true, half: true },
  ],
  [
    'decode, eight heads a group and a window',
    { batch: 1, queries: 1, past: 77, heads: 16, kvHeads: 2, size: 20, causal: true, window: 50 },
  ],
  [
    'decode, three heads a group over f16',
    { batch: 1, queries: 1, past: 68, heads: 6, kvHeads: 2, size: 12, causal: true, half: true },
  ],
  ['prefill', { batch: 1, queries: 70, past: 0, heads: 2, kvHeads: 1, size: 16, causal: true }],
  [
    'a chunk of a prompt',
    { batch: 2, queries: 9, past: 61, heads: 2, kvHeads: 2, size: 20, causal: true },
  ],
  [
    'sliding window',
    { batch: 1, queries: 40, past: 30, heads: 2, kvHeads: 2, size: 8, causal: true, window: 7 },
  ],
  [
    'full attention with padding mask',
    { batch: 2, queries: 13, past: 0, heads: 3, kvHeads: 3, size: 12, masked: true },
  ],
  [
    'bias, softcap and sinks',
    {
      batch: 1,
      queries: 10,
      past: 4,
      heads: 2,
      kvHeads: 1,
      size: 8,
      causal: true,
      softcap: 5,
      biased: true,
      sinks: true,
    },
  ],
  [
    'f16 state in prefill',
    { batch: 1, queries: 66, past: 3, heads: 2, kvHeads: 1, size: 64, causal: true, half: true },
  ],
];

function attentionReference(
  c: Attention,
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
  keep: number[],
  bias: Float32Array,
  sinks: Float32Array,
  scale: number,
): Float64Array {
  const T = c.past + c.queries;
  const y = new Float64Array(c.batch * c.queries * c.heads * c.size);
  for (let b = 0; b < c.batch; b++)
    for (let h = 0; h < c.heads; h++)
      for (let i = 0; i < c.queries; i++) {
        const g = Math.floor(h / (c.heads / c.kvHeads));
        const scores = Array.from({ length: T }, (_, t) => {
          if (c.causal === true && t > c.past + i) return -Infinity;
          if (c.window !== undefined && t <= c.past + i - c.window) return -Infinity;
          if (c.masked === true && keep[b * T + t] === 0) return -Infinity;
          let s = 0;
          for (let d = 0; d < c.size; d++)
            s +=
              (q[((b * c.queries + i) * c.heads + h) * c.size + d] ?? 0) *
              (k[((b * c.kvHeads + g) * T + t) * c.size + d] ?? 0);
          s *= scale;
          if (c.softcap !== undefined) s = c.softcap * Math.tanh(s / c.softcap);
          return s + (c.biased === true ? (bias[(h * c.queries + i) * T + t] ?? 0) : 0);
        });
        const sink = c.sinks === true ? (sinks[h] ?? 0) : -Infinity;
        const peak = Math.max(sink, ...scores);
        const p = scores.map((s) => (peak === -Infinity ? 0 : Math.exp(s - peak)));
        const sum = p.reduce((a, e) => a + e, 0) + (peak === -Infinity ? 0 : Math.exp(sink - peak));
        for (let d = 0; d < c.size; d++) {
          let s = 0;
          p.forEach((e, t) => (s += e * (v[((b * c.kvHeads + g) * T + t) * c.size + d] ?? 0)));
          y[((b * c.queries + i) * c.heads + h) * c.size + d] = sum > 0 ? s / sum : 0;
        }
      }
  return y;
}

/** Appends k and v token rows into state and attends; returns the output. */
function runAttention(bench: KernelBench, c: Attention): { got: Float32Array; want: Float64Array } {
  const T = c.past + c.queries;
  const scale = 1 / Math.sqrt(c.size);
  const width = c.heads * c.size;
  const kvWidth = c.kvHeads * c.size;
  const q = noise(c.batch * c.queries * width, 1).map((x) => x * 3);
  const rows = { k: noise(c.batch * T * kvWidth, 2), v: noise(c.batch * T * kvWidth, 3) };
  const keep = Array.from({ length: c.batch * T }, (_, i) =>
    i % T < T - 3 * Math.floor(i / T) - 1 ? 1 : 0,
  );
  const bias = noise(c.heads * c.queries * T, 4);
  const sinks = noise(c.heads, 5);
  const capacity = T + 5;
  const bytes = c.half === true ? 2 : 4;
  const TYPE = c.half === true ? abi.TYPE_F16 : abi.TYPE_F32;
  const strides = {
    TOKEN: c.size * bytes,
    HEAD: capacity * c.size * bytes,
    BATCH: c.kvHeads * capacity * c.size * bytes,
  };
  const state = {
    k: bench.allot(c.batch * strides.BATCH),
    v: bench.allot(c.batch * strides.BATCH),
  };
  for (const name of ['k', 'v'] as const) {
    const x = bench.floats(rows[name]);
    for (const [POSITION, TOKENS] of [
      [0, c.past],
      [c.past, c.queries],
    ] as const)
      bench.run('APPEND', {
        X: x + POSITION * kvWidth * 4,
        XTOKEN: kvWidth * 4,
        XBATCH: T * kvWidth * 4,
        Y: state[name],
        YTOKEN: strides.TOKEN,
        YHEAD: strides.HEAD,
        YBATCH: strides.BATCH,
        BATCH: c.batch,
        TOKENS,
        HEADS: c.kvHeads,
        SIZE: c.size,
        TYPE,
        POSITION,
      });
  }
  const y = bench.allot(c.batch * c.queries * width * 4);
  bench.run('ATTENTION', {
    Q: bench.floats(q),
    QTOKEN: width * 4,
    QBATCH: c.queries * width * 4,
    K: state.k,
    KTOKEN: strides.TOKEN,
    KHEAD: strides.HEAD,
    KBATCH: strides.BATCH,
    V: state.v,
    VTOKEN: strides.TOKEN,
    VHEAD: strides.HEAD,
    VBATCH: strides.BATCH,
    KVTYPE: TYPE,
    Y: y,
    YTOKEN: width * 4,
    YBATCH: c.queries * width * 4,
    BATCH: c.batch,
    QUERIES: c.queries,
    KEYS: T,
    HEADS: c.heads,
    KVHEADS: c.kvHeads,
    SIZE: c.size,
    VSIZE: c.size,
    SCALE: floatBits(scale),
    CAUSAL: c.causal === true ? 1 : 0,
    PAST: c.past,
    WINDOW: c.window ?? 0,
    SOFTCAP: floatBits(c.softcap ?? 0),
    MASK: c.masked === true ? bench.longs(keep) : 0,
    MASKTYPE: abi.TYPE_I64,
    MASKROW: T * 8,
    BIAS: c.biased === true ? bench.floats(bias) : 0,
    BIASHEAD: c.queries * T * 4,
    BIASQUERY: T * 4,
    SINKS: c.sinks === true ? bench.floats(sinks) : 0,
  });
  // [B, T, KV, D] -> [B, KV, T, D], through f16 where the state is
  const perHead = (x: Float32Array): Float32Array =>
    x.map((_, i) => {
      const d = i % c.size;
      const t = Math.floor(i / c.size) % T;
      const g = Math.floor(i / c.size / T) % c.kvHeads;
      const b = Math.floor(i / c.size / T / c.kvHeads);
      const value = x[((b * T + t) * c.kvHeads + g) * c.size + d] ?? 0;
      return c.half === true ? halfToFloat(floatToHalf(value)) : value;
    });
  return {
    got: bench.readFloats(y, c.batch * c.queries * width),
    want: attentionReference(c, q, perHead(rows.k), perHead(rows.v), keep, bias, sinks, scale),
  };
}

const variants = await hostVariants();
for (const [name, c] of attentionCases) {
  for (const variant of variants)
    test(`${variant}: ATTENTION: ${name}`, async () => {
      const { got, want } = runAttention(await KernelBench.open(variant), c);
      // values are below 1; sums of a hundred f32 products round to some 1e-7
      close(got, want, 2e-6);
    });
  if (variants.length > 1)
    test(`ATTENTION: ${name}: relaxed equals simd bit for bit`, async () => {
      const results = await Promise.all(
        variants.map(async (variant) => runAttention(await KernelBench.open(variant), c).got),
      );
      assert.deepEqual(results[1], results[0]);
    });
}

for (const variant of variants) {
  test(`${variant}: ATTENTION without a visible key yields 0`, async () => {
    const bench = await KernelBench.open(variant);
    const y = bench.floats(noise(8));
    bench.run('ATTENTION', {
      Q: bench.floats(noise(8)),
      K: bench.floats(noise(8)),
      V: bench.floats(noise(8)),
      Y: y,
      BATCH: 1,
      QUERIES: 1,
      KEYS: 1,
      HEADS: 1,
      KVHEADS: 1,
      SIZE: 8,
      VSIZE: 8,
      SCALE: floatBits(1),
      MASK: bench.bytes([0]),
      MASKTYPE: abi.TYPE_U8,
    });
    assert.deepEqual(
      Array.from(bench.readFloats(y, 8)),
      Array.from({ length: 8 }, () => 0),
    );
  });

  for (const kind of [0, 1])
    test(`${variant}: NORM ${kind === 0 ? 'RMS' : 'layer'} with skip, sum, gain and bias, any width`, async () => {
      for (const N of [3, 16, 50]) {
        const bench = await KernelBench.open(variant);
        const rows = 4;
        const [x, skip] = [noise(rows * N, 1), noise(rows * N, 2)];
        const [gain, bias, skipBias] = [noise(N, 3), noise(N, 4), noise(N, 5)];
        const at = { x: bench.floats(x), skip: bench.floats(skip), y: bench.allot(rows * N * 4) };
        bench.run('NORM', {
          X: at.x,
          XROW: N * 4,
          Y: at.y,
          YROW: N * 4,
          ROWS: rows,
          HEADS: 1,
          N,
          KIND: kind,
          EPSILON: floatBits(1e-5),
          GAIN: bench.floats(gain),
          BIAS: bench.floats(bias),
          SKIP: at.skip,
          SKIPBIAS: bench.floats(skipBias),
          SUM: at.skip,
        });
        const sum = bench.readFloats(at.skip, rows * N);
        const want = Array.from({ length: rows }, (_, r) => {
          const t = Array.from(
            { length: N },
            (_unused, i) => (x[r * N + i] ?? 0) + (skip[r * N + i] ?? 0) + (skipBias[i] ?? 0),
          );
          close(sum.subarray(r * N, (r + 1) * N), t, 3e-7);
          const mean = kind === 1 ? t.reduce((a, v) => a + v, 0) / N : 0;
          const square = t.reduce((a, v) => a + (v - mean) ** 2, 0) / N;
          return t.map(
            (v, i) => ((v - mean) / Math.sqrt(square + 1e-5)) * (gain[i] ?? 0) + (bias[i] ?? 0),
          );
        });
        close(bench.readFloats(at.y, rows * N), want.flat(), 2e-6);
      }
    });

  test(`${variant}: NORM inside packed rows touches only its heads`, async () => {
    const bench = await KernelBench.open(variant);
    const x = noise(2 * 24, 1);
    const at = bench.floats(x);
    bench.run('NORM', {
      X: at + 32,
      XROW: 96,
      Y: at + 32,
      YROW: 96,
      ROWS: 2,
      HEADS: 2,
      N: 4,
      EPSILON: floatBits(0),
    });
    const got = bench.readFloats(at, 48);
    for (let i = 0; i < 48; i++) {
      const inside = i % 24 >= 8 && i % 24 < 16;
      const first = i - (i % 4);
      const root = Math.hypot(...x.subarray(first, first + 4)) / 2;
      close([got[i] ?? NaN], [inside ? (x[i] ?? 0) / root : (x[i] ?? 0)], inside ? 1e-6 : 0);
    }
  });

  for (const [name, dims, interleaved, positioned] of [
    ['half-split', 16, 0, false],
    ['half-split, partial', 12, 0, true],
    ['interleaved', 16, 1, true],
    ['odd width', 6, 0, false],
  ] as const)
    test(`${variant}: ROTARY ${name}`, async () => {
      const bench = await KernelBench.open(variant);
      const [rows, heads, size, half] = [6, 2, 16, dims / 2];
      const x = noise(rows * heads * size, 1);
      const angles = Array.from(
        { length: 20 * half },
        (_, i) => Math.floor(i / half) * 10 ** (-(i % half) / half),
      );
      const [cos, sin] = [Float32Array.from(angles, Math.cos), Float32Array.from(angles, Math.sin)];
      const positions = [3, 0, 19, 7, 8, 1];
      const at = bench.floats(x);
      bench.run('ROTARY', {
        X: at,
        XROW: heads * size * 4,
        Y: at,
        YROW: heads * size * 4,
        ROWS: rows,
        HEADS: heads,
        SIZE: size,
        DIMS: dims,
        INTERLEAVED: interleaved,
        COS: bench.floats(cos),
        SIN: bench.floats(sin),
        TABLEROWS: 20,
        POSITIONS: positioned ? bench.integers(positions) : 0,
        POSITIONTYPE: abi.TYPE_I32,
        PAST: 5,
        SEQUENCE: 3,
      });
      const want = x.slice();
      for (let r = 0; r < rows; r++)
        for (let h = 0; h < heads; h++)
          for (let i = 0; i < half; i++) {
            const p = positioned ? (positions[r] ?? 0) : 5 + (r % 3);
            const base = (r * heads + h) * size;
            const [a, b] = interleaved
              ? [base + 2 * i, base + 2 * i + 1]
              : [base + i, base + i + half];
            const [c, s] = [cos[p * half + i] ?? 0, sin[p * half + i] ?? 0];
            want[a] = (x[a] ?? 0) * c - (x[b] ?? 0) * s;
            want[b] = (x[b] ?? 0) * c + (x[a] ?? 0) * s;
          }
      close(bench.readFloats(at, x.length), want, 2e-7);
    });

  test(`${variant}: APPEND rounds to f16 as the runtime does, for every magnitude`, async () => {
    const bench = await KernelBench.open(variant);
    const x = Float32Array.from(noise(4096, 3), (v, i) => v * 2 ** ((i % 44) - 27)).map((v) =>
      Math.min(Math.max(v, -65504), 65504),
    );
    const y = bench.allot(x.length * 2);
    bench.run('APPEND', {
      X: bench.floats(x),
      Y: y,
      BATCH: 1,
      TOKENS: 1,
      HEADS: 1,
      SIZE: x.length,
      TYPE: abi.TYPE_F16,
    });
    assert.deepEqual(
      new Uint16Array(bench.memory.buffer, y, x.length).slice(),
      Uint16Array.from(x, floatToHalf),
    );
  });

  for (const format of ['F32', 'F16'] as const)
    test(`${variant}: DENSE ${format} with every epilogue, rows and columns that fill no tile`, async () => {
      const bench = await KernelBench.open(variant);
      const [rows, K, N] = [6, 37, 21];
      const x = noise(rows * K, 1);
      const round = (v: number): number => (format === 'F16' ? halfToFloat(floatToHalf(v)) : v);
      const matrices = [noise(N * K, 2).map(round), noise(N * K, 3).map(round)];
      const [bias, bias2, residual] = [noise(N, 4), noise(N, 5), noise(rows * N, 6)];
      const pack = (w: Float32Array): number => {
        const packed = new Float32Array(Math.ceil(N / 16) * 16 * K);
        w.forEach((v, i) => {
          const [n, k] = [Math.floor(i / K), i % K];
          packed[(n >> 4) * 16 * K + k * 16 + (n & 15)] = v;
        });
        return format === 'F32'
          ? bench.floats(packed)
          : bench.halves(Uint16Array.from(packed, floatToHalf));
      };
      const [W = 0, W2 = 0] = matrices.map(pack);
      const y = bench.allot(rows * N * 4);
      bench.run('DENSE', {
        X: bench.floats(x),
        XROW: K * 4,
        Y: y,
        YROW: N * 4,
        ROWS: rows,
        K,
        N,
        FORMAT: formatId[format],
        W,
        BIAS: bench.floats(bias),
        ACTIVATION: abi.ACT_SILU,
        RESIDUAL: bench.floats(residual),
        RESIDUALROW: N * 4,
        W2,
        BIAS2: bench.floats(bias2),
      });
      const dot = (w: Float32Array | undefined, r: number, n: number): number =>
        Array.from({ length: K }, (_, k) => (x[r * K + k] ?? 0) * (w?.[n * K + k] ?? 0)).reduce(
          (a, v) => a + v,
          0,
        );
      const want = residual.map((rest, i) => {
        const [r, n] = [Math.floor(i / N), i % N];
        const g = dot(matrices[0], r, n) + (bias[n] ?? 0);
        return (g / (1 + Math.exp(-g))) * (dot(matrices[1], r, n) + (bias2[n] ?? 0)) + rest;
      });
      // 37 products of magnitude 1, twice, multiplied
      close(bench.readFloats(y, rows * N), want, 3e-5);

      const table = bench.allot(N * K * 4);
      bench.run('EMBED', {
        IDS: bench.integers([0, 20, 7]),
        IDTYPE: abi.TYPE_I32,
        Y: table,
        ROWS: 3,
        K,
        N,
        FORMAT: formatId[format],
        W,
        MULTIPLY: floatBits(2),
      });
      const rowsOf = [0, 20, 7].flatMap((n) =>
        Array.from(matrices[0]?.subarray(n * K, (n + 1) * K) ?? [], (v) => 2 * v),
      );
      close(bench.readFloats(table, 3 * K), rowsOf, 0);
    });
}
