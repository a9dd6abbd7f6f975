/**
 * The statistics of the units of one stage, collected sample by sample. Units that are multiplied with
 * the same value (q, k and v; gate and up) share one set of sums.
 */
import type { Algebra } from '../algebra/algebra.ts';
import type { Node } from '../ir/graph.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import { createRandom } from '../../runtime/text/random.ts';
import { rowsOfSite } from './patches.ts';
import type { Stage } from './stages.ts';
import type { Values } from './stage-runner.ts';
import type { UnitStatistics } from './statistics.ts';
import { UnitSums } from './statistics.ts';

/** How statistics are collected. */
export interface StageSumsOptions {
  /** For Hessians; absent: none. */
  readonly algebra?: Algebra | undefined;
  /** Whether the unquantized model's values come as well. Default false. */
  readonly cross?: boolean;
}

interface Source {
  readonly unit: WeightUnit;
  readonly taps: readonly string[];
  readonly sums: UnitSums;
  readonly units: string[];
}

/** Sums for some units of a stage. */
export class StageSums {
  /** Values that have to be known of each sample. */
  readonly taps: readonly string[];
  private readonly sources: readonly Source[];
  private readonly producers: ReadonlyMap<string, Node>;

  constructor(stage: Stage, units: readonly WeightUnit[], options: StageSumsOptions = {}) {
    const sources = new Map<string, Source>();
    for (const unit of units) {
      const taps = stage.taps.get(unit.name);
      if (taps === undefined) continue;
      const isConvolution = unit.sites.some(({ kind }) => kind === 'convolution');
      const key = isConvolution ? `unit ${unit.name}` : `taps ${taps.join(' ')}`;
      const known = sources.get(key);
      if (known !== undefined) known.units.push(unit.name);
      else
        sources.set(key, {
          unit,
          taps,
          sums: new UnitSums(unit.columns, options),
          units: [unit.name],
        });
    }
    this.sources = [...sources.values()];
    this.taps = [...new Set(this.sources.flatMap(({ taps }) => taps))];
    this.producers = new Map(
      this.sources.flatMap(({ unit, taps }) =>
        unit.sites.flatMap(({ node }): [string, Node][] => {
          const [x] = node.inputs;
          if (x === undefined || !taps.includes(x.name) || x.producer === undefined) return [];
          return [[x.name, x.producer]];
        }),
      ),
    );
  }

  /**
   * Adds one sample.
   *
   * @param index - which one; positions of convolutions are chosen by it
   * @param values - what the taps hold
   * @param weights - factors of tokens in Hessians; for inputs that have so many rows
   * @param others - what the taps would hold in the unquantized model
   * @throws {@link FettleError} MODEL_INVALID when a value is not finite
   */
  add(index: number, values: Values, weights?: Float32Array, others?: Values): void {
    for (const { unit, taps, sums } of this.sources)
      for (const site of unit.sites) {
        const [x] = site.node.inputs;
        const value = x === undefined || site.kind === 'table' ? undefined : values.get(x.name);
        if (x === undefined || value === undefined || !taps.includes(x.name)) continue;
        const rows = rowsOfSite(site, value, createRandom(index));
        const other = others?.get(x.name);
        const tokens = rows.length / unit.columns;
        sums.add(
          rows,
          { value: x.name, node: this.producers.get(x.name)?.name ?? '', sample: index },
          weights?.length === tokens ? weights : undefined,
          other && rowsOfSite(site, other, createRandom(index)),
        );
      }
  }

  /** Statistics by unit; memory is given back. */
  finish(): ReadonlyMap<string, UnitStatistics> {
    const found = new Map<string, UnitStatistics>();
    for (const { sums, units } of this.sources) {
      const statistics = sums.statistics();
      sums.dispose();
      for (const name of units) found.set(name, statistics);
    }
    return found;
  }
}
