/** What specialize-shapes refuses, and what it reports. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseModel } from '../../compiler/ir/parse.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import type { PassReport } from '../../compiler/passes/pass.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { FettleError } from '../../runtime/errors.ts';

const text = `graph (image: f32[batch, 3, h, w], z: f32[batch, h + w]) -> (y) {
  opset 17
  %y = Relu(%image)
}`;

async function specialize(shapes: Readonly<Record<string, unknown>>): Promise<PassReport> {
  const [report] = await runPasses(
    parseModel(text),
    pipelineFrom([['specialize-shapes', { shapes }]]),
  );
  assert.ok(report !== undefined);
  return report;
}

async function usage(shapes: Readonly<Record<string, unknown>>): Promise<FettleError> {
  try {
    await specialize(shapes);
  } catch (error) {
    assert.ok(error instanceof FettleError);
    assert.equal(error.code, 'USAGE');
    assert.notEqual(error.fix, undefined);
    return error;
  }
  return assert.fail('nothing was thrown');
}

test('an unknown name is answered with the nearest input or size', async () => {
  const error = await usage({ imag: '1x3x8x8' });
  assert.match(error.message, /no input and no size called "imag"/);
  assert.equal(error.fix, 'Did you mean "image"?');
  assert.equal((await usage({ bach: 1 })).fix, 'Did you mean "batch"?');
});

test('a shape of another rank is refused', async () => {
  assert.match((await usage({ image: '3x8x8' })).message, /has 4 dimensions .* not 3/);
});

test('a size that contradicts a fixed one is refused', async () => {
  assert.match((await usage({ image: '1x4x8x8' })).message, /a size of 4 contradicts 3/);
});

test('a symbol with two sizes is refused', async () => {
  assert.match((await usage({ image: '1x3x8x8', batch: 2 })).message, /given as 1 and as 2/);
});

test('a size that contradicts an expression over fixed symbols is refused', async () => {
  const error = await usage({ image: '1x3x8x8', z: '1x17' });
  assert.match(error.message, /a size of 17 contradicts 16/);
});

test('what is no whole size is refused', async () => {
  assert.match((await usage({ image: '1x3xAx8' })).message, /has the size "A"/);
  assert.match((await usage({ batch: -1 })).message, /has the size "-1"/);
  assert.match((await usage({ image: '1x3x8.5x8' })).message, /has the size "8.5"/);
});

test('the report says what was fixed and what is still open', async () => {
  const report = await specialize({ image: '1x3x8x?' });
  assert.deepEqual(report.notes, { batch: 1, h: 8, open: 'w' });
});

test('a size that makes an op impossible names the op, the pass and MODEL_INVALID', async () => {
  const model = parseModel(`graph (x: f32[n, 4], w: f32[m, 2]) -> (y) {
  opset 17
  %y = MatMul(%x, %w)
}`);
  await assert.rejects(
    runPasses(model, pipelineFrom([['specialize-shapes', { shapes: { m: 3 } }]])),
    (error: unknown) =>
      error instanceof FettleError &&
      error.code === 'MODEL_INVALID' &&
      error.at['pass'] === 'specialize-shapes',
  );
});
