/**
 * REDUCE and SOFTMAX over the middle of [OUTER, LENGTH, INNER], ARGMAX and TOPK.
 * INNER 1 walks rows, four elements at a time; otherwise four neighbouring columns go together.
 */
import {
  ARGMAX_INNER,
  ARGMAX_LAST,
  ARGMAX_LENGTH,
  ARGMAX_OUTER,
  ARGMAX_SMALLEST,
  ARGMAX_X,
  ARGMAX_Y,
  ARGMAX_YTYPE,
  REDUCE_INNER,
  REDUCE_KIND,
  REDUCE_L1,
  REDUCE_L2,
  REDUCE_LENGTH,
  REDUCE_MAX,
  REDUCE_MEAN,
  REDUCE_MIN,
  REDUCE_OUTER,
  REDUCE_PROD,
  REDUCE_SUMSQUARE,
  REDUCE_X,
  REDUCE_Y,
  SOFTMAX_INNER,
  SOFTMAX_LENGTH,
  SOFTMAX_LOG,
  SOFTMAX_OUTER,
  SOFTMAX_X,
  SOFTMAX_Y,
  TOPK_INDEXTYPE,
  TOPK_INDICES,
  TOPK_K,
  TOPK_N,
  TOPK_ROWS,
  TOPK_SMALLEST,
  TOPK_VALUES,
  TOPK_X,
  TYPE_I64,
} from './abi.ts';
import { address, laneMax, shareStart, word } from './core.ts';
import { loadUpTo, storeUpTo } from './epilogue.ts';
import { exp, log } from './math.ts';

@inline
function neutral(kind: i32): f32 {
  if (kind == REDUCE_MAX) return -Infinity;
  if (kind == REDUCE_MIN) return Infinity;
  return kind == REDUCE_PROD ? 1 : 0;
}

@inline
function combine(kind: i32, a: v128, x: v128): v128 {
  switch (kind) {
    case REDUCE_MAX:
      return f32x4.max(a, x);
    case REDUCE_MIN:
      return f32x4.min(a, x);
    case REDUCE_PROD:
      return f32x4.mul(a, x);
    case REDUCE_L1:
      return f32x4.add(a, f32x4.abs(x));
    case REDUCE_L2:
    case REDUCE_SUMSQUARE:
      return f32x4.add(a, f32x4.mul(x, x));
    default:
      return f32x4.add(a, x);
  }
}

/** Combines two partial results: sums of squares and magnitudes add. */
@inline
function merge(kind: i32, a: v128, b: v128): v128 {
  return kind == REDUCE_MAX || kind == REDUCE_MIN || kind == REDUCE_PROD
    ? combine(kind, a, b)
    : f32x4.add(a, b);
}

@inline
function finish(kind: i32, a: v128, length: i32): v128 {
  if (kind == REDUCE_MEAN) return f32x4.div(a, f32x4.splat(<f32>length));
  return kind == REDUCE_L2 ? f32x4.sqrt(a) : a;
}

export function reduce(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const length = word(step, REDUCE_LENGTH);
  const inner = word(step, REDUCE_INNER);
  const kind = word(step, REDUCE_KIND);
  const quads = (inner + 3) >> 2;
  const items = word(step, REDUCE_OUTER) * quads;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const outer = i / quads;
    const column = (i - outer * quads) << 2;
    const x = address(step, REDUCE_X) + ((outer * length * inner + column) << 2);
    const y = address(step, REDUCE_Y) + ((outer * inner + column) << 2);
    if (inner == 1) {
      const rowResult = finish(kind, reduceRow(kind, x, length), length);
      store<f32>(y, f32x4.extract_lane(rowResult, 0));
    } else {
      let a = f32x4.splat(neutral(kind));
      const left = inner - column;
      for (let l = 0; l < length; l++) {
        a = combine(kind, a, loadUpTo(x + ((l * inner) << 2), left));
      }
      storeUpTo(y, finish(kind, a, length), left);
    }
  }
}

/** Largest of a row times `sign`, times `sign`; NaN does not count. */
function extreme(x: usize, length: i32, sign: f32): f32 {
  const s = f32x4.splat(sign);
  let a = f32x4.splat(-Infinity), b = a, c = a, d = a;
  let i = 0;
  for (; i + 16 <= length; i += 16) {
    const at = x + (i << 2);
    a = f32x4.pmax(a, f32x4.mul(v128.load(at, 0), s));
    b = f32x4.pmax(b, f32x4.mul(v128.load(at, 16), s));
    c = f32x4.pmax(c, f32x4.mul(v128.load(at, 32), s));
    d = f32x4.pmax(d, f32x4.mul(v128.load(at, 48), s));
  }
  let best = laneMax(f32x4.pmax(f32x4.pmax(a, b), f32x4.pmax(c, d)));
  for (; i < length; i++) {
    const value = load<f32>(x + (i << 2)) * sign;
    if (value > best) best = value;
  }
  return best * sign;
}

/** A row's result in lane 0, before `finish`. */
function reduceRow(kind: i32, x: usize, length: i32): v128 {
  let a = f32x4.splat(neutral(kind));
  let i = 0;
  for (; i + 4 <= length; i += 4) a = combine(kind, a, v128.load(x + (i << 2)));
  a = merge(kind, a, i8x16.shuffle(a, a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  a = merge(kind, a, i8x16.shuffle(a, a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  for (; i < length; i++) a = combine(kind, a, v128.load32_splat(x + (i << 2)));
  return a;
}

export function softmax(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const length = word(step, SOFTMAX_LENGTH);
  const inner = word(step, SOFTMAX_INNER);
  const logarithm = word(step, SOFTMAX_LOG) != 0;
  const quads = (inner + 3) >> 2;
  const items = word(step, SOFTMAX_OUTER) * quads;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const outer = i / quads;
    const column = (i - outer * quads) << 2;
    const at: usize = (outer * length * inner + column) << 2;
    const x = address(step, SOFTMAX_X) + at;
    const y = address(step, SOFTMAX_Y) + at;
    if (inner == 1) softmaxRow(x, y, length, logarithm);
    else softmaxColumns(x, y, length, inner, inner - column, logarithm);
  }
}

function softmaxRow(x: usize, y: usize, length: i32, logarithm: bool): void {
  const peak = f32x4.splat(extreme(x, length, 1));
  let i = 0;
  let sums = f32x4.splat(0);
  for (; i < length; i += 4) {
    const left = length - i;
    const shifted = f32x4.sub(loadUpTo(x + (i << 2), left), peak);
    let e = exp(shifted);
    if (left < 4) e = v128.and(e, lanesBelow(left));
    sums = f32x4.add(sums, e);
    storeUpTo(y + (i << 2), logarithm ? shifted : e, left);
  }
  sums = merge(0, sums, i8x16.shuffle(sums, sums, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  sums = merge(0, sums, i8x16.shuffle(sums, sums, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  const rest = logarithm ? log(sums) : f32x4.div(f32x4.splat(1), sums);
  for (i = 0; i < length; i += 4) {
    const left = length - i;
    const e = loadUpTo(y + (i << 2), left);
    storeUpTo(y + (i << 2), logarithm ? f32x4.sub(e, rest) : f32x4.mul(e, rest), left);
  }
}

/** All bits of the first `count` lanes. */
@inline
function lanesBelow(count: i32): v128 {
  return i32x4.lt_s(i32x4(0, 1, 2, 3), i32x4.splat(count));
}

function softmaxColumns(
  x: usize,
  y: usize,
  length: i32,
  inner: i32,
  left: i32,
  logarithm: bool,
): void {
  let peak = f32x4.splat(-Infinity);
  for (let l = 0; l < length; l++) peak = f32x4.max(peak, loadUpTo(x + ((l * inner) << 2), left));
  let sums = f32x4.splat(0);
  for (let l = 0; l < length; l++) {
    const shifted = f32x4.sub(loadUpTo(x + ((l * inner) << 2), left), peak);
    const e = exp(shifted);
    sums = f32x4.add(sums, e);
    storeUpTo(y + ((l * inner) << 2), logarithm ? shifted : e, left);
  }
  const rest = logarithm ? log(sums) : f32x4.div(f32x4.splat(1), sums);
  for (let l = 0; l < length; l++) {
    const e = loadUpTo(y + ((l * inner) << 2), left);
    storeUpTo(y + ((l * inner) << 2), logarithm ? f32x4.sub(e, rest) : f32x4.mul(e, rest), left);
  }
}

/** Stores an index as i32 or i64. */
@inline
function storeIndex(at: usize, i: i32, type: i32, value: i32): void {
  if (type == TYPE_I64) store<i64>(at + (i << 3), value);
  else store<i32>(at + (i << 2), value);
}

@inline
function loadIndex(at: usize, i: i32, type: i32): i32 {
  return type == TYPE_I64 ? <i32>load<i64>(at + (i << 3)) : load<i32>(at + (i << 2));
}

export function argmax(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const length = word(step, ARGMAX_LENGTH);
  const inner = word(step, ARGMAX_INNER);
  const smallest = word(step, ARGMAX_SMALLEST) != 0;
  const last = word(step, ARGMAX_LAST) != 0;
  const items = word(step, ARGMAX_OUTER) * inner;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const outer = i / inner;
    const x = address(step, ARGMAX_X) + ((outer * length * inner + (i - outer * inner)) << 2);
    let best = load<f32>(x);
    let index = 0;
    if (inner == 1) {
      // the extreme by vectors, then its place: two fast passes beat one with a branch an element
      best = extreme(x, length, smallest ? -1 : 1);
      if (last) for (index = length - 1; index > 0 && load<f32>(x + (index << 2)) != best; ) index--;
      else while (index < length - 1 && load<f32>(x + (index << 2)) != best) index++;
    } else {
      for (let l = 1; l < length; l++) {
        const value = load<f32>(x + ((l * inner) << 2));
        if (smallest ? value < best : value > best) {
          best = value;
          index = l;
        } else if (last && value == best) index = l;
      }
    }
    storeIndex(address(step, ARGMAX_Y), i, word(step, ARGMAX_YTYPE), index);
  }
}

export function topk(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const N = word(step, TOPK_N);
  const K = word(step, TOPK_K);
  const type = word(step, TOPK_INDEXTYPE);
  const sign: f32 = word(step, TOPK_SMALLEST) != 0 ? -1 : 1;
  const rows = word(step, TOPK_ROWS);
  const end = shareStart(rows, thread + 1, threads);
  for (let row = shareStart(rows, thread, threads); row < end; row++) {
    const x = address(step, TOPK_X) + ((row * N) << 2);
    const values = address(step, TOPK_VALUES) + ((row * K) << 2);
    const indices = address(step, TOPK_INDICES) + ((row * K) << (type == TYPE_I64 ? 3 : 2));
    let kept = 0;
    for (let n = 0; n < N; n++) {
      const value = load<f32>(x + (n << 2));
      if (kept == K && !(value * sign > load<f32>(values + ((K - 1) << 2)) * sign)) continue;
      // insertion from the end, so that equal values keep the lower index first
      let at = kept < K ? kept++ : K - 1;
      while (at > 0 && value * sign > load<f32>(values + ((at - 1) << 2)) * sign) {
        store<f32>(values + (at << 2), load<f32>(values + ((at - 1) << 2)));
        storeIndex(indices, at, type, loadIndex(indices, at - 1, type));
        at--;
      }
      store<f32>(values + (at << 2), value);
      storeIndex(indices, at, type, n);
    }
  }
}

/** Index of the largest of `count` f32 at `at`, the first among equals; NaN is never it. */
export function largest(at: usize, count: i32): i32 {
  let a = f32x4.splat(-Infinity), b = a, c = a, d = a;
  let i = 0;
  for (; i + 16 <= count; i += 16) {
    const x = at + (i << 2);
    // pmax keeps its first operand where the other is NaN
    a = f32x4.pmax(a, v128.load(x, 0));
    b = f32x4.pmax(b, v128.load(x, 16));
    c = f32x4.pmax(c, v128.load(x, 32));
    d = f32x4.pmax(d, v128.load(x, 48));
  }
  let most = laneMax(f32x4.pmax(f32x4.pmax(a, b), f32x4.pmax(c, d)));
  for (; i < count; i++) {
    const x = load<f32>(at + (i << 2));
    if (x > most) most = x;
  }
  for (i = 0; i < count; i++) if (load<f32>(at + (i << 2)) == most) return i;
  return 0;
}
