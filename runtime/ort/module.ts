/**
 * The part of onnxruntime-web's API that the engine uses, as our own types, and how the package is
 * found. Only this file names the package, and only when a bundle asks for it.
 */

/** A tensor of onnxruntime-web. */
export interface OrtTensor {
  /** `float32`, `int64`, … */
  readonly type: string;
  /** Dimensions. */
  readonly dims: readonly number[];
  /** `cpu`, `gpu-buffer`, … */
  readonly location: string;
  /** The elements, downloaded when they are elsewhere. */
  getData(releaseData?: boolean): Promise<unknown>;
  /** Releases the data. */
  dispose(): void;
}

/** A session of onnxruntime-web. */
export interface OrtSession {
  /** One call of the model. */
  run(feeds: Readonly<Record<string, OrtTensor>>): Promise<Readonly<Record<string, OrtTensor>>>;
  /** Releases the session. */
  release(): Promise<void>;
}

/** onnxruntime-web, any of its entry points. */
export interface OrtModule {
  /** Makes sessions. */
  readonly InferenceSession: {
    create(model: Uint8Array, options: Readonly<Record<string, unknown>>): Promise<OrtSession>;
  };
  /** Makes tensors on the CPU. */
  readonly Tensor: new (type: string, data: unknown, dims: readonly number[]) => OrtTensor;
  /** Settings of the whole module. */
  readonly env: {
    readonly wasm: { numThreads?: number; wasmPaths?: unknown };
    readonly webgpu?: unknown;
  };
}

/** Where the engine runs. */
export type OrtProvider = 'wasm' | 'webgpu';

/** Options of engine `ort`. `wasmPaths` and `threads` are global to an onnxruntime-web module. */
export interface OrtOptions {
  /** The module, or how to get it, for bundlers and pages. Default: its `/wasm` or `/webgpu` entry. */
  readonly module?: OrtModule | ((provider: OrtProvider) => Promise<unknown>);
  /** URL prefix (or `{ mjs, wasm }`) of onnxruntime-web's binaries. Default: beside its script. */
  readonly wasmPaths?: string | { readonly mjs?: string; readonly wasm?: string };
  /** WebAssembly threads; needs cross-origin isolation. Default: onnxruntime-web's choice. */
  readonly threads?: number;
  /** Overrides the provider the bundle was compiled for; slower forms may result. */
  readonly provider?: OrtProvider;
}

/** Gets the module and applies the global options. */
export async function loadOrt(options: OrtOptions, provider: OrtProvider): Promise<OrtModule> {
  const { module } = options;
  const ort =
    module !== undefined && typeof module !== 'function'
      ? module
      : ((await (module ?? importEntry)(provider)) as OrtModule);
  if (options.wasmPaths !== undefined) ort.env.wasm.wasmPaths = options.wasmPaths;
  if (options.threads !== undefined) ort.env.wasm.numThreads = options.threads;
  return ort;
}

/** The default entry has the old WebGPU kernels and is never used (DESIGN section 4). */
function importEntry(provider: OrtProvider): Promise<unknown> {
  return provider === 'webgpu' ? import('onnxruntime-web/webgpu') : import('onnxruntime-web/wasm');
}
