/**
 * Running single WASM kernels in tests: a memory, arrays in and out, steps. `hostVariants` are the
 * binaries this Node can run: simd on Node 20; Node 22 adds relaxed (test/wasm-kernels/relaxed.test.ts
 * runs the whole folder there).
 */
import assert from 'node:assert/strict';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { KernelExports, KernelVariant } from '../../runtime/wasm/module.ts';
import { compileKernels, instantiateKernels } from '../../runtime/wasm/module.ts';
import { probeKernels } from '../../runtime/wasm/probe.ts';
import type { KernelName, ParameterName } from '../../runtime/wasm/step.ts';
import { encodeStep } from '../../runtime/wasm/step.ts';

/** Binaries without threads that this host runs. */
export async function hostVariants(): Promise<KernelVariant[]> {
  return (await probeKernels()).relaxed ? ['simd', 'relaxed'] : ['simd'];
}

type Numbers = ArrayLike<number>;

/** Kernels on a memory of their own. */
export class KernelBench {
  readonly memory: WebAssembly.Memory;
  readonly kernels: KernelExports;
  readonly plan: number;
  private top = abi.RESERVED_BYTES;

  constructor(memory: WebAssembly.Memory, kernels: KernelExports, threads = 1) {
    this.memory = memory;
    this.kernels = kernels;
    this.plan = this.allot(65536);
    const words = new Int32Array(memory.buffer, this.plan, abi.PLAN_WORDS);
    words[abi.PLAN_VERSION] = abi.ABI_VERSION;
    words[abi.PLAN_TABLE] = this.plan + 64;
    words[abi.PLAN_SCRATCH] = this.allot(abi.SCRATCH_BYTES * threads);
    words[abi.PLAN_CONTROL] = this.allot(abi.CONTROL_BYTES);
  }

  static async open(variant: KernelVariant, pages = 64): Promise<KernelBench> {
    const memory = new WebAssembly.Memory({ initial: pages });
    return new KernelBench(memory, await instantiateKernels(await compileKernels(variant), memory));
  }

  allot(bytes: number): number {
    const at = this.top;
    this.top = (at + bytes + 63) & ~63;
    if (this.top > this.memory.buffer.byteLength) throw new Error('The test memory is too small.');
    return at;
  }

  /** Copies f32 values in; NaN fills `extra` elements behind them, to catch reads past the end. */
  floats(values: Numbers): number {
    const at = this.allot(values.length * 4 + 64);
    new Float32Array(this.memory.buffer, at, values.length + 16).fill(NaN).set(values);
    return at;
  }

  integers(values: Numbers): number {
    const at = this.allot(values.length * 4);
    new Int32Array(this.memory.buffer, at, values.length).set(values);
    return at;
  }

  longs(values: Numbers): number {
    const at = this.allot(values.length * 8);
    new BigInt64Array(this.memory.buffer, at, values.length).set(Array.from(values, BigInt));
    return at;
  }

  bytes(values: Numbers): number {
    const at = this.allot(values.length);
    new Uint8Array(this.memory.buffer, at, values.length).set(values);
    return at;
  }

  halves(values: Uint16Array): number {
    const at = this.allot(values.byteLength + 64);
    new Uint16Array(this.memory.buffer, at, values.length).set(values);
    return at;
  }

  readFloats(at: number, count: number): Float32Array {
    return new Float32Array(this.memory.buffer, at, count).slice();
  }

  readIntegers(at: number, count: number): Int32Array {
    return new Int32Array(this.memory.buffer, at, count).slice();
  }

  /** Writes steps as the plan and returns their number. */
  write(steps: readonly Int32Array[]): number {
    const words = new Int32Array(this.memory.buffer);
    const table = this.plan + 64;
    let at = table + steps.length * 4;
    words[(this.plan >> 2) + abi.PLAN_STEPS] = steps.length;
    steps.forEach((step, i) => {
      words[(table >> 2) + i] = at;
      words.set(step, at >> 2);
      at += step.byteLength;
    });
    return steps.length;
  }

  /** Runs one step; parameters that are not given are 0. */
  run<Kernel extends KernelName>(
    kernel: Kernel,
    parameters: Partial<Record<ParameterName<Kernel>, number>>,
  ): void {
    this.runWords([stepOf(kernel, parameters)]);
  }

  runWords(steps: readonly Int32Array[]): void {
    this.kernels.run(this.plan, 0, this.write(steps), 0, 1);
  }
}

/** A step whose parameters that are not given are 0. */
export function stepOf<Kernel extends KernelName>(
  kernel: Kernel,
  parameters: Partial<Record<ParameterName<Kernel>, number>>,
): Int32Array {
  return encodeStep(kernel, parameters as Readonly<Record<ParameterName<Kernel>, number>>);
}

/** Seeded numbers in -1..1. */
export function noise(count: number, seed = 1): Float32Array {
  let state = seed * 2654435761;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return (state >> 8) / 2 ** 23;
  });
}

/** Weight formats with integer codes. */
export type IntegerFormat = 'W8' | 'W4' | 'W3' | 'W2' | 'C4';

/** The number that abi.ts gives a format. */
export const formatId: Readonly<Record<IntegerFormat | 'F32' | 'F16', number>> = {
  W8: abi.W8,
  W4: abi.W4,
  W3: abi.W3,
  W2: abi.W2,
  C4: abi.C4,
  F32: abi.F32,
  F16: abi.F16,
};

/** Bits of a code. */
export const formatBits: Readonly<Record<IntegerFormat, number>> = {
  W8: 8,
  W4: 4,
  W3: 3,
  W2: 2,
  C4: 4,
};

/** A matrix of codes; scales are f16 bits and zeros bytes, [N, groups] each. */
export interface CodeMatrix {
  readonly format: IntegerFormat;
  readonly N: number;
  readonly K: number;
  readonly block: number;
  readonly groupBlocks: number;
  readonly codes: Numbers;
  readonly scales: Numbers;
  readonly zeros?: Numbers | undefined;
}

/** Packs a matrix into the layout that abi.ts states. */
export function packMatrix(matrix: CodeMatrix): Uint8Array {
  const { format, N, K, block, groupBlocks, codes, scales, zeros } = matrix;
  const blocks = Math.ceil(K / block);
  const groups = Math.ceil(blocks / groupBlocks);
  const head = zeros === undefined ? 32 : 48;
  const blockBytes = 2 * block * formatBits[format];
  const tileBytes = groups * head + blocks * blockBytes;
  const packed = new Uint8Array(Math.ceil(N / 16) * tileBytes);
  const view = new DataView(packed.buffer);
  for (let n = 0; n < N; n++) {
    const r = n & 15;
    const tile = (n >> 4) * tileBytes;
    for (let g = 0; g < groups; g++) {
      const at = tile + g * (head + groupBlocks * blockBytes);
      view.setUint16(at + r * 2, scales[n * groups + g] ?? 0, true);
      if (zeros !== undefined) packed[at + 32 + r] = zeros[n * groups + g] ?? 0;
    }
    for (let k = 0; k < K; k++) {
      const code = codes[n * K + k] ?? 0;
      const kb = k % block;
      const b = Math.floor(k / block);
      const lane = (r >> 2) * 16 + (r & 3) * 4 + (kb & 3);
      const at = tile + (Math.floor(b / groupBlocks) + 1) * head + b * blockBytes;
      const put = (offset: number, shift: number, value: number): void => {
        packed[at + offset + lane] = (packed[at + offset + lane] ?? 0) | (value << shift);
      };
      if (format === 'W8') put((kb >> 2) * 64, 0, code);
      else if (format === 'W4' || format === 'C4') put((kb >> 3) * 64, 4 * ((kb >> 2) & 1), code);
      else put((kb >> 4) * 64, 2 * ((kb >> 2) & 3), code & 3);
      if (format === 'W3') put(128, kb >> 2, code >> 2);
    }
  }
  return packed;
}

/** Fails at the first element further than `bound` from what it should be. */
export function close(got: ArrayLike<number>, want: ArrayLike<number>, bound: number): void {
  assert.equal(got.length, want.length);
  for (let i = 0; i < want.length; i++) {
    const error = Math.abs((got[i] ?? NaN) - (want[i] ?? 0));
    assert.ok(error <= bound, `element ${i}: got ${got[i]}, want ${want[i]}`);
  }
}

/** Sum of numbers. */
export const sum = (values: readonly number[]): number => values.reduce((a, v) => a + v, 0);

/** Coordinates of element `i` of a shape. */
export function coordinates(i: number, shape: readonly number[]): number[] {
  return shape.reduceRight<number[]>((at, size) => {
    at.unshift(i % size);
    i = Math.floor(i / size);
    return at;
  }, []);
}
