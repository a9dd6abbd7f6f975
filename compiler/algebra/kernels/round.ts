/**
 * Rounding under a quadratic loss Σ e H eᵀ, 8 rows at a time.
 *
 *   roundGrouped  GPTQ group by group; a group's scale is the one whose own rounding, errors fed back
 *                 inside the group, loses least
 *   roundOrdered  GPTQ column by column with scales that are given
 *   sweepGroups   block coordinate descent: every group is rounded again for what the others left
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
  ROUND_FRESH,
  ROUND_GROUP,
  ROUND_GROUP_INVERSE,
  ROUND_GROUP_OF,
  ROUND_GROUP_UT,
  ROUND_H,
  ROUND_K,
  ROUND_LEVEL,
  ROUND_OFFSETS,
  ROUND_PANELS,
  ROUND_Q,
  ROUND_RESCALE,
  ROUND_SCALE,
  ROUND_SCRATCH,
  ROUND_SYMMETRIC,
  ROUND_TOP,
  ROUND_UT,
  ROUND_W,
  ROUND_ZERO,
} from './abi.ts';
import { address, gather, half, inverse, snap, word } from './panel.ts';

/** Columns that `roundOrdered` handles before it looks back. */
const CHUNK: i32 = 16;

/** A gain has to be this share of a loss to count; below is f32 noise, and sweeps would not end. */
const NOISE: f32 = 1e-5;

/**
 * Rounds `count` columns with one scale a row: levels (unless `fixed`), errors e, loss Σ e² at `loss` [8].
 *
 * @param t - targets [count][8]
 * @param ut - transposed factor of these columns, rows `utRow` bytes apart
 */
function roundColumns(
  t: usize, ut: usize, utRow: usize, count: i32, err: usize, level: usize, fixed: bool, feedback: bool,
  book: usize, scale: usize, zero: usize, top: f32, loss: usize,
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
      q0 = snap(f32x4.mul(x0, inv0), lo0, hi0, book);
      q1 = snap(f32x4.mul(x1, inv1), lo1, hi1, book);
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
function chooseScale(
  block: usize, t: usize, ut: usize, utRow: usize, count: i32, beside: bool,
  scale: usize, zero: usize, best: usize, scratch: usize,
): void {
  const book = address(block, ROUND_BOOK);
  const top = <f32>word(block, ROUND_TOP);
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
  const steps = book ? max(load<f32>(book + 60), -load<f32>(book)) : symmetric ? middle - 1 : top;
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
      roundColumns(t, ut, utRow, count, err, level, false, feedback, book, s, z, top, loss);
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
function multiply(level: usize, count: i32, scale: usize, q: usize): void {
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
      roundColumns(t, here, K << 2, count, e + at, level + at, false, true, book, scale, zero, top, loss);
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
        roundColumns(x, pivot, 0, 1, e + at, level + at, false, false, book, scales + own, zeros + own, top, loss);
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

/**
 * One sweep of block coordinate descent. With the other groups as they are, the loss of a group is
 * (t - q) H_gg (t - q)ᵀ up to a constant, t = w + H_gg⁻¹ Σ_others H e; a group takes a new scale and new
 * codes when they lose less, and then single codes move while that helps.
 *
 * @returns groups of single rows that changed
 */
export function sweepGroups(block: usize): i32 {
  const K = word(block, ROUND_K);
  const group = word(block, ROUND_GROUP);
  const h = address(block, ROUND_H);
  const e = address(block, ROUND_E);
  const scratch = address(block, ROUND_SCRATCH);
  const t = scratch + 256;
  const rest = t + (group << 5);
  let scale = address(block, ROUND_SCALE);
  let zero = address(block, ROUND_ZERO);
  let changes = 0;
  for (let panel = 0; panel < word(block, ROUND_PANELS); panel++) {
    const offset = (<usize>panel * K) << 5;
    const w = address(block, ROUND_W) + offset;
    const q = address(block, ROUND_Q) + offset;
    const level = address(block, ROUND_LEVEL) + offset;
    for (let at = 0; at < K << 5; at += 16) {
      v128.store(e + at, f32x4.sub(v128.load(w + at), v128.load(q + at)));
    }
    for (let start = 0; start < K; start += group) {
      const count = min(group, K - start);
      const at = start << 5;
      othersLeave(block, start, count, w, rest, t);
      let changed = false;
      if (word(block, ROUND_RESCALE)) {
        changed = rescale(block, start, count, t, level + at, scale, zero, rest);
      }
      if (flip(block, h + ((<usize>start * K + start) << 2), K << 2, count, t, level + at, scale, zero, rest)) {
        changed = true;
      }
      if (changed) {
        changes++;
        multiply(level + at, count, scale, q + at);
        for (let i = at; i < at + (count << 5); i += 16) {
          v128.store(e + i, f32x4.sub(v128.load(w + i), v128.load(q + i)));
        }
      }
      scale += 32;
      zero += 32;
    }
  }
  return changes;
}

/** t = w + H_gg⁻¹ b with b = Σ_{j outside the group} H_kj e_j. */
function othersLeave(block: usize, start: i32, count: i32, w: usize, b: usize, t: usize): void {
  const K = word(block, ROUND_K);
  const group = word(block, ROUND_GROUP);
  const h = address(block, ROUND_H);
  const e = address(block, ROUND_E);
  const end = start + count;
  const row: usize = K << 2;
  memory.copy(t, w + (start << 5), count << 5);
  if (count == K) return;
  memory.fill(b, 0, count << 5);
  for (let j = 0; j < count; j += 4) {
    const rows = min(4, count - j);
    const from = h + <usize>(start + j) * row;
    gather(from, row, rows, e, start, b + (j << 5));
    gather(from + (end << 2), row, rows, e + (end << 5), K - end, b + (j << 5));
  }
  const inverses = address(block, ROUND_GROUP_INVERSE) + ((<usize>start * group) << 2);
  for (let j = 0; j < count; j += 4) {
    const rows = min(4, count - j);
    gather(inverses + (<usize>(j * group) << 2), group << 2, rows, b, count, t + (j << 5));
  }
}

/** Tries other scales for a group; where one loses less, it and its codes are taken. */
function rescale(
  block: usize, start: i32, count: i32, t: usize, level: usize, scale: usize, zero: usize, scratch: usize,
): bool {
  const group = word(block, ROUND_GROUP);
  const book = address(block, ROUND_BOOK);
  const top = <f32>word(block, ROUND_TOP);
  const ut = address(block, ROUND_GROUP_UT) + ((<usize>start * group) << 2);
  const utRow: usize = group << 2;
  const present = scratch;
  const best = scratch + 32;
  const s = scratch + 64;
  const z = scratch + 96;
  const err = scratch + 256;
  const levels = err + (count << 5);
  const rest = levels + (count << 5);
  roundColumns(t, ut, utRow, count, err, level, true, true, book, scale, zero, top, present);
  const changed = refit(block, start, count, t, level, scale, zero, present, rest);
  // without errors fed back a candidate's loss is no loss that could be compared
  if (!word(block, ROUND_FEEDBACK)) return changed;
  memory.copy(s, scale, 32);
  memory.copy(z, zero, 32);
  chooseScale(block, t, ut, utRow, count, word(block, ROUND_FRESH) == 0, s, z, best, rest);
  const less0 = f32x4.lt(v128.load(best, 0), f32x4.mul(v128.load(present, 0), f32x4.splat(1 - NOISE)));
  const less1 = f32x4.lt(v128.load(best, 16), f32x4.mul(v128.load(present, 16), f32x4.splat(1 - NOISE)));
  if (!v128.any_true(v128.or(less0, less1))) return changed;
  v128.store(scale, v128.bitselect(v128.load(s, 0), v128.load(scale, 0), less0), 0);
  v128.store(scale, v128.bitselect(v128.load(s, 16), v128.load(scale, 16), less1), 16);
  v128.store(zero, v128.bitselect(v128.load(z, 0), v128.load(zero, 0), less0), 0);
  v128.store(zero, v128.bitselect(v128.load(z, 16), v128.load(zero, 16), less1), 16);
  roundColumns(t, ut, utRow, count, err, levels, false, true, book, scale, zero, top, best);
  for (let at = 0; at < count << 5; at += 32) {
    v128.store(level + at, v128.bitselect(v128.load(levels + at, 0), v128.load(level + at, 0), less0), 0);
    v128.store(level + at, v128.bitselect(v128.load(levels + at, 16), v128.load(level + at, 16), less1), 16);
  }
  return true;
}

/** The scale of least loss for the levels as they are: cᵀHt / cᵀHc, rounded to f16. */
function refit(
  block: usize, start: i32, count: i32, t: usize, level: usize, scale: usize, zero: usize, present: usize, scratch: usize,
): bool {
  const K = word(block, ROUND_K);
  const group = word(block, ROUND_GROUP);
  const h = address(block, ROUND_H) + ((<usize>start * K + start) << 2);
  const out = scratch;
  const s = scratch + 128;
  const loss = scratch + 160;
  const err = scratch + 256;
  let n0 = f32x4.splat(0), n1 = n0, d0 = n0, d1 = n0;
  for (let j = 0; j < count; j += 4) {
    const rows = min(4, count - j);
    memory.fill(out, 0, 128);
    gather(h + ((<usize>j * K) << 2), K << 2, rows, level, count, out);
    for (let r = 0; r < rows; r++) {
      const at = (j + r) << 5;
      const x0 = v128.load(out + (r << 5), 0), x1 = v128.load(out + (r << 5), 16);
      n0 = f32x4.add(n0, f32x4.mul(x0, v128.load(t + at, 0)));
      n1 = f32x4.add(n1, f32x4.mul(x1, v128.load(t + at, 16)));
      d0 = f32x4.add(d0, f32x4.mul(x0, v128.load(level + at, 0)));
      d1 = f32x4.add(d1, f32x4.mul(x1, v128.load(level + at, 16)));
    }
  }
  const zeros = f32x4.splat(0);
  v128.store(s, half(f32x4.pmax(zeros, f32x4.mul(n0, inverse(d0)))), 0);
  v128.store(s, half(f32x4.pmax(zeros, f32x4.mul(n1, inverse(d1)))), 16);
  const ut = address(block, ROUND_GROUP_UT) + ((<usize>start * group) << 2);
  roundColumns(t, ut, group << 2, count, err, level, true, true, 0, s, zero, 0, loss);
  let changed = false;
  for (let side = 0; side < 32; side += 16) {
    const now = v128.load(loss + side);
    const then = v128.load(present + side);
    const less = f32x4.lt(now, f32x4.mul(then, f32x4.splat(1 - NOISE)));
    if (!v128.any_true(less)) continue;
    v128.store(scale + side, v128.bitselect(v128.load(s + side), v128.load(scale + side), less));
    v128.store(present + side, v128.bitselect(now, then, less));
    changed = true;
  }
  return changed;
}

/** Moves single codes of a group to where the loss is least, each given the others, until none moves. */
function flip(
  block: usize, h: usize, row: usize, count: i32, t: usize, level: usize, scale: usize, zero: usize, scratch: usize,
): bool {
  const book = address(block, ROUND_BOOK);
  const s0 = v128.load(scale, 0), s1 = v128.load(scale, 16);
  const inv0 = inverse(s0), inv1 = inverse(s1);
  const top = f32x4.splat(<f32>word(block, ROUND_TOP));
  const lo0 = f32x4.neg(v128.load(zero, 0)), lo1 = f32x4.neg(v128.load(zero, 16));
  const hi0 = f32x4.add(lo0, top), hi1 = f32x4.add(lo1, top);
  const gradient = scratch;
  const r = scratch + (count << 5);
  for (let at = 0; at < count << 5; at += 32) {
    v128.store(r + at, f32x4.sub(v128.load(t + at, 0), f32x4.mul(s0, v128.load(level + at, 0))), 0);
    v128.store(r + at, f32x4.sub(v128.load(t + at, 16), f32x4.mul(s1, v128.load(level + at, 16))), 16);
  }
  memory.fill(gradient, 0, count << 5);
  for (let j = 0; j < count; j += 4) {
    gather(h + <usize>j * row, row, min(4, count - j), r, count, gradient + (j << 5));
  }
  let any = false;
  for (let pass = 0; pass < 8; pass++) {
    let moved = false;
    for (let j = 0; j < count; j++) {
      const at = j << 5;
      const diagonal = load<f32>(h + <usize>j * row + (j << 2));
      const curve = f32x4.splat(diagonal);
      const step = f32x4.splat(<f32>1 / diagonal);
      const g0 = v128.load(gradient + at, 0), g1 = v128.load(gradient + at, 16);
      const l0 = v128.load(level + at, 0), l1 = v128.load(level + at, 16);
      // q + g / h is the best value of this column given the others
      const n0 = snap(f32x4.add(l0, f32x4.mul(f32x4.mul(g0, step), inv0)), lo0, hi0, book);
      const n1 = snap(f32x4.add(l1, f32x4.mul(f32x4.mul(g1, step), inv1)), lo1, hi1, book);
      let d0 = f32x4.mul(s0, f32x4.sub(n0, l0));
      let d1 = f32x4.mul(s1, f32x4.sub(n1, l1));
      // change of the loss: d (d h - 2 g), worth it when it is clearly below 0
      const c0 = f32x4.sub(f32x4.mul(d0, curve), f32x4.mul(f32x4.splat(2 - NOISE), g0));
      const c1 = f32x4.sub(f32x4.mul(d1, curve), f32x4.mul(f32x4.splat(2 - NOISE), g1));
      const m0 = f32x4.lt(f32x4.mul(d0, c0), f32x4.splat(0));
      const m1 = f32x4.lt(f32x4.mul(d1, c1), f32x4.splat(0));
      if (!v128.any_true(v128.or(m0, m1))) continue;
      moved = true;
      d0 = v128.and(d0, m0);
      d1 = v128.and(d1, m1);
      v128.store(level + at, v128.bitselect(n0, l0, m0), 0);
      v128.store(level + at, v128.bitselect(n1, l1, m1), 16);
      // row j of a symmetric matrix is its column j
      const column = h + <usize>j * row;
      for (let k = 0; k < count; k++) {
        const f = v128.load32_splat(column + (k << 2));
        const to = gradient + (k << 5);
        v128.store(to, f32x4.sub(v128.load(to, 0), f32x4.mul(f, d0)), 0);
        v128.store(to, f32x4.sub(v128.load(to, 16), f32x4.mul(f, d1)), 16);
      }
    }
    if (!moved) break;
    any = true;
  }
  return any;
}

/** Σ e H eᵀ over the rows of all panels, e = w - q, added in f64. */
export function quadraticLoss(block: usize): f64 {
  const K = word(block, ROUND_K);
  const h = address(block, ROUND_H);
  const e = address(block, ROUND_E);
  const out = address(block, ROUND_SCRATCH);
  let sum: f64 = 0;
  for (let panel = 0; panel < word(block, ROUND_PANELS); panel++) {
    const offset = (<usize>panel * K) << 5;
    const w = address(block, ROUND_W) + offset;
    const q = address(block, ROUND_Q) + offset;
    for (let at = 0; at < K << 5; at += 16) {
      v128.store(e + at, f32x4.sub(v128.load(w + at), v128.load(q + at)));
    }
    for (let j = 0; j < K; j += 4) {
      const rows = min(4, K - j);
      memory.fill(out, 0, 128);
      gather(h + ((<usize>j * K) << 2), K << 2, rows, e, K, out);
      for (let i = 0; i < rows << 3; i++) {
        sum += <f64>load<f32>(out + (i << 2)) * <f64>load<f32>(e + (j << 5) + (i << 2));
      }
    }
  }
  return sum;
}
