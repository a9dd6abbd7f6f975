/** Constants that scale or shift the channels of a tensor. */
import type { Tensor } from '../../runtime/tensor.ts';
import { readNumbers } from '../ops/numbers.ts';

/**
 * One number per channel of a constant that broadcasts along one axis, or has one number for all.
 *
 * @param channels - size of the axis
 * @param rank - of the tensor that the constant is combined with
 * @param axis - of the channels
 * @returns undefined when it differs within a channel or would raise the rank
 */
export function perChannel(
  constant: Tensor,
  channels: number,
  rank: number,
  axis: number,
): Float64Array | undefined {
  const { shape } = constant;
  if (shape.length > rank) return undefined;
  const own = axis - rank + shape.length;
  if (!shape.every((dim, index) => dim === 1 || (index === own && dim === channels)))
    return undefined;
  const numbers = readNumbers(constant);
  return numbers.length === 1
    ? new Float64Array(channels).fill(numbers[0] ?? 0)
    : Float64Array.from(numbers);
}
