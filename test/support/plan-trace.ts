/**
 * A decoder's plan run step by step on the kernels, with what its integer layers read: the f32 rows that
 * every QUANTIZE step turns into codes.
 */
import type { EncodedPlan } from '../../compiler/lower/encode-plan.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import type { Plan } from '../../runtime/plan.ts';
import { decodePlan } from '../../runtime/plan.ts';
import { Executor } from '../../runtime/wasm/executor.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { KernelExports, KernelVariant } from '../../runtime/wasm/module.ts';
import { compileKernels, instantiateKernels } from '../../runtime/wasm/module.ts';
import { WasmSequence } from '../../runtime/wasm/sequence.ts';

/** What one QUANTIZE step read, all its calls one after the other. */
export interface QuantizedRows {
  /** Name of the node it was emitted for. */
  readonly node: string;
  /** Values of a row. */
  readonly columns: number;
  /** Values that share a scale. */
  readonly block: number;
  /** // [rows, columns] */
  readonly values: number[];
}

/** Logits of every token, and what the integer layers read on the way. */
export interface PlanTrace {
  readonly logits: Float32Array;
  readonly quantized: readonly QuantizedRows[];
}

const PAGE_BYTES = 65536;

/** A plan with its weights in memory, ready to run. */
export interface LoadedPlan {
  readonly plan: Plan;
  readonly memory: WebAssembly.Memory;
  readonly kernels: KernelExports;
}

/** Puts a plan and its weights into a memory of its own. */
export async function loadPlan(encoded: EncodedPlan, variant: KernelVariant): Promise<LoadedPlan> {
  const plan = decodePlan(encoded.bytes, 'plan.bin');
  const { layout } = plan;
  const pages = Math.ceil(layout.memoryBytes / PAGE_BYTES);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
  const kernels = await instantiateKernels(await compileKernels(variant), memory);
  const bytes = new Uint8Array(memory.buffer);
  bytes.set(plan.words, layout.image);
  for (const { weight, offset } of encoded.weights.placed)
    bytes.set(weight.bytes(), layout.weights.address + offset);
  return { plan, memory, kernels };
}

/** Feeds ids to a fresh cache, one step at a time. */
export async function tracePlan(
  encoded: EncodedPlan,
  decoder: DecoderSpec,
  ids: readonly number[],
  variant: KernelVariant = 'simd',
): Promise<PlanTrace> {
  const { plan, memory, kernels } = await loadPlan(encoded, variant);
  const { layout } = plan;

  const rows = new Map<number, QuantizedRows>();
  const stepping: KernelExports = {
    ...kernels,
    run(at, from, to) {
      const first = at === layout.body.address ? 0 : layout.body.steps;
      for (let step = from; step < to; step++) {
        observe(at, step, layout.steps[first + step]?.node ?? '');
        kernels.run(at, step, step + 1, 0, 1);
      }
      return to;
    },
  };
  function observe(at: number, step: number, node: string): void {
    const view = new Int32Array(memory.buffer);
    const word = (address: number, index: number): number => view[address / 4 + index] ?? 0;
    const address = word(word(at, abi.PLAN_TABLE), step);
    if (word(address, 0) !== abi.QUANTIZE) return;
    const columns = word(address, abi.QUANTIZE_K);
    const block = word(address, abi.QUANTIZE_BLOCK);
    const seen = rows.get(address) ?? { node, columns, block, values: [] };
    rows.set(address, seen);
    for (let row = 0; row < word(address, abi.QUANTIZE_ROWS); row++) {
      const x = word(address, abi.QUANTIZE_X) + row * word(address, abi.QUANTIZE_XROW);
      seen.values.push(...new Float32Array(memory.buffer, x, columns));
    }
  }

  const executor = new Executor(plan, memory, stepping, undefined);
  const cache = { holder: undefined };
  const sequence = new WasmSequence({ executor, layout, decoder, cache });
  const logits = await sequence.feed(ids, true);
  return { logits, quantized: [...rows.values()] };
}
