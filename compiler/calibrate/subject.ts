/**
 * What is calibrated: a model of fixed sizes with its units and the samples it is run on. Made once,
 * used by the statistics, the rounding and the measurements.
 */
import type { DecoderSpec } from '../../runtime/manifest.ts';
import { sha256 } from '../../runtime/sha256.ts';
import type { Algebra } from '../algebra/algebra.ts';
import type { Model } from '../ir/graph.ts';
import { printModel } from '../ir/print.ts';
import type { Progress } from '../passes/pass.ts';
import type { UnitSettings, WeightUnit } from '../passes/weight-units.ts';
import { weightUnits } from '../passes/weight-units.ts';
import type { CalibrationCache } from './cache.ts';
import { fixedModel } from './fixed-model.ts';
import type { Samples } from './samples.ts';
import type { StageEngines } from './stage-runner.ts';

/** What everything that calibrates is given. */
export interface CalibrationServices {
  /** What runs stages. */
  readonly engines: StageEngines;
  /** Linear algebra. */
  readonly algebra: Algebra;
  /** Where results are kept; absent: nowhere. */
  readonly cache?: CalibrationCache | undefined;
  /** Told how far it is. */
  readonly progress?: Progress | undefined;
  /** Aborts between samples. */
  readonly signal?: AbortSignal | undefined;
}

/** A model and what it is run on. */
export interface Subject {
  /** Of fixed sizes, without caches. */
  readonly model: Model;
  /** How the original is driven. */
  readonly decoder: DecoderSpec | undefined;
  /** What is fed. */
  readonly samples: Samples;
  /** The constants in question, as values of `model`. */
  readonly units: readonly WeightUnit[];
  /** Hash of the model with its weights and of the samples. */
  readonly key: string;
}

/**
 * Prepares a model for calibration.
 *
 * @param model - the front half's; not changed
 * @param samples - see `samples.ts`
 * @throws {@link FettleError} USAGE when the samples do not fit the model
 */
export async function subjectOf(
  model: Model,
  decoder: DecoderSpec | undefined,
  samples: Samples,
  settings: UnitSettings = {},
): Promise<Subject> {
  const fixed = await fixedModel(model, decoder, samples.shapes);
  // the text of a model has a hash of every constant
  const hash = sha256(new TextEncoder().encode(printModel(fixed)));
  return {
    model: fixed,
    decoder,
    samples,
    units: weightUnits(fixed, settings),
    key: `${hash} ${samples.sha256}`,
  };
}
