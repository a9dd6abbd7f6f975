import assert from 'node:assert/strict';
import test from 'node:test';
import { floatToHalf } from '../../runtime/half.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { floatBits } from '../../runtime/wasm/step.ts';
import { KernelBench, close, coordinates, hostVariants, noise, sum } from '../support/kernels.ts';

const six = (values: readonly number[], fill: number): number[] => [
  ...Array.from({ length: 6 - values.length }, () => fill),
  ...values,
];

for (const variant of await hostVariants()) {
  test(`${variant}: EXPRESSION broadcasts three inputs over 600 columns`, async () => {
    const bench = await KernelBench.open(variant);
    const [R, C] = [3, 600];
    const [a, b, c] = [noise(R * C, 1), noise(C, 2), noise(R, 3)];
    // (a + b) * c, c down the rows, b along them, a transposed in memory
    const code = [
      [abi.EX_LOAD, 0, 0, 0, 0],
      [abi.EX_LOAD, 1, 1, 0, 0],
      [abi.EX_ADD, 0, 0, 1, 0],
      [abi.EX_LOAD, 1, 2, 0, 0],
      [abi.EX_MUL, 2, 0, 1, 0],
    ];
    const y = bench.allot(R * C * 4);
    const inputs = [
      [bench.floats(a), 1, R],
      [bench.floats(b), 0, 1],
      [bench.floats(c), 1, 0],
    ] as const;
    const head = [
      abi.EXPRESSION,
      0,
      y,
      bench.integers(code.flat()),
      code.length,
      3,
      1,
      1,
      1,
      1,
      R,
      C,
    ];
    const words = Int32Array.from([
      ...head,
      ...inputs.flatMap(([at, row, column]) => [at, 0, 0, 0, 0, row, column]),
    ]);
    words[1] = words.length;
    bench.runWords([words]);
    const want = Array.from({ length: R * C }, (_, i) => {
      const [r, k] = [Math.floor(i / C), i % C];
      return Math.fround(Math.fround((a[k * R + r] ?? 0) + (b[k] ?? 0)) * (c[r] ?? 0));
    });
    close(bench.readFloats(y, R * C), want, 0);
  });

  const kinds: [number, (values: number[]) => number][] = [
    [abi.REDUCE_SUM, sum],
    [abi.REDUCE_MEAN, (v) => sum(v) / v.length],
    [abi.REDUCE_MAX, (v) => Math.max(...v)],
    [abi.REDUCE_MIN, (v) => Math.min(...v)],
    [abi.REDUCE_PROD, (v) => v.reduce((a, x) => a * x, 1)],
    [abi.REDUCE_L1, (v) => sum(v.map(Math.abs))],
    [abi.REDUCE_L2, (v) => Math.hypot(...v)],
    [abi.REDUCE_SUMSQUARE, (v) => sum(v.map((x) => x * x))],
  ];
  for (const [outer, length, inner] of [
    [3, 21, 1],
    [2, 5, 7],
    [1, 3, 8],
  ] as const) {
    const x = noise(outer * length * inner, 9);
    const column = (o: number, i: number): number[] =>
      Array.from({ length }, (_, l) => x[(o * length + l) * inner + i] ?? 0);
    const each = <T>(of: (values: number[]) => T): T[] =>
      Array.from({ length: outer * inner }, (_, j) => of(column(Math.floor(j / inner), j % inner)));
    const size = { OUTER: outer, LENGTH: length, INNER: inner };

    test(`${variant}: REDUCE over the middle of [${outer}, ${length}, ${inner}]`, async () => {
      const bench = await KernelBench.open(variant);
      for (const [KIND, of] of kinds) {
        const y = bench.allot(outer * inner * 4);
        bench.run('REDUCE', { X: bench.floats(x), Y: y, ...size, KIND });
        close(bench.readFloats(y, outer * inner), each(of), 2e-6);
      }
    });

    test(`${variant}: SOFTMAX and its logarithm over the middle of [${outer}, ${length}, ${inner}]`, async () => {
      const bench = await KernelBench.open(variant);
      for (const LOG of [0, 1]) {
        const y = bench.floats(x);
        bench.run('SOFTMAX', { X: y, Y: y, ...size, LOG });
        const got = bench.readFloats(y, x.length);
        for (let o = 0; o < outer; o++)
          for (let i = 0; i < inner; i++) {
            const e = column(o, i).map(Math.exp);
            const want = e.map((v) => (LOG ? Math.log(v / sum(e)) : v / sum(e)));
            close(
              Array.from({ length }, (_, l) => got[(o * length + l) * inner + i] ?? NaN),
              want,
              1e-6,
            );
          }
      }
    });

    test(`${variant}: ARGMAX over the middle of [${outer}, ${length}, ${inner}], first and last of equals`, async () => {
      const bench = await KernelBench.open(variant);
      const coarse = x.map((v) => Math.round(v * 2));
      for (const SMALLEST of [0, 1])
        for (const LAST of [0, 1]) {
          const y = bench.allot(outer * inner * 4);
          bench.run('ARGMAX', {
            X: bench.floats(coarse),
            Y: y,
            YTYPE: abi.TYPE_I32,
            ...size,
            SMALLEST,
            LAST,
          });
          const want = Array.from({ length: outer * inner }, (_, j) => {
            const values = Array.from(
              { length },
              (_unused, l) =>
                coarse[(Math.floor(j / inner) * length + l) * inner + (j % inner)] ?? 0,
            );
            const best = SMALLEST ? Math.min(...values) : Math.max(...values);
            return LAST ? values.lastIndexOf(best) : values.indexOf(best);
          });
          assert.deepEqual(Array.from(bench.readIntegers(y, outer * inner)), want);
        }
    });
  }

  test(`${variant}: SOFTMAX of masked scores is 0 where they are -infinity`, async () => {
    const bench = await KernelBench.open(variant);
    const y = bench.allot(16);
    bench.run('SOFTMAX', {
      X: bench.floats([0, -Infinity, 0, -Infinity]),
      Y: y,
      OUTER: 1,
      LENGTH: 4,
      INNER: 1,
    });
    assert.deepEqual(Array.from(bench.readFloats(y, 4)), [0.5, 0, 0.5, 0]);
  });

  test(`${variant}: TOPK sorts, ties by lower index, both directions`, async () => {
    const bench = await KernelBench.open(variant);
    const x = noise(2 * 50, 4).map((v) => Math.round(v * 8));
    for (const SMALLEST of [0, 1]) {
      const [values, indices] = [bench.allot(2 * 7 * 4), bench.allot(2 * 7 * 8)];
      bench.run('TOPK', {
        X: bench.floats(x),
        ROWS: 2,
        N: 50,
        K: 7,
        VALUES: values,
        INDICES: indices,
        INDEXTYPE: abi.TYPE_I64,
        SMALLEST,
      });
      const want = [0, 1].flatMap((r) =>
        Array.from(x.subarray(r * 50, r * 50 + 50), (value, i) => ({ value, i }))
          .sort((p, q) => (SMALLEST ? p.value - q.value : q.value - p.value) || p.i - q.i)
          .slice(0, 7),
      );
      assert.deepEqual(
        Array.from(bench.readFloats(values, 14)),
        want.map(({ value }) => value),
      );
      const got = new BigInt64Array(bench.memory.buffer, indices, 14);
      assert.deepEqual(
        Array.from(got, Number),
        want.map(({ i }) => i),
      );
    }
  });

  for (const element of [1, 2, 4, 8])
    test(`${variant}: MOVE transposes rank 5 and reverses a slice, ${element}-byte elements`, async () => {
      const bench = await KernelBench.open(variant);
      const shape = [2, 3, 2, 4, 5];
      const order = [3, 0, 4, 2, 1];
      const count = 240;
      const x = bench.bytes(Array.from({ length: count * element }, (_, i) => (i * 37) & 255));
      const y = bench.allot(count * element);
      const strides = shape.map((_, d) => element * shape.slice(d + 1).reduce((a, v) => a * v, 1));
      const to = order.map((d) => shape[d] ?? 0);
      const toStrides = to.map((_, d) => element * to.slice(d + 1).reduce((a, v) => a * v, 1));
      const [D0 = 0, D1 = 0, D2 = 0, D3 = 0, D4 = 0, D5 = 0] = six(to, 1);
      const [XSTRIDE0 = 0, XSTRIDE1 = 0, XSTRIDE2 = 0, XSTRIDE3 = 0, XSTRIDE4 = 0, XSTRIDE5 = 0] =
        six(
          order.map((d) => strides[d] ?? 0),
          0,
        );
      const [YSTRIDE0 = 0, YSTRIDE1 = 0, YSTRIDE2 = 0, YSTRIDE3 = 0, YSTRIDE4 = 0, YSTRIDE5 = 0] =
        six(toStrides, 0);
      bench.run('MOVE', {
        X: x,
        Y: y,
        ELEMENT: element,
        D0,
        D1,
        D2,
        D3,
        D4,
        D5,
        XSTRIDE0,
        XSTRIDE1,
        XSTRIDE2,
        XSTRIDE3,
        XSTRIDE4,
        XSTRIDE5,
        YSTRIDE0,
        YSTRIDE1,
        YSTRIDE2,
        YSTRIDE3,
        YSTRIDE4,
        YSTRIDE5,
      });
      const memory = new Uint8Array(bench.memory.buffer);
      for (let i = 0; i < count; i++) {
        const at = coordinates(i, to);
        const from = order.reduce((a, d, j) => a + (at[j] ?? 0) * (strides[d] ?? 0), x);
        for (let byte = 0; byte < element; byte++)
          assert.equal(memory[y + i * element + byte], memory[from + byte]);
      }
      const one = { D0: 1, D1: 1, D2: 1, D3: 1, D4: 1 };
      bench.run('MOVE', {
        X: x + 9 * element,
        Y: y,
        ELEMENT: element,
        ...one,
        D5: 4,
        XSTRIDE5: -2 * element,
        YSTRIDE5: element,
      });
      for (let i = 0; i < 4; i++)
        assert.equal(memory[y + i * element], memory[x + (9 - 2 * i) * element]);
    });

  test(`${variant}: FILL writes every element size, GATHER clamps and counts from the end`, async () => {
    const bench = await KernelBench.open(variant);
    const y = bench.allot(64);
    bench.run('FILL', { Y: y, COUNT: 3, ELEMENT: 8, VALUE: 7, HIGH: 1 });
    assert.deepEqual(Array.from(new BigInt64Array(bench.memory.buffer, y, 4)), [
      4294967303n,
      4294967303n,
      4294967303n,
      0n,
    ]);
    bench.run('FILL', { Y: y, COUNT: 5, ELEMENT: 1, VALUE: 0x1ff });
    bench.run('FILL', { Y: y + 8, COUNT: 1, ELEMENT: 4, VALUE: floatBits(1.5) });
    bench.run('FILL', { Y: y + 16, COUNT: 1, ELEMENT: 2, VALUE: 0x12345 });
    const bytes = new Uint8Array(bench.memory.buffer, y, 24);
    assert.deepEqual(Array.from(bytes.slice(0, 6)), [255, 255, 255, 255, 255, 0]);
    assert.deepEqual(Array.from(bytes.slice(16, 21)), [0x45, 0x23, 0, 0, 1]);
    assert.equal(bench.readFloats(y + 8, 1)[0], 1.5);
    const x = noise(2 * 4 * 3, 1);
    bench.run('GATHER', {
      X: bench.floats(x),
      IDS: bench.integers([3, -1, 0, 99, -4]),
      IDTYPE: abi.TYPE_I32,
      Y: bench.allot(4),
      OUTER: 0,
      LENGTH: 4,
      INNER: 12,
      COUNT: 5,
    });
    const out = bench.allot(2 * 5 * 12);
    bench.run('GATHER', {
      X: bench.floats(x),
      IDS: bench.longs([3, -1, 0, 99, -4]),
      IDTYPE: abi.TYPE_I64,
      Y: out,
      OUTER: 2,
      LENGTH: 4,
      INNER: 12,
      COUNT: 5,
    });
    const want = [0, 1].flatMap((o) =>
      [3, 3, 0, 3, 0].flatMap((l) => Array.from(x.subarray((o * 4 + l) * 3, (o * 4 + l) * 3 + 3))),
    );
    close(bench.readFloats(out, 30), want, 0);
  });

  test(`${variant}: CONVERT between all types truncates, saturates and rounds`, async () => {
    const bench = await KernelBench.open(variant);
    const x = [1.75, -2.5, 300, -70000, 3e9, 0.1, 2 ** -20];
    const from = bench.floats(x);
    const y = bench.allot(128);
    const to = (TO: number, X = from, FROM = abi.TYPE_F32): void =>
      bench.run('CONVERT', { X, Y: y, COUNT: x.length, FROM, TO });
    to(abi.TYPE_I32);
    assert.deepEqual(Array.from(bench.readIntegers(y, 7)), [1, -2, 300, -70000, 2147483647, 0, 0]);
    to(abi.TYPE_I64);
    assert.deepEqual(Array.from(new BigInt64Array(bench.memory.buffer, y, 7)), [
      1n,
      -2n,
      300n,
      -70000n,
      3000000000n,
      0n,
      0n,
    ]);
    to(abi.TYPE_U8);
    assert.deepEqual(
      Array.from(new Uint8Array(bench.memory.buffer, y, 7)),
      [1, 0, 255, 0, 255, 0, 0],
    );
    to(abi.TYPE_I8);
    assert.deepEqual(
      Array.from(new Int8Array(bench.memory.buffer, y, 7)),
      [1, -2, 127, -128, 127, 0, 0],
    );
    to(abi.TYPE_F16);
    const halves = new Uint16Array(bench.memory.buffer, y, 7).slice();
    assert.deepEqual(
      Array.from(halves),
      [1.75, -2.5, 300, -65504, 65504, 0.1, 2 ** -20].map(floatToHalf),
    );
    to(abi.TYPE_F32, bench.halves(halves), abi.TYPE_F16);
    close(bench.readFloats(y, 3), [1.75, -2.5, 300], 0);
    to(abi.TYPE_F32, bench.longs([5, -6, 2 ** 40, 0, 1, 2, 3]), abi.TYPE_I64);
    close(bench.readFloats(y, 7), [5, -6, 2 ** 40, 0, 1, 2, 3], 0);
    to(abi.TYPE_I32, bench.longs([5, -6, 7, 0, 1, 2, 3]), abi.TYPE_I64);
    assert.deepEqual(Array.from(bench.readIntegers(y, 7)), [5, -6, 7, 0, 1, 2, 3]);
  });

  test(`${variant}: patch writes c + a*S + b*P + d*S*P`, async () => {
    const bench = await KernelBench.open(variant);
    const target = bench.integers([0, 0]);
    const table = bench.integers([target, 5, 3, -2, 1, target + 4, -1, 0, 0, 0]);
    const plan = new Int32Array(bench.memory.buffer, bench.plan, abi.PLAN_WORDS);
    plan[abi.PLAN_PATCHES] = 2;
    plan[abi.PLAN_PATCHTABLE] = table;
    bench.kernels.patch(bench.plan, 4, 10);
    assert.deepEqual(Array.from(bench.readIntegers(target, 2)), [5 + 12 - 20 + 40, -1]);
  });
}
