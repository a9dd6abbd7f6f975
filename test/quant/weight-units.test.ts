/** The constants that formats are chosen for, and formats and codes given one by one. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { Algebra } from '../../compiler/algebra/algebra.ts';
import { ints } from '../../compiler/ir/attribute.ts';
import { isDequantize, readDequantize } from '../../compiler/ops/quantized.ts';
import { quantizeWeights } from '../../compiler/passes/quantize-weights.ts';
import type { QuantizedTensorNote } from '../../compiler/passes/store-halves.ts';
import { unitFormat, unitRows, weightUnits } from '../../compiler/passes/weight-units.ts';
import { integerFormat, parseFormat } from '../../compiler/quant/formats.ts';
import { dequantizeMatrix, quantizeMatrix } from '../../compiler/quant/matrix.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { ModelBuilder } from '../support/model-builder.ts';
import { normalValues } from '../support/random-values.ts';

const algebra = await Algebra.create();

/** ids -> Gather(t) -> MatMul(w) -> MatMul(Transpose(t)): a linear layer between a tied table. */
function tied(): ModelBuilder {
  const b = new ModelBuilder();
  const ids = b.input('ids', [3], 'i64');
  const table = b.floats('t', [48, 32], normalValues(48 * 32, 1));
  const w = b.floats('w', [32, 32], normalValues(32 * 32, 2));
  const x = b.op('Gather', [table, ids]);
  const h = b.op('MatMul', [x, w]);
  const turned = b.op('Transpose', [table], { perm: ints([1, 0]) });
  return b.output('y', b.op('MatMul', [h, turned]));
}

const small = { minElements: 1 };

test('a tied table is one unit whose input is the input of the head', () => {
  const units = weightUnits(tied().model, small);
  assert.deepEqual(
    units.map(({ name, kind, rows, columns }) => [name, kind, rows, columns]),
    [
      ['t', 'table', 48, 32],
      ['w', 'linear', 32, 32],
    ],
  );
  const [table, linear] = units;
  assert.equal(table?.sites.length, 2);
  assert.deepEqual(
    table.inputs.map(({ producer }) => producer?.op),
    ['MatMul'],
  );
  assert.deepEqual(
    linear?.inputs.map(({ producer }) => producer?.op),
    ['Gather'],
  );
});

test('the rows of a unit are its output channels, whatever way it is stored', () => {
  const { model } = tied();
  const unit = weightUnits(model, small)[1];
  const stored = unit?.constant.weight?.tensor().data as Float32Array;
  assert.ok(unit !== undefined);
  // MatMul stores [inputs, outputs]
  const second = Array.from({ length: 32 }, (_, input) => stored[input * 32 + 1]);
  assert.deepEqual([...unitRows(unit).read(1, 1)], second);
});

test('a small constant and one that is skipped are no units, and the reason is told', () => {
  const reasons: string[] = [];
  const units = weightUnits(tied().model, { minElements: 1025, skip: ['t'] }, (_rule, _at, why) =>
    reasons.push(why),
  );
  assert.deepEqual(units, []);
  assert.deepEqual(reasons, ['the skip list names it']);
});

test('groups that do not fill a row become smaller ones or one per row', () => {
  const unit = weightUnits(tied().model, small)[1];
  assert.ok(unit !== undefined);
  const fit = (name: string): unknown => {
    const format = parseFormat(name);
    assert.ok(format.kind === 'integer');
    const found = unitFormat(unit, format, 'auto');
    return 'format' in found ? found.format.name : found.refused;
  };
  assert.equal(fit('w4g32'), 'w4g32');
  assert.equal(fit('w4g64'), 'w4g32');
  assert.equal(fit('w3g128a'), 'w3g32a');
});

test('each constant gets the format and the codes assigned to it', async () => {
  const { model } = tied();
  const table = weightUnits(model, small)[0];
  assert.ok(table !== undefined);
  const format = integerFormat(3, 'channel', false);
  const rounded = quantizeMatrix(unitRows(table), format, algebra);
  assert.ok('matrix' in rounded);
  const { matrix, relativeError } = rounded;
  const assignments = new Map([
    ['t', { format, matrix, relativeError }],
    ['w', { format: integerFormat(8, 32, true) }],
  ]);
  const pass = quantizeWeights({ ...small, assignments });
  const [report] = await runPasses(model, [pass], { checkChanged: true });
  const notes = report?.notes['tensors'] as readonly QuantizedTensorNote[];
  assert.deepEqual(
    notes.map((note) => [note.name, note.format, note.relativeError]),
    [
      ['t', 'w3a', Number(relativeError.toPrecision(4))],
      ['w', 'w8g32', notes[1]?.relativeError],
    ],
  );
  const nodes = [...model.graph.nodes()].filter(isDequantize);
  assert.deepEqual(
    nodes.map((node) => readDequantize(node).bits).toSorted((a, b) => a - b),
    [3, 3, 8],
  );
  const codes = nodes[0]?.input(0).constant()?.data;
  assert.deepEqual(codes, matrix.codes);
  assert.equal(dequantizeMatrix(matrix).length, 48 * 32);
});

test('a constant that is assigned f32 or f16 keeps its numbers', async () => {
  const { model } = tied();
  const assignments = new Map([
    ['t', { format: parseFormat('f32') }],
    ['w', { format: parseFormat('f16') }],
  ]);
  const pass = quantizeWeights({ ...small, format: 'w4g32', assignments });
  await runPasses(model, [pass]);
  const dtypes = [...model.graph.constants].map(({ name, weight }) => `${name} ${weight?.dtype}`);
  assert.deepEqual(dtypes.toSorted(), ['t f32', 'w.f16 f16']);
});

test('codes of another shape than the constant are refused by name', async () => {
  const { model } = tied();
  const table = weightUnits(model, small)[0];
  assert.ok(table !== undefined);
  const format = integerFormat(4, 32, true);
  const rounded = quantizeMatrix(unitRows(table), format, algebra);
  assert.ok('matrix' in rounded);
  const assignments = new Map([['w', { format, matrix: rounded.matrix }]]);
  await assert.rejects(runPasses(model, [quantizeWeights({ ...small, assignments })]), /"w"/);
});
