/**
 * Transforms that calibration data decides, made on the model that a bundle is built from: divisors of
 * channels (`scale-channels`). Correcting biases waits until weights are rounded (build-calibrated.ts).
 */
import { Algebra } from './algebra/algebra.ts';
import type { ScaleMethod } from './calibrate/channel-scales.ts';
import { channelScales } from './calibrate/channel-scales.ts';
import { collectStatistics } from './calibrate/collect.ts';
import { subjectOf } from './calibrate/subject.ts';
import { passOptions } from './front-half.ts';
import { cloneModel } from './ir/clone.ts';
import { scaleChannels } from './passes/scale-channels.ts';
import type { IntegerFormat } from './quant/formats.ts';
import { integerFormat, parseFormat } from './quant/formats.ts';
import type { Recipe } from './recipe.ts';
import { averageBits, isAuto } from './recipe.ts';
import { runPasses } from './run-passes.ts';
import type { CalibrationOptions } from './search/calibrated.ts';
import { splitSamples } from './search/calibrated.ts';
import { choiceOf } from './transforms.ts';
import type { BuildRequest } from './write-bundle.ts';
import type { PassReport } from './passes/pass.ts';

/** A request whose model has been transformed, and what was done. */
export interface FittedRequest<Request> {
  /** The same for the transformed model. */
  readonly request: Request;
  /** The same data; samples are made once. */
  readonly calibration: CalibrationOptions;
  /** Of the passes that were run. */
  readonly reports: readonly PassReport[];
}

/**
 * Makes the fitted transforms of a recipe; gives back what it got when there are none.
 *
 * @throws {@link FettleError} USAGE when the samples do not fit the model, or are too few
 */
export async function fitTransforms<
  Request extends Pick<BuildRequest, 'front' | 'recipe' | 'target' | 'options'>,
>(request: Request, calibration: CalibrationOptions): Promise<FittedRequest<Request>> {
  const { front, recipe, target, options } = request;
  const choice = choiceOf('scale-channels', recipe.transforms);
  if (choice === undefined || choice === 'yes') return { request, calibration, reports: [] };
  const { model: original, decoder } = front;
  const samples = await calibration.samples(original, decoder);
  const { engines, cache } = calibration;
  const { progress, signal } = options;
  const { skip } = recipe;
  const subject = await subjectOf(original, decoder, splitSamples(samples).fitted, { skip });
  const algebra = await Algebra.create();
  const services = { engines, algebra, cache, progress, signal };
  const statistics = await collectStatistics(subject, services);
  const scales = channelScales(subject, statistics, methodOf(choice, recipe), algebra);
  const model = cloneModel(original);
  const reports = await runPasses(model, [scaleChannels({ scales })], {
    ...passOptions(options, `${target.id}-fitted-`),
    target,
  });
  return {
    request: {
      ...request,
      front: { ...front, model, reports: [...front.reports, ...reports] },
    },
    calibration: { ...calibration, samples: async () => samples },
    reports,
  };
}

function methodOf(choice: ScaleMethod['name'], recipe: Recipe): ScaleMethod {
  return choice === 'awq' ? { name: choice, format: roundedTo(recipe) } : { name: choice };
}

/** The format that divisors are searched for: the recipe's, or the integers nearest to it. */
function roundedTo({ weights = 'w4g32' }: Recipe): IntegerFormat {
  const format = isAuto(weights) ? undefined : parseFormat(weights);
  if (format?.kind === 'integer') return format;
  const bits = averageBits(weights) ?? 4;
  return integerFormat(bits < 2.75 ? 2 : bits < 3.75 ? 3 : 4, 32, false);
}
