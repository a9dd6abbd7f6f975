/**
 * Runs plans: one call per token, no crossing to JavaScript per step.
 *
 * Threads: every thread walks through all steps and takes parts of each (parts.ts, claims.ts); the next step begins
 * when all parts of this one are done. Steps of a single row that take a microsecond are the first thread's alone, and
 * neighbours among them count as one step. The main thread calls `launch`, the others sit in `serve`. Waiting
 * spins for a while (steps take microseconds); then threads sleep in `memory.atomic.wait`, which a browser's main
 * thread must not: there `launch` only spins.
 */
import {
  ABI_VERSION,
  PATCH_WORDS,
  PLAN_CONTROL,
  PLAN_PATCHES,
  PLAN_PATCHTABLE,
  PLAN_SCRATCH,
  PLAN_TABLE,
  SCRATCH_BYTES,
} from './abi.ts';
import { attention } from './attention.ts';
import { claim, closeQueues, finishParts, nextSerial, queuesOf, soonOver, waitForStep, waitWhile, wake } from './claims.ts';
import { conv } from './conv.ts';
import { address, shareStart, word } from './core.ts';
import { dense } from './dense.ts';
import { embed } from './embed.ts';
import { expression } from './expression.ts';
import { matmul } from './gemm.ts';
import { elements, points } from './indexing.ts';
import { linear } from './linear.ts';
import { convert, fill, gather, move } from './move.ts';
import { norm } from './norm.ts';
import { inTurn, partsOf, rowsOf } from './parts.ts';
import { pool } from './pool.ts';
import { quantize } from './quantize.ts';
import { recurrent } from './recurrent.ts';
import { argmax, reduce, softmax, topk } from './reduce.ts';
import { columns, cumulate, resample } from './resample.ts';
import { append, rotary } from './rotary.ts';
import { unpack } from './unpack.ts';

type Kernel = (step: usize, scratch: usize, part: i32, parts: i32) => void;

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
function missing(_step: usize, _scratch: usize, _part: i32, _parts: i32): void {
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

/** Runs steps from..to-1, of each part `part` of `parts`; returns `to`. */
export function run(plan: usize, from: i32, to: i32, part: i32, parts: i32): i32 {
  const scratch = address(plan, PLAN_SCRATCH) + part * SCRATCH_BYTES;
  runSteps(address(plan, PLAN_TABLE), from, to, scratch, part, parts);
  return to;
}

function runSteps(table: usize, from: i32, to: i32, scratch: usize, part: i32, parts: i32): void {
  for (let i = from; i < to; i++) {
    const step = address(table, i);
    unchecked(kernels[word(step, 0)])(step, scratch, part, parts);
  }
}

/** Takes part in steps from..to-1, whose serials begin at `serial`, until all are over. */
function share(plan: usize, from: i32, to: i32, thread: i32, threads: i32, serial: i32): void {
  const control = address(plan, PLAN_CONTROL);
  const scratch = address(plan, PLAN_SCRATCH) + thread * SCRATCH_BYTES;
  const table = address(plan, PLAN_TABLE);
  const sleep = thread != 0 || atomic.load<i32>(control + MAYSLEEP) != 0;
  for (let i = from; i < to; serial++) {
    const step = address(table, i);
    let next = i + 1;
    if (rowsOf(step) == 1) {
      while (next < to && rowsOf(address(table, next)) == 1) next++;
      // another thread does it only when the first has no core
      if ((thread == 0 || !soonOver(control, serial)) && claim(control, 0, serial, 1, 1) == 0) {
        runSteps(table, i, next, scratch, 0, 1);
        finishParts(control, serial, 1, 1);
      }
    } else {
      const before = i > 0 ? word(address(table, i - 1), 0) : 0;
      const parts = partsOf(step, before, threads);
      const done = takeParts(control, step, scratch, thread, threads, serial, parts, inTurn(step, before));
      if (done > 0) finishParts(control, serial, done, parts);
    }
    waitForStep(control, serial, sleep);
    i = next;
  }
}

/** Does parts of a step while there are any, first those of the thread's own queue; returns how many it did. */
function takeParts(
  control: usize,
  step: usize,
  scratch: usize,
  thread: i32,
  threads: i32,
  serial: i32,
  parts: i32,
  turns: bool,
): i32 {
  const kernel = unchecked(kernels[word(step, 0)]);
  const queues = queuesOf(threads);
  const most = max(1, parts / (queues << 4));
  let done = 0;
  for (let i = 0; i < queues; i++) {
    const queue = (thread + i) % queues;
    const start = turns ? queue : shareStart(parts, queue, queues);
    const stride = turns ? queues : 1;
    const size = turns ? (parts - queue + queues - 1) / queues : shareStart(parts, queue + 1, queues) - start;
    let taken: i32;
    while ((taken = claim(control, queue, serial, size, most)) >= 0) {
      const count = min(most, size - taken);
      for (let j = 0; j < count; j++) kernel(step, scratch, start + (taken + j) * stride, parts);
      done += count;
    }
  }
  return done;
}

// --- control block: what a launch says; the rest is in claims.ts ---
/** Changes twice a launch: odd while the words below are written. Workers wait for it. */
const EPOCH: usize = 0;
const FROM: usize = 4;
const TO: usize = 8;
const STOP: usize = 12;
/** The plan that is launched: a program may have several that share the control block. */
const PLAN: usize = 16;
/** Not 0 when the thread that launches may sleep. */
const MAYSLEEP: usize = 20;
/** The first step's serial. */
const SERIAL: usize = 28;

/** Lets the thread that launches sleep while it waits for others. */
export function allowSleep(plan: usize): void {
  atomic.store<i32>(address(plan, PLAN_CONTROL) + MAYSLEEP, 1);
}

/** Runs steps from..to-1 together with those of the `threads - 1` threads in `serve` that have a core; returns `to`. */
export function launch(plan: usize, from: i32, to: i32, threads: i32): i32 {
  if (from >= to) return to;
  if (threads == 1) return run(plan, from, to, 0, 1);
  const control = address(plan, PLAN_CONTROL);
  const serial = nextSerial(control);
  atomic.add<i32>(control + EPOCH, 1);
  atomic.store<i32>(control + SERIAL, serial);
  atomic.store<u32>(control + PLAN, <u32>plan);
  atomic.store<i32>(control + FROM, from);
  atomic.store<i32>(control + TO, to);
  atomic.add<i32>(control + EPOCH, 1);
  wake(control, control + EPOCH);
  share(plan, from, to, 0, threads, serial);
  closeQueues(control, serial + to - from, threads);
  return to;
}

/**
 * Works as thread `thread` of `threads` until `stop`, on whatever plan is launched; `plan` tells where
 * the control block is. `epoch` is what this thread has seen: 0 when it starts before the first launch.
 * Blocks, so only for a worker.
 */
export function serve(plan: usize, thread: i32, threads: i32, epoch: i32): void {
  const control = address(plan, PLAN_CONTROL);
  while (true) {
    waitWhile(control, control + EPOCH, epoch);
    const now = atomic.load<i32>(control + EPOCH);
    if (atomic.load<i32>(control + STOP) != 0) return;
    const launched = <usize>atomic.load<u32>(control + PLAN);
    const from = atomic.load<i32>(control + FROM);
    const to = atomic.load<i32>(control + TO);
    const serial = atomic.load<i32>(control + SERIAL);
    // a launch that has ended meanwhile, or is being written
    if ((now & 1) != 0 || atomic.load<i32>(control + EPOCH) != now) continue;
    epoch = now;
    share(launched, from, to, thread, threads, serial);
  }
}

/** Makes every `serve` return. */
export function stop(plan: usize): void {
  const control = address(plan, PLAN_CONTROL);
  atomic.store<i32>(control + STOP, 1);
  atomic.add<i32>(control + EPOCH, 1);
  wake(control, control + EPOCH);
}
