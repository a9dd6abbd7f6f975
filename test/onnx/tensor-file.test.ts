import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { decodeTensor } from '../../compiler/onnx/tensor-file.ts';
import { encodeMessage } from '../../compiler/onnx/wire.ts';
import { assertFails } from '../support/errors.ts';
import { floats } from '../support/onnx.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

test('a tensor file is decoded', () => {
  const { name, tensor } = decodeTensor(encodeMessage('TensorProto', floats('w', [1, 2.5])));
  assert.equal(name, 'w');
  assert.deepEqual(
    [tensor.dtype, tensor.shape, [...(tensor.data as Float32Array)]],
    ['f32', [2], [1, 2.5]],
  );
});

test('a damaged or external tensor file is refused', () => {
  const bytes = encodeMessage('TensorProto', floats('w', [1, 2.5]));
  assertFails(() => decodeTensor(bytes.subarray(0, 9)), 'MODEL_INVALID', /./);
  const externalData = [{ key: 'location', value: 'w.bin' }];
  const external = encodeMessage('TensorProto', {
    name: 'w',
    dataType: 1,
    externalData,
    dataLocation: 1,
  });
  assertFails(() => decodeTensor(external), 'MODEL_INVALID', /external data/);
});

test('inputs and outputs of the conformance cases are read', needsShared('onnx-tests'), () => {
  const folder = sharedPath('onnx-tests/node/test_relu/test_data_set_0');
  const input = decodeTensor(readFileSync(`${folder}/input_0.pb`)).tensor;
  const output = decodeTensor(readFileSync(`${folder}/output_0.pb`)).tensor;
  assert.deepEqual(input.shape, [3, 4, 5]);
  const relu = Array.from(input.data as Float32Array, (x) => Math.max(0, x));
  assert.deepEqual([...(output.data as Float32Array)], relu);
});
