/**
 * Canaries: small seeded inputs whose outputs were computed when the bundle was made. A session
 * replays them to find out whether this engine, on this machine, still computes the same.
 *
 * A decoder gets two cases: a first call with an empty cache, and one token after a few with a seeded
 * cache. Every other model gets one. File format: docs/bundle.md, "Canaries".
 */
import { FettleError } from '../../runtime/errors.ts';
import { toHalfArray } from '../../runtime/half.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import type { Tensor, TensorData } from '../../runtime/tensor.ts';
import {
  bytesFor,
  bytesOf,
  dtypes,
  elementCount,
  tensor,
  viewBytes,
} from '../../runtime/tensor.ts';
import { substituteDim, symbolsOf } from '../ir/dim.ts';
import type { Model, Value } from '../ir/graph.ts';
import { jsonBytes } from './json.ts';
import { batchAxis } from './open-sizes.ts';

/** Tensors by input or output name. */
export type Tensors = ReadonlyMap<string, Tensor>;

/** One case of a canary file. */
export interface Canary {
  /** Every input of the model. */
  readonly inputs: Tensors;
  /** Some of its outputs. */
  readonly outputs: Tensors;
}

/** Elements of all inputs of a canary: a bundle should not grow by its checks. */
const INPUT_ELEMENTS = 1 << 22;

/** Sizes a canary uses where the model leaves them open. */
const FIRST_TOKENS = 2;
const PAST_TOKENS = 2;
const PIXELS = 64;

/**
 * Sizes of open axes other than batch and pixels, in the order they are tried: a filter bank or a
 * transform needs a few hundred samples where tokens are few.
 */
export const stepSizes: readonly number[] = [8, 256, 512];

/**
 * Inputs of the canaries of a model. The same model and seed give the same inputs.
 *
 * @param model - the model that is emitted, with inferred input types
 * @param decoder - how it is driven, when it is a decoder
 * @param seed - of the random contents
 * @param steps - size of open axes, see {@link stepSizes}; decoders have sizes of their own
 * @throws {@link FettleError} SHAPE_UNKNOWN when an input has no rank or cannot be made up
 */
export function canaryInputs(
  model: Model,
  decoder: DecoderSpec | undefined,
  seed: number,
  steps: number = stepSizes[0] ?? 8,
): readonly Tensors[] {
  if (decoder === undefined) return [plainInputs(model, seed, steps)];
  const first = Math.min(FIRST_TOKENS, decoder.contextLength);
  const calls = [decoderInputs(model, decoder, first, 0, seed)];
  if (decoder.contextLength > PAST_TOKENS)
    calls.push(decoderInputs(model, decoder, 1, PAST_TOKENS, seed + 1));
  return calls;
}

/** The canary file of these cases. */
export function encodeCanaries(cases: readonly Canary[]): Uint8Array {
  const parts: Uint8Array[] = [];
  let end = 0;
  const place = (tensors: Tensors): Record<string, object> =>
    Object.fromEntries(
      [...tensors].map(([name, { dtype, shape, data }]) => {
        const bytes = bytesOf(data);
        const offset = end;
        const padded = new Uint8Array(Math.ceil(bytes.length / 16) * 16);
        padded.set(bytes);
        parts.push(padded);
        end += padded.length;
        return [name, { dtype, shape, offset, bytes: bytesFor(dtype, elementCount(shape)) }];
      }),
    );
  const header = jsonBytes({
    cases: cases.map(({ inputs, outputs }) => ({ inputs: place(inputs), outputs: place(outputs) })),
  });
  const start = Math.ceil((4 + header.length) / 16) * 16;
  const file = new Uint8Array(start + end);
  new DataView(file.buffer).setUint32(0, header.length, true);
  file.set(header, 4);
  let at = start;
  for (const part of parts) {
    file.set(part, at);
    at += part.length;
  }
  return file;
}

function plainInputs(model: Model, seed: number, steps: number): Tensors {
  const random = uniform(seed);
  const sizes = new Map<string, number>();
  for (const { shape } of model.graph.inputs)
    shape?.forEach((dim, axis) => {
      for (const symbol of symbolsOf(dim))
        if (!sizes.has(symbol))
          sizes.set(symbol, axis === batchAxis(shape) ? 1 : shape.length === 4 ? PIXELS : steps);
    });
  const shapes = model.graph.inputs.map((input) => [input, sizesOf(input, sizes)] as const);
  // before anything is allocated
  const elements = shapes.reduce((sum, [, shape]) => sum + elementCount(shape), 0);
  if (elements > INPUT_ELEMENTS)
    throw new FettleError('SHAPE_UNKNOWN', `The inputs have ${elements} elements: too many.`, {
      at: { elements },
      fix: 'Fix smaller sizes with --shape, or compile without canaries.',
    });
  return new Map(shapes.map(([input, shape]) => [input.name, randomTensor(input, shape, random)]));
}

function decoderInputs(
  model: Model,
  decoder: DecoderSpec,
  sequence: number,
  past: number,
  seed: number,
): Tensors {
  const random = uniform(seed);
  const total = past + sequence;
  const flags = {
    'use-cache': past > 0 ? 1 : 0,
    'sequence-length': sequence,
    'past-length': past,
    'total-length': total,
    'last-position': total - 1,
  };
  const make = (input: Value): Tensor => {
    const { name, dtype = 'f32' } = input;
    if (name === decoder.ids)
      return filled(dtype, [1, sequence], () => Math.floor(random() * decoder.vocabulary));
    if (name === decoder.mask) return filled(dtype, [1, total], () => 1);
    if (name === decoder.positions) return filled(dtype, [1, sequence], (i) => past + i);
    const flag = decoder.flags?.find((entry) => entry.input === name);
    if (flag !== undefined)
      return filled(dtype, (input.shape ?? []).map(one), () => flags[flag.value]);
    const state = decoder.state.find((entry) => entry.input === name);
    if (state === undefined) throw unknownInput(input);
    const shape = state.shape.map((dim, axis) => (axis === state.axis ? past : one(dim)));
    return filled(dtype, shape, () => 2 * random() - 1);
  };
  return new Map(model.graph.inputs.map((input) => [input.name, make(input)]));
}

function one(dim: number | string): number {
  return typeof dim === 'number' ? dim : 1;
}

function sizesOf(input: Value, sizes: ReadonlyMap<string, number>): readonly number[] {
  return (input.shape ?? fail(input)).map((dim) => {
    const size = substituteDim(dim, sizes);
    return typeof size === 'number' && size >= 0 ? size : fail(input);
  });
}

/** Random contents that a model is likely to accept. */
function randomTensor(input: Value, shape: readonly number[], random: () => number): Tensor {
  const dtype = input.dtype ?? fail(input);
  const { kind } = dtypes[dtype];
  if (/mask/.test(input.name)) return filled(dtype, shape, () => 1);
  if (kind === 'float') return filled(dtype, shape, () => random());
  if (kind === 'bool') return filled(dtype, shape, (i) => i % 2);
  if (kind === 'int' || kind === 'uint') {
    const rows = indexedRows(input);
    // scalars are sizes, rates and the like: the smallest number that is none of the special ones
    return filled(dtype, shape, () => (shape.length === 0 ? 1 : Math.floor(random() * rows)));
  }
  throw unknownInput(input);
}

/** Rows of the smallest constant table that an input indexes; 2 when none is seen. */
function indexedRows(input: Value): number {
  const rows: number[] = [];
  for (const node of input.users.keys()) {
    const size = node.inputs[0]?.shape?.[node.int('axis', 0)];
    if (node.op === 'Gather' && node.inputs[1] === input && typeof size === 'number')
      rows.push(size);
  }
  return rows.length === 0 ? 2 : Math.max(1, Math.min(...rows));
}

function filled(
  dtype: NonNullable<Value['dtype']>,
  shape: readonly number[],
  at: (index: number) => number,
): Tensor {
  const values = Float64Array.from({ length: elementCount(shape) }, (_, index) => at(index));
  return tensor(dtype, shape, dataOf(dtype, values));
}

function dataOf(dtype: NonNullable<Value['dtype']>, values: Float64Array): TensorData {
  if (dtype === 'f16') return toHalfArray(values);
  // the upper half of the f32 pattern is the value rounded towards zero
  if (dtype === 'bf16')
    return Uint16Array.from(
      new Uint32Array(Float32Array.from(values).buffer),
      (word) => word >>> 16,
    );
  const { bits, kind } = dtypes[dtype];
  if (bits < 8 || (kind === 'float' && bits === 8) || kind === 'complex' || kind === 'string')
    throw new FettleError('SHAPE_UNKNOWN', `No canary input can be made up for dtype ${dtype}.`, {
      at: { dtype },
      fix: 'Compile without canaries.',
    });
  const data = viewBytes(dtype, new Uint8Array(bytesFor(dtype, values.length)));
  values.forEach((value, index) => {
    if (data instanceof BigInt64Array || data instanceof BigUint64Array)
      data[index] = BigInt(value);
    else data[index] = value;
  });
  return data;
}

/** Uniform numbers in [0, 1) from a seed (mulberry32). */
function uniform(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let word = Math.imul(state ^ (state >>> 15), 1 | state);
    word = (word + Math.imul(word ^ (word >>> 7), 61 | word)) ^ word;
    return ((word ^ (word >>> 14)) >>> 0) / 2 ** 32;
  };
}

function fail(input: Value): never {
  throw unknownInput(input);
}

function unknownInput(input: Value): FettleError {
  return new FettleError('SHAPE_UNKNOWN', `No canary can be made for the input "${input.name}".`, {
    at: { value: input.name },
    fix: 'Fix its sizes with --shape, or compile without canaries.',
  });
}
