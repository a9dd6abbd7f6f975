import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { compile } from '../../compiler/compile.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { openSource } from '../../compiler/source.ts';
import { openBundle } from '../../runtime/node.ts';
import { node22 } from '../support/node22.ts';
import { openDecoder } from '../support/ort-decoder.ts';
import { planBundle } from '../support/plan-session.ts';
import type { GreedyRun } from '../support/greedy-tokens.ts';
import { rangeDistance } from '../support/range-distance.ts';
import { checkRounded } from '../support/rounded-reference.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const { skip } = needsShared('models/nib');
const source = (): ReturnType<typeof openSource> =>
  openSource(new NodeFiles(), sharedPath('models/nib'));

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
  assert.ok(rangeDistance(got, want) <= 1e-4, `${rangeDistance(got, want)}`);
});

for (const format of ['w8g32', 'w4g32', 'w4g32a', 'w3g32', 'w2g32', 'w8', 'w4', 'w4g16', 'f16'])
  test(`nib in ${format} gives the reference's logits`, { skip }, async () => {
    const { config, read } = source();
    const model = read();
    inferModel(model, { contradictions: 'warn' });
    const steps = ['clean-up', 'fuse', ['quantize-weights', { format, clip: false }]] as const;
    await runPasses(model, pipelineFrom(steps), {});
    const { decoder } = analyzeDecoder(model, config);
    assert.ok(decoder !== undefined);
    const session = await (await planBundle(model, decoder)).open();
    // eight prompts, for the format the product is about
    for (let prompt = 0; prompt < (format === 'w4g32' ? 8 : 1); prompt++) {
      const length = 5 + 3 * prompt;
      const ids = Array.from({ length }, (_, i) => (i * 37 + 37 * (prompt + 1) ** 2) % 4096);
      // f32 sums against f64 sums; the issue asks for 2e-3
      const logits = await checkRounded(model, decoder, ids, 1e-5);
      assert.deepEqual((await session.logits(ids)).data, logits);
    }
    await session.dispose();
  });

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
