/**
 * ATTENTION: softmax(q k^T * scale ...) v with an online softmax over blocks of 64 keys, so that working
 * memory is the same at any length. Online softmax: Milakov & Gimelshein 2018 (arXiv:1805.02867).
 *
 * Scratch: scores f32 [64] at 0, the running result f32 [VSIZE <= 256] at 256, the query f32 [SIZE] at 1280.
 * One item is one query of one head; items are split between threads and do not depend on each other.
 * Only IEEE basic operations, so results are the same on every engine and variant.
 */
import {
  ATTENTION_BATCH,
  ATTENTION_BIAS,
  ATTENTION_BIASBATCH,
  ATTENTION_BIASHEAD,
  ATTENTION_BIASQUERY,
  ATTENTION_CAUSAL,
  ATTENTION_HEADS,
  ATTENTION_K,
  ATTENTION_KBATCH,
  ATTENTION_KEYS,
  ATTENTION_KHEAD,
  ATTENTION_KTOKEN,
  ATTENTION_KVHEADS,
  ATTENTION_KVTYPE,
  ATTENTION_MASK,
  ATTENTION_MASKROW,
  ATTENTION_MASKTYPE,
  ATTENTION_PAST,
  ATTENTION_Q,
  ATTENTION_QBATCH,
  ATTENTION_QTOKEN,
  ATTENTION_QUERIES,
  ATTENTION_SCALE,
  ATTENTION_SINKS,
  ATTENTION_SIZE,
  ATTENTION_SOFTCAP,
  ATTENTION_V,
  ATTENTION_VBATCH,
  ATTENTION_VHEAD,
  ATTENTION_VSIZE,
  ATTENTION_VTOKEN,
  ATTENTION_WINDOW,
  ATTENTION_Y,
  ATTENTION_YBATCH,
  ATTENTION_YTOKEN,
  TYPE_F16,
  TYPE_I32,
  TYPE_I64,
} from './abi.ts';
import { address, float, halves, laneMax, laneSum, shareStart, word } from './core.ts';
import { loadUpTo } from './epilogue.ts';
import { exp, tanh } from './math.ts';

/** Keys a block. */
const BLOCK = 64;
const RESULT: usize = 256;
const QUERY: usize = 1280;

export function attention(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const heads = word(step, ATTENTION_HEADS);
  const queries = word(step, ATTENTION_QUERIES);
  const items = word(step, ATTENTION_BATCH) * heads * queries;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const query = i % queries;
    const head = (i / queries) % heads;
    attend(step, scratch, i / queries / heads, head, query);
  }
}

function attend(step: usize, scratch: usize, batch: i32, head: i32, query: i32): void {
  const size = word(step, ATTENTION_SIZE);
  const valueSize = word(step, ATTENTION_VSIZE);
  const group = head / (word(step, ATTENTION_HEADS) / word(step, ATTENTION_KVHEADS));
  const half = word(step, ATTENTION_KVTYPE) == TYPE_F16;
  const keyToken = word(step, ATTENTION_KTOKEN);
  const valueToken = word(step, ATTENTION_VTOKEN);
  const keys =
    address(step, ATTENTION_K) + batch * word(step, ATTENTION_KBATCH) +
    group * word(step, ATTENTION_KHEAD);
  const values =
    address(step, ATTENTION_V) + batch * word(step, ATTENTION_VBATCH) +
    group * word(step, ATTENTION_VHEAD);
  const q =
    address(step, ATTENTION_Q) + batch * word(step, ATTENTION_QBATCH) +
    query * word(step, ATTENTION_QTOKEN) + head * (size << 2);
  scaleRow(q, scratch + QUERY, size, float(step, ATTENTION_SCALE));

  // visible keys: first..last-1
  const position = word(step, ATTENTION_PAST) + query;
  const window = word(step, ATTENTION_WINDOW);
  const causal = word(step, ATTENTION_CAUSAL) != 0;
  let last = word(step, ATTENTION_KEYS);
  if (causal) last = min(last, position + 1);
  else if (window > 0) last = min(last, position + window);
  const first = window > 0 ? max(0, position - window + 1) : 0;

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
    if (half) scoreKeys(true, scratch + QUERY, keys + t * keyToken, keyToken, size, count, scratch);
    else scoreKeys(false, scratch + QUERY, keys + t * keyToken, keyToken, size, count, scratch);
    adjustScores(step, scratch, batch, head, query, t, count);
    // lanes beyond `count` are -infinity from here on
    let high = f32x4.splat(-Infinity);
    for (let i = 0; i < count; i += 4) high = f32x4.max(high, v128.load(scratch + (i << 2)));
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
    if (half) addValues(true, scratch, values + t * valueToken, valueToken, valueSize, count, keep);
    else addValues(false, scratch, values + t * valueToken, valueToken, valueSize, count, keep);
  }
  const y =
    address(step, ATTENTION_Y) + batch * word(step, ATTENTION_YBATCH) +
    query * word(step, ATTENTION_YTOKEN) + head * (valueSize << 2);
  scaleRow(scratch + RESULT, y, valueSize, sum > 0 ? 1 / sum : 0);
}

function scaleRow(x: usize, y: usize, count: i32, factor: f32): void {
  const f = f32x4.splat(factor);
  for (let i = 0; i < count; i += 4) {
    v128.store(y + (i << 2), f32x4.mul(v128.load(x + (i << 2)), f));
  }
}

/** Four values at element `i` of a row. */
@inline
function elements(half: bool, row: usize, i: i32): v128 {
  return half ? halves(row + (i << 1)) : v128.load(row + (i << 2));
}

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
  for (let t = 0; t < count; t += 4) {
    const k0 = keys + t * stride;
    const k1 = keys + min(t + 1, count - 1) * stride;
    const k2 = keys + min(t + 2, count - 1) * stride;
    const k3 = keys + min(t + 3, count - 1) * stride;
    let a = f32x4.splat(0), b = a, c = a, d = a;
    for (let i = 0; i < size; i += 4) {
      const x = v128.load(q + (i << 2));
      a = f32x4.add(a, f32x4.mul(x, elements(half, k0, i)));
      b = f32x4.add(b, f32x4.mul(x, elements(half, k1, i)));
      c = f32x4.add(c, f32x4.mul(x, elements(half, k2, i)));
      d = f32x4.add(d, f32x4.mul(x, elements(half, k3, i)));
    }
    v128.store(scores + (t << 2), sumRows(a, b, c, d));
  }
}

/** The lane sums of four vectors as one vector. */
@inline
export function sumRows(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.add(v128.shuffle<f32>(a, b, 0, 4, 1, 5), v128.shuffle<f32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.add(v128.shuffle<f32>(c, d, 0, 4, 1, 5), v128.shuffle<f32>(c, d, 2, 6, 3, 7));
  return f32x4.add(v128.shuffle<f32>(ab, cd, 0, 1, 4, 5), v128.shuffle<f32>(ab, cd, 2, 3, 6, 7));
}

/** Softcap, bias, mask; scores beyond `count` become -infinity. */
function adjustScores(
  step: usize,
  scores: usize,
  batch: i32,
  head: i32,
  query: i32,
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
      query * word(step, ATTENTION_BIASQUERY) + (t << 2);
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

/** result = result * keep + sum over keys of p[t] * value t, sixteen dimensions at a time. */
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
  const factor = f32x4.splat(keep);
  let i = 0;
  for (; i + 16 <= size; i += 16) {
    const at = scratch + RESULT + (i << 2);
    let a = f32x4.mul(v128.load(at, 0), factor);
    let b = f32x4.mul(v128.load(at, 16), factor);
    let c = f32x4.mul(v128.load(at, 32), factor);
    let d = f32x4.mul(v128.load(at, 48), factor);
    let row = values;
    for (let t = 0; t < count; t++) {
      const p = v128.load32_splat(scratch + (t << 2));
      a = f32x4.add(a, f32x4.mul(p, elements(half, row, i)));
      b = f32x4.add(b, f32x4.mul(p, elements(half, row, i + 4)));
      c = f32x4.add(c, f32x4.mul(p, elements(half, row, i + 8)));
      d = f32x4.add(d, f32x4.mul(p, elements(half, row, i + 12)));
      row += stride;
    }
    v128.store(at, a, 0);
    v128.store(at, b, 16);
    v128.store(at, c, 32);
    v128.store(at, d, 48);
  }
  for (; i < size; i += 4) {
    const at = scratch + RESULT + (i << 2);
    let a = f32x4.mul(v128.load(at), factor);
    let row = values;
    for (let t = 0; t < count; t++) {
      const p = v128.load32_splat(scratch + (t << 2));
      a = f32x4.add(a, f32x4.mul(p, elements(half, row, i)));
      row += stride;
    }
    v128.store(at, a);
  }
}
