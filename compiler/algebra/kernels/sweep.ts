/**
 * Block coordinate descent after GPTQ, 8 rows at a time: every group is rounded again for what the others
 * left, and single codes move while the loss Σ e H eᵀ falls. Source: ../shared/ALGORITHMS.md Q6.
 */
import {
  ROUND_BOOK,
  ROUND_E,
  ROUND_FEEDBACK,
  ROUND_FRESH,
  ROUND_GROUP,
  ROUND_GROUP_INVERSE,
  ROUND_GROUP_UT,
  ROUND_H,
  ROUND_K,
  ROUND_LEVEL,
  ROUND_PANELS,
  ROUND_Q,
  ROUND_RESCALE,
  ROUND_SCALE,
  ROUND_SCRATCH,
  ROUND_STEP,
  ROUND_TOP,
  ROUND_W,
  ROUND_ZERO,
} from './abi.ts';
import { address, gather, half, inverse, snap, word } from './panel.ts';
import { chooseScale, multiply, roundColumns } from './round.ts';

/** A gain has to be this share of a loss to count; below is f32 noise, and sweeps would not end. */
const NOISE: f32 = 1e-5;

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
  const step = <f32>word(block, ROUND_STEP);
  const ut = address(block, ROUND_GROUP_UT) + ((<usize>start * group) << 2);
  const utRow: usize = group << 2;
  const present = scratch;
  const best = scratch + 32;
  const s = scratch + 64;
  const z = scratch + 96;
  const err = scratch + 256;
  const levels = err + (count << 5);
  const rest = levels + (count << 5);
  roundColumns(t, ut, utRow, count, err, level, true, true, book, scale, zero, top, step, present);
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
  roundColumns(t, ut, utRow, count, err, levels, false, true, book, scale, zero, top, step, best);
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
  roundColumns(t, ut, group << 2, count, err, level, true, true, 0, s, zero, 0, 1, loss);
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
  const step = <f32>word(block, ROUND_STEP);
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
      const along = f32x4.splat(<f32>1 / diagonal);
      const g0 = v128.load(gradient + at, 0), g1 = v128.load(gradient + at, 16);
      const l0 = v128.load(level + at, 0), l1 = v128.load(level + at, 16);
      // q + g / h is the best value of this column given the others
      const n0 = snap(f32x4.add(l0, f32x4.mul(f32x4.mul(g0, along), inv0)), lo0, hi0, step, book);
      const n1 = snap(f32x4.add(l1, f32x4.mul(f32x4.mul(g1, along), inv1)), lo1, hi1, step, book);
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
