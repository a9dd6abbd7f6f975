/**
 * Lowered model -> the files of a bundle, in a folder. Same model, recipe and version -> same bytes:
 * sorted keys, a fixed order of weights, no times and no absolute paths.
 *
 *   model.onnx  tokenizer.json  weights-NN.bin  ->  canaries.bin  ->  manifest.json
 *
 * @see docs/bundle.md
 */
import { FettleError } from '../../runtime/errors.ts';
import type {
  DecoderSpec,
  FileSpec,
  Manifest,
  MemorySpec,
  OnnxProgram,
  TensorSpec,
  TextSpec,
  WeightSpec,
} from '../../runtime/manifest.ts';
import { BUNDLE_VERSION } from '../../runtime/manifest.ts';
import type { Target } from '../../targets/target.ts';
import type { FileSystem } from '../files.ts';
import { joinPath, writeFile } from '../files.ts';
import { dimToText } from '../ir/dim.ts';
import type { Model, Value } from '../ir/graph.ts';
import { encodeModel } from '../onnx/write.ts';
import type { PassReport } from '../passes/pass.ts';
import type { Recipe } from '../recipe.ts';
import { Sha256 } from '../../runtime/sha256.ts';
import type { TextFiles } from '../source.ts';
import { VERSION } from '../version.ts';
import type { Canary } from './canaries.ts';
import { encodeCanaries } from './canaries.ts';
import { tokenizerBytes } from './engine-memory.ts';
import { jsonBytes } from './json.ts';
import type { EncodedPlan } from '../lower/encode-plan.ts';
import type { WeightLayout } from './layout.ts';
import { INLINE_BYTES, layoutWeights } from './layout.ts';
import { slimGraph } from './slim.ts';
import type { WriteControl } from './weights.ts';
import { holdsNotFinite, writeWeights } from './weights.ts';

/** Name under which the graph refers to the weight buffer. */
const EXTERNAL_DATA = 'weights.bin';

const GRAPH_PATH = 'model.onnx';
const PLAN_PATH = 'plan.bin';
const MANIFEST_PATH = 'manifest.json';

/** Sampling settings of a model that a runtime uses, by their Hugging Face names. */
const samplingFields = [
  'do_sample',
  'temperature',
  'top_k',
  'top_p',
  'min_p',
  'repetition_penalty',
] as const;

/** Everything a bundle says about itself besides its files. */
export interface BundleContents {
  /** The lowered model; slimmed when it is written. */
  readonly program: Model;
  /** The plan of an engine of our own; without it the bundle holds the graph. */
  readonly plan?: EncodedPlan | undefined;
  /** Number format of a weight by its name, where it is not the dtype. */
  readonly formats: ReadonlyMap<string, string>;
  /** Session options for the engine. */
  readonly sessionOptions: Readonly<Record<string, unknown>>;
  /** What it is for. */
  readonly target: Target;
  /** Where it comes from. */
  readonly model: Manifest['model'];
  /** How it is driven. */
  readonly decoder: DecoderSpec | undefined;
  /** Tokenizer files. */
  readonly text: TextFiles | undefined;
  /** `generation_config.json`. */
  readonly generationConfig: Readonly<Record<string, unknown>> | undefined;
  /** What decided it, chosen formats filled in. */
  readonly recipe: Recipe;
  /** What happened on the way. */
  readonly passes: readonly PassReport[];
  /** What the user should know. */
  readonly warnings: readonly string[];
  /** Estimated memory. */
  readonly memory: MemorySpec;
  /** Data that weights were fitted to. */
  readonly calibration?: Manifest['calibration'];
  /** More files for tools, not read by the runtime. */
  readonly extraFiles?: readonly { readonly path: string; readonly bytes: Uint8Array }[];
}

/** A bundle in the making. */
export class BundleWriter {
  private readonly files: FileSystem;
  private readonly folder: string;
  private readonly contents: BundleContents;
  private readonly layout: WeightLayout;
  private readonly listed: FileSpec[] = [];
  private weightFiles: readonly FileSpec[] = [];
  private found: readonly string[] = [];
  private text: TextSpec | undefined;
  private canaries: Manifest['canaries'];
  private quality: Manifest['quality'];

  /**
   * @param files - where it is written
   * @param folder - an empty folder
   */
  constructor(files: FileSystem, folder: string, contents: BundleContents) {
    this.files = files;
    this.folder = folder;
    this.contents = contents;
    this.layout = contents.plan?.weights ?? layoutWeights(contents.program);
  }

  /** Bytes of all weight chunks, known before anything is written. */
  get weightBytes(): number {
    return this.layout.bytes;
  }

  /** What the user should know, what writing brought to light included. */
  get warnings(): readonly string[] {
    return [...this.contents.warnings, ...this.found];
  }

  /** Writes graph, text files, weights and a manifest: a bundle that opens. */
  async write(control: WriteControl): Promise<void> {
    const { plan } = this.contents;
    if (plan === undefined) this.add(GRAPH_PATH, this.graph());
    else this.add(PLAN_PATH, plan.bytes);
    this.text = this.writeText();
    for (const { path, bytes } of this.contents.extraFiles ?? []) this.add(path, bytes);
    const { files, notFinite } = await writeWeights(this.files, this.folder, this.layout, control);
    this.weightFiles = files;
    this.found = [...this.notFiniteInGraph(), ...notFinite].map(
      (name) => `Weight "${name}" holds NaN or infinity; it is kept as it is.`,
    );
    this.writeManifest();
  }

  /** Names of the small weights with NaN or infinity that are stored in the graph. */
  private notFiniteInGraph(): string[] {
    if (this.contents.plan !== undefined) return [];
    const names: string[] = [];
    for (const graph of this.contents.program.graph.allGraphs())
      for (const { name, weight, useCount } of graph.constants) {
        if (weight === undefined || useCount === 0 || weight.byteLength >= INLINE_BYTES) continue;
        if (holdsNotFinite(weight.dtype, weight.bytes())) names.push(name);
      }
    return names;
  }

  /** Adds canaries to a bundle that has been written. */
  addCanaries(cases: readonly Canary[], tolerance: number): void {
    this.add('canaries.bin', encodeCanaries(cases));
    this.canaries = { file: 'canaries.bin', tolerance };
    this.writeManifest();
  }

  /** Adds the measured quality to a bundle that has been written. */
  addQuality(quality: NonNullable<Manifest['quality']>): void {
    this.quality = quality;
    this.writeManifest();
  }

  /** The files in the order in which a packed bundle holds them, and the hash of the manifest. */
  entries(): { readonly entries: readonly FileSpec[]; readonly sha256: string } {
    const manifest = jsonBytes(this.manifest());
    const sha256 = hashOf(manifest);
    const first = { path: MANIFEST_PATH, bytes: manifest.length, sha256 };
    return { entries: [first, ...this.sortedFiles(), ...this.weightFiles], sha256 };
  }

  private graph(): Uint8Array {
    const { program, target } = this.contents;
    checkOpset(program, target);
    slimGraph(program);
    return encodeModel(program, {
      external: ({ weight }) => {
        const offset = weight === undefined ? undefined : this.layout.offsets.get(weight);
        if (weight === undefined || offset === undefined) return undefined;
        return { location: EXTERNAL_DATA, offset, length: weight.byteLength };
      },
    });
  }

  private writeText(): TextSpec | undefined {
    const { text, generationConfig } = this.contents;
    if (text === undefined) return undefined;
    this.add('tokenizer.json', text.tokenizer);
    if (text.tokenizerConfig !== undefined) this.add('tokenizer_config.json', text.tokenizerConfig);
    const generation = samplingDefaults(generationConfig ?? {});
    return {
      tokenizer: 'tokenizer.json',
      ...(text.tokenizerConfig === undefined ? {} : { tokenizerConfig: 'tokenizer_config.json' }),
      ...(text.chatTemplate === undefined ? {} : { chatTemplate: text.chatTemplate }),
      ...(Object.keys(generation).length === 0 ? {} : { generation }),
    };
  }

  private add(path: string, bytes: Uint8Array): void {
    writeFile(this.files, joinPath(this.folder, path), bytes);
    this.listed.push({ path, bytes: bytes.length, sha256: hashOf(bytes) });
  }

  private sortedFiles(): readonly FileSpec[] {
    return this.listed.toSorted((a, b) => (a.path < b.path ? -1 : 1));
  }

  private writeManifest(): void {
    writeFile(this.files, joinPath(this.folder, MANIFEST_PATH), jsonBytes(this.manifest()));
  }

  private manifest(): Manifest {
    const { program, formats, sessionOptions, target, model, decoder } = this.contents;
    const { memory, recipe, passes, plan, calibration, text } = this.contents;
    const { inputs, outputs } = interfaceOf(program, plan);
    const onnx: OnnxProgram = {
      kind: 'onnx',
      file: GRAPH_PATH,
      externalData: EXTERNAL_DATA,
      provider: target.provider ?? 'wasm',
      sessionOptions,
    };
    return {
      format: 'fettle-bundle',
      version: BUNDLE_VERSION,
      compiler: `fettle ${VERSION}`,
      target: target.id,
      engine: target.engine,
      model,
      features: target.features,
      inputs: inputs.map((value) => tensorSpec(value, 'input')),
      outputs: outputs.map((value) => tensorSpec(value, 'output')),
      // an engine with a plan keeps the cache itself
      ...(decoder === undefined
        ? {}
        : { decoder: plan === undefined ? decoder : { ...decoder, state: [] } }),
      ...(this.text === undefined ? {} : { text: this.text }),
      program: plan === undefined ? onnx : { kind: 'plan', file: PLAN_PATH },
      weights: {
        bytes: this.layout.bytes,
        files: this.weightFiles,
        tensors: this.layout.placed.map(({ name, weight, offset }): WeightSpec => {
          const format = formats.get(name);
          const { dtype, shape, byteLength } = weight;
          const spec = { name, dtype, shape, offset, bytes: byteLength };
          return format === undefined ? spec : { ...spec, format };
        }),
      },
      files: this.sortedFiles(),
      memory: {
        ...memory,
        ...(plan === undefined || text === undefined
          ? {}
          : { text: tokenizerBytes(text.tokenizer.length) }),
      },
      ...(this.canaries === undefined ? {} : { canaries: this.canaries }),
      ...(this.quality === undefined ? {} : { quality: this.quality }),
      ...(calibration === undefined ? {} : { calibration }),
      recipe: { ...recipe },
      // wall times differ from run to run; undefined is left out
      passes: passes.map((report) => ({ ...report, wallMs: undefined })),
      warnings: this.warnings,
    };
  }
}

/** Inputs and outputs that a caller deals with. */
function interfaceOf(
  { graph }: Model,
  plan: EncodedPlan | undefined,
): { readonly inputs: readonly Value[]; readonly outputs: readonly Value[] } {
  if (plan === undefined) return graph;
  const { inputs, outputs } = plan.layout;
  const isIn = (tensors: typeof inputs, { name }: Value): boolean =>
    tensors.some((tensor) => tensor.name === name);
  return {
    inputs: graph.inputs.filter((value) => isIn(inputs, value)),
    outputs: graph.outputs.filter((value) => isIn(outputs, value)),
  };
}

function tensorSpec(value: Value, side: 'input' | 'output'): TensorSpec {
  const { name, dtype, shape } = value;
  if (dtype !== undefined && shape !== undefined)
    return {
      name,
      dtype,
      shape: shape.map((dim) => (typeof dim === 'number' ? dim : dimToText(dim))),
    };
  if (value.opaqueType !== undefined)
    throw new FettleError('OP_UNSUPPORTED', `The ${side} "${name}" is no tensor.`, {
      at: { value: name },
      fix: 'Export the model with tensors as inputs and outputs.',
    });
  throw new FettleError(
    'SHAPE_UNKNOWN',
    `The ${dtype === undefined ? 'dtype' : 'rank'} of the ${side} "${name}" is not known.`,
    { at: { value: name }, fix: 'Export the model with the types of its inputs and outputs.' },
  );
}

function checkOpset(model: Model, target: Target): void {
  const newest = target.limits.opset?.value;
  if (newest === undefined || model.opset <= newest) return;
  throw new FettleError(
    'OP_UNSUPPORTED',
    `The model uses ONNX opset ${model.opset}; target "${target.id}" reads up to ${newest}.`,
    {
      at: { target: target.id, opset: model.opset },
      fix: `Export the model with opset ${newest}.`,
    },
  );
}

function samplingDefaults(
  config: Readonly<Record<string, unknown>>,
): Record<string, number | boolean> {
  const found: Record<string, number | boolean> = {};
  for (const field of samplingFields) {
    const value = config[field];
    if (typeof value === 'boolean' || (typeof value === 'number' && Number.isFinite(value)))
      found[field] = value;
  }
  return found;
}

function hashOf(bytes: Uint8Array): string {
  return new Sha256().update(bytes).hex();
}
