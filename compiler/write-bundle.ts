/** One bundle of one target: quantize, lower, emit, check against memory and loss budgets. */
import { FettleError } from '../runtime/errors.ts';
import type { Target } from '../targets/target.ts';
import type { CompiledBundle, CompileOptions, Quality } from './compile-options.ts';
import { relativeLoss } from './compile-options.ts';
import { BundleWriter } from './emit/bundle.ts';
import { makeCanaries } from './emit/expected.ts';
import type { MemoryEstimate } from './emit/memory.ts';
import { estimateMemory } from './emit/memory.ts';
import { roundsAsTold } from './emit/rounded-inputs.ts';
import type { Output } from './emit/output.ts';
import { packedBytes } from './emit/tar.ts';
import type { Front, StoredWeights } from './front-half.ts';
import { backSteps, passOptions } from './front-half.ts';
import { cloneModel } from './ir/clone.ts';
import type { Model } from './ir/graph.ts';
import { inferModel } from './ir/infer.ts';
import { verifyModel } from './ir/verify.ts';
import type { LoweredModel } from './lower/ort.ts';
import { lowerForOrt } from './lower/ort.ts';
import type { EncodedPlan } from './lower/encode-plan.ts';
import { lowerForWasm } from './lower/wasm.ts';
import { isDequantize } from './ops/quantized.ts';
import { pipelineFrom } from './passes.ts';
import type { PassReport } from './passes/pass.ts';
import type { Manifest } from '../runtime/manifest.ts';
import { activationSummary } from './report/activations.ts';
import type { Recipe } from './recipe.ts';
import { isAuto } from './recipe.ts';
import type { SensitivityTable } from './search/table.ts';
import { encodeTable, TABLE_PATH } from './search/table.ts';
import { runPasses, sizeOfModel } from './run-passes.ts';
import { formatBytes } from './units.ts';

/** What one bundle is made from. */
export interface BuildRequest {
  /** The cleaned-up model. */
  readonly front: Front;
  /** What for. */
  readonly target: Target;
  /** Where it goes. */
  readonly output: Output;
  /** How. */
  readonly recipe: Recipe;
  /** Services of the caller. */
  readonly options: CompileOptions;
}

/** A complete bundle, not yet in its place, and what its own passes did. */
export interface BuiltBundle {
  /** Facts about it. */
  readonly bundle: CompiledBundle;
  /** Passes after the shared ones. */
  readonly reports: readonly PassReport[];
}

/** How weights are stored in one bundle. */
export interface WeightStorage extends StoredWeights {
  /** What the result calls it. Default: the format. */
  readonly label?: string;
  /** The table that formats were chosen from; travels with the bundle. */
  readonly table?: SensitivityTable;
  /** Data that codes were fitted to. */
  readonly calibration?: Manifest['calibration'];
  /** Whether inputs and outputs for `session.check()` are made. Default: as the recipe says. */
  readonly canaries?: boolean;
  /** Whether a loss beyond the recipe's is an error. Default true; a search looks at it itself. */
  readonly checksLoss?: boolean;
}

/**
 * From the cleaned-up model to a complete folder, with weights stored in one way.
 *
 * @throws {@link FettleError} BUDGET_EXCEEDED when the session needs more memory than the recipe allows
 */
export async function writeBundle(
  request: BuildRequest,
  storage: WeightStorage,
): Promise<BuiltBundle> {
  const { front, target, output, recipe, options } = request;
  const { format, assignments, table } = storage;
  const { decoder, facts, source } = front;
  const program = cloneModel(front.model);
  const passes = pipelineFrom(backSteps(target, recipe, storage));
  const reports = await runPasses(program, passes, {
    ...passOptions(options, `${target.id}-`),
    target,
  });
  const { lowered, report } = lower(program, request);
  reports.push(report);
  const { memory, warnings } = memoryOf(program, request, lowered);
  const writer = new BundleWriter(options.files, output.folder, {
    program,
    plan: lowered.plan,
    formats: lowered.formats,
    sessionOptions: lowered.sessionOptions,
    target,
    model: facts,
    decoder,
    text: source.text,
    generationConfig: source.config.generationConfig,
    recipe:
      format === undefined || isAuto(recipe.weights) ? recipe : { ...recipe, weights: format },
    ...(storage.calibration === undefined ? {} : { calibration: storage.calibration }),
    extraFiles: table === undefined ? [] : [{ path: TABLE_PATH, bytes: encodeTable(table) }],
    passes: [...front.reports, ...reports],
    warnings: [...front.warnings, ...lowered.warnings, ...warnings],
    memory: memory.memory,
  });
  await writer.write({ progress: options.progress ?? (() => {}), signal: options.signal });
  const noCanaries =
    storage.canaries === false
      ? []
      : await addCanaries(writer, program, lowered.plan, memory, request);
  const quality = await addQuality(writer, request, storage.checksLoss ?? true);
  const { entries, sha256 } = writer.entries();
  output.prepare(entries);
  const bytes = output.packed
    ? packedBytes(entries)
    : entries.reduce((sum, file) => sum + file.bytes, 0);
  return {
    bundle: {
      path: output.path,
      target: target.id,
      bytes,
      weightBytes: writer.weightBytes,
      files: entries.length,
      sha256,
      weights: storage.label ?? format,
      activations: activationSummary({
        engine: target.engine,
        passes: [...front.reports, ...reports],
      }),
      averageBits: (8 * writer.weightBytes) / Math.max(1, facts.parameters),
      ...(assignments === undefined || table === undefined ? {} : { table }),
      memory: memory.memory,
      quality,
      warnings: [...writer.warnings, ...noCanaries],
    },
    reports,
  };
}

/** A model in the form of its engine: the graph itself, or a plan. */
interface Lowered extends Omit<LoweredModel, 'weightBytes'> {
  readonly plan?: EncodedPlan;
}

/** Lowering, reported like a pass. */
function lower(
  program: Model,
  { target, front, recipe }: BuildRequest,
): { readonly lowered: Lowered; readonly report: PassReport } {
  const before = sizeOfModel(program);
  const start = performance.now();
  if (target.engine === 'wasm') {
    const plan = lowerForWasm(program, {
      decoder: front.decoder,
      threads: target.threads ?? 1,
      kv: recipe.kv,
      ...(recipe.contextLength === undefined ? {} : { sequence: recipe.contextLength }),
    });
    const wallMs = performance.now() - start;
    const changed = { pass: 'lower-wasm', changed: true, before, after: before, wallMs };
    return {
      lowered: { ...plan, plan, sessionOptions: {}, refusals: [] },
      report: {
        ...changed,
        rewrites: {},
        refusals: [],
        notes: { steps: plan.layout.steps.length, products: productsOf(plan) },
      },
    };
  }
  const lowered = lowerForOrt(program, target);
  inferModel(program, { contradictions: 'warn' });
  verifyModel(program);
  const report = {
    pass: 'lower-ort',
    changed: true,
    before,
    after: sizeOfModel(program),
    wallMs: performance.now() - start,
    rewrites: {},
    refusals: lowered.refusals,
    notes: {},
  };
  return { lowered, report };
}

/** Steps that multiply weights by 8-bit activations, and by f32. */
function productsOf({ layout }: EncodedPlan): { readonly int8: number; readonly f32: number } {
  const count = (...kernels: readonly string[]): number =>
    layout.steps.filter(({ kernel }) => kernels.includes(kernel)).length;
  return { int8: count('LINEAR'), f32: count('DENSE', 'CONV') };
}

/** Estimated memory, held against the budget and the limits of the target. */
function memoryOf(
  program: Model,
  { front, target, recipe }: BuildRequest,
  { plan, sessionOptions }: Lowered,
): { readonly memory: MemoryEstimate; readonly warnings: readonly string[] } {
  const memory =
    plan === undefined
      ? estimateMemory(program, {
          decoder: front.decoder,
          foldsConstants: target.engine === 'ort',
          foldsDequantize: JSON.stringify(sessionOptions).includes('"disable_quant_qdq":"1"'),
        })
      : { memory: plan.memory, assumed: new Map<string, number>() };
  const { weights, arena, state, stack = 0, tokens } = memory.memory;
  const needed = weights + arena + state + stack;
  const parts = `${formatBytes(weights)} weights, ${formatBytes(arena)} activations, ${formatBytes(state)} state`;
  if (recipe.maxMemory !== undefined && needed > recipe.maxMemory)
    throw new FettleError(
      'BUDGET_EXCEEDED',
      `A session of the bundle for "${target.id}" needs ${formatBytes(needed)} (${parts}); the budget is ${formatBytes(recipe.maxMemory)}.`,
      {
        at: { target: target.id, option: 'maxMemory', bytes: needed },
        fix:
          tokens > 0 && weights + arena < recipe.maxMemory
            ? 'Give a smaller context length.'
            : 'Allow more memory, or use another target.',
      },
    );
  const warnings: string[] = [];
  if (needed > target.limits.memoryBytes.value)
    warnings.push(
      `A session needs ${formatBytes(needed)}, more than the ${formatBytes(target.limits.memoryBytes.value)} of target "${target.id}".`,
    );
  const stored = sizeOfModel(program).weightBytes;
  if (plan === undefined && weights > 1.25 * stored)
    warnings.push(
      `onnxruntime-web unpacks the weights when it loads them: ${formatBytes(stored)} in the bundle become ${formatBytes(weights)} in memory.`,
    );
  if (memory.assumed.size > 0) {
    const sizes = [...memory.assumed].map(([name, size]) => `${name}=${size}`).join(', ');
    warnings.push(`Activations are estimated for ${sizes}; the model leaves these sizes open.`);
  }
  return { memory, warnings };
}

/**
 * Accepted error of canaries as a fraction of the output's range. On WebAssembly the engine that
 * computes the expectation is the one that replays it; GPUs differ in order and precision of sums.
 */
const canaryTolerance = { wasm: 1e-3, webgpu: 2e-2 } as const;

/** The same, where the engine rounds activations to 8 bits in ways that the evaluator does not know. */
const ROUNDED_TOLERANCE = 5e-2;

/** Bound over the measured difference of rounding the other way, which another engine may do in part. */
const SPREAD_FACTOR = 3;

/** Sessions that need more than this are not run while compiling: half of what WebAssembly can hold. */
const RUNNABLE_BYTES = 2 ** 31;

/** Adds canaries, or returns the warning that there are none. */
async function addCanaries(
  writer: BundleWriter,
  program: Model,
  plan: EncodedPlan | undefined,
  { memory }: MemoryEstimate,
  { front, target, output, recipe, options }: BuildRequest,
): Promise<readonly string[]> {
  if (!recipe.canaries) return [];
  if (memory.weights > RUNNABLE_BYTES)
    return ['The bundle carries no canaries: the model is too large to run here.'];
  const inHalves =
    recipe.kv === 'f16' ||
    (recipe.kv === 'source' && front.decoder?.state.some(({ dtype }) => dtype === 'f16') === true);
  // rounding keys and values too moves what is rounded after them
  const rounds = plan !== undefined && !inHalves && roundsAsTold(program, plan.layout);
  const canaries = await makeCanaries({
    program,
    decoder: front.decoder,
    keepsCache: target.engine === 'ort',
    rounds,
    seed: recipe.seed,
    parameters: front.facts.parameters,
    folder: output.folder,
    run: options.run,
    signal: options.signal,
  });
  if (typeof canaries === 'string') return [`The bundle carries no canaries: ${canaries}.`];
  const isRounded = [...program.graph.nodes()].some((node) =>
    target.engine === 'wasm' ? isDequantize(node) : /^(Dynamic)?QuantizeLinear$/.test(node.op),
  );
  const most = canaryTolerance[target.provider ?? 'wasm'];
  const unknown = isRounded && !rounds && options.run === undefined;
  const tolerance = Math.max(most, SPREAD_FACTOR * canaries.spread);
  writer.addCanaries(canaries.cases, unknown ? ROUNDED_TOLERANCE : tolerance);
  return [];
}

/** Measures the bundle when the caller can, and holds the loss against the budget. */
async function addQuality(
  writer: BundleWriter,
  { target, output, recipe, options }: BuildRequest,
  checks: boolean,
): Promise<Quality | undefined> {
  const quality = await options.measure?.(output.folder, target);
  if (quality === undefined) return undefined;
  const loss = relativeLoss(quality);
  if (checks && recipe.maxLoss !== undefined && loss > recipe.maxLoss)
    throw new FettleError(
      'BUDGET_EXCEEDED',
      `${quality.metric} goes from ${quality.before} to ${quality.after}, a loss of ${percent(loss)}; the budget is ${percent(recipe.maxLoss)}.`,
      {
        at: { target: target.id, option: 'maxLoss' },
        fix: 'Use a weight format with more bits, or allow a larger loss.',
      },
    );
  writer.addQuality(quality);
  return quality;
}

function percent(fraction: number): string {
  return `${(fraction * 100).toFixed(2)}%`;
}
