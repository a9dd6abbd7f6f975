/**
 * Runs the samples through the unquantized model once and keeps running sums: statistics of every unit,
 * how alike input and output of the stages are (LIM, ../shared/ALGORITHMS.md Q2). Hessians live as long
 * as their stage; whoever needs them (the sensitivity table) looks at them then.
 *
 * A table that is read before its product is (tied embeddings) keeps its Hessian: it is rounded before
 * sequential rounding could know it.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Algebra } from '../algebra/algebra.ts';
import { unitRows } from '../passes/weight-units.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import { VERSION } from '../version.ts';
import { Activations } from './activations.ts';
import type { CacheEntry } from './cache.ts';
import { cacheKey } from './cache.ts';
import { namingNotFinite } from './find-not-finite.ts';
import { StageSums } from './stage-sums.ts';
import type { StageRunner, Values } from './stage-runner.ts';
import { openStage } from './stage-runner.ts';
import type { Stage } from './stages.ts';
import { splitStages } from './stages.ts';
import type { UnitStatistics } from './statistics.ts';
import { withoutHessian } from './statistics.ts';
import type { CalibrationServices, Subject } from './subject.ts';

/** How alike what a stage reads and what it gives are. */
export interface BlockStatistics {
  /** Place of the stage. */
  readonly index: number;
  /** Units in it. */
  readonly units: readonly string[];
  /** Mean cosine of input and output rows, where both have one shape; else undefined. */
  readonly cosine: number | undefined;
}

/** What one run over the samples found. */
export interface Statistics {
  /** Hash of model, samples, options and version. */
  readonly key: string;
  /** Samples run. */
  readonly samples: number;
  /** By name of the unit; Hessians only of tables that are read before their product. */
  readonly units: ReadonlyMap<string, UnitStatistics>;
  /** Stages in order. */
  readonly blocks: readonly BlockStatistics[];
}

/** Options of {@link collectStatistics}. */
export interface CollectOptions {
  /** Whether Hessians are collected for all units, for {@link visit} and the output energy. Default false. */
  readonly hessians?: boolean;
  /** Looks at a unit while its Hessian is there: from the cache too, which keeps some for it. */
  readonly visit?: (unit: WeightUnit, statistics: UnitStatistics) => void;
}

/** Bytes of Hessians that the cache keeps for {@link CollectOptions.visit}; later stages are summed up again. */
const KEPT_HESSIAN_BYTES = 64 * 2 ** 20;

/**
 * Collects the statistics of a subject. Stages found in the cache are only run, not summed up; when all
 * are, nothing is run.
 *
 * @throws {@link FettleError} MODEL_INVALID naming the node whose values are not finite, OP_UNSUPPORTED
 * when no engine runs the model
 * @throws the signal's reason when aborted
 */
export async function collectStatistics(
  subject: Subject,
  services: CalibrationServices,
  options: CollectOptions = {},
): Promise<Statistics> {
  return namingNotFinite(subject, services, () => collect(subject, services, options));
}

async function collect(
  subject: Subject,
  services: CalibrationServices,
  { hessians = false, visit }: CollectOptions,
): Promise<Statistics> {
  const { model, samples, units } = subject;
  const { engines, algebra, cache, signal, progress = () => {} } = services;
  const stages = splitStages(model, units);
  const early = earlyUnits(stages);
  const key = cacheKey('statistics', VERSION, subject.key, hessians);
  const found = new Map<string, UnitStatistics>();
  const blocks: BlockStatistics[] = [];
  const known = stages.map(({ index }) => {
    const entry = cache?.read(cacheKey(key, index));
    const kept = entry && unpack(entry);
    return visit === undefined || kept?.isWhole === true ? kept : undefined;
  });
  let keptBytes = 0;
  const lastUnknown = known.findLastIndex((entry) => entry === undefined);
  const held = new Activations(samples, stages);
  for (const stage of stages) {
    const entry = known[stage.index];
    if (entry !== undefined) {
      keptBytes += hessianBytes(entry.units);
      for (const unit of stage.units) {
        const statistics = entry.units.get(unit.name);
        if (statistics === undefined) continue;
        visit?.(unit, statistics);
        found.set(unit.name, early.has(unit.name) ? statistics : withoutHessian(statistics));
      }
      blocks.push(entry.block);
      if (stage.index > lastUnknown) continue;
    }
    const wantsHessian = (unit: WeightUnit): boolean => hessians || early.has(unit.name);
    const sums = [true, false].map(
      (hessian) =>
        new StageSums(
          stage,
          stage.units.filter((unit) => wantsHessian(unit) === hessian),
          { algebra: hessian ? algebra : undefined },
        ),
    );
    const taps = entry === undefined ? sums.flatMap((one) => one.taps) : [];
    // nobody asks for the outputs of the model
    const isLast = stage.index === stages.length - 1 && taps.length > 0;
    const wanted = [...new Set([...(isLast ? [] : stage.outputs), ...taps])].filter(
      (name) => !stage.inputs.includes(name),
    );
    const similarity = new Similarity(stage);
    const runner =
      wanted.length === 0 ? idle : await openStage(stage.model(wanted), { engines, units: [] });
    try {
      await held.advance(stage, runner, signal, (index, outputs) => {
        progress(
          'calibrate',
          stage.index * samples.count + index + 1,
          stages.length * samples.count,
        );
        if (entry !== undefined) return;
        const values = new Map([...held.of(index), ...outputs]);
        for (const one of sums) one.add(index, values);
        similarity.add(values);
      });
    } finally {
      await runner.dispose();
    }
    if (entry !== undefined) continue;
    const whole = new Map<string, UnitStatistics>();
    for (const one of sums)
      for (const [name, statistics] of one.finish()) {
        const unit = stage.units.find((other) => other.name === name);
        if (unit === undefined) continue;
        const outputEnergy = energyOf(unit, statistics, algebra);
        const complete = { ...statistics, outputEnergy };
        visit?.(unit, complete);
        whole.set(name, complete);
      }
    const units = new Map(
      [...whole].map(([name, one]) => [name, early.has(name) ? one : withoutHessian(one)]),
    );
    const block = {
      index: stage.index,
      units: stage.units.map(({ name }) => name),
      cosine: similarity.mean(),
    };
    keptBytes += hessianBytes(whole);
    const isWhole = visit !== undefined && keptBytes <= KEPT_HESSIAN_BYTES;
    cache?.write(cacheKey(key, stage.index), pack(isWhole ? whole : units, block, isWhole));
    for (const [name, statistics] of units) found.set(name, statistics);
    blocks.push(block);
  }
  return { key, samples: samples.count, units: found, blocks };
}

/** Bytes of the Hessians of units; those with the same inputs share one. */
function hessianBytes(units: ReadonlyMap<string, UnitStatistics>): number {
  const own = new Set([...units.values()].flatMap(({ hessian }) => hessian ?? []));
  return [...own].reduce((sum, { byteLength }) => sum + byteLength, 0);
}

/** Runs nothing: what is wanted crosses the cut. */
const idle: StageRunner = {
  engine: 'wasm',
  inputs: [],
  run: async () => new Map(),
  setWeight: () => {},
  dispose: async () => {},
};

/** Units that a stage reads before the stage that knows what they are multiplied with. */
export function earlyUnits(stages: readonly Stage[]): ReadonlySet<string> {
  const early = new Set<string>();
  const seen = new Set<string>();
  for (const { units, taps } of stages)
    for (const { name } of units) {
      if (taps.has(name) && seen.has(name)) early.add(name);
      seen.add(name);
    }
  return early;
}

/** Output channels that the energy of a product is computed for, at most; it is scaled to all. */
const MOST_ENERGY_ROWS = 4096;

/** tr(W H Wᵀ). */
function energyOf(unit: WeightUnit, { hessian }: UnitStatistics, algebra: Algebra): number {
  if (hessian === undefined) return 0;
  const { rows, columns } = unit;
  const source = unitRows(unit);
  const count = Math.min(rows, MOST_ENERGY_ROWS);
  let energy = 0;
  const step = 512;
  for (let first = 0; first < count; first += step) {
    const taken = Math.min(step, count - first);
    const weights = source.read(first, taken).slice(0, taken * columns);
    const product = algebra.matmul(weights, hessian, taken, columns, columns);
    for (let i = 0; i < product.length; i++) energy += (product[i] ?? 0) * (weights[i] ?? 0);
  }
  return (energy * rows) / count;
}

/**
 * The mean cosine of rows of what a stage reads and what it gives in the same shape: of the residual
 * stream, which is the only activation of that shape that crosses cuts between blocks.
 */
class Similarity {
  private readonly stage: Stage;
  private sum = 0;
  private rows = 0;

  constructor(stage: Stage) {
    this.stage = stage;
  }

  add(values: Values): void {
    const floats = (names: readonly string[]): (Tensor & { readonly data: Float32Array })[] =>
      names.map((name) => values.get(name)).filter(sameFloats);
    const inputs = floats(this.stage.inputs);
    const pairs = floats(this.stage.outputs).flatMap((after) =>
      inputs.flatMap((before) =>
        before.shape.length > 1 && before.shape.join() === after.shape.join()
          ? [{ before, after }]
          : [],
      ),
    );
    const last = pairs.at(-1);
    if (last === undefined) return;
    const { before, after } = last;
    const columns = before.shape.at(-1) ?? 1;
    for (let start = 0; start < before.data.length; start += columns) {
      let [xy, xx, yy] = [0, 0, 0];
      for (let i = start; i < start + columns; i++) {
        const [x, y] = [before.data[i] as number, after.data[i] as number];
        xy += x * y;
        xx += x * x;
        yy += y * y;
      }
      if (xx > 0 && yy > 0) this.sum += xy / Math.sqrt(xx * yy);
      this.rows++;
    }
  }

  mean(): number | undefined {
    return this.rows === 0 ? undefined : this.sum / this.rows;
  }
}

function sameFloats(
  value: Tensor | undefined,
): value is Tensor & { readonly data: Float32Array<ArrayBuffer> } {
  return value?.data instanceof Float32Array;
}

interface PackedUnit {
  readonly name: string;
  readonly numbers: Omit<UnitStatistics, 'absmax' | 'mean' | 'meanSquare' | 'hessian' | 'cross'>;
  /** Array that is its Hessian. */
  readonly hessian?: string;
}

interface PackedStage {
  readonly units: readonly PackedUnit[];
  readonly block: BlockStatistics;
  /** Whether the Hessians of all units are there. */
  readonly isWhole: boolean;
}

function pack(
  units: ReadonlyMap<string, UnitStatistics>,
  block: BlockStatistics,
  isWhole: boolean,
): CacheEntry {
  const arrays: Record<string, Float32Array> = {};
  const hessians = new Map<Float32Array, string>();
  const packed = [...units].map(([name, statistics], index): PackedUnit => {
    const { absmax, mean, meanSquare, hessian, cross: _, ...numbers } = statistics;
    Object.assign(arrays, {
      [`absmax ${index}`]: absmax,
      [`mean ${index}`]: mean,
      [`meanSquare ${index}`]: meanSquare,
    });
    if (hessian === undefined) return { name, numbers };
    const array = hessians.get(hessian) ?? `hessian ${index}`;
    hessians.set(hessian, array);
    arrays[array] = hessian;
    return { name, numbers, hessian: array };
  });
  const json: PackedStage = { units: packed, block, isWhole };
  return { json, arrays };
}

function unpack({ json, arrays }: CacheEntry): {
  readonly units: ReadonlyMap<string, UnitStatistics>;
  readonly block: BlockStatistics;
  readonly isWhole: boolean;
} {
  const { units, block, isWhole } = json as PackedStage;
  const floats = (name: string): Float32Array => arrays[name] as Float32Array;
  return {
    block: { ...block, cosine: block.cosine },
    isWhole,
    units: new Map(
      units.map(({ name, numbers, hessian }, index) => [
        name,
        {
          ...numbers,
          absmax: floats(`absmax ${index}`),
          mean: floats(`mean ${index}`),
          meanSquare: floats(`meanSquare ${index}`),
          ...(hessian === undefined ? {} : { hessian: floats(hessian) }),
        },
      ]),
    ),
  };
}
