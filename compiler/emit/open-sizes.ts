/** Which open size of an input is the batch, for estimates and made-up inputs. */
import type { Shape } from '../ir/dim.ts';

/**
 * The axis of the batch: the first when it is open, and the middle one of a recurrent state
 * [layers, batch, width].
 */
export function batchAxis(shape: Shape): number {
  const [first, second, third] = shape;
  const recurrent =
    shape.length === 3 &&
    typeof first === 'number' &&
    typeof second === 'string' &&
    typeof third === 'number';
  return recurrent ? 1 : 0;
}
