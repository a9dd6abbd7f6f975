/** One field of a recipe, and one flag, turns off all exact algebra; another all of fusion. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { parseModel } from '../../compiler/ir/parse.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { exactAlgebra } from '../../compiler/passes/algebra.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { fettleJson } from '../support/cli.ts';

const folder = mkdtempSync(join(tmpdir(), 'fettle-algebra-'));
after(() => rmSync(folder, { recursive: true }));

/** A convolution and its norm, a factor behind a product, and a transpose that another undoes. */
const text = `graph (x: f32[1, 2, 4, 4], z: f32[3, 2]) -> (y, p, t) {
  opset 17
  const %w: f32[2, 2, 1, 1] = {1, 2, 3, 4}
  const %g: f32[2] = {0.5, 2}
  const %b: f32[2] = {1, -1}
  const %m: f32[2] = {0.25, 0.5}
  const %v: f32[2] = {1, 4}
  const %a: f32[2, 4] = {1, 2, 3, 4, 5, 6, 7, 8}
  const %half: f32[] = {0.5}
  %c = Conv(%x, %w)
  %n = BatchNormalization(%c, %g, %b, %m, %v)
  %y = Relu(%n)
  %q = MatMul(%z, %a)
  %p = Mul(%q, %half)
  %t1 = Transpose(%x) {perm = [0, 2, 3, 1]}
  %t2 = Sigmoid(%t1)
  %t3 = Transpose(%t2) {perm = [0, 3, 1, 2]}
  %t = Neg(%t3)
}`;
const file = join(folder, 'model.onnx');
writeFileSync(file, encodeModel(parseModel(text)));

/** Names of the passes that changed something, and applications of rules, of a compilation. */
async function ran(name: string, ...flags: readonly string[]): Promise<ReadonlySet<string>> {
  const out = join(folder, name);
  const told = await fettleJson('compile', file, '--target', 'ort-wasm', '--out', out, ...flags);
  const passes = told.passes as readonly { pass: string; changed: boolean }[];
  return new Set(passes.filter(({ changed }) => changed).map(({ pass }) => pass));
}

const algebra = (passes: ReadonlySet<string>): readonly string[] =>
  [...passes].filter((pass) => exactAlgebra.has(pass)).sort();
const fusions = (passes: ReadonlySet<string>): readonly string[] =>
  [...passes].filter((pass) => pass.startsWith('fuse-')).sort();

test('exact algebra runs unless it is turned off', async () => {
  assert.deepEqual(algebra(await ran('all')), [
    'fold-batch-norm',
    'fold-scalars',
    'sink-transposes',
  ]);
});

test('--no-algebra leaves weights and layouts alone, and fuses all the same', async () => {
  const passes = await ran('no-algebra', '--no-algebra');
  assert.deepEqual(algebra(passes), []);
  assert.deepEqual(fusions(passes), ['fuse-conv', 'fuse-linear']);
});

test('--no-fusion leaves ops apart, and folds norms all the same', async () => {
  const passes = await ran('no-fusion', '--no-fusion');
  assert.deepEqual(fusions(passes), []);
  assert.deepEqual(algebra(passes), ['fold-batch-norm']);
});

test('a recipe says the same as the flags', async () => {
  const recipe = join(folder, 'recipe.json');
  writeFileSync(recipe, JSON.stringify({ algebra: false, fusion: false }));
  const passes = await ran('recipe', '--recipe', recipe);
  assert.deepEqual([...algebra(passes), ...fusions(passes)], []);
});

test('a pipeline without exact algebra has none of its passes inside of groups either', () => {
  const steps = pipelineFrom(['clean-up', 'fuse', 'fold-norm-gains'], exactAlgebra);
  const names = steps.flatMap((step) => ('passes' in step ? step.passes : [step]));
  assert.ok(names.length > 20);
  assert.deepEqual(
    names.filter(({ name }) => exactAlgebra.has(name)),
    [],
  );
});
