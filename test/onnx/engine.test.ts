import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import { MemoryFiles, readFile } from '../../compiler/files.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { encodeModel, writeModel } from '../../compiler/onnx/write.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount, tensor } from '../../runtime/tensor.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

function waves(shape: readonly number[]): Tensor {
  const data = Float32Array.from({ length: elementCount(shape) }, (_, i) => Math.sin(i));
  return tensor('f32', shape, data);
}

/** The files as written, inline and with external data, give the outputs of the source bit for bit. */
async function assertSameOutputs(path: string, inputs: Record<string, Tensor>): Promise<void> {
  const source = Uint8Array.from(readFileSync(path));
  const feeds = new Map(Object.entries(inputs));
  const expected = await runOnOrt(source, feeds);
  const model = decodeModel(source);
  assert.deepEqual(await runOnOrt(encodeModel(model), feeds), expected, 'one file');
  const files = new MemoryFiles();
  writeModel(files, 'm.onnx', model, { externalData: { path: 'w.bin', thresholdBytes: 64 } });
  const externalData = [{ path: 'w.bin', data: readFile(files, 'w.bin') }];
  const outputs = await runOnOrt(readFile(files, 'm.onnx'), feeds, {
    sessionOptions: { externalData },
  });
  assert.deepEqual(outputs, expected, 'external data');
}

test(
  'onnxruntime-web computes the same from an LSTM as written',
  needsShared('models'),
  async () => {
    const path = sharedPath('models/exports/bilstm_ctc/model.onnx');
    await assertSameOutputs(path, { input: waves([1, 20, 40]) });
  },
);

test(
  'onnxruntime-web computes the same from a BERT as written',
  needsShared('models'),
  async () => {
    const path = sharedPath('models/exports/bert_postnorm_gelu/model.onnx');
    const ones = tensor('i64', [1, 12], new BigInt64Array(12).fill(1n));
    await assertSameOutputs(path, { input_ids: ones, attention_mask: ones });
  },
);

const silero = createRequire(import.meta.url).resolve('@ricky0123/vad-web/dist/silero_vad_v5.onnx');

test(
  'onnxruntime-web computes the same from nested subgraphs whose names were made unique',
  { skip: existsSync(silero) ? false : `${silero} is not there` },
  async () => {
    await assertSameOutputs(silero, {
      input: waves([1, 512]),
      state: waves([2, 1, 128]),
      sr: tensor('i64', [], BigInt64Array.of(16000n)),
    });
  },
);
