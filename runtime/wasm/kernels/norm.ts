/**
 * NORM: t = x (+ skip + skipBias); y = (t - mean?) / sqrt(mean square + epsilon) * gain + bias.
 * Rows of N f32; HEADS rows lie together in each of ROWS. Layer norm takes two passes for the variance.
 */
import {
  NORM_BIAS,
  NORM_EPSILON,
  NORM_GAIN,
  NORM_HEADS,
  NORM_KIND,
  NORM_N,
  NORM_ROWS,
  NORM_SKIP,
  NORM_SKIPBIAS,
  NORM_SUM,
  NORM_X,
  NORM_XROW,
  NORM_Y,
  NORM_YROW,
} from './abi.ts';
import { address, float, laneSum, shareStart, word } from './core.ts';

export function norm(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const N = word(step, NORM_N);
  const heads = word(step, NORM_HEADS);
  const skip = address(step, NORM_SKIP);
  const sum = address(step, NORM_SUM);
  const rows = word(step, NORM_ROWS) * heads;
  const end = shareStart(rows, thread + 1, threads);
  for (let i = shareStart(rows, thread, threads); i < end; i++) {
    const row = i / heads;
    const inside = (i - row * heads) * (N << 2);
    const offset = row * word(step, NORM_XROW) + inside;
    let source = address(step, NORM_X) + offset;
    if (skip || sum) {
      const target = sum ? sum + offset : address(step, NORM_Y) + row * word(step, NORM_YROW) + inside;
      add(source, skip ? skip + offset : 0, address(step, NORM_SKIPBIAS), target, N);
      source = target;
    }
    const y = address(step, NORM_Y) + row * word(step, NORM_YROW) + inside;
    const epsilon = float(step, NORM_EPSILON);
    const center = word(step, NORM_KIND) == 1;
    normRow(source, y, N, epsilon, center, address(step, NORM_GAIN), address(step, NORM_BIAS));
  }
}

/** target = x + skip + skipBias; skip and skipBias may be 0. */
function add(x: usize, skip: usize, skipBias: usize, target: usize, N: i32): void {
  let i = 0;
  for (; i + 4 <= N; i += 4) {
    const at: usize = i << 2;
    let t = v128.load(x + at);
    if (skip) t = f32x4.add(t, v128.load(skip + at));
    if (skipBias) t = f32x4.add(t, v128.load(skipBias + at));
    v128.store(target + at, t);
  }
  for (; i < N; i++) {
    const at: usize = i << 2;
    let t = load<f32>(x + at);
    if (skip) t += load<f32>(skip + at);
    if (skipBias) t += load<f32>(skipBias + at);
    store<f32>(target + at, t);
  }
}

function normRow(
  x: usize,
  y: usize,
  N: i32,
  epsilon: f32,
  center: bool,
  gain: usize,
  bias: usize,
): void {
  const mean: f32 = center ? total(x, N) / <f32>N : 0;
  const square = squares(x, N, mean) / <f32>N;
  const inverse: f32 = 1 / sqrt<f32>(square + epsilon);
  const m = f32x4.splat(mean);
  const s = f32x4.splat(inverse);
  let i = 0;
  for (; i + 4 <= N; i += 4) {
    const at: usize = i << 2;
    let t = f32x4.mul(f32x4.sub(v128.load(x + at), m), s);
    if (gain) t = f32x4.mul(t, v128.load(gain + at));
    if (bias) t = f32x4.add(t, v128.load(bias + at));
    v128.store(y + at, t);
  }
  for (; i < N; i++) {
    const at: usize = i << 2;
    let t = (load<f32>(x + at) - mean) * inverse;
    if (gain) t *= load<f32>(gain + at);
    if (bias) t += load<f32>(bias + at);
    store<f32>(y + at, t);
  }
}

function total(x: usize, N: i32): f32 {
  let a = f32x4.splat(0);
  let b = a;
  let i = 0;
  for (; i + 8 <= N; i += 8) {
    a = f32x4.add(a, v128.load(x + (i << 2)));
    b = f32x4.add(b, v128.load(x + (i << 2), 16));
  }
  let sum = laneSum(f32x4.add(a, b));
  for (; i < N; i++) sum += load<f32>(x + (i << 2));
  return sum;
}

function squares(x: usize, N: i32, mean: f32): f32 {
  const m = f32x4.splat(mean);
  let a = f32x4.splat(0);
  let b = a;
  let i = 0;
  for (; i + 8 <= N; i += 8) {
    const t = f32x4.sub(v128.load(x + (i << 2)), m);
    const u = f32x4.sub(v128.load(x + (i << 2), 16), m);
    a = f32x4.add(a, f32x4.mul(t, t));
    b = f32x4.add(b, f32x4.mul(u, u));
  }
  let sum = laneSum(f32x4.add(a, b));
  for (; i < N; i++) {
    const t = load<f32>(x + (i << 2)) - mean;
    sum += t * t;
  }
  return sum;
}
