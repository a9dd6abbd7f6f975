/**
 * The reference for integer kernels. Each node is computed by the evaluator, in f64 sums; the inputs of
 * linear layers with codes are rounded to int8 with one scale per block, in the f32 arithmetic that
 * kernels/quantize.ts states:
 *
 *   peak = max|x|, code = round half to even(f32(x * f32(127 / peak))), value = code * f32(peak / 127)
 *
 * Rounding is a step function: a value half way between two codes goes up or down by the last bit of
 * the sums before it, and one code more or less moves all that follows by the noise of 8-bit activations. So
 * the reference looks at the rows that the engine rounded: where its own value lies within TIE of the
 * boundary between two codes, the engine's code is taken; anywhere else the reference rounds
 * its own value, and an engine that rounded otherwise is told by its results.
 */
import assert from 'node:assert/strict';
import { evaluateNode } from '../../compiler/ir/evaluate.ts';
import type { Model, Node, Value } from '../../compiler/ir/graph.ts';
import { lowerForWasm } from '../../compiler/lower/wasm.ts';
import { isDequantize, readDequantize } from '../../compiler/ops/quantized.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { tensor, zeros } from '../../runtime/tensor.ts';
import type { KernelVariant } from '../../runtime/wasm/module.ts';
import { rangeDistance } from './range-distance.ts';
import type { QuantizedRows } from './plan-trace.ts';
import { tracePlan } from './plan-trace.ts';

/** Codes around a boundary that count as a tie: what f32 sums in another order may differ by. */
const TIE = 2e-3;

/** Share of values that may be ties; of f32 noise alone it is some 1e-5. */
const MOST_TIES = 1e-4;

/** What the reference found. */
export interface RoundedReference {
  readonly outputs: ReadonlyMap<string, Tensor>;
  /** Values rounded. */
  readonly rounded: number;
  /** Values within TIE of a boundary where the engine's code was taken instead of the reference's. */
  readonly ties: number;
}

/** Evaluates a model of fused ops with rounded activations, ties broken as `engine` broke them. */
export function evaluateRounded(
  model: Model,
  feeds: ReadonlyMap<string, Tensor>,
  engine: readonly QuantizedRows[],
): RoundedReference {
  const values = new Map<Value, Tensor>();
  const rounded = new Map<string, Tensor>();
  const counts = { rounded: 0, ties: 0 };
  for (const input of model.graph.inputs) {
    const tensor = feeds.get(input.name);
    assert.ok(tensor !== undefined, input.name);
    values.set(input, tensor);
  }
  const tensorOf = (value: Value | undefined): Tensor | undefined =>
    value === undefined ? undefined : (values.get(value) ?? value.constant());
  for (const node of model.graph.nodes()) {
    const inputs = node.inputs.map(tensorOf);
    const block = blockOf(node);
    if (block !== undefined) {
      const key = `${block} ${node.input(0).name}`;
      let x = rounded.get(key);
      if (x === undefined) {
        const own = inputs[0];
        const seen = engine.find(
          (rows) => rows.node === (node.name || node.op) && rows.block === block,
        );
        assert.ok(own !== undefined && seen !== undefined, `${node.describe()} rounds nothing`);
        x = roundAlike(own, seen, counts);
        rounded.set(key, x);
      }
      inputs[0] = x;
    }
    const outputs = evaluateNode(node, model, inputs);
    node.outputs.forEach((output, index) => {
      const tensor = outputs[index];
      if (output !== undefined && tensor !== undefined) values.set(output, tensor);
    });
  }
  const outputs = new Map<string, Tensor>();
  for (const output of model.graph.outputs) {
    const tensor = values.get(output);
    if (tensor !== undefined) outputs.set(output.name, tensor);
  }
  return { outputs, ...counts };
}

/** Values that share a scale in the input of a node with integer weights. */
function blockOf(node: Node): number | undefined {
  const codes = node.inputs[1]?.producer;
  if (!['Linear', 'GatedLinear'].includes(node.op) || !isDequantize(codes)) return undefined;
  const { columns, group } = readDequantize(codes);
  return group >= columns || group % 32 === 0 ? 32 : 16;
}

function roundAlike(
  own: Tensor,
  { columns, block, values }: QuantizedRows,
  counts: { rounded: number; ties: number },
): Tensor {
  const x = own.data as Float32Array;
  assert.equal(x.length, values.length);
  const result = new Float32Array(x.length);
  const engine = Float32Array.from(values);
  for (let row = 0; row < x.length; row += columns)
    for (let start = row; start < row + columns; start += block) {
      const end = Math.min(start + block, row + columns);
      const mine = codesOf(x, start, end);
      const theirs = codesOf(engine, start, end);
      for (let i = start; i < end; i++) {
        const [exact, code] = [mine.exact[i - start] ?? 0, mine.codes[i - start] ?? 0];
        const other = theirs.codes[i - start] ?? 0;
        const isTie = other !== code && Math.abs(exact - (code + other) / 2) <= TIE;
        if (isTie) counts.ties++;
        counts.rounded++;
        result[i] = (isTie ? other : code) * mine.scale;
      }
    }
  return { dtype: 'f32', shape: own.shape, data: result };
}

function codesOf(
  x: Float32Array,
  start: number,
  end: number,
): { readonly scale: number; readonly exact: Float32Array; readonly codes: number[] } {
  let peak = 0;
  for (let i = start; i < end; i++) peak = Math.max(peak, Math.abs(x[i] ?? 0));
  const inverse = peak > 0 ? Math.fround(127 / peak) : 0;
  const exact = x.subarray(start, end).map((value) => value * inverse);
  return { scale: Math.fround(peak / 127), exact, codes: Array.from(exact, halfToEven) };
}

function halfToEven(x: number): number {
  const below = Math.floor(x);
  const rest = x - below;
  if (rest !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/**
 * Checks the logits of a decoder's plan against the reference, with every prompt token's logits.
 *
 * @param most - largest difference as a fraction of the range of the reference
 */
export async function checkRounded(
  model: Model,
  decoder: DecoderSpec,
  ids: readonly number[],
  most: number,
  variant: KernelVariant = 'simd',
): Promise<Float32Array> {
  const plan = lowerForWasm(model, { decoder, threads: 1 });
  const { logits, quantized } = await tracePlan(plan, decoder, ids, variant);
  const row = tensor('i64', [1, ids.length], BigInt64Array.from(ids, BigInt));
  const feeds = new Map<string, Tensor>([[decoder.ids, row]]);
  for (const { input, shape, axis } of decoder.state) {
    const sizes = shape.map((dim, at) => (at === axis ? 0 : typeof dim === 'number' ? dim : 1));
    feeds.set(input, zeros('f32', sizes));
  }
  const { outputs, rounded, ties } = evaluateRounded(model, feeds, quantized);
  const distance = rangeDistance(logits, outputs.get(decoder.logits)?.data as Float32Array);
  assert.ok(distance <= most, `${distance} of the range, ${ties} ties of ${rounded}`);
  assert.ok(ties <= 2 + MOST_TIES * rounded, `${ties} ties of ${rounded}`);
  return logits;
}
