/**
 * Rounding under a quadratic loss Σ e H eᵀ, 8 rows at a time.
 *
 *   roundGrouped  GPTQ group by group; a group's scale is the one whose own rounding, errors fed back
 *                 inside the group, loses least
 *   roundOrdered  GPTQ column by column with scales that are given
 *
 * Sweeps of coordinate descent afterwards are in sweep.ts.
 *
 * GPTQ in its left-looking form: with U upper, UᵀU = H⁻¹, and e_i = (x_i - q_i) / U_ii,
 * x_j = w_j - Σ_{i<j} e_i U_ij is what column j has to be rounded to, and Σ e_i² is the loss itself once
 * all columns are done. It is the usual update by blocks of columns with the sums taken in another order.
 * Source: ../shared/ALGORITHMS.md B4, Q6.
 */
import {
  ROUND_BOOK,
  ROUND_E,
  ROUND_FACTORS,
  ROUND_FACTOR_COUNT,
  ROUND_FEEDBACK,
  ROUND_GROUP,
  ROUND_GROUP_OF,
  ROUND_GROUP_UT,
  ROUND_K,
  ROUND_LEVEL,
  ROUND_OFFSETS,
  ROUND_PANELS,
  ROUND_Q,
  ROUND_SCALE,
  ROUND_SCRATCH,
  ROUND_STEP,
  ROUND_SYMMETRIC,
  ROUND_TOP,
  ROUND_UT,
  ROUND_W,
  ROUND_ZERO,
} from './abi.ts';
import { address, gather, half, inverse, snap, word } from './panel.ts';

/** Columns that `roundOrdered` handles before it looks back. */
const CHUNK: i32 = 16;

/**
 * Rounds `count` columns with one scale a row: levels (unless `fixed`), errors e, loss Σ e² at `loss` [8].
 *
 * @param t - targets [count][8]
 * @param ut - transposed factor of these columns, rows `utRow` bytes apart
 */
export function roundColumns(
  t: usize, ut: usize, utRow: usize, count: i32, err: usize, level: usize, fixed: bool, feedback: bool,
  book: usize, scale: usize, zero: usize, top: f32, step: f32, loss: usize,
): void {
  const s0 = v128.load(scale, 0), s1 = v128.load(scale, 16);
  const inv0 = inverse(s0), inv1 = inverse(s1);
  const lo0 = f32x4.neg(v128.load(zero, 0)), lo1 = f32x4.neg(v128.load(zero, 16));
  const hi0 = f32x4.add(lo0, f32x4.splat(top)), hi1 = f32x4.add(lo1, f32x4.splat(top));
  let l0 = f32x4.splat(0), l1 = l0;
  for (let j = 0; j < count; j++) {
    let x0 = v128.load(t, 0), x1 = v128.load(t, 16);
    if (feedback) {
      let y0 = f32x4.splat(0), y1 = y0;
      let at = err;
      let u = ut;
      let i = 0;
      for (; i + 2 <= j; i += 2) {
        let f = v128.load32_splat(u, 0);
        x0 = f32x4.sub(x0, f32x4.mul(f, v128.load(at, 0)));
        x1 = f32x4.sub(x1, f32x4.mul(f, v128.load(at, 16)));
        f = v128.load32_splat(u, 4);
        y0 = f32x4.add(y0, f32x4.mul(f, v128.load(at, 32)));
        y1 = f32x4.add(y1, f32x4.mul(f, v128.load(at, 48)));
        at += 64;
        u += 8;
      }
      if (i < j) {
        const f = v128.load32_splat(u, 0);
        x0 = f32x4.sub(x0, f32x4.mul(f, v128.load(at, 0)));
        x1 = f32x4.sub(x1, f32x4.mul(f, v128.load(at, 16)));
      }
      x0 = f32x4.sub(x0, y0);
      x1 = f32x4.sub(x1, y1);
    }
    const pivot = f32x4.splat(<f32>1 / load<f32>(ut + (j << 2)));
    const to = level + (j << 5);
    let q0: v128, q1: v128;
    if (fixed) {
      q0 = v128.load(to, 0);
      q1 = v128.load(to, 16);
    } else {
      q0 = snap(f32x4.mul(x0, inv0), lo0, hi0, step, book);
      q1 = snap(f32x4.mul(x1, inv1), lo1, hi1, step, book);
      v128.store(to, q0, 0);
      v128.store(to, q1, 16);
    }
    const e0 = f32x4.mul(f32x4.sub(x0, f32x4.mul(s0, q0)), pivot);
    const e1 = f32x4.mul(f32x4.sub(x1, f32x4.mul(s1, q1)), pivot);
    v128.store(err + (j << 5), e0, 0);
    v128.store(err + (j << 5), e1, 16);
    l0 = f32x4.add(l0, f32x4.mul(e0, e0));
    l1 = f32x4.add(l1, f32x4.mul(e1, e1));
    t += 32;
    ut += utRow;
  }
  v128.store(loss, l0, 0);
  v128.store(loss, l1, 16);
}

/** Largest positive and largest negative magnitude of [count][8], at `out` [8] and `out` + 32. */
function range(t: usize, count: i32, out: usize): void {
  let h0 = f32x4.splat(0), h1 = h0, l0 = h0, l1 = h0;
  for (let j = 0; j < count; j++) {
    const x0 = v128.load(t, 0), x1 = v128.load(t, 16);
    h0 = f32x4.pmax(h0, x0);
    h1 = f32x4.pmax(h1, x1);
    l0 = f32x4.pmax(l0, f32x4.neg(x0));
    l1 = f32x4.pmax(l1, f32x4.neg(x1));
    t += 32;
  }
  v128.store(out, h0, 0);
  v128.store(out, h1, 16);
  v128.store(out, l0, 32);
  v128.store(out, l1, 48);
}

/**
 * Chooses scale and zero point [8] of a group by the loss of its rounding; `best` [8] is that loss.
 * With `beside`, candidates are beside what `scale` and `zero` hold, else from the range of the targets.
 * Scratch: [2 * group + 16][8].
 */
export function chooseScale(
  block: usize, t: usize, ut: usize, utRow: usize, count: i32, beside: bool,
  scale: usize, zero: usize, best: usize, scratch: usize,
): void {
  const book = address(block, ROUND_BOOK);
  const top = <f32>word(block, ROUND_TOP);
  const step = <f32>word(block, ROUND_STEP);
  const symmetric = word(block, ROUND_SYMMETRIC) != 0 || book != 0;
  const feedback = word(block, ROUND_FEEDBACK) != 0;
  const factors = address(block, ROUND_FACTORS);
  const factorCount = word(block, ROUND_FACTOR_COUNT);
  const offsets = symmetric ? 0 : word(block, ROUND_OFFSETS);
  const ends = scratch;
  const s = scratch + 64;
  const z = scratch + 96;
  const loss = scratch + 128;
  const base = scratch + 160;
  const err = scratch + 512;
  const level = err + (count << 5);
  const middle = book ? <f32>0 : <f32>((word(block, ROUND_TOP) + 1) >> 1);
  const steps = book ? max(load<f32>(book + 60), -load<f32>(book)) : symmetric ? top - middle : top;
  if (beside) {
    memory.copy(base, scale, 32);
    memory.copy(base + 32, zero, 32);
  } else range(t, count, ends);
  v128.store(best, f32x4.splat(Infinity), 0);
  v128.store(best, f32x4.splat(Infinity), 16);
  for (let f = 0; f < factorCount; f++) {
    const factor = f32x4.splat(load<f32>(factors + (f << 2)));
    for (let offset = -offsets; offset <= offsets; offset++) {
      for (let side = 0; side < 32; side += 16) {
        let candidate: v128, zeroPoint: v128;
        if (beside) {
          candidate = half(f32x4.mul(v128.load(base + side), factor));
          zeroPoint = v128.load(base + side, 32);
        } else {
          const high = v128.load(ends + side);
          const low = v128.load(ends + side, 32);
          const full = symmetric ? f32x4.pmax(high, low) : f32x4.add(high, low);
          candidate = half(f32x4.div(f32x4.mul(full, factor), f32x4.splat(steps)));
          zeroPoint = symmetric
            ? f32x4.splat(middle)
            : f32x4.nearest(f32x4.mul(f32x4.mul(low, factor), inverse(candidate)));
        }
        if (!symmetric) {
          zeroPoint = f32x4.add(zeroPoint, f32x4.splat(<f32>offset));
          zeroPoint = f32x4.pmin(f32x4.pmax(zeroPoint, f32x4.splat(0)), f32x4.splat(top));
        }
        v128.store(s + side, candidate);
        v128.store(z + side, zeroPoint);
      }
      roundColumns(t, ut, utRow, count, err, level, false, feedback, book, s, z, top, step, loss);
      for (let side = 0; side < 32; side += 16) {
        const now = v128.load(loss + side);
        const less = f32x4.lt(now, v128.load(best + side));
        v128.store(best + side, v128.bitselect(now, v128.load(best + side), less));
        v128.store(scale + side, v128.bitselect(v128.load(s + side), v128.load(scale + side), less));
        v128.store(zero + side, v128.bitselect(v128.load(z + side), v128.load(zero + side), less));
      }
    }
  }
}

/** q = scale * level for [count][8]. */
export function multiply(level: usize, count: i32, scale: usize, q: usize): void {
  const s0 = v128.load(scale, 0), s1 = v128.load(scale, 16);
  for (let i = 0; i < count; i++) {
    v128.store(q, f32x4.mul(s0, v128.load(level, 0)), 0);
    v128.store(q, f32x4.mul(s1, v128.load(level, 16)), 16);
    q += 32;
    level += 32;
  }
}

/** t [count][8] = w - Σ over the columns before `start` of their errors times U. */
function targets(w: usize, ut: usize, K: i32, e: usize, start: i32, count: i32, out: usize, t: usize): void {
  for (let j = 0; j < count; j += 4) {
    const rows = min(4, count - j);
    memory.fill(out, 0, 128);
    gather(ut + ((<usize>(start + j) * K) << 2), K << 2, rows, e, start, out);
    for (let r = 0; r < rows << 5; r += 16) {
      const at = (j << 5) + r;
      v128.store(t + at, f32x4.sub(v128.load(w + (start << 5) + at), v128.load(out + r)));
    }
  }
}

/** GPTQ; scales are chosen as their group is entered. */
export function roundGrouped(block: usize): void {
  const K = word(block, ROUND_K);
  const group = word(block, ROUND_GROUP);
  const ut = address(block, ROUND_UT);
  const e = address(block, ROUND_E);
  const scratch = address(block, ROUND_SCRATCH);
  const loss = scratch;
  const t = scratch + 256;
  const rest = t + (group << 5);
  const book = address(block, ROUND_BOOK);
  const top = <f32>word(block, ROUND_TOP);
  const step = <f32>word(block, ROUND_STEP);
  let scale = address(block, ROUND_SCALE);
  let zero = address(block, ROUND_ZERO);
  for (let panel = 0; panel < word(block, ROUND_PANELS); panel++) {
    const offset = (<usize>panel * K) << 5;
    const w = address(block, ROUND_W) + offset;
    const q = address(block, ROUND_Q) + offset;
    const level = address(block, ROUND_LEVEL) + offset;
    for (let start = 0; start < K; start += group) {
      const count = min(group, K - start);
      const at = start << 5;
      const here = ut + ((<usize>start * K + start) << 2);
      targets(w, ut, K, e, start, count, loss + 64, t);
      chooseScale(block, t, here, K << 2, count, false, scale, zero, loss, rest);
      roundColumns(t, here, K << 2, count, e + at, level + at, false, true, book, scale, zero, top, step, loss);
      multiply(level + at, count, scale, q + at);
      scale += 32;
      zero += 32;
    }
  }
}

/** GPTQ in a given order of columns, with scales that are given. */
export function roundOrdered(block: usize, groups: i32): void {
  const K = word(block, ROUND_K);
  const ut = address(block, ROUND_UT);
  const e = address(block, ROUND_E);
  const scratch = address(block, ROUND_SCRATCH);
  const loss = scratch;
  const t = scratch + 256;
  const book = address(block, ROUND_BOOK);
  const top = <f32>word(block, ROUND_TOP);
  const step = <f32>word(block, ROUND_STEP);
  const groupOf = address(block, ROUND_GROUP_OF);
  for (let panel = 0; panel < word(block, ROUND_PANELS); panel++) {
    const offset = (<usize>panel * K) << 5;
    const w = address(block, ROUND_W) + offset;
    const q = address(block, ROUND_Q) + offset;
    const level = address(block, ROUND_LEVEL) + offset;
    const scales = address(block, ROUND_SCALE) + (<usize>panel * groups << 5);
    const zeros = address(block, ROUND_ZERO) + (<usize>panel * groups << 5);
    for (let start = 0; start < K; start += CHUNK) {
      const count = min(CHUNK, K - start);
      targets(w, ut, K, e, start, count, loss + 64, t);
      for (let j = 0; j < count; j++) {
        const column = start + j;
        const at = column << 5;
        const own = load<i32>(groupOf + (column << 2)) << 5;
        const x = t + (j << 5);
        // what the columns of this chunk before it left
        memory.fill(loss + 64, 0, 32);
        gather(ut + ((<usize>column * K + start) << 2), 0, 1, e + (start << 5), j, loss + 64);
        v128.store(x, f32x4.sub(v128.load(x, 0), v128.load(loss, 64)), 0);
        v128.store(x, f32x4.sub(v128.load(x, 16), v128.load(loss, 80)), 16);
        const pivot = ut + ((<usize>column * K + column) << 2);
        roundColumns(x, pivot, 0, 1, e + at, level + at, false, false, book, scales + own, zeros + own, top, step, loss);
        multiply(level + at, 1, scales + own, q + at);
      }
    }
  }
}

/** Scales of every group by the loss of its rounding with the Hessian of that group alone. */
export function chooseScales(block: usize): void {
  const K = word(block, ROUND_K);
  const group = word(block, ROUND_GROUP);
  const scratch = address(block, ROUND_SCRATCH);
  let scale = address(block, ROUND_SCALE);
  let zero = address(block, ROUND_ZERO);
  for (let panel = 0; panel < word(block, ROUND_PANELS); panel++) {
    const w = address(block, ROUND_W) + ((<usize>panel * K) << 5);
    for (let start = 0; start < K; start += group) {
      const count = min(group, K - start);
      const ut = address(block, ROUND_GROUP_UT) + ((<usize>start * group) << 2);
      chooseScale(block, w + (start << 5), ut, group << 2, count, false, scale, zero, scratch, scratch + 256);
      scale += 32;
      zero += 32;
    }
  }
}

