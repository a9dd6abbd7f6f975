/**
 * RECURRENT: LSTM, GRU and RNN. The projections of all inputs are one matrix product before this step; here
 * each direction of each sequence is walked on its own, which is also how threads share the work: results
 * do not depend on their number. Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, __GRU, __RNN.
 */
import {
  RECURRENT_ACTIVATIONS,
  RECURRENT_BATCH,
  RECURRENT_C,
  RECURRENT_C0,
  RECURRENT_CLIP,
  RECURRENT_DIRECTIONS,
  RECURRENT_GATES,
  RECURRENT_H,
  RECURRENT_H0,
  RECURRENT_HIDDEN,
  RECURRENT_INPUTFORGET,
  RECURRENT_KIND,
  RECURRENT_LENGTHS,
  RECURRENT_LINEARBEFORE,
  RECURRENT_PEEPHOLE,
  RECURRENT_R,
  RECURRENT_RBIAS,
  RECURRENT_REVERSE,
  RECURRENT_SBATCH,
  RECURRENT_SDIRECTION,
  RECURRENT_STEPS,
  RECURRENT_X,
  RECURRENT_XBATCH,
  RECURRENT_XSTEP,
  RECURRENT_Y,
  RECURRENT_YBATCH,
  RECURRENT_YDIRECTION,
  RECURRENT_YSTEP,
} from './abi.ts';
import { address, float, shareStart, word } from './core.ts';
import { loadUpTo, storeUpTo } from './epilogue.ts';
import { transposedRow } from './gemm.ts';
import { activate, clamp } from './math.ts';

const GRU: i32 = 1;
const LSTM: i32 = 2;

export function recurrent(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const batch = word(step, RECURRENT_BATCH);
  const items = word(step, RECURRENT_DIRECTIONS) * batch;
  const kind = word(step, RECURRENT_KIND);
  const wide = (kind == LSTM ? 4 : kind == GRU ? 3 : 1) * word(step, RECURRENT_HIDDEN);
  const gates = address(step, RECURRENT_GATES) + ((thread * wide) << 3);
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    sequence(step, kind, i / batch, i % batch, wide, gates);
  }
}

function sequence(step: usize, kind: i32, d: i32, b: i32, wide: i32, gates: usize): void {
  const hidden = word(step, RECURRENT_HIDDEN);
  const row: usize = hidden << 2;
  const steps = word(step, RECURRENT_STEPS);
  const at = d * word(step, RECURRENT_SDIRECTION) + b * word(step, RECURRENT_SBATCH);
  const h = address(step, RECURRENT_H) + at;
  const c = address(step, RECURRENT_C) + at;
  start(h, address(step, RECURRENT_H0), at, row);
  if (kind == LSTM) start(c, address(step, RECURRENT_C0), at, row);
  const lengths = address(step, RECURRENT_LENGTHS);
  const length = lengths ? min(steps, load<i32>(lengths + (b << 2))) : steps;
  const direction = word(step, RECURRENT_REVERSE);
  const reverse = direction == 1 || (direction == 2 && d == 1);
  const weights = address(step, RECURRENT_R) + d * wide * row;
  const y = address(step, RECURRENT_Y);
  const kept = y + d * word(step, RECURRENT_YDIRECTION) + b * word(step, RECURRENT_YBATCH);
  for (let i = 0; i < length; i++) {
    const t = reverse ? length - 1 - i : i;
    const x =
      address(step, RECURRENT_X) + t * word(step, RECURRENT_XSTEP) +
      b * word(step, RECURRENT_XBATCH) + ((d * wide) << 2);
    // r h for all gates; a GRU without LINEARBEFORE damps h before the third
    const late = kind == GRU && word(step, RECURRENT_LINEARBEFORE) == 0;
    const together = late ? 2 * hidden : wide;
    transposedRow(h, weights, row, gates, hidden, together, f32x4.splat(1));
    if (kind == LSTM) lstm(step, d, x, gates, h, c, hidden);
    else if (kind == GRU) gru(step, d, x, gates, h, weights, hidden, late);
    else rnn(step, d, x, gates, h, hidden);
    if (y) memory.copy(kept + t * word(step, RECURRENT_YSTEP), h, row);
  }
  for (let t = length; y && t < steps; t++) {
    memory.fill(kept + t * word(step, RECURRENT_YSTEP), 0, row);
  }
}

/** Copies an initial state, or zeros. */
function start(state: usize, initial: usize, at: usize, bytes: usize): void {
  if (initial) memory.copy(state, initial + at, bytes);
  else memory.fill(state, 0, bytes);
}

/** Activation `index` (f, g, h) of a direction. */
@inline
function act(step: usize, d: i32, index: i32, x: v128): v128 {
  const entry = address(step, RECURRENT_ACTIVATIONS) + (d * 3 + index) * 12;
  const clip = float(step, RECURRENT_CLIP);
  if (clip > 0) x = clamp(x, f32x4.splat(-clip), f32x4.splat(clip));
  return activate(word(entry, 0), x, f32x4.splat(float(entry, 1)), f32x4.splat(float(entry, 2)));
}

/** Input part and recurrent part of gate `gate`, lanes i..i+3. */
@inline
function gate(x: usize, gates: usize, index: i32, hidden: i32, i: i32, left: i32): v128 {
  const at: usize = (index * hidden + i) << 2;
  return f32x4.add(loadUpTo(x + at, left), loadUpTo(gates + at, left));
}

function rnn(step: usize, d: i32, x: usize, gates: usize, h: usize, hidden: i32): void {
  for (let i = 0; i < hidden; i += 4) {
    const left = hidden - i;
    storeUpTo(h + (i << 2), act(step, d, 0, gate(x, gates, 0, hidden, i, left)), left);
  }
}

function lstm(
  step: usize,
  d: i32,
  x: usize,
  gates: usize,
  h: usize,
  c: usize,
  hidden: i32,
): void {
  const given = address(step, RECURRENT_PEEPHOLE);
  const peephole = given ? given + ((d * 3 * hidden) << 2) : 0;
  const coupled = word(step, RECURRENT_INPUTFORGET) != 0;
  const row: usize = hidden << 2;
  for (let i = 0; i < hidden; i += 4) {
    const left = hidden - i;
    const at: usize = i << 2;
    const old = loadUpTo(c + at, left);
    let a = gate(x, gates, 0, hidden, i, left);
    let o = gate(x, gates, 1, hidden, i, left);
    let f = gate(x, gates, 2, hidden, i, left);
    if (peephole) {
      a = f32x4.add(a, f32x4.mul(loadUpTo(peephole + at, left), old));
      f = f32x4.add(f, f32x4.mul(loadUpTo(peephole + 2 * row + at, left), old));
    }
    a = act(step, d, 0, a);
    f = coupled ? f32x4.sub(f32x4.splat(1), a) : act(step, d, 0, f);
    const candidate = act(step, d, 1, gate(x, gates, 3, hidden, i, left));
    const state = f32x4.add(f32x4.mul(f, old), f32x4.mul(a, candidate));
    if (peephole) o = f32x4.add(o, f32x4.mul(loadUpTo(peephole + row + at, left), state));
    o = act(step, d, 0, o);
    storeUpTo(c + at, state, left);
    storeUpTo(h + at, f32x4.mul(o, squash(step, d, state)), left);
  }
}

/** The activation of the cell state, which is not clipped. */
@inline
function squash(step: usize, d: i32, x: v128): v128 {
  const entry = address(step, RECURRENT_ACTIVATIONS) + (d * 3 + 2) * 12;
  return activate(word(entry, 0), x, f32x4.splat(float(entry, 1)), f32x4.splat(float(entry, 2)));
}

function gru(
  step: usize,
  d: i32,
  x: usize,
  gates: usize,
  h: usize,
  weights: usize,
  hidden: i32,
  late: bool,
): void {
  const row: usize = hidden << 2;
  const candidate = gates + 2 * row;
  if (late) {
    // behind the gates: reset * h
    const damped = gates + 3 * row;
    for (let i = 0; i < hidden; i += 4) {
      const left = hidden - i;
      const reset = act(step, d, 0, gate(x, gates, 1, hidden, i, left));
      storeUpTo(damped + (i << 2), f32x4.mul(reset, loadUpTo(h + (i << 2), left)), left);
    }
    transposedRow(damped, weights + 2 * hidden * row, <i32>row, candidate, hidden, hidden, f32x4.splat(1));
  }
  const bias = address(step, RECURRENT_RBIAS);
  for (let i = 0; i < hidden; i += 4) {
    const left = hidden - i;
    const at: usize = i << 2;
    let memory = loadUpTo(candidate + at, left);
    if (!late) {
      if (bias) memory = f32x4.add(memory, loadUpTo(bias + d * row + at, left));
      memory = f32x4.mul(act(step, d, 0, gate(x, gates, 1, hidden, i, left)), memory);
    }
    const update = act(step, d, 0, gate(x, gates, 0, hidden, i, left));
    const next = act(step, d, 1, f32x4.add(loadUpTo(x + 2 * row + at, left), memory));
    const rest = f32x4.sub(f32x4.splat(1), update);
    const mixed = f32x4.add(f32x4.mul(rest, next), f32x4.mul(update, loadUpTo(h + at, left)));
    storeUpTo(h + at, mixed, left);
  }
}
