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

/** A shared memory with the network in it, and its threads beside this one's. */
async function crew(
  variant: KernelVariant,
  S: number,
  threads: number,
): Promise<{
  launch: (from: number, to: number) => number;
  start: () => Promise<void>;
  result: () => Float32Array;
  steps: number;
  stop: () => Promise<void>;
}> {
  const memory = new WebAssembly.Memory({ initial: 64, maximum: 65536, shared: true });
  const module = await compileKernels(variant);
  const kernels = await instantiateKernels<ThreadedKernelExports>(module, memory);
  const bench = new KernelBench(memory, kernels, threads);
  const { steps, result, count } = network(bench, S);
  const length = bench.write(steps);
  const workers: Worker[] = [];
  return {
    steps: length,
    launch: (from, to) => kernels.launch(bench.plan, from, to, threads),
    async start() {
      for (let thread = 1; thread < threads; thread++)
        workers.push(
          new Worker(new URL('../support/kernel-worker.mjs', import.meta.url), {
            workerData: { module, memory, plan: bench.plan, thread, threads },
            execArgv: [],
          }),
        );
      await Promise.all(workers.map((worker) => once(worker, 'message')));
    },
    result() {
      const got = bench.readFloats(result, count);
      new Float32Array(memory.buffer, result, count).fill(NaN);
      return got;
    },
    async stop() {
      kernels.stop(bench.plan);
      await Promise.all(workers.map((worker) => once(worker, 'exit')));
    },
  };
}

/** Long enough for threads to fall asleep. */
function pause(): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2);
}

// few tokens share the rows of matrices; many, and not a multiple of four, share the tokens
for (const variant of await hostVariants()) {
  const threaded = `${variant}-threads` as KernelVariant;
  for (const S of [1, 7, 101])
    for (const threads of [1, 2, 3])
      test(`${variant}: ${threads} threads give the bits of one for ${S} tokens, on every launch`, async () => {
        const want = await single(variant, S);
        assert.ok(
          want.every((v) => v > 0 && v <= 1),
          'the network computed something',
        );
        const { launch, start, result, steps, stop } = await crew(threaded, S, threads);
        await start();
        for (let i = 0; i < 20; i++) {
          assert.equal(launch(0, 2), 2);
          if (i % 5 === 0) pause();
          assert.equal(launch(2, steps), steps);
          assert.deepEqual(result(), want);
        }
        await stop();
      });

  test(`${variant}: one thread does all parts when the others have no core`, async () => {
    const want = await single(variant, 101);
    const { launch, result, steps } = await crew(threaded, 101, 3);
    for (let i = 0; i < 3; i++) {
      assert.equal(launch(0, steps), steps);
      assert.deepEqual(result(), want);
    }
  });

  test(`${variant}: threads may come in the middle of a launch`, async () => {
    const want = await single(variant, 7);
    const { launch, start, result, steps, stop } = await crew(threaded, 7, 3);
    let started = false;
    const starting = start().then(() => (started = true));
    for (let after = 0; after < 20; after += started ? 1 : 0) {
      for (let i = 0; i < 50; i++) {
        launch(0, steps);
        assert.deepEqual(result(), want);
      }
      // lets this thread's events in
      await new Promise(setImmediate);
    }
    await starting;
    await stop();
  });
}
