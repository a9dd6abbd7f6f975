/**
 * Graphs straight from PyTorch's exporter: the evaluator gives PyTorch's outputs, and every inferred
 * size, with the symbols of the inputs filled in, is the real one.
 */
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import type { Tensor } from '../../runtime/tensor.ts';
import { isAnonymous } from '../../compiler/ir/dim.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { readNpy } from '../../models/npy.ts';
import { typeMismatch } from '../support/conformance.ts';
import { expectSame } from '../support/expect-same.ts';
import { needsShared, sharedFiles } from '../support/shared.ts';

const shared = needsShared('models', 'exports');

test('the nine exports are there', shared, () => {
  assert.equal(sharedFiles('model.onnx', 'models', 'exports').length, 9);
});

for (const path of sharedFiles('model.onnx', 'models', 'exports')) {
  const folder = join(path, '..');
  test(`${basename(folder)} gives what PyTorch gives`, shared, () => {
    const model = decodeModel(readFileSync(path));
    inferModel(model);
    verifyModel(model);
    const arrays = readdirSync(folder).filter((file) => file.endsWith('.npy'));
    const load = (file: string): Tensor => readNpy(readFileSync(join(folder, file)), file);
    const inputs = new Map<string, Tensor>();
    const sizes = new Map<string, number>();
    for (const value of model.graph.inputs) {
      // a model with one input calls its file plainly "input"
      const file = arrays.find((name) => name.includes(value.name)) ?? 'input.npy';
      const tensor = load(file);
      assert.ok(value.shape !== undefined);
      inputs.set(value.name, tensor);
      for (const [axis, dim] of value.shape.entries())
        if (typeof dim === 'string') sizes.set(dim, tensor.shape[axis] ?? 0);
    }
    const wrong: string[] = [];
    const outputs = evaluate(model, inputs, {
      onValue: (value, tensor) => {
        const mismatch = typeMismatch(value, tensor, sizes);
        if (mismatch !== undefined) wrong.push(mismatch);
        if (value.shape === undefined || value.shape.some(isAnonymous))
          wrong.push(`"${value.name}" has a size that is not known`);
      },
    });
    assert.deepEqual(wrong, []);
    const [got] = outputs.values();
    const wanted = load(arrays.find((file) => file.startsWith('output')) ?? '');
    assert.ok(got !== undefined);
    // both sum f32 in another order, through up to 80 layers; measured: at most 1.1e-5
    expectSame(got, wanted, { tolerance: 5e-5, what: basename(folder) });
  });
}
