/**
 * Canaries: small inputs with the outputs the original model gave, stored in the bundle and replayed by
 * `session.check()` on whatever engine and device the session has. Format: docs/bundle.md, "Canaries".
 */
import type { Checked } from './check.ts';
import { parseJson, renew } from './check.ts';
import { FettleError } from './errors.ts';
import { halfToFloat } from './half.ts';
import type { CanarySpec } from './manifest.ts';
import type { Tensor } from './tensor.ts';
import { bytesFor, dtypes, elementCount, isDType, viewBytes } from './tensor.ts';

/** Inputs and what they should give. */
export interface Canary {
  /** Every input of the model. */
  readonly inputs: Readonly<Record<string, Tensor>>;
  /** What some of its outputs should be. */
  readonly outputs: Readonly<Record<string, Tensor>>;
}

/** How far one output of one canary was off. */
export interface CanaryResult {
  /** Which canary, from 0. */
  readonly index: number;
  /** Name of the output. */
  readonly output: string;
  /** Largest |difference|; infinite when shapes differ or a NaN appears. */
  readonly maxError: number;
  /** Range of the expected output that `maxError` is compared with. */
  readonly range: number;
  /** `maxError <= tolerance * range`. */
  readonly passed: boolean;
}

/** What `session.check()` found. */
export interface CheckReport {
  /** Whether every output of every canary passed. */
  readonly passed: boolean;
  /** Largest accepted error as a fraction of an output's range. */
  readonly tolerance: number;
  /** One entry for each output of each canary. */
  readonly results: readonly CanaryResult[];
}

/**
 * Reads a canary file.
 *
 * @throws {@link FettleError} BUNDLE_CORRUPT when it is not what docs/bundle.md says
 */
export function readCanaries(bytes: Uint8Array<ArrayBuffer>, file: string): readonly Canary[] {
  const headerBytes =
    bytes.length < 4 ? 0 : new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  if (headerBytes === 0 || 4 + headerBytes > bytes.length)
    throw new FettleError('BUNDLE_CORRUPT', `Cannot read "${file}": its header is cut off.`, {
      at: { file },
      fix: renew,
    });
  const header = parseJson(bytes.subarray(4, 4 + headerBytes), file);
  const start = Math.ceil((4 + headerBytes) / 16) * 16;
  const data = bytes.subarray(Math.min(start, bytes.length));
  const tensors = (item: Checked): Readonly<Record<string, Tensor>> =>
    item.record((entry) => readTensor(entry, data));
  return header
    .get('cases')
    .list(
      (item) => ({ inputs: tensors(item.get('inputs')), outputs: tensors(item.get('outputs')) }),
      64,
    );
}

function readTensor(item: Checked, data: Uint8Array): Tensor {
  const dtype = item.get('dtype').raw();
  if (!isDType(dtype) || dtypes[dtype].array === undefined)
    throw item.get('dtype').wrong('a dtype of fixed size');
  const shape = item.get('shape').list((size) => size.integer(), 64);
  const offset = item.get('offset').integer();
  const bytes = item.get('bytes').integer();
  if (offset % 16 !== 0) throw item.get('offset').wrong('a multiple of 16');
  if (offset + bytes > data.length)
    throw item.wrong(`an end within ${data.length} bytes`, `${offset + bytes}`);
  if (bytesFor(dtype, elementCount(shape)) !== bytes)
    throw item.get('bytes').wrong(`the size of ${dtype} [${shape}]`);
  // A copy, because engines may keep or change what they are fed.
  return { dtype, shape, data: viewBytes(dtype, data.slice(offset, offset + bytes)) };
}

/** Compares what came out with what was expected. */
export function compareCanary(
  index: number,
  expected: Canary['outputs'],
  got: Readonly<Record<string, Tensor>>,
  { tolerance }: CanarySpec,
): readonly CanaryResult[] {
  return Object.entries(expected).map(([output, wanted]) => {
    const actual = got[output];
    const [maxError, range] = actual === undefined ? [Infinity, 0] : largestError(wanted, actual);
    return { index, output, maxError, range, passed: maxError <= tolerance * range };
  });
}

function largestError(wanted: Tensor, actual: Tensor): [maxError: number, range: number] {
  const count = elementCount(wanted.shape);
  const same =
    wanted.dtype === actual.dtype &&
    wanted.shape.length === actual.shape.length &&
    wanted.shape.every((size, axis) => size === actual.shape[axis]);
  if (!same) return [Infinity, 0];
  let [low, high, largest] = [Infinity, -Infinity, 0];
  for (let i = 0; i < count; i++) {
    const value = element(wanted, i);
    const other = element(actual, i);
    if (value < low) low = value;
    if (value > high) high = value;
    const error = Math.abs(value - other);
    // NaN - NaN and inf - inf agree; any other NaN is as wrong as can be.
    if (!Object.is(value, other) && !(error <= largest))
      largest = Number.isNaN(error) ? Infinity : error;
  }
  const range = high - low;
  return [largest, range > 0 ? range : Math.max(Math.abs(high), Math.abs(low), 0)];
}

function element({ dtype, data }: Tensor, index: number): number {
  const value = data[index];
  if (dtype === 'f16') return halfToFloat(Number(value));
  return typeof value === 'bigint' ? Number(value) : Number(value ?? 0);
}
