/** Statistics and sequential rounding, against straightforward computations with the whole model. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Algebra } from '../../compiler/algebra/algebra.ts';
import { attentionReceived, tokenWeights } from '../../compiler/calibrate/attention-weights.ts';
import { decodeEntry, encodeEntry, FolderCache } from '../../compiler/calibrate/cache.ts';
import { collectStatistics } from '../../compiler/calibrate/collect.ts';
import { arraySamples, windowSamples } from '../../compiler/calibrate/samples.ts';
import type { RoundUnit, SequentialOptions } from '../../compiler/calibrate/sequential.ts';
import { roundSequentially } from '../../compiler/calibrate/sequential.ts';
import { stageModel } from '../../compiler/calibrate/stage-model.ts';
import type { Values } from '../../compiler/calibrate/stage-runner.ts';
import { openStage } from '../../compiler/calibrate/stage-runner.ts';
import type { UnitStatistics } from '../../compiler/calibrate/statistics.ts';
import type { CalibrationServices, Subject } from '../../compiler/calibrate/subject.ts';
import { subjectOf } from '../../compiler/calibrate/subject.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { attentionInputs, isFusedAttention } from '../../compiler/ops/fused-attention.ts';
import { unitRows } from '../../compiler/passes/weight-units.ts';
import type { CodeFormat } from '../../compiler/quant/formats.ts';
import { parseFormat } from '../../compiler/quant/formats.ts';
import { dequantizeMatrix } from '../../compiler/quant/matrix.ts';
import { roundUnit } from '../../compiler/quant/round-unit.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { tensor } from '../../runtime/tensor.ts';
import { engines, frontModel } from '../support/calibration.ts';
import { fusedDecoder } from '../support/fused-decoder.ts';
import { InterruptibleCache } from '../support/interruptible-cache.ts';
import { ModelBuilder } from '../support/model-builder.ts';
import { normalValues } from '../support/random-values.ts';
import { random } from '../support/rng.ts';

const algebra = await Algebra.create();
const services: CalibrationServices = { engines, algebra };
const w4 = parseFormat('w4g16') as CodeFormat;

async function micro(name: string): Promise<Subject> {
  const { model, decoder } = await frontModel(`micro:${name}`);
  const next = random(7);
  const windows = [1, 2, 3].map(() => Array.from({ length: 12 }, () => Math.floor(next() * 128)));
  const samples = windowSamples(model, decoder, windows, 'random ids');
  return subjectOf(model, decoder, samples, { minElements: 1024 });
}

/** Some values of the whole model for one sample, with other weights. */
async function valuesOf(
  { model, samples, units }: Subject,
  index: number,
  names: readonly string[],
  weights: ReadonlyMap<string, Float32Array>,
): Promise<Values> {
  const runner = await openStage(stageModel(model, [], names), { engines, units, weights });
  const values = await runner.run(samples.at(index));
  await runner.dispose();
  return values;
}

function expectNear(got: ArrayLike<number>, wanted: ArrayLike<number>, what: string): void {
  assert.equal(got.length, wanted.length, what);
  let range = 0;
  for (let i = 0; i < wanted.length; i++) range = Math.max(range, Math.abs(wanted[i] ?? 0));
  for (let i = 0; i < wanted.length; i++)
    // f32 sums in another order
    assert(
      Math.abs((got[i] ?? NaN) - (wanted[i] ?? NaN)) <= 2e-5 * range,
      `${what}[${i}]: ${got[i]} is not ${wanted[i]}`,
    );
}

/** (2 / Σw) Σ w y xᵀ in doubles. */
function productSums(
  rows: readonly Float32Array[],
  others: readonly Float32Array[],
  weights: readonly Float32Array[] | undefined,
  columns: number,
): Float64Array {
  const sums = new Float64Array(columns * columns);
  let total = 0;
  rows.forEach((x, sample) => {
    const y = others[sample] ?? x;
    for (let token = 0; token * columns < x.length; token++) {
      const w = weights?.[sample]?.[token] ?? 1;
      total += w;
      for (let i = 0; i < columns; i++)
        for (let j = 0; j < columns; j++)
          sums[i * columns + j] =
            (sums[i * columns + j] ?? 0) +
            w * (y[token * columns + i] ?? 0) * (x[token * columns + j] ?? 0);
    }
  });
  return sums.map((sum) => (2 * sum) / total);
}

test('statistics are those of the inputs of each unit', async () => {
  const subject = await micro('untied');
  const seen = new Map<string, UnitStatistics>();
  const statistics = await collectStatistics(subject, services, {
    hessians: true,
    visit: (unit, found) => seen.set(unit.name, found),
  });
  for (const unit of subject.units) {
    const [input] = unit.inputs;
    if (input === undefined) continue;
    const rows: Float32Array[] = [];
    for (let index = 0; index < subject.samples.count; index++)
      rows.push(
        (await valuesOf(subject, index, [input.name], new Map())).get(input.name)
          ?.data as Float32Array,
      );
    const all = Float64Array.from(rows.flatMap((part) => [...part]));
    const { columns } = unit;
    const found = statistics.units.get(unit.name);
    assert(found !== undefined, unit.name);
    assert.equal(found.tokens, all.length / columns);
    assert.equal(found.least, Math.min(...all));
    assert.equal(found.greatest, Math.max(...all));
    const column = (j: number): number[] =>
      Array.from({ length: found.tokens }, (_, row) => all[row * columns + j] ?? 0);
    const mean = (values: readonly number[]): number =>
      values.reduce((sum, value) => sum + value, 0) / values.length;
    const each = Array.from({ length: columns }, (_, j) => column(j));
    expectNear(found.mean, each.map(mean), 'mean');
    expectNear(
      found.absmax,
      each.map((v) => Math.max(...v.map(Math.abs))),
      'absmax',
    );
    const squares = each.map((values) => mean(values.map((value) => value * value)));
    expectNear(found.meanSquare, squares, 'mean square');
    expectNear([found.hessianTrace], [2 * squares.reduce((a, b) => a + b, 0)], 'trace');
    const { hessian } = seen.get(unit.name) ?? {};
    assert(hessian !== undefined);
    expectNear(hessian, productSums(rows, rows, undefined, columns), 'hessian');
    assert.equal(found.hessian, undefined, 'Hessians are not kept');
    // energy of the product, from the product itself
    const w = unitRows(unit).read(0, unit.rows).slice();
    let energy = 0;
    for (const x of rows)
      for (const y of algebra.matmul(x, w, x.length / columns, columns, unit.rows, {
        bTransposed: true,
      }))
        energy += (2 * y * y) / found.tokens;
    expectNear([found.outputEnergy], [energy], 'energy');
  }
});

test('a table that is also the head keeps its Hessian, for it is rounded first', async () => {
  const { model, decoder } = fusedDecoder();
  const samples = windowSamples(model, decoder, [[1, 2, 3, 4, 5, 6, 7, 8]], 'ids');
  const subject = await subjectOf(model, decoder, samples, { minElements: 1024 });
  const table = subject.units.find(({ kind }) => kind === 'table');
  const tied = table !== undefined && table.inputs.length > 0;
  assert(tied, 'the model is tied');
  const statistics = await collectStatistics(subject, services);
  assert.equal(statistics.units.get(table.name)?.hessian?.length, table.columns ** 2);
  const asked: (number | undefined)[] = [];
  await roundSequentially(
    subject,
    new Map([[table.name, w4]]),
    (unit, format, known) => {
      asked.push(known?.hessian?.length);
      return roundUnit(unitRows(unit), format, { name: 'gptq' }, known ?? {}, algebra);
    },
    services,
    { method: 'gptq', statistics },
  );
  assert.deepEqual(asked, [table.columns ** 2]);
});

/** Rounds with the right method, and remembers what it was given. */
function recording(seen: Map<string, UnitStatistics>): RoundUnit {
  return (unit, format, statistics) => {
    if (statistics !== undefined) seen.set(unit.name, statistics);
    return roundUnit(unitRows(unit), format, { name: 'gptq' }, statistics ?? {}, algebra);
  };
}

for (const propagate of [false, true])
  test(`each unit sees inputs behind what was rounded before it${propagate ? ', and the original ones' : ''}`, async () => {
    const subject = await micro('untied');
    const seen = new Map<string, UnitStatistics>();
    const formats = new Map(subject.units.map(({ name }) => [name, w4]));
    const options = { method: 'gptq', propagate };
    const rounded = await roundSequentially(subject, formats, recording(seen), services, options);
    assert.equal(rounded.size, subject.units.length);
    const weights = new Map(
      [...rounded].map(([name, { matrix }]) => [name, dequantizeMatrix(matrix)]),
    );
    for (const { name, inputs, columns } of subject.units) {
      const [input] = inputs;
      if (input === undefined) continue;
      // every rounded weight: what runs after the unit does not reach its input
      const rowsWith = async (
        other: ReadonlyMap<string, Float32Array>,
      ): Promise<Float32Array[]> => {
        const rows: Float32Array[] = [];
        for (let index = 0; index < subject.samples.count; index++) {
          const values = await valuesOf(subject, index, [input.name], other);
          rows.push(values.get(input.name)?.data as Float32Array);
        }
        return rows;
      };
      const rows = await rowsWith(weights);
      const { hessian, cross } = seen.get(name) ?? {};
      assert(hessian !== undefined, name);
      expectNear(hessian, productSums(rows, rows, undefined, columns), `${name} hessian`);
      if (!propagate) assert.equal(cross, undefined);
      else {
        assert(cross !== undefined);
        const original = await rowsWith(new Map());
        expectNear(cross, productSums(rows, original, undefined, columns), `${name} cross`);
      }
    }
  });

test('token weights are column sums of the attention matrix', async () => {
  for (const name of ['gqa', 'qk-norm', 'partial-rotary', 'mqa']) {
    const subject = await micro(name);
    const node = [...subject.model.graph.nodes()].find(isFusedAttention);
    assert(node !== undefined);
    const [q, k, v] = [attentionInputs.q, attentionInputs.k, attentionInputs.v].map(
      (index) => node.inputs[index],
    );
    assert(q !== undefined);
    const names = [q, k, v].flatMap((value) => value?.name ?? []);
    const values = await valuesOf(subject, 0, names, new Map());
    const received = attentionReceived(
      node,
      values.get(q.name) as Tensor,
      k && (values.get(k.name) as Tensor),
      algebra,
    );
    // heads and queries sum to one each
    const heads = node.int('heads', 0);
    expectNear([received.reduce((a, b) => a + b, 0)], [heads * 12], `${name} sum`);
    // the output is linear in v: a v of ones at token t and zeros elsewhere shows what t receives
    const headSize = node.int('headSize', 0);
    const kvHeads = node.int('kvHeads', 0);
    const packed = k === undefined;
    for (const token of [0, 5, 11]) {
      const changed = new Map(values);
      const target = packed ? q : (v ?? q);
      const source = values.get(target.name) as Tensor;
      const data = (source.data as Float32Array).slice();
      const width = source.shape[2] ?? 0;
      const from = packed ? width - kvHeads * headSize : 0;
      for (let row = 0; row < 12; row++)
        for (let column = from; column < width; column++)
          data[row * width + column] = row === token ? 1 : 0;
      changed.set(target.name, tensor('f32', source.shape, data));
      const part = stageModel(subject.model, names, [node.output(0).name]);
      const output = evaluate(part, changed).get(node.output(0).name);
      assert(output !== undefined);
      const shares = (output.data as Float32Array).reduce((a, b) => a + b, 0) / headSize;
      expectNear([received[token] ?? 0], [shares], `${name} token ${token}`);
    }
  }
  assert.deepEqual([...tokenWeights(Float32Array.of(1, 3, 2), 0.5)], [0.5, 1, 0.75]);
  assert.deepEqual([...tokenWeights(Float32Array.of(2, 2), 0.5)], [1, 1]);
});

test('with token weights the Hessian is the weighted one', async () => {
  const subject = await micro('untied');
  const seen = new Map<string, UnitStatistics>();
  const formats = new Map(subject.units.map(({ name }) => [name, w4]));
  await roundSequentially(subject, formats, recording(seen), services, {
    method: 'gptq',
    attention: true,
  });
  const plain = new Map<string, UnitStatistics>();
  await roundSequentially(subject, formats, recording(plain), services, { method: 'gptq' });
  const first = subject.units.find(({ kind }) => kind === 'linear');
  const node = [...subject.model.graph.nodes()].find(isFusedAttention);
  const [input] = first?.inputs ?? [];
  assert(first !== undefined && input !== undefined && node !== undefined);
  const q = node.input(0);
  const k = node.inputs[1];
  // the first product sees the embedding, which nothing but the table is in front of
  const rounded = new Map<string, Float32Array>();
  const gathered = subject.units.find(({ kind }) => kind === 'table');
  if (gathered !== undefined) {
    const { matrix } = roundUnit(unitRows(gathered), w4, { name: 'gptq' }, {}, algebra);
    rounded.set(gathered.name, dequantizeMatrix(matrix));
  }
  const rows: Float32Array[] = [];
  const weights: Float32Array[] = [];
  for (let index = 0; index < subject.samples.count; index++) {
    const names = [input, q, k].flatMap((value) => value?.name ?? []);
    const values = await valuesOf(subject, index, names, rounded);
    rows.push(values.get(input.name)?.data as Float32Array);
    const received = attentionReceived(
      node,
      values.get(q.name) as Tensor,
      k && (values.get(k.name) as Tensor),
      algebra,
    );
    weights.push(tokenWeights(received));
  }
  const wanted = productSums(rows, rows, weights, first.columns);
  expectNear(seen.get(first.name)?.hessian ?? [], wanted, 'weighted');
  assert.notDeepEqual(seen.get(first.name)?.hessian, plain.get(first.name)?.hessian);
});

test('what was interrupted goes on where it was, to the same codes', async () => {
  const subject = await micro('untied');
  const formats = new Map(subject.units.map(({ name }) => [name, w4]));
  for (const options of [
    { method: 'gptq' },
    { method: 'gptq', attention: true },
    { method: 'gptq', propagate: true },
  ] satisfies SequentialOptions[]) {
    const whole = await roundSequentially(
      subject,
      formats,
      recording(new Map()),
      services,
      options,
    );
    const cache = new InterruptibleCache(4);
    const cached = { ...services, cache };
    let calls = 0;
    const counted: RoundUnit = (unit, format, statistics) => {
      calls++;
      return roundUnit(unitRows(unit), format, { name: 'gptq' }, statistics ?? {}, algebra);
    };
    await assert.rejects(
      roundSequentially(subject, formats, counted, cached, options),
      /interrupted/,
    );
    const first = calls;
    assert(first > 0 && first < subject.units.length);
    const resumed = await roundSequentially(subject, formats, counted, cached, options);
    assert.equal(calls, subject.units.length, 'no unit is rounded twice');
    assert.deepEqual(resumed, whole);
    // a third time nothing is run at all
    const again = await roundSequentially(
      subject,
      formats,
      () => assert.fail('rounded again'),
      { ...cached, engines: { wasm: { id: 'wasm', open: () => assert.fail('opened') } } },
      options,
    );
    assert.deepEqual(again, whole);
    // another format of an early unit makes everything behind it new
    const [name = ''] = formats.keys();
    const other = new Map(formats).set(name, parseFormat('w8g16') as CodeFormat);
    calls = 0;
    await roundSequentially(subject, other, counted, cached, options);
    assert.equal(calls, subject.units.length);
  }
});

test('statistics come from the cache, and damaged entries count as none', async () => {
  const subject = await micro('gqa');
  const files = new MemoryFiles();
  const cached = { ...services, cache: new FolderCache(files, 'cache') };
  const first = await collectStatistics(subject, cached);
  const closed = { wasm: { id: 'wasm' as const, open: () => assert.fail('opened') } };
  assert.deepEqual(await collectStatistics(subject, { ...cached, engines: closed }), first);
  for (const [path, bytes] of files.contents) {
    bytes[bytes.length - 9] = (bytes[bytes.length - 9] ?? 0) ^ 1;
    assert.equal(decodeEntry(bytes), undefined, path);
  }
  assert.deepEqual(await collectStatistics(subject, cached), first);
});

test('entries of the cache come back as they were', () => {
  const entry = {
    json: { a: [1, 'x'], b: null },
    arrays: {
      floats: Float32Array.of(1, -2.5),
      bytes: Uint8Array.of(1, 2, 3),
      none: new Int32Array(0),
      halves: Uint16Array.of(65535),
      levels: Int8Array.of(-64, 63),
    },
  };
  const bytes = encodeEntry(entry);
  assert.deepEqual(decodeEntry(bytes), entry);
  for (const length of [0, 7, 12, bytes.length - 8])
    assert.equal(decodeEntry(bytes.slice(0, length)), undefined);
  // numbers in the JSON are what ratings and gains are
  const changed = bytes.slice();
  changed[bytes.indexOf('1'.charCodeAt(0), 8)] = '2'.charCodeAt(0);
  assert.equal(decodeEntry(changed), undefined);
});

test('values that are not finite name the node that made them', async () => {
  const b = new ModelBuilder(17);
  const x = b.input('x', ['batch', 8]);
  const root = b.rewriter.node('Sqrt', [x], {}, { name: 'root' });
  const w = b.floats('w', [8, 4], normalValues(32, 1));
  b.output('y', b.op('MatMul', [root.output(0), w]));
  const data = normalValues(16, 2);
  const samples = arraySamples(b.model, new Map([['x', tensor('f32', [2, 8], data)]]), 'x.npy');
  const subject = await subjectOf(b.model, undefined, samples, { minElements: 1 });
  await assert.rejects(
    collectStatistics(subject, services),
    (error) =>
      error instanceof FettleError &&
      error.code === 'MODEL_INVALID' &&
      error.at?.['node'] === 'root' &&
      /not finite/.test(error.message),
  );
});
