/**
 * The recipe: everything that decides what a compilation produces, as JSON. Every flag of
 * `fettle compile` is one of its fields, and the bundle stores it. What it leaves out has the
 * default stated beside the field, so two equal recipes mean two equal bundles.
 *
 * { "weights": "w4g32", "maxSize": "3MB" }  ->  { weights: 'w4g32', maxSize: 3000000, … }
 */
import { FettleError, nearest } from '../runtime/errors.ts';
import { parseFormat } from './quant/formats.ts';
import type { Activations } from './activations.ts';
import type { BaselineName } from './search/baselines.ts';
import { baselineNames } from './search/baselines.ts';
import { choiceOf, sortTransforms, transformSpellings } from './transforms.ts';
import { parseFraction, parseSize } from './units.ts';

/** Sizes of one input, or the one size of a symbol; `?` for a size that stays open. */
export type InputShape = readonly (number | '?')[];

/** What decides a compilation. Made by {@link parseRecipe}, which fills in the defaults. */
export interface Recipe {
  /**
   * Format of weight matrices and tables: `f32`, `f16`, `w8g32`, `w4g32`, …; `auto` for a format of its
   * own for each that meets the budgets, `auto:4.2` for 4.2 bits a parameter on average, everything in
   * the weight files counted. Absent: with calibration data and a budget as `auto`; without data the best
   * uniform format that meets `maxSize`, or the model's own dtypes when there is no size budget.
   */
  readonly weights?: string;
  /** Tables that rows are gathered from: `same` as `weights`, `keep` their dtype, or a format of their own. */
  readonly embeddings: string;
  /** Scales of quantized weights: `mse` searches the clip of least squared error, `none` spans the range. */
  readonly clip: 'mse' | 'none';
  /** Constants that keep their dtype: names, or patterns with `*`. */
  readonly skip: readonly string[];
  /** Sizes to specialize for, by the name of an input or of a size: `{ x: [1, 3, 48, 320], batch: [1] }`. */
  readonly shapes: Readonly<Record<string, InputShape>>;
  /** Values of inputs that become constants: `{ sr: 16000 }`; every element of the input gets it. */
  readonly fixed: Readonly<Record<string, number>>;
  /** Most tokens, past and present together. Absent: what the model allows, which is the most. */
  readonly contextLength?: number;
  /** Most bytes of the bundle, every file counted. */
  readonly maxSize?: number;
  /** Most bytes of weights, arena and state together, as the engine holds them. */
  readonly maxMemory?: number;
  /** Largest accepted loss of quality, as a fraction (0.01 for 1%). */
  readonly maxLoss?: number;
  /**
   * How weights are rounded, see {@link roundings}. Absent: `gptq` with calibration data, else `nearest`.
   */
  readonly rounding?: RoundingName;
  /** How `auto` divides a budget: `ours`, or a baseline to compare with. Absent: `ours`. */
  readonly allocate?: 'ours' | BaselineName;
  /** What refines the division: `evolve` measures mutants of it. Absent: nothing. */
  readonly refine?: 'none' | 'evolve';
  /**
   * Exact changes of weights before they are rounded, `name` or `name:choice`, in the order of
   * `transforms.ts`, which explains them. Absent: none.
   */
  readonly transforms?: readonly string[];
  /**
   * What products multiply weights with, see `activations.ts`: `auto`, `f32` or `int8` for all, or one of the
   * latter two by name of weights or nodes. Absent: `auto`, what is fastest on the target.
   */
  readonly activations?: Activations;
  /** Blocks to drop. Only 0 until dropping layers is supported. */
  readonly dropLayers: number;
  /** Format of the KV cache: `source` is the model's own; `f16` takes half the bytes of `f32`. */
  readonly kv: 'source' | 'f32' | 'f16';
  /** Whether fusion rules run. */
  readonly fusion: boolean;
  /** Whether exact algebra changes weights and layouts: folded gains, factors and norms, merged products. */
  readonly algebra: boolean;
  /** Whether a causal decoder that was exported without a cache gets one. Needs `fusion`. */
  readonly cache: boolean;
  /** Whether the bundle carries inputs and outputs for `session.check()`. */
  readonly canaries: boolean;
  /** Seed of everything random: canary inputs, searches. */
  readonly seed: number;
}

/** The recipe of an empty object: clean-up only, weights as they are. */
export const defaultRecipe: Recipe = {
  embeddings: 'same',
  clip: 'mse',
  skip: [],
  shapes: {},
  fixed: {},
  dropLayers: 0,
  kv: 'source',
  fusion: true,
  algebra: true,
  cache: true,
  canaries: true,
  seed: 1,
};

/** Named recipes, for `--recipe <name>`. */
export const presets: Readonly<
  Record<string, { readonly summary: string; readonly recipe: Recipe }>
> = {
  default: { summary: 'clean-up only; weights keep their dtype', recipe: defaultRecipe },
  half: {
    summary: 'half-precision weights, half the bytes of f32',
    recipe: { ...defaultRecipe, weights: 'f16' },
  },
  balanced: {
    summary: '8-bit weights, one scale per 32; about a quarter of f32',
    recipe: { ...defaultRecipe, weights: 'w8g32' },
  },
  small: {
    summary: '4-bit weights, one scale per 32; about a seventh of f32',
    recipe: { ...defaultRecipe, weights: 'w4g32' },
  },
};

/** Ways to round weights. */
export const roundings = ['nearest', 'gptq', 'rsq'] as const;

/**
 * `nearest`: each weight by itself, scales from the weights alone. `gptq`: each weight makes up for the
 * errors of those before it, as calibration says which errors matter. `rsq`: the same with tokens that
 * get more attention counting more.
 */
export type RoundingName = (typeof roundings)[number];

type Reader = (value: unknown, option: string) => unknown;

/** One reader per field, in the order in which messages list them. */
const readers: Readonly<Record<keyof Recipe, Reader>> = {
  weights: readWeights,
  embeddings: readEmbeddings,
  clip: oneOf('mse', 'none'),
  skip: readSkip,
  shapes: readShapes,
  fixed: readFixed,
  contextLength: wholeNumber(1),
  maxSize: parseSize,
  maxMemory: parseSize,
  maxLoss: parseFraction,
  rounding: oneOf(...roundings),
  allocate: oneOf('ours', ...baselineNames),
  refine: oneOf('none', 'evolve'),
  transforms: readTransforms,
  activations: readActivations,
  dropLayers: notYet('dropLayers', 0),
  kv: readKv,
  fusion: readBoolean,
  algebra: readBoolean,
  cache: readBoolean,
  canaries: readBoolean,
  seed: wholeNumber(0),
};

/**
 * Checks a recipe and fills in the defaults. Sizes may be numbers of bytes or text such as `3MB` and
 * `450MiB`; fractions numbers or text such as `1%`.
 *
 * @param json - a parsed JSON object, or part of a recipe
 * @param base - what absent fields are taken from; {@link defaultRecipe} unless given
 * @throws {@link FettleError} USAGE when a key is unknown, a value is not accepted or not supported yet
 *
 * @example
 * const recipe = parseRecipe({ weights: 'w4g32', maxSize: '3MB' });
 */
export function parseRecipe(json: unknown, base: Recipe = defaultRecipe): Recipe {
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw new FettleError('USAGE', `A recipe is a JSON object, not ${describe(json)}.`, {
      at: { option: 'recipe' },
      fix: 'Write something like { "weights": "w4g32" }.',
    });
  const known: Record<string, Reader> = readers;
  const recipe: Record<string, unknown> = { ...base };
  for (const [key, value] of Object.entries(json)) {
    const reader = Object.hasOwn(known, key) ? known[key] : undefined;
    if (reader === undefined) throw unknownKey(key, Object.keys(known));
    if (value !== undefined) recipe[key] = reader(value, key);
  }
  keepRotations(recipe);
  // the readers are typed by field above; this is the one place where they are put together
  return recipe as unknown as Recipe;
}

/** The small products that turn a stream at run time carry all of it, and cost little as they are. */
function keepRotations(recipe: Record<string, unknown>): void {
  const { transforms, skip } = recipe as Partial<Recipe>;
  if (choiceOf('rotate-spine', transforms) === undefined || skip?.includes(ROTATIONS) === true)
    return;
  recipe['skip'] = [...(skip ?? []), ROTATIONS];
}

/** Names of the matrices that the pass `rotate-spine` adds. */
const ROTATIONS = 'rotation*';

/**
 * A preset by name.
 *
 * @throws {@link FettleError} USAGE when there is no such preset
 */
export function presetRecipe(name: string): Recipe {
  const preset = Object.hasOwn(presets, name) ? presets[name] : undefined;
  if (preset !== undefined) return preset.recipe;
  const names = Object.keys(presets);
  const close = nearest(name, names);
  throw new FettleError('USAGE', `There is no recipe called "${name}".`, {
    at: { option: 'recipe' },
    fix:
      close === undefined
        ? `Use one of ${names.join(', ')}, or the path of a JSON file.`
        : `Did you mean "${close}"?`,
  });
}

/**
 * Reads `--shape` text: `x=1x3x48x320`, `x=1x3x48x?`, `batch=1`; commas may separate sizes too.
 *
 * @throws {@link FettleError} USAGE when it does not read so
 */
export function parseShapeOption(text: string): readonly [name: string, shape: InputShape] {
  const at = text.lastIndexOf('=');
  const sizes = text.slice(at + 1);
  if (at < 1 || sizes === '')
    throw new FettleError('USAGE', `Cannot read the shape "${text}".`, {
      at: { option: 'shape' },
      fix: 'Write input=1x3x48x320, with ? for a size that stays open.',
    });
  const shape = sizes
    .split(/[x,]/i)
    .map((part) => (/^\s*\d+\s*$/.test(part) ? Number(part) : part.trim()));
  return [text.slice(0, at), readShape(shape, 'shape', text)];
}

function readWeights(value: unknown, option: string): string {
  if (typeof value === 'string' && /^auto(:|$)/.test(value)) return readAuto(value, option);
  // whether the target runs the format is for `compile()` to say
  if (typeof value === 'string') return parseFormat(value).name;
  throw unacceptable(option, 'a weight format such as w4g32, w8g32, f16 or f32', value);
}

function readAuto(value: string, option: string): string {
  if (value === 'auto' || averageBits(value) !== undefined) return value;
  throw unacceptable(option, 'auto, or auto:<bits> with bits between 1 and 32', value);
}

/** Whether formats are chosen one by one. */
export function isAuto(weights: string | undefined): boolean {
  return weights !== undefined && /^auto(:|$)/.test(weights);
}

/** The average bits of `auto:4.2`; undefined when none are named, or none that make sense. */
export function averageBits(weights: string | undefined): number | undefined {
  const text = /^auto:(\d+(?:\.\d+)?)$/.exec(weights ?? '')?.[1];
  const bits = text === undefined ? NaN : Number(text);
  return bits >= 1 && bits <= 32 ? bits : undefined;
}

function readKv(value: unknown, option: string): Recipe['kv'] {
  if (value === 'source' || value === 'f32' || value === 'f16') return value;
  if (value === 'kv8' || value === 'kv4') throw notSupported(option, value, 'f16 or f32');
  throw unacceptable(option, 'source, f32 or f16', value);
}

function readEmbeddings(value: unknown, option: string): string {
  if (value === 'same' || value === 'keep') return value;
  if (typeof value === 'string' && isAuto(value))
    throw unacceptable(option, 'same, keep or a weight format', value);
  return readWeights(value, option);
}

function readSkip(value: unknown, option: string): readonly string[] {
  const names = typeof value === 'string' ? value.split(',') : value;
  if (Array.isArray(names) && names.every((name) => typeof name === 'string' && name !== ''))
    return names as string[];
  throw unacceptable(option, 'a list of names of constants', value);
}

/**
 * The value of an input from `name=number`.
 *
 * @throws {@link FettleError} USAGE when it is written otherwise
 */
export function parseFixOption(text: string): readonly [string, number] {
  const [, name, number] = /^(.+)=([^=]+)$/.exec(text) ?? [];
  const value = Number(number);
  if (name !== undefined && number?.trim() !== '' && Number.isFinite(value)) return [name, value];
  throw new FettleError('USAGE', `--fix ${text} names no input and its number.`, {
    at: { option: 'fix' },
    fix: 'Write something like --fix sr=16000.',
  });
}

function readFixed(value: unknown, option: string): Readonly<Record<string, number>> {
  const entries = typeof value === 'object' && value !== null ? Object.entries(value) : undefined;
  const wrong = entries?.find(
    ([, number]) => typeof number !== 'number' || !Number.isFinite(number),
  );
  if (entries !== undefined && !Array.isArray(value) && wrong === undefined)
    return Object.fromEntries(entries) as Record<string, number>;
  throw new FettleError('USAGE', `${option}: ${JSON.stringify(wrong ?? value)} is no number.`, {
    at: { option },
    fix: 'Write the number of each input, such as { "sr": 16000 }.',
  });
}

function readTransforms(value: unknown, option: string): readonly string[] {
  const names: unknown = typeof value === 'string' ? value.split(',') : value;
  const sorted = Array.isArray(names) ? sortTransforms(names) : undefined;
  if (sorted !== undefined) return sorted;
  throw unacceptable(option, `a list of ${transformSpellings.join(', ')}`, value);
}

/** `int8`, `{ "head*": "f32" }`, or the same in one line: `int8,head*=f32`. */
function readActivations(value: unknown, option: string): Activations {
  if (value === 'auto' || value === 'f32' || value === 'int8') return value;
  const pairs =
    typeof value === 'string'
      ? value.split(',').map((part): [string, unknown] => {
          const at = part.lastIndexOf('=');
          return at < 0 ? ['*', part] : [part.slice(0, at), part.slice(at + 1)];
        })
      : typeof value === 'object' && value !== null && !Array.isArray(value)
        ? Object.entries(value)
        : [];
  const known = pairs.every(([name, one]) => name !== '' && (one === 'f32' || one === 'int8'));
  if (pairs.length > 0 && known) return Object.fromEntries(pairs) as Record<string, 'f32' | 'int8'>;
  throw unacceptable(option, 'auto, f32, int8, or names such as int8,head*=f32', value);
}

function readShapes(value: unknown, option: string): Readonly<Record<string, InputShape>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw unacceptable(option, 'an object of names to lists of sizes', value);
  return Object.fromEntries(
    Object.entries(value).map(([input, shape]) => [input, readShape(shape, option, input)]),
  );
}

function readShape(shape: unknown, option: string, place: string): InputShape {
  const accepted = (dim: unknown): boolean =>
    dim === '?' || (typeof dim === 'number' && Number.isSafeInteger(dim) && dim > 0);
  if (Array.isArray(shape) && shape.every(accepted)) return shape as (number | '?')[];
  throw unacceptable(option, `sizes > 0 or ? for "${place}"`, shape);
}

function readBoolean(value: unknown, option: string): boolean {
  if (typeof value === 'boolean') return value;
  throw unacceptable(option, 'true or false', value);
}

function wholeNumber(least: number): Reader {
  return (value, option) => {
    if (typeof value === 'number' && Number.isSafeInteger(value) && value >= least) return value;
    throw unacceptable(option, `a whole number >= ${least}`, value);
  };
}

function oneOf(...names: readonly string[]): Reader {
  return (value, option) => {
    if (typeof value === 'string' && names.includes(value)) return value;
    throw unacceptable(option, names.join(' or '), value);
  };
}

/** A field whose substance a later version brings: only the value that changes nothing is accepted. */
function notYet(field: string, neutral: unknown): Reader {
  return (value, option) => {
    if (value === neutral) return value;
    throw notSupported(option, value, `no ${field}, or ${field}: ${JSON.stringify(neutral)}`);
  };
}

function notSupported(option: string, value: unknown, instead: string): FettleError {
  return new FettleError('USAGE', `${option}: ${describe(value)} is not supported yet.`, {
    at: { option },
    fix: `Use ${instead}.`,
  });
}

function unacceptable(option: string, wanted: string, value: unknown): FettleError {
  return new FettleError('USAGE', `${option}: wanted ${wanted}, got ${describe(value)}.`, {
    at: { option },
    fix: `Give ${wanted}.`,
  });
}

function unknownKey(key: string, known: readonly string[]): FettleError {
  const close = nearest(key, known);
  return new FettleError('USAGE', `A recipe has no field "${key}".`, {
    at: { option: key },
    fix: close === undefined ? `Its fields are ${known.join(', ')}.` : `Did you mean "${close}"?`,
  });
}

function describe(value: unknown): string {
  return JSON.stringify(value) ?? typeof value;
}
