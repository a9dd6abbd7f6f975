/**
 * The plan runs here: one call per token, no crossing to JavaScript per step.
 */
import {
  ABI_VERSION,
  PATCH_WORDS,
  PLAN_PATCHES,
  PLAN_PATCHTABLE,
  PLAN_SCRATCH,
  PLAN_TABLE,
  SCRATCH_BYTES,
} from './abi.ts';
import { address, word } from './core.ts';
import { linear } from './linear.ts';
import { quantize } from './quantize.ts';

/** Version of the ABI that this binary speaks. */
export function abiVersion(): i32 {
  return ABI_VERSION;
}

/** Writes the words that depend on the sizes of this call: c + a*S + b*P + d*S*P. */
export function patch(plan: usize, S: i32, P: i32): void {
  let entry = address(plan, PLAN_PATCHTABLE);
  for (let i = word(plan, PLAN_PATCHES); i > 0; i--) {
    const value = word(entry, 1) + word(entry, 2) * S + word(entry, 3) * P + word(entry, 4) * S * P;
    store<i32>(address(entry, 0), value);
    entry += PATCH_WORDS << 2;
  }
}

/** Runs steps from..to-1 and returns `to`. */
export function run(plan: usize, from: i32, to: i32, thread: i32, threads: i32): i32 {
  const scratch = address(plan, PLAN_SCRATCH) + thread * SCRATCH_BYTES;
  const table = address(plan, PLAN_TABLE);
  for (let i = from; i < to; i++) {
    const step = address(table, i);
    const kernel = unchecked(kernels[word(step, 0)]);
    kernel(step, scratch, thread, threads);
  }
  return to;
}

type Kernel = (step: usize, scratch: usize, thread: i32, threads: i32) => void;

/** By kernel id. */
const kernels: StaticArray<Kernel> = [missing, quantize, linear];

/** A plan for another version of the ABI; the executor checks before it gets here. */
function missing(_step: usize, _scratch: usize, _thread: i32, _threads: i32): void {
  unreachable();
}
