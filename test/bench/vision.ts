/**
 * Models of vision and speech on the WASM engine beside onnxruntime-web on the original file, both with one
 * thread in this process: largest difference as a fraction of the range, and the ratio of the best times
 * of interleaved runs. Prints Markdown, or JSON with `--json`; `--profile` adds the time of each kernel.
 *
 *     npm run bench:vision [-- --json] [--profile] [--runs n] [--format w8] [name …]
 */
import { existsSync, readFileSync } from 'node:fs';
import { argv, stdout, version } from 'node:process';
import { parseArgs } from 'node:util';
import { inferModel } from '../../compiler/ir/infer.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { fixInputs } from '../../compiler/passes/fix-inputs.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { quantizeWeights } from '../../compiler/passes/quantize-weights.ts';
import { specializeShapes } from '../../compiler/passes/specialize-shapes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { loadOrt } from '../../runtime/ort/module.ts';
import { fromOrt, toOrt } from '../../runtime/ort/tensors.ts';
import { wasm } from '../../targets/wasm.ts';
import { planBundle } from '../support/plan-session.ts';
import { tracedRun } from '../support/profile-plan.ts';
import { rangeDistance } from '../support/range-distance.ts';
import { seededInputs } from '../support/seeded-inputs.ts';
import { speechModels, withFixed } from '../support/speech-models.ts';
import { timedSizes, visionModels } from '../support/vision-models.ts';

interface Row {
  readonly model: string;
  /** Largest difference of any output as a fraction of its range. */
  readonly difference: number;
  /** Best times, in milliseconds. */
  readonly ms: number;
  readonly ortMs: number;
  /** Kernel, milliseconds in all runs, share. */
  readonly kernels?: readonly (readonly [string, number, number])[];
}

const { values: options, positionals } = parseArgs({
  args: argv.slice(2),
  allowPositionals: true,
  options: {
    json: { type: 'boolean', default: false },
    profile: { type: 'boolean', default: false },
    runs: { type: 'string', default: '12' },
    format: { type: 'string', default: 'f32' },
  },
});
const runs = Number(options.runs);
const ort = await loadOrt({ threads: 1 }, 'wasm');
const rows: Row[] = [];
const models = [
  ...visionModels.map((model) => ({ ...model, sizes: { ...model.sizes, ...timedSizes(model) } })),
  ...speechModels,
];
for (const { name, path, sizes, ...rest } of models) {
  if (!existsSync(path) || (positionals.length > 0 && !positionals.includes(name))) continue;
  rows.push(await measure(name, path, sizes, 'fixed' in rest ? rest.fixed : {}));
}
if (options.json) stdout.write(`${JSON.stringify({ node: version, rows }, undefined, 2)}\n`);
else {
  stdout.write('| model | difference | ms | onnxruntime-web | ratio |\n|---|---|---|---|---|\n');
  for (const { model, difference, ms, ortMs, kernels = [] } of rows) {
    const cells = [difference.toExponential(1), ms.toFixed(2), ortMs.toFixed(2)];
    stdout.write(`| ${model} | ${cells.join(' | ')} | ${(ortMs / ms).toFixed(2)} |\n`);
    for (const [kernel, time, share] of kernels)
      stdout.write(`    ${kernel}: ${time.toFixed(2)} ms, ${(share * 100).toFixed(0)}%\n`);
  }
}

async function measure(
  name: string,
  path: string,
  sizes: Readonly<Record<string, number>>,
  fixed: Readonly<Record<string, number>>,
): Promise<Row> {
  const bytes = readFileSync(path);
  const original = decodeModel(bytes);
  const inputs = withFixed(seededInputs(original, 1, sizes), fixed);
  const model = decodeModel(bytes);
  inferModel(model, { contradictions: 'warn' });
  const shapes = Object.fromEntries(
    [...inputs].flatMap(([input, { shape }]) => (shape.length === 0 ? [] : [[input, shape]])),
  );
  await runPasses(model, [fixInputs({ values: fixed }), specializeShapes({ shapes })]);
  const steps = wasm.pipeline.filter((step) => step !== 'quantize-weights');
  await runPasses(model, pipelineFrom(steps));
  await runPasses(model, [quantizeWeights({ format: options.format })]);
  const bundle = await planBundle(model);
  const session = await bundle.open();
  const theirs = await ort.InferenceSession.create(bytes, {
    executionProviders: ['wasm'],
    graphOptimizationLevel: 'all',
    logSeverityLevel: 3,
  });
  const feeds = Object.fromEntries([...inputs].filter(([input]) => !(input in fixed)));
  const ortFeeds = Object.fromEntries([...inputs].map(([input, t]) => [input, toOrt(ort, t)]));
  const got = await session.run(feeds);
  let difference = 0;
  for (const [output, tensor] of Object.entries(await theirs.run(ortFeeds))) {
    const { data } = await fromOrt(tensor);
    const [own, want] = [got[output]?.data as Float32Array, data as Float32Array];
    // a single probability has no range but 0 to 1
    const far =
      want.length === 1 ? Math.abs((own[0] ?? NaN) - (want[0] ?? 0)) : rangeDistance(own, want);
    difference = Math.max(difference, far);
  }
  let [ms, ortMs] = [Infinity, Infinity];
  for (let run = 0; run < runs; run++) {
    let start = performance.now();
    await session.run(feeds);
    ms = Math.min(ms, performance.now() - start);
    start = performance.now();
    await theirs.run(ortFeeds);
    ortMs = Math.min(ortMs, performance.now() - start);
  }
  const kernels = options.profile ? await tracedRun(bundle, feeds) : undefined;
  await session.dispose();
  await theirs.release();
  return { model: name, difference, ms, ortMs, ...(kernels === undefined ? {} : { kernels }) };
}
