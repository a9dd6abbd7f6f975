/** Random graphs through passes in random order: always valid, always the same results. */
import { test } from 'node:test';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { printModel } from '../../compiler/ir/print.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { cleanUp } from '../../compiler/passes/clean-up.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { expectSame } from '../support/expect-same.ts';
import { randomGraph } from '../support/random-graph.ts';
import { random } from '../support/rng.ts';
import { seededInputs } from '../support/seeded-inputs.ts';

const GRAPHS = 200;

test(`${GRAPHS} random graphs give the same bits after passes in random order`, async () => {
  for (let seed = 1; seed <= GRAPHS; seed++) {
    const original = randomGraph(seed);
    const next = random(seed + 1000);
    const order = [...cleanUp, ...cleanUp].sort(() => next() - 0.5);
    const model = cloneModel(original);
    try {
      verifyModel(original);
      await runPasses(model, pipelineFrom(order), { checkChanged: true });
      const inputs = seededInputs(original, seed);
      const wanted = evaluate(original, inputs);
      const got = evaluate(model, inputs);
      for (const [name, tensor] of wanted) {
        const seen = got.get(name);
        if (seen === undefined) throw new Error(`output "${name}" is gone`);
        expectSame(seen, tensor, { tolerance: 0, what: name });
      }
    } catch (error) {
      const text = `seed ${seed}, ${order.join(' ')}\n${printModel(original)}\n${printModel(model)}`;
      throw new Error(text, { cause: error });
    }
  }
});
