/**
 * The bundle manifest: types only. `bundle.ts` reads and checks it, the compiler's `emit/` writes it,
 * `docs/bundle.md` specifies it. Sorted keys, no dates, no timings, no absolute paths: the same input,
 * recipe and version give the same bytes.
 */
import type { DType } from './tensor.ts';

/** Version of the bundle format this runtime reads. */
export const BUNDLE_VERSION = 1;

/** A size: a number, or the name of / expression over named sizes (`past + sequence`). */
export type DimSpec = number | string;

/** An input or output of the model. */
export interface TensorSpec {
  /** Name in the graph. */
  readonly name: string;
  /** Element type. */
  readonly dtype: DType;
  /** Sizes, known or named. */
  readonly shape: readonly DimSpec[];
}

/** A file of the bundle. Paths are relative, use `/` and never leave the folder. */
export interface FileSpec {
  /** Place in the bundle. */
  readonly path: string;
  /** Size of the file. */
  readonly bytes: number;
  /** Lower-case hex. */
  readonly sha256: string;
}

/** A tensor in the concatenation of all weight files. */
export interface WeightSpec {
  /** Name of the initializer. */
  readonly name: string;
  /** Storage dtype of the bytes. */
  readonly dtype: DType;
  /** Dimensions. */
  readonly shape: readonly number[];
  /** Byte offset in the concatenation of `weights.files`; a multiple of 256. */
  readonly offset: number;
  /** Size in storage. */
  readonly bytes: number;
  /** Number format when the tensor is (part of) a quantized weight: `w4g32`, `f16`, … */
  readonly format?: string;
}

/** One past/present pair of a decoder. */
export interface StateSpec {
  /** Graph input fed with the cache. */
  readonly input: string;
  /** Graph output holding the cache after the call. */
  readonly output: string;
  /** Element type of the cache. */
  readonly dtype: DType;
  /** Sizes with one axis that grows by the tokens of a call. */
  readonly shape: readonly DimSpec[];
  /** Axis that grows. */
  readonly axis: number;
}

/** How a decoder is driven. Written by the compiler from what it recognised; never guessed at run time. */
export interface DecoderSpec {
  /** Input of token ids, [batch, sequence]. */
  readonly ids: string;
  /** Input of the attention mask over past and present tokens, [batch, past + sequence], when there is one. */
  readonly mask?: string;
  /** Input of positions, [batch, sequence], when there is one. */
  readonly positions?: string;
  /** Other inputs whose value follows from the bookkeeping alone, and how. */
  readonly flags?: readonly {
    readonly input: string;
    /** See the decoder table in docs/bundle.md; every element of the input is set to it. */
    readonly value:
      | 'use-cache'
      | 'sequence-length'
      | 'total-length'
      | 'past-length'
      | 'last-position';
  }[];
  /** Output of next-token logits, [batch, sequence, vocabulary] or [batch, 1, vocabulary]. */
  readonly logits: string;
  /** Number of token ids. */
  readonly vocabulary: number;
  /** Most tokens, past and present together. */
  readonly contextLength: number;
  /** The KV cache; empty when the graph keeps none. */
  readonly state: readonly StateSpec[];
  /** Ids that end a generation. */
  readonly endIds: readonly number[];
  /** Id put in front of a prompt, when the tokenizer does not. */
  readonly startId?: number;
}

/** Text files that make a decoder usable with strings. */
export interface TextSpec {
  /** Path of `tokenizer.json`. */
  readonly tokenizer: string;
  /** Path of `tokenizer_config.json`. */
  readonly tokenizerConfig?: string;
  /** The chat template itself (Jinja source, not a path), when the model has one. */
  readonly chatTemplate?: string;
  /** Sampling defaults of the model under their Hugging Face names; see docs/bundle.md. */
  readonly generation?: Readonly<Record<string, number | boolean>>;
}

/** An onnxruntime-web program: the graph without weights. */
export interface OnnxProgram {
  /** Tells programs apart. */
  readonly kind: 'onnx';
  /** Path of the graph; its weights are external data at offsets of the weight concatenation. */
  readonly file: string;
  /** Name of the external data file the graph refers to. */
  readonly externalData: string;
  /** Execution provider the graph was written for. */
  readonly provider: 'wasm' | 'webgpu';
  /** For `InferenceSession.create`; its `executionProviders` and `externalData` are ours to set. */
  readonly sessionOptions: Readonly<Record<string, unknown>>;
}

/** A program of Fettle's own engines: a memory plan and the steps in it. */
export interface PlanProgram {
  /** Tells programs apart. */
  readonly kind: 'plan';
  /** Path of the plan, see `runtime/plan.ts`. */
  readonly file: string;
}

/** Bytes a session needs, by class; sizes at batch 1 and the stated context. */
export interface MemorySpec {
  /** Weights as the engine holds them, unpacked where it unpacks. */
  readonly weights: number;
  /** Activations. An estimate for engine `ort`, exact for planned engines. */
  readonly arena: number;
  /** KV cache and other state at `tokens`. */
  readonly state: number;
  /** Everything else in the engine's memory: steps, working memory of threads. Planned engines only. */
  readonly stack?: number;
  /** The engine's code and the heap around it, as measured, whatever the model. Planned engines only. */
  readonly engine?: number;
  /** What each thread but the first adds to `engine`. */
  readonly thread?: number;
  /** The tokenizer when it is loaded, estimated from the size of its file. Planned engines only. */
  readonly text?: number;
  /** Context length the figures are for; 0 when the model keeps no state. */
  readonly tokens: number;
  /** Whether the figures are a plan (exact) or an estimate. */
  readonly exact: boolean;
}

/** Small inputs with expected outputs, replayed by `session.check()`. */
export interface CanarySpec {
  /** Path of the canary file, listed in `files`: JSON header and tensors, see docs/bundle.md. */
  readonly file: string;
  /** Largest accepted |difference| as a fraction of the expected output's range. */
  readonly tolerance: number;
}

/** `manifest.json`. */
export interface Manifest {
  /** Tells bundles from other JSON. */
  readonly format: 'fettle-bundle';
  /** Format version. */
  readonly version: typeof BUNDLE_VERSION;
  /** Name and version of what wrote it. */
  readonly compiler: string;
  /** Id of the target it was compiled for. */
  readonly target: string;
  /** What runs it. */
  readonly engine: 'wasm' | 'webgpu' | 'ort';
  /** The source model. */
  readonly model: {
    readonly name: string;
    /** Hash of the source: graph file and external data. */
    readonly sha256: string;
    readonly kind: 'decoder' | 'encoder' | 'model';
    readonly parameters: number;
  };
  /** Host features the engine needs. */
  readonly features: readonly string[];
  /** Inputs of the graph, in order. */
  readonly inputs: readonly TensorSpec[];
  /** Outputs of the graph, in order. */
  readonly outputs: readonly TensorSpec[];
  /** How to drive it, when it is a decoder. */
  readonly decoder?: DecoderSpec;
  /** How to use it with strings. */
  readonly text?: TextSpec;
  /** What the engine executes. */
  readonly program: OnnxProgram | PlanProgram;
  /** The weight buffer. */
  readonly weights: {
    readonly bytes: number;
    /**
     * Chunks in order, each at most 16 MiB and at most max(1 MiB, weights / 8); a tensor may span
     * several. Hashing copies a chunk, so this is what keeps a load below 1.2x the weights.
     */
    readonly files: readonly FileSpec[];
    /** By rising offset, not overlapping. */
    readonly tensors: readonly WeightSpec[];
  };
  /** Every other file except the manifest itself. */
  readonly files: readonly FileSpec[];
  /** What it will need. */
  readonly memory: MemorySpec;
  /** Self-test data. */
  readonly canaries?: CanarySpec;
  /** Quality measured at compile time. */
  readonly quality?: {
    readonly metric: string;
    readonly before: number;
    readonly after: number;
    readonly dataSha256: string;
  };
  /** Data that weights were fitted to; disjoint from what `quality` was measured on. */
  readonly calibration?: {
    readonly dataSha256: string;
    readonly samples: number;
    readonly tokens: number;
  };
  /** The recipe it was compiled with. */
  readonly recipe: Readonly<Record<string, unknown>>;
  /** What each pass did, wall times left out. */
  readonly passes: readonly unknown[];
  /** What the compiler warned about. */
  readonly warnings: readonly string[];
}
