/**
 * One target: which way weights are stored, and the bundle written so. With a size budget and no format
 * named, uniform formats are tried from the best on until the exact size fits; with calibration data
 * formats and codes are chosen weight by weight (build-calibrated.ts).
 */
import { FettleError } from '../runtime/errors.ts';
import { writeIntegers, writesIntegers } from './activations.ts';
import { buildCalibrated } from './build-calibrated.ts';
import { candidateFormats, leastWeightBytes } from './choose-format.ts';
import { fitTransforms } from './fit-transforms.ts';
import { isAuto } from './recipe.ts';
import type { CalibrationOptions } from './search/calibrated.ts';
import { fittedTransform } from './transforms.ts';
import { formatBytes } from './units.ts';
import type { BuildRequest, BuiltBundle } from './write-bundle.ts';
import { writeBundle } from './write-bundle.ts';

export type { BuildRequest, BuiltBundle } from './write-bundle.ts';

/**
 * Writes the bundle of one target, in the format of the recipe or in the best that meets its budget.
 *
 * @throws {@link FettleError} BUDGET_EXCEEDED when a budget is missed, USAGE when the recipe needs
 * calibration data and there is none
 */
export async function buildBundle(request: BuildRequest): Promise<BuiltBundle> {
  const { calibration } = request.options;
  checkUncalibrated(request);
  if (calibration === undefined)
    return writesIntegers(request.target, request.recipe)
      ? buildIntegers(request, undefined)
      : buildUncalibrated(request);
  const fitted = await fitTransforms(request, calibration);
  if (writesIntegers(request.target, request.recipe)) {
    const built = await buildIntegers(fitted.request, fitted.calibration);
    return { ...built, reports: [...fitted.reports, ...built.reports] };
  }
  const built = wantsCalibration(request)
    ? await buildCalibrated(fitted.request, fitted.calibration)
    : await buildUncalibrated(fitted.request);
  return { ...built, reports: [...fitted.reports, ...built.reports] };
}

/** Rounds to nearest, in the format of the recipe or the best uniform one that fits. */
async function buildUncalibrated(request: BuildRequest): Promise<BuiltBundle> {
  const { recipe, target, front, options, output } = request;
  const { weights, maxSize } = recipe;
  if (weights !== undefined || maxSize === undefined) {
    const built = await writeBundle(request, { format: weights });
    if (maxSize !== undefined && built.bundle.bytes > maxSize) throw tooLarge(built, maxSize);
    return built;
  }
  const candidates = candidateFormats(target);
  for (const candidate of candidates.slice(0, -1)) {
    if (leastWeightBytes(front.model, candidate) > maxSize) continue;
    const built = await writeBundle(request, { format: candidate });
    const { bytes } = built.bundle;
    if (bytes <= maxSize) return built;
    const name = candidate ?? 'the dtypes of the model';
    options.log?.info(`${target.id}: ${formatBytes(bytes)} with ${name}, over the budget.`);
    output.restart();
  }
  // built in any case, so that the message can name the exact floor
  const smallest = await writeBundle(request, { format: candidates.at(-1) });
  if (smallest.bundle.bytes > maxSize) throw nothingFits(smallest, maxSize);
  return smallest;
}

/** Products of 8-bit activations and weights, for onnxruntime. */
async function buildIntegers(
  request: BuildRequest,
  calibration: CalibrationOptions | undefined,
): Promise<BuiltBundle> {
  const {
    request: changed,
    reports,
    calibration: data,
  } = await writeIntegers(request, calibration);
  const built = await writeBundle(changed, {
    format: undefined,
    label: 'w8',
    ...(data === undefined ? {} : { calibration: data }),
  });
  const { maxSize } = request.recipe;
  if (maxSize !== undefined && built.bundle.bytes > maxSize) throw tooLarge(built, maxSize);
  return { ...built, reports: [...reports, ...built.reports] };
}

/** Whether calibration data decides anything: weights in codes, or a budget to choose formats by. */
function wantsCalibration({ recipe }: BuildRequest): boolean {
  const { weights, rounding, maxSize, maxMemory, maxLoss, transforms } = recipe;
  if (isAuto(weights)) return true;
  if (weights === undefined)
    return maxSize !== undefined || maxMemory !== undefined || maxLoss !== undefined;
  const isFitted = rounding !== 'nearest' || fittedTransform(transforms) !== undefined;
  return isFitted && weights !== 'f32' && weights !== 'f16';
}

/** What only calibration data makes possible. */
function checkUncalibrated({ recipe, options }: BuildRequest): void {
  const { weights, rounding = 'nearest', transforms } = recipe;
  const fitted = fittedTransform(transforms);
  const [option, what] = isAuto(weights)
    ? ['weights', `Choosing formats one by one (${weights})`]
    : rounding !== 'nearest'
      ? ['rounding', `Rounding by ${rounding}`]
      : ['transforms', `The transform ${fitted}`];
  const needsData = isAuto(weights) || rounding !== 'nearest' || fitted !== undefined;
  if (!needsData || options.calibration !== undefined) return;
  throw new FettleError('USAGE', `${what} needs data to calibrate on.`, {
    at: { option },
    fix: 'Add --calibrate <text, .npy or folder of images>, or --calibrate self.',
  });
}

function tooLarge({ bundle }: BuiltBundle, maxSize: number): FettleError {
  return new FettleError(
    'BUDGET_EXCEEDED',
    `The bundle for "${bundle.target}" takes ${formatBytes(bundle.bytes)} with weights in ${bundle.weights}; the budget is ${formatBytes(maxSize)}.`,
    {
      at: { target: bundle.target, option: 'maxSize', bytes: bundle.bytes },
      fix: 'Use a smaller format, or name none to have the best one chosen.',
    },
  );
}

function nothingFits({ bundle }: BuiltBundle, maxSize: number): FettleError {
  return new FettleError(
    'BUDGET_EXCEEDED',
    `No weight format brings the bundle for "${bundle.target}" under ${formatBytes(maxSize)}: the smallest, ${bundle.weights}, takes ${bundle.bytes} bytes.`,
    {
      at: { target: bundle.target, option: 'maxSize', bytes: bundle.bytes },
      fix: `Allow ${bundle.bytes} bytes (${formatBytes(bundle.bytes)}) or more, or use a smaller model.`,
    },
  );
}
