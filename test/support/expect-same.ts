/** Comparison of tensors that says where and how far they differ. */
import assert from 'node:assert/strict';
import { readNumbers } from '../../compiler/ops/numbers.ts';
import type { Tensor } from '../../runtime/tensor.ts';

/** Options of {@link expectSame}. */
export interface ExpectSameOptions {
  /**
   * Largest difference, as a fraction of the largest wanted magnitude. 0: equal to the bit, except that
   * any NaN equals any other.
   */
  readonly tolerance: number;
  /** Difference that is always allowed. Default 0. */
  readonly absolute?: number;
  /** Name for the message. */
  readonly what: string;
}

/** Throws unless dtype, shape and every element agree. */
export function expectSame(got: Tensor, wanted: Tensor, options: ExpectSameOptions): void {
  const { tolerance, absolute = 0, what } = options;
  assert.equal(got.dtype, wanted.dtype, `${what}: dtype`);
  assert.deepEqual([...got.shape], [...wanted.shape], `${what}: shape`);
  if (wanted.dtype === 'string') {
    assert.deepEqual(got.data, wanted.data, what);
    return;
  }
  const [a, b] = [readNumbers(got), readNumbers(wanted)];
  let range = 0;
  for (const value of b) if (Number.isFinite(value)) range = Math.max(range, Math.abs(value));
  const allowed = Math.max(tolerance * range, absolute);
  let worst = -1;
  let worstBy = 0;
  let differing = 0;
  for (let i = 0; i < b.length; i++) {
    const [x, y] = [a[i] ?? NaN, b[i] ?? NaN];
    if (Object.is(x, y)) continue;
    const by = Number.isNaN(x) || Number.isNaN(y) ? Infinity : x === y ? 0 : Math.abs(x - y);
    if (allowed > 0 && by <= allowed) continue;
    differing++;
    if (worst < 0 || by > worstBy) [worst, worstBy] = [i, by];
  }
  assert.ok(
    worst < 0,
    `${what}: ${differing} of ${b.length} differ, most at ${worst}: got ${a[worst]}, wanted ${b[worst]} ` +
      `(allowed ${allowed})`,
  );
}
