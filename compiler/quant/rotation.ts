/**
 * Seeded orthogonal maps that are quick to apply: x R = Q-part(H-part(x ∘ signs)), a randomised Hadamard
 * transform over the largest power of two in the size, and a random orthogonal matrix over the rest
 * (576 = 64 x 9). They spread what is large in one channel over all of them.
 *
 * Source: Ashkboos et al., QuaRot, arXiv:2404.00456; ../shared/ALGORITHMS.md Q7.
 */
import { outOfRange } from '../../runtime/errors.ts';
import { createRandom } from '../../runtime/text/random.ts';

/** An orthogonal map of rows of `size` numbers. */
export class Rotation {
  /** Numbers of a row. */
  readonly size: number;
  private readonly signs: Float64Array;
  /** Largest power of two that divides the size. */
  private readonly power: number;
  /** [rest, rest], orthogonal; applied on the right. */
  private readonly small: Float64Array;
  private readonly buffer: Float64Array;

  /**
   * @param size - 1 or more
   * @param seed - equal seeds give equal maps
   */
  constructor(size: number, seed: number) {
    if (!(Number.isInteger(size) && size >= 1)) throw outOfRange('size', 'a whole number', size);
    const random = createRandom(seed);
    this.size = size;
    this.signs = Float64Array.from({ length: size }, () => (random() < 0.5 ? -1 : 1));
    this.power = size & -size;
    this.small = orthogonal(size / this.power, random);
    this.buffer = new Float64Array(size);
  }

  /**
   * x -> x R, in place. The same call on the weights of one output turns Rᵀ W, for a layer that reads
   * turned rows; on the weights of one input W R, for one that gives them.
   *
   * @param values - holds the row
   * @param offset - place of its first number
   * @param stride - distance of its numbers
   */
  apply(values: Float64Array, offset = 0, stride = 1): void {
    const { size, signs, buffer } = this;
    for (let i = 0; i < size; i++) buffer[i] = (values[offset + i * stride] ?? 0) * (signs[i] ?? 1);
    this.hadamard();
    this.spread(false);
    for (let i = 0; i < size; i++) values[offset + i * stride] = buffer[i] ?? 0;
  }

  /** x -> x Rᵀ, in place: undoes {@link apply}. */
  undo(values: Float64Array, offset = 0, stride = 1): void {
    const { size, signs, buffer } = this;
    for (let i = 0; i < size; i++) buffer[i] = values[offset + i * stride] ?? 0;
    this.spread(true);
    this.hadamard();
    for (let i = 0; i < size; i++) values[offset + i * stride] = (buffer[i] ?? 0) * (signs[i] ?? 1);
  }

  /** R itself, [size, size]. */
  matrix(): Float64Array {
    const { size } = this;
    const matrix = new Float64Array(size * size);
    for (let i = 0; i < size; i++) {
      matrix[i * size + i] = 1;
      this.apply(matrix, i * size);
    }
    return matrix;
  }

  /** The Walsh-Hadamard transform over the power of two, [power, rest]. */
  private hadamard(): void {
    const { size, power, buffer } = this;
    const rest = size / power;
    for (let half = 1; half < power; half *= 2)
      for (let start = 0; start < power; start += 2 * half)
        for (let i = start * rest; i < (start + half) * rest; i++) {
          const [a, b] = [buffer[i] ?? 0, buffer[i + half * rest] ?? 0];
          buffer[i] = a + b;
          buffer[i + half * rest] = a - b;
        }
    const scale = 1 / Math.sqrt(power);
    for (let i = 0; i < size; i++) buffer[i] = (buffer[i] ?? 0) * scale;
  }

  private spread(transposed: boolean): void {
    const { size, power, small, buffer } = this;
    const rest = size / power;
    if (rest === 1) return;
    const row = new Float64Array(rest);
    for (let start = 0; start < size; start += rest) {
      for (let j = 0; j < rest; j++) {
        let sum = 0;
        for (let i = 0; i < rest; i++)
          sum += (buffer[start + i] ?? 0) * (small[transposed ? j * rest + i : i * rest + j] ?? 0);
        row[j] = sum;
      }
      buffer.set(row, start);
    }
  }
}

/** A random orthogonal matrix: normal numbers, made orthonormal row by row. */
function orthogonal(size: number, random: () => number): Float64Array {
  const matrix = new Float64Array(size * size);
  if (size === 1) return matrix.fill(1);
  for (let row = 0; row < size; row++) {
    const own = matrix.subarray(row * size, (row + 1) * size);
    for (let i = 0; i < size; i++)
      own[i] = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    // twice: what rounding leaves of the first time goes in the second
    for (let again = 0; again < 2; again++)
      for (let other = 0; other < row; other++) {
        const before = matrix.subarray(other * size, (other + 1) * size);
        const dot = own.reduce((sum, value, i) => sum + value * (before[i] ?? 0), 0);
        for (let i = 0; i < size; i++) own[i] = (own[i] ?? 0) - dot * (before[i] ?? 0);
      }
    const norm = Math.sqrt(own.reduce((sum, value) => sum + value * value, 0));
    for (let i = 0; i < size; i++) own[i] = (own[i] ?? 0) / norm;
  }
  return matrix;
}
