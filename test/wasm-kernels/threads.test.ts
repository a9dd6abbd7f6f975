import assert from 'node:assert/strict';
import { once } from 'node:events';
import test from 'node:test';
import { Worker } from 'node:worker_threads';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { KernelVariant, ThreadedKernelExports } from '../../runtime/wasm/module.ts';
import { compileKernels, instantiateKernels } from '../../runtime/wasm/module.ts';
import { floatBits } from '../../runtime/wasm/step.ts';
import { KernelBench, hostVariants, noise, packMatrix, stepOf } from '../support/kernels.ts';

/** A small network over S tokens; returns its steps and its result's place. */
function network(
  bench: KernelBench,
  S: number,
): { steps: Int32Array[]; result: number; count: number } {
  const [K, N] = [64, 40];
  const x = bench.floats(noise(S * K, 1));
  const h = bench.allot(S * K * 4);
  const record = bench.allot(S * (3 * K + 32));
  const y = bench.allot(S * N * 4);
  const a = bench.allot(S * N * 4);
  const result = bench.allot(S * N * 4);
  const codes = Uint8Array.from(noise(N * K, 2), (v) => Math.floor((v + 1) * 8));
  const scales = new Uint16Array(N * 2).fill(0x2800);
  const matrix = { format: 'W4', N, K, block: 32, groupBlocks: 1, codes, scales } as const;
  return {
    result,
    count: S * N,
    steps: [
      stepOf('NORM', {
        X: x,
        XROW: K * 4,
        Y: h,
        YROW: K * 4,
        ROWS: S,
        HEADS: 1,
        N: K,
        EPSILON: floatBits(1e-5),
      }),
      stepOf('QUANTIZE', { X: h, XROW: K * 4, Y: record, ROWS: S, K, BLOCK: 32, FORMS: 3 }),
      stepOf('LINEAR', {
        X: record,
        Y: y,
        YROW: N * 4,
        ROWS: S,
        K,
        N,
        FORMAT: abi.W4,
        BLOCK: 32,
        GROUPBLOCKS: 1,
        W: bench.bytes(packMatrix(matrix)),
        ACTIVATION: abi.ACT_GELU,
      }),
      stepOf('ATTENTION', {
        Q: y,
        QTOKEN: N * 4,
        K: y,
        KTOKEN: N * 4,
        KHEAD: 32,
        V: y,
        VTOKEN: N * 4,
        VHEAD: 32,
        Y: a,
        YTOKEN: N * 4,
        BATCH: 1,
        QUERIES: S,
        KEYS: S,
        HEADS: 5,
        KVHEADS: 5,
        SIZE: 8,
        VSIZE: 8,
        SCALE: floatBits(0.3),
        CAUSAL: 1,
      }),
      stepOf('SOFTMAX', { X: a, Y: result, OUTER: S, LENGTH: N, INNER: 1 }),
    ],
  };
}

async function single(variant: KernelVariant, S: number): Promise<Float32Array> {
  const bench = await KernelBench.open(variant);
  const { steps, result, count } = network(bench, S);
  bench.runWords(steps);
  return bench.readFloats(result, count);
}

async function together(
  variant: KernelVariant,
  S: number,
  threads: number,
  repetitions: number,
): Promise<Float32Array[]> {
  const memory = new WebAssembly.Memory({ initial: 64, maximum: 65536, shared: true });
  const module = await compileKernels(variant);
  const kernels = await instantiateKernels<ThreadedKernelExports>(module, memory);
  const bench = new KernelBench(memory, kernels, threads);
  const { steps, result, count } = network(bench, S);
  const length = bench.write(steps);
  const workers = Array.from(
    { length: threads - 1 },
    (_, i) =>
      new Worker(new URL('../support/kernel-worker.mjs', import.meta.url), {
        workerData: { module, memory, plan: bench.plan, thread: i + 1, threads },
        execArgv: [],
      }),
  );
  await Promise.all(workers.map((worker) => once(worker, 'message')));
  const results = Array.from({ length: repetitions }, () => {
    new Float32Array(memory.buffer, result, count).fill(NaN);
    assert.equal(kernels.launch(bench.plan, 0, 2, threads), 2);
    assert.equal(kernels.launch(bench.plan, 2, length, threads), length);
    return bench.readFloats(result, count);
  });
  kernels.stop(bench.plan);
  await Promise.all(workers.map((worker) => once(worker, 'exit')));
  return results;
}

// few tokens share the rows of matrices; many, and not a multiple of four, share the tokens
for (const variant of await hostVariants())
  for (const S of [7, 101])
    for (const threads of [1, 2, 3])
      test(`${variant}: ${threads} threads give the bits of one for ${S} tokens, on every launch`, async () => {
        const want = await single(variant, S);
        assert.ok(
          want.every((v) => v > 0 && v < 1),
          'the network computed something',
        );
        const threaded = `${variant}-threads` as KernelVariant;
        for (const got of await together(threaded, S, threads, 20)) assert.deepEqual(got, want);
      });
