import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { compile } from '../../compiler/compile.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { openSource } from '../../compiler/source.ts';
import { openBundle } from '../../runtime/node.ts';
import { tensor, zeros } from '../../runtime/tensor.ts';
import { node22 } from '../support/node22.ts';
import { openDecoder } from '../support/ort-decoder.ts';
import { planBundle } from '../support/plan-session.ts';
import type { GreedyRun } from '../support/greedy-tokens.ts';
import { withQuantizedActivations } from '../support/quantized-activations.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const { skip } = needsShared('models/nib');
const source = (): ReturnType<typeof openSource> =>
  openSource(new NodeFiles(), sharedPath('models/nib'));

/** Largest difference as a fraction of the range of the reference. */
function distance(got: Float32Array, want: Float32Array): number {
  assert.equal(got.length, want.length);
  let worst = 0;
  let [low, high] = [Infinity, -Infinity];
  want.forEach((value, i) => {
    worst = Math.max(worst, Math.abs(value - (got[i] ?? Number.NaN)));
    [low, high] = [Math.min(low, value), Math.max(high, value)];
  });
  return worst / (high - low);
}

test('nib in f32 gives the logits of the original on onnxruntime', { skip }, async () => {
  const ids = Array.from({ length: 160 }, (_, i) => (i * 37 + 11) % 4096);
  const original = readFileSync(sharedPath('models/nib', 'onnx/model.onnx'));
  const decoder = await openDecoder(original, { layers: 12, kvHeads: 2, headSize: 32 });
  const want = await decoder.logits(ids);
  await decoder.close();
  const { config, read } = source();
  const model = read();
  inferModel(model, { contradictions: 'warn' });
  await runPasses(model, pipelineFrom(['clean-up', 'fuse', 'eliminate-dead']), {});
  const analysis = analyzeDecoder(model, config);
  const session = await (await planBundle(model, analysis.decoder)).open();
  const got = (await session.logits(ids)).data as Float32Array;
  await session.dispose();
  // both in f32, in different orders; the issue asks for 1e-4
  assert.ok(distance(got, want) <= 1e-4, `${distance(got, want)}`);
});

test(
  'nib in w4g32 gives the logits of the evaluator with activations rounded alike',
  { skip },
  async () => {
    const ids = Array.from({ length: 5 }, (_, i) => (i * 37 + 37) % 4096);
    const { config, read } = source();
    const model = read();
    inferModel(model, { contradictions: 'warn' });
    const steps = [
      'clean-up',
      'fuse',
      ['quantize-weights', { format: 'w4g32', clip: false }],
    ] as const;
    await runPasses(model, pipelineFrom(steps), {});
    const { decoder } = analyzeDecoder(model, config);
    const session = await (await planBundle(model, decoder)).open();
    const got = (await session.logits(ids)).data as Float32Array;
    await session.dispose();
    const feeds = new Map([
      ['input_ids', tensor('i64', [1, ids.length], BigInt64Array.from(ids, BigInt))],
    ]);
    for (const { input } of decoder?.state ?? []) feeds.set(input, zeros('f32', [1, 2, 0, 32]));
    const want = evaluate(withQuantizedActivations(model), feeds).get('logits')
      ?.data as Float32Array;
    // The issue asks for 2e-3. Where no value lies half way between two codes, both round alike and only
    // the order of sums differs; where one does (rows of a 4-bit table are full of ties), f32 here and f64
    // there may part, and the error becomes that of 8-bit activations, some 5e-3.
    assert.ok(distance(got, want) <= 1e-5, `${distance(got, want)}`);
  },
);

test(
  'nib generates the same 64 tokens with any kernels and threads, on this Node and on Node 22',
  { skip },
  async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'fettle-greedy-'));
    try {
      const files = new NodeFiles();
      const recipe = parseRecipe({ weights: 'w4g32', clip: 'none', canaries: false });
      await compile(source(), {
        targets: ['wasm-threads'],
        recipe,
        files,
        out: join(folder, 'nib'),
      });
      const script = fileURLToPath(new URL('../support/greedy-tokens.ts', import.meta.url));
      const run = (node: string): readonly GreedyRun[] =>
        JSON.parse(
          execFileSync(node, ['--import', 'tsx', script, join(folder, 'nib'), '64'], {
            encoding: 'utf8',
          }),
        ) as GreedyRun[];
      const runs = [...run(process.execPath)];
      const newer = node22();
      if (typeof newer === 'string') runs.push(...run(newer));
      else t.diagnostic(`without relaxed SIMD: ${newer.message}`);
      for (const { tokens, kernels, threads } of runs)
        assert.deepEqual(tokens, runs[0]?.tokens, `${kernels}, ${threads} threads`);
      assert.equal(runs[0]?.tokens.length, 64);
      if (typeof newer === 'string')
        assert.ok(runs.some(({ kernels }) => kernels?.startsWith('relaxed')));
      const session = await openBundle(join(folder, 'nib'));
      const { memoryBytes, memorySource } = session.measure();
      assert.equal(
        memoryBytes.weights + memoryBytes.arena,
        session.manifest.memory.weights + session.manifest.memory.arena,
      );
      assert.equal(memorySource.arena, 'counted');
      await session.dispose();
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
);
