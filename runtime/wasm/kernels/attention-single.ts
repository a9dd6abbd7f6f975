/**
 * ATTENTION for a single row: decoding where every head has keys and values of its own. Four keys share a
 * vector here, where attention.ts lets four rows do so. Scratch: scores f32 [64] at 0, the result f32 [256]
 * at 256, the query f32 [256] at 1280.
 */
import {
  ATTENTION_BIAS,
  ATTENTION_BIASBATCH,
  ATTENTION_BIASHEAD,
  ATTENTION_K,
  ATTENTION_KBATCH,
  ATTENTION_KHEAD,
  ATTENTION_KTOKEN,
  ATTENTION_KVTYPE,
  ATTENTION_MASK,
  ATTENTION_MASKROW,
  ATTENTION_MASKTYPE,
  ATTENTION_Q,
  ATTENTION_QBATCH,
  ATTENTION_SCALE,
  ATTENTION_SINKS,
  ATTENTION_SIZE,
  ATTENTION_SOFTCAP,
  ATTENTION_V,
  ATTENTION_VBATCH,
  ATTENTION_VHEAD,
  ATTENTION_VSIZE,
  ATTENTION_VTOKEN,
  ATTENTION_Y,
  ATTENTION_YBATCH,
  TYPE_F16,
  TYPE_I32,
  TYPE_I64,
} from './abi.ts';
import { firstKey, lastKey, scaleRow, sumRows } from './attention.ts';
import {
  HALF_FACTOR,
  HALF_MASK,
  address,
  constant,
  float,
  halves,
  laneMax,
  laneSum,
  word,
} from './core.ts';
import { loadUpTo } from './epilogue.ts';
import { exp, tanh } from './math.ts';

/** Keys a block. */
const BLOCK = 64;
const RESULT: usize = 256;
const QUERY: usize = 1280;

/** The only query of a head that shares its keys with no other. */
export function attendSingle(step: usize, scratch: usize, batch: i32, head: i32): void {
  const size = word(step, ATTENTION_SIZE);
  const valueSize = word(step, ATTENTION_VSIZE);
  const kind = word(step, ATTENTION_KVTYPE) == TYPE_F16 ? 1 : 0;
  const keyToken = word(step, ATTENTION_KTOKEN);
  const valueToken = word(step, ATTENTION_VTOKEN);
  const keys =
    address(step, ATTENTION_K) + batch * word(step, ATTENTION_KBATCH) +
    head * word(step, ATTENTION_KHEAD);
  const values =
    address(step, ATTENTION_V) + batch * word(step, ATTENTION_VBATCH) +
    head * word(step, ATTENTION_VHEAD);
  const q =
    address(step, ATTENTION_Q) + batch * word(step, ATTENTION_QBATCH) +
    head * (size << 2);
  scaleRow(q, scratch + QUERY, size, float(step, ATTENTION_SCALE));

  const first = firstKey(step, 0);
  const last = lastKey(step, 0);
  let peak: f32 = -Infinity;
  let sum: f32 = 0;
  const sinks = address(step, ATTENTION_SINKS);
  if (sinks) {
    peak = load<f32>(sinks + (head << 2));
    sum = 1;
  }
  memory.fill(scratch + RESULT, 0, valueSize << 2);
  for (let t = first; t < last; t += BLOCK) {
    const count = min(BLOCK, last - t);
    unchecked(scorers[kind])(scratch, keys + t * keyToken, keyToken, size, count);
    adjustScores(step, scratch, batch, head, t, count);
    // lanes beyond `count` are -infinity from here on
    let high = f32x4.splat(-Infinity);
    for (let i = 0; i < count; i += 4) high = f32x4.pmax(high, v128.load(scratch + (i << 2)));
    const newPeak = max<f32>(peak, laneMax(high));
    if (newPeak == -Infinity) continue;
    const p = f32x4.splat(newPeak);
    let total = f32x4.splat(0);
    for (let i = 0; i < count; i += 4) {
      const e = exp(f32x4.sub(v128.load(scratch + (i << 2)), p));
      v128.store(scratch + (i << 2), e);
      total = f32x4.add(total, e);
    }
    const keep: f32 =
      peak == newPeak ? 1 : f32x4.extract_lane(exp(f32x4.splat(peak - newPeak)), 0);
    peak = newPeak;
    sum = sum * keep + laneSum(total);
    const row = values + t * valueToken;
    unchecked(adders[kind])(scratch, row, valueToken, valueSize, count, keep);
  }
  const y =
    address(step, ATTENTION_Y) + batch * word(step, ATTENTION_YBATCH) +
    head * (valueSize << 2);
  scaleRow(scratch + RESULT, y, valueSize, sum == 0 ? 0 : 1 / sum);
}

/** Four values at element `i` of a row. */
@inline
function elements(half: bool, row: usize, i: i32, mask: v128, factor: v128): v128 {
  return half ? halves(row + (i << 1), mask, factor) : v128.load(row + (i << 2));
}

// Called through tables so that each stays a function of its own, as in attention.ts.
type Scorer = (scratch: usize, keys: usize, stride: i32, size: i32, count: i32) => void;
type Adder = (
  scratch: usize,
  values: usize,
  stride: i32,
  size: i32,
  count: i32,
  keep: f32,
) => void;

/** By KV type: f32, f16. */
const scorers: StaticArray<Scorer> = [
  (scratch, keys, stride, size, count) => {
    scoreKeys(false, scratch + QUERY, keys, stride, size, count, scratch);
  },
  (scratch, keys, stride, size, count) => {
    scoreKeys(true, scratch + QUERY, keys, stride, size, count, scratch);
  },
];
const adders: StaticArray<Adder> = [
  (scratch, values, stride, size, count, keep) => {
    addValues(false, scratch, values, stride, size, count, keep);
  },
  (scratch, values, stride, size, count, keep) => {
    addValues(true, scratch, values, stride, size, count, keep);
  },
];

/** scores[t] = q . key t, four keys at a time; beyond `count` the last key is scored again. */
@inline
function scoreKeys(
  half: bool,
  q: usize,
  keys: usize,
  stride: i32,
  size: i32,
  count: i32,
  scores: usize,
): void {
  const mask = constant(HALF_MASK);
  const factor = constant(HALF_FACTOR);
  for (let t = 0; t < count; t += 4) {
    const k0 = keys + t * stride;
    const k1 = keys + min(t + 1, count - 1) * stride;
    const k2 = keys + min(t + 2, count - 1) * stride;
    const k3 = keys + min(t + 3, count - 1) * stride;
    let a = f32x4.splat(0), b = a, c = a, d = a;
    for (let i = 0; i < size; i += 4) {
      const x = v128.load(q + (i << 2));
      a = f32x4.add(a, f32x4.mul(x, elements(half, k0, i, mask, factor)));
      b = f32x4.add(b, f32x4.mul(x, elements(half, k1, i, mask, factor)));
      c = f32x4.add(c, f32x4.mul(x, elements(half, k2, i, mask, factor)));
      d = f32x4.add(d, f32x4.mul(x, elements(half, k3, i, mask, factor)));
    }
    v128.store(scores + (t << 2), sumRows(a, b, c, d));
  }
}

/** Softcap, bias, mask; scores beyond `count` become -infinity. */
function adjustScores(
  step: usize,
  scores: usize,
  batch: i32,
  head: i32,
  t: i32,
  count: i32,
): void {
  const cap = float(step, ATTENTION_SOFTCAP);
  if (cap > 0) {
    const inverse = f32x4.splat(1 / cap);
    for (let i = 0; i < count; i += 4) {
      const x = f32x4.mul(v128.load(scores + (i << 2)), inverse);
      v128.store(scores + (i << 2), f32x4.mul(tanh(x), f32x4.splat(cap)));
    }
  }
  const bias = address(step, ATTENTION_BIAS);
  if (bias) {
    const row =
      bias + batch * word(step, ATTENTION_BIASBATCH) + head * word(step, ATTENTION_BIASHEAD) +
      (t << 2);
    for (let i = 0; i < count; i += 4) {
      const b = loadUpTo(row + (i << 2), count - i);
      v128.store(scores + (i << 2), f32x4.add(v128.load(scores + (i << 2)), b));
    }
  }
  const mask = address(step, ATTENTION_MASK);
  if (mask) {
    const type = word(step, ATTENTION_MASKTYPE);
    const shift = type == TYPE_I64 ? 3 : type == TYPE_I32 ? 2 : 0;
    const row = mask + batch * word(step, ATTENTION_MASKROW) + (t << shift);
    for (let i = 0; i < count; i++) {
      const at = row + (i << shift);
      const kept = shift == 3 ? load<i64>(at) != 0 : shift == 2 ? load<i32>(at) != 0 : load<u8>(at) != 0;
      if (!kept) store<f32>(scores + (i << 2), -Infinity);
    }
  }
  for (let i = count; (i & 3) != 0; i++) store<f32>(scores + (i << 2), -Infinity);
}

/**
 * result = result * keep + sum over keys of p[t] * value t, four values at a time through all dimensions: they are
 * read in order, which is what memory is fastest at.
 */
@inline
function addValues(
  half: bool,
  scratch: usize,
  values: usize,
  stride: i32,
  size: i32,
  count: i32,
  keep: f32,
): void {
  const end = scratch + RESULT + (size << 2);
  const kept = f32x4.splat(keep);
  for (let at = scratch + RESULT; at < end; at += 16) {
    v128.store(at, f32x4.mul(v128.load(at), kept));
  }
  let p = scratch;
  for (let t = 4; t <= count; t += 4) {
    addSome(half, 4, p, scratch + RESULT, end, values, stride);
    p += 16;
    values += stride * 4;
  }
  for (let t = count & 3; t > 0; t--) {
    addSome(half, 1, p, scratch + RESULT, end, values, stride);
    p += 4;
    values += stride;
  }
}

/** What one or four values (`keys`) add to the result `at`..`end`-1. */
@inline
function addSome(
  half: bool,
  keys: i32,
  p: usize,
  at: usize,
  end: usize,
  values: usize,
  stride: i32,
): void {
  const mask = constant(HALF_MASK);
  const factor = constant(HALF_FACTOR);
  const four = keys == 4;
  const p0 = v128.load32_splat(p, 0);
  const p1 = four ? v128.load32_splat(p, 4) : p0;
  const p2 = four ? v128.load32_splat(p, 8) : p0;
  const p3 = four ? v128.load32_splat(p, 12) : p0;
  let v1 = values + stride;
  let v2 = v1 + stride;
  let v3 = v2 + stride;
  const step = half ? 8 : 16;
  while (at < end) {
    let a = f32x4.add(v128.load(at), f32x4.mul(p0, elements(half, values, 0, mask, factor)));
    if (four) {
      a = f32x4.add(a, f32x4.mul(p1, elements(half, v1, 0, mask, factor)));
      a = f32x4.add(a, f32x4.mul(p2, elements(half, v2, 0, mask, factor)));
      a = f32x4.add(a, f32x4.mul(p3, elements(half, v3, 0, mask, factor)));
      v1 += step;
      v2 += step;
      v3 += step;
    }
    v128.store(at, a);
    at += 16;
    values += step;
  }
}
