/**
 * Rounds the units of a model in the order in which they run, each with the statistics of inputs that
 * come from what has been rounded before it: errors of early layers are seen by later ones.
 *
 *   per stage:  inputs of its units (no product of the stage is in the way)  ->  Hessians
 *               roundUnit                                                    ->  codes
 *               the stage with rounded weights                               ->  inputs of the next one
 *
 * That is one run of the model over the samples in all; two when the unquantized model runs beside
 * (`propagate`), so that a unit can aim at what the original gave. Codes are kept in the cache stage by
 * stage: what was interrupted goes on where it was, after a run of what is finished.
 *
 * Source: Frantar et al., GPTQ, arXiv:2210.17323; token weights: Sung et al., RSQ, arXiv:2503.01820;
 * targets of the original: Li et al., GPTAQ, arXiv:2504.02692.
 */
import { throwIfAborted } from '../../runtime/errors.ts';
import type { Node } from '../ir/graph.ts';
import { attentionInputs, isFusedAttention } from '../ops/fused-attention.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import type { CodeFormat } from '../quant/formats.ts';
import { dequantizeMatrix } from '../quant/matrix.ts';
import type { RoundedUnit } from '../quant/rounding.ts';
import { turn } from '../turn.ts';
import { VERSION } from '../version.ts';
import { Activations } from './activations.ts';
import {
  attentionReceived,
  hasTokenWeights,
  LEAST_TOKEN_WEIGHT,
  tokenWeights,
} from './attention-weights.ts';
import { cacheKey } from './cache.ts';
import type { Statistics } from './collect.ts';
import { earlyUnits } from './collect.ts';
import { namingNotFinite } from './find-not-finite.ts';
import { packRounded, unpackRounded } from './rounded-entry.ts';
import { StageSums } from './stage-sums.ts';
import { openStage } from './stage-runner.ts';
import type { StageRunner, Values } from './stage-runner.ts';
import type { Stage } from './stages.ts';
import { splitStages } from './stages.ts';
import type { UnitStatistics } from './statistics.ts';
import type { CalibrationServices, Subject } from './subject.ts';

/** Rounds one unit; statistics are absent when nothing is known about what it is multiplied with. */
export type RoundUnit = (
  unit: WeightUnit,
  format: CodeFormat,
  statistics: UnitStatistics | undefined,
) => RoundedUnit | Promise<RoundedUnit>;

/** Options of {@link roundSequentially}. */
export interface SequentialOptions {
  /** Everything that decides what `roundUnit` does, as JSON: part of the cache's keys. */
  readonly method: unknown;
  /** Statistics of the same subject: Hessians of tables that are read before their product. */
  readonly statistics?: Statistics | undefined;
  /** Weight tokens in Hessians by the attention they get. Default false. */
  readonly attention?: boolean;
  /** Weight of the token that gets the least, 0..1. Default 0.005. */
  readonly leastTokenWeight?: number;
  /** Run the unquantized model beside, for `cross` of the statistics. Default false. */
  readonly propagate?: boolean;
  /** Told after each unit. */
  readonly rounded?: (unit: WeightUnit, result: RoundedUnit) => void;
}

/**
 * Rounds units one stage after another.
 *
 * @param formats - by name of the unit; units without one stay as they are
 * @param roundUnit - rounds one
 * @returns codes and loss by name
 * @throws {@link FettleError} MODEL_INVALID naming the node whose values are not finite, OP_UNSUPPORTED
 * when no engine runs the model
 * @throws the signal's reason when aborted
 */
export async function roundSequentially(
  subject: Subject,
  formats: ReadonlyMap<string, CodeFormat>,
  roundUnit: RoundUnit,
  services: CalibrationServices,
  options: SequentialOptions,
): Promise<ReadonlyMap<string, RoundedUnit>> {
  const run = new SequentialRun(subject, formats, roundUnit, services, options);
  return namingNotFinite(subject, services, () => run.all());
}

/** Weights of tokens by sample. */
type TokenWeights = readonly Float32Array[];

class SequentialRun {
  private readonly subject: Subject;
  private readonly formats: ReadonlyMap<string, CodeFormat>;
  private readonly roundUnit: RoundUnit;
  private readonly services: CalibrationServices;
  private readonly options: SequentialOptions;
  private readonly stages: readonly Stage[];
  private readonly early: ReadonlySet<string>;
  private readonly results = new Map<string, RoundedUnit>();
  private readonly held: Activations;
  /** What the unquantized model holds at the same cut. */
  private readonly original: Activations | undefined;
  private tokens: TokenWeights | undefined;

  constructor(
    subject: Subject,
    formats: ReadonlyMap<string, CodeFormat>,
    roundUnit: RoundUnit,
    services: CalibrationServices,
    options: SequentialOptions,
  ) {
    this.subject = subject;
    this.formats = formats;
    this.roundUnit = roundUnit;
    this.services = services;
    this.options = options;
    this.stages = splitStages(subject.model, subject.units, { grain: 'linear' });
    this.early = earlyUnits(this.stages);
    this.held = new Activations(subject.samples, this.stages);
    this.original =
      options.propagate === true ? new Activations(subject.samples, this.stages) : undefined;
  }

  async all(): Promise<ReadonlyMap<string, RoundedUnit>> {
    const { stages, services } = this;
    const { cache, progress = () => {}, signal } = services;
    const keys = this.keys();
    const wanted = stages.map((stage) => this.unitsOf(stage));
    const kept = keys.map((key) => {
      const entry = cache?.read(key);
      return entry && unpackRounded(entry);
    });
    // behind the last unit to round, nothing is run
    const lastOpen = kept.findLastIndex(
      (entry, index) => entry === undefined && (wanted[index]?.length ?? 0) > 0,
    );
    for (const stage of stages) {
      throwIfAborted(signal);
      const { index } = stage;
      const units = wanted[index] ?? [];
      const entry = kept[index];
      if (entry !== undefined) {
        for (const unit of units) this.keep(unit, entry.get(unit.name));
        if (index < lastOpen) await this.lookAtAttention(stage);
      } else if (units.length > 0) {
        await this.round(stage, units);
        const made = units.flatMap(({ name }): [string, RoundedUnit][] => {
          const result = this.results.get(name);
          return result === undefined ? [] : [[name, result]];
        });
        cache?.write(keys[index] ?? '', packRounded(new Map(made)));
      }
      if (index < lastOpen) await this.propagate(stage);
      progress('round weights', index + 1, stages.length);
    }
    return this.results;
  }

  /** Keys of the stages: each depends on everything that is rounded before it. */
  private keys(): readonly string[] {
    const { method, statistics, attention, leastTokenWeight, propagate } = this.options;
    let key = cacheKey(
      'rounding',
      VERSION,
      this.subject.key,
      method,
      statistics?.key,
      attention,
      leastTokenWeight,
      propagate,
    );
    return this.stages.map((stage) => {
      const chosen = this.unitsOf(stage).map(({ name }) => [name, this.formats.get(name)?.name]);
      key = cacheKey(key, chosen);
      return key;
    });
  }

  /** Units that are rounded in a stage: where they are first read. */
  private unitsOf(stage: Stage): readonly WeightUnit[] {
    return stage.units.filter(
      (unit) =>
        this.formats.has(unit.name) &&
        this.stages.find(({ units }) => units.includes(unit)) === stage,
    );
  }

  private keep(unit: WeightUnit, result: RoundedUnit | undefined): void {
    if (result === undefined) return;
    this.results.set(unit.name, result);
    this.options.rounded?.(unit, result);
  }

  /** Collects the statistics of a stage's units and rounds them. */
  private async round(stage: Stage, units: readonly WeightUnit[]): Promise<void> {
    const isProduct = ({ name }: WeightUnit): boolean =>
      !this.early.has(name) && stage.taps.has(name);
    const products = units.filter(isProduct);
    // tables first: the products of the stage are behind them
    for (const unit of units)
      if (!isProduct(unit))
        await this.roundOne(unit, this.options.statistics?.units.get(unit.name));
    const statistics = await this.statisticsOf(stage, products);
    for (const unit of products) await this.roundOne(unit, statistics.get(unit.name));
  }

  private async roundOne(unit: WeightUnit, known: UnitStatistics | undefined): Promise<void> {
    const format = this.formats.get(unit.name);
    throwIfAborted(this.services.signal);
    if (format !== undefined) this.keep(unit, await this.roundUnit(unit, format, known));
  }

  private async statisticsOf(
    stage: Stage,
    units: readonly WeightUnit[],
  ): Promise<ReadonlyMap<string, UnitStatistics>> {
    const { algebra, signal } = this.services;
    const { original, held } = this;
    if (units.length === 0) return new Map();
    await this.lookAtAttention(stage);
    const sums = new StageSums(stage, units, { algebra, cross: original !== undefined });
    const taps = sums.taps.filter((tap) => !stage.inputs.includes(tap));
    const runner = taps.length === 0 ? undefined : await this.open(stage, taps);
    // its own, for a table in front of the products may have been rounded
    const second =
      original === undefined || taps.length === 0
        ? undefined
        : await openStage(stage.model(taps), { engines: this.services.engines, units: [] });
    try {
      for (let index = 0; index < held.count; index++) {
        await turn(signal);
        const values = await given(runner, held.of(index));
        const others = original && (await given(second, original.of(index)));
        sums.add(index, values, this.tokens?.[index], others);
      }
    } finally {
      await runner?.dispose();
      await second?.dispose();
    }
    return sums.finish();
  }

  /** Weights of tokens, for the units from here to the next attention. */
  private async lookAtAttention(stage: Stage): Promise<void> {
    if (this.options.attention !== true) return;
    const node = stage.nodes.find((one) => isFusedAttention(one) && hasTokenWeights(one));
    if (node !== undefined) this.tokens = await this.tokenWeightsOf(stage, node);
  }

  /** How much attention the tokens of each sample get, from queries and keys of products not yet rounded. */
  private async tokenWeightsOf(stage: Stage, node: Node): Promise<TokenWeights> {
    const { algebra } = this.services;
    const [q, k] = [node.input(attentionInputs.q), node.inputs[attentionInputs.k]];
    const wanted = [q, k].flatMap((value) => value?.name ?? []);
    const runner = await this.open(
      stage,
      wanted.filter((name) => !stage.inputs.includes(name)),
    );
    const found: Float32Array[] = [];
    try {
      for (let index = 0; index < this.held.count; index++) {
        const values = await given(runner, this.held.of(index));
        const queries = values.get(q.name);
        if (queries === undefined) continue;
        const received = attentionReceived(node, queries, values.get(k?.name ?? ''), algebra);
        const least = this.options.leastTokenWeight ?? LEAST_TOKEN_WEIGHT;
        found.push(tokenWeights(received, least));
      }
    } finally {
      await runner.dispose();
    }
    return found;
  }

  /** Runs a stage with what has been rounded, for the inputs of the next one. */
  private async propagate(stage: Stage): Promise<void> {
    const { signal } = this.services;
    const runner = await this.open(stage, stage.outputs);
    try {
      await this.held.advance(stage, runner, signal);
      if (this.original === undefined) return;
      for (const { name } of stage.units) runner.setWeight(name);
      await this.original.advance(stage, runner, signal);
    } finally {
      await runner.dispose();
    }
  }

  /** Part of a stage, with what has been rounded so far. */
  private open(stage: Stage, outputs: readonly string[]): Promise<StageRunner> {
    const weights = new Map<string, Float32Array>();
    for (const { name } of stage.units) {
      const result = this.results.get(name);
      if (result !== undefined) weights.set(name, dequantizeMatrix(result.matrix));
    }
    return openStage(stage.model(outputs), {
      engines: this.services.engines,
      units: stage.units,
      weights,
    });
  }
}

/** What is known of a sample, with what a runner adds. */
async function given(runner: StageRunner | undefined, values: Values): Promise<Values> {
  return runner === undefined ? values : new Map([...values, ...(await runner.run(values))]);
}
