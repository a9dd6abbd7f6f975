import assert from 'node:assert/strict';
import test from 'node:test';
import { erf } from '../../compiler/ops/elementwise.ts';
import { gelu, sigmoid, softplus } from '../../compiler/ops/activation.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { floatBits } from '../../runtime/wasm/step.ts';
import { KernelBench, hostVariants } from '../support/kernels.ts';

/** Runs one instruction over values of a, b, c. */
function apply(
  bench: KernelBench,
  op: number,
  inputs: readonly Float32Array[],
  constants: readonly number[] = [],
): Float32Array {
  const count = inputs[0]?.length ?? 0;
  const loads = inputs.flatMap((_, i) => [abi.EX_LOAD, i, i, 0, 0]);
  const [b = 1, c = 2] = constants.map(floatBits);
  const code = bench.integers([...loads, op, 3, 0, b, c]);
  const y = bench.allot(count * 4);
  const step = new Int32Array(abi.EXPRESSION_FIRST + inputs.length * abi.EXPRESSION_INPUTWORDS);
  step[0] = abi.EXPRESSION;
  step[1] = step.length;
  step[abi.EXPRESSION_Y] = y;
  step[abi.EXPRESSION_CODE] = code;
  step[abi.EXPRESSION_CODELENGTH] = inputs.length + 1;
  step[abi.EXPRESSION_INPUTS] = inputs.length;
  step.fill(1, abi.EXPRESSION_D0, abi.EXPRESSION_D5);
  step[abi.EXPRESSION_D5] = count;
  inputs.forEach((values, i) => {
    const at = abi.EXPRESSION_FIRST + i * abi.EXPRESSION_INPUTWORDS;
    step[at] = bench.floats(values);
    step[at + 6] = 1;
  });
  bench.runWords([step]);
  return bench.readFloats(y, count);
}

function spread(low: number, high: number, count = 4001): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));
}

interface Function {
  readonly name: string;
  readonly op: number;
  readonly of: (x: number) => number;
  readonly x: Float32Array;
  /** Largest relative error. */
  readonly relative: number;
  /** Errors below this do not count: the function crosses 0, or f32 has no more digits there. */
  readonly absolute: number;
  readonly constants?: readonly number[];
}

const act = (kind: number): number => abi.EX_ACTIVATION + kind;
// f32 rounds at 6e-8; a function of few operations stays within a few of these
const functions: readonly Function[] = [
  {
    name: 'exp',
    op: abi.EX_EXP,
    of: Math.exp,
    x: spread(-87.3, 88.7),
    relative: 1.5e-7,
    absolute: 0,
  },
  {
    name: 'log',
    op: abi.EX_LOG,
    of: Math.log,
    x: spread(1e-6, 4),
    relative: 1.5e-7,
    absolute: 6e-8,
  },
  {
    name: 'log of large values',
    op: abi.EX_LOG,
    of: Math.log,
    x: spread(4, 3e38),
    relative: 1.5e-7,
    absolute: 0,
  },
  { name: 'erf', op: abi.EX_ERF, of: erf, x: spread(-5, 5), relative: 4e-7, absolute: 0 },
  // three-part reduction: absolute, because the function crosses 0 where the argument has few digits
  {
    name: 'sin',
    op: abi.EX_SIN,
    of: Math.sin,
    x: spread(-1000, 1000),
    relative: 0,
    absolute: 2e-7,
  },
  {
    name: 'cos',
    op: abi.EX_COS,
    of: Math.cos,
    x: spread(-1000, 1000),
    relative: 0,
    absolute: 2e-7,
  },
  {
    name: 'tanh',
    op: act(abi.ACT_TANH),
    of: Math.tanh,
    x: spread(-12, 12),
    relative: 2.5e-7,
    absolute: 0,
  },
  {
    name: 'sigmoid',
    op: act(abi.ACT_SIGMOID),
    of: sigmoid,
    x: spread(-80, 80),
    relative: 2.5e-7,
    absolute: 0,
  },
  {
    name: 'silu',
    op: act(abi.ACT_SILU),
    of: (x) => x * sigmoid(x),
    x: spread(-40, 40),
    relative: 4e-7,
    absolute: 0,
  },
  // 1 + erf cancels for negative x: absolute there
  {
    name: 'gelu',
    op: act(abi.ACT_GELU),
    of: gelu,
    x: spread(-8, 8),
    relative: 5e-7,
    absolute: 1e-6,
  },
  {
    name: 'gelu-tanh',
    op: act(abi.ACT_GELUTANH),
    of: (x) => gelu(x, true),
    x: spread(-8, 8),
    relative: 5e-7,
    absolute: 5e-7,
  },
  // the product 1.702 x is rounded, which the exponential magnifies by |x|
  {
    name: 'quick-gelu',
    op: act(abi.ACT_QUICKGELU),
    of: (x) => x * sigmoid(1.702 * x),
    x: spread(-20, 20),
    relative: 3e-6,
    absolute: 0,
  },
  {
    name: 'softplus',
    op: act(abi.ACT_SOFTPLUS),
    of: softplus,
    x: spread(-60, 60),
    relative: 4e-7,
    absolute: 0,
  },
  {
    name: 'mish',
    op: act(abi.ACT_MISH),
    of: (x) => x * Math.tanh(softplus(x)),
    x: spread(-30, 30),
    relative: 6e-7,
    absolute: 0,
  },
  {
    name: 'elu',
    op: act(abi.ACT_ELU),
    of: (x) => (x < 0 ? 0.5 * Math.expm1(x) : x),
    x: spread(-20, 20),
    relative: 6e-7,
    absolute: 0,
    constants: [0.5, 0],
  },
  {
    name: 'relu',
    op: act(abi.ACT_RELU),
    of: (x) => Math.max(x, 0),
    x: spread(-3, 3),
    relative: 0,
    absolute: 0,
  },
  {
    name: 'relu6',
    op: act(abi.ACT_RELU6),
    of: (x) => Math.min(Math.max(x, 0), 6),
    x: spread(-3, 9),
    relative: 0,
    absolute: 0,
  },
  {
    name: 'leaky-relu',
    op: act(abi.ACT_LEAKYRELU),
    of: (x) => (x < 0 ? 0.1 * x : x),
    x: spread(-3, 3),
    relative: 1.2e-7,
    absolute: 0,
    constants: [0.1, 0],
  },
  {
    name: 'clip',
    op: act(abi.ACT_CLIP),
    of: (x) => Math.min(Math.max(x, -0.5), 2),
    x: spread(-3, 3),
    relative: 0,
    absolute: 0,
    constants: [-0.5, 2],
  },
  {
    name: 'hard-sigmoid',
    op: act(abi.ACT_HARDSIGMOID),
    of: (x) => Math.min(Math.max(0.25 * x + 0.5, 0), 1),
    x: spread(-4, 4),
    relative: 1.2e-7,
    absolute: 0,
    constants: [0.25, 0.5],
  },
  {
    name: 'hard-swish',
    op: act(abi.ACT_HARDSWISH),
    of: (x) => x * Math.min(Math.max(x / 6 + 0.5, 0), 1),
    x: spread(-4, 4),
    relative: 3e-7,
    absolute: 2e-7,
  },
];

for (const variant of await hostVariants()) {
  for (const { name, op, of, x, relative, absolute, constants } of functions)
    test(`${variant}: ${name} keeps its stated error`, async () => {
      const got = apply(await KernelBench.open(variant), op, [x], constants);
      let worst = 0;
      let at = 0;
      x.forEach((v, i) => {
        const want = of(v);
        const error = Math.abs((got[i] ?? NaN) - want);
        const share = error / (relative * Math.abs(want) + absolute + 1e-45);
        if (!(share <= worst)) [worst, at] = [share, i];
      });
      assert.ok(
        worst <= 1,
        `at ${x[at]}: got ${got[at]}, want ${of(x[at] ?? 0)}, ${worst} of the bound`,
      );
    });

  test(`${variant}: functions end where f32 does`, async () => {
    const bench = await KernelBench.open(variant);
    const x = Float32Array.of(-Infinity, Infinity, NaN, 0, -0, -200, 200, 1e-30);
    const ends = (op: number): number[] => Array.from(apply(bench, op, [x]));
    assert.deepEqual(ends(abi.EX_EXP), [0, Infinity, NaN, 1, 1, 0, Infinity, 1]);
    assert.deepEqual(ends(abi.EX_LOG).slice(0, 6), [NaN, Infinity, NaN, -Infinity, -Infinity, NaN]);
    assert.deepEqual(ends(abi.EX_ERF).slice(0, 7), [-1, 1, NaN, 0, -0, -1, 1]);
    assert.deepEqual(ends(act(abi.ACT_TANH)).slice(0, 7), [-1, 1, NaN, 0, -0, -1, 1]);
    assert.deepEqual(ends(act(abi.ACT_SIGMOID)).slice(0, 7), [0, 1, NaN, 0.5, 0.5, 0, 1]);
  });

  test(`${variant}: binary and logical instructions follow ONNX`, async () => {
    const bench = await KernelBench.open(variant);
    const a = Float32Array.of(5.5, -5.5, 2, 0, 3, -1, NaN, 7);
    const b = Float32Array.of(2, 2, 2, 1, -4, -1, 1, 0.5);
    const cases: [number, (x: number, y: number) => number][] = [
      [abi.EX_ADD, (x, y) => x + y],
      [abi.EX_SUB, (x, y) => x - y],
      [abi.EX_MUL, (x, y) => x * y],
      [abi.EX_DIV, (x, y) => x / y],
      [abi.EX_MIN, (x, y) => Math.min(x, y)],
      [abi.EX_MAX, (x, y) => Math.max(x, y)],
      [abi.EX_LESS, (x, y) => Number(x < y)],
      [abi.EX_LESSEQUAL, (x, y) => Number(x <= y)],
      [abi.EX_EQUAL, (x, y) => Number(x === y)],
      [abi.EX_AND, (x, y) => Number(x !== 0 && y !== 0)],
      [abi.EX_OR, (x, y) => Number(x !== 0 || y !== 0)],
      [abi.EX_MOD, (x, y) => x % y],
    ];
    for (const [op, of] of cases) {
      const want = Array.from(a, (x, i) => Math.fround(of(x, b[i] ?? 0)) + 0);
      assert.deepEqual(
        Array.from(apply(bench, op, [a, b]), (v) => v + 0),
        want,
        `op ${op}`,
      );
    }
    const where = apply(bench, abi.EX_WHERE, [
      Float32Array.of(1, 0, 0, 2),
      a.slice(0, 4),
      b.slice(0, 4),
    ]);
    assert.deepEqual(Array.from(where), [5.5, 2, 2, 0]);
  });

  test(`${variant}: pow is exact for small whole exponents and 1e-5 close otherwise`, async () => {
    const bench = await KernelBench.open(variant);
    const a = Float32Array.of(3, -3, 0.5, 10, 2, -2, 0, 1.5);
    const powers = (b: number): number[] =>
      Array.from(apply(bench, abi.EX_POW, [a, new Float32Array(8).fill(b)]));
    for (const b of [2, 1, 3, -1])
      assert.deepEqual(
        powers(b),
        Array.from(a, (x) => Math.fround(x ** b)),
      );
    for (const b of [5, 2.5, -3, 0.3])
      powers(b).forEach((got, i) => {
        const want = (a[i] ?? 0) ** b;
        if (Number.isFinite(want))
          assert.ok(Math.abs(got - want) <= 1e-5 * Math.abs(want) + 1e-30, `${a[i]}^${b}: ${got}`);
        else assert.equal(got, want, `${a[i]}^${b}`);
      });
  });
}
