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

/** Steps of the clip search, 1, 0.98, …, 0.5, and errors of them in f32. */
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

@inline
function zeroOf(low: f64, factor: f64, scale: f64, levels: f64): f64 {
  return Math.min(levels, Math.round((-low * factor) / scale));
}

@inline
function stepOf(value: f64, inverse: f64, lowest: f64, highest: f64): f64 {
  const step = value * inverse + MAGIC - MAGIC;
  return step < lowest ? lowest : step > highest ? highest : step;
}

/** Squared error of `count` f32 at one scale, in f32; infinite once it is above `limit`. */
function roughError(at: usize, count: i32, scale: f32, lowest: f32, highest: f32, limit: f32): f32 {
  const s = f32x4.splat(scale);
  const inverse = f32x4.splat(<f32>1 / scale);
  const least = f32x4.splat(lowest);
  const most = f32x4.splat(highest);
  let sum0 = f32x4.splat(0);
  let sum1 = sum0;
  let i = 0;
  for (; i + 8 <= count; i += 8, at += 32) {
    const x0 = v128.load(at, 0);
    const x1 = v128.load(at, 16);
    const q0 = f32x4.pmax(f32x4.pmin(f32x4.nearest(f32x4.mul(x0, inverse)), most), least);
    const q1 = f32x4.pmax(f32x4.pmin(f32x4.nearest(f32x4.mul(x1, inverse)), most), least);
    const d0 = f32x4.sub(x0, f32x4.mul(s, q0));
    const d1 = f32x4.sub(x1, f32x4.mul(s, q1));
    sum0 = f32x4.add(sum0, f32x4.mul(d0, d0));
    sum1 = f32x4.add(sum1, f32x4.mul(d1, d1));
    if ((i & 31) == 24 && total(f32x4.add(sum0, sum1)) > limit) return Infinity;
  }
  let error = total(f32x4.add(sum0, sum1));
  for (; i < count; i++, at += 4) {
    const value = load<f32>(at);
    const step = max(lowest, min(highest, nearest<f32>(value * (<f32>1 / scale))));
    const difference = value - scale * step;
    error += difference * difference;
  }
  return error;
}

@inline
function total(sums: v128): f32 {
  const pairs = f32x4.add(sums, i8x16.shuffle(sums, sums, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  return f32x4.extract_lane(pairs, 0) + f32x4.extract_lane(pairs, 1);
}

/** Squared error of `count` f64 at one scale. */
function exactError(at: usize, count: i32, scale: f64, lowest: f64, highest: f64): f64 {
  const inverse = 1 / scale;
  let error: f64 = 0;
  for (let i = 0; i < count; i++, at += 8) {
    const value = load<f64>(at);
    const difference = value - scale * stepOf(value, inverse, lowest, highest);
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

/** Factor of the range with the least squared error; 0 where no scale is left. */
function chooseFactor(
  at: usize, count: i32, full: f64, low: f64, high: f64, symmetric: bool, middle: f64, levels: f64, scratch: usize,
): f64 {
  // rounding near a tie, and sums of n terms, in f32
  const slack = <f32>(1 + 6e-4 + 2.4e-7 * <f64>count);
  let least = <f32>Infinity;
  let tried = 0;
  for (; tried < STEPS; tried++) {
    const factor = 1 - <f64>tried / 50;
    const scale = half(full * factor);
    if (scale == 0) break;
    const zero = symmetric ? middle : zeroOf(low, factor, scale, levels);
    const limit = least * slack + <f32>1e-30;
    // what the two ends lose alone, or at least: it grows from here on
    const above = symmetric ? high - (levels - zero) * scale : 0.5 * (high - low - levels * scale);
    const below = symmetric ? -low - zero * scale : above;
    if ((above > 0 ? above * above : 0) + (below > 0 ? below * below : 0) > limit) break;
    const error = roughError(at, count, <f32>scale, <f32>-zero, <f32>(levels - zero), limit);
    store<f32>(errors + (tried << 2), error);
    if (error < least) least = error;
  }
  const limit = least * slack + <f32>1e-30;
  let only = -1;
  let near = 0;
  for (let i = 0; i < tried; i++)
    if (load<f32>(errors + (i << 2)) <= limit) {
      only = i;
      near++;
    }
  if (near < 2) return only < 0 ? 0 : 1 - <f64>only / 50;
  endsFirst(at, count, low, high, scratch);
  let exact = Infinity;
  let best: f64 = 0;
  for (let i = 0; i < tried; i++) {
    if (!(load<f32>(errors + (i << 2)) <= limit)) continue;
    const factor = 1 - <f64>i / 50;
    const scale = half(full * factor);
    const zero = symmetric ? middle : zeroOf(low, factor, scale, levels);
    const error = exactError(scratch, count, scale, -zero, levels - zero);
    if (error >= exact) continue;
    exact = error;
    best = factor;
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
  const middle = <f64>(1 << (bits - 1));
  const levels = <f64>((1 << bits) - 1);
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
      const full = range / (symmetric ? middle - 1 : levels);
      if (full > HALF_MAX) return row;
      const factor = clip
        ? chooseFactor(values, count, full, low, high, symmetric != 0, middle, levels, scratch)
        : 1;
      const scale = half(full * factor);
      const zero = symmetric || scale == 0 ? middle : zeroOf(low, factor, scale, levels);
      const inverse = scale == 0 ? 0 : 1 / scale;
      let error: f64 = 0;
      for (let i = 0; i < count; i++) {
        const value = <f64>load<f32>(values + (i << 2));
        const step = stepOf(value, inverse, -zero, levels - zero);
        store<u8>(codes + i, <u8>(step + zero));
        const difference = value - scale * step;
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
