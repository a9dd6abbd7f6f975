/** Generated decoders: on onnxruntime-web, against themselves with and without a cache. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { rotaryFrequencies } from '../../models/decoder-config.ts';
import { hubConfig } from '../../models/hub-config.ts';
import { generatedDecoders, generatedModel } from '../../models/index.ts';
import { llama32Of1B, shapeDecoders } from '../../models/shapes.ts';
import { spellings } from '../../models/spelling/index.ts';
import { FettleError } from '../../runtime/errors.ts';
import { openDecoder } from '../support/ort-decoder.ts';

// the largest logit is near 10; f32 rounding in another order of summation leaves about 1e-5
const TOLERANCE = 1e-4;
const ids = Array.from({ length: 12 }, (_, i) => (i * 37 + 5) % 128);
const micro = [...generatedDecoders.keys()].filter((name) => name.startsWith('micro:'));

describe('micro decoders', () => {
  for (const reference of micro)
    it(`${reference} gives the same logits with and without a cache, in every spelling`, async () => {
      const expected: Float32Array[] = [];
      for (const spelling of spellings) {
        const { build, config } = generatedModel(`${reference}@${spelling.name}`);
        const decoder = await openDecoder(encodeModel(build()), config);
        const whole = await decoder.logits(ids);
        const first = await decoder.logits(ids.slice(0, 7));
        const second = await decoder.logits(ids.slice(7), { continued: true });
        await decoder.close();
        assert.ok(spread(whole) > 3, 'logits that are all alike would agree with anything');
        assert.ok(distance([...first, ...second], whole) < TOLERANCE, spelling.name);
        expected.push(whole);
      }
      const [one, ...others] = expected;
      for (const other of others) assert.ok(distance(other, one ?? []) < TOLERANCE);
    });

  it('see no padding: tokens behind masked ones give the logits they give alone', async () => {
    const { build, config } = generatedModel('micro:mask-positions');
    const decoder = await openDecoder(encodeModel(build()), config);
    const alone = await decoder.logits(ids);
    const padded = await decoder.logits([9, 9, 9, ...ids], { padding: 3 });
    await decoder.close();
    assert.ok(distance(padded.subarray(3 * config.vocabulary), alone) < TOLERANCE);
  });

  it('depend on the order of the tokens', async () => {
    const { build, config } = generatedModel('micro:gqa');
    const decoder = await openDecoder(encodeModel(build()), config);
    const logits = await decoder.logits([5, 6, 7]);
    const swapped = await decoder.logits([6, 5, 7]);
    await decoder.close();
    const last = 2 * config.vocabulary;
    assert.ok(distance(logits.subarray(last), swapped.subarray(last)) > 0.1);
  });
});

describe('generated models', () => {
  for (const reference of generatedDecoders.keys())
    it(`${reference} is valid, with every type known`, () => {
      for (const spelling of spellings) {
        const model = generatedModel(`${reference}@${spelling.name}`).build();
        verifyModel(model);
        for (const node of model.graph.nodes())
          for (const output of node.outputs) {
            assert.ok(output === undefined || output.dtype !== undefined, node.describe());
            assert.ok(output === undefined || output.shape !== undefined, node.describe());
          }
      }
    });

  it('are the same every time', () => {
    const [one, two] = [1, 2].map(() => encodeModel(generatedModel('micro:qkv-bias').build()));
    assert.deepEqual(one, two);
  });

  it('have the parameters of the real models', () => {
    // counted in the safetensors files of the public repositories
    const published = {
      'smollm2-135m': 134_515_008,
      'qwen2.5-0.5b': 494_032_768,
      'llama-3.2-1b': 1_235_814_400,
    };
    for (const [name, wanted] of Object.entries(published)) {
      const { graph } = generatedModel(`shape:${name}`).build();
      const trained = [...graph.constants].filter(
        ({ name: key }) => key.endsWith('eight') || key.endsWith('ias'),
      );
      const count = trained.reduce((sum, { weight }) => sum + (weight?.byteLength ?? 0) / 4, 0);
      assert.equal(count, wanted, name);
    }
  });

  it('generate 135 million weights in seconds, a part at a time', () => {
    const model = generatedModel('shape:smollm2-135m').build();
    const start = performance.now();
    let bytes = 0;
    for (const { weight } of model.graph.constants)
      if (weight !== undefined && bytes < 100e6) bytes += weight.bytes().length;
    const perWeight = ((performance.now() - start) / bytes) * 4;
    // 4 to 11 ns were measured; ten times that means the loop is no longer compiled well
    assert.ok(perWeight < 100e-6, `${perWeight * 1e6} ns a weight`);
  });

  it('scale the low frequencies of Llama 3.2 as its reference implementation does', () => {
    const scaled = rotaryFrequencies(llama32Of1B);
    const { scaling: _, ...rotary } = llama32Of1B.rotary;
    const plain = rotaryFrequencies({ ...llama32Of1B, rotary });
    assert.equal(scaled.length, 32);
    assert.equal(scaled[0], 1);
    // wavelength 2 pi / f: below 2048 tokens kept, above 8192 divided by 32, between blended
    const ratio = Array.from(scaled, (frequency, i) => frequency / (plain[i] ?? NaN));
    assert.deepEqual(
      [ratio[14], ratio[18], ratio[31]].map((x) => x?.toFixed(4)),
      ['1.0000', '0.0313', '0.0313'],
    );
    assert.ok((ratio[16] ?? 0) > 0.04 && (ratio[16] ?? 1) < 0.99, `${ratio[16]}`);
  });

  it('come with the config.json of their family', () => {
    const config = hubConfig(llama32Of1B);
    assert.equal(config['model_type'], 'llama');
    assert.equal(config['head_dim'], 64);
    assert.deepEqual(config['rope_scaling'], {
      rope_type: 'llama3',
      factor: 32,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    });
    assert.equal(Object.keys(shapeDecoders).length, 3);
  });

  for (const [reference, fix] of [
    ['shape:smollm-135m', 'Did you mean "shape:smollm2-135m"?'],
    ['micro:gka', 'Did you mean "micro:gqa"?'],
    ['micro:gqa@torhc', 'Did you mean "torch"?'],
  ] as const)
    it(`say what ${reference} may have meant`, () => {
      assert.throws(
        () => generatedModel(reference),
        (error) => error instanceof FettleError && error.code === 'USAGE' && error.fix === fix,
      );
    });
});

function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  return Array.from(a, (x, i) => Math.abs(x - (b[i] ?? NaN))).reduce((x, y) => Math.max(x, y), 0);
}

function spread(values: Float32Array): number {
  return values.reduce((a, b) => Math.max(a, b)) - values.reduce((a, b) => Math.min(a, b));
}
