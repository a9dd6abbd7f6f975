import assert from 'node:assert/strict';
import test from 'node:test';
import { KernelBench, hostVariants, noise } from '../support/kernels.ts';

for (const variant of await hostVariants())
  test(`${variant}: the largest of any count is the first among equals, never NaN`, async () => {
    const bench = await KernelBench.open(variant);
    for (const count of [1, 3, 16, 37, 500]) {
      const values = noise(count, count);
      for (const place of new Set([0, count >> 1, count - 1])) {
        const x = values.slice();
        x[place] = 7;
        x[count - 1] = 7;
        assert.equal(bench.kernels.largest(bench.floats(x), count), Math.min(place, count - 1));
        x.fill(NaN, 0, place);
        assert.equal(bench.kernels.largest(bench.floats(x), count), place);
      }
    }
    assert.equal(bench.kernels.largest(bench.floats([NaN, NaN, NaN]), 3), 0);
    assert.equal(bench.kernels.largest(bench.floats([-Infinity, -3, -2]), 3), 2);
  });
