/** Divisors of channels and shifts of biases do what they are for. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Algebra } from '../../compiler/algebra/algebra.ts';
import { biasShift } from '../../compiler/calibrate/bias-shifts.ts';
import {
  channelScales,
  logarithmicScales,
  roundingLoss,
  smoothScales,
} from '../../compiler/calibrate/channel-scales.ts';
import { collectStatistics } from '../../compiler/calibrate/collect.ts';
import { windowSamples } from '../../compiler/calibrate/samples.ts';
import { openStage } from '../../compiler/calibrate/stage-runner.ts';
import { subjectOf } from '../../compiler/calibrate/subject.ts';
import { scaleChannels } from '../../compiler/passes/scale-channels.ts';
import { unitRows, weightUnits } from '../../compiler/passes/weight-units.ts';
import type { IntegerFormat } from '../../compiler/quant/formats.ts';
import { parseFormat } from '../../compiler/quant/formats.ts';
import { dequantizeMatrix, quantizeMatrix } from '../../compiler/quant/matrix.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { engines, frontModel } from '../support/calibration.ts';
import { normalValues } from '../support/random-values.ts';
import { random } from '../support/rng.ts';

const algebra = await Algebra.create();
const w4 = parseFormat('w4g32') as IntegerFormat;

test('logarithmic divisors leave log2(2 + a) of each maximum', () => {
  const scales = logarithmicScales(Float32Array.of(20, 1, 0, 100));
  assert(scales !== undefined);
  // the sample of ALGORITHMS.md Q9, 300 -> 8.2, is of the same curve
  assert(Math.abs(Math.log2(2 + 300) - 8.24) < 0.01);
  assert(Math.abs(100 / (scales[3] ?? 0) - Math.log2(102)) < 1e-9);
  assert.equal(scales[2], 1);
  assert.equal(logarithmicScales(Float32Array.of(15, 1)), undefined, 'static is good as it is');
  assert.equal(logarithmicScales(Float32Array.of(150, 1)), undefined, 'dynamic is better');
});

test('smooth divisors even out activations and weights, with a geometric mean of 1', () => {
  const absmax = Float32Array.of(16, 1, 4);
  const weights = Float32Array.of(1, 1, 4);
  const scales = smoothScales(absmax, weights, 0.5);
  const after = scales.map((scale, j) => (absmax[j] ?? 0) / scale / ((weights[j] ?? 0) * scale));
  // at one half the ratio of both is the same everywhere
  assert(after.every((ratio) => Math.abs(ratio - (after[0] ?? 0)) < 1e-9));
  assert(Math.abs(scales.reduce((product, scale) => product * scale, 1) - 1) < 1e-9);
});

async function nib(tokens = 32) {
  const { model, decoder } = await frontModel('builtin:nib');
  const next = random(5);
  const windows = [1, 2].map(() => Array.from({ length: tokens }, () => Math.floor(next() * 4096)));
  const samples = windowSamples(model, decoder, windows, 'random ids');
  return { model, decoder, samples, subject: await subjectOf(model, decoder, samples) };
}

test('searched divisors lose less when weights are rounded, and leave logits as they are', async () => {
  const { model, decoder, samples, subject } = await nib();
  const statistics = await collectStatistics(subject, { engines, algebra });
  const scales = channelScales(subject, statistics, { name: 'awq', format: w4, steps: 5 }, algebra);
  assert(Object.keys(scales).length >= 12, `${Object.keys(scales).length}`);
  let [before, after] = [0, 0];
  for (const unit of subject.units) {
    const [input] = unit.inputs;
    const list = scales[input?.name ?? ''];
    const known = statistics.units.get(unit.name);
    if (list === undefined || known === undefined) continue;
    const { rows, columns } = unit;
    const sample = { rows, columns, values: unitRows(unit).read(0, rows).slice() };
    before += roundingLoss(
      sample,
      new Float64Array(columns).fill(1),
      known.meanSquare,
      w4,
      algebra,
    );
    after += roundingLoss(sample, Float64Array.from(list), known.meanSquare, w4, algebra);
  }
  assert(after < 0.97 * before, `${before} -> ${after}`);
  const changed = cloneModel(model);
  const [report] = await runPasses(changed, [scaleChannels({ scales })]);
  assert.deepEqual(report?.refusals, []);
  const other = await subjectOf(changed, decoder, samples);
  const logits = async (one: typeof subject): Promise<Float32Array> => {
    const runner = await openStage(one.model, { engines, units: [] });
    const values = await runner.run(samples.at(0));
    await runner.dispose();
    return values.get('logits')?.data as Float32Array;
  };
  const [x, y] = [await logits(subject), await logits(other)];
  const range = x.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const worst = x.reduce((most, value, i) => Math.max(most, Math.abs(value - (y[i] ?? NaN))), 0);
  // weights are rounded to f32 once more
  assert(worst < 1e-4 * range, `${worst / range}`);
  assert.equal(weightUnits(other.model).length, subject.units.length);
});

test('a shift gives the outputs of a rounded unit their mean back', async () => {
  const { subject } = await nib();
  const unit = subject.units.find(({ kind }) => kind === 'linear');
  assert(unit !== undefined);
  const { rows, columns } = unit;
  const result = quantizeMatrix(unitRows(unit), parseFormat('w2g32') as IntegerFormat, algebra);
  assert(!('refused' in result));
  const tokens = 50;
  const x = normalValues(tokens * columns, 9).map((value, i) => value + Math.sin(i % columns));
  const mean = Float32Array.from({ length: columns }, (_, j) => {
    let sum = 0;
    for (let t = 0; t < tokens; t++) sum += x[t * columns + j] ?? 0;
    return sum / tokens;
  });
  const shift = biasShift(unit, result, { mean });
  const product = (w: Float32Array): Float32Array =>
    algebra.matmul(x, w, tokens, columns, rows, { bTransposed: true });
  const wanted = product(unitRows(unit).read(0, rows).slice());
  const got = product(dequantizeMatrix(result.matrix));
  for (let row = 0; row < rows; row += 7) {
    let [sum, scale] = [0, 0];
    for (let t = 0; t < tokens; t++) {
      sum += (wanted[t * rows + row] ?? 0) - (got[t * rows + row] ?? 0) - (shift[row] ?? 0);
      scale += Math.abs(wanted[t * rows + row] ?? 0);
    }
    // f32 sums
    assert(Math.abs(sum) < 1e-4 * scale, `${row}: ${sum}`);
  }
});
