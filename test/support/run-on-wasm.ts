/** A model lowered for the WASM engine and run there, with neither a bundle nor files. */
import type { Model } from '../../compiler/ir/graph.ts';
import { lowerForWasm } from '../../compiler/lower/wasm.ts';
import type { PlanTensor } from '../../runtime/plan.ts';
import { decodePlan, sizeOf } from '../../runtime/plan.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { Executor } from '../../runtime/wasm/executor.ts';
import type { KernelVariant } from '../../runtime/wasm/module.ts';
import { compileKernels, instantiateKernels } from '../../runtime/wasm/module.ts';
import { readTensor, writeTensor } from '../../runtime/wasm/tensors.ts';

const PAGE_BYTES = 65536;

/** How a model is run. */
export interface RunOptions {
  readonly variant?: KernelVariant;
  /** Value of the size that is open. Default 1. */
  readonly sequence?: number;
  /** Threads whose shares are run, one share after the other, every step. Default 1. */
  readonly threads?: number;
}

/**
 * Runs a model.
 *
 * @param feeds - inputs by name
 * @returns outputs by name
 * @throws FettleError OP_UNSUPPORTED when there is no kernel
 */
export async function runOnWasm(
  model: Model,
  feeds: ReadonlyMap<string, Tensor>,
  { variant = 'simd', sequence = 1, threads = 1 }: RunOptions = {},
): Promise<Map<string, Tensor>> {
  const plan = lowerForWasm(model, { decoder: undefined, threads, sequence });
  const { layout, words } = decodePlan(plan.bytes, 'plan.bin');
  const pages = Math.ceil(layout.memoryBytes / PAGE_BYTES);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
  const bytes = new Uint8Array(memory.buffer);
  // what nobody writes must not matter
  new Float32Array(memory.buffer).fill(Number.NaN);
  const kernels = await instantiateKernels(await compileKernels(variant), memory);
  bytes.set(words, layout.image);
  for (const { weight, offset } of plan.weights.placed)
    bytes.set(weight.bytes(), layout.weights.address + offset);
  const executor = new Executor(
    { layout, words },
    memory,
    {
      ...kernels,
      run(at, from, to) {
        for (let step = from; step < to; step++)
          for (let thread = 0; thread < threads; thread++)
            kernels.run(at, step, step + 1, thread, threads);
        return to;
      },
    },
    undefined,
  );
  const view = ({ type, address, elements }: PlanTensor): Float32Array | Int32Array => {
    const count = sizeOf(elements, sequence, 0);
    return type === 'f32' ? executor.floats(address, count) : executor.integers(address, count);
  };
  executor.init();
  for (const input of layout.inputs) {
    const feed = feeds.get(input.name);
    if (feed === undefined) throw new Error(`no input "${input.name}"`);
    if (input.address !== 0) writeTensor(feed, view(input));
  }
  executor.body(sequence, 0);
  return new Map(
    layout.outputs.map((output) => {
      const shape = output.shape.map((size) => sizeOf(size, sequence, 0));
      return [output.name, readTensor(output.dtype, shape, view(output))];
    }),
  );
}
