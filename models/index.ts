/**
 * Models that are generated, by name: `shape:…` are real sizes, `micro:…` are small variants. A name
 * may end in `@spelling` (`micro:gqa@ort`). Nothing here is downloaded or stored.
 */
import type { Model } from '../compiler/ir/graph.ts';
import { FettleError, nearest } from '../runtime/errors.ts';
import type { DecoderConfig } from './decoder-config.ts';
import { buildDecoder } from './decoder.ts';
import type { EncoderConfig } from './encoder.ts';
import { buildEncoder, shapeEncoders } from './encoder.ts';
import { microDecoders } from './micro.ts';
import { shapeDecoders } from './shapes.ts';
import { formSpellings, spellings } from './spelling/index.ts';
import type { Spelling } from './spelling/spelling.ts';

/** Changes whenever the same reference gives other weights or another graph. */
export const GENERATOR_VERSION = 1;

/** A model that is made when asked for. */
export interface GeneratedModel {
  /** What the user writes, spelling left out when it is the default. */
  readonly reference: string;
  /** Name for files and reports: the reference without its prefix. */
  readonly name: string;
  /** Sizes and variants. */
  readonly config: DecoderConfig;
  /** How it is written down. */
  readonly spelling: Spelling;
  /** Makes the model; weights are generated when read. */
  build(): Model;
}

/** Generated decoders by reference without a spelling: every `shape:…`, then every `micro:…`. */
export const generatedDecoders: ReadonlyMap<string, DecoderConfig> = new Map([
  ...Object.entries(shapeDecoders).map(([name, config]) => [`shape:${name}`, config] as const),
  ...Object.entries(microDecoders).map(([name, config]) => [`micro:${name}`, config] as const),
]);

/** An encoder that is made when asked for. */
export interface GeneratedEncoder {
  /** What the user writes. */
  readonly reference: string;
  /** Name for files and reports: the reference without its prefix. */
  readonly name: string;
  /** Sizes. */
  readonly config: EncoderConfig;
  /** Makes the model; weights are generated when read. */
  build(): Model;
}

/** Generated encoders by reference: `shape:minilm`. */
export const generatedEncoders: ReadonlyMap<string, GeneratedEncoder> = new Map(
  Object.entries(shapeEncoders).map(([name, config]) => {
    const reference = `shape:${name}`;
    return [reference, { reference, name, config, build: () => buildEncoder(name, config) }];
  }),
);

/**
 * Finds a generated model.
 *
 * @param reference - `shape:name`, `micro:name`, either with `@spelling`
 * @throws FettleError USAGE when there is no such name or spelling
 *
 * @example
 * const model = generatedModel('shape:smollm2-135m').build();
 */
export function generatedModel(reference: string): GeneratedModel {
  const [base, spellingName] = splitSpelling(reference);
  const config = generatedDecoders.get(base);
  if (config === undefined)
    throw unknown('generated model', base, [
      ...generatedDecoders.keys(),
      ...generatedEncoders.keys(),
    ]);
  const spelling =
    spellingName === undefined
      ? spellings[0]
      : [...spellings, ...formSpellings].find(({ name }) => name === spellingName);
  if (spelling === undefined)
    throw unknown(
      'spelling',
      spellingName ?? '',
      [...spellings, ...formSpellings].map(({ name }) => name),
    );
  const full = spelling === spellings[0] ? base : `${base}@${spelling.name}`;
  const name = full.slice(full.indexOf(':') + 1);
  return {
    reference: full,
    name,
    config,
    spelling,
    build: () => buildDecoder(name, config, spelling),
  };
}

function splitSpelling(reference: string): [string, string?] {
  const at = reference.indexOf('@');
  return at < 0 ? [reference] : [reference.slice(0, at), reference.slice(at + 1)];
}

function unknown(what: string, name: string, known: readonly string[]): FettleError {
  const close = nearest(name, known);
  return new FettleError('USAGE', `There is no ${what} "${name}".`, {
    at: { model: name },
    fix: close === undefined ? `Choose one of: ${known.join(', ')}.` : `Did you mean "${close}"?`,
  });
}
