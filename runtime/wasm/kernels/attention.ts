/**
 * ATTENTION: softmax(q k^T * scale ...) v with an online softmax over blocks of 64 keys, so that working
 * memory is the same at any length. Online softmax: Milakov & Gimelshein 2018 (arXiv:1805.02867).
 *
 * A tile is four rows that share keys and values: queries and heads of one group, row = query * heads of
 * the group + head. Keys and values are read once for the four; scores lie as [key][row], so that a
 * vector holds one key's scores for the tile and the softmax runs on four rows at once. Rows beyond the
 * last repeat it. Threads share the tiles of all groups, or the groups where there is one tile.
 *
 * Scratch: scores f32 [64][4] at 0, results f32 [4][256] at 1024, queries f32 [4][256] at 5120.
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
import { attendSingle } from './attention-single.ts';
import { addValuesInOrder } from './attention-values.ts';
import { HALF_MASK, address, constant, float, shareStart, word } from './core.ts';
import { exp, tanh } from './math.ts';

/** Keys a block. */
const BLOCK = 64;
export const RESULT: usize = 1024;
const QUERY: usize = 5120;
/** Bytes of a row of results or queries. */
const ROW: usize = 1024;
/**
 * An f16 whose bits were moved to their places in an f32 is 2^112 too small. Products with what was
 * multiplied by the first factor stay normal numbers; sums are multiplied by the second. Both are exact.
 */
const CARRIED: f32 = 1152921504606846976; // 2^60
const REMAINING: f32 = 4503599627370496; // 2^52

export function attention(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const groups = word(step, ATTENTION_KVHEADS);
  const heads = word(step, ATTENTION_HEADS) / groups;
  const rows = word(step, ATTENTION_QUERIES) * heads;
  const tiles = (rows + 3) >> 2;
  const batch = word(step, ATTENTION_BATCH);
  if (tiles == 1) {
    const items = batch * groups;
    const end = shareStart(items, thread + 1, threads);
    for (let i = shareStart(items, thread, threads); i < end; i++) {
      if (rows == 1) attendSingle(step, scratch, i / groups, i % groups);
      else attendTile(step, scratch, i / groups, i % groups, 0, heads, rows);
    }
    return;
  }
  const end = shareStart(batch * tiles, thread + 1, threads);
  for (let group = 0; group < groups; group++) {
    for (let i = shareStart(batch * tiles, thread, threads); i < end; i++) {
      attendTile(step, scratch, i / tiles, group, (i % tiles) << 2, heads, rows);
    }
  }
}

function attendTile(
  step: usize,
  scratch: usize,
  batch: i32,
  group: i32,
  first: i32,
  heads: i32,
  rows: i32,
): void {
  const size = word(step, ATTENTION_SIZE);
  const valueSize = word(step, ATTENTION_VSIZE);
  const half = word(step, ATTENTION_KVTYPE) == TYPE_F16;
  // four heads or queries, or the three heads of a group
  const kind = (half ? 1 : 0) + (rows - first == 3 ? 2 : 0);
  const adder = kind < 2 && rows == heads ? kind + 4 : kind;
  const keyToken = word(step, ATTENTION_KTOKEN);
  const valueToken = word(step, ATTENTION_VTOKEN);
  const keys =
    address(step, ATTENTION_K) + batch * word(step, ATTENTION_KBATCH) +
    group * word(step, ATTENTION_KHEAD);
  const values =
    address(step, ATTENTION_V) + batch * word(step, ATTENTION_VBATCH) +
    group * word(step, ATTENTION_VHEAD);
  const q = address(step, ATTENTION_Q) + batch * word(step, ATTENTION_QBATCH);
  const sinks = address(step, ATTENTION_SINKS);

  // queries and probabilities carry part of the factor that f16 keys and values lack
  const scale = float(step, ATTENTION_SCALE) * (half ? CARRIED : 1);
  const carried = f32x4.splat(half ? CARRIED : 1);
  // each row's query, and the keys it sees: from..to-1
  let from = i32x4.splat(0);
  let to = from;
  let peak = f32x4.splat(-Infinity);
  let start = i32.MAX_VALUE;
  let stop = 0;
  for (let r = 0; r < 4; r++) {
    const row = min(first + r, rows - 1);
    const query = row / heads;
    const head = group * heads + (row - query * heads);
    const at = q + query * word(step, ATTENTION_QTOKEN) + head * (size << 2);
    scaleRow(at, scratch + QUERY + r * ROW, size, scale);
    const low = firstKey(step, query);
    const high = lastKey(step, query);
    start = min(start, low);
    stop = max(stop, high);
    from = withLane(from, r, low);
    to = withLane(to, r, high);
    if (sinks) peak = withLane(peak, r, load<i32>(sinks + (head << 2)));
  }
  let sum = f32x4.splat(sinks ? 1 : 0);
  memory.fill(scratch + RESULT, 0, 4 * ROW);
  for (let t = start; t < stop; t += BLOCK) {
    const count = min(BLOCK, stop - t);
    unchecked(scorers[kind])(scratch, keys + t * keyToken, keyToken, size, count);
    adjustScores(step, scratch, batch, group, first, heads, rows, t, count, from, to);
    let newPeak = peak;
    for (let i = 0; i < count; i++) newPeak = f32x4.pmax(newPeak, v128.load(scratch + (i << 4)));
    // a row that has seen no key yet keeps a peak of -infinity, from which nothing can be subtracted
    const none = f32x4.eq(newPeak, f32x4.splat(-Infinity));
    const shift = v128.andnot(newPeak, none);
    const keep = exp(f32x4.sub(peak, shift));
    let total = f32x4.splat(0);
    for (let i = 0; i < count; i++) {
      const e = exp(f32x4.sub(v128.load(scratch + (i << 4)), shift));
      v128.store(scratch + (i << 4), f32x4.mul(e, carried));
      total = f32x4.add(total, e);
    }
    peak = newPeak;
    sum = f32x4.add(f32x4.mul(sum, keep), total);
    unchecked(adders[adder])(scratch, values + t * valueToken, valueToken, valueSize, count, keep);
  }
  const y = address(step, ATTENTION_Y) + batch * word(step, ATTENTION_YBATCH);
  const empty = f32x4.eq(sum, f32x4.splat(0));
  const inverse = f32x4.mul(f32x4.div(f32x4.splat(1), sum), f32x4.splat(half ? REMAINING : 1));
  const factor = v128.andnot(inverse, empty);
  v128.store(scratch, factor);
  for (let r = 0; r < 4 && first + r < rows; r++) {
    const query = (first + r) / heads;
    const head = group * heads + (first + r - query * heads);
    const at = y + query * word(step, ATTENTION_YTOKEN) + head * (valueSize << 2);
    scaleRow(scratch + RESULT + r * ROW, at, valueSize, load<f32>(scratch + (r << 2)));
  }
}

/** First key that a query sees. */
export function firstKey(step: usize, query: i32): i32 {
  const window = word(step, ATTENTION_WINDOW);
  return window > 0 ? max(0, word(step, ATTENTION_PAST) + query - window + 1) : 0;
}

/** One more than the last key that a query sees. */
export function lastKey(step: usize, query: i32): i32 {
  const position = word(step, ATTENTION_PAST) + query;
  const window = word(step, ATTENTION_WINDOW);
  const keys = word(step, ATTENTION_KEYS);
  if (word(step, ATTENTION_CAUSAL)) return min(keys, position + 1);
  return window > 0 ? min(keys, position + window) : keys;
}

/** `x` with i32 lane `lane` replaced, where the lane is no constant. */
function withLane(x: v128, lane: i32, value: i32): v128 {
  const here = i32x4.eq(i32x4(0, 1, 2, 3), i32x4.splat(lane));
  return v128.bitselect(i32x4.splat(value), x, here);
}

/** y = x * factor over `count` (a multiple of 4) f32. */
export function scaleRow(x: usize, y: usize, count: i32, factor: f32): void {
  const f = f32x4.splat(factor);
  for (let i = 0; i < count; i += 4) {
    v128.store(y + (i << 2), f32x4.mul(v128.load(x + (i << 2)), f));
  }
}

/** Four values at element `i` of a row; f16 are 2^112 too small. */
@inline
export function elements(half: bool, row: usize, i: i32, mask: v128): v128 {
  if (!half) return v128.load(row + (i << 2));
  return v128.and(i32x4.shl(v128.load16x4_s(row + (i << 1)), 13), mask);
}

// Called through tables so that each stays a function of its own, which engines compile better than one
// large one.
type Scorer = (scratch: usize, keys: usize, stride: i32, size: i32, count: i32) => void;
type Adder = (
  scratch: usize,
  values: usize,
  stride: i32,
  size: i32,
  count: i32,
  keep: v128,
) => void;

/** By KV type, f32 and f16, for four rows; then for three. */
const scorers: StaticArray<Scorer> = [
  (scratch, keys, stride, size, count) => {
    scoreKeys(false, 4, scratch, keys, stride, size, count);
  },
  (scratch, keys, stride, size, count) => {
    scoreKeys(true, 4, scratch, keys, stride, size, count);
  },
  (scratch, keys, stride, size, count) => {
    scoreKeys(false, 3, scratch, keys, stride, size, count);
  },
  (scratch, keys, stride, size, count) => {
    scoreKeys(true, 3, scratch, keys, stride, size, count);
  },
];
/** The same; then for a single query of four heads. */
const adders: StaticArray<Adder> = [
  (scratch, values, stride, size, count, keep) => {
    addValues(false, scratch, values, stride, size, count, keep);
  },
  (scratch, values, stride, size, count, keep) => {
    addValues(true, scratch, values, stride, size, count, keep);
  },
  (scratch, values, stride, size, count, keep) => {
    addValuesInOrder(false, 3, scratch, values, stride, size, count, keep);
  },
  (scratch, values, stride, size, count, keep) => {
    addValuesInOrder(true, 3, scratch, values, stride, size, count, keep);
  },
  (scratch, values, stride, size, count, keep) => {
    addValuesInOrder(false, 4, scratch, values, stride, size, count, keep);
  },
  (scratch, values, stride, size, count, keep) => {
    addValuesInOrder(true, 4, scratch, values, stride, size, count, keep);
  },
];

/** scores[t][row] = query row . key t, two keys at a time; the fourth of three rows is the third again. */
@inline
function scoreKeys(
  half: bool,
  rows: i32,
  scratch: usize,
  keys: usize,
  stride: i32,
  size: i32,
  count: i32,
): void {
  const mask = constant(HALF_MASK);
  const remaining = f32x4.splat(REMAINING);
  for (let t = 0; t < count; t += 2) {
    const other = t + 1 < count ? keys + stride : keys;
    let a0 = f32x4.splat(0), a1 = a0, a2 = a0, a3 = a0;
    let b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    let q = scratch + QUERY;
    for (let i = 0; i < size; i += 4) {
      const k = elements(half, keys, i, mask);
      const l = elements(half, other, i, mask);
      let x = v128.load(q, 0);
      a0 = f32x4.add(a0, f32x4.mul(x, k));
      b0 = f32x4.add(b0, f32x4.mul(x, l));
      x = v128.load(q, 1024);
      a1 = f32x4.add(a1, f32x4.mul(x, k));
      b1 = f32x4.add(b1, f32x4.mul(x, l));
      x = v128.load(q, 2048);
      a2 = f32x4.add(a2, f32x4.mul(x, k));
      b2 = f32x4.add(b2, f32x4.mul(x, l));
      if (rows == 4) {
        x = v128.load(q, 3072);
        a3 = f32x4.add(a3, f32x4.mul(x, k));
        b3 = f32x4.add(b3, f32x4.mul(x, l));
      }
      q += 16;
    }
    let a = sumRows(a0, a1, a2, rows == 4 ? a3 : a2);
    let b = sumRows(b0, b1, b2, rows == 4 ? b3 : b2);
    if (half) {
      a = f32x4.mul(a, remaining);
      b = f32x4.mul(b, remaining);
    }
    v128.store(scratch + (t << 4), a, 0);
    v128.store(scratch + (t << 4), b, 16);
    keys += stride * 2;
  }
}

/** The lane sums of four vectors as one vector. */
@inline
export function sumRows(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.add(v128.shuffle<f32>(a, b, 0, 4, 1, 5), v128.shuffle<f32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.add(v128.shuffle<f32>(c, d, 0, 4, 1, 5), v128.shuffle<f32>(c, d, 2, 6, 3, 7));
  return f32x4.add(v128.shuffle<f32>(ab, cd, 0, 1, 4, 5), v128.shuffle<f32>(ab, cd, 2, 3, 6, 7));
}

/** Softcap, bias, mask; what a row does not see becomes -infinity. */
function adjustScores(
  step: usize,
  scores: usize,
  batch: i32,
  group: i32,
  first: i32,
  heads: i32,
  rows: i32,
  start: i32,
  count: i32,
  from: v128,
  to: v128,
): void {
  const cap = float(step, ATTENTION_SOFTCAP);
  if (cap > 0) {
    const inverse = f32x4.splat(1 / cap);
    for (let i = 0; i < count; i++) {
      const x = f32x4.mul(v128.load(scores + (i << 4)), inverse);
      v128.store(scores + (i << 4), f32x4.mul(tanh(x), f32x4.splat(cap)));
    }
  }
  const bias = address(step, ATTENTION_BIAS);
  if (bias) {
    for (let r = 0; r < 4; r++) {
      const row = min(first + r, rows - 1);
      const query = row / heads;
      const head = group * heads + (row - query * heads);
      const line =
        bias + batch * word(step, ATTENTION_BIASBATCH) + head * word(step, ATTENTION_BIASHEAD) +
        query * word(step, ATTENTION_BIASQUERY) + (start << 2);
      for (let i = 0; i < count; i++) {
        const at = scores + (i << 4) + (r << 2);
        store<f32>(at, load<f32>(at) + load<f32>(line + (i << 2)));
      }
    }
  }
  const mask = address(step, ATTENTION_MASK);
  if (mask) {
    const type = word(step, ATTENTION_MASKTYPE);
    const shift = type == TYPE_I64 ? 3 : type == TYPE_I32 ? 2 : 0;
    const line = mask + batch * word(step, ATTENTION_MASKROW) + (start << shift);
    for (let i = 0; i < count; i++) {
      const at = line + (i << shift);
      const kept =
        shift == 3 ? load<i64>(at) != 0 : shift == 2 ? load<i32>(at) != 0 : load<u8>(at) != 0;
      if (!kept) v128.store(scores + (i << 4), f32x4.splat(-Infinity));
    }
  }
  // only blocks at the edge of what some row sees
  const inside = v128.and(
    i32x4.le_s(from, i32x4.splat(start)),
    i32x4.ge_s(to, i32x4.splat(start + count)),
  );
  if (i32x4.all_true(inside)) return;
  for (let i = 0; i < count; i++) {
    const t = i32x4.splat(start + i);
    const seen = v128.and(i32x4.le_s(from, t), i32x4.gt_s(to, t));
    const x = v128.load(scores + (i << 4));
    v128.store(scores + (i << 4), v128.bitselect(x, f32x4.splat(-Infinity), seen));
  }
}

/** results[row] = results[row] * keep[row] + sum over keys of p[t][row] * value t, 8 dimensions of four rows at a time. */
@inline
function addValues(
  half: bool,
  scratch: usize,
  values: usize,
  stride: i32,
  size: i32,
  count: i32,
  keep: v128,
): void {
  const mask = constant(HALF_MASK);
  const k0 = f32x4.splat(f32x4.extract_lane(keep, 0));
  const k1 = f32x4.splat(f32x4.extract_lane(keep, 1));
  const k2 = f32x4.splat(f32x4.extract_lane(keep, 2));
  const k3 = f32x4.splat(f32x4.extract_lane(keep, 3));
  // a size that is no multiple of 8 ends with dimensions of which the second four are not kept
  for (let i = 0; i < size; i += 8) {
    const next = i + 4 < size ? i + 4 : i;
    const at = scratch + RESULT + (i << 2);
    let a0 = f32x4.mul(v128.load(at, 0), k0), b0 = f32x4.mul(v128.load(at, 16), k0);
    let a1 = f32x4.mul(v128.load(at, 1024), k1), b1 = f32x4.mul(v128.load(at, 1040), k1);
    let a2 = f32x4.mul(v128.load(at, 2048), k2), b2 = f32x4.mul(v128.load(at, 2064), k2);
    let a3 = f32x4.mul(v128.load(at, 3072), k3), b3 = f32x4.mul(v128.load(at, 3088), k3);
    let row = values;
    let p = scratch;
    for (let t = 0; t < count; t++) {
      const v = elements(half, row, i, mask);
      const u = elements(half, row, next, mask);
      let x = v128.load32_splat(p, 0);
      a0 = f32x4.add(a0, f32x4.mul(x, v));
      b0 = f32x4.add(b0, f32x4.mul(x, u));
      x = v128.load32_splat(p, 4);
      a1 = f32x4.add(a1, f32x4.mul(x, v));
      b1 = f32x4.add(b1, f32x4.mul(x, u));
      x = v128.load32_splat(p, 8);
      a2 = f32x4.add(a2, f32x4.mul(x, v));
      b2 = f32x4.add(b2, f32x4.mul(x, u));
      x = v128.load32_splat(p, 12);
      a3 = f32x4.add(a3, f32x4.mul(x, v));
      b3 = f32x4.add(b3, f32x4.mul(x, u));
      row += stride;
      p += 16;
    }
    v128.store(at, a0, 0);
    v128.store(at, a1, 1024);
    v128.store(at, a2, 2048);
    v128.store(at, a3, 3072);
    if (next == i) continue;
    v128.store(at, b0, 16);
    v128.store(at, b1, 1040);
    v128.store(at, b2, 2064);
    v128.store(at, b3, 3088);
  }
}
