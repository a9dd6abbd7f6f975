/**
 * The part of a compilation that targets share: reading, checking, cleaning up and finding out how the
 * model is driven. Done once per distinct start of a pipeline; a bundle is the same whether its target
 * is compiled alone or with others.
 */
import { FettleError } from '../runtime/errors.ts';
import type { DecoderSpec, Manifest } from '../runtime/manifest.ts';
import type { PipelineStep, Target } from '../targets/target.ts';
import type { DecoderAnalysis } from './analyze/decoder.ts';
import { contextLengthIn } from './analyze/config.ts';
import { analyzeDecoder } from './analyze/decoder.ts';
import type { Candidate } from './choose-format.ts';
import { countParameters } from './choose-format.ts';
import type { CompileOptions } from './compile-options.ts';
import type { Model } from './ir/graph.ts';
import { inferModel } from './ir/infer.ts';
import { verifyModel } from './ir/verify.ts';
import { pipelineFrom } from './passes.ts';
import { exactAlgebra } from './passes/algebra.ts';
import type { PassReport } from './passes/pass.ts';
import type { Assignment } from './passes/quantize-weights.ts';
import type { Recipe } from './recipe.ts';
import type { RunPassesOptions } from './run-passes.ts';
import { runPasses } from './run-passes.ts';
import type { ModelSource } from './source.ts';
import { transformSteps } from './transforms.ts';

/** A cleaned-up model and what is known about it. */
export interface Front {
  /** The cleaned-up model. */
  readonly model: Model;
  /** What the manifest says about the model. */
  readonly facts: Manifest['model'];
  /** How it is driven. */
  readonly decoder: DecoderSpec | undefined;
  /** What the user should know. */
  readonly warnings: readonly string[];
  /** What the passes did. */
  readonly reports: readonly PassReport[];
  /** Where it comes from. */
  readonly source: ModelSource;
}

/** The part of the work that targets share: it is done once per distinct start of a pipeline. */
export class FrontHalves {
  /** What the passes of all front halves did. */
  readonly reports: PassReport[] = [];
  private readonly source: ModelSource;
  private readonly recipe: Recipe;
  private readonly options: CompileOptions;
  private readonly done = new Map<string, Front>();
  private sha256: string | undefined;

  constructor(source: ModelSource, recipe: Recipe, options: CompileOptions) {
    this.source = source;
    this.recipe = recipe;
    this.options = options;
  }

  /** The front half that a target's pipeline starts with. */
  async of(target: Target): Promise<Front> {
    const steps = frontSteps(target, this.recipe);
    const key = JSON.stringify(steps);
    let front = this.done.get(key);
    if (front === undefined) {
      front = await this.make(steps);
      this.done.set(key, front);
      this.reports.push(...front.reports);
    }
    return front;
  }

  /** How the model is driven; the recipe may shorten the context, so that memory stays in a budget. */
  private driven(model: Model): DecoderAnalysis {
    const analysis = analyzeDecoder(model, this.source.config);
    const { contextLength } = this.recipe;
    if (analysis.decoder === undefined || contextLength === undefined) return analysis;
    const allowed = analysis.decoder.contextLength;
    if (contextLength > allowed) throw tooLong(contextLength, allowed);
    return { ...analysis, decoder: { ...analysis.decoder, contextLength } };
  }

  /** The context that fused rotary tables have to cover. */
  private context(model: Model): { readonly contextLength?: number } {
    const { decoder } = this.driven(model);
    // a decoder that is going to get a cache is none yet
    const length =
      decoder?.contextLength ?? this.recipe.contextLength ?? contextLengthIn(this.source.config);
    return length === undefined ? {} : { contextLength: length };
  }

  private async make(steps: readonly PipelineStep[]): Promise<Front> {
    const { source, options } = this;
    const model = source.read();
    inferModel(model, { contradictions: 'warn' });
    verifyModel(model);
    const reports = await runPasses(model, pipelineFrom(steps, leftOut(this.recipe)), {
      ...passOptions(options, ''),
      ...this.context(model),
    });
    const { decoder, takesIds, reasons, warnings } = this.driven(model);
    this.sha256 ??= source.sha256();
    return {
      model,
      facts: {
        name: source.name,
        sha256: this.sha256,
        kind: decoder !== undefined ? 'decoder' : takesIds ? 'encoder' : 'model',
        parameters: countParameters(model),
      },
      decoder,
      warnings: [
        ...model.warnings,
        ...warnings,
        ...reasons.map((reason) => `It cannot generate text: ${reason}.`),
      ],
      reports,
      source,
    };
  }
}

function tooLong(wanted: number, allowed: number): FettleError {
  return new FettleError(
    'USAGE',
    `The recipe asks for a context of ${wanted} tokens; the model has ${allowed}.`,
    { at: { option: 'contextLength' }, fix: `Ask for at most ${allowed}.` },
  );
}

/** Passes that a recipe turns off. */
function leftOut({ fusion, algebra, cache }: Recipe): ReadonlySet<string> {
  return new Set([
    ...(fusion ? [] : ['fuse', 'fuse-expression', 'insert-kv-cache']),
    ...(algebra ? [] : exactAlgebra),
    ...(cache ? [] : ['insert-kv-cache']),
  ]);
}

/** Everything of the pipeline before weights are quantized, shapes filled in from the recipe. */
function frontSteps(target: Target, recipe: Recipe): readonly PipelineStep[] {
  const at = target.pipeline.findIndex(is('quantize-weights'));
  const own = at < 0 ? target.pipeline : target.pipeline.slice(0, at);
  const fix: PipelineStep = ['fix-inputs', { values: recipe.fixed }];
  const fixed = Object.keys(recipe.fixed).length === 0 ? own : [fix, ...own];
  const steps = [...fixed, ...transformSteps(recipe.transforms)];
  if (Object.keys(recipe.shapes).length === 0)
    return steps.filter((step) => !is('specialize-shapes')(step));
  const specialize: PipelineStep = ['specialize-shapes', { shapes: recipe.shapes }];
  if (!steps.some(is('specialize-shapes'))) return [specialize, ...steps];
  return steps.map((step) => (is('specialize-shapes')(step) ? specialize : step));
}

/** How the weights of one bundle are stored, as far as passes have to know. */
export interface StoredWeights {
  /** Format of what has none of its own; undefined keeps dtypes. */
  readonly format: Candidate;
  /** Formats, and perhaps codes, by the name of a constant. */
  readonly assignments?: ReadonlyMap<string, Assignment>;
  /** Smallest constant that is stored so, in elements. Default: that of quantize-weights. */
  readonly minElements?: number;
  /** What is added to biases, by the name of the weights; see the pass `correct-bias`. */
  readonly shifts?: Readonly<Record<string, readonly number[]>>;
}

/** Quantization as the recipe wants it, and what comes after it. */
export function backSteps(
  target: Target,
  recipe: Recipe,
  { format, assignments, minElements, shifts }: StoredWeights,
): readonly PipelineStep[] {
  const at = target.pipeline.findIndex(is('quantize-weights'));
  if (at < 0) return [];
  return target.pipeline.slice(at).flatMap((step): readonly PipelineStep[] => {
    if (!is('quantize-weights')(step)) return [step];
    if (format === undefined && assignments === undefined) return [];
    const own = typeof step === 'string' ? {} : step[1];
    const { embeddings, skip, clip } = recipe;
    const options = {
      ...own,
      format: format ?? 'f32',
      embeddings,
      skip,
      clip: clip === 'mse',
      ...(assignments === undefined ? {} : { assignments }),
      ...(minElements === undefined ? {} : { minElements }),
    };
    const quantize: PipelineStep = ['quantize-weights', options];
    return shifts === undefined ? [quantize] : [['correct-bias', { shifts }], quantize];
  });
}

function is(pass: string): (step: PipelineStep) => boolean {
  return (step) => (typeof step === 'string' ? step : step[0]) === pass;
}

/** Options for the runner of passes; texts of the model are dumped under `prefix`. */
export function passOptions(options: CompileOptions, prefix: string): RunPassesOptions {
  const { log, progress, signal, dump } = options;
  return {
    ...(log === undefined ? {} : { log }),
    ...(progress === undefined ? {} : { progress }),
    ...(signal === undefined ? {} : { signal }),
    ...(dump === undefined
      ? {}
      : {
          dump: (index, name, text) =>
            dump(`${prefix}${String(index).padStart(2, '0')}-${name}`, text),
        }),
  };
}
