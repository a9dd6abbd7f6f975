/**
 * A model with calibration data, opened once per target: what its units are, which formats they may have,
 * and rounding of all of them in their chosen formats.
 */
import { Algebra } from '../algebra/algebra.ts';
import type { UnitRole } from '../analyze/unit-roles.ts';
import { unitRoles } from '../analyze/unit-roles.ts';
import { biasShift } from '../calibrate/bias-shifts.ts';
import type { CalibrationCache } from '../calibrate/cache.ts';
import type { Statistics } from '../calibrate/collect.ts';
import { collectStatistics } from '../calibrate/collect.ts';
import type { Samples } from '../calibrate/samples.ts';
import { partOf } from '../calibrate/samples.ts';
import { roundSequentially } from '../calibrate/sequential.ts';
import type { StageEngines } from '../calibrate/stage-runner.ts';
import type { CalibrationServices, Subject } from '../calibrate/subject.ts';
import { subjectOf } from '../calibrate/subject.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import type { Target } from '../../targets/target.ts';
import type { Model } from '../ir/graph.ts';
import type { Progress } from '../passes/pass.ts';
import type { Assignment } from '../passes/quantize-weights.ts';
import type { ConvolutionChoice, WeightUnit } from '../passes/weight-units.ts';
import { unitFormat, unitRows } from '../passes/weight-units.ts';
import type { CodeFormat, WeightFormat } from '../quant/formats.ts';
import { parseFormat } from '../quant/formats.ts';
import type { RoundedUnit, RoundingMethod } from '../quant/rounding.ts';
import { methodForTable } from '../quant/rounding.ts';
import { roundUnit } from '../quant/round-unit.ts';
import type { Recipe, RoundingName } from '../recipe.ts';

/** Calibration data and what runs it; a part of the options of `compile()`. */
export interface CalibrationOptions {
  /**
   * Samples for a model.
   *
   * @param model - the front half's, shapes inferred
   * @param decoder - how it is driven, when it is a decoder
   */
  readonly samples: (model: Model, decoder: DecoderSpec | undefined) => Promise<Samples>;
  /** What runs the model on them. */
  readonly engines: StageEngines;
  /** Where results are kept, so that an interrupted compilation goes on. Absent: nowhere. */
  readonly cache?: CalibrationCache | undefined;
}

/** What is opened. */
export interface CalibratedRequest {
  /** The front half's model. */
  readonly model: Model;
  /** How it is driven. */
  readonly decoder: DecoderSpec | undefined;
  /** What for. */
  readonly target: Target;
  /** How. */
  readonly recipe: Recipe;
  /** Data. */
  readonly calibration: CalibrationOptions;
  /** Smallest constant that is a unit, in elements. Default: that of quantize-weights. */
  readonly minElements?: number;
  /** Told how far it is. */
  readonly progress?: Progress | undefined;
  /** Aborts between samples and units. */
  readonly signal?: AbortSignal | undefined;
}

/** Smallest constant that gets a format of its own, in elements: small models are made of small ones. */
export const MIN_MIXED_ELEMENTS = 1024;

/** Share of the samples that formats are compared on, and that nothing is fitted to: one in this many. */
const GATE_SHARE = 8;
/** Samples formats are compared on, at most, of text and of anything else. */
const GATE_SAMPLES = { text: 8, other: 64 } as const;

/** How many samples, the last ones, formats are compared on. */
export function gateCount({ count, tokens }: Pick<Samples, 'count' | 'tokens'>): number {
  const most = tokens > 1 ? GATE_SAMPLES.text : GATE_SAMPLES.other;
  return Math.min(most, Math.ceil(count / GATE_SHARE));
}

/**
 * The samples that anything is fitted to, and those that formats are compared on.
 *
 * @throws {@link FettleError} USAGE when there are too few
 */
export function splitSamples(samples: Samples): {
  readonly fitted: Samples;
  readonly gate: Samples;
} {
  const kept = gateCount(samples);
  if (samples.count < 2)
    throw new FettleError(
      'USAGE',
      `"${samples.name}" gives ${samples.count} sample; calibration needs 2 at least.`,
      { at: { data: samples.name }, fix: 'Give more data.' },
    );
  return {
    fitted: partOf(samples, 0, samples.count - kept),
    gate: partOf(samples, samples.count - kept, samples.count),
  };
}

/** A model, its units and its samples. */
export class CalibratedModel {
  /** Samples that codes are fitted to. */
  readonly fitted: Samples;
  /** Samples that formats are compared on. */
  readonly gate: Samples;
  /** The model as it runs on the samples. */
  readonly subject: Subject;
  /** Where the units stand in the model. */
  readonly roles: ReadonlyMap<string, UnitRole>;
  /** What everything that calibrates is given. */
  readonly services: CalibrationServices;
  /** What was asked for. */
  readonly request: CalibratedRequest;
  private statistics: Statistics | undefined;

  private constructor(
    request: CalibratedRequest,
    parts: Pick<CalibratedModel, 'fitted' | 'gate' | 'subject' | 'services'>,
  ) {
    this.request = request;
    this.fitted = parts.fitted;
    this.gate = parts.gate;
    this.subject = parts.subject;
    this.services = parts.services;
    this.roles = unitRoles(parts.subject.model, parts.subject.units);
  }

  /**
   * Opens a model.
   *
   * @throws {@link FettleError} USAGE when the samples do not fit it, or are too few
   */
  static async open(request: CalibratedRequest): Promise<CalibratedModel> {
    const { model, decoder, calibration, recipe, progress, signal } = request;
    const samples = await calibration.samples(model, decoder);
    const { fitted, gate } = splitSamples(samples);
    const settings = {
      skip: recipe.skip,
      ...(request.minElements === undefined ? {} : { minElements: request.minElements }),
    };
    const subject = await subjectOf(model, decoder, fitted, settings);
    const { engines, cache } = calibration;
    const services = { engines, algebra: await Algebra.create(), cache, progress, signal };
    return new CalibratedModel(request, { fitted, gate, subject, services });
  }

  /** The units. */
  get units(): readonly WeightUnit[] {
    return this.subject.units;
  }

  /** How the target treats convolutions. */
  get convolutions(): ConvolutionChoice {
    for (const step of this.request.target.pipeline) {
      if (typeof step === 'string' || step[0] !== 'quantize-weights') continue;
      const { convolutions } = step[1];
      if (convolutions === 'all' || convolutions === 'none') return convolutions;
    }
    return 'auto';
  }

  /** The rounding in force. */
  get rounding(): RoundingName {
    return this.request.recipe.rounding ?? 'gptq';
  }

  /** One format for all units, or the nearest that fits each; tables as the recipe says. */
  uniform(format: WeightFormat): Map<string, WeightFormat> {
    const { embeddings } = this.request.recipe;
    const formats = new Map<string, WeightFormat>();
    for (const unit of this.units) {
      const isOwn = unit.kind === 'table' && embeddings !== 'same';
      if (isOwn && embeddings === 'keep') continue;
      const wanted = isOwn ? parseFormat(embeddings) : format;
      if (wanted.kind === 'float') formats.set(unit.name, wanted);
      else {
        const fitting = unitFormat(unit, wanted, this.convolutions);
        if ('format' in fitting) formats.set(unit.name, fitting.format);
      }
    }
    return formats;
  }

  /**
   * Rounds units in their formats, one after the other, each seeing the errors of those before it.
   *
   * @param formats - by name of the unit; those left out stay as they are
   */
  async round(formats: ReadonlyMap<string, WeightFormat>): Promise<Map<string, Assignment>> {
    const codes = new Map<string, CodeFormat>();
    for (const [name, format] of formats) if (format.kind !== 'float') codes.set(name, format);
    const rounded = await this.rounded(codes);
    const f32 = parseFormat('f32');
    return new Map(
      this.units.map(({ name }): [string, Assignment] => {
        const result = rounded.get(name);
        const format = formats.get(name) ?? f32;
        if (result === undefined) return [name, { format }];
        return [name, { format, matrix: result.matrix, relativeError: result.relativeError }];
      }),
    );
  }

  private async rounded(
    formats: ReadonlyMap<string, CodeFormat>,
  ): Promise<ReadonlyMap<string, RoundedUnit>> {
    const method = this.method();
    const { algebra } = this.services;
    return roundSequentially(
      this.subject,
      formats,
      (unit, format, statistics) =>
        roundUnit(unitRows(unit), format, this.methodOf(unit), statistics ?? {}, algebra),
      this.services,
      {
        method: [method, methodForTable(method)],
        statistics: await this.collected(),
        attention: this.rounding === 'rsq',
        propagate: method.name === 'gptq',
      },
    );
  }

  /**
   * What biases need so that means of outputs stay what they are, by name of the unit; see the pass
   * `correct-bias`. Means are those of the model before rounding: with every output corrected, that is
   * what the next layer gets.
   */
  async biasShifts(
    assignments: ReadonlyMap<string, Assignment>,
  ): Promise<Readonly<Record<string, readonly number[]>>> {
    const { units } = await this.collected();
    return Object.fromEntries(
      this.units.flatMap((unit) => {
        const { matrix } = assignments.get(unit.name) ?? {};
        const known = units.get(unit.name);
        return matrix === undefined || known === undefined
          ? []
          : [[unit.name, biasShift(unit, { matrix }, known)] as const];
      }),
    );
  }

  /** Statistics of tables that are read before their product. */
  async collected(): Promise<Statistics> {
    this.statistics ??= await collectStatistics(this.subject, this.services);
    return this.statistics;
  }

  /** The rounding method in the words of `compiler/quant`. */
  method(): RoundingMethod {
    const { clip } = this.request.recipe;
    return { name: this.rounding === 'nearest' ? 'nearest' : 'gptq', clip: clip === 'mse' };
  }

  /** The method as a unit takes it: tables are also read row by row. */
  methodOf({ kind }: WeightUnit): RoundingMethod {
    const method = this.method();
    return kind === 'table' ? methodForTable(method) : method;
  }
}
