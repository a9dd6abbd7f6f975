/**
 * What this host can do at most on one thread, measured with the probe kernels of the WASM engine
 * (runtime/wasm/kernels/limits.ts): a benchmark's figures then read as fractions of it. Runs in Node and
 * in a page.
 */
import { kernelBytes } from '../../runtime/wasm/module.ts';
import { probeKernels } from '../../runtime/wasm/probe.ts';
import type { Limits } from './bench-row.ts';

/** Larger than any cache of the machines we know, so that reads come from memory. */
const READ_BYTES = 192 * 2 ** 20;
/** How long each probe repeats; engines finish compiling in the first part of it. */
const PROBE_MS = 250;
/** One call of a compute probe lasts about as long as a time slice can be trusted. */
const CALL_MS = 4;

/** Exports of the probe kernels; what one call computes is stated there. */
interface LimitExports {
  read(at: number, count: number): number;
  dotProducts(count: number): number;
  pairProducts(count: number): number;
  multiplyAdds(count: number): number;
}

/**
 * Measures the limits of one thread. Takes about a second and 200 MB.
 *
 * @throws FettleError ENGINE_UNAVAILABLE when the host has no WebAssembly SIMD
 */
export async function measureLimits(): Promise<Limits> {
  const { relaxed } = await probeKernels();
  const memory = new WebAssembly.Memory({ initial: 1 + READ_BYTES / 65536 });
  const bytes = await kernelBytes(relaxed ? 'limits-relaxed' : 'limits-simd');
  const { instance } = await WebAssembly.instantiate(bytes, { env: { memory } });
  const kernels = instance.exports as unknown as LimitExports;
  // pages never written are all one page of zeros, which a cache holds
  new Uint8Array(memory.buffer).fill(1);
  const perDot = relaxed ? 8 * 16 : 8 * 8;
  const read = await bestRate(() => kernels.read(65536, READ_BYTES), READ_BYTES);
  const dot = await bestCompute((count) => kernels.dotProducts(count), perDot);
  const pair = await bestCompute((count) => kernels.pairProducts(count), perDot);
  const fma = await bestCompute((count) => kernels.multiplyAdds(count), 10 * 4 * 2);
  return { readGBps: read / 1e9, dotGMACps: Math.max(dot, pair) / 1e9, fmaGFLOPps: fma / 1e9 };
}

/** Best rate of a kernel that takes a count, called with a count that lasts {@link CALL_MS}. */
async function bestCompute(kernel: (count: number) => number, perCount: number): Promise<number> {
  let count = 1 << 12;
  for (let ms = 0; ms < CALL_MS; count *= 2) {
    const startMs = performance.now();
    kernel(count);
    ms = performance.now() - startMs;
  }
  return bestRate(() => kernel(count), count * perCount);
}

/** Most work per second of any call; between calls a compiler thread may swap in better code. */
async function bestRate(call: () => number, work: number): Promise<number> {
  const endMs = performance.now() + PROBE_MS;
  let best = 0;
  do {
    const startMs = performance.now();
    call();
    best = Math.max(best, (work * 1000) / (performance.now() - startMs));
    await new Promise((resolve) => setTimeout(resolve));
  } while (performance.now() < endMs);
  return best;
}
