/**
 * Floats of 16 bits and less: tables from pattern to value, and rounding from value to pattern
 * (nearest, ties to even). Source: the ONNX pages "Float stored in 8 bits" and "4 bits", and the OCP
 * MX specification for E8M0 and E2M1.
 */
import { floatToHalf, halfToFloat } from '../../runtime/half.ts';
import type { DType } from '../../runtime/tensor.ts';

/** Dtypes whose elements are patterns that have to be decoded. */
export type SmallFloat = Extract<DType, 'f16' | 'bf16' | `f8${string}` | 'f4e2m1'>;

/** How a value is rounded to a small float. */
export interface Rounding {
  /** Values past the largest become the largest instead of infinity or NaN. Default true. */
  readonly saturate?: boolean;
  /** Direction of `f8e8m0`, which only has powers of two. Default `nearest`. */
  readonly direction?: 'up' | 'down' | 'nearest';
}

/** Layout of a float with a sign, an exponent and a mantissa. */
interface Layout {
  readonly mantissaBits: number;
  readonly bias: number;
  /** Largest finite value. */
  readonly largest: number;
  /** Pattern without sign. */
  readonly largestPattern: number;
  /** Pattern of +infinity; undefined when there is none. */
  readonly infinity: number | undefined;
  /** Pattern of NaN; undefined when there is none. */
  readonly nan: number | undefined;
  readonly signBit: number;
  /** Whether the sign of zero and of NaN does not exist (the `fnuz` formats). */
  readonly unsignedZero: boolean;
}

const layouts: Readonly<Record<Exclude<SmallFloat, 'f16' | 'bf16' | 'f8e8m0'>, Layout>> = {
  f8e4m3fn: {
    mantissaBits: 3,
    bias: 7,
    largest: 448,
    largestPattern: 0x7e,
    infinity: undefined,
    nan: 0x7f,
    signBit: 0x80,
    unsignedZero: false,
  },
  f8e4m3fnuz: {
    mantissaBits: 3,
    bias: 8,
    largest: 240,
    largestPattern: 0x7f,
    infinity: undefined,
    nan: 0x80,
    signBit: 0x80,
    unsignedZero: true,
  },
  f8e5m2: {
    mantissaBits: 2,
    bias: 15,
    largest: 57344,
    largestPattern: 0x7b,
    infinity: 0x7c,
    nan: 0x7f,
    signBit: 0x80,
    unsignedZero: false,
  },
  f8e5m2fnuz: {
    mantissaBits: 2,
    bias: 16,
    largest: 57344,
    largestPattern: 0x7f,
    infinity: undefined,
    nan: 0x80,
    signBit: 0x80,
    unsignedZero: true,
  },
  f4e2m1: {
    mantissaBits: 1,
    bias: 1,
    largest: 6,
    largestPattern: 0x7,
    infinity: undefined,
    nan: undefined,
    signBit: 0x8,
    unsignedZero: false,
  },
};

/** Whether a dtype's elements are patterns of a small float. */
export function isSmallFloat(dtype: DType): dtype is SmallFloat {
  return dtype === 'f16' || dtype === 'bf16' || dtype.startsWith('f8') || dtype === 'f4e2m1';
}

const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);

/** The value of a pattern. */
export function decodeSmallFloat(dtype: SmallFloat, pattern: number): number {
  if (dtype === 'f16') return halfToFloat(pattern);
  if (dtype === 'bf16') {
    word[0] = pattern << 16;
    return float[0] ?? 0;
  }
  if (dtype === 'f8e8m0') return pattern === 0xff ? NaN : 2 ** (pattern - 127);
  const layout = layouts[dtype];
  const magnitude = pattern & (layout.signBit - 1);
  const negative = (pattern & layout.signBit) !== 0;
  if (layout.unsignedZero ? pattern === layout.nan : magnitude === layout.nan) return NaN;
  if (layout.infinity !== undefined && magnitude >= layout.infinity)
    return magnitude > layout.infinity ? NaN : negative ? -Infinity : Infinity;
  const exponent = magnitude >>> layout.mantissaBits;
  const mantissa = magnitude & ((1 << layout.mantissaBits) - 1);
  const fraction = mantissa / 2 ** layout.mantissaBits;
  const value =
    exponent === 0
      ? fraction * 2 ** (1 - layout.bias)
      : (1 + fraction) * 2 ** (exponent - layout.bias);
  return negative ? -value : value;
}

/** The pattern nearest to a value. */
export function encodeSmallFloat(
  dtype: SmallFloat,
  value: number,
  rounding: Rounding = {},
): number {
  if (dtype === 'f16') return floatToHalf(value);
  if (dtype === 'bf16') return floatToBrain(value);
  if (dtype === 'f8e8m0') return encodePowerOfTwo(value, rounding);
  const layout = layouts[dtype];
  const saturate = rounding.saturate ?? true;
  const negative = value < 0 || Object.is(value, -0);
  const sign = negative ? layout.signBit : 0;
  // a format without NaN stores its largest value instead
  if (Number.isNaN(value)) return layout.nan ?? layout.largestPattern;
  const magnitude = Math.abs(value);
  const pattern = Number.isFinite(magnitude) ? roundMagnitude(layout, magnitude) : Infinity;
  if (pattern > layout.largestPattern) {
    if (saturate || layout.nan === undefined) return sign | layout.largestPattern;
    if (layout.infinity !== undefined) return sign | layout.infinity;
    return layout.unsignedZero ? layout.nan : sign | layout.nan;
  }
  return pattern === 0 && layout.unsignedZero ? 0 : sign | pattern;
}

/** Pattern without sign; may lie past the largest. */
function roundMagnitude(layout: Layout, magnitude: number): number {
  if (magnitude === 0) return 0;
  const exponent = Math.max(exponentOf(magnitude), 1 - layout.bias);
  const steps = roundHalfEven(magnitude / 2 ** (exponent - layout.mantissaBits));
  // a mantissa that rounds up to the next power of two carries into the exponent by itself
  return (exponent + layout.bias - 1) * 2 ** layout.mantissaBits + steps;
}

function floatToBrain(value: number): number {
  float[0] = value;
  const bits = word[0] ?? 0;
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

function encodePowerOfTwo(
  value: number,
  { saturate = true, direction = 'nearest' }: Rounding,
): number {
  if (Number.isNaN(value)) return 0xff;
  const magnitude = Math.abs(value);
  if (magnitude === Infinity) return saturate ? 0xfe : 0xff;
  if (magnitude < 2 ** -127) return 0;
  const floor = exponentOf(magnitude);
  const fraction = magnitude / 2 ** floor;
  const up = direction === 'up' ? fraction > 1 : direction === 'nearest' && fraction >= 1.5;
  const exponent = floor + (up ? 1 : 0) + 127;
  return exponent > 0xfe ? (saturate ? 0xfe : 0xff) : exponent;
}

/** `floor(log2(x))` without the rounding of Math.log2 next to powers of two. */
function exponentOf(magnitude: number): number {
  let exponent = Math.floor(Math.log2(magnitude));
  if (2 ** exponent > magnitude) exponent--;
  else if (2 ** (exponent + 1) <= magnitude) exponent++;
  return exponent;
}

/** Nearest integer, ties to even: the rounding of ONNX `Round` and of every float format. */
export function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  const up = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0);
  // what rounds up to zero from below is -0
  return up ? (floor === -1 ? -0 : floor + 1) : floor;
}
