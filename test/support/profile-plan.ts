/** Times of the kernels of a plan that is no decoder's. */
import { decodePlan } from '../../runtime/plan.ts';
import type { PlanTensor } from '../../runtime/plan.ts';
import { sizeOf } from '../../runtime/plan.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { Executor } from '../../runtime/wasm/executor.ts';
import { compileKernels, instantiateKernels } from '../../runtime/wasm/module.ts';
import { chooseVariant, probeKernels } from '../../runtime/wasm/probe.ts';
import { writeTensor } from '../../runtime/wasm/tensors.ts';
import type { PlanBundle } from './plan-session.ts';

const RUNS = 5;
const PAGE_BYTES = 65536;

/** Milliseconds of a run by kernel and form, largest first, with their share. */
export async function tracedRun(
  { plan }: PlanBundle,
  feeds: Readonly<Record<string, Tensor>>,
): Promise<readonly (readonly [string, number, number])[]> {
  const { layout, words } = decodePlan(plan.bytes, 'plan.bin');
  const pages = Math.ceil(layout.memoryBytes / PAGE_BYTES);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
  const variant = chooseVariant(await probeKernels(), 1);
  const kernels = await instantiateKernels(await compileKernels(variant), memory);
  const bytes = new Uint8Array(memory.buffer);
  bytes.set(words, layout.image);
  for (const { weight, offset } of plan.weights.placed)
    bytes.set(weight.bytes(), layout.weights.address + offset);
  const executor = new Executor({ layout, words }, memory, kernels, undefined);
  executor.init();
  const view = ({ type, address, elements }: PlanTensor): Float32Array | Int32Array => {
    const count = sizeOf(elements, 1, 0);
    return type === 'f32' ? executor.floats(address, count) : executor.integers(address, count);
  };
  for (const input of layout.inputs) {
    const feed = feeds[input.name];
    if (feed !== undefined && input.address !== 0) writeTensor(feed, view(input));
  }
  executor.body(1, 0);
  executor.profile();
  for (let run = 0; run < RUNS; run++) executor.body(1, 0);
  const sums = new Map<string, number>();
  executor.profile().forEach(({ kernel, ms }, index) => {
    const key = `${kernel} ${layout.steps[index]?.why ?? ''}`;
    sums.set(key, (sums.get(key) ?? 0) + ms / RUNS);
  });
  const total = [...sums.values()].reduce((sum, ms) => sum + ms, 0);
  return [...sums]
    .sort(([, a], [, b]) => b - a)
    .slice(0, 8)
    .map(([key, ms]) => [key, ms, ms / total]);
}
