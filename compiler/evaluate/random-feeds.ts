/** Seeded inputs for a model nobody gave data for. */
import { FettleError } from '../../runtime/errors.ts';
import type { Manifest, TensorSpec } from '../../runtime/manifest.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { dtypes, elementCount, tensor, viewBytes } from '../../runtime/tensor.ts';

/** Sizes given to open dimensions of random inputs. */
const OPEN_SIZE = 8;

/**
 * Seeded random inputs: numbers in -1..1, small whole numbers for integers, ones for masks.
 *
 * @throws {@link FettleError} USAGE when an input has a dtype that cannot be made up
 */
export function randomFeeds(
  manifest: Manifest,
  count: number,
  seed: number,
): Record<string, Tensor>[] {
  const next = uniform(seed);
  const values = (spec: TensorSpec): Tensor => {
    const shape = spec.shape.map((dim) =>
      typeof dim === 'number' ? dim : /batch|^n$/i.test(dim) ? 1 : OPEN_SIZE,
    );
    const size = elementCount(shape);
    const isMask = /mask/i.test(spec.name);
    // segments are two, and a table of them has no more rows
    const limit = /type/i.test(spec.name) ? 2 : 16;
    if (spec.dtype === 'f32')
      return tensor(
        'f32',
        shape,
        Float32Array.from({ length: size }, () => next() * 2 - 1),
      );
    const { array, kind } = dtypes[spec.dtype];
    if (array === undefined || (kind !== 'int' && kind !== 'uint' && kind !== 'bool'))
      throw new FettleError(
        'USAGE',
        `Input "${spec.name}" is ${spec.dtype}: random inputs are not made for it.`,
        {
          at: { input: spec.name },
          fix: 'Give --data.',
        },
      );
    const data = viewBytes(spec.dtype, new Uint8Array(size * array.BYTES_PER_ELEMENT));
    for (let i = 0; i < size; i++) {
      const number = isMask ? 1 : Math.floor(next() * (kind === 'bool' ? 2 : limit));
      if (data instanceof BigInt64Array || data instanceof BigUint64Array) data[i] = BigInt(number);
      else (data as Int32Array)[i] = number;
    }
    return tensor(spec.dtype, shape, data);
  };
  return Array.from({ length: count }, () =>
    Object.fromEntries(manifest.inputs.map((spec) => [spec.name, values(spec)])),
  );
}

/**
 * Seeded random token ids.
 *
 * @param count - how many
 * @param vocabulary - ids are 0 to this, exclusive
 */
export function randomIds(count: number, vocabulary: number, seed: number): number[] {
  const next = uniform(seed);
  return Array.from({ length: count }, () => Math.floor(next() * vocabulary));
}

/** Numbers in 0..1 from a seed. */
function uniform(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}
