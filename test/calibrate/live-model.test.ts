/** A live model measures what a model with those weights gives, and runs only what it has to. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LiveModel } from '../../compiler/calibrate/live-model.ts';
import { arraySamples, windowSamples } from '../../compiler/calibrate/samples.ts';
import type { StageEngines } from '../../compiler/calibrate/stage-runner.ts';
import { subjectOf } from '../../compiler/calibrate/subject.ts';
import { unitRows } from '../../compiler/passes/weight-units.ts';
import { Algebra } from '../../compiler/algebra/algebra.ts';
import { tensor } from '../../runtime/tensor.ts';
import { engines, frontModel } from '../support/calibration.ts';
import { normalValues } from '../support/random-values.ts';
import { random } from '../support/rng.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const algebra = await Algebra.create();

/** The engines, counting programs that are run. */
function counting(): { readonly engines: StageEngines; runs: number } {
  const counter = {
    runs: 0,
    engines: {
      wasm: {
        id: 'wasm' as const,
        open: async (context: Parameters<StageEngines['wasm']['open']>[0]) => {
          const loading = await engines.wasm.open(context);
          return {
            weights: loading.weights,
            dispose: () => loading.dispose(),
            start: async () => {
              const program = await loading.start();
              return {
                run: (feeds: Parameters<typeof program.run>[0]) => {
                  counter.runs++;
                  return program.run(feeds);
                },
                memory: () => program.memory(),
                dispose: () => program.dispose(),
              };
            },
          };
        },
      },
    },
  };
  return counter;
}

async function microLive(counter = counting()) {
  const { model, decoder } = await frontModel('micro:untied');
  const next = random(7);
  const windows = [1, 2, 3].map(() => Array.from({ length: 16 }, () => Math.floor(next() * 128)));
  const samples = windowSamples(model, decoder, windows, 'random ids');
  const subject = await subjectOf(model, decoder, samples, { minElements: 1024 });
  const services = { engines: counter.engines, algebra };
  return { live: await LiveModel.open(subject, services), subject, services, counter };
}

test('nothing changed is no error, and every best class agrees', async () => {
  const { live } = await microLive();
  const { error, agreement, nats } = await live.measure();
  assert.equal(live.metric, 'kl');
  assert(Math.abs(error) < 1e-6, `${error}`);
  assert.equal(agreement, 1);
  assert(nats !== undefined && nats > 0);
  await live.dispose();
});

test('the error is that of full runs, whatever was changed and put back in between', async () => {
  const { live, subject, services } = await microLive();
  const next = random(11);
  const changed = new Map<string, Float32Array>();
  const noisy = (name: string): Float32Array => {
    const unit = subject.units.find((one) => one.name === name);
    assert(unit !== undefined);
    const values = unitRows(unit).read(0, unit.rows).slice();
    const noise = normalValues(values.length, Math.floor(next() * 1000));
    return values.map((value, i) => value + 0.02 * (noise[i] ?? 0));
  };
  for (let step = 0; step < 8; step++) {
    const { name } = subject.units[Math.floor(next() * subject.units.length)] ?? { name: '' };
    if (changed.has(name)) {
      changed.delete(name);
      live.setWeight(name);
    } else {
      const values = noisy(name);
      changed.set(name, values);
      live.setWeight(name, values);
    }
    const some = step % 3 === 1 ? { samples: 2 } : {};
    const quick = await live.measure(some);
    const fresh = await LiveModel.open(subject, services);
    for (const [unit, values] of changed) fresh.setWeight(unit, values);
    assert.deepEqual(quick, await fresh.measure(some), `step ${step}`);
    await fresh.dispose();
  }
  live.reset();
  assert(Math.abs(await live.kl()) < 1e-6);
  await live.dispose();
});

test('only stages from the first changed one on are run', async () => {
  const { live, subject, counter } = await microLive();
  const head = subject.units.at(-1);
  const first = subject.units.find(({ kind }) => kind === 'linear');
  assert(head !== undefined && first !== undefined);
  const runsFor = async (work: () => Promise<unknown>): Promise<number> => {
    const before = counter.runs;
    await work();
    return counter.runs - before;
  };
  // three samples through the last stage alone
  assert.equal(await runsFor(() => live.probe(head.name, 1e-2)), 3);
  const all = await runsFor(() => live.probe(first.name, 1e-2));
  assert(all > 3 && all % 3 === 0, `${all}`);
  await live.dispose();
});

test('noise makes an error in proportion to its energy', async () => {
  const { live, subject } = await microLive();
  const { name } = subject.units[2] ?? { name: '' };
  const [small, large] = [await live.probe(name, 1e-4), await live.probe(name, 1e-3)];
  // second order: ten times the energy is ten times the error, but for higher terms
  assert(large / small > 7 && large / small < 14, `${large / small}`);
  await live.dispose();
});

test(
  'classifiers are compared by all of their classes',
  needsShared('models/digits-cnn'),
  async () => {
    const { model, decoder } = await frontModel(sharedPath('models/digits-cnn/model.onnx'));
    const data = normalValues(4 * 28 * 28, 3);
    const arrays = new Map([['image', tensor('f32', [4, 1, 28, 28], data)]]);
    const samples = arraySamples(model, arrays, 'noise');
    const subject = await subjectOf(model, decoder, samples, { minElements: 256 });
    const live = await LiveModel.open(subject, { engines, algebra });
    assert.equal(live.metric, 'kl');
    assert(Math.abs(await live.kl()) < 1e-6);
    const { name } = subject.units[0] ?? { name: '' };
    assert((await live.probe(name, 1e-2)) > 0);
    await live.dispose();
  },
);

test('a unit that does not exist is misuse', async () => {
  const { live } = await microLive();
  assert.throws(() => live.setWeight('nothing', new Float32Array(1)), RangeError);
  await assert.rejects(live.probe('nothing', 1e-3), RangeError);
  await live.dispose();
});
