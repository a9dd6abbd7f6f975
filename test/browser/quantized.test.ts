/**
 * Quantized weights as `ort-webgpu` spells them, on WebGPU in headless Chromium (SwiftShader), against
 * the reference evaluator: products and tables in packed codes, and what is folded to floats instead.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import type * as Ort from 'onnxruntime-web';
import type { Browser, Page } from 'playwright-core';
import { ints } from '../../compiler/ir/attribute.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { lowerForOrt } from '../../compiler/lower/ort.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { quantizeWeights } from '../../compiler/passes/quantize-weights.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { ortWebgpu } from '../../targets/index.ts';
import type { PageServer } from '../support/browser.ts';
import { BrowserMissing, launchChromium, moduleRoute, startServer } from '../support/browser.ts';
import { ModelBuilder } from '../support/model-builder.ts';
import { normalValues } from '../support/random-values.ts';

const ids = [0n, 47n, 5n];

/** ids -> rows of a table -> a product with the table itself, or with a matrix of its own. */
function model(outputs: number, inputs: number, isTied: boolean): Model {
  const b = new ModelBuilder(17);
  const t = b.floats('t', [48, inputs], normalValues(48 * inputs, 1));
  const rows = b.op('Gather', [t, b.input('ids', [1, 's'], 'i64')]);
  const matrix = isTied
    ? b.op('Transpose', [t], { perm: ints([1, 0]) })
    : b.floats('w', [inputs, outputs], normalValues(inputs * outputs, 2));
  b.output('y', b.op('MatMul', [rows, matrix]));
  return b.model;
}

/** Runs a model in the page. */
async function runInPage(page: Page, bytes: Uint8Array): Promise<number[]> {
  const base64 = Buffer.from(bytes).toString('base64');
  const options = ortWebgpu.sessionOptions;
  return page.evaluate(
    async ({ base64, ids, options }) => {
      const path = '/modules/onnxruntime-web/dist/';
      const ort = (await import(`${path}ort.webgpu.bundle.min.mjs`)) as typeof Ort;
      ort.env.wasm.wasmPaths = path;
      ort.env.wasm.numThreads = 1;
      const graph = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
      const session = await ort.InferenceSession.create(graph, {
        executionProviders: ['webgpu'],
        logSeverityLevel: 3,
        ...options,
      });
      const tensor = new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]);
      const { y } = await session.run({ ids: tensor });
      const values = Array.from(y?.data as Float32Array);
      await session.release();
      return values;
    },
    { base64, ids: ids.map(Number), options },
  );
}

describe('quantized weights on WebGPU', () => {
  let server: PageServer | undefined;
  let browser: Browser | undefined;
  let page: Page | undefined;
  let missing: string | undefined;

  before(async () => {
    server = await startServer(
      (path) => (path === '/' ? '<!doctype html><title>quantized</title>' : undefined),
      moduleRoute('onnxruntime-web'),
    );
    try {
      browser = await launchChromium();
      page = await browser.newPage();
      await page.goto(`${server.origin}/`);
    } catch (error) {
      if (!(error instanceof BrowserMissing)) throw error;
      missing = error.message;
    }
  });

  after(async () => {
    await browser?.close();
    await server?.close();
  });

  for (const [what, outputs, inputs, isTied, format, op] of [
    ['a tied table', 48, 128, true, 'w4g32', 'MatMulNBits'],
    ['a product', 32, 256, false, 'w4g32', 'MatMulNBits'],
    ['a product', 32, 256, false, 'w8g32', 'MatMulNBits'],
    ['a product', 32, 256, false, 'w2g32', 'MatMulNBits'],
    ['a product that does not fit', 32, 192, false, 'w4g32', 'DequantizeLinear'],
    ['a tied table with zero points', 48, 128, true, 'w4g32a', 'DequantizeLinear'],
  ] as const)
    test(`${what} in ${format} is computed as the evaluator computes it`, async (context) => {
      if (page === undefined) return context.skip(missing);
      const quantized = model(outputs, inputs, isTied);
      await runPasses(quantized, [quantizeWeights({ format, minElements: 1 })]);
      const feed = { dtype: 'i64', shape: [1, 3], data: BigInt64Array.from(ids) } as const;
      const wanted = evaluate(quantized, { ids: feed }).get('y')?.data as Float32Array;
      lowerForOrt(quantized, ortWebgpu);
      const ops = [...quantized.graph.nodes()].map((node) => node.op);
      assert.ok(ops.includes(op), `${ops}`);
      // it would be computed on the CPU provider, with a copy there and back
      assert.ok(!ops.includes('FusedMatMul'));
      const got = await runInPage(page, encodeModel(quantized));
      assert.equal(got.length, wanted.length);
      const range = wanted.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      // f32 sums of at most 256 products in another order
      for (const [i, value] of wanted.entries())
        assert.ok(Math.abs(value - (got[i] ?? NaN)) <= 1e-5 * range, `${i}: ${got[i]}, ${value}`);
    });
});
