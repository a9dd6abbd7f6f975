/**
 * Cholesky factor and inverse of its factor, in f64: Hessians of correlated activations have condition
 * numbers near 1e6, where an f32 factor fails or loses half of its digits; at d^3/3 it is not what costs.
 * Rows are contiguous; tiles of 4 by 2 results keep their sums in registers.
 */

/**
 * Replaces the lower triangle of a symmetric matrix by L, L Lᵀ = A; what is right of the diagonal stays.
 *
 * @param a - [n, n] f64
 * @returns -1, or the row whose pivot is not positive
 */
export function cholesky(a: usize, n: i32): i32 {
  const row: usize = n << 3;
  for (let i = 0; i < n; i += 4) {
    const rows = min(4, n - i);
    const base = a + <usize>i * row;
    // columns before the diagonal block
    let j = 0;
    for (; j + 2 <= i; j += 2) {
      const b = a + <usize>j * row;
      if (rows == 4) dots4x2(base, b, row, j);
      else for (let r = 0; r < rows; r++) dots1x2(base + <usize>r * row, b, row, j);
      const first = 1.0 / load<f64>(b + (j << 3));
      const below = load<f64>(b + row + (j << 3));
      const second = 1.0 / load<f64>(b + row + ((j + 1) << 3));
      for (let r = 0; r < rows; r++) {
        const at = base + <usize>r * row + (j << 3);
        const x = load<f64>(at) * first;
        store<f64>(at, x);
        store<f64>(at + 8, (load<f64>(at + 8) - x * below) * second);
      }
    }
    for (let r = 0; r < rows; r++) {
      const at = base + <usize>r * row;
      for (let c = j; c < i + r; c++) {
        const b = a + <usize>c * row;
        const value = load<f64>(at + (c << 3)) - dot(at, b, c);
        store<f64>(at + (c << 3), value / load<f64>(b + (c << 3)));
      }
      const diagonal = at + ((i + r) << 3);
      const pivot = load<f64>(diagonal) - dot(at, at, i + r);
      if (!(pivot > 0) || pivot == Infinity) return i + r;
      store<f64>(diagonal, sqrt(pivot));
    }
  }
  return -1;
}

/** a[r][k], a[r][k + 1] -= dot of row r with the two rows at b, over the first k columns. */
function dots4x2(a: usize, b: usize, row: usize, k: i32): void {
  let s00 = f64x2.splat(0), s01 = s00, s10 = s00, s11 = s00;
  let s20 = s00, s21 = s00, s30 = s00, s31 = s00;
  const row3 = row * 3;
  let p = a;
  let q = b;
  // k is even
  for (let i = 0; i < k; i += 2) {
    const u = v128.load(q);
    const v = v128.load(q + row);
    let t = v128.load(p);
    s00 = f64x2.add(s00, f64x2.mul(t, u));
    s01 = f64x2.add(s01, f64x2.mul(t, v));
    t = v128.load(p + row);
    s10 = f64x2.add(s10, f64x2.mul(t, u));
    s11 = f64x2.add(s11, f64x2.mul(t, v));
    t = v128.load(p + row * 2);
    s20 = f64x2.add(s20, f64x2.mul(t, u));
    s21 = f64x2.add(s21, f64x2.mul(t, v));
    t = v128.load(p + row3);
    s30 = f64x2.add(s30, f64x2.mul(t, u));
    s31 = f64x2.add(s31, f64x2.mul(t, v));
    p += 16;
    q += 16;
  }
  subtract(p, s00, s01);
  subtract(p + row, s10, s11);
  subtract(p + row * 2, s20, s21);
  subtract(p + row3, s30, s31);
}

function dots1x2(a: usize, b: usize, row: usize, k: i32): void {
  let s0 = f64x2.splat(0), s1 = s0;
  const end = a + (k << 3);
  for (; a < end; a += 16) {
    const t = v128.load(a);
    s0 = f64x2.add(s0, f64x2.mul(t, v128.load(b)));
    s1 = f64x2.add(s1, f64x2.mul(t, v128.load(b + row)));
    b += 16;
  }
  subtract(a, s0, s1);
}

@inline
function subtract(at: usize, s: v128, t: v128): void {
  const low = v128.shuffle<f64>(s, t, 0, 2);
  const high = v128.shuffle<f64>(s, t, 1, 3);
  v128.store(at, f64x2.sub(v128.load(at), f64x2.add(low, high)));
}

function dot(a: usize, b: usize, count: i32): f64 {
  let sum: f64 = 0;
  for (let i = 0; i < count; i++) sum += load<f64>(a + (i << 3)) * load<f64>(b + (i << 3));
  return sum;
}

/**
 * X = L⁻¹ of a lower triangular matrix; X is lower triangular, zeros right of the diagonal.
 *
 * @param l - [n, n] f64, read up to its diagonal
 * @param x - [n, n] f64, written whole
 */
export function invertLower(l: usize, x: usize, n: i32): void {
  const row: usize = n << 3;
  memory.fill(x, 0, <usize>n * row);
  for (let i = 0; i < n; i += 4) {
    const rows = min(4, n - i);
    const from = l + <usize>i * row;
    const to = x + <usize>i * row;
    for (let c = 0; c < i; c += 4) {
      // n - c >= 4 columns remain, since c + 4 <= i < n
      if (rows == 4) combine4x4(from, x, to, row, c, i);
      else for (let r = 0; r < rows; r++) combine1x4(from + <usize>r * row, x, to + <usize>r * row, row, c, i);
    }
    for (let r = 0; r < rows; r++) {
      const at = to + <usize>r * row;
      const inverse = 1.0 / load<f64>(from + <usize>r * row + ((i + r) << 3));
      for (let k = 0; k < r; k++) {
        const factor = load<f64>(from + <usize>r * row + ((i + k) << 3));
        const source = to + <usize>k * row;
        for (let c = 0; c <= i + k; c++) {
          store<f64>(at + (c << 3), load<f64>(at + (c << 3)) - factor * load<f64>(source + (c << 3)));
        }
      }
      for (let c = 0; c < i + r; c++) store<f64>(at + (c << 3), load<f64>(at + (c << 3)) * inverse);
      store<f64>(at + ((i + r) << 3), inverse);
    }
  }
}

/** to [4][c..c+4) = -Σ_k l[r][k] x[k][c..c+4), k from c to `end`. */
function combine4x4(l: usize, x: usize, to: usize, row: usize, c: i32, end: i32): void {
  let a0 = f64x2.splat(0), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
  let p = l + (c << 3);
  let q = x + <usize>c * row + (c << 3);
  const row3 = row * 3;
  for (let k = c; k < end; k++) {
    const u = v128.load(q, 0);
    const v = v128.load(q, 16);
    let t = v128.load64_splat(p);
    a0 = f64x2.sub(a0, f64x2.mul(t, u));
    a1 = f64x2.sub(a1, f64x2.mul(t, v));
    t = v128.load64_splat(p + row);
    b0 = f64x2.sub(b0, f64x2.mul(t, u));
    b1 = f64x2.sub(b1, f64x2.mul(t, v));
    t = v128.load64_splat(p + row * 2);
    c0 = f64x2.sub(c0, f64x2.mul(t, u));
    c1 = f64x2.sub(c1, f64x2.mul(t, v));
    t = v128.load64_splat(p + row3);
    d0 = f64x2.sub(d0, f64x2.mul(t, u));
    d1 = f64x2.sub(d1, f64x2.mul(t, v));
    p += 8;
    q += row;
  }
  to += c << 3;
  v128.store(to, a0, 0);
  v128.store(to, a1, 16);
  v128.store(to + row, b0, 0);
  v128.store(to + row, b1, 16);
  v128.store(to + row * 2, c0, 0);
  v128.store(to + row * 2, c1, 16);
  v128.store(to + row3, d0, 0);
  v128.store(to + row3, d1, 16);
}

function combine1x4(l: usize, x: usize, to: usize, row: usize, c: i32, end: i32): void {
  let a0 = f64x2.splat(0), a1 = a0;
  let q = x + <usize>c * row + (c << 3);
  for (let k = c; k < end; k++) {
    const t = v128.load64_splat(l + (k << 3));
    a0 = f64x2.sub(a0, f64x2.mul(t, v128.load(q, 0)));
    a1 = f64x2.sub(a1, f64x2.mul(t, v128.load(q, 16)));
    q += row;
  }
  to += c << 3;
  v128.store(to, a0, 0);
  v128.store(to, a1, 16);
}
