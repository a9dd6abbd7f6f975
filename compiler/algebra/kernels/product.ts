/**
 * Matrix products in f32: C [M, N] = alpha A B (+ C), each operand stored either way round.
 *
 * K runs in blocks of 256; operands are copied into panels (4 rows of A, 8 columns of B) that the inner
 * tile reads in order. A Gram matrix is the product of a matrix with itself stored k-major: its blocks
 * of 256 tokens are summed in f32, and the blocks in f64 (`wide`), so that long sums keep 24 bits.
 */

/** Length of a block of k. */
const BLOCK: i32 = 256;
/** Rows of A packed at a time. */
const BAND: i32 = 128;

/** Bytes of scratch that `product` needs. */
export function productScratchBytes(N: i32): i32 {
  return ((((N + 7) >> 3) << 3) * BLOCK + BAND * BLOCK + 64) << 2;
}

/**
 * C [M, N] = alpha A B, or C += alpha A B when `add`.
 *
 * @param a - A as [M, K], or [K, M] when `aFlipped`
 * @param b - B as [K, N], or [N, K] when `bFlipped`
 * @param c - [M, N] f32, or f64 when `wide` (then always added to)
 * @param weights - 0, or K factors
 * @param upper - compute only tiles that touch the diagonal or lie right of it
 */
export function product(
  a: usize, aFlipped: i32,
  b: usize, bFlipped: i32,
  c: usize,
  M: i32, N: i32, K: i32,
  alpha: f32, add: i32, wide: i32, weights: usize, upper: i32,
  scratch: usize,
): void {
  const out = scratch;
  const bandPanels = scratch + 256;
  const panels = bandPanels + (BAND * BLOCK << 2);
  for (let k = 0; k < K; k += BLOCK) {
    const length = min(BLOCK, K - k);
    for (let n = 0; n < N; n += 8) {
      pack(b, !bFlipped, bFlipped ? K : N, n, min(8, N - n), 8, k, length, 0, panels + (n * BLOCK << 2));
    }
    for (let m = 0; m < M; m += BAND) {
      const band = min(BAND, M - m);
      for (let r = 0; r < band; r += 4) {
        pack(a, aFlipped, aFlipped ? M : K, m + r, min(4, band - r), 4, k, length, weights, bandPanels + (r * BLOCK << 2));
      }
      for (let n = 0; n < N; n += 8) {
        if (upper && n + 8 <= m) continue;
        for (let r = 0; r < band; r += 4) {
          if (upper && n + 8 <= m + r) break;
          tile(bandPanels + (r * BLOCK << 2), panels + (n * BLOCK << 2), length, out);
          if (wide) addWide(out, c, N, m + r, n, min(4, band - r), min(8, N - n));
          else storeTile(out, c, N, m + r, n, min(4, band - r), min(8, N - n), alpha, add || k > 0);
        }
      }
    }
  }
}

/**
 * Copies `count` of `width` vectors of length `length` into a panel [length][width], the rest zero.
 * `major`: the source is [k, row], else [row, k]; `across` is its row length.
 */
function pack(
  source: usize, major: i32, across: i32,
  first: i32, count: i32, width: i32,
  k: i32, length: i32, weights: usize, panel: usize,
): void {
  if (major) {
    let from = source + ((<usize>k * across + first) << 2);
    const step: usize = across << 2;
    for (let i = 0; i < length; i++) {
      const factor = weights ? load<f32>(weights + ((k + i) << 2)) : <f32>1;
      if (count == width) {
        v128.store(panel, f32x4.mul(v128.load(from), f32x4.splat(factor)));
        if (width == 8) v128.store(panel, f32x4.mul(v128.load(from, 16), f32x4.splat(factor)), 16);
      } else {
        for (let r = 0; r < width; r++) {
          store<f32>(panel + (r << 2), r < count ? load<f32>(from + (r << 2)) * factor : 0);
        }
      }
      from += step;
      panel += width << 2;
    }
    return;
  }
  for (let r = 0; r < width; r++) {
    let to = panel + (r << 2);
    const step: usize = width << 2;
    let from = source + ((<usize>(first + r) * across + k) << 2);
    for (let i = 0; i < length; i++) {
      let value: f32 = 0;
      if (r < count) {
        value = load<f32>(from);
        if (weights) value *= load<f32>(weights + ((k + i) << 2));
      }
      store<f32>(to, value);
      to += step;
      from += 4;
    }
  }
}

/** out [4][8] = a [K][4] times b [K][8]. */
function tile(a: usize, b: usize, K: i32, out: usize): void {
  let f00 = f32x4.splat(0), f01 = f00, f10 = f00, f11 = f00;
  let f20 = f00, f21 = f00, f30 = f00, f31 = f00;
  for (let k = 0; k < K; k++) {
    const v = v128.load(b, 0);
    const u = v128.load(b, 16);
    let t = v128.load32_splat(a, 0);
    f00 = f32x4.add(f00, f32x4.mul(t, v));
    f01 = f32x4.add(f01, f32x4.mul(t, u));
    t = v128.load32_splat(a, 4);
    f10 = f32x4.add(f10, f32x4.mul(t, v));
    f11 = f32x4.add(f11, f32x4.mul(t, u));
    t = v128.load32_splat(a, 8);
    f20 = f32x4.add(f20, f32x4.mul(t, v));
    f21 = f32x4.add(f21, f32x4.mul(t, u));
    t = v128.load32_splat(a, 12);
    f30 = f32x4.add(f30, f32x4.mul(t, v));
    f31 = f32x4.add(f31, f32x4.mul(t, u));
    a += 16;
    b += 32;
  }
  v128.store(out, f00, 0);
  v128.store(out, f01, 16);
  v128.store(out, f10, 32);
  v128.store(out, f11, 48);
  v128.store(out, f20, 64);
  v128.store(out, f21, 80);
  v128.store(out, f30, 96);
  v128.store(out, f31, 112);
}

function storeTile(
  out: usize, c: usize, N: i32, row: i32, column: i32, rows: i32, columns: i32, alpha: f32, add: bool,
): void {
  for (let r = 0; r < rows; r++) {
    const to = c + ((<usize>(row + r) * N + column) << 2);
    const from = out + (r << 5);
    for (let i = 0; i < columns; i++) {
      const value = load<f32>(from + (i << 2)) * alpha;
      const at = to + (i << 2);
      store<f32>(at, add ? load<f32>(at) + value : value);
    }
  }
}

function addWide(out: usize, c: usize, N: i32, row: i32, column: i32, rows: i32, columns: i32): void {
  for (let r = 0; r < rows; r++) {
    const to = c + ((<usize>(row + r) * N + column) << 3);
    const from = out + (r << 5);
    for (let i = 0; i < columns; i++) {
      const at = to + (i << 3);
      store<f64>(at, load<f64>(at) + <f64>load<f32>(from + (i << 2)));
    }
  }
}
