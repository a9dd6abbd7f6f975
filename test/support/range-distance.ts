import assert from 'node:assert/strict';

/** Largest difference as a fraction of the range of the reference. */
export function rangeDistance(got: ArrayLike<number>, want: ArrayLike<number>): number {
  assert.equal(got.length, want.length);
  let worst = 0;
  let [low, high] = [Infinity, -Infinity];
  for (let i = 0; i < want.length; i++) {
    const value = want[i] ?? Number.NaN;
    assert.ok(Number.isFinite(got[i]), `element ${i} is ${got[i]}`);
    worst = Math.max(worst, Math.abs(value - (got[i] ?? Number.NaN)));
    [low, high] = [Math.min(low, value), Math.max(high, value)];
  }
  return worst / (high - low);
}
