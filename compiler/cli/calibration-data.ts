/**
 * Data a compilation is calibrated and measured on: text, `.npy` and `.npz` arrays, folders of images, or what the
 * model makes up itself (`self`). What is measured on is never what was calibrated on: a file of its own
 * (`--evaluate`), else the last quarter of the calibration data.
 */
import { readdirSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { extname, join } from 'node:path';
import { readNpy } from '../../models/npy.ts';
import { readNpz } from '../../models/npz.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount, tensor } from '../../runtime/tensor.ts';
import { createTokenizer } from '../../runtime/text/tokenizer.ts';
import type { CalibrationCache } from '../calibrate/cache.ts';
import { FolderCache } from '../calibrate/cache.ts';
import type { Samples } from '../calibrate/samples.ts';
import { varyWindows } from '../calibrate/vary-windows.ts';
import {
  arraySamples,
  chooseWindows,
  LARGE_MODEL_PARAMETERS,
  LARGE_MODEL_WINDOWS,
  defaultWindows,
  randomSamples,
  tensorSamples,
  vocabularyOf,
  windowSamples,
} from '../calibrate/samples.ts';
import { countParameters } from '../choose-format.ts';
import { dimToText } from '../ir/dim.ts';
import type { Model } from '../ir/graph.ts';
import { NodeFiles } from '../node.ts';
import { defaultCacheFolder } from '../node-source.ts';
import { gateCount } from '../search/calibrated.ts';
import type { ModelSource } from '../source.ts';
import { readData, readTensor, readText, sha256Of } from './data.ts';
import { openAsIs } from './opening.ts';
import type { Output } from './output.ts';
import { sharedText } from './shared-text.ts';

/** Data of one kind, with the hash that reports name it by. */
export type NamedData =
  | { readonly kind: 'text'; readonly name: string; readonly sha256: string; readonly text: string }
  | {
      readonly kind: 'array';
      readonly name: string;
      readonly sha256: string;
      readonly array: Tensor;
      /** Of a .npz file: one for each input, `array` the first of them. */
      readonly arrays?: ReadonlyMap<string, Tensor>;
    }
  | {
      readonly kind: 'images';
      readonly name: string;
      readonly sha256: string;
      readonly files: readonly string[];
    }
  | { readonly kind: 'self'; readonly name: string; readonly sha256: string };

/** What is calibrated on and what is measured on. */
export interface DataSplit {
  /** For calibration. */
  readonly calibration: NamedData;
  /** For measuring; `self` when there is nothing to measure on. */
  readonly evaluation: NamedData;
  /** What they share, when it is too little to refuse them. */
  readonly warning?: string;
}

/** Share of the calibration data that is kept for measuring when there is no other. */
const HELD_OUT = 0.25;
/** Least samples that are divided. */
const LEAST_SAMPLES = 3;
/** Least tokens of text; less says nothing about a model. */
const LEAST_TOKENS = 64;
/** Least tokens of a window of a short text. */
const LEAST_WINDOW = 8;
/** Share of what is measured on that may be in the calibration data: quotations, headings. */
const OVERLAP = 0.01;

const imageEndings: ReadonlySet<string> = new Set([
  '.png',
  '.jpg',
  '.jpeg',
  '.webp',
  '.bmp',
  '.gif',
]);

/**
 * Reads what `--calibrate` and `--evaluate` name.
 *
 * @throws {@link FettleError} USAGE when it is empty, or both are or share the same data; IO_FAILED when
 * it cannot be read
 */
export function readSplit(calibrate: string, evaluate: string | undefined): DataSplit {
  const all = readNamed(calibrate);
  if (evaluate === undefined) return heldOut(all);
  const other = readNamed(evaluate);
  const what =
    other.sha256 === all.sha256 ? { share: 1, example: undefined } : sharedPart(all, other);
  if (what !== undefined && what.share > OVERLAP)
    throw new FettleError(
      'USAGE',
      `"${evaluate}" holds data that is calibrated on ("${calibrate}"), ${percent(what.share)} of it${what.example === undefined ? '' : `, such as "${what.example}"`}: what it measures would mean nothing.`,
      { at: { option: 'evaluate', sha256: other.sha256 }, fix: 'Give other data to one of them.' },
    );
  return {
    calibration: all,
    evaluation: other,
    ...(what === undefined
      ? {}
      : {
          warning: `"${evaluate}" and "${calibrate}" share ${percent(what.share)}, such as "${what.example}".`,
        }),
  };
}

/**
 * Reads data that something is measured on.
 *
 * @throws {@link FettleError} USAGE when it is empty, IO_FAILED when it cannot be read
 */
export function readNamed(path: string): NamedData {
  if (path === 'self') return { kind: 'self', name: 'self', sha256: sha256Of(new Uint8Array()) };
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) return imagesIn(path);
  if (extname(path) === '.npy') {
    const bytes = readData(path);
    const array = readNpy(bytes, path);
    if (array.shape.length === 0) throw empty(path);
    return { kind: 'array', name: path, sha256: sha256Of(bytes), array };
  }
  if (extname(path) === '.npz') {
    const bytes = readData(path);
    const arrays = readNpz(bytes, path);
    const [array] = arrays.values();
    if (array === undefined) throw empty(path);
    return { kind: 'array', name: path, sha256: sha256Of(bytes), array, arrays };
  }
  const { text, sha256 } = readText(path);
  if (text.trim() === '') throw empty(path);
  return { kind: 'text', name: path, sha256, text };
}

function imagesIn(folder: string): NamedData {
  const files = readdirSync(folder)
    .filter((name) => imageEndings.has(extname(name).toLowerCase()))
    .toSorted()
    .map((name) => join(folder, name));
  if (files.length === 0) throw empty(folder);
  const hashes = files.map((file) => sha256Of(readData(file))).join();
  return {
    kind: 'images',
    name: folder,
    sha256: sha256Of(new TextEncoder().encode(hashes)),
    files,
  };
}

/** The last part of the data apart from the rest. */
function heldOut(data: NamedData): DataSplit {
  const cut = (count: number): number => count - Math.max(1, Math.floor(count * HELD_OUT));
  const samples =
    data.kind === 'array'
      ? (data.array.shape[0] ?? 0)
      : data.kind === 'images'
        ? data.files.length
        : Infinity;
  if (samples < LEAST_SAMPLES)
    throw new FettleError(
      'USAGE',
      `"${data.name}" holds ${samples} ${samples === 1 ? 'sample' : 'samples'}; calibration needs ${LEAST_SAMPLES} at least, of which some are kept for measuring.`,
      { at: { data: data.name, samples }, fix: 'Give more, or other data to --evaluate.' },
    );
  const part = (name: string, of: string): Pick<NamedData, 'name' | 'sha256'> => ({
    name: `${data.name} (${name})`,
    sha256: sha256Of(new TextEncoder().encode(of)),
  });
  switch (data.kind) {
    case 'text': {
      const at = data.text.indexOf(' ', cut(data.text.length));
      const middle = at < 0 ? cut(data.text.length) : at;
      const [first, last] = [data.text.slice(0, middle), data.text.slice(middle)];
      return {
        calibration: { kind: 'text', text: first, ...part('first three quarters', first) },
        evaluation: { kind: 'text', text: last, ...part('last quarter', last) },
      };
    }
    case 'array': {
      const middle = cut(data.array.shape[0] ?? 0);
      const rows = (from: number, to?: number): NamedData => ({
        kind: 'array',
        array: rowsOf(data.array, from, to),
        ...(data.arrays === undefined
          ? {}
          : {
              arrays: new Map(
                [...data.arrays].map(([input, array]) => [input, rowsOf(array, from, to)]),
              ),
            }),
        ...part(from === 0 ? 'first three quarters' : 'last quarter', `${data.sha256} ${from}`),
      });
      return { calibration: rows(0, middle), evaluation: rows(middle) };
    }
    case 'images': {
      const middle = cut(data.files.length);
      const files = (from: number, to?: number): NamedData => ({
        kind: 'images',
        files: data.files.slice(from, to),
        ...part(from === 0 ? 'first three quarters' : 'last quarter', `${data.sha256} ${from}`),
      });
      return { calibration: files(0, middle), evaluation: files(middle) };
    }
    case 'self':
      return { calibration: data, evaluation: data };
  }
}

/** Rows `from` to `to` of an array along its first axis. */
export function rowsOf({ dtype, shape, data }: Tensor, from: number, to?: number): Tensor {
  const [count = 0, ...rest] = shape;
  const end = Math.min(to ?? count, count);
  const size = elementCount(rest);
  const part = (data as Float32Array).slice(from * size, end * size);
  return tensor(dtype, [Math.max(0, end - from), ...rest], part);
}

/** What of the second set is in the first one too; undefined when nothing is. */
function sharedPart(
  a: NamedData,
  b: NamedData,
): { readonly share: number; readonly example: string } | undefined {
  if (a.kind === 'text' && b.kind === 'text') return sharedText(a.text, b.text);
  const known = new Set(itemsOf(a).map(({ sha256 }) => sha256));
  const items = itemsOf(b);
  const common = items.filter(({ sha256 }) => known.has(sha256));
  const [first] = common;
  return first && { share: common.length / items.length, example: first.name };
}

/** Samples and files. */
function itemsOf(data: NamedData): readonly { readonly name: string; readonly sha256: string }[] {
  switch (data.kind) {
    case 'array':
      return Array.from({ length: data.array.shape[0] ?? 0 }, (_, index) => {
        const row = rowsOf(data.array, index, index + 1).data as Float32Array;
        const bytes = new Uint8Array(row.buffer, row.byteOffset, row.byteLength);
        return { name: `sample ${index}`, sha256: sha256Of(bytes) };
      });
    case 'images':
      return data.files.map((file) => ({ name: file, sha256: sha256Of(readData(file)) }));
    case 'text':
    case 'self':
      return [];
  }
}

function percent(share: number): string {
  return `${(100 * share).toFixed(share < 0.01 ? 2 : 0)}%`;
}

/**
 * Samples for a model, made from data.
 *
 * @throws {@link FettleError} USAGE when the data does not fit the model, or is too little
 */
export function samplesFrom(
  data: NamedData,
  source: ModelSource,
  output: Output,
  seed: number,
): (model: Model, decoder: DecoderSpec | undefined) => Promise<Samples> {
  return async (model, decoder) => {
    switch (data.kind) {
      case 'text': {
        const ids = await tokenize(source, data.text, data.name);
        return textSamples(ids, data.name, model, decoder, seed);
      }
      case 'array': {
        // token ids, one window a row
        if (decoder !== undefined)
          return windowSamples(model, decoder, windowsOf(data.array, data.name), data.name);
        const [input, second] = model.graph.inputs;
        // a model with one input takes the only array, whatever its name
        const named = data.arrays !== undefined && (second !== undefined || data.arrays.size > 1);
        const arrays = named ? data.arrays : new Map([[input?.name ?? '', data.array]]);
        return arraySamples(model, arrays ?? new Map(), data.name);
      }
      case 'images': {
        const [input] = model.graph.inputs;
        const { name = '', dtype = 'f32', shape = [] } = input ?? {};
        const dims = shape.map((dim) => (typeof dim === 'number' ? dim : dimToText(dim)));
        const tensors: Tensor[] = [];
        for (const file of data.files)
          tensors.push(await readTensor(file, { name, dtype, shape: dims }));
        return tensorSamples(name, tensors, data.name);
      }
      case 'self':
        return decoder === undefined
          ? randomSamples(model, RANDOM_SAMPLES, seed)
          : textSamples(
              await ownText(source, decoder, output, seed),
              'text of the model itself',
              model,
              decoder,
              seed,
            );
    }
  };
}

/**
 * Rows of an array of token ids.
 *
 * @throws {@link FettleError} USAGE when it is something else
 */
export function windowsOf(
  { dtype, shape, data }: Tensor,
  name: string,
): readonly (readonly number[])[] {
  if (shape.length !== 2 || !/^[iu]\d/.test(dtype))
    throw new FettleError(
      'USAGE',
      `"${name}" is ${dtype} [${shape.join(', ')}]; the model takes token ids, integers [windows, tokens].`,
      { at: { data: name }, fix: 'Give a text, or token ids.' },
    );
  const length = shape.at(-1) ?? 1;
  const ids = Array.from(data as ArrayLike<number | bigint>, Number);
  return Array.from({ length: Math.floor(ids.length / Math.max(1, length)) }, (_, row) =>
    ids.slice(row * length, (row + 1) * length),
  );
}

/** Samples made up for a model that is no decoder. */
const RANDOM_SAMPLES = 64;
/** Windows and tokens of each that a model writes for itself. */
const OWN_WINDOWS = 24;
const OWN_TOKENS = 128;

/**
 * Checks, before hours of work, that something can be measured on data.
 *
 * @throws {@link FettleError} USAGE when it is too short
 */
export async function checkEvaluation(data: NamedData, source: ModelSource): Promise<void> {
  if (data.kind !== 'text') return;
  const { length } = await tokenize(source, data.text, data.name);
  if (length < LEAST_TOKENS) throw tooShort(data.name, length, 'measuring');
}

function tooShort(name: string, tokens: number, what: string): FettleError {
  return new FettleError(
    'USAGE',
    `"${name}" has ${tokens} tokens; ${what} needs ${LEAST_TOKENS} at least.`,
    { at: { data: name, tokens }, fix: 'Give a longer text.' },
  );
}

/** Ids of a text. */
export async function tokenize(
  source: ModelSource,
  text: string,
  name: string,
): Promise<readonly number[]> {
  const { text: files } = source;
  if (files === undefined)
    throw new FettleError('USAGE', `"${source.name}" has no tokenizer for the text "${name}".`, {
      at: { model: source.name, data: name },
      fix: 'Put its tokenizer.json beside it, or give samples as .npy.',
    });
  const parse = (bytes: Uint8Array): object =>
    JSON.parse(new TextDecoder().decode(bytes)) as object;
  const config = files.tokenizerConfig === undefined ? {} : parse(files.tokenizerConfig);
  const tokenizer = await createTokenizer(parse(files.tokenizer), config);
  return tokenizer.encode(text, false);
}

function textSamples(
  ids: readonly number[],
  name: string,
  model: Model,
  decoder: DecoderSpec | undefined,
  seed: number,
): Samples {
  if (ids.length < LEAST_TOKENS) throw tooShort(name, ids.length, 'calibration');
  const context = decoder?.contextLength ?? defaultWindows.length;
  // a short text in eight windows still leaves one to compare formats on
  const length = Math.max(
    LEAST_WINDOW,
    Math.min(defaultWindows.length, context, Math.floor(ids.length / 8)),
  );
  const isLarge = countParameters(model) > LARGE_MODEL_PARAMETERS;
  const count = isLarge ? LARGE_MODEL_WINDOWS : defaultWindows.count;
  const windows = chooseWindows(ids, name, { length, count, seed });
  const kept = gateCount({ count: windows.length, tokens: length });
  const varied = varyWindows(windows, kept, vocabularyOf(model, decoder, name), seed);
  return windowSamples(model, decoder, varied, name);
}

/** Text that a model writes, from its start token on, each window for itself. */
async function ownText(
  source: ModelSource,
  decoder: DecoderSpec,
  output: Output,
  seed: number,
): Promise<readonly number[]> {
  const session = await openAsIs(source, output);
  try {
    const ids: number[] = [];
    const tokens = Math.min(OWN_TOKENS, decoder.contextLength - 1);
    for (let window = 0; window < OWN_WINDOWS; window++) {
      output.progress('write text', window, OWN_WINDOWS);
      const start = decoder.startId ?? decoder.endIds?.[0] ?? 0;
      const settings = { maxTokens: tokens, temperature: 1, topK: 0, topP: 1, ignoreEnd: true };
      const written = session.generate([start], {
        ...settings,
        seed: seed + window,
        signal: output.signal,
      });
      ids.push(start);
      for await (const { id } of written) ids.push(id);
    }
    return ids;
  } finally {
    await session.dispose();
  }
}

/** The folder of finished parts of calibration. */
export function calibrationCache(folder: string | undefined): CalibrationCache {
  const place = folder ?? join(defaultCacheFolder(process.env, homedir()), 'calibration');
  return new FolderCache(new NodeFiles(), place);
}

function empty(path: string): FettleError {
  return new FettleError('USAGE', `"${path}" holds nothing to calibrate on.`, {
    at: { data: path },
    fix: 'Give a text, samples as .npy or .npz, or a folder of images.',
  });
}
