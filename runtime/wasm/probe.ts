/**
 * Which kernel binary this host can run, found by running instructions, never by asking: Node 20 accepts
 * relaxed SIMD behind its flag and computes it wrongly.
 */
import type { KernelVariant, Unpack } from './module.ts';
import { kernelBytes } from './module.ts';

/** What a host can do. */
export interface KernelFeatures {
  /** SIMD128 compiles here; nothing runs without. */
  readonly simd: boolean;
  /** Relaxed SIMD gives the results the kernels rely on. */
  readonly relaxed: boolean;
  /** Memory can be shared between threads. */
  readonly threads: boolean;
  /** Why `relaxed` or `threads` is false, a sentence each. */
  readonly reasons: readonly string[];
}

/** Calls of the probe: enough that engines with two compilers have used both. */
const probeCalls = 2000;

/**
 * Finds out what this host can run. Takes a few milliseconds.
 *
 * @param unpack - of hosts that have a better one
 */
export async function probeKernels(unpack?: Unpack): Promise<KernelFeatures> {
  const reasons: string[] = [];
  const simd = WebAssembly.validate(simdModule);
  const relaxed = await probeRelaxed(reasons, unpack);
  const threads = probeThreads(reasons);
  return { simd, relaxed, threads, reasons };
}

/** The best binary for these features. */
export function chooseVariant(features: KernelFeatures, threads: number): KernelVariant {
  const kind = features.relaxed ? 'relaxed' : 'simd';
  return threads > 1 && features.threads ? `${kind}-threads` : kind;
}

async function probeRelaxed(reasons: string[], unpack: Unpack | undefined): Promise<boolean> {
  try {
    const memory = new WebAssembly.Memory({ initial: 1 });
    const bytes = await kernelBytes('probe-relaxed', unpack);
    const { instance } = await WebAssembly.instantiate(bytes, { env: { memory } });
    const probe = instance.exports['probe'] as (scratch: number) => number;
    for (let call = 0; call < probeCalls; call++) {
      const wrong = probe(1024);
      if (wrong === 0) continue;
      reasons.push(`Relaxed SIMD computes wrong results here (mask ${wrong}).`);
      return false;
    }
    return true;
  } catch (cause) {
    reasons.push(`Relaxed SIMD does not compile here (${(cause as Error).message.slice(0, 80)}).`);
    return false;
  }
}

function probeThreads(reasons: string[]): boolean {
  try {
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
    if (memory.buffer instanceof SharedArrayBuffer) return true;
  } catch {
    // falls through: no shared memory, or no SharedArrayBuffer without cross-origin isolation
  }
  reasons.push('Memory cannot be shared between threads here (COOP and COEP headers?).');
  return false;
}

/** (module (func (result v128) (v128.const i32x4 0 0 0 0))) */
const simdModule: Uint8Array<ArrayBuffer> = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 22, 1, 20, 0, 253, 12, 0, 0,
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11,
]);
