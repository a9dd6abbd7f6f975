/** Models of vision and speech from npm on the WASM engine against onnxruntime-web on the original files. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { inferModel } from '../../compiler/ir/infer.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { fixInputs } from '../../compiler/passes/fix-inputs.ts';
import { specializeShapes } from '../../compiler/passes/specialize-shapes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { wasm } from '../../targets/wasm.ts';
import { expectSame } from '../support/expect-same.ts';
import { hostVariants } from '../support/kernels.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { runOnWasm } from '../support/run-on-wasm.ts';
import { seededInputs } from '../support/seeded-inputs.ts';
import { speechModels, withFixed } from '../support/speech-models.ts';
import { visionModels } from '../support/vision-models.ts';

/** Sizes of the text models that are quick and no multiple of a tile. */
const small: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  'PP-OCRv4 rec': { 'p2o.DynamicDimension.0': 1, 'p2o.DynamicDimension.1': 72 },
  'PP-OCR cls': {
    'p2o.DynamicDimension.0': 1,
    'p2o.DynamicDimension.1': 48,
    'p2o.DynamicDimension.2': 100,
  },
};

const models = [
  ...visionModels
    .filter(({ name }) => name.startsWith('PP-OCR'))
    .map(({ name, path, sizes }) => ({ name, path, fixed: {}, sizes: small[name] ?? sizes })),
  ...speechModels,
  // the other branch of the same file
  ...speechModels
    .filter(({ name }) => name === 'silero_vad_v5')
    .map((model) => ({
      ...model,
      name: `${model.name} at 8 kHz`,
      sizes: { ...model.sizes, '?2': 256 },
      fixed: { sr: 8000 },
    })),
];

for (const { name, path, sizes, fixed } of models)
  test(
    `${name} gives onnxruntime's outputs`,
    { skip: existsSync(path) ? false : `${path} is not there` },
    async () => {
      const bytes = readFileSync(path);
      const inputs = withFixed(seededInputs(decodeModel(bytes), 1, sizes), fixed);
      const model = decodeModel(bytes);
      inferModel(model, { contradictions: 'warn' });
      const shapes = Object.fromEntries(
        [...inputs].flatMap(([input, { shape }]) => (shape.length === 0 ? [] : [[input, shape]])),
      );
      await runPasses(model, [fixInputs({ values: fixed }), specializeShapes({ shapes })]);
      const steps = wasm.pipeline.filter((step) => step !== 'quantize-weights');
      await runPasses(model, pipelineFrom(steps));
      const wanted = await runOnOrt(bytes, inputs);
      for (const variant of await hostVariants()) {
        const got = await runOnWasm(model, inputs, { variant });
        for (const [output, reference] of wanted) {
          const own = got.get(output);
          assert.ok(own !== undefined, output);
          // both in f32, in different orders, tens of layers deep; probabilities have a range of 1
          const what = `${variant} ${output}`;
          expectSame(own, reference, { tolerance: 1e-4, absolute: 1e-6, what });
        }
      }
    },
  );
