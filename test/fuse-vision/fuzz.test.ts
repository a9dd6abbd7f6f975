/** Random networks through fusion passes in random order, and back: always valid, the same results. */
import { test } from 'node:test';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { printModel } from '../../compiler/ir/print.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { ortWasm } from '../../targets/index.ts';
import { expectSame } from '../support/expect-same.ts';
import { fusionPasses } from '../support/fusion-passes.ts';
import { randomNetwork } from '../support/random-network.ts';
import { random } from '../support/rng.ts';
import { seededInputs } from '../support/seeded-inputs.ts';

const GRAPHS = 500;

/**
 * What fusion may change. Outputs are tangents, in [-1, 1], of numbers up to about 4 behind some 20 ops, of
 * which each rounds to 6e-8: 20 * 4 * 6e-8. Seen is 2.1e-6.
 */
const TOLERANCE = 5e-6;

function agree(
  model: Model,
  inputs: ReadonlyMap<string, Tensor>,
  wanted: Map<string, Tensor>,
): void {
  const got = evaluate(model, inputs);
  for (const [name, tensor] of wanted) {
    const seen = got.get(name);
    if (seen === undefined) throw new Error(`output "${name}" is gone`);
    expectSame(seen, tensor, { tolerance: TOLERANCE, absolute: TOLERANCE, what: name });
  }
}

/** Runs passes in an order that depends on the seed, then `last`; both results must agree. */
async function checkOrder(
  seed: number,
  names: readonly string[],
  last: (model: Model) => void,
): Promise<void> {
  const original = randomNetwork(seed);
  const next = random(seed + 1000);
  // sometimes twice, since a pass may make work for one that came before it
  const times = seed % 4 === 0 ? [...names, ...names] : names;
  const order = ['clean-up', ...times.toSorted(() => next() - 0.5), 'clean-up'];
  const model = cloneModel(original);
  try {
    verifyModel(original);
    const inputs = seededInputs(original, seed);
    const wanted = evaluate(original, inputs);
    // verified once at the end: five times as quick
    await runPasses(model, pipelineFrom(order), { verify: false });
    last(model);
    verifyModel(model);
    agree(model, inputs, wanted);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    const text = `${why}\nseed ${seed}, ${order.join(' ')}\n${printModel(original)}\n${printModel(model)}`;
    throw new Error(text, { cause: error });
  }
}

const first = Number(process.env['SEED'] ?? 1);

test(`${GRAPHS} random networks compute the same after every fusion in random order`, async () => {
  for (let seed = first; seed < first + GRAPHS; seed++)
    await checkOrder(seed, fusionPasses, () => {});
});

test('random networks compute the same when their convolutions are fused and expanded', async () => {
  const names = fusionPasses.filter((name) => !/linear|gated|norm|attention|layout|qkv/.test(name));
  for (let seed = first; seed < first + GRAPHS / 10; seed++)
    await checkOrder(seed, names, (model) => lowerForOrt(model, ortWasm));
});
