/**
 * Decoders whose products, caches or dtypes are spelt in other ways than the exporters' usual ones: fused to
 * the same few ops, with the logits of the unfused graph, and driven over several calls on both engines
 * with the logits that onnxruntime gives for the plain spelling.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findBlocks } from '../../compiler/analyze/blocks.ts';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { castTensor } from '../../compiler/ops/cast.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { generatedModel } from '../../models/index.ts';
import type { MicroName } from '../../models/micro.ts';
import { microDecoders } from '../../models/micro.ts';
import { formSpellings } from '../../models/spelling/index.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { tensor } from '../../runtime/tensor.ts';
import { ortWasm } from '../../targets/ort-wasm.ts';
import { expectSame } from '../support/expect-same.ts';
import { openDecoder } from '../support/ort-decoder.ts';
import { planBundle } from '../support/plan-session.ts';
import { seededInputs } from '../support/seeded-inputs.ts';

const variants: readonly MicroName[] = [
  'gqa',
  'mha',
  'mqa',
  'interleaved',
  'partial-rotary',
  'qk-norm',
  'layer-norm',
  'plus-one',
  'parallel',
  'softcap-windows',
  'sinks',
  'linear-bias',
];
const [past, sequence] = [4, 3];

/** A call in which no token is padding, behind four cached ones. */
function callInputs(model: Model): Map<string, Tensor> {
  const inputs = seededInputs(model, 3, {
    batch_size: 1,
    sequence_length: sequence,
    past_sequence_length: past,
  });
  for (const [name, { data }] of inputs) {
    if (!(data instanceof BigInt64Array)) continue;
    if (name.includes('mask')) data.fill(1n);
    if (name.includes('position')) data.forEach((_, i) => (data[i] = BigInt(past + i)));
    if (name.includes('write')) data.fill(BigInt(past));
    if (name.includes('seqlen')) data.fill(BigInt(past + sequence));
  }
  return inputs;
}

/** Those that a model still has, in its dtype, caches cut to the cached tokens. */
function inputsFor(model: Model, inputs: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  return new Map(
    model.graph.inputs.map(({ name, dtype = 'f32', shape }) => {
      const given = inputs.get(name);
      assert.ok(given !== undefined, name);
      const wide = castTensor(given, dtype);
      const isBuffer = name.startsWith('past') && typeof shape?.[2] === 'string';
      return [name, isBuffer ? firstTokens(wide) : wide] as const;
    }),
  );
}

function firstTokens(cache: Tensor): Tensor {
  const [batch = 1, heads = 1, rows = 1, width = 1] = cache.shape;
  if (rows === past) return cache;
  const data = new Float32Array(batch * heads * past * width);
  const source = cache.data as Float32Array;
  for (let plane = 0; plane < batch * heads; plane++)
    data.set(
      source.subarray(plane * rows * width, (plane * rows + past) * width),
      plane * past * width,
    );
  return tensor('f32', [batch, heads, past, width], data);
}

async function fused(reference: string): Promise<readonly [before: Model, after: Model]> {
  const model = generatedModel(reference).build();
  inferModel(model);
  // in f32, so that what is compared is the fusion and not the rounding of halves
  await runPasses(model, pipelineFrom(['clean-up', 'widen-halves']));
  const before = cloneModel(model);
  await runPasses(model, pipelineFrom(['clean-up', 'fuse']));
  verifyModel(model);
  return [before, model];
}

for (const { name: spelling } of formSpellings)
  for (const name of variants)
    test(`micro:${name}@${spelling} is fused and computes the same`, async () => {
      const [before, after] = await fused(`micro:${name}@${spelling}`);
      const { blocks } = findBlocks(after);
      const { layers, heads, kvHeads, headSize } = microDecoders[name];
      assert.equal(blocks.length, layers);
      for (const block of blocks) {
        assert.ok(block.nodes <= 8, `${block.nodes} nodes in a block`);
        const [attention] = block.layers;
        assert.ok(attention?.kind === 'attention');
        assert.deepEqual(
          [attention.heads, attention.kvHeads, attention.headSize, attention.cache?.inputs.length],
          [heads, kvHeads, headSize, 2],
        );
      }
      const { decoder } = analyzeDecoder(after);
      assert.ok(decoder !== undefined, 'it is driven as a decoder still');
      assert.deepEqual(
        [decoder.mask, decoder.positions, decoder.flags],
        [undefined, undefined, undefined],
      );
      assert.ok(decoder.state.every(({ axis, dtype }) => axis === 2 && dtype === 'f32'));
      const inputs = callInputs(before);
      const wanted = evaluate(before, inputsFor(before, inputs)).get('logits');
      const got = evaluate(after, inputsFor(after, inputs)).get('logits');
      assert.ok(wanted !== undefined && got !== undefined);
      // sums in another order: the issue allows 1e-4, seen is 2e-7
      expectSame(got, wanted, { tolerance: 1e-5, what: 'logits' });
    });

const ids = Array.from({ length: 19 }, (_, i) => (i * 37 + 11) % 128);

for (const { name: spelling } of formSpellings)
  for (const name of ['gqa', 'sinks', 'linear-bias'] as const)
    test(`micro:${name}@${spelling} is driven in parts on both engines`, async () => {
      const { config, build } = generatedModel(`micro:${name}`);
      const plain = await openDecoder(encodeModel(build()), config);
      const want = await plain.logits(ids);
      await plain.close();
      const [, after] = await fused(`micro:${name}@${spelling}`);
      const { decoder } = analyzeDecoder(after);
      assert.ok(decoder !== undefined);
      // halves keep 11 bits of each weight
      const tolerance = spelling === 'half' ? 5e-3 : 1e-4;
      const lowered = cloneModel(after);
      lowerForOrt(lowered, ortWasm);
      const ort = await openDecoder(encodeModel(lowered), config);
      const first = await ort.logits(ids.slice(0, 12));
      const second = await ort.logits(ids.slice(12), { continued: true });
      await ort.close();
      agrees([...first, ...second], want, tolerance, 'onnxruntime');
      await runPasses(after, pipelineFrom([['fold-constants', { widen: true }], 'fuse']));
      const bundle = await planBundle(after, { ...decoder, contextLength: 64 }, { chunk: 8 });
      const session = await bundle.open();
      const got = (await session.logits(ids)).data as Float32Array;
      await session.dispose();
      agrees(got, want, tolerance, 'the wasm engine');
    });

function agrees(
  got: ArrayLike<number>,
  want: Float32Array,
  tolerance: number,
  where: string,
): void {
  assert.equal(got.length, want.length);
  const range = Math.max(...want) - Math.min(...want);
  const worst = want.reduce((most, x, i) => Math.max(most, Math.abs(x - (got[i] ?? NaN))), 0);
  assert.ok(worst / range <= tolerance, `${where}: ${worst / range}`);
}
