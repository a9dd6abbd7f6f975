/**
 * Kernel binaries: which there are, unpacking and instantiating them. A binary is loaded only when asked for.
 */
import { FettleError } from '../errors.ts';
import { ABI_VERSION } from './kernels/abi.ts';

/** Binaries of the kernels. */
export type KernelVariant = 'simd' | 'relaxed' | 'simd-threads' | 'relaxed-threads';

/** What a kernel module exports; addresses are bytes. */
export interface KernelExports {
  /** Version of the ABI it was built for. */
  abiVersion(): number;
  /** Writes the words of a plan that depend on tokens this call (S) and tokens before (P). */
  patch(plan: number, S: number, P: number): void;
  /** Runs steps from..to-1 on this thread as one of `threads`; returns `to`. */
  run(plan: number, from: number, to: number, thread: number, threads: number): number;
  /** Index of the largest of `count` f32 at `at`, the first among equals; NaN is never it. */
  largest(at: number, count: number): number;
}

/** What a module built with threads exports besides. */
export interface ThreadedKernelExports extends KernelExports {
  /** Runs steps from..to-1 together with `threads - 1` threads that are in `serve`; returns `to`. */
  launch(plan: number, from: number, to: number, threads: number): number;
  /**
   * Works as thread 1..threads-1 until `stop`; blocks, so only for a worker. `epoch` is 0 for a thread that
   * starts before the first launch.
   */
  serve(plan: number, thread: number, threads: number, epoch: number): void;
  /** Lets the thread that launches sleep while it waits; not for the main thread of a page. */
  allowSleep(plan: number): void;
  /** Makes every `serve` return. */
  stop(plan: number): void;
}

const loaders: Readonly<Record<string, () => Promise<{ readonly deflated: string }>>> = {
  simd: () => import('./generated/simd.ts'),
  relaxed: () => import('./generated/relaxed.ts'),
  'simd-threads': () => import('./generated/simd-threads.ts'),
  'relaxed-threads': () => import('./generated/relaxed-threads.ts'),
  'probe-relaxed': () => import('./generated/probe-relaxed.ts'),
  'limits-simd': () => import('./generated/limits-simd.ts'),
  'limits-relaxed': () => import('./generated/limits-relaxed.ts'),
};

/** Names of all generated binaries: the kernel variants, the probe and the limits. */
export type BinaryName = KernelVariant | 'probe-relaxed' | 'limits-simd' | 'limits-relaxed';

/** Bytes from a text: base64 of deflated bytes. */
export type Unpack = (text: string) => Uint8Array<ArrayBuffer> | Promise<Uint8Array<ArrayBuffer>>;

/**
 * The bytes of a generated binary.
 *
 * @param unpack - of hosts that have a better one
 * @throws {@link FettleError} ENGINE_UNAVAILABLE when the host cannot inflate
 */
export async function kernelBytes(
  name: BinaryName,
  unpack?: Unpack,
): Promise<Uint8Array<ArrayBuffer>> {
  const load = loaders[name];
  if (load === undefined) throw new RangeError(`There is no kernel binary "${name}".`);
  const { deflated } = await load();
  return unpackBinary(deflated, name, unpack);
}

/**
 * The bytes of a generated module: base64 of deflated bytes.
 *
 * @param name - what an error says could not be unpacked
 * @param unpack - of hosts that have a better one
 * @throws {@link FettleError} ENGINE_UNAVAILABLE when the host cannot inflate
 */
export async function unpackBinary(
  deflated: string,
  name: string,
  unpack: Unpack = unpackText,
): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return await unpack(deflated);
  } catch (cause) {
    throw new FettleError('ENGINE_UNAVAILABLE', 'The WASM kernels could not be unpacked.', {
      at: { kernels: name },
      fix: 'Use a browser of 2023 or later, or Node 20.19 or later.',
      cause,
    });
  }
}

/** Unpacks with what every host has. No iterator over characters: it leaves megabytes of garbage. */
async function unpackText(text: string): Promise<Uint8Array<ArrayBuffer>> {
  const characters = atob(text);
  const packed = new Uint8Array(characters.length);
  for (let i = 0; i < packed.length; i++) packed[i] = characters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate-raw'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Compiles a variant; the module can be posted to workers.
 *
 * @param unpack - of hosts that have a better one
 * @throws {@link FettleError} ENGINE_UNAVAILABLE when the host cannot compile it
 */
export async function compileKernels(
  variant: KernelVariant,
  unpack?: Unpack,
): Promise<WebAssembly.Module> {
  const bytes = await kernelBytes(variant, unpack);
  try {
    return await WebAssembly.compile(bytes);
  } catch (cause) {
    throw unavailable(variant, cause);
  }
}

/**
 * Instantiates a compiled variant on a memory. Variants with threads want a shared memory of at most 65536
 * pages, the others an unshared one.
 *
 * @throws {@link FettleError} ENGINE_UNAVAILABLE when module and memory do not fit
 */
export async function instantiateKernels<Exports extends KernelExports>(
  module: WebAssembly.Module,
  memory: WebAssembly.Memory,
): Promise<Exports> {
  let exports: Exports;
  try {
    const instance = await WebAssembly.instantiate(module, { env: { memory } });
    exports = instance.exports as unknown as Exports;
  } catch (cause) {
    throw unavailable('kernels', cause);
  }
  if (exports.abiVersion() !== ABI_VERSION)
    throw unavailable(`ABI ${exports.abiVersion()}`, undefined);
  return exports;
}

function unavailable(kernels: string, cause: unknown): FettleError {
  return new FettleError('ENGINE_UNAVAILABLE', `This host cannot run the WASM kernels.`, {
    at: { kernels },
    fix: 'Use an engine with WebAssembly SIMD, or compile for ort-wasm.',
    cause,
  });
}
