/**
 * Engine `wasm`: a plan on Fettle's own kernels. Memory is made once, at the size that was planned;
 * weights are streamed to their place in it; every call is one call into WASM.
 */
import type {
  Engine,
  EngineContext,
  Held,
  Loading,
  Program,
  RunResult,
  Sequence,
  StepTime,
} from '../engine.ts';
import { FettleError, throwIfAborted } from '../errors.ts';
import type { DimSpec, Manifest } from '../manifest.ts';
import type { Plan, PlanTensor } from '../plan.ts';
import { decodePlan, sizeOf } from '../plan.ts';
import type { Tensor } from '../tensor.ts';
import { Executor } from './executor.ts';
import { ABI_VERSION } from './kernels/abi.ts';
import type { KernelVariant, ThreadedKernelExports, Unpack } from './module.ts';
import { compileKernels, instantiateKernels } from './module.ts';
import type { StartWorker } from './pool.ts';
import { Pool, startBrowserWorker } from './pool.ts';
import type { KernelFeatures } from './probe.ts';
import { chooseVariant, probeKernels } from './probe.ts';
import type { CacheOwner } from './sequence.ts';
import { tensorNamed, WasmSequence } from './sequence.ts';
import { itemOf, joinItems, readTensor, writeTensor } from './tensors.ts';

/** Options of the WASM engine. */
export interface WasmOptions {
  /** Threads, 1 or more. Default: the physical cores, for bundles compiled for threads; else 1. */
  readonly threads?: number;
  /** Kernels without relaxed SIMD, even where it is right; for comparisons. */
  readonly plainSimd?: boolean;
  /** Cores of the host, where `navigator.hardwareConcurrency` does not tell. */
  readonly cores?: number;
  /** Starts workers where the host has no `Worker`. */
  readonly startWorker?: StartWorker;
  /** Inflates base64 of deflated bytes, where the host has something leaner than web streams. */
  readonly unpack?: Unpack;
  /** Told once per reason why fewer threads or plainer kernels are used than the bundle allows. */
  readonly onWarning?: (message: string) => void;
}

/** A program of this engine; tells more than others. */
export interface WasmProgram extends Program {
  /** Kernels in use. */
  readonly kernels: KernelVariant;
  /** Threads in use. */
  readonly threads: number;
  /** Runs step by step from now on; returns the times counted so far. */
  profile(): readonly StepTime[];
}

/**
 * The engine on Fettle's own kernels.
 *
 * @param options - threads and what the host has to bring for them
 */
export function wasmEngine(options: WasmOptions = {}): Engine {
  return { id: 'wasm', open: (context) => open(context, options) };
}

const PAGE_BYTES = 65536;

async function open(context: EngineContext, options: WasmOptions): Promise<Loading> {
  const { manifest, signal } = context;
  const plan = await readPlan(context);
  const { layout } = plan;
  const features = await probeKernels(options.unpack);
  throwIfAborted(signal);
  if (!features.simd)
    throw new FettleError('ENGINE_UNAVAILABLE', 'This host has no WebAssembly SIMD.', {
      at: { engine: 'wasm' },
      fix: 'Use a browser of 2023 or later, or compile for ort-wasm.',
    });
  const threads = threadsFor(plan, features, options);
  const variant = chooseVariant(
    options.plainSimd === true ? { ...features, relaxed: false } : features,
    threads,
  );
  const memory = allocate(layout.memoryBytes, threads > 1);
  return {
    weights: new Uint8Array(memory.buffer, layout.weights.address, manifest.weights.bytes),
    async start() {
      const module = await compileKernels(variant, options.unpack);
      const kernels = await instantiateKernels<ThreadedKernelExports>(module, memory);
      // after the kernels' own data, which instantiating writes
      new Uint8Array(memory.buffer).set(plan.words, layout.image);
      const start = options.startWorker ?? startBrowserWorker;
      const task = { module, memory, plan: layout.body.address };
      const pool = threads > 1 ? await Pool.start(start, threads, task) : undefined;
      if (threads > 1 && mayBlock()) kernels.allowSleep(layout.body.address);
      const executor = new Executor(plan, memory, kernels, pool);
      executor.init();
      return new PlanProgram(manifest, plan, executor, variant);
    },
    dispose() {},
  };
}

async function readPlan({ manifest, readFile }: EngineContext): Promise<Plan> {
  const { program, weights, decoder } = manifest;
  if (program.kind !== 'plan')
    throw new FettleError(
      'ENGINE_UNAVAILABLE',
      'The WASM engine needs a plan; the bundle has a graph.',
      {
        at: { engine: 'wasm', target: manifest.target },
        fix: 'Open it with the engine it was compiled for, or compile for wasm.',
      },
    );
  const plan = decodePlan(await readFile(program.file), program.file);
  const { layout } = plan;
  const corrupt = (message: string): FettleError =>
    new FettleError('BUNDLE_CORRUPT', `${program.file}: ${message}`, {
      at: { file: program.file },
      fix: 'Compile the bundle again.',
    });
  if (layout.abi !== ABI_VERSION)
    throw new FettleError(
      'ENGINE_UNAVAILABLE',
      `The plan was made for kernels of version ${layout.abi}; this runtime has ${ABI_VERSION}.`,
      { at: { file: program.file }, fix: 'Compile the bundle with the version in use.' },
    );
  if (layout.weights.bytes !== weights.bytes)
    throw corrupt(`wanted ${weights.bytes} bytes of weights, got ${layout.weights.bytes}.`);
  const names = (tensors: readonly { readonly name: string }[]): string =>
    tensors.map(({ name }) => name).join(', ');
  if (names(layout.inputs) !== names(manifest.inputs))
    throw corrupt(`its inputs are ${names(layout.inputs)}, not ${names(manifest.inputs)}.`);
  if (names(layout.outputs) !== names(manifest.outputs))
    throw corrupt(`its outputs are ${names(layout.outputs)}, not ${names(manifest.outputs)}.`);
  if (decoder !== undefined && layout.context < decoder.contextLength)
    throw corrupt(`it holds ${layout.context} tokens, not ${decoder.contextLength}.`);
  return plan;
}

/** Threads to use: what is asked for, as far as bundle and host allow. */
function threadsFor({ layout }: Plan, features: KernelFeatures, options: WasmOptions): number {
  const warn = options.onWarning ?? ((): void => {});
  const asked = options.threads ?? (layout.threads > 1 ? physicalCores(options.cores) : 1);
  const wanted = Math.max(1, Math.min(asked, layout.threads));
  if (wanted < asked && options.threads !== undefined)
    warn(`The bundle was compiled for at most ${layout.threads} threads; ${wanted} are used.`);
  if (wanted === 1 || features.threads) return wanted;
  const reason = features.reasons.find((text) => /thread/i.test(text)) ?? '';
  warn(`One thread is used instead of ${wanted}. ${reason}`);
  return 1;
}

/** Two logical cores of a larger machine usually share one physical core. */
function physicalCores(cores: number | undefined): number {
  const host: { readonly hardwareConcurrency?: number } | undefined = globalThis.navigator;
  const logical = cores ?? host?.hardwareConcurrency ?? 1;
  return logical > 4 ? Math.floor(logical / 2) : logical;
}

/** Whether this thread may wait for others; the main thread of a page may not. */
function mayBlock(): boolean {
  try {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 1);
    return true;
  } catch {
    return false;
  }
}

function allocate(bytes: number, shared: boolean): WebAssembly.Memory {
  const pages = Math.ceil(bytes / PAGE_BYTES);
  try {
    return new WebAssembly.Memory({ initial: pages, maximum: pages, shared });
  } catch (cause) {
    throw new FettleError(
      'BUDGET_EXCEEDED',
      `Cannot allocate the ${bytes} bytes that were planned.`,
      {
        at: { bytes },
        fix: 'Dispose other sessions, or compile with smaller weights or a shorter context.',
        cause,
      },
    );
  }
}

class PlanProgram implements WasmProgram {
  readonly kernels: KernelVariant;
  readonly #manifest: Manifest;
  readonly #plan: Plan;
  readonly #executor: Executor;
  readonly #cache: CacheOwner = { holder: undefined };

  constructor(manifest: Manifest, plan: Plan, executor: Executor, kernels: KernelVariant) {
    this.#manifest = manifest;
    this.#plan = plan;
    this.#executor = executor;
    this.kernels = kernels;
  }

  get threads(): number {
    return this.#executor.threads;
  }

  sequence(): Sequence {
    return this.#sequence();
  }

  async run(feeds: Readonly<Record<string, Tensor | Held>>): Promise<RunResult> {
    const { decoder } = this.#manifest;
    const outputs = decoder === undefined ? await this.#items(feeds) : await this.#logits(feeds);
    return { outputs, held: {} };
  }

  profile(): readonly StepTime[] {
    return this.#executor.profile();
  }

  memory(): { readonly weights: number; readonly arena: number; readonly state: number } {
    const { weights, arena, state } = this.#plan.layout;
    return { weights: weights.bytes, arena: arena.bytes, state: state.bytes };
  }

  async dispose(): Promise<void> {
    this.#executor.dispose();
  }

  #sequence(): WasmSequence {
    const { decoder } = this.#manifest;
    if (decoder === undefined)
      throw new FettleError('USAGE', 'The model is no decoder.', {
        at: { model: this.#manifest.model.name },
        fix: 'Use run() instead.',
      });
    const { layout } = this.#plan;
    return new WasmSequence({ executor: this.#executor, layout, decoder, cache: this.#cache });
  }

  /** A decoder run once: all ids from the start, logits of every token. */
  async #logits(feeds: Readonly<Record<string, Tensor | Held>>): Promise<Record<string, Tensor>> {
    const { decoder } = this.#manifest;
    const ids = feeds[decoder?.ids ?? ''];
    if (decoder === undefined || ids === undefined || !('data' in ids)) throw held();
    if (ids.shape.slice(0, -1).some((size) => size !== 1))
      throw new FettleError('USAGE', `The plan runs one sequence at a time, got ${ids.shape[0]}.`, {
        at: { input: decoder.ids },
        fix: 'Run them one after the other.',
      });
    const list = Array.from(ids.data as ArrayLike<number | bigint>, Number);
    const data = await this.#sequence().feed(list, true);
    const shape = [1, list.length, decoder.vocabulary];
    return { [decoder.logits]: { dtype: 'f32', shape, data } };
  }

  /** The plan is for one item of a batch whose size the model leaves open: they run one by one. */
  async #items(feeds: Readonly<Record<string, Tensor | Held>>): Promise<Record<string, Tensor>> {
    const { inputs, outputs } = this.#manifest;
    const batched = (shape: readonly DimSpec[]): boolean => typeof shape[0] === 'string';
    const planned = tensorsOf(this.#plan.layout.inputs);
    const open = inputs.filter(
      ({ name, shape }) => batched(shape) && planned.get(name)?.shape[0]?.[1] === 0,
    );
    const first = feeds[open[0]?.name ?? ''];
    const items = first !== undefined && 'data' in first ? (first.shape[0] ?? 1) : 1;
    if (items === 1) return this.#call(feeds);
    const results: Record<string, Tensor>[] = [];
    for (let item = 0; item < items; item++) {
      const own: Record<string, Tensor | Held> = { ...feeds };
      for (const { name } of open) {
        const feed = feeds[name];
        if (feed === undefined || !('data' in feed)) throw held();
        own[name] = itemOf(feed, item, items);
      }
      results.push(this.#call(own));
    }
    return Object.fromEntries(
      outputs.flatMap(({ name, shape }) => {
        const parts = results.flatMap((result) => result[name] ?? []);
        const [part] = parts;
        if (part === undefined) return [];
        return [[name, batched(shape) && part.shape[0] === 1 ? joinItems(parts) : part]];
      }),
    );
  }

  #call(feeds: Readonly<Record<string, Tensor | Held>>): Record<string, Tensor> {
    const { layout } = this.#plan;
    const S = this.#tokens(feeds);
    for (const input of layout.inputs) {
      const feed = feeds[input.name];
      if (feed === undefined || !('data' in feed)) throw held();
      if (input.address !== 0) writeTensor(feed, this.#view(input, S));
    }
    this.#executor.body(S, 0);
    return Object.fromEntries(
      this.#manifest.outputs.map(({ name, dtype }) => {
        const output = tensorNamed(layout.outputs, name);
        const shape = output.shape.map((size) => sizeOf(size, S, 0));
        return [name, readTensor(dtype, shape, this.#view(output, S))];
      }),
    );
  }

  /** The open size of this call; checks that all inputs agree with it. */
  #tokens(feeds: Readonly<Record<string, Tensor | Held>>): number {
    const { layout } = this.#plan;
    let tokens: number | undefined;
    for (const { name, shape } of layout.inputs) {
      const feed = feeds[name];
      if (feed === undefined || !('data' in feed)) throw held();
      for (const [axis, size] of shape.entries()) {
        const got = feed.shape[axis] ?? 0;
        if (size[1] !== 0) tokens ??= (got - size[0]) / size[1];
        const wanted = sizeOf(size, tokens ?? 0, 0);
        if (got === wanted && (tokens === undefined || (tokens >= 1 && tokens <= layout.context)))
          continue;
        throw new FettleError(
          'USAGE',
          `Input "${name}" is [${feed.shape.join(', ')}]; the plan takes ${size[1] === 0 ? wanted : `1 to ${layout.context}`} at axis ${axis}.`,
          {
            at: { input: name, axis },
            fix: 'Change the input, or compile for this size with --shape.',
          },
        );
      }
    }
    return tokens ?? 1;
  }

  #view({ type, address, elements }: PlanTensor, S: number): Float32Array | Int32Array {
    const count = sizeOf(elements, S, 0);
    return type === 'f32'
      ? this.#executor.floats(address, count)
      : this.#executor.integers(address, count);
  }
}

function tensorsOf(tensors: readonly PlanTensor[]): ReadonlyMap<string, PlanTensor> {
  return new Map(tensors.map((tensor) => [tensor.name, tensor]));
}

function held(): FettleError {
  return new FettleError('USAGE', 'The WASM engine takes tensors of the caller only.', {
    at: { engine: 'wasm' },
    fix: 'Pass tensors with data.',
  });
}
