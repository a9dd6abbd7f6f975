/**
 * A model in memory whose weights are changed and whose outputs are compared with the unquantized
 * model's, again and again: what a search measures with.
 *
 * All stages stay open. What crosses the cuts is held, of the reference and of the last run, so that
 * only the stages from the first changed one on are run.
 */
import { outOfRange } from '../../runtime/errors.ts';
import { createRandom } from '../../runtime/text/random.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import { unitRows } from '../passes/weight-units.ts';
import { turn } from '../turn.ts';
import type { ErrorMetric, OutputError } from './reference-outputs.ts';
import { ReferenceOutputs } from './reference-outputs.ts';
import type { StageRunner, Values } from './stage-runner.ts';
import { namingNotFinite } from './find-not-finite.ts';
import { openStage } from './stage-runner.ts';
import type { Stage } from './stages.ts';
import { splitStages } from './stages.ts';
import type { UnitStatistics } from './statistics.ts';
import { notFinite } from './statistics.ts';
import type { CalibrationServices, Subject } from './subject.ts';

/** Options of {@link LiveModel.open}. */
export interface LiveModelOptions {
  /** What errors are measured in. Default: `kl` where outputs are classes, else `relative-l2`. */
  readonly metric?: ErrorMetric;
  /** Classes of a row that are compared. Default 512. */
  readonly topClasses?: number;
}

/** Options of a measurement. */
export interface MeasureOptions {
  /** Only this many samples, the first ones. Default: all. */
  readonly samples?: number;
}

/** Options of {@link LiveModel.probe}. */
export interface ProbeOptions extends MeasureOptions {
  /** What the unit is multiplied with: then the noise is relative to the energy of its product. */
  readonly statistics?: Pick<UnitStatistics, 'hessianTrace' | 'outputEnergy'> | undefined;
  /** Which noise. Default 1. */
  readonly seed?: number;
}

/** A model whose weights change. */
export class LiveModel {
  /** Units that can be set. */
  readonly units: readonly WeightUnit[];
  /** What errors are measured in. */
  readonly metric: ErrorMetric;
  private readonly subject: Subject;
  private readonly signal: AbortSignal | undefined;
  private readonly stages: readonly Stage[];
  private readonly runners: readonly StageRunner[];
  private readonly outputs: ReferenceOutputs;
  private readonly cuts: Cuts;
  /** Units that are not the model's own, with the first stage that reads them. */
  private readonly changed = new Map<string, number>();

  private constructor(
    subject: Subject,
    services: CalibrationServices,
    stages: readonly Stage[],
    runners: readonly StageRunner[],
    options: LiveModelOptions,
  ) {
    this.subject = subject;
    this.signal = services.signal;
    this.units = subject.units;
    this.stages = stages;
    this.runners = runners;
    const { metric, topClasses } = options;
    this.outputs = new ReferenceOutputs(subject.model, subject.decoder, metric, topClasses);
    this.metric = this.outputs.metric;
    const names = subject.model.graph.outputs.map(({ name }) => name);
    this.cuts = new Cuts(stages, names, subject.samples.count);
  }

  /**
   * Opens a model and runs the reference.
   *
   * @param subject - with the samples that errors are measured on
   * @throws {@link FettleError} OP_UNSUPPORTED when no engine runs it, MODEL_INVALID when outputs are not
   * finite
   */
  static async open(
    subject: Subject,
    services: CalibrationServices,
    options: LiveModelOptions = {},
  ): Promise<LiveModel> {
    const stages = splitStages(subject.model, subject.units);
    const runners: StageRunner[] = [];
    try {
      for (const stage of stages) {
        await turn(services.signal);
        const { units } = stage;
        runners.push(
          await openStage(stage.model(stage.outputs), { engines: services.engines, units }),
        );
      }
      const live = new LiveModel(subject, services, stages, runners, options);
      await namingNotFinite(subject, services, () => live.reference(services));
      return live;
    } catch (error) {
      for (const runner of runners) await runner.dispose();
      throw error;
    }
  }

  /** Samples that can be measured on. */
  get samples(): number {
    return this.subject.samples.count;
  }

  /**
   * Replaces the matrix of a unit.
   *
   * @param values - [rows, columns]; absent: its own again
   * @throws RangeError when there is no such unit
   */
  setWeight(unit: string, values?: Float32Array): void {
    const first = this.stages.findIndex(({ units }) => units.some(({ name }) => name === unit));
    if (first < 0) throw outOfRange('unit', 'the name of a unit', unit);
    if (values === undefined && !this.changed.has(unit)) return;
    for (const runner of this.runners) runner.setWeight(unit, values);
    if (values === undefined) this.changed.delete(unit);
    else this.changed.set(unit, first);
    this.cuts.invalidate(first);
  }

  /** Gives every unit its own matrix again. */
  reset(): void {
    for (const unit of this.changed.keys()) this.setWeight(unit);
  }

  /**
   * How far the outputs are from the reference.
   *
   * @throws the signal's reason when aborted
   */
  async measure(options: MeasureOptions = {}): Promise<OutputError> {
    return this.compared(options, true);
  }

  private async compared(
    { samples = this.samples }: MeasureOptions,
    likelihood: boolean,
  ): Promise<OutputError> {
    const count = Math.min(samples, this.samples);
    let [error, agreement, nats] = [0, 0, 0];
    for (let index = 0; index < count; index++) {
      await turn(this.signal);
      const values = await this.run(index);
      const ids =
        likelihood && this.subject.decoder ? this.subject.samples.ids?.[index] : undefined;
      const one = this.outputs.compare(index, values, ids);
      error += one.error / count;
      agreement += one.agreement / count;
      nats += (one.nats ?? Number.NaN) / count;
    }
    return { error, agreement, ...(Number.isNaN(nats) ? {} : { nats }) };
  }

  /** The error alone; see {@link measure}. */
  async kl(options: MeasureOptions = {}): Promise<number> {
    return (await this.compared(options, false)).error;
  }

  /**
   * The error that white noise on one unit's weights makes, all other units as they are now. The noise
   * has `relative` times the energy of the unit's product, when its statistics are given; else of its
   * weights. The unit has its own matrix again afterwards.
   *
   * Source: ../shared/ALGORITHMS.md Z3, the suffix gain γ = error / relative.
   */
  async probe(name: string, relative: number, options: ProbeOptions = {}): Promise<number> {
    const unit = this.units.find((one) => one.name === name);
    if (unit === undefined) throw outOfRange('unit', 'the name of a unit', name);
    const values = unitRows(unit)
      .read(0, unit.rows)
      .slice(0, unit.rows * unit.columns);
    const { statistics, seed = 1 } = options;
    const variance =
      statistics !== undefined && statistics.hessianTrace > 0 && statistics.outputEnergy > 0
        ? statistics.outputEnergy / (unit.rows * statistics.hessianTrace)
        : values.reduce((sum, value) => sum + value * value, 0) / values.length;
    const deviation = Math.sqrt(relative * variance);
    const random = createRandom(seed);
    for (let i = 0; i < values.length; i += 2) {
      // two normal numbers at a time (Box and Muller)
      const radius = deviation * Math.sqrt(-2 * Math.log(1 - random()));
      const angle = 2 * Math.PI * random();
      values[i] = (values[i] as number) + radius * Math.cos(angle);
      if (i + 1 < values.length)
        values[i + 1] = (values[i + 1] as number) + radius * Math.sin(angle);
    }
    this.setWeight(name, values);
    try {
      return await this.kl(options);
    } finally {
      this.setWeight(name);
    }
  }

  /** Outputs of a sample with the weights as they are. */
  async run(index: number): Promise<Values> {
    const { stages, cuts } = this;
    const untouched = Math.min(stages.length - 1, ...this.changed.values());
    const start = cuts.start(index, untouched);
    let values = cuts.at(index, start, untouched);
    for (const stage of stages.slice(start)) {
      const feeds = new Map([...this.subject.samples.at(index), ...values]);
      const made = await this.runners[stage.index]?.run(feeds);
      values = cuts.keep(index, stage.index + 1, values, made ?? new Map());
    }
    return values;
  }

  /** Releases everything. */
  async dispose(): Promise<void> {
    for (const runner of this.runners) await runner.dispose();
  }

  private async reference({ progress = () => {} }: CalibrationServices): Promise<void> {
    for (let index = 0; index < this.samples; index++) {
      await turn(this.signal);
      const values = await this.run(index);
      for (const [name, { data }] of values)
        if (data instanceof Float32Array && data.some((value) => !Number.isFinite(value)))
          throw notFinite({ value: name, node: this.producerOf(name), sample: index });
      this.outputs.keep(index, values);
      progress('run the original', index + 1, this.samples);
    }
    this.cuts.becomeReference();
  }

  private producerOf(output: string): string {
    const value = this.subject.model.graph.outputs.find(({ name }) => name === output);
    return value?.producer?.name ?? '';
  }
}

/** What crosses the cuts, of the reference and of the last run of each sample. */
class Cuts {
  /** What stages from each one on read, and outputs of the model. */
  private readonly needed: readonly ReadonlySet<string>[];
  private reference: (readonly (Values | undefined)[])[] = [];
  /** [sample][stage]: values in front of it. */
  private readonly last: (Values | undefined)[][];
  /** Stages up to this one would be given in `last` what the weights give. */
  private readonly valid: Int32Array;

  constructor(stages: readonly Stage[], outputs: readonly string[], samples: number) {
    let later = new Set(outputs);
    const needed = [later];
    for (const stage of stages.toReversed()) {
      later = new Set([...later, ...stage.inputs]);
      needed.unshift(later);
    }
    this.needed = needed;
    this.last = Array.from({ length: samples }, () => []);
    this.valid = new Int32Array(samples);
  }

  /** Stage that a run of a sample begins with, when those in front of `untouched` are the reference's. */
  start(index: number, untouched: number): number {
    const own = this.valid[index] ?? 0;
    return this.reference.length === 0 ? own : Math.max(own, untouched);
  }

  /** Values in front of a stage. */
  at(index: number, stage: number, untouched: number): Values {
    const isReference = this.reference.length > 0 && stage <= untouched;
    const from = isReference ? this.reference[index] : this.last[index];
    return from?.[stage] ?? new Map();
  }

  /** Keeps what a stage is given, unless it is behind the last one; gives it. */
  keep(index: number, stage: number, before: Values, made: Values): Values {
    const values = new Map<string, Tensor>();
    const needed = this.needed[stage];
    for (const [name, value] of [...before, ...made])
      if (needed?.has(name) === true) values.set(name, value);
    if (stage === this.needed.length - 1) return values;
    const own = this.last[index];
    if (own !== undefined) own[stage] = values;
    this.valid[index] = stage;
    return values;
  }

  /** Weights of a stage have changed. */
  invalidate(stage: number): void {
    this.valid.forEach((last, index) => {
      this.valid[index] = Math.min(last, stage);
    });
  }

  /** What the last run held is the reference's. */
  becomeReference(): void {
    this.reference = this.last.map((cuts) => [...cuts]);
  }
}
