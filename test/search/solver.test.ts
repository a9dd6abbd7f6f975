/** The budget solver against trying everything. */
import assert from 'node:assert/strict';
import test from 'node:test';
import type { PairTerm, SolverUnits } from '../../compiler/search/solver.ts';
import { evaluateChoice, solve, worthwhile } from '../../compiler/search/solver.ts';
import { createRandom } from '../../runtime/text/random.ts';

/** Every choice, one by one. */
function* everyChoice(units: SolverUnits, from = 0): Generator<number[]> {
  if (from === units.length) {
    yield [];
    return;
  }
  for (const rest of everyChoice(units, from + 1))
    for (const option of units[from]?.keys() ?? []) yield [option, ...rest];
}

function bruteForce(
  units: SolverUnits,
  budget: number,
  timeBudget = Infinity,
  pairs: readonly PairTerm[] = [],
): number {
  let best = Infinity;
  for (const choice of everyChoice(units)) {
    const { error, cost, time } = evaluateChoice(units, choice, pairs);
    if (cost <= budget && time <= timeBudget) best = Math.min(best, error);
  }
  return best;
}

/** Options as quantization has them: every bit more costs about as much and divides the error by four. */
function randomUnits(random: () => number, count: number, options: number): SolverUnits {
  return Array.from({ length: count }, () => {
    const size = 1 + Math.floor(random() * 40);
    const scale = 10 ** (-3 * random());
    return Array.from({ length: options }, (_, o) => ({
      error: scale * 4 ** -o * (0.5 + random()),
      cost: size * (o + 2) + Math.floor(random() * 4),
      time: size * (1 + random()),
    }));
  });
}

const spanOf = (units: SolverUnits): readonly [number, number] => [
  units.reduce((sum, options) => sum + Math.min(...options.map(({ cost }) => cost)), 0),
  units.reduce((sum, options) => sum + Math.max(...options.map(({ cost }) => cost)), 0),
];

test('the answer is that of trying everything, at every budget', () => {
  const random = createRandom(1);
  for (let round = 0; round < 60; round++) {
    const units = randomUnits(random, 2 + Math.floor(random() * 5), 4);
    const [least, most] = spanOf(units);
    const budget = least + Math.floor(random() * (most - least));
    const found = solve(units, { budget });
    assert.ok(found !== undefined && found.cost <= budget);
    // costs are whole and small, so nothing is rounded
    assert.ok(Math.abs(found.error - bruteForce(units, budget)) < 1e-12);
  }
});

test('a budget below the cheapest choice has no answer, and exactly that one has', () => {
  const units = randomUnits(createRandom(2), 4, 3);
  const [least] = spanOf(units);
  assert.equal(solve(units, { budget: least - 1 }), undefined);
  assert.equal(solve(units, { budget: least })?.cost, least);
});

test('large budgets are rounded, never exceeded, and hardly cost anything', () => {
  const random = createRandom(3);
  for (let round = 0; round < 5; round++) {
    const units = randomUnits(random, 120, 8).map((options) =>
      options.map(({ error, cost }) => ({ error, cost: cost * 10_007 })),
    );
    const [least, most] = spanOf(units);
    const budget = Math.floor(least + 0.4 * (most - least));
    const found = solve(units, { budget });
    assert.ok(found !== undefined && found.cost <= budget);
    // a looser problem: what rounding up lost is less than what 1% of the budget buys
    const looser = solve(units, { budget: Math.floor(budget * 1.01) });
    assert.ok(looser !== undefined && looser.error <= found.error);
    assert.ok(found.error < looser.error * 1.1);
  }
});

test('a second budget is met, close to the best there is', () => {
  const random = createRandom(4);
  let worst = 0;
  for (let round = 0; round < 40; round++) {
    const units = randomUnits(random, 5, 4);
    const [least, most] = spanOf(units);
    const budget = least + Math.floor(0.5 * (most - least));
    const free = solve(units, { budget });
    assert.ok(free !== undefined);
    const timeBudget = free.time * 0.93;
    const best = bruteForce(units, budget, timeBudget);
    const found = solve(units, { budget, timeBudget });
    if (found === undefined) continue;
    assert.ok(found.cost <= budget && found.time <= timeBudget);
    worst = Math.max(worst, found.error / best);
  }
  // multipliers reach only the convex hull; paired moves close most of the rest
  assert.ok(worst < 2, `${worst}`);
});

test('interactions change the answer to that of trying everything', () => {
  const random = createRandom(5);
  let same = 0;
  for (let round = 0; round < 40; round++) {
    const units = randomUnits(random, 5, 3);
    const [least, most] = spanOf(units);
    const budget = least + Math.floor(0.5 * (most - least));
    const pairs = [
      { a: 0, b: 1, coefficient: 2 * random() - 0.5 },
      { a: 2, b: 3, coefficient: 2 * random() - 0.5 },
    ];
    const best = bruteForce(units, budget, Infinity, pairs);
    const found = solve(units, { budget, pairs });
    const ignoring = solve(units, { budget });
    assert.ok(found !== undefined && ignoring !== undefined && found.cost <= budget);
    assert.ok(found.error <= evaluateChoice(units, ignoring.choice, pairs).error + 1e-15);
    if (found.error <= best * (1 + 1e-9)) same++;
  }
  // a search by moves: not guaranteed, but rarely anything else
  assert.ok(same >= 36, `${same} of 40`);
});

test('an option that another beats in everything is never kept', () => {
  const options = [
    { error: 1, cost: 10 },
    { error: 2, cost: 11 },
    { error: 0.5, cost: 12, time: 3 },
    { error: 0.5, cost: 12, time: 2 },
    { error: 1.5, cost: 4, time: 9 },
  ];
  assert.deepEqual(worthwhile(options), [4, 0, 3]);
});
