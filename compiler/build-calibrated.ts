/**
 * One target with calibration data: codes fitted to the data in one format for all weights, or a format
 * for each weight chosen by what it costs and what it breaks.
 *
 *   w4g32          round all units in that format
 *   auto:4.2       table -> solve 4.2 bits a parameter -> measure what decides -> solve -> round
 *   --max-size     the same for the bytes that the rest of the bundle leaves; never exceeded
 *   --max-loss     the smallest size whose measured loss is within the bound on both parts of the data
 */
import { FettleError } from '../runtime/errors.ts';
import type { CompiledBundle, CompileOptions } from './compile-options.ts';
import { relativeLoss } from './compile-options.ts';
import { WEIGHT_ALIGNMENT } from './emit/layout.ts';
import type { Assignment } from './passes/quantize-weights.ts';
import { parseFormat } from './quant/formats.ts';
import type { Recipe } from './recipe.ts';
import { averageBits, isAuto } from './recipe.ts';
import type { AllocatedFormats } from './search/allocate.ts';
import { belowFloor, leastBytes, mostBytes, unitBudget } from './search/allocate.ts';
import { bytesOf } from './search/baselines.ts';
import type { CalibrationOptions } from './search/calibrated.ts';
import { CalibratedModel, MIN_MIXED_ELEMENTS } from './search/calibrated.ts';
import type { RoundedFormats } from './search/format-search.ts';
import { FormatSearch } from './search/format-search.ts';
import { ladderOf } from './search/sensitivity.ts';
import type { Row, SensitivityTable } from './search/table.ts';
import type { Trial } from './search/tolerance.ts';
import { searchTolerance } from './search/tolerance.ts';
import { formatBytes } from './units.ts';
import { choiceOf } from './transforms.ts';
import type { BuildRequest, BuiltBundle, WeightStorage } from './write-bundle.ts';
import { writeBundle } from './write-bundle.ts';

/** Times that a bundle is built again because it came out larger than predicted. */
const REBUILDS = 5;
/** Measured loss over predicted KL before anything is measured: data are never quite those calibrated on. */
const EXPECTED_RATIO = 2.5;
/** After this long, in milliseconds, a search for the smallest bundle within a loss takes what it has. */
const TRIALS_MS = 600_000;
/** Trials at most: each rounds all weights, one after the other. */
const TRIALS = 4;

/** How a bundle is written. */
type WriteSettings = Pick<BuildRequest, 'options'> & Pick<WeightStorage, 'canaries'>;

/**
 * Writes the bundle of a target with weights fitted to data.
 *
 * @throws {@link FettleError} BUDGET_EXCEEDED when a budget cannot be met, naming the floor
 */
export async function buildCalibrated(
  request: BuildRequest,
  calibration: CalibrationOptions,
): Promise<BuiltBundle> {
  const { front, target, recipe, options } = request;
  const { progress, signal } = options;
  const isMixed = recipe.weights === undefined || isAuto(recipe.weights);
  const calibrated = await CalibratedModel.open({
    model: front.model,
    decoder: front.decoder,
    target,
    recipe,
    calibration,
    progress,
    signal,
    ...(isMixed ? { minElements: MIN_MIXED_ELEMENTS } : {}),
  });
  const build = new CalibratedBuild(request, calibrated);
  if (!isMixed) return build.uniform(recipe.weights ?? 'f32');
  return recipe.maxLoss === undefined ? build.withinBudget() : build.withinLoss(recipe.maxLoss);
}

class CalibratedBuild {
  private readonly request: BuildRequest;
  private readonly calibrated: CalibratedModel;

  constructor(request: BuildRequest, calibrated: CalibratedModel) {
    this.request = request;
    this.calibrated = calibrated;
  }

  /** All units in one format. */
  async uniform(weights: string): Promise<BuiltBundle> {
    const { calibrated, request } = this;
    const formats = calibrated.uniform(parseFormat(weights));
    const assignments = await calibrated.round(formats);
    const built = await writeBundle(request, {
      ...this.storage(),
      ...(await this.shifts(assignments)),
      format: weights,
      assignments,
    });
    this.checkSize(built);
    return built;
  }

  /** Formats for a size, for average bits, for memory, or for all of them. */
  async withinBudget(): Promise<BuiltBundle> {
    const { recipe, target, options, output, front } = this.request;
    const { parameters } = front.facts;
    const bits = averageBits(recipe.weights);
    const search = await this.search();
    try {
      for (let attempt = 0; ; attempt++) {
        const { table } = search;
        const budget = this.unitBytes(table);
        const rounded = await search.choose(budget);
        if (rounded === undefined) throw this.belowFloor(table, budget);
        const { formats: chosen } = rounded;
        options.log?.info(
          `${target.id}: ${formatBytes(chosen.bytes)} of ${formatBytes(budget)} for weights in ${new Set(chosen.rows.map(({ option }) => option)).size} formats, predicted ${table.metric} ${chosen.error.toPrecision(3)}.`,
        );
        const built = await this.write(search, rounded, { options }).catch((error: unknown) => {
          const overMemory = bytesOverMemory(error, recipe);
          if (overMemory === undefined || attempt >= REBUILDS) throw error;
          // other formats are unpacked, or want other records of activations, than those of the smallest
          this.fixedMemory += withMargin(overMemory);
          return undefined;
        });
        if (built === undefined) {
          output.restart();
          continue;
        }
        const { bytes, weightBytes } = built.bundle;
        const overSize = recipe.maxSize === undefined ? 0 : bytes - recipe.maxSize;
        const overBits = bits === undefined ? 0 : weightBytes - (bits * parameters) / 8;
        if (overSize <= 0 && overBits <= 0) return built;
        // the rest of the bundle came out larger than in the smallest one
        if (attempt >= REBUILDS) this.checkSize(built);
        search.setRest({
          fixedBytes: table.fixedBytes + withMargin(overBits),
          overheadBytes: table.overheadBytes + withMargin(overSize),
        });
        output.restart();
      }
    } finally {
      await search.close();
    }
  }

  /**
   * The smallest size whose measured loss is within a bound. Every trial is rounded as it would be kept,
   * written, and measured on two parts of the data; what it was is kept in memory, and the smallest that
   * held is written once more.
   */
  async withinLoss(bound: number): Promise<BuiltBundle> {
    const { target, output, options } = this.request;
    const { measure } = options;
    // compile() has checked that there is one
    if (measure === undefined) return this.withinBudget();
    const search = await this.search();
    try {
      const { table } = search;
      const most = Math.min(mostBytes(table), this.unitBytes(table));
      const least = leastBytes(table);
      if (most < least) throw this.belowFloor(table, most);
      const began = performance.now();
      const held = new Map<AllocatedFormats, RoundedFormats>();
      const found = await searchTolerance(
        {
          bound,
          least,
          most,
          ratio: EXPECTED_RATIO,
          predict: (bytes) => search.solve(bytes)?.error ?? Infinity,
          choose: (bytes) => {
            const value = search.solve(bytes) ?? search.solve(least);
            if (value === undefined) throw this.belowFloor(search.table, bytes);
            return { value, bytes: value.bytes };
          },
          measure: async ({ value }) => {
            const rounded = await search.rounded(value);
            const { bundle } = await this.write(search, rounded, {
              options: withoutMeasure(options),
              canaries: false,
            });
            let loss = 0;
            for (const part of ['first', 'second'] as const)
              if (loss <= bound)
                loss = Math.max(loss, relativeLoss(await measure(output.folder, target, part)));
            options.log?.info(`${target.id}: ${formatBytes(bundle.bytes)}, ${percent(loss)} loss.`);
            if (loss <= bound) held.set(value, rounded);
            output.restart();
            // the first one says whether the table is to be trusted
            await search.compared(rounded);
            return loss;
          },
        },
        { evaluations: TRIALS, goesOn: () => performance.now() - began < TRIALS_MS },
      );
      const { best, trials } = found;
      const kept = best && held.get(best.value);
      if (kept === undefined) throw neverWithin(bound, trials, target.id);
      const built = await this.write(search, kept, { options });
      this.checkSize(built);
      return built;
    } finally {
      await search.close();
    }
  }

  /** Opens the search, and builds the smallest bundle once for what of it no unit decides. */
  private async search(): Promise<FormatSearch> {
    const { request, calibrated } = this;
    const { name, sha256, parameters } = request.front.facts;
    const search = await FormatSearch.open(calibrated, { name, sha256, parameters });
    const { table } = search;
    const smallest = table.units.flatMap(({ name: unit }) => ladderOf(table, unit)[0] ?? []);
    const assignments = new Map(
      smallest.map(({ unit, option }) => [unit, { format: parseFormat(option) }]),
    );
    const { bundle } = await writeBundle(
      // quality and memory budgets are for the bundle that is kept
      {
        ...request,
        recipe: withoutBudgets(request.recipe),
        options: withoutMeasure(request.options),
      },
      { ...this.storage(), format: undefined, assignments, table, canaries: false },
    );
    request.output.restart();
    this.fixedMemory = memoryBytes(bundle.memory) - resident(smallest);
    search.setRest({
      fixedBytes: bundle.weightBytes - bytesOf(smallest),
      overheadBytes: bundle.bytes - bundle.weightBytes,
    });
    return search;
  }

  private fixedMemory = 0;

  /** Bytes for units under every budget of the recipe. */
  private unitBytes(table: SensitivityTable): number {
    const { weights, maxSize, maxMemory } = this.request.recipe;
    const bytes = unitBudget(table, { maxSize, averageBits: averageBits(weights) });
    // onnxruntime unpacks weights to f32 whatever their format: nothing to choose
    const isPacked = this.request.target.engine === 'wasm';
    const memory = maxMemory === undefined || !isPacked ? Infinity : maxMemory - this.fixedMemory;
    return Math.min(bytes, memory);
  }

  /** Nothing meets a budget of the recipe. */
  private belowFloor(table: SensitivityTable, budget: number): FettleError {
    const { weights, maxMemory } = this.request.recipe;
    const { fixedMemory } = this;
    return belowFloor(table, budget, {
      averageBits: averageBits(weights),
      memory: maxMemory === undefined ? undefined : { most: maxMemory, fixed: fixedMemory },
    });
  }

  /** Writes the bundle of rounded units. */
  private async write(
    search: FormatSearch,
    { formats, assignments }: RoundedFormats,
    { options, ...storage }: WriteSettings,
  ): Promise<BuiltBundle> {
    const table = {
      ...search.table,
      chosen: Object.fromEntries(formats.rows.map(({ unit, option }) => [unit, option])),
    };
    return writeBundle(
      { ...this.request, options },
      {
        ...this.storage(),
        ...(await this.shifts(assignments)),
        format: undefined,
        assignments,
        table,
        label: 'mixed',
        ...storage,
      },
    );
  }

  /** What biases make up for, when the recipe wants them to. */
  private async shifts(
    assignments: ReadonlyMap<string, Assignment>,
  ): Promise<Pick<WeightStorage, 'shifts'>> {
    const wanted = choiceOf('correct-bias', this.request.recipe.transforms) !== undefined;
    return wanted ? { shifts: await this.calibrated.biasShifts(assignments) } : {};
  }

  private storage(): Pick<WeightStorage, 'calibration' | 'minElements'> {
    const { fitted, request } = this.calibrated;
    const { sha256, count, tokens } = fitted;
    return {
      calibration: { dataSha256: sha256, samples: count, tokens: count * tokens },
      ...(request.minElements === undefined ? {} : { minElements: request.minElements }),
    };
  }

  private checkSize({ bundle }: BuiltBundle): void {
    const { maxSize, weights } = this.request.recipe;
    const bits = averageBits(weights);
    const isLarge = maxSize !== undefined && bundle.bytes > maxSize;
    if (!isLarge && (bits === undefined || bundle.averageBits <= bits)) return;
    throw new FettleError(
      'BUDGET_EXCEEDED',
      `The bundle for "${bundle.target}" takes ${formatBytes(bundle.bytes)} and ${bundle.averageBits.toFixed(3)} bits a parameter with weights in ${bundle.weights}; the budget is ${isLarge ? formatBytes(maxSize) : `${bits} bits`}.`,
      {
        at: { target: bundle.target, option: 'maxSize', bytes: bundle.bytes },
        fix: 'Use a smaller format, or name none to have formats chosen.',
      },
    );
  }
}

/** By how much a bundle needs more memory than the recipe allows, when that is what an error says. */
function bytesOverMemory(error: unknown, { maxMemory }: Recipe): number | undefined {
  if (!(error instanceof FettleError) || maxMemory === undefined) return undefined;
  const { option, bytes } = error.at;
  return option === 'maxMemory' && typeof bytes === 'number' ? bytes - maxMemory : undefined;
}

/** Bytes to leave for what came out too large; rounding and alignment may add some more. */
function withMargin(bytes: number): number {
  return bytes <= 0 ? 0 : Math.ceil(1.25 * bytes) + 2 * WEIGHT_ALIGNMENT;
}

function withoutBudgets(recipe: Recipe): Recipe {
  const { maxMemory: _, maxLoss: __, ...rest } = recipe;
  return rest;
}

function withoutMeasure(options: CompileOptions): CompileOptions {
  const { measure: _, ...rest } = options;
  return rest;
}

function resident(rows: readonly Row[]): number {
  return rows.reduce((sum, { bytesResident }) => sum + bytesResident, 0);
}

function memoryBytes({ weights, arena, state, stack = 0 }: CompiledBundle['memory']): number {
  return weights + arena + state + stack;
}

function neverWithin(
  bound: number,
  trials: readonly Trial<unknown>[],
  target: string,
): FettleError {
  const least = trials.reduce((a, { loss }) => Math.min(a, loss), Infinity);
  return new FettleError(
    'BUDGET_EXCEEDED',
    `No choice of formats for "${target}" loses at most ${percent(bound)}: the best that was measured loses ${percent(least)}.`,
    { at: { target, option: 'maxLoss' }, fix: 'Allow a larger loss, or calibrate on more data.' },
  );
}

function percent(fraction: number): string {
  return `${(fraction * 100).toFixed(2)}%`;
}
