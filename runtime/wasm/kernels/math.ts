/**
 * Elementary functions of four f32 lanes from IEEE basic operations only, so that every engine gives the
 * same bits. Polynomials are minimax fits of this project; stated errors are the largest found against
 * f64 over the stated range (test/wasm-kernels/math.test.ts holds them).
 *
 *   exp      1.5e-7 relative on [-87.3, 88.72]; below it 0, above it infinity
 *   log      1.5e-7 relative (absolute near 1) for positive normal x; 0 -> -infinity, negative -> NaN
 *   tanh, sigmoid   2.5e-7 relative; erf 4e-7
 *   sin, cos 2e-7 absolute for |x| <= 1000
 */
import {
  ACT_CLIP,
  ACT_ELU,
  ACT_GELU,
  ACT_GELUTANH,
  ACT_HARDSIGMOID,
  ACT_HARDSWISH,
  ACT_LEAKYRELU,
  ACT_MISH,
  ACT_QUICKGELU,
  ACT_RELU,
  ACT_RELU6,
  ACT_SIGMOID,
  ACT_SILU,
  ACT_SOFTPLUS,
  ACT_TANH,
} from './abi.ts';

/**
 * The constants of this file, which `number(i)` splats from memory: a vector literal takes engines three
 * instructions at every use.
 */
const numbers: usize = memory.data<f32>([
  -87.3,
  89,
  1.44269504,
  0.693359375,
  2.12194440e-4,
  0.00139505055,
  1,
  2,
  0.235899925,
  0.5,
  -2.12194440e-4,
  -0.00567927537,
  0.625,
  0.00000209981818,
  3.86,
  0.0000386374595,
  -3.86,
  0.636619772,
  1.5703125,
  4.83751297e-4,
  7.5497899e-8,
  -0.000195164757,
  0.0000244375242,
  6,
  0.70710678,
  0.044715,
  0.79788456,
  1.702,
  0.00836890377,
  0.041666206,
  0.166665182,
  0.285369188,
  0.400003403,
  0.666666627,
  0.0206180941,
  -0.0537339896,
  0.133313835,
  -0.333332807,
  0.000285529793,
  0.00368628395,
  0.0525155552,
  0.188240275,
  1.12837911,
  0.00114773214,
  0.0148096597,
  0.113262013,
  0.500156462,
  0.00833217241,
  -0.166666552,
  -0.00138873595,
  0.0416666456,
  0.16666667,
  12582912,
]);

/** Constant `i` in all lanes. */
@inline
function number(i: i32): v128 {
  return v128.load32_splat(numbers + (i << 2));
}

@inline
function step(sum: v128, x: v128, coefficient: v128): v128 {
  return f32x4.add(f32x4.mul(sum, x), coefficient);
}

@inline
function negate(x: v128): v128 {
  return f32x4.neg(x);
}

/** Limits to [low, high]; NaN stays NaN (it is the first operand, which a false comparison keeps). */
@inline
export function clamp(x: v128, low: v128, high: v128): v128 {
  return f32x4.pmin(f32x4.pmax(x, low), high);
}

/** e^x */
export function exp(x: v128): v128 {
  return expInline(x);
}

@inline
function expInline(x: v128): v128 {
  // the lowest bound keeps even discarded lanes normal: subnormal results cost a hundred cycles
  const bounded = clamp(x, number(0 /* -87.3 */), number(1 /* 89 */));
  const one = number(6 /* 1 */);
  // adding 1.5 * 2^23 rounds half to even and leaves the integer in the low bits
  const magic = number(52 /* 12582912 */);
  const rounded = f32x4.add(f32x4.mul(bounded, number(2 /* 1.44269504 */)), magic);
  const n = f32x4.sub(rounded, magic);
  let r = f32x4.sub(bounded, f32x4.mul(n, number(3 /* 0.693359375 */)));
  r = f32x4.add(r, f32x4.mul(n, number(4 /* 2.12194440e-4 */)));
  let p = number(5 /* 0.00139505055 */);
  p = step(p, r, number(28 /* 0.00836890377 */));
  p = step(p, r, number(29 /* 0.041666206 */));
  p = step(p, r, number(30 /* 0.166665182 */));
  p = step(p, r, number(9 /* 0.5 */));
  p = f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(p, r), r), r), one);
  // 2^n in two factors, because 2^128 alone is no f32; exponents are added to that of 1
  const whole = i32x4.sub(rounded, magic);
  const first = i32x4.shr_s(whole, 1);
  p = f32x4.mul(p, i32x4.add(i32x4.shl(first, 23), one));
  p = f32x4.mul(p, i32x4.add(i32x4.shl(i32x4.sub(whole, first), 23), one));
  return v128.andnot(p, f32x4.lt(x, number(0 /* -87.3 */)));
}

/** Natural logarithm. */
export function log(x: v128): v128 {
  const bits = i32x4.sub(x, i32x4.splat(0x3f3504f3));
  const exponent = i32x4.shr_s(bits, 23);
  const mantissa = i32x4.sub(x, i32x4.shl(exponent, 23));
  const e = f32x4.convert_i32x4_s(exponent);
  const f = f32x4.sub(mantissa, number(6 /* 1 */));
  const s = f32x4.div(f, f32x4.add(f, number(7 /* 2 */)));
  const z = f32x4.mul(s, s);
  let p = number(8 /* 0.235899925 */);
  p = step(p, z, number(31 /* 0.285369188 */));
  p = step(p, z, number(32 /* 0.400003403 */));
  p = step(p, z, number(33 /* 0.666666627 */));
  // log(1+f) = 2s + s^3 p, written around f so that nothing cancels
  const half = f32x4.mul(f32x4.mul(f, f), number(9 /* 0.5 */));
  const rest = f32x4.mul(s, f32x4.add(half, f32x4.mul(z, p)));
  let y = f32x4.sub(f, f32x4.sub(half, f32x4.add(rest, f32x4.mul(e, number(10 /* -2.12194440e-4 */)))));
  y = f32x4.add(y, f32x4.mul(e, number(3 /* 0.693359375 */)));
  const zero = f32x4.eq(x, f32x4.splat(0));
  y = v128.bitselect(f32x4.splat(-Infinity), y, zero);
  y = v128.bitselect(x, y, f32x4.eq(x, f32x4.splat(Infinity)));
  return v128.bitselect(f32x4.splat(NaN), y, v128.or(f32x4.lt(x, f32x4.splat(0)), f32x4.ne(x, x)));
}

/** 1 / (1 + e^-x) */
export function sigmoid(x: v128): v128 {
  return sigmoidInline(x);
}

@inline
function sigmoidInline(x: v128): v128 {
  // e^-|x| cannot overflow, and both sides keep their relative precision
  const one = number(6 /* 1 */);
  const e = expInline(negate(f32x4.abs(x)));
  const numerator = v128.bitselect(e, one, f32x4.lt(x, f32x4.splat(0)));
  return f32x4.div(numerator, f32x4.add(one, e));
}

/** x / (1 + e^-x) */
@inline
export function silu(x: v128): v128 {
  return f32x4.mul(x, sigmoidInline(x));
}

/** tanh x */
export function tanh(x: v128): v128 {
  const a = f32x4.abs(x);
  const z = f32x4.mul(x, x);
  let p = number(11 /* -0.00567927537 */);
  p = step(p, z, number(34 /* 0.0206180941 */));
  p = step(p, z, number(35 /* -0.0537339896 */));
  p = step(p, z, number(36 /* 0.133313835 */));
  p = step(p, z, number(37 /* -0.333332807 */));
  const near = f32x4.add(a, f32x4.mul(f32x4.mul(p, z), a));
  const one = number(6 /* 1 */);
  const e = exp(f32x4.add(a, a));
  const far = f32x4.sub(one, f32x4.div(number(7 /* 2 */), f32x4.add(e, one)));
  const y = v128.bitselect(near, far, f32x4.lt(a, number(12 /* 0.625 */)));
  return v128.or(y, v128.and(x, f32x4.splat(-0.0)));
}

/** Error function: x P(x^2) / Q(x^2) up to 3.86, where it is 1 to f32 precision. */
export function erf(x: v128): v128 {
  return erfInline(x);
}

@inline
function erfInline(x: v128): v128 {
  const t = clamp(x, number(16 /* -3.86 */), number(14 /* 3.86 */));
  const z = f32x4.mul(t, t);
  let p = number(13 /* 0.00000209981818 */);
  p = step(p, z, number(38 /* 0.000285529793 */));
  p = step(p, z, number(39 /* 0.00368628395 */));
  p = step(p, z, number(40 /* 0.0525155552 */));
  p = step(p, z, number(41 /* 0.188240275 */));
  p = step(p, z, number(42 /* 1.12837911 */));
  let q = number(15 /* 0.0000386374595 */);
  q = step(q, z, number(43 /* 0.00114773214 */));
  q = step(q, z, number(44 /* 0.0148096597 */));
  q = step(q, z, number(45 /* 0.113262013 */));
  q = step(q, z, number(46 /* 0.500156462 */));
  q = step(q, z, number(6 /* 1 */));
  const y = f32x4.div(f32x4.mul(p, t), q);
  return clamp(y, negate(number(6 /* 1 */)), number(6 /* 1 */));
}

/** x/2 * (1 + erf(x / sqrt 2)) */
@inline
export function gelu(x: v128): v128 {
  const y = erfInline(f32x4.mul(x, number(24 /* 0.70710678 */)));
  return f32x4.mul(f32x4.mul(x, number(9 /* 0.5 */)), f32x4.add(number(6 /* 1 */), y));
}

/** sin (phase 0) or cos (phase 1). */
export function sine(x: v128, phase: i32): v128 {
  const n = f32x4.nearest(f32x4.mul(x, number(17 /* 0.636619772 */)));
  // pi/2 in three parts, the first two with trailing zeros so that n times them is exact
  let r = f32x4.sub(x, f32x4.mul(n, number(18 /* 1.5703125 */)));
  r = f32x4.sub(r, f32x4.mul(n, number(19 /* 4.83751297e-4 */)));
  r = f32x4.sub(r, f32x4.mul(n, number(20 /* 7.5497899e-8 */)));
  const quadrant = i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(phase));
  const z = f32x4.mul(r, r);
  let p = number(21 /* -0.000195164757 */);
  p = step(p, z, number(47 /* 0.00833217241 */));
  p = step(p, z, number(48 /* -0.166666552 */));
  const s = f32x4.add(r, f32x4.mul(f32x4.mul(p, z), r));
  p = number(22 /* 0.0000244375242 */);
  p = step(p, z, number(49 /* -0.00138873595 */));
  p = step(p, z, number(50 /* 0.0416666456 */));
  const c = f32x4.add(
    f32x4.sub(number(6 /* 1 */), f32x4.mul(z, number(9 /* 0.5 */))),
    f32x4.mul(f32x4.mul(p, z), z),
  );
  const odd = i32x4.ne(v128.and(quadrant, i32x4.splat(1)), i32x4.splat(0));
  const sign = i32x4.shl(v128.and(quadrant, i32x4.splat(2)), 30);
  return v128.xor(v128.bitselect(c, s, odd), sign);
}

/** log(1 + e^x) */
function softplus(x: v128): v128 {
  // log(1+e) = log(u) * e/(u-1) with u = 1+e rounded: exact where e is small
  const one = number(6 /* 1 */);
  const e = exp(negate(f32x4.abs(x)));
  const u = f32x4.add(one, e);
  const rounded = f32x4.sub(u, one);
  const exact = f32x4.div(f32x4.mul(log(u), e), rounded);
  const tail = v128.bitselect(e, exact, f32x4.eq(rounded, f32x4.splat(0)));
  return f32x4.add(f32x4.max(x, f32x4.splat(0)), tail);
}

/** e^x - 1 for x <= 0 */
function expMinusOne(x: v128): v128 {
  // 2 tanh(x/2) / (1 - tanh(x/2)) keeps its precision near 0
  const t = tanh(f32x4.mul(x, number(9 /* 0.5 */)));
  return f32x4.div(f32x4.add(t, t), f32x4.sub(number(6 /* 1 */), t));
}

/** clip(x*scale + offset, 0, 1) */
@inline
function hardSigmoid(x: v128, scale: v128, offset: v128): v128 {
  return clamp(f32x4.add(f32x4.mul(x, scale), offset), f32x4.splat(0), number(6 /* 1 */));
}

/** An activation of abi.ts. */
export function activate(kind: i32, x: v128, alpha: v128, beta: v128): v128 {
  const zero = f32x4.splat(0);
  const half = number(9 /* 0.5 */);
  switch (kind) {
    case ACT_RELU:
      return f32x4.pmax(x, zero);
    case ACT_RELU6:
      return clamp(x, zero, number(23 /* 6 */));
    case ACT_LEAKYRELU:
      return v128.bitselect(f32x4.mul(x, alpha), x, f32x4.lt(x, zero));
    case ACT_CLIP:
      return clamp(x, alpha, beta);
    case ACT_SIGMOID:
      return sigmoid(x);
    case ACT_HARDSIGMOID:
      return hardSigmoid(x, alpha, beta);
    case ACT_HARDSWISH:
      return f32x4.mul(x, hardSigmoid(x, number(51 /* 0.16666667 */), half));
    case ACT_SILU:
      return silu(x);
    case ACT_GELU:
      return gelu(x);
    case ACT_GELUTANH: {
      const cube = f32x4.mul(f32x4.mul(x, x), x);
      const inner = f32x4.add(x, f32x4.mul(cube, number(25 /* 0.044715 */)));
      const y = tanh(f32x4.mul(inner, number(26 /* 0.79788456 */)));
      return f32x4.mul(f32x4.mul(x, half), f32x4.add(number(6 /* 1 */), y));
    }
    case ACT_QUICKGELU:
      return f32x4.mul(x, sigmoid(f32x4.mul(x, number(27 /* 1.702 */))));
    case ACT_MISH:
      return f32x4.mul(x, tanh(softplus(x)));
    case ACT_TANH:
      return tanh(x);
    case ACT_SOFTPLUS:
      return softplus(x);
    case ACT_ELU:
      return v128.bitselect(
        f32x4.mul(alpha, expMinusOne(f32x4.min(x, zero))),
        x,
        f32x4.lt(x, zero),
      );
    default:
      return x;
  }
}
