/**
 * Chooses formats for the units of a calibrated model: makes the sensitivity table, solves budgets from
 * it, measures what decides near the answer, and refines the answer when asked to.
 */
import { LiveModel } from '../calibrate/live-model.ts';
import { cacheKey } from '../calibrate/cache.ts';
import type { Statistics } from '../calibrate/collect.ts';
import { collectStatistics } from '../calibrate/collect.ts';
import type { UnitStatistics } from '../calibrate/statistics.ts';
import { subjectOf } from '../calibrate/subject.ts';
import { throwIfAborted } from '../../runtime/errors.ts';
import type { Assignment } from '../passes/quantize-weights.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import { unitRows } from '../passes/weight-units.ts';
import type { CodeFormat, WeightFormat } from '../quant/formats.ts';
import { parseFormat } from '../quant/formats.ts';
import type { QuantizedMatrix } from '../quant/matrix.ts';
import { dequantizeMatrix } from '../quant/matrix.ts';
import { roundUnit } from '../quant/round-unit.ts';
import { methodForTable } from '../quant/rounding.ts';
import { floatToHalf, halfToFloat } from '../../runtime/half.ts';
import { VERSION } from '../version.ts';
import type { AllocatedFormats } from './allocate.ts';
import { allocate, totals } from './allocate.ts';
import { baselineNames } from './baselines.ts';
import { zdOfBlocks } from './block-scores.ts';
import type { CalibratedModel } from './calibrated.ts';
import { evolve } from './evolve.ts';
import { keptNumber, keptRatings } from './kept.ts';
import { unitOptions } from './options.ts';
import type { UnitRatings } from './rate.ts';
import { rateFormats } from './rate.ts';
import type { KnownUnit, Measuring } from './sensitivity.ts';
import {
  boundaryRows,
  ladderOf,
  measureInteractions,
  measureRows,
  predictedTable,
} from './sensitivity.ts';
import type { Row, SensitivityTable } from './table.ts';

/** Bytes of Hessians that are held so that any format can be rounded at any time. */
const HELD_HESSIAN_BYTES = 512 * 2 ** 20;
/** Relative energy of the noise that gains are measured with: about that of 4 bits. */
const NOISE_ENERGY = 0.01;
/** Longest that gains, and each round of measurements, may take; what is left is predicted. */
const MEASURING_MS = 300_000;
/** Times that the rows near the answer are measured and the budget solved again. */
const ROUNDS = 2;
/** Predicted error of a baseline, relative to that of the solver's choice, up to which both are measured. */
const NEAR = 1.25;
/** Baselines that are measured, at most: each is a rounding of all weights. */
const MOST_NEAR = 2;
/** How many times measured error may be predicted error, or the other way round, before rows are measured. */
const MOST_OFF = 2;

/** What of the bundle no unit decides. */
export interface RestOfBundle {
  /** Weight bytes that no unit decides. */
  readonly fixedBytes: number;
  /** Bytes of other files. */
  readonly overheadBytes: number;
}

/** Formats, and codes in them. */
export interface RoundedFormats {
  /** The formats. */
  readonly formats: AllocatedFormats;
  /** Format and codes by name of the unit. */
  readonly assignments: ReadonlyMap<string, Assignment>;
  /** Measured error of the model, on the samples that formats are compared on. */
  readonly error: number;
}

/** A search in progress. */
export class FormatSearch {
  /** As far as it is known by now. */
  table: SensitivityTable;
  private readonly calibrated: CalibratedModel;
  private readonly statistics: ReadonlyMap<string, UnitStatistics>;
  private readonly live: LiveModel;
  private readonly alone = new Map<string, QuantizedMatrix>();
  private readonly units: ReadonlyMap<string, WeightUnit>;

  private constructor(
    calibrated: CalibratedModel,
    table: SensitivityTable,
    statistics: ReadonlyMap<string, UnitStatistics>,
    live: LiveModel,
  ) {
    this.calibrated = calibrated;
    this.table = table;
    this.statistics = statistics;
    this.live = live;
    this.units = new Map(calibrated.units.map((unit) => [unit.name, unit]));
  }

  /**
   * Opens a search: statistics, ratings and gains, or the table of an earlier run from the cache.
   *
   * @param facts - name, hash and parameters of the model
   */
  static async open(
    calibrated: CalibratedModel,
    facts: SensitivityTable['model'],
  ): Promise<FormatSearch> {
    const { subject, services, request, gate, fitted } = calibrated;
    const { target } = request;
    const method = calibrated.method();
    const ratings = new Map<string, UnitRatings>();
    const held = new HeldStatistics();
    const settings = { skip: request.recipe.skip, minElements: request.minElements ?? 4096 };
    const methods = [method, methodForTable(method)];
    const key = cacheKey('table', VERSION, subject.key, gate.sha256, target.id, methods, settings);
    // as it was, not as files of bundles have it: whoever finds it must choose the same
    const kept = services.cache?.read(key)?.json as SensitivityTable | undefined;
    const statistics = await collectStatistics(subject, services, {
      hessians: true,
      visit: (unit, found) => {
        held.keep(unit, found);
        if (kept === undefined) ratings.set(unit.name, rate(calibrated, unit, found));
      },
    });
    const measured = await subjectOf(request.model, request.decoder, gate, settings);
    const live = await LiveModel.open(measured, services);
    if (kept !== undefined) return new FormatSearch(calibrated, kept, held.all, live);
    for (const unit of calibrated.units)
      if (!ratings.has(unit.name)) ratings.set(unit.name, rate(calibrated, unit, undefined));
    const gains = await measureGains(calibrated, live, held.all);
    const zd = zdOfBlocks(calibrated.units, calibrated.roles);
    const lim = limOfUnits(statistics);
    const known = calibrated.units.flatMap((unit): KnownUnit[] => {
      const role = calibrated.roles.get(unit.name);
      const own = ratings.get(unit.name);
      if (role === undefined || own === undefined) return [];
      return [
        {
          unit,
          role,
          ratings: own,
          gain: gains.get(unit.name) ?? 0,
          hessianTrace: held.all.get(unit.name)?.hessianTrace ?? 0,
          scores: { lim: lim.get(unit.name) ?? 0, zd: zd.get(role.block) ?? 0 },
        },
      ];
    });
    const table = predictedTable(known, target, {
      model: facts,
      target: target.id,
      metric: live.metric,
      calibration: { sha256: fitted.sha256, tokens: fitted.count * fitted.tokens },
      rounding: calibrated.rounding,
      fixedBytes: 0,
      overheadBytes: 0,
    });
    services.cache?.write(key, { json: table, arrays: {} });
    return new FormatSearch(calibrated, table, held.all, live);
  }

  /** Says what of the bundle no unit decides. */
  setRest({ fixedBytes, overheadBytes }: RestOfBundle): void {
    this.table = { ...this.table, fixedBytes, overheadBytes };
  }

  /**
   * Formats for so many bytes of units, rounded as they are kept; undefined when nothing fits. Of the choices
   * that are in question, each rounded, the one that is measured to lose least.
   */
  async choose(bytes: number): Promise<RoundedFormats | undefined> {
    const { allocate: method = 'ours', refine } = this.calibrated.request.recipe;
    let formats = this.solve(bytes);
    if (formats === undefined) return undefined;
    if (method === 'ours' && refine === 'evolve') formats = await this.evolved(formats, bytes);
    let best = await this.rounded(formats);
    if (method !== 'ours') return best;
    const others = async (): Promise<readonly AllocatedFormats[]> => {
      const near = baselineNames
        .flatMap((name) => allocate(this.table, { bytes }, name) ?? [])
        .filter(({ error }) => error <= NEAR * best.formats.error)
        .toSorted((a, b) => a.error - b.error);
      const again = (await this.compared(best)) ? this.solve(bytes) : undefined;
      return [...near.slice(0, MOST_NEAR), ...(again === undefined ? [] : [again])];
    };
    for (const other of await others()) {
      const rounded = await this.rounded(other);
      if (rounded.error < best.error) best = rounded;
    }
    return best;
  }

  /** Formats rounded as they are kept, and the error that the model has with them. */
  async rounded(formats: AllocatedFormats): Promise<RoundedFormats> {
    const { rows } = formats;
    const assignments = await this.calibrated.round(
      new Map(rows.map(({ unit, option }) => [unit, parseFormat(option)])),
    );
    for (const [unit, { format, matrix }] of assignments)
      this.live.setWeight(
        unit,
        matrix === undefined ? this.valuesOf(unit, format.name) : dequantizeMatrix(matrix),
      );
    const error = await this.live.kl();
    this.live.reset();
    return { formats, assignments, error };
  }

  /**
   * Holds the table against a measurement of the whole. Where they are far apart, rows near the choice are
   * measured one by one, and pairs of units.
   *
   * @returns whether the table is another one now
   */
  async compared({ formats, error }: RoundedFormats): Promise<boolean> {
    if (this.table.whole !== undefined) return false;
    const whole = { predicted: short(formats.error), measured: short(error) };
    this.table = { ...this.table, whole };
    const isFar = error > MOST_OFF * formats.error || formats.error > MOST_OFF * error;
    if (!isFar) return false;
    const measuring = this.measuring();
    let chosen = formats;
    for (let round = 0; round < ROUNDS; round++) {
      const rows = boundaryRows(this.table, chosen);
      if (rows.length === 0) break;
      this.table = await measureRows(this.table, rows, measuring);
      chosen = this.solve(formats.bytes) ?? chosen;
    }
    this.table = await measureInteractions(this.table, chosen, measuring);
    return true;
  }

  /** Formats from what is known by now, nothing measured. */
  solve(bytes: number): AllocatedFormats | undefined {
    const method = this.calibrated.request.recipe.allocate ?? 'ours';
    return allocate(this.table, { bytes }, method);
  }

  /** Releases the model in memory. */
  async close(): Promise<void> {
    await this.live.dispose();
  }

  private measuring(): Measuring {
    const { progress, signal } = this.calibrated.services;
    return {
      probe: this.live,
      round: (unit, option) => this.valuesOf(unit, option),
      ...(progress === undefined ? {} : { progress }),
      signal,
      seed: this.calibrated.request.recipe.seed,
      timeMs: MEASURING_MS,
    };
  }

  /** Mutants of a choice, measured. */
  private async evolved(chosen: AllocatedFormats, bytes: number): Promise<AllocatedFormats> {
    const { table, live } = this;
    const ladders = table.units.map(({ name }) => ladderOf(table, name));
    const start = chosen.rows.map((row, unit) =>
      Math.max(0, ladders[unit]?.findIndex(({ option }) => option === row.option) ?? 0),
    );
    const rowsOf = (choice: readonly number[]): readonly Row[] =>
      choice.flatMap((option, unit) => ladders[unit]?.[option] ?? []);
    const now = new Map<string, string>();
    const { progress, signal } = this.calibrated.services;
    const tokens = Math.max(1, this.calibrated.gate.tokens);
    const found = await evolve(
      {
        costs: ladders.map((rows) => rows.map(({ bytesDownload }) => bytesDownload)),
        budget: bytes,
        start,
        fitness: async (choice, wanted) => {
          for (const { unit, option } of rowsOf(choice)) {
            if (now.get(unit) === option) continue;
            live.setWeight(unit, this.valuesOf(unit, option));
            now.set(unit, option);
          }
          return live.kl({ samples: Math.ceil(wanted / tokens) });
        },
      },
      {
        stages: evolveStages(live.samples * tokens),
        seed: this.calibrated.request.recipe.seed,
        timeMs: MEASURING_MS,
        ...(progress === undefined ? {} : { progress }),
        signal,
      },
    );
    live.reset();
    return totals(table, rowsOf(found.choice));
  }

  /** Values of a unit after rounding it alone, [rows, columns]. */
  private valuesOf(name: string, option: string): Float32Array {
    const format = parseFormat(option);
    const unit = this.units.get(name);
    if (unit === undefined) return new Float32Array();
    if (format.kind === 'float') return floatValues(unit, format);
    const matrix = this.matrixOf(name, format);
    return matrix === undefined ? new Float32Array() : dequantizeMatrix(matrix);
  }

  /** Codes of a unit rounded alone; kept. */
  private matrixOf(name: string, format: CodeFormat): QuantizedMatrix | undefined {
    const unit = this.units.get(name);
    const key = `${name}\n${format.name}`;
    const known = this.alone.get(key);
    if (known !== undefined || unit === undefined) return known;
    const { services } = this.calibrated;
    const method = { ...this.calibrated.methodOf(unit), sweeps: QUICK_SWEEPS };
    const statistics = this.statistics.get(name) ?? {};
    const { matrix } = roundUnit(unitRows(unit), format, method, statistics, services.algebra);
    this.alone.set(key, matrix);
    return matrix;
  }
}

function short(value: number): number {
  return Number(value.toPrecision(6));
}

/** Sweeps of coordinate descent for formats that are only compared. */
const QUICK_SWEEPS = 1;

/** Three stages of selection on growing parts of what there is. */
function evolveStages(tokens: number): { tokens: number; survivors: number }[] {
  return [
    { tokens: Math.ceil(tokens / 4), survivors: 4 },
    { tokens: Math.ceil(tokens / 2), survivors: 2 },
    { tokens, survivors: 1 },
  ];
}

function floatValues(unit: WeightUnit, format: WeightFormat): Float32Array {
  const values = unitRows(unit)
    .read(0, unit.rows)
    .slice(0, unit.rows * unit.columns);
  return format.name === 'f16' ? values.map((value) => halfToFloat(floatToHalf(value))) : values;
}

/** Statistics with their Hessians, as long as those fit. */
class HeldStatistics {
  /** By name of the unit. */
  readonly all = new Map<string, UnitStatistics>();
  private readonly seen = new Set<Float32Array>();
  private bytes = 0;

  keep(unit: WeightUnit, statistics: UnitStatistics): void {
    const { hessian, cross: _, ...rest } = statistics;
    const isKept = hessian !== undefined && (this.seen.has(hessian) || this.fits(hessian));
    this.all.set(unit.name, isKept ? { ...rest, hessian } : rest);
  }

  private fits(hessian: Float32Array): boolean {
    if (this.bytes + hessian.byteLength > HELD_HESSIAN_BYTES) return false;
    this.bytes += hessian.byteLength;
    this.seen.add(hessian);
    return true;
  }
}

function rate(
  calibrated: CalibratedModel,
  unit: WeightUnit,
  statistics: UnitStatistics | undefined,
): UnitRatings {
  const { request, services } = calibrated;
  const { recipe, target } = request;
  const all = unitOptions(unit, target, { convolutions: calibrated.convolutions });
  const isTable = unit.kind === 'table' && recipe.embeddings !== 'same';
  const formats = !isTable
    ? all
    : [parseFormat(recipe.embeddings === 'keep' ? 'f32' : recipe.embeddings)];
  const method = calibrated.methodOf(unit);
  const { subject } = calibrated;
  const names = formats.map(({ name }) => name);
  return keptRatings(
    services.cache,
    cacheKey('ratings', VERSION, subject.key, unit.name, names, method),
    () =>
      rateFormats(
        unitRows(unit),
        formats,
        method,
        statistics ?? {},
        services.algebra,
        services.signal,
      ),
  );
}

/** Noise gains by unit; those there was no time for get that of the nearest unit with the same part. */
async function measureGains(
  calibrated: CalibratedModel,
  live: LiveModel,
  statistics: ReadonlyMap<string, UnitStatistics>,
): Promise<ReadonlyMap<string, number>> {
  const { services, units, roles, request } = calibrated;
  const began = performance.now();
  const gains = new Map<string, number>();
  // spread over the model first, so that what is left out has a neighbour
  const order = [...units.keys()].sort((a, b) => reversedBits(a) - reversedBits(b));
  for (const [done, index] of order.entries()) {
    throwIfAborted(services.signal);
    const unit = units[index];
    if (unit === undefined) continue;
    if (performance.now() - began > MEASURING_MS) break;
    const known = statistics.get(unit.name);
    const samples = Math.ceil(live.samples / 2);
    const seed = request.recipe.seed + index;
    const { subject, gate } = calibrated;
    const key = cacheKey(
      'gain',
      VERSION,
      subject.key,
      gate.sha256,
      unit.name,
      samples,
      seed,
      NOISE_ENERGY,
    );
    const gain = await keptNumber(services.cache, key, async () => {
      const error = await live.probe(unit.name, NOISE_ENERGY, { samples, statistics: known, seed });
      return Math.max(0, error) / NOISE_ENERGY;
    });
    gains.set(unit.name, gain);
    services.progress?.('noise gains', done + 1, units.length);
  }
  for (const [index, unit] of units.entries()) {
    if (gains.has(unit.name)) continue;
    const part = roles.get(unit.name)?.part;
    const [nearest] = [...units.entries()]
      .filter(([, other]) => gains.has(other.name) && roles.get(other.name)?.part === part)
      .sort(([a], [b]) => Math.abs(a - index) - Math.abs(b - index));
    const all = [...gains.values()];
    const mean = all.reduce((sum, gain) => sum + gain, 0) / Math.max(1, all.length);
    gains.set(unit.name, nearest === undefined ? mean : (gains.get(nearest[1].name) ?? mean));
  }
  return gains;
}

/** Bits of a number in the other order: 0, 4, 2, 6, 1, … visits everywhere early. */
function reversedBits(value: number): number {
  let reversed = 0;
  for (let bit = 0; bit < 16; bit++) reversed = (reversed << 1) | ((value >> bit) & 1);
  return reversed;
}

/** `-cos(in, out)` of the stage a unit is in; 0 where stages have no comparable ends. */
function limOfUnits({ blocks }: Statistics): ReadonlyMap<string, number> {
  return new Map(
    blocks.flatMap(({ units, cosine }) => units.map((name) => [name, -(cosine ?? 0)] as const)),
  );
}
