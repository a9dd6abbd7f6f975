/**
 * What a target is: plain data about an engine and the machines it runs on. No functions, no
 * inheritance; share with a spread of a small named constant. Every number names its source.
 */

/** A number with the place it comes from (a URL, or the command that measured it). */
export interface Sourced<T> {
  /** The value. */
  readonly value: T;
  /** Where it comes from. */
  readonly source: string;
}

/** The engine that runs a bundle. */
export type EngineId = 'wasm' | 'webgpu' | 'ort';

/** One step of a pipeline: a pass id, or a pass id with options. */
export type PipelineStep =
  | string
  | readonly [pass: string, options: Readonly<Record<string, unknown>>];

/** How an engine wants quantized weights spelt. */
export type QuantizedForm =
  /** Blocked `DequantizeLinear` in front of `MatMul`/`Gather`, folded to f32 when the session starts. */
  | 'dequantize-linear'
  /** `com.microsoft.MatMulNBits` and `GatherBlockQuantized`, computed from the packed weights. */
  | 'mat-mul-nbits'
  /** Fettle's own kernels: packed in the kernel's order, no ONNX spelling. */
  | 'native';

/** A device class and engine that bundles are compiled for. */
export interface Target {
  /** Name on the command line, = file name. */
  readonly id: string;
  /** One line for `fettle targets`. */
  readonly summary: string;
  /** Engine of the runtime. */
  readonly engine: EngineId;
  /** onnxruntime-web execution provider; only for engine `ort`. */
  readonly provider?: 'wasm' | 'webgpu';
  /** Where it runs. */
  readonly hosts: readonly ('node' | 'browser')[];
  /** What the host must have: 'simd', 'relaxed-simd', 'threads', 'webgpu', 'shader-f16', … */
  readonly features: readonly string[];
  /** Limits that compilation must respect. */
  readonly limits: {
    /** Bytes an app may use: weights, arena and state together. */
    readonly memoryBytes: Sourced<number>;
    /** Bytes of one buffer or one WebAssembly memory. */
    readonly bufferBytes: Sourced<number>;
    /** Newest ONNX opset the engine reads; only for engine `ort`. */
    readonly opset?: Sourced<number>;
  };
  /** Weight formats it runs, best first, without group: 'w4', 'w8', 'f16', 'f32'. */
  readonly weightFormats: readonly string[];
  /** Formats of the KV cache that can be asked for; absent: the model's own only. */
  readonly kvFormats?: readonly string[];
  /** Group sizes of quantized weights it runs. */
  readonly groupSizes: readonly number[];
  /** Threads that working memory is planned for; only for engine `wasm`. Default 1. */
  readonly threads?: number;
  /** How quantized weights are spelt. */
  readonly quantizedForm: QuantizedForm;
  /** Session options passed to onnxruntime-web; only for engine `ort`. */
  readonly sessionOptions?: Readonly<Record<string, unknown>>;
  /** Passes in order; `quantize-weights` and other recipe-driven passes stand where they belong. */
  readonly pipeline: readonly PipelineStep[];
}
