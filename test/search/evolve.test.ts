/** Evolutionary refinement on objectives whose best answer is known. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { evolve, mutate } from '../../compiler/search/evolve.ts';
import { solve } from '../../compiler/search/solver.ts';
import { createRandom } from '../../runtime/text/random.ts';

/** Ten units of four options; errors add up. */
function toy(seed: number): { errors: number[][]; costs: number[][] } {
  const random = createRandom(seed);
  const errors: number[][] = [];
  const costs: number[][] = [];
  for (let u = 0; u < 10; u++) {
    const scale = 10 ** (-2 * random());
    const size = 1 + Math.floor(random() * 3);
    errors.push(Array.from({ length: 4 }, (_, o) => scale * 4 ** -o));
    costs.push(Array.from({ length: 4 }, (_, o) => size * (o + 2)));
  }
  return { errors, costs };
}

const total = (table: readonly (readonly number[])[], choice: readonly number[]): number =>
  choice.reduce((sum, option, u) => sum + (table[u]?.[option] ?? NaN), 0);

test('on errors that add up it reaches the answer of the solver', async () => {
  for (const seed of [1, 2, 3]) {
    const { errors, costs } = toy(seed);
    const start = costs.map(() => 1);
    const budget = total(costs, start);
    const units = errors.map((of, u) =>
      of.map((error, o) => ({ error, cost: costs[u]?.[o] ?? 0 })),
    );
    const best = solve(units, { budget });
    const found = await evolve(
      { costs, budget, start, fitness: async (choice) => total(errors, choice) },
      { generations: 400, offspring: 32, stages: [{ tokens: 1, survivors: 1 }] },
    );
    assert.ok(best !== undefined);
    assert.ok(total(costs, found.choice) <= budget);
    assert.ok(Math.abs(found.fitness - best.error) < 1e-12, `${found.fitness} ${best.error}`);
  }
});

test('the result is never worse than the start, whatever the fitness says', async () => {
  const { costs } = toy(4);
  const start = costs.map(() => 1);
  const random = createRandom(9);
  const known = new Map<string, number>();
  const noise = async (choice: readonly number[], tokens: number): Promise<number> => {
    const key = `${tokens} ${choice.join()}`;
    const value = known.get(key) ?? random();
    known.set(key, value);
    return value;
  };
  const found = await evolve(
    { costs, budget: total(costs, start), start, fitness: noise },
    { generations: 5 },
  );
  assert.ok(found.fitness <= found.before);
  assert.equal(found.before, await noise(start, 8192));
});

test('equal seeds give equal answers', async () => {
  const { errors, costs } = toy(5);
  const start = costs.map(() => 2);
  const problem = {
    costs,
    budget: total(costs, start) + 1,
    start,
    fitness: async (choice: readonly number[]) => total(errors, choice),
  };
  const first = await evolve(problem, { generations: 3, seed: 7 });
  assert.deepEqual(await evolve(problem, { generations: 3, seed: 7 }), first);
});

test('no mutant costs more than the budget or repeats its parent', () => {
  const { costs } = toy(6);
  const random = createRandom(1);
  const parent = costs.map(() => 1);
  const budget = total(costs, parent) + 2;
  let found = 0;
  for (let i = 0; i < 500; i++) {
    const mutant = mutate({ costs, budget }, parent, random);
    if (mutant === undefined) continue;
    found++;
    assert.ok(total(costs, mutant) <= budget);
    assert.notDeepEqual(mutant, parent);
    assert.ok(mutant.every((option) => option >= 0 && option < 4));
  }
  assert.ok(found > 400);
});

test('it stops when it is aborted', async () => {
  const { errors, costs } = toy(7);
  const start = costs.map(() => 1);
  const signal = AbortSignal.abort();
  const fitness = async (choice: readonly number[]): Promise<number> => total(errors, choice);
  await assert.rejects(evolve({ costs, budget: 1e9, start, fitness }, { signal }), /abort/i);
});
