/**
 * Rounding to nearest with a scale, and perhaps a zero point, per group of a row, the clip chosen by
 * squared error; see compiler/quant/affine.ts for the formulas.
 *
 * All candidates are tried in f32, four values at a time. Those whose error may be the least, given what
 * f32 can be wrong by, are then compared in f64 in a fixed order, so that what is chosen is what a search
 * in f64 alone chooses.
 */

/** Adding and subtracting it rounds a double of moderate size to an integer, ties to even. */
const MAGIC: f64 = 6755399441055744;

/** Factors of the clip search, 1, 0.98, …, 0.5, and errors of them in f32, with two zero points each. */
const STEPS: i32 = 26;
const errors: usize = memory.data(8 * STEPS, 16);

/** Largest finite f16. */
const HALF_MAX: f64 = 65504;

/** The f16 nearest to a value in 0..65504. */
@inline
function half(value: f64): f64 {
  // the smallest normal f16; below it, steps have one size
  if (value < 6.103515625e-5) return Math.round(value * 16777216) / 16777216;
  // Veltkamp's split: the upper 11 of 53 bits
  const product = value * 4398046511105;
  return product - (product - value);
}

/** The zero point nearest to where the range wants it; `second` is the next one, for grids that have both. */
@inline
function zeroOf(low: f64, factor: f64, scale: f64, span: f64, second: bool): f64 {
  const exact = (-low * factor) / scale;
  const zero = Math.round(exact);
  return Math.max(0, Math.min(span, !second ? zero : exact < zero ? zero - 1 : zero + 1));
}

/** Half when levels lie on both sides of zero: levels are integers plus this. */
@inline
function offOf(highest: f64): f64 {
  return highest - Math.floor(highest);
}

@inline
function levelOf(value: f64, inverse: f64, lowest: f64, highest: f64, off: f64): f64 {
  const level = value * inverse - off + MAGIC - MAGIC + off;
  return level < lowest ? lowest : level > highest ? highest : level;
}

/** Squared error of `count` f32 at one distance of levels, in f32; infinite once it is above `limit`. */
function roughError(at: usize, count: i32, distance: f32, lowest: f32, highest: f32, limit: f32): f32 {
  const s = f32x4.splat(distance);
  const inverse = f32x4.splat(<f32>1 / distance);
  const offset = <f32>offOf(highest);
  const off = f32x4.splat(offset);
  const least = f32x4.splat(lowest);
  const most = f32x4.splat(highest);
  let sum0 = f32x4.splat(0);
  let sum1 = sum0;
  let i = 0;
  for (; i + 8 <= count; i += 8, at += 32) {
    const x0 = v128.load(at, 0);
    const x1 = v128.load(at, 16);
    const q0 = f32x4.pmax(f32x4.pmin(near(x0, inverse, off), most), least);
    const q1 = f32x4.pmax(f32x4.pmin(near(x1, inverse, off), most), least);
    const d0 = f32x4.sub(x0, f32x4.mul(s, q0));
    const d1 = f32x4.sub(x1, f32x4.mul(s, q1));
    sum0 = f32x4.add(sum0, f32x4.mul(d0, d0));
    sum1 = f32x4.add(sum1, f32x4.mul(d1, d1));
    if ((i & 31) == 24 && total(f32x4.add(sum0, sum1)) > limit) return Infinity;
  }
  let error = total(f32x4.add(sum0, sum1));
  for (; i < count; i++, at += 4) {
    const value = load<f32>(at);
    const level = nearest<f32>(value * (<f32>1 / distance) - offset) + offset;
    const difference = value - distance * max(lowest, min(highest, level));
    error += difference * difference;
  }
  return error;
}

/** The integer plus `off` that is nearest to x * inverse. */
@inline
function near(x: v128, inverse: v128, off: v128): v128 {
  return f32x4.add(f32x4.nearest(f32x4.sub(f32x4.mul(x, inverse), off)), off);
}

@inline
function total(sums: v128): f32 {
  const pairs = f32x4.add(sums, i8x16.shuffle(sums, sums, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  return f32x4.extract_lane(pairs, 0) + f32x4.extract_lane(pairs, 1);
}

/** Squared error of `count` f64 at one distance of levels. */
function exactError(at: usize, count: i32, distance: f64, lowest: f64, highest: f64): f64 {
  const inverse = 1 / distance;
  const off = offOf(highest);
  let error: f64 = 0;
  for (let i = 0; i < count; i++, at += 8) {
    const value = load<f64>(at);
    const difference = value - distance * levelOf(value, inverse, lowest, highest, off);
    error += difference * difference;
  }
  return error;
}

/** Widens a group, the values at its two ends first: the order in which errors are summed. */
function endsFirst(at: usize, count: i32, low: f64, high: f64, out: usize): void {
  let first = out;
  let last = out + (<usize>count << 3);
  for (let i = 0; i < count; i++, at += 4) {
    const value = <f64>load<f32>(at);
    if (value == high || value == low) {
      store<f64>(first, value);
      first += 8;
    } else {
      last -= 8;
      store<f64>(last, value);
    }
  }
}

/** Factor on the range of a candidate. */
@inline
function factorOf(candidate: i32, zeros: i32): f64 {
  return 1 - <f64>(candidate / zeros) / 50;
}

/**
 * The candidate with the least squared error: `zeros` zero points (1 or 2) for each of `factors` factors on
 * the range; -1 where no scale is left.
 */
function choose(
  at: usize, count: i32, full: f64, low: f64, high: f64, symmetric: bool, middle: f64, span: f64, step: f64,
  factors: i32, zeros: i32, scratch: usize,
): i32 {
  // rounding near a tie, and sums of n terms, in f32
  const slack = <f32>(1 + 6e-4 + 2.4e-7 * <f64>count);
  let least = <f32>Infinity;
  let tried = 0;
  for (; tried < factors * zeros; tried++) {
    const factor = factorOf(tried, zeros);
    const scale = half(full * factor);
    if (scale == 0) break;
    const zero = symmetric ? middle : zeroOf(low, factor, scale, span, tried % zeros != 0);
    const limit = least * slack + <f32>1e-30;
    // what the two ends lose alone, or at least: it grows from here on
    const above = symmetric ? high - (span - zero) * scale : 0.5 * (high - low - span * scale);
    const below = symmetric ? -low - zero * scale : above;
    if ((above > 0 ? above * above : 0) + (below > 0 ? below * below : 0) > limit) break;
    const error = roughError(
      at, count, <f32>(scale * step), <f32>(-zero / step), <f32>((span - zero) / step), limit,
    );
    store<f32>(errors + (tried << 2), error);
    if (error < least) least = error;
  }
  const limit = least * slack + <f32>1e-30;
  let only = -1;
  let candidates = 0;
  for (let i = 0; i < tried; i++)
    if (load<f32>(errors + (i << 2)) <= limit) {
      only = i;
      candidates++;
    }
  if (candidates < 2) return only;
  endsFirst(at, count, low, high, scratch);
  let exact = Infinity;
  let best = -1;
  for (let i = 0; i < tried; i++) {
    if (!(load<f32>(errors + (i << 2)) <= limit)) continue;
    const factor = factorOf(i, zeros);
    const scale = half(full * factor);
    const zero = symmetric ? middle : zeroOf(low, factor, scale, span, i % zeros != 0);
    const error = exactError(scratch, count, scale * step, -zero / step, (span - zero) / step);
    if (error >= exact) continue;
    exact = error;
    best = i;
  }
  return best;
}

/**
 * Rounds rows.
 *
 * @param values - [rows, columns] f32
 * @param codes - [rows, columns] u8
 * @param scales - [rows, groups] f32, each an f16
 * @param zeros - [rows, groups] u8
 * @param sums - squared error and squared norm so far, f64: added to
 * @param scratch - `group` f64
 * @returns the first row with a value that is not finite or a scale that f16 cannot hold; -1 when there is none
 */
export function roundAffine(
  values: usize, rows: i32, columns: i32, group: i32, bits: i32, symmetric: i32, clip: i32,
  codes: usize, scales: usize, zeros: usize, sums: usize, scratch: usize,
): i32 {
  // the grid: compiler/quant/grid.ts
  const step: f64 = bits < 4 ? 2 : 1;
  const span = step * <f64>((1 << bits) - 1);
  const middle = Math.ceil(span / 2);
  const tried = symmetric || bits >= 4 ? 1 : 2;
  for (let row = 0; row < rows; row++)
    for (let start = 0; start < columns; start += group) {
      const count = min(group, columns - start);
      let low: f64 = 0;
      let high: f64 = 0;
      let norm: f64 = 0;
      for (let i: usize = 0; i < <usize>count << 2; i += 4) {
        const value = <f64>load<f32>(values + i);
        norm += value * value;
        if (value < low) low = value;
        else if (value > high) high = value;
      }
      store<f64>(sums, load<f64>(sums, 8) + norm, 8);
      if (!isFinite(norm)) return row;
      const range = symmetric ? Math.max(high, -low) : high - low;
      const full = range / (symmetric ? span - middle : span);
      if (full > HALF_MAX) return row;
      const best = !clip && tried == 1
        ? 0
        : choose(
            values, count, full, low, high, symmetric != 0, middle, span, step, clip ? STEPS : 1, tried, scratch,
          );
      const factor = factorOf(best, tried);
      const scale = best < 0 ? 0 : half(full * factor);
      const zero = symmetric || scale == 0 ? middle : zeroOf(low, factor, scale, span, best % tried != 0);
      const distance = scale * step;
      const inverse = scale == 0 ? 0 : 1 / distance;
      const lowest = -zero / step;
      const highest = (span - zero) / step;
      const off = offOf(highest);
      let error: f64 = 0;
      for (let i = 0; i < count; i++) {
        const value = <f64>load<f32>(values + (i << 2));
        const level = levelOf(value, inverse, lowest, highest, off);
        store<u8>(codes + i, <u8>(level - lowest));
        const difference = value - distance * level;
        error += difference * difference;
      }
      store<f64>(sums, load<f64>(sums) + error);
      store<f32>(scales, <f32>scale);
      store<u8>(zeros, <u8>zero);
      values += <usize>count << 2;
      codes += count;
      scales += 4;
      zeros++;
    }
  return -1;
}
