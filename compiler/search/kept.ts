/**
 * What a search finds out about single units, in the cache of calibration: ratings and gains, a few numbers
 * each, so that a search that is interrupted goes on where it was.
 */
import type { CalibrationCache } from '../calibrate/cache.ts';
import { parseFormat } from '../quant/formats.ts';
import type { UnitRatings } from './rate.ts';

/** Ratings with formats by name. */
interface PackedRatings {
  readonly ratings: readonly {
    readonly format: string;
    readonly outputError: number;
    readonly weightError: number;
  }[];
  readonly outputEnergy: number;
}

/** The ratings kept under a key, or those that `rate` finds, which are kept. */
export function keptRatings(
  cache: CalibrationCache | undefined,
  key: string,
  rate: () => UnitRatings,
): UnitRatings {
  const known = cache?.read(key)?.json as PackedRatings | undefined;
  if (known !== undefined) {
    const { ratings, outputEnergy } = known;
    const unpacked = ratings.map((one) => ({ ...one, format: parseFormat(one.format) }));
    return { ratings: unpacked, outputEnergy };
  }
  const { ratings, outputEnergy } = rate();
  const packed: PackedRatings = {
    ratings: ratings.map((one) => ({ ...one, format: one.format.name })),
    outputEnergy,
  };
  cache?.write(key, { json: packed, arrays: {} });
  return { ratings, outputEnergy };
}

/** The number kept under a key, or the one that `measure` finds, which is kept. */
export async function keptNumber(
  cache: CalibrationCache | undefined,
  key: string,
  measure: () => Promise<number>,
): Promise<number> {
  const known = cache?.read(key)?.json as number | undefined;
  if (known !== undefined) return known;
  const found = await measure();
  cache?.write(key, { json: found, arrays: {} });
  return found;
}
