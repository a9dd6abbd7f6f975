/**
 * Contents of constants as text: listed when small, as a formula (`fill(1)`, `ramp(0, 1)`,
 * `random(7)`) when one gives exactly these bytes, as base64 up to half a KiB, else as a digest that
 * only tells two constants apart.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { bytesOf, dtypes, elementCount, viewBytes } from '../../runtime/tensor.ts';
import {
  isFloat,
  isWide,
  readBigInts,
  readNumbers,
  readStrings,
  writeNumbers,
} from '../ops/numbers.ts';
import type { Weight } from './weight.ts';

/** Most elements that are listed. */
const LISTED_ELEMENTS = 32;
/** Most bytes that are written as base64, unless everything is wanted. */
const ENCODED_BYTES = 512;
/** Seeds that `random` is recognised for. */
const SEEDS = 256;
/** Elements that a formula must give right before all are compared. */
const PROBED_ELEMENTS = 4;
/** Larger constants are digested by their first and last part. */
const DIGESTED_BYTES = 1 << 20;

/** Formulas by name; each gives element `i` of a tensor. */
const formulas: Readonly<
  Record<string, (args: readonly number[], dtype: DType) => (i: number) => number>
> = {
  fill:
    ([value = 0]) =>
    () =>
      value,
  ramp:
    ([start = 0, step = 1]) =>
    (i) =>
      start + i * step,
  random:
    ([seed = 0], dtype) =>
    (i) =>
      randomElement(seed, i, dtype),
};

/** A tensor made by a formula; undefined when there is none of that name. */
export function tensorFromFormula(
  name: string,
  args: readonly number[],
  dtype: DType,
  shape: readonly number[],
): Tensor | undefined {
  if (!Object.hasOwn(formulas, name) || dtype === 'string') return undefined;
  const element = formulas[name]?.(args, dtype);
  if (element === undefined) return undefined;
  const width = dtypes[dtype].kind === 'complex' ? 2 : 1;
  const values = Float64Array.from({ length: width * elementCount(shape) }, (_, i) => element(i));
  return writeNumbers(dtype, shape, values);
}

/** Between -1 and 1 for floats, a whole number of at most 8 bits for integers. */
function randomElement(seed: number, index: number, dtype: DType): number {
  let word = Math.imul(index + 1, 0x9e3779b1) ^ Math.imul(seed + 1, 0x85ebca6b);
  word = Math.imul(word ^ (word >>> 16), 0x21f0aaad);
  word = Math.imul(word ^ (word >>> 15), 0x735a2d97);
  const bits = (word ^ (word >>> 15)) >>> 0;
  const { kind } = dtypes[dtype];
  if (kind === 'bool') return bits & 1;
  if (kind === 'uint') return bits >>> 24;
  if (kind === 'int') return (bits >>> 24) - 128;
  return bits / 2 ** 31 - 1;
}

/** Everything after the type of a constant: `{1, 2}`, `fill(0)`, `base64("…")` or `#digest`. */
export function contentsText(weight: Weight, everything = false): string {
  if (weight.dtype === 'string')
    return listed(readStrings(weight.tensor()).map((t) => JSON.stringify(t)));
  if (elementCount(weight.shape) <= LISTED_ELEMENTS) {
    const tensor = weight.tensor();
    const text = listed(elementTexts(tensor));
    // a NaN with unusual bits does not survive as a number
    if (isExact(tensor)) return text;
  }
  const formula = formulaOf(weight);
  if (formula !== undefined) return formula;
  return everything || weight.byteLength <= ENCODED_BYTES
    ? `base64("${encodeBase64(weight.bytes())}")`
    : `#${digestOf(weight)}`;
}

function listed(texts: readonly string[]): string {
  return `{${texts.join(', ')}}`;
}

function elementTexts(tensor: Tensor): readonly string[] {
  if (isWide(tensor.dtype)) return Array.from(readBigInts(tensor), String);
  const numbers = Array.from(readNumbers(tensor));
  if (tensor.dtype === 'bool') return numbers.map((flag) => (flag === 0 ? 'false' : 'true'));
  const { dtype } = tensor;
  if (!isFloat(dtype) && dtypes[dtype].kind !== 'complex') return numbers.map(String);
  return numbers.map((value) => numberText(value, rounder(dtype)));
}

function isExact(tensor: Tensor): boolean {
  if (isWide(tensor.dtype)) return true;
  const again = writeNumbers(tensor.dtype, tensor.shape, Array.from(readNumbers(tensor)));
  return sameBytes(bytesOf(again.data), bytesOf(tensor.data));
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

/** What storing a number in a dtype makes of it. */
function rounder(dtype: DType): (x: number) => number {
  if (dtype === 'f64' || dtype === 'c128') return (x) => x;
  if (dtype === 'f32' || dtype === 'c64') return Math.fround;
  return (x) => readNumbers(writeNumbers(dtype, [], [x]))[0] ?? 0;
}

/**
 * The shortest text that reads back as the same number.
 *
 * @param round - what happens to the number when it is read back
 */
export function numberText(value: number, round: (x: number) => number = Math.fround): string {
  if (Number.isNaN(value)) return 'nan';
  if (!Number.isFinite(value)) return value < 0 ? '-inf' : 'inf';
  if (Object.is(value, -0)) return '-0';
  for (let digits = 1; digits <= 9; digits++) {
    const candidate = Number(value.toPrecision(digits));
    if (round(candidate) === value) return String(candidate);
  }
  return String(value);
}

function formulaOf(weight: Weight): string | undefined {
  const { dtype, shape } = weight;
  const probe = Math.min(PROBED_ELEMENTS, elementCount(shape));
  if (dtypes[dtype].bits < 8 || dtypes[dtype].kind === 'complex') return undefined;
  const head = weight.bytes(0, (probe * dtypes[dtype].bits) / 8);
  const gives = (name: string, args: readonly number[], to: readonly number[]): Uint8Array => {
    const tensor = tensorFromFormula(name, args, dtype, to);
    return tensor === undefined ? new Uint8Array(0) : bytesOf(tensor.data);
  };
  const fits = (name: string, args: readonly number[]): boolean =>
    sameBytes(gives(name, args, [probe]), head) &&
    sameBytes(gives(name, args, shape), weight.bytes());
  const first = readHead(weight, probe);
  const [start = 0, second = 0] = first;
  const step = Number((second - start).toPrecision(6));
  for (const [name, args] of [
    ['fill', [start]],
    ['ramp', [start, step]],
  ] as const)
    if (fits(name, args)) return `${name}(${args.map((x) => numberText(x)).join(', ')})`;
  for (let seed = 0; seed < SEEDS; seed++) if (fits('random', [seed])) return `random(${seed})`;
  return undefined;
}

function readHead(weight: Weight, count: number): readonly number[] {
  const { dtype } = weight;
  const data = viewBytes(dtype, weight.bytes(0, (count * dtypes[dtype].bits) / 8));
  return Array.from(readNumbers({ dtype, shape: [count], data }));
}

/** 64 bits over the contents (Fowler, Noll and Vo, two lanes of 32 bits). */
function digestOf(weight: Weight): string {
  const { byteLength } = weight;
  const parts =
    byteLength <= 2 * DIGESTED_BYTES
      ? [weight.bytes()]
      : [
          weight.bytes(0, DIGESTED_BYTES),
          weight.bytes(byteLength - DIGESTED_BYTES, DIGESTED_BYTES),
        ];
  let [low, high] = [0x811c9dc5 ^ byteLength, 0x1b873593];
  const mix = (word: number): void => {
    low = Math.imul(low ^ word, 0x01000193);
    high = Math.imul(high ^ word, 0x85ebca6b) ^ (high >>> 13);
  };
  for (const part of parts) {
    for (const word of viewBytes('i32', part.subarray(0, part.length & ~3))) mix(Number(word));
    for (const byte of part.subarray(part.length & ~3)) mix(byte);
  }
  return [low, high].map((lane) => (lane >>> 0).toString(16).padStart(8, '0')).join('');
}

/** Base64 of any number of bytes. */
export function encodeBase64(bytes: Uint8Array): string {
  let text = '';
  // in pieces: a call takes a limited number of arguments
  for (let at = 0; at < bytes.length; at += 4096)
    text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  return btoa(text);
}

/** Bytes of a base64 text. */
export function decodeBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
