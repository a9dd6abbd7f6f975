/**
 * The reference for integer kernels: the evaluator, in f64 sums, with the inputs of linear layers rounded
 * to int8 as compiler/emit/rounded-inputs.ts states.
 *
 * Rounding is a step function, so the reference looks at the rows that the engine rounded: where its own
 * value lies within TIE of the boundary between two codes, the engine's code is taken; anywhere else the
 * reference rounds its own value, and an engine that rounded otherwise is told by its results.
 */
import assert from 'node:assert/strict';
import type { InputRounding } from '../../compiler/emit/rounded-inputs.ts';
import { roundingOf, roundRows } from '../../compiler/emit/rounded-inputs.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { lowerForWasm } from '../../compiler/lower/wasm.ts';
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
  const rounded = new Map<string, Tensor>();
  const counts = { rounded: 0, ties: 0 };
  const outputs = evaluate(model, feeds, {
    read: (node, inputs) => {
      const rounding = roundingOf(node);
      if (rounding === undefined) return inputs;
      const key = `${rounding.block} ${node.input(0).name}`;
      let x = rounded.get(key);
      if (x === undefined) {
        const [own] = inputs;
        const seen = engine.find(
          (rows) => rows.node === (node.name || node.op) && rows.block === rounding.block,
        );
        assert.ok(own !== undefined && seen !== undefined, `${node.describe()} rounds nothing`);
        x = roundAlike(own, rounding, seen, counts);
        rounded.set(key, x);
      }
      return [x, ...inputs.slice(1)];
    },
  });
  return { outputs, ...counts };
}

function roundAlike(
  own: Tensor,
  rounding: InputRounding,
  { values }: QuantizedRows,
  counts: { rounded: number; ties: number },
): Tensor {
  assert.equal(own.data.length, values.length);
  const theirs = new Float32Array(values.length);
  const engine: Tensor = { ...own, data: Float32Array.from(values) };
  roundRows(engine, rounding, (code, _exact, at) => (theirs[at] = code));
  return roundRows(own, rounding, (code, exact, at) => {
    const other = theirs[at] ?? 0;
    const isTie = other !== code && Math.abs(exact - (code + other) / 2) <= TIE;
    if (isTie) counts.ties++;
    counts.rounded++;
    return isTie ? other : code;
  });
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
