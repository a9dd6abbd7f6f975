/**
 * A stage in memory, ready to run again and again while its weights change: on Fettle's WASM engine,
 * whose linear memory holds every matrix at a known place, so that a new one is packed into it; on
 * onnxruntime-web where the WASM engine has no kernel, with a new session after a change.
 *
 * Everything is f32: activations are not rounded as the integer kernels of a bundle would.
 */
import type { Engine, Program } from '../../runtime/engine.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { Manifest, TensorSpec } from '../../runtime/manifest.ts';
import { BUNDLE_VERSION } from '../../runtime/manifest.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { ortWasm } from '../../targets/ort-wasm.ts';
import { isStatic } from '../ir/dim.ts';
import type { Model, Value } from '../ir/graph.ts';
import type { EncodedPlan } from '../lower/encode-plan.ts';
import { lowerForOrt } from '../lower/ort.ts';
import { lowerForWasm } from '../lower/wasm.ts';
import { encodeModel } from '../onnx/write.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import { cloneModel } from '../ir/clone.ts';
import { LiveWeights } from './live-weights.ts';
import { VERSION } from '../version.ts';

/** The engines that run stages; the caller brings those of its host. */
export interface StageEngines {
  /** `wasmEngine()` of `runtime/wasm/engine.ts`. */
  readonly wasm: Engine;
  /** `ortEngine()` of `runtime/ort/engine.ts`; absent: models that need it are refused. */
  readonly ort?: Engine;
}

/** Values by name. */
export type Values = ReadonlyMap<string, Tensor>;

/** A stage in memory. */
export interface StageRunner {
  /** What runs it. */
  readonly engine: 'wasm' | 'ort';
  /** Values it reads. */
  readonly inputs: readonly string[];
  /** One sample through the stage; more feeds than it reads are fine. */
  run(feeds: Values): Promise<Map<string, Tensor>>;
  /**
   * Replaces the matrix of a unit; units that the stage does not read are ignored.
   *
   * @param values - [rows, columns]; absent: the model's own again
   */
  setWeight(unit: string, values?: Float32Array): void;
  /** Releases everything. */
  dispose(): Promise<void>;
}

/** What a stage runs with. */
export interface OpenStageOptions {
  /** What runs it. */
  readonly engines: StageEngines;
  /** Units whose matrices can be replaced. */
  readonly units: readonly WeightUnit[];
  /** Matrices that some units have instead of their own, [rows, columns]. */
  readonly weights?: ReadonlyMap<string, Float32Array>;
}

/**
 * Opens the graph of a stage.
 *
 * @param model - of fixed sizes; not changed
 * @throws {@link FettleError} OP_UNSUPPORTED when no engine can run it
 */
export async function openStage(model: Model, options: OpenStageOptions): Promise<StageRunner> {
  const { engines, units, weights = new Map<string, Float32Array>() } = options;
  const live = new LiveWeights(cloneModel(model), units);
  for (const [unit, values] of weights) live.set(unit, values);
  let plan: EncodedPlan;
  try {
    plan = lowerForWasm(live.model, { decoder: undefined, threads: 1, halves: false });
  } catch (error) {
    const isRefusal =
      error instanceof FettleError &&
      (error.code === 'OP_UNSUPPORTED' || error.code === 'SHAPE_UNKNOWN');
    if (!isRefusal || engines.ort === undefined) throw error;
    return new OrtStage(live, engines.ort);
  }
  return WasmStage.open(live, plan, engines.wasm);
}

/** A stage in a linear memory of its own. */
class WasmStage implements StageRunner {
  readonly engine = 'wasm';
  readonly inputs: readonly string[];
  private readonly live: LiveWeights;
  private readonly program: Program;
  private readonly memory: Uint8Array;
  /** Packed matrices, with the units they were made from. */
  private readonly packed: readonly {
    readonly units: ReadonlySet<string>;
    readonly offset: number;
    readonly bytes: () => Uint8Array;
  }[];

  private constructor(
    live: LiveWeights,
    program: Program,
    memory: Uint8Array,
    packed: WasmStage['packed'],
  ) {
    this.live = live;
    this.program = program;
    this.memory = memory;
    this.packed = packed;
    this.inputs = live.model.graph.inputs.map(({ name }) => name);
  }

  static async open(live: LiveWeights, plan: EncodedPlan, engine: Engine): Promise<WasmStage> {
    const file = 'plan.bin';
    const manifest = manifestOf(live.model, 'wasm', { kind: 'plan', file }, plan.weights.bytes);
    const loading = await engine.open({
      manifest,
      readFile: async () => new Uint8Array(plan.bytes),
      signal: undefined,
    });
    // kept on purpose: a plan's memory never grows, so this view stays good
    const { weights: memory } = loading;
    const packed = plan.weights.placed.map(({ weight, offset }) => {
      const bytes = (): Uint8Array => weight.bytes();
      const units = live.reading(() => memory.set(bytes(), offset));
      return { units, offset, bytes };
    });
    const program = await loading.start();
    const stage = new WasmStage(
      live,
      program,
      memory,
      packed.filter(({ units }) => units.size > 0),
    );
    for (const { units } of packed) for (const unit of units) stage.forget(unit);
    return stage;
  }

  async run(feeds: Values): Promise<Map<string, Tensor>> {
    return runProgram(this.program, this.inputs, feeds);
  }

  setWeight(unit: string, values?: Float32Array): void {
    this.live.set(unit, values);
    for (const { units, offset, bytes } of this.packed)
      if (units.has(unit)) this.memory.set(bytes(), offset);
    this.forget(unit);
  }

  /** Lets go of a matrix that is packed, unless another one has to be packed together with it. */
  private forget(unit: string): void {
    if (!this.packed.some(({ units }) => units.has(unit) && units.size > 1)) this.live.forget(unit);
  }

  dispose(): Promise<void> {
    return this.program.dispose();
  }
}

/** A stage as a session that is made when it is next run after a change. */
class OrtStage implements StageRunner {
  readonly engine = 'ort';
  readonly inputs: readonly string[];
  private readonly live: LiveWeights;
  private readonly ort: Engine;
  private program: Program | undefined;

  constructor(live: LiveWeights, ort: Engine) {
    this.live = live;
    this.ort = ort;
    this.inputs = live.model.graph.inputs.map(({ name }) => name);
  }

  async run(feeds: Values): Promise<Map<string, Tensor>> {
    this.program ??= await this.open();
    return runProgram(this.program, this.inputs, feeds);
  }

  setWeight(unit: string, values?: Float32Array): void {
    this.live.set(unit, values);
    const old = this.program;
    this.program = undefined;
    // nothing runs now: a call is over before the next one begins
    void old?.dispose();
  }

  async dispose(): Promise<void> {
    await this.program?.dispose();
  }

  private async open(): Promise<Program> {
    const model = cloneModel(this.live.model);
    const { sessionOptions } = lowerForOrt(model, ortWasm);
    const program = {
      kind: 'onnx',
      file: 'model.onnx',
      externalData: 'weights.bin',
      provider: 'wasm',
      sessionOptions,
    } as const;
    const loading = await this.ort.open({
      manifest: manifestOf(model, 'ort', program, 0),
      readFile: async () => new Uint8Array(encodeModel(model)),
      signal: undefined,
    });
    return loading.start();
  }
}

async function runProgram(
  program: Program,
  inputs: readonly string[],
  feeds: Values,
): Promise<Map<string, Tensor>> {
  const given: Record<string, Tensor> = {};
  for (const name of inputs) {
    const tensor = feeds.get(name);
    if (tensor === undefined) throw new RangeError(`the stage reads "${name}", which is not given`);
    given[name] = tensor;
  }
  const { outputs } = await program.run(given);
  return new Map(Object.entries(outputs));
}

/** What an engine wants to know of a program that is in no file. */
function manifestOf(
  model: Model,
  engine: 'wasm' | 'ort',
  program: Manifest['program'],
  weightBytes: number,
): Manifest {
  return {
    format: 'fettle-bundle',
    version: BUNDLE_VERSION,
    compiler: `fettle ${VERSION}`,
    target: engine,
    engine,
    model: { name: 'stage', sha256: '0'.repeat(64), kind: 'model', parameters: 0 },
    features: [],
    inputs: model.graph.inputs.map(specOf),
    outputs: model.graph.outputs.map(specOf),
    program,
    weights: { bytes: weightBytes, files: [], tensors: [] },
    files: [],
    memory: { weights: weightBytes, arena: 0, state: 0, tokens: 0, exact: false },
    recipe: {},
    passes: [],
    warnings: [],
  };
}

function specOf({ name, dtype = 'f32', shape }: Value): TensorSpec {
  return { name, dtype, shape: isStatic(shape) ? shape : [] };
}
