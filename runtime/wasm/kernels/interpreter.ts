/**
 * Runs plans: one call per token, no crossing to JavaScript per step.
 *
 * Threads: every thread runs every step on its share, and a barrier follows each step. Steps of a single
 * row that take a microsecond are the first thread's alone, and neighbours among them share a barrier. The
 * main thread calls `launch`, the others sit in `serve`. Waiting spins for a while (steps take
 * microseconds); then threads sleep in `memory.atomic.wait32`, which a browser's main thread must not: there
 * `launch` only spins.
 */
import {
  ABI_VERSION,
  APPEND,
  APPEND_BATCH,
  APPEND_TOKENS,
  ATTENTION,
  ATTENTION_BATCH,
  ATTENTION_QUERIES,
  DENSE,
  EMBED,
  EMBED_ROWS,
  LINEAR,
  NORM,
  NORM_ROWS,
  PATCH_WORDS,
  PLAN_CONTROL,
  PLAN_PATCHES,
  PLAN_PATCHTABLE,
  PLAN_SCRATCH,
  PLAN_TABLE,
  QUANTIZE,
  QUANTIZE_K,
  QUANTIZE_ROWS,
  ROTARY,
  ROTARY_ROWS,
  SCRATCH_BYTES,
} from './abi.ts';
import { attention } from './attention.ts';
import { conv } from './conv.ts';
import { address, word } from './core.ts';
import { dense } from './dense.ts';
import { embed } from './embed.ts';
import { expression } from './expression.ts';
import { matmul } from './gemm.ts';
import { elements, points } from './indexing.ts';
import { linear } from './linear.ts';
import { convert, fill, gather, move } from './move.ts';
import { norm } from './norm.ts';
import { pool } from './pool.ts';
import { quantize } from './quantize.ts';
import { recurrent } from './recurrent.ts';
import { argmax, reduce, softmax, topk } from './reduce.ts';
import { columns, cumulate, resample } from './resample.ts';
import { append, rotary } from './rotary.ts';
import { unpack } from './unpack.ts';

type Kernel = (step: usize, scratch: usize, thread: i32, threads: i32) => void;

/** By kernel id (abi.ts). */
const kernels: StaticArray<Kernel> = [
  missing,
  quantize,
  linear,
  dense,
  embed,
  norm,
  rotary,
  append,
  attention,
  expression,
  reduce,
  softmax,
  move,
  fill,
  gather,
  argmax,
  topk,
  convert,
  matmul,
  conv,
  pool,
  unpack,
  recurrent,
  columns,
  resample,
  cumulate,
  elements,
  points,
];

/** Id 0: no kernel has it. */
function missing(_step: usize, _scratch: usize, _thread: i32, _threads: i32): void {
  unreachable();
}

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

/** Runs steps from..to-1 as thread `thread` of `threads`, all of which make this call; returns `to`. */
export function run(plan: usize, from: i32, to: i32, thread: i32, threads: i32): i32 {
  const scratch = address(plan, PLAN_SCRATCH) + thread * SCRATCH_BYTES;
  const table = address(plan, PLAN_TABLE);
  for (let i = from; i < to; i++) {
    const step = address(table, i);
    const kernel = unchecked(kernels[word(step, 0)]);
    if (ASC_FEATURE_THREADS && threads > 1) {
      const alone = rowsOf(step) == 1;
      const parts = partsOf(step, i > 0 ? word(address(table, i - 1), 0) : 0, threads);
      if (!alone) for (let part = thread; part < parts; part += threads) kernel(step, scratch, part, parts);
      else if (thread == 0) kernel(step, scratch, 0, 1);
      if (alone && i + 1 < to && rowsOf(address(table, i + 1)) == 1) continue;
      barrier(address(plan, PLAN_CONTROL), thread, threads);
    } else {
      kernel(step, scratch, thread, threads);
    }
  }
  return to;
}

/**
 * In how many parts a step is split; threads take them in turn. A line that another core has written
 * costs ten times what quantizing computes from it, so QUANTIZE takes what its thread has written before:
 * the columns of a product, the queries of ATTENTION. Those go in turn, four at a time, because causal ones see
 * more and more keys.
 */
function partsOf(step: usize, before: i32, threads: i32): i32 {
  const kernel = word(step, 0);
  if (kernel == ATTENTION) {
    const queries = word(step, ATTENTION_BATCH) * word(step, ATTENTION_QUERIES);
    return max(threads, (queries + 3) >> 2);
  }
  if (kernel == QUANTIZE) {
    const rows = word(step, QUANTIZE_ROWS);
    if (before == LINEAR || before == DENSE) return rows * threads;
    if (before == ATTENTION) return max(threads, (rows + 3) >> 2);
  }
  return threads;
}

/** Rows of a step of which a single one takes less than meeting the other threads does; 0 for other steps. */
function rowsOf(step: usize): i32 {
  switch (word(step, 0)) {
    case QUANTIZE:
      // a long row is for the threads that have written it
      return word(step, QUANTIZE_K) < 1024 ? word(step, QUANTIZE_ROWS) : 0;
    case EMBED:
      return word(step, EMBED_ROWS);
    case NORM:
      return word(step, NORM_ROWS);
    case ROTARY:
      return word(step, ROTARY_ROWS);
    case APPEND:
      return word(step, APPEND_BATCH) * word(step, APPEND_TOKENS);
    default:
      return 0;
  }
}

// --- control block: words on cache lines of their own ---
/** Counts launches; workers wait for it to change. */
const EPOCH: usize = 0;
const FROM: usize = 4;
const TO: usize = 8;
const STOP: usize = 12;
/** The plan that is launched: a program may have several that share the control block. */
const PLAN: usize = 16;
/** Not 0 when the thread that launches may sleep. */
const MAYSLEEP: usize = 20;
/** Threads that sleep or are about to. */
const SLEEPERS: usize = 24;
/** Threads that reached the barrier. */
const ARRIVED: usize = 64;
/** Counts barriers passed. */
const PASSED: usize = 128;

/** Looks before sleeping: some tens of microseconds. */
const SPINS = 20000;

/** Waits until the word at `at` is no longer `value`; sleeps after a while if it may. */
function waitWhile(control: usize, at: usize, value: i32, sleep: bool): void {
  let spins = 0;
  while (atomic.load<i32>(at) == value) {
    if (!sleep || ++spins <= SPINS) continue;
    // counted before the word is looked at again, so that whoever changes it either sees the count or is seen
    atomic.add<i32>(control + SLEEPERS, 1);
    atomic.wait<i32>(at, value, -1);
    atomic.sub<i32>(control + SLEEPERS, 1);
  }
}

/** Changes a word that threads wait for. */
function signal(control: usize, at: usize): void {
  atomic.add<i32>(at, 1);
  if (atomic.load<i32>(control + SLEEPERS) != 0) atomic.notify(at, -1);
}

function barrier(control: usize, thread: i32, threads: i32): void {
  const passed = atomic.load<i32>(control + PASSED);
  if (atomic.add<i32>(control + ARRIVED, 1) == threads - 1) {
    atomic.store<i32>(control + ARRIVED, 0);
    signal(control, control + PASSED);
    return;
  }
  const sleep = thread != 0 || atomic.load<i32>(control + MAYSLEEP) != 0;
  waitWhile(control, control + PASSED, passed, sleep);
}

/** Lets the thread that launches sleep while it waits for others. */
export function allowSleep(plan: usize): void {
  atomic.store<i32>(address(plan, PLAN_CONTROL) + MAYSLEEP, 1);
}

/** Runs steps from..to-1 together with the `threads - 1` threads that are in `serve`; returns `to`. */
export function launch(plan: usize, from: i32, to: i32, threads: i32): i32 {
  const control = address(plan, PLAN_CONTROL);
  if (from >= to) return to;
  if (threads > 1) {
    atomic.store<u32>(control + PLAN, <u32>plan);
    atomic.store<i32>(control + FROM, from);
    atomic.store<i32>(control + TO, to);
    signal(control, control + EPOCH);
  }
  return run(plan, from, to, 0, threads);
}

/**
 * Works as thread `thread` of `threads` until `stop`, on whatever plan is launched; `plan` tells where
 * the control block is. `epoch` is the launch count this thread has seen:
 * 0 when it starts before the first launch. Blocks, so only for a worker.
 */
export function serve(plan: usize, thread: i32, threads: i32, epoch: i32): void {
  const control = address(plan, PLAN_CONTROL);
  while (true) {
    waitWhile(control, control + EPOCH, epoch, true);
    epoch++;
    if (atomic.load<i32>(control + STOP) != 0) return;
    const from = atomic.load<i32>(control + FROM);
    const to = atomic.load<i32>(control + TO);
    run(<usize>atomic.load<u32>(control + PLAN), from, to, thread, threads);
  }
}

/** Makes every `serve` return. */
export function stop(plan: usize): void {
  const control = address(plan, PLAN_CONTROL);
  atomic.store<i32>(control + STOP, 1);
  signal(control, control + EPOCH);
}
