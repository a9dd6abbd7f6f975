/**
 * What products multiply weights with: f32, or activations rounded to 8 bits.
 *
 *   wasm, wasm-threads   weights in codes are always multiplied by int8 activations, rounded as they come,
 *                        a scale per 32 inputs; weights in f32 or f16 by f32 activations
 *   ort-wasm             `auto` is f32, which is faster there (decisions/003). `int8`: weights s8, activations
 *                        u8; convolutions, and products whose values stay small, in static ranges from
 *                        calibration data, other products rounded as they come
 *   ort-webgpu           f32
 *
 * `"activations": "int8"`, or by name of weights or node: `{ "*": "int8", "head*": "f32" }`.
 */
import { FettleError } from '../runtime/errors.ts';
import type { Manifest } from '../runtime/manifest.ts';
import type { Target } from '../targets/target.ts';
import { activationRanges } from './calibrate/ranges.ts';
import { passOptions } from './front-half.ts';
import { cloneModel } from './ir/clone.ts';
import type { Model } from './ir/graph.ts';
import { foldConstants } from './passes/fold-constants.ts';
import { isSkipped } from './passes/skip-list.ts';
import type { PassReport } from './passes/pass.ts';
import type { QuantizeActivationsOptions } from './passes/quantize-activations.ts';
import { quantizeActivations, UNKNOWN_RANGES } from './passes/quantize-activations.ts';
import { parseFormat } from './quant/formats.ts';
import type { Recipe } from './recipe.ts';
import { isAuto } from './recipe.ts';
import { runPasses } from './run-passes.ts';
import type { CalibrationOptions } from './search/calibrated.ts';
import type { BuildRequest } from './write-bundle.ts';

/** A choice for all products, or by name of weights or nodes, where `*` stands for any text. */
export type Activations = 'auto' | 'f32' | 'int8' | Readonly<Record<string, 'f32' | 'int8'>>;

/**
 * Checks that a target computes with the activations a recipe asks for.
 *
 * @throws {@link FettleError} USAGE when it does not
 */
export function checkTargetActivations(target: Target, recipe: Recipe): void {
  const { activations = 'auto' } = recipe;
  if (activations === 'auto') return;
  const why = target.engine === 'ort' ? whyNotOrt(target, recipe) : whyNotWasm(activations, recipe);
  if (why === undefined) return;
  throw new FettleError('USAGE', `Target "${target.id}" cannot do as asked: ${why.message}.`, {
    at: { option: 'activations', target: target.id },
    fix: why.fix,
  });
}

interface Refused {
  readonly message: string;
  readonly fix: string;
}

function whyNotWasm(activations: Activations, recipe: Recipe): Refused | undefined {
  const { weights, maxSize, maxMemory, maxLoss } = recipe;
  const isChosen = [maxSize, maxMemory, maxLoss].some((budget) => budget !== undefined);
  const hasCodes =
    weights === undefined ? isChosen : isAuto(weights) || parseFormat(weights).kind !== 'float';
  if (choicesIn(activations).has('f32') && hasCodes)
    return {
      message: 'its kernels multiply weights in codes by 8-bit activations, never by f32',
      fix: 'Keep the weights in question in f16 with --skip <name> or --weights f16, or compile for ort-wasm.',
    };
  if (choicesIn(activations).has('int8') && !hasCodes)
    return {
      message: 'activations are rounded to 8 bits where weights are in codes, and these are not',
      fix: 'Add --weights w8g32, or fewer bits.',
    };
  return undefined;
}

function whyNotOrt(target: Target, { activations = 'auto', weights }: Recipe): Refused | undefined {
  if (!choicesIn(activations).has('int8')) return undefined;
  if (target.provider === 'webgpu')
    return { message: 'it has no products of 8-bit activations', fix: 'Compile for ort-wasm.' };
  if (weights === undefined || weights === 'w8') return undefined;
  return {
    message: `it multiplies 8-bit activations by weights in w8, one scale per output, not by ${weights}`,
    fix: 'Use --weights w8, or leave --activations out.',
  };
}

function choicesIn(activations: Activations): ReadonlySet<string> {
  return new Set(typeof activations === 'string' ? [activations] : Object.values(activations));
}

/** Whether products of 8-bit activations have to be written into the graph. */
export function writesIntegers({ engine }: Target, { activations = 'auto' }: Recipe): boolean {
  return engine === 'ort' && choicesIn(activations).has('int8');
}

/** Names of the recipe that are no weights and no node. */
function unmatched({ graph }: Model, { activations }: Recipe): readonly string[] {
  if (activations === undefined || typeof activations === 'string') return [];
  const names = [
    ...[...graph.constants].map(({ name }) => name),
    ...[...graph.nodes()].flatMap(({ name, from }) => [name, ...from]),
  ];
  return Object.keys(activations)
    .filter((pattern) => !isSkipped(names, [pattern]))
    .map((pattern) => `activations: nothing is called "${pattern}".`);
}

/** Which products the pass touches. */
function chosen({ activations = 'auto', skip }: Recipe): QuantizeActivationsOptions {
  if (typeof activations === 'string') return { skip };
  const named = (wanted: string): readonly string[] =>
    Object.entries(activations).flatMap(([name, choice]) => (choice === wanted ? [name] : []));
  return { only: named('int8'), skip: [...skip, ...named('f32')] };
}

/** A request whose model multiplies integers. */
export interface IntegerRequest {
  /** The same for the changed model. */
  readonly request: BuildRequest;
  /** Of the passes that were run. */
  readonly reports: readonly PassReport[];
  /** Data that ranges come from. */
  readonly calibration?: Manifest['calibration'];
}

/**
 * Makes products of 8-bit activations for onnxruntime, with ranges from calibration data when there are
 * any; without, convolutions stay in f32.
 *
 * @throws {@link FettleError} MODEL_INVALID when a value is not finite, USAGE when the data does not fit
 */
export async function writeIntegers(
  request: BuildRequest,
  calibration: CalibrationOptions | undefined,
): Promise<IntegerRequest> {
  const { front, recipe, target, options } = request;
  const { progress, signal } = options;
  const products = chosen(recipe);
  const settings = { ...passOptions(options, `${target.id}-integers-`), target };
  const model = cloneModel(front.model);
  // f16 weights behind a Cast are weights like any other
  const folded = await runPasses(model, [foldConstants({ widen: true })], settings);
  const samples = await calibration?.samples(model, front.decoder);
  const ranges =
    calibration === undefined || samples === undefined
      ? {}
      : await activationRanges(
          model,
          front.decoder,
          samples,
          { engines: calibration.engines, progress, signal },
          products,
        );
  const made = await runPasses(model, [quantizeActivations({ ...products, ranges })], settings);
  const reports = [...folded, ...made];
  const open = reports.flatMap(({ refusals }) =>
    refusals.filter(({ rule, why }) => rule === 'convolution' && why === UNKNOWN_RANGES),
  );
  const warnings =
    open.length === 0
      ? []
      : [`${open.length} convolutions stay in f32: their ranges come with --calibrate.`];
  return {
    request: {
      ...request,
      front: {
        ...front,
        model,
        reports: [...front.reports, ...reports],
        warnings: [...front.warnings, ...warnings, ...unmatched(front.model, recipe)],
      },
    },
    reports,
    ...(samples === undefined
      ? {}
      : {
          calibration: {
            dataSha256: samples.sha256,
            samples: samples.count,
            tokens: samples.count * samples.tokens,
          },
        }),
  };
}
