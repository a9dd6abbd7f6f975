/** Rounded units as an entry of the cache. */
import type { RoundedUnit } from '../quant/rounding.ts';
import type { CachedArray, CacheEntry } from './cache.ts';

interface Header {
  readonly name: string;
  readonly rows: number;
  readonly columns: number;
  readonly bits: number;
  readonly group: number;
  readonly loss: number;
  readonly relativeError: number;
}

/** Packs rounded units. */
export function packRounded(units: ReadonlyMap<string, RoundedUnit>): CacheEntry {
  const arrays: Record<string, CachedArray> = {};
  const headers = [...units].map(([name, { matrix, loss, relativeError }], index): Header => {
    const { rows, columns, bits, group, codes, scales, zeros, codebook } = matrix;
    arrays[`codes ${index}`] = codes;
    arrays[`scales ${index}`] = scales;
    if (zeros !== undefined) arrays[`zeros ${index}`] = zeros;
    if (codebook !== undefined) arrays[`codebook ${index}`] = codebook;
    return { name, rows, columns, bits, group, loss, relativeError };
  });
  return { json: headers, arrays };
}

/** Unpacks what {@link packRounded} packed. */
export function unpackRounded({ json, arrays }: CacheEntry): ReadonlyMap<string, RoundedUnit> {
  return new Map(
    (json as readonly Header[]).map(({ name, loss, relativeError, ...layout }, index) => {
      const codebook = arrays[`codebook ${index}`] as Int8Array<ArrayBuffer> | undefined;
      const matrix = {
        ...layout,
        codes: arrays[`codes ${index}`] as Uint8Array<ArrayBuffer>,
        scales: arrays[`scales ${index}`] as Uint16Array<ArrayBuffer>,
        zeros: arrays[`zeros ${index}`] as Uint8Array<ArrayBuffer> | undefined,
        ...(codebook === undefined ? {} : { codebook }),
      };
      return [name, { matrix, loss, relativeError }];
    }),
  );
}
