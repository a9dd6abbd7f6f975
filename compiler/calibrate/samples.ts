/**
 * What calibration runs the model on: windows of token ids, arrays, images, or samples of the model's
 * own making. All samples of a set have the same shapes, one item each, so that one plan fits all.
 *
 * Where files come from is the business of `node-samples.ts`; this has no files in it.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import { sha256 } from '../../runtime/sha256.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { dtypes, elementCount, tensor } from '../../runtime/tensor.ts';
import { createRandom } from '../../runtime/text/random.ts';
import type { Model, Value } from '../ir/graph.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';

/** Samples of one kind. */
export interface Samples {
  /** What the user named, for messages and reports. */
  readonly name: string;
  /** Lower-case hex SHA-256 of what is fed. */
  readonly sha256: string;
  /** How many. */
  readonly count: number;
  /** Tokens of a sample; 1 of anything but text. */
  readonly tokens: number;
  /** Token ids of each sample, of text. */
  readonly ids?: readonly (readonly number[])[];
  /** Shape of every input that is no cache. */
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** Inputs of one sample. */
  at(index: number): ReadonlyMap<string, Tensor>;
}

/** Which windows of a text are taken. */
export interface WindowOptions {
  /** Windows at most. Default 64. */
  readonly count?: number;
  /** Tokens of a window. Default 256, at most the model's context. */
  readonly length?: number;
  /** Which ones. Default 1. */
  readonly seed?: number;
}

/** Windows that calibration takes when nothing else is said. */
export const defaultWindows: Required<WindowOptions> = { count: 64, length: 256, seed: 1 };

/** Models with more parameters than this get {@link LARGE_MODEL_WINDOWS} windows by default. */
export const LARGE_MODEL_PARAMETERS = 50_000_000;

/** Windows for large models: 8,192 tokens. */
export const LARGE_MODEL_WINDOWS = 32;

/**
 * Seeded windows of a text: stretches that do not overlap, in order.
 *
 * @param ids - the text
 * @throws {@link FettleError} USAGE when the text is shorter than one window
 */
export function chooseWindows(
  ids: readonly number[],
  name: string,
  options: WindowOptions = {},
): readonly (readonly number[])[] {
  const { count, length, seed } = { ...defaultWindows, ...options };
  const stretches = Math.floor(ids.length / length);
  if (stretches < 1)
    throw new FettleError(
      'USAGE',
      `"${name}" has ${ids.length} tokens; calibration needs one window of ${length} at least.`,
      { at: { data: name }, fix: 'Give a longer text.' },
    );
  const random = createRandom(seed);
  const places = Array.from({ length: stretches }, (_, index) => index);
  // the first `count` of a shuffle
  const most = Math.min(count, stretches);
  for (let i = 0; i < most; i++) {
    const j = i + Math.floor(random() * (stretches - i));
    [places[i], places[j]] = [places[j] ?? 0, places[i] ?? 0];
  }
  return places
    .slice(0, most)
    .sort((a, b) => a - b)
    .map((place) => ids.slice(place * length, (place + 1) * length));
}

/**
 * Windows of token ids as samples.
 *
 * @param model - shapes inferred
 * @param decoder - how it is driven, when it is a decoder
 * @param windows - of equal length
 * @throws {@link FettleError} USAGE when an id is none of the model's, or an input cannot be made up
 */
export function windowSamples(
  model: Model,
  decoder: DecoderSpec | undefined,
  windows: readonly (readonly number[])[],
  name: string,
): Samples {
  const tokens = windows[0]?.length ?? 0;
  const ids = decoder?.ids ?? findIds(model, name).name;
  const vocabulary = vocabularyOf(model, decoder, name);
  for (const window of windows) checkIds(window, vocabulary, name);
  const caches = new Set(decoder?.state.map(({ input }) => input));
  const inputs = model.graph.inputs.filter((input) => !caches.has(input.name));
  const shapes = new Map(inputs.map((input) => [input.name, windowShape(input, tokens)]));
  return {
    name,
    sha256: hashOf(JSON.stringify([inputs.map((input) => input.name), windows])),
    count: windows.length,
    tokens,
    ids: windows,
    shapes,
    at: (index) => {
      const window = windows[index] ?? [];
      return new Map(
        inputs.map((input) => {
          const value = valueOf(input, ids, decoder, window);
          const shape = shapes.get(input.name) ?? [];
          const values = Float64Array.from({ length: elementCount(shape) }, (_, at) => value(at));
          return [input.name, writeNumbers(input.dtype ?? 'i64', shape, values)];
        }),
      );
    },
  };
}

/**
 * How many tokens a model knows.
 *
 * @param name - of the data, for messages
 * @throws {@link FettleError} USAGE when no input takes token ids
 */
export function vocabularyOf(model: Model, decoder: DecoderSpec | undefined, name: string): number {
  return decoder?.vocabulary ?? tableRows(model, findIds(model, name).name);
}

/**
 * Arrays as samples: their first axis counts samples.
 *
 * @param model - shapes inferred
 * @param arrays - one for each input
 * @throws {@link FettleError} USAGE when arrays do not fit the inputs or one another, or hold nothing
 */
export function arraySamples(
  model: Model,
  arrays: ReadonlyMap<string, Tensor>,
  name: string,
): Samples {
  const wrong = (message: string, fix: string): FettleError =>
    new FettleError('USAGE', message, { at: { data: name }, fix });
  const { inputs } = model.graph;
  const missing = inputs.find((input) => !arrays.has(input.name));
  if (missing !== undefined)
    throw wrong(
      `"${name}" has nothing for input "${missing.name}".`,
      'Give a .npz file with an array for every input.',
    );
  const counts = inputs.map((input) => arrays.get(input.name)?.shape[0] ?? 0);
  const count = counts[0] ?? 0;
  if (count === 0) throw wrong(`"${name}" holds no samples.`, 'Give more data.');
  if (counts.some((other) => other !== count))
    throw wrong(
      `The arrays of "${name}" hold ${counts.join(' and ')} samples.`,
      'Give equally many for each input.',
    );
  const given = inputs.map((input) => {
    const array = arrays.get(input.name);
    if (array === undefined) throw wrong(`"${input.name}" is missing.`, 'Give it.');
    return [input.name, fitting(input, array, name)] as const;
  });
  return {
    name,
    sha256: hashOf(...given.map(([, array]) => array)),
    count,
    tokens: 1,
    shapes: new Map(given.map(([input, { shape }]) => [input, [1, ...shape.slice(1)]])),
    at: (index) => new Map(given.map(([input, array]) => [input, itemOf(array, index)])),
  };
}

/**
 * Tensors of one sample each, images for instance, as samples.
 *
 * @throws {@link FettleError} USAGE when there are none, or their shapes differ
 */
export function tensorSamples(input: string, tensors: readonly Tensor[], name: string): Samples {
  const [first] = tensors;
  if (first === undefined)
    throw new FettleError('USAGE', `"${name}" holds no samples.`, {
      at: { data: name },
      fix: 'Give a folder of images, or an array.',
    });
  const odd = tensors.find(({ shape }) => shape.join() !== first.shape.join());
  if (odd !== undefined)
    throw new FettleError(
      'USAGE',
      `The samples of "${name}" differ in shape: [${first.shape.join(', ')}] and [${odd.shape.join(', ')}].`,
      { at: { data: name }, fix: `Fix the sizes with --shape ${input}=${first.shape.join('x')}.` },
    );
  return {
    name,
    sha256: hashOf(...tensors),
    count: tensors.length,
    tokens: 1,
    shapes: new Map([[input, first.shape]]),
    at: (index) => new Map([[input, tensors[index] ?? first]]),
  };
}

/** A part of a set: samples `from` to `to`. */
export function partOf(samples: Samples, from: number, to: number): Samples {
  const ids = samples.ids?.slice(from, to);
  return {
    ...samples,
    sha256: hashOf(`${samples.sha256} ${from} ${to}`),
    count: Math.max(0, Math.min(to, samples.count) - from),
    ...(ids === undefined ? {} : { ids }),
    at: (index) => samples.at(from + index),
  };
}

/** The integer input that indexes a table: of an encoder, by the names exporters write. */
function findIds(model: Model, name: string): Value {
  const found = model.graph.inputs.find(
    (input) => /(^|_)ids$|^tokens$/.test(input.name) && isInteger(input),
  );
  if (found !== undefined) return found;
  throw new FettleError('USAGE', `The model takes no text, which "${name}" is.`, {
    at: { data: name },
    fix: 'Give a .npy or .npz file, or a folder of images.',
  });
}

function isInteger({ dtype }: Value): boolean {
  return dtype !== undefined && ['int', 'uint'].includes(dtypes[dtype].kind);
}

/** Rows of the table that ids index; what comes before the lookup may cast them. */
function tableRows(model: Model, ids: string): number {
  const input = model.graph.inputs.find((value) => value.name === ids);
  for (const node of input?.users.keys() ?? []) {
    const rows = node.op === 'Gather' ? node.inputs[0]?.shape?.[0] : undefined;
    if (typeof rows === 'number') return rows;
  }
  return Infinity;
}

function checkIds(ids: readonly number[], vocabulary: number, name: string): void {
  const wrong = ids.find((id) => !(id >= 0 && id < vocabulary));
  if (wrong === undefined) return;
  throw new FettleError(
    'USAGE',
    `"${name}" gives token ${wrong}; the model knows 0 to ${vocabulary - 1}. The tokenizer is not the model's.`,
    { at: { data: name, token: wrong }, fix: 'Use the tokenizer.json that came with the model.' },
  );
}

/** Shape of an input for one window: whatever is open is 1 (batches) or the window. */
function windowShape({ shape = [] }: Value, tokens: number): readonly number[] {
  return shape.map((dim, axis) =>
    typeof dim === 'number' ? dim : axis === 0 && shape.length > 1 ? 1 : tokens,
  );
}

/** The elements of an input for one window. */
function valueOf(
  { name }: Value,
  ids: string,
  decoder: DecoderSpec | undefined,
  window: readonly number[],
): (at: number) => number {
  if (name === ids) return (at) => window[at] ?? 0;
  if (name === decoder?.positions || /position/.test(name)) return (at) => at;
  const flag = decoder?.flags?.find(({ input }) => input === name);
  if (flag !== undefined) {
    const flags = {
      'use-cache': 0,
      'past-length': 0,
      'sequence-length': window.length,
      'total-length': window.length,
      'last-position': window.length - 1,
    };
    return () => flags[flag.value];
  }
  // masks are open; segments are the first
  return /type|segment/.test(name) ? () => 0 : () => 1;
}

/** An array in the dtype of an input; bytes are pixels, scaled to 0..1 for floats. */
function fitting(input: Value, array: Tensor, name: string): Tensor {
  const { dtype = array.dtype, shape } = input;
  const fits =
    shape === undefined ||
    (shape.length === array.shape.length &&
      shape.every(
        (dim, axis) => axis === 0 || typeof dim !== 'number' || dim === array.shape[axis],
      ));
  if (!fits)
    throw new FettleError(
      'USAGE',
      `"${name}" is [${array.shape.join(', ')}]; input "${input.name}" takes [${shape?.join(', ')}].`,
      {
        at: { data: name, input: input.name },
        fix: 'Give an array whose first axis counts samples.',
      },
    );
  if (array.dtype === dtype) return array;
  const [given, wanted] = [dtypes[array.dtype].kind, dtypes[dtype].kind];
  const isPixels = array.dtype === 'u8' && wanted === 'float';
  const isWhole = (kind: string): boolean => kind === 'int' || kind === 'uint' || kind === 'bool';
  // counted in what unit? a guess would calibrate on numbers that the model never sees
  if (given !== wanted && !isPixels && !(isWhole(given) && isWhole(wanted)))
    throw new FettleError(
      'USAGE',
      `"${name}" is ${array.dtype}; input "${input.name}" takes ${dtype}.`,
      {
        at: { data: name, input: input.name },
        fix: wanted === 'float' ? 'Give floats, or pixels as bytes.' : 'Give integers.',
      },
    );
  const numbers = readNumbers(array);
  return writeNumbers(
    dtype,
    array.shape,
    isPixels ? Float64Array.from(numbers, (byte) => byte / 255) : numbers,
  );
}

/** Item `index` of an array along axis 0, sharing storage. */
function itemOf({ dtype, shape, data }: Tensor, index: number): Tensor {
  const count = elementCount(shape) / (shape[0] ?? 1);
  const part = (data as Float32Array).subarray(index * count, (index + 1) * count);
  return tensor(dtype, [1, ...shape.slice(1)], part);
}

function hashOf(...parts: readonly (string | Tensor)[]): string {
  const text = parts.map((part) =>
    typeof part === 'string' ? part : `${part.dtype} ${part.shape.join()} ${sha256(bytesIn(part))}`,
  );
  return sha256(new TextEncoder().encode(text.join('\n')));
}

function bytesIn({ data }: Tensor): Uint8Array {
  if (ArrayBuffer.isView(data))
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return new TextEncoder().encode(JSON.stringify(data));
}

/** Seeded normal numbers for every input of a model nobody gave data for; a fallback, and named so. */
export function randomSamples(model: Model, count: number, seed: number): Samples {
  const random = createRandom(seed);
  const normal = (): number =>
    Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const arrays = model.graph.inputs.map((input): [string, Tensor] => {
    const { dtype = 'f32', shape = [], name } = input;
    const sizes = shape.map((dim, axis) => (typeof dim === 'number' ? dim : axis === 0 ? 1 : 8));
    const total = [count * (sizes[0] ?? 1), ...sizes.slice(1)];
    const { kind } = dtypes[dtype];
    const value = (): number =>
      kind === 'float'
        ? normal()
        : /mask/.test(name)
          ? 1
          : Math.floor(random() * (kind === 'bool' ? 2 : 16));
    if (dtype === 'string')
      throw new FettleError('USAGE', `Input "${name}" is text: nothing can be made up for it.`, {
        at: { input: name },
        fix: 'Give calibration data.',
      });
    const values = Float64Array.from({ length: elementCount(total) }, value);
    return [name, writeNumbers(dtype, total, values)];
  });
  return { ...arraySamples(model, new Map(arrays), 'random numbers'), tokens: 1 };
}
