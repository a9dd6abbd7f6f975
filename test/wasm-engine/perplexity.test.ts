import assert from 'node:assert/strict';
import { test } from 'node:test';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { openSource } from '../../compiler/source.ts';
import { tensor, zeros } from '../../runtime/tensor.ts';
import { openNib, perplexityOf } from '../support/nib-perplexity.ts';
import { rangeDistance } from '../support/range-distance.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const { skip } = needsShared('models/nib');

test(
  'perplexity of nib in w4g32 is that of its weights with f32 activations to 0.3%',
  { skip },
  async () => {
    const { wasm, f32, ids } = await openNib('w4g32');
    const first = ids.slice(0, 12);
    // onnxruntime stands for the evaluator, which would take minutes: here they are the same
    const { config, read } = openSource(new NodeFiles(), sharedPath('models/nib'));
    const model = read();
    inferModel(model, { contradictions: 'warn' });
    const steps = ['clean-up', 'fuse', ['quantize-weights', { format: 'w4g32' }]] as const;
    await runPasses(model, pipelineFrom(steps), {});
    const { decoder } = analyzeDecoder(model, config);
    const row = tensor('i64', [1, first.length], BigInt64Array.from(first, BigInt));
    const feeds = new Map([['input_ids', row]]);
    for (const { input } of decoder?.state ?? []) feeds.set(input, zeros('f32', [1, 2, 0, 32]));
    const want = evaluate(model, feeds).get('logits')?.data as Float32Array;
    const logits = (await f32.logits(first)).data as Float32Array;
    const distance = rangeDistance(logits, want);
    assert.ok(distance <= 1e-4, `${distance}`);

    // 2,500 tokens take seconds; 40,000 give the same ratio, see ARCHITECTURE.md
    const own = await perplexityOf(wasm, ids, 2500);
    const other = await perplexityOf(f32, ids, 2500);
    assert.ok(Math.abs(own / other - 1) <= 0.003, `${own} beside ${other}`);
    await Promise.all([wasm.dispose(), f32.dispose()]);
  },
);
