/** Any tensor as f32, for comparing outputs. */
import { wrongType } from '../../runtime/errors.ts';
import { halfToFloat } from '../../runtime/half.ts';
import type { Tensor } from '../../runtime/tensor.ts';

/**
 * The elements as f32. Integers beyond 2^24 lose digits.
 *
 * @throws TypeError for strings, complex and packed types
 */
export function toF32({ dtype, data }: Tensor): Float32Array {
  if (data instanceof Float32Array && dtype === 'f32') return data;
  if (dtype === 'f16') return Float32Array.from(data as Uint16Array, halfToFloat);
  if (/^(f64|[iu](8|16|32|64)|bool)$/.test(dtype))
    return Float32Array.from(data as ArrayLike<number | bigint>, Number);
  throw wrongType('tensor', 'a real number dtype', dtype);
}
