/** The search for the smallest size within a bound, on losses that are known. */
import assert from 'node:assert/strict';
import test from 'node:test';
import type { ToleranceProblem } from '../../compiler/search/tolerance.ts';
import { searchTolerance } from '../../compiler/search/tolerance.ts';

/** Loss falls fourfold per bit; sizes are whole multiples of 1,000. */
function problem(bound: number, off = 1): ToleranceProblem<number> & { measured: number[] } {
  const predict = (bytes: number): number => 4 ** (-bytes / 100_000);
  const measured: number[] = [];
  return {
    bound,
    least: 200_000,
    most: 900_000,
    predict,
    measured,
    choose: (bytes) => {
      const built = Math.max(200_000, Math.floor(bytes / 1000) * 1000);
      return { value: built, bytes: built };
    },
    measure: async ({ bytes }) => {
      measured.push(bytes);
      return off * predict(bytes);
    },
  };
}

/** The size at which the loss is the bound. */
const ideal = (bound: number, off: number): number => (Math.log(off / bound) / Math.log(4)) * 1e5;

test('the smallest size within the bound is found in at most five measurements', async () => {
  for (const bound of [0.02, 0.003, 0.0004])
    for (const off of [0.2, 1, 5]) {
      const one = problem(bound, off);
      const { best, trials } = await searchTolerance(one);
      assert.ok(best !== undefined && off * one.predict(best.bytes) <= bound);
      assert.ok(trials.length <= 5, `${trials.length}`);
      const wanted = Math.max(ideal(bound, off), 200_000);
      assert.ok(best.bytes < wanted * 1.03 + 1000, `${best.bytes} ${wanted} for ${bound}, ${off}`);
    }
});

test('a bound that the smallest size meets ends with it', async () => {
  const one = problem(0.5);
  const { best } = await searchTolerance(one);
  assert.equal(best?.bytes, 200_000);
});

test('a bound that nothing meets has no answer, after the largest was tried', async () => {
  const one = problem(1e-9);
  const { best, trials } = await searchTolerance(one);
  assert.equal(best, undefined);
  assert.equal(trials.at(-1)?.bytes, 900_000);
});

test('a ratio that is known leaves less to measure', async () => {
  const one = problem(0.003, 5);
  const { trials } = await searchTolerance({ ...one, ratio: 5 });
  assert.ok(trials.length <= 2, `${trials.length}`);
});

test('a search without time ends with the first that holds', async () => {
  for (const off of [0.2, 5]) {
    const one = problem(0.003, off);
    const { best, trials } = await searchTolerance(one, { goesOn: () => false });
    assert.equal(trials.filter(({ loss }) => loss <= 0.003).length, 1);
    assert.equal(best, trials.at(-1));
    assert.ok((best?.bytes ?? Infinity) < ideal(0.003, 5) * 1.03);
  }
});

test('losses that jump about still end with a size that held', async () => {
  const one = problem(0.003);
  let turn = 0;
  const { best } = await searchTolerance({
    ...one,
    measure: async ({ bytes }) => one.predict(bytes) * (turn++ % 2 === 0 ? 1.3 : 0.8),
  });
  assert.ok(best !== undefined && best.loss <= 0.003);
  assert.ok(best.bytes < ideal(0.003, 1.3) * 1.1, `${best.bytes}`);
});
