/**
 * Engine `ort`: onnxruntime-web as a compatibility engine. The graph's weights are external data that
 * we hand over as one buffer; onnxruntime-web copies it, and ours is let go as soon as it has.
 */
import type { Engine, EngineContext, Held, Loading, Program, RunResult } from '../engine.ts';
import { FettleError, throwIfAborted } from '../errors.ts';
import type { Manifest, OnnxProgram } from '../manifest.ts';
import { Queue } from '../queue.ts';
import type { Tensor } from '../tensor.ts';
import type { OrtModule, OrtOptions, OrtProvider, OrtSession, OrtTensor } from './module.ts';
import { loadOrt } from './module.ts';
import { bytesOfOrt, fromOrt, isOrtDType, toOrt } from './tensors.ts';

/**
 * Calls into one onnxruntime-web module must not overlap, whatever session they belong to: it mounts
 * external data globally, and its `run` keeps WebAssembly stack space across awaits (1.30).
 */
const queues = new WeakMap<OrtModule, Queue>();

/**
 * The engine on onnxruntime-web.
 *
 * @param options - where the package comes from and its global settings
 *
 * @example
 * const session = await openBundle('/model/', { ort: { wasmPaths: '/ort/' } });
 */
export function ortEngine(options: OrtOptions = {}): Engine {
  return { id: 'ort', open: (context) => open(context, options) };
}

async function open(context: EngineContext, options: OrtOptions): Promise<Loading> {
  const { manifest, signal } = context;
  const program = graphProgram(manifest);
  const provider = options.provider ?? program.provider;
  checkDTypes(manifest);
  if (provider === 'webgpu') await checkWebGpu();
  const graph = await context.readFile(program.file);
  let weights: Uint8Array<ArrayBuffer> | undefined = allocate(manifest.weights.bytes);
  return {
    // A getter, so that this object does not keep the buffer alive after `start` let it go.
    get weights(): Uint8Array {
      return weights ?? new Uint8Array(0);
    },
    async start() {
      const ort = await loadOrt(options, provider).catch((cause: unknown) => {
        throw unavailable(cause);
      });
      const queue = queues.get(ort) ?? new Queue();
      queues.set(ort, queue);
      const session = await queue.add(() => {
        throwIfAborted(signal);
        const created = create(ort, graph, weights, manifest, provider);
        weights = undefined;
        return created;
      });
      return new OrtProgram(ort, session, queue, manifest, await deviceOf(ort, provider));
    },
    dispose() {
      weights = undefined;
    },
  };
}

/** The graph of a bundle for this engine. */
function graphProgram({ program, target }: Manifest): OnnxProgram {
  if (program.kind === 'onnx') return program;
  throw new FettleError(
    'ENGINE_UNAVAILABLE',
    'onnxruntime-web needs a graph; the bundle has a plan.',
    {
      at: { engine: 'ort', target },
      fix: 'Open it with the engine it was compiled for, or compile for ort-wasm.',
    },
  );
}

function checkDTypes({ inputs, outputs }: Manifest): void {
  const odd = [...inputs, ...outputs].find((spec) => !isOrtDType(spec.dtype));
  if (odd === undefined) return;
  throw new FettleError(
    'ENGINE_UNAVAILABLE',
    `onnxruntime-web cannot exchange ${odd.dtype} tensors, the dtype of "${odd.name}".`,
    { at: { value: odd.name, dtype: odd.dtype }, fix: 'Cast it inside the model, then compile.' },
  );
}

async function checkWebGpu(): Promise<void> {
  const adapter = await globalThis.navigator?.gpu?.requestAdapter();
  if (adapter) return;
  throw new FettleError('ENGINE_UNAVAILABLE', 'Cannot run on WebGPU: this host has no adapter.', {
    at: { engine: 'ort', provider: 'webgpu' },
    fix: 'Compile for ort-wasm, or open this bundle with { ort: { provider: "wasm" } }.',
  });
}

function allocate(bytes: number): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(bytes);
  } catch (cause) {
    throw new FettleError('BUDGET_EXCEEDED', `Cannot allocate ${bytes} bytes for the weights.`, {
      at: { bytes },
      fix: 'Dispose other sessions, or compile with smaller weights.',
      cause,
    });
  }
}

async function create(
  ort: OrtModule,
  graph: Uint8Array,
  weights: Uint8Array | undefined,
  manifest: Manifest,
  provider: OrtProvider,
): Promise<OrtSession> {
  const { decoder } = manifest;
  const program = graphProgram(manifest);
  // On the GPU the cache stays in its buffers from call to call.
  const stay = provider === 'webgpu' ? (decoder?.state ?? []) : [];
  try {
    return await ort.InferenceSession.create(graph, {
      logSeverityLevel: 3,
      // A copy: onnxruntime-web writes its defaults into what it gets.
      ...structuredClone(program.sessionOptions),
      executionProviders: [provider],
      externalData:
        weights === undefined || weights.length === 0
          ? []
          : [{ path: program.externalData, data: weights }],
      ...(stay.length === 0
        ? {}
        : {
            preferredOutputLocation: Object.fromEntries(
              stay.map((state) => [state.output, 'gpu-buffer']),
            ),
          }),
    });
  } catch (cause) {
    throw unavailable(cause, program.file);
  }
}

function unavailable(cause: unknown, file?: string): FettleError {
  const why = cause instanceof Error ? cause.message : String(cause);
  const noBackend = file === undefined || why.includes('no available backend');
  return new FettleError(
    noBackend ? 'ENGINE_UNAVAILABLE' : 'OP_UNSUPPORTED',
    noBackend
      ? `Cannot load onnxruntime-web: ${why}`
      : `onnxruntime-web does not accept the model: ${why}`,
    {
      at: file === undefined ? { engine: 'ort' } : { engine: 'ort', file },
      fix: noBackend
        ? 'Install onnxruntime-web, set { ort: { wasmPaths } } in a page, or in Node import openBundle from fettle/runtime/node.'
        : 'Use a model of operators that onnxruntime-web has; its message names what it does not know.',
      cause,
    },
  );
}

/** The device's loss, once it has happened; undefined on the CPU. */
interface DeviceWatch {
  lost?: string;
}

async function deviceOf(ort: OrtModule, provider: OrtProvider): Promise<DeviceWatch> {
  const watch: DeviceWatch = {};
  if (provider !== 'webgpu') return watch;
  const { device } = (ort.env.webgpu ?? {}) as { device?: GPUDevice | Promise<GPUDevice> };
  void (await device)?.lost.then((info) => (watch.lost = info.message || info.reason));
  return watch;
}

/** An output that stays in onnxruntime-web's own tensor. */
class OrtHeld implements Held {
  readonly tensor: OrtTensor;
  readonly bytes: number;

  constructor(tensor: OrtTensor) {
    this.tensor = tensor;
    this.bytes = bytesOfOrt(tensor);
  }

  dispose(): void {
    this.tensor.dispose();
  }
}

class OrtProgram implements Program {
  readonly #ort: OrtModule;
  readonly #session: OrtSession;
  readonly #queue: Queue;
  readonly #manifest: Manifest;
  readonly #watch: DeviceWatch;

  constructor(
    ort: OrtModule,
    session: OrtSession,
    queue: Queue,
    manifest: Manifest,
    watch: DeviceWatch,
  ) {
    this.#ort = ort;
    this.#session = session;
    this.#queue = queue;
    this.#manifest = manifest;
    this.#watch = watch;
  }

  async run(
    feeds: Readonly<Record<string, Tensor | Held>>,
    keep: ReadonlySet<string> = new Set(),
  ): Promise<RunResult> {
    const made: OrtTensor[] = [];
    const fed = Object.entries(feeds).map(([name, value]) => {
      if (value instanceof OrtHeld) return [name, value.tensor] as const;
      const tensor = toOrt(this.#ort, value as Tensor);
      made.push(tensor);
      return [name, tensor] as const;
    });
    const results = await this.#queue
      .add(() => this.#session.run(Object.fromEntries(fed)))
      .catch((cause: unknown) => {
        throw this.#failure(cause);
      })
      .finally(() => made.forEach((tensor) => tensor.dispose()));
    const outputs: Record<string, Tensor> = {};
    const held: Record<string, Held> = {};
    for (const [name, tensor] of Object.entries(results)) {
      if (keep.has(name)) held[name] = new OrtHeld(tensor);
      else outputs[name] = await fromOrt(tensor);
    }
    return { outputs, held };
  }

  memory(): { weights: undefined; arena: undefined; state: undefined } {
    return { weights: undefined, arena: undefined, state: undefined };
  }

  async dispose(): Promise<void> {
    await this.#queue.add(() => this.#session.release());
  }

  #failure(cause: unknown): FettleError {
    const why = cause instanceof Error ? cause.message : String(cause);
    const at = { engine: 'ort', model: this.#manifest.model.name };
    if (this.#watch.lost !== undefined)
      return new FettleError('DEVICE_LOST', `The GPU device was lost: ${this.#watch.lost}`, {
        at,
        fix: 'Dispose the session and open the bundle again.',
        cause,
      });
    const memory = /bad_alloc|out of memory|allocate/i.test(why);
    return new FettleError(
      memory ? 'BUDGET_EXCEEDED' : 'MODEL_INVALID',
      `onnxruntime-web could not run the model: ${why}`,
      {
        at,
        fix: memory
          ? 'Use smaller inputs, or dispose other sessions.'
          : 'Check the inputs against the model; if they are right, report this message.',
        cause,
      },
    );
  }
}
