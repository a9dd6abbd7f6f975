/** .npz archives, stored and deflated, as numpy writes them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readNpz } from '../../models/npz.ts';
import { FettleError } from '../../runtime/errors.ts';
import { tensor } from '../../runtime/tensor.ts';
import { npzOf } from '../support/npz.ts';

const arrays = {
  ids: tensor('i64', [2, 2], BigInt64Array.of(1n, 2n, 3n, 4n)),
  mask: tensor('f32', [2, 3], Float32Array.of(1, 0, 1, 0.5, 2, 3)),
};

for (const deflated of [false, true])
  test(`arrays of an archive are read, ${deflated ? 'deflated' : 'stored'}`, () => {
    const read = readNpz(npzOf(arrays, deflated), 'a.npz');
    assert.deepEqual([...read], Object.entries(arrays));
  });

test('what is no archive, or a damaged one, is refused', () => {
  const good = npzOf(arrays, true);
  for (const bytes of [new Uint8Array(0), new Uint8Array(100), good.subarray(0, good.length - 30)])
    assert.throws(() => readNpz(bytes, 'b.npz'), { code: 'MODEL_INVALID', message: /b\.npz/ });
  assert.throws(() => readNpz(npzOf({}, false)), /holds no arrays/);
  for (let at = 0; at < good.length; at++) {
    const damaged = good.slice();
    damaged[at] = (damaged[at] ?? 0) ^ 0x55;
    try {
      readNpz(damaged);
    } catch (error) {
      assert(error instanceof FettleError, `byte ${at}: ${String(error)}`);
    }
  }
});
