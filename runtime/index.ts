/**
 * Fettle's runtime: opens a bundle and runs it. Web APIs only; `fettle/runtime/node` adds folders.
 *
 * The engine a bundle needs is loaded on demand, and so is the tokenizer.
 */
import type { Engine, EngineId } from './engine.ts';
import type { EngineOptions } from './engines.ts';
import { loadEngine } from './engines.ts';
import { throwIfAborted } from './errors.ts';
import type { LoadOptions, LoadProgress } from './load.ts';
import { readListedFile, readManifest, readWeights } from './load.ts';
import type { Manifest } from './manifest.ts';
import type { HostMemory } from './measure.ts';
import type { TextModules } from './session.ts';
import { Session } from './session.ts';
import type { BundleSource, SourceLike } from './source.ts';
import { sourceFrom } from './source.ts';

/** Options of {@link openBundle}. */
export interface OpenOptions extends LoadOptions, EngineOptions {
  /** Another engine than the manifest names: an id, or an engine itself. */
  readonly engine?: EngineId | Engine;
  /** Packages for text, for pages that bring their own copies. */
  readonly text?: TextModules;
  /** Memory of the host process, for `measure()`; `fettle/runtime/node` passes it. */
  readonly hostMemory?: () => HostMemory;
}

/**
 * Opens a bundle.
 *
 * @param from - URL of a bundle folder (or of its manifest, or of a `.fettle` file), the bytes of a packed
 *   bundle as Blob or Uint8Array, or a {@link BundleSource}
 * @param options - progress, abort, verification (on by default), engine
 * @returns a session; the caller disposes it
 * @throws {@link FettleError} BUNDLE_CORRUPT when anything in the bundle is not as its manifest says, IO_FAILED
 *   when the source cannot be read, ENGINE_UNAVAILABLE when the host cannot run it, BUDGET_EXCEEDED when
 *   memory is short; the signal's reason when aborted
 *
 * @example
 * const session = await openBundle('/models/nib-ort-wasm/', { onProgress: ({ loadedBytes }) => show(loadedBytes) });
 * const { text } = await session.generate('Once upon a time').result();
 * await session.dispose();
 */
export async function openBundle(from: SourceLike, options: OpenOptions = {}): Promise<Session> {
  const startedMs = performance.now();
  throwIfAborted(options.signal);
  const source = await sourceFrom(from, options);
  const manifest = await readManifest(source, options);
  const engine =
    typeof options.engine === 'object'
      ? options.engine
      : await loadEngine(options.engine ?? manifest.engine, options);
  const program = await load(engine, source, manifest, options);
  // Later reads (tokenizer, canaries) are not part of the load and outlive its signal.
  const { verify = true, digest } = options;
  return new Session({
    manifest,
    program,
    readFile: (path) =>
      readListedFile(
        source,
        manifest,
        path,
        digest === undefined ? { verify } : { verify, digest },
      ),
    loadMs: performance.now() - startedMs,
    ...(options.text === undefined ? {} : { text: options.text }),
    ...(options.hostMemory === undefined ? {} : { hostMemory: options.hostMemory }),
  });
}

async function load(
  engine: Engine,
  source: BundleSource,
  manifest: Manifest,
  options: LoadOptions,
): Promise<Awaited<ReturnType<Awaited<ReturnType<Engine['open']>>['start']>>> {
  const { signal } = options;
  const graph = manifest.files.find((file) => file.path === manifest.program.file);
  const totalBytes = manifest.weights.bytes + (graph?.bytes ?? 0);
  let loadedBytes = 0;
  const report = (stage: LoadProgress['stage'], bytes = 0): void => {
    loadedBytes += bytes;
    options.onProgress?.({ stage, loadedBytes, totalBytes });
  };
  report('download');
  const loading = await engine.open({
    manifest,
    signal,
    async readFile(path) {
      const bytes = await readListedFile(source, manifest, path, options);
      if (path === manifest.program.file) report('download', bytes.length);
      return bytes;
    },
  });
  try {
    await readWeights(source, manifest, loading.weights, options, (bytes) =>
      report('download', bytes),
    );
    report('prepare');
    const program = await loading.start();
    if (signal?.aborted === true) {
      await program.dispose();
      throwIfAborted(signal);
    }
    report('ready');
    return program;
  } catch (error) {
    loading.dispose();
    throw error;
  }
}

export type { CanaryResult, CheckReport } from './canaries.ts';
export type {
  Engine,
  EngineContext,
  EngineId,
  Held,
  Loading,
  Program,
  ProgramMemory,
  RunResult,
  Sequence,
  StepTime,
} from './engine.ts';
export type { EngineOptions } from './engines.ts';
export type { ErrorCode, ErrorPlace, FettleErrorDetails } from './errors.ts';
export { FettleError } from './errors.ts';
export type { LoadOptions, LoadProgress } from './load.ts';
export type * from './manifest.ts';
export { BUNDLE_VERSION } from './manifest.ts';
export { parseManifest } from './bundle.ts';
export type { StartWorker, PoolWorker, WorkerTask } from './wasm/pool.ts';
export type { WasmOptions, WasmProgram } from './wasm/engine.ts';
export type { KernelVariant } from './wasm/module.ts';
export type { HostMemory, Measurement, MemoryBytes, MemorySource } from './measure.ts';
export type { OrtModule, OrtOptions, OrtProvider, OrtSession, OrtTensor } from './ort/module.ts';
export type { SessionParts, TextModules } from './session.ts';
export { Session } from './session.ts';
export type { BundleSource, ReadOptions, SourceLike } from './source.ts';
export { missingFile } from './source.ts';
export type { DType, DTypeInfo, Tensor, TensorData } from './tensor.ts';
export { bytesOf, tensor, zeros } from './tensor.ts';
export type { ChatMessage, JinjaModule } from './text/chat.ts';
export type {
  FinishReason,
  GeneratedToken,
  GenerateOptions,
  GenerationResult,
} from './text/generate.ts';
export { Generation } from './text/generate.ts';
export type { SamplingOptions } from './text/sampling.ts';
export type { TextTokenizer, TokenizersModule } from './text/tokenizer.ts';
