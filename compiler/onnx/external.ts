/**
 * External data: tensors whose bytes lie in files beside the model. A model comes from somebody else,
 * so a location may only name a file inside the model's folder: relative, without `..`, and not
 * through a symbolic link that leads out.
 *
 * @see https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
 */
import type { ErrorPlace } from '../../runtime/errors.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { FileSystem } from '../files.ts';
import { directoryOf, joinPath } from '../files.ts';
import type { ByteSource } from '../ir/weight.ts';
import type { EntryProto } from './schema.ts';

/** What a tensor says about where its bytes are. */
export interface ExternalReference {
  /** Path relative to the model's folder, `/` between parts. */
  readonly location: string;
  /** First byte. */
  readonly offset: number;
  /** Bytes, when given. */
  readonly length: number | undefined;
}

/** Reads the `external_data` entries of a tensor. Throws MODEL_INVALID when they make no sense. */
export function externalReference(
  entries: readonly EntryProto[],
  at: ErrorPlace,
): ExternalReference {
  const values = new Map(entries.map(({ key, value }) => [key ?? '', value ?? '']));
  const location = values.get('location');
  if (location === undefined || location === '')
    throw invalid('names no file', at, 'Export the model again.');
  checkLocation(location, at);
  return {
    location: location.replaceAll('\\', '/'),
    offset: wholeNumber(values.get('offset'), 'offset', at) ?? 0,
    length: wholeNumber(values.get('length'), 'length', at),
  };
}

/** Resolves external data of one model on a file system. */
export class ExternalFiles {
  private readonly files: FileSystem;
  private readonly model: string;
  private readonly checked = new Map<string, { readonly path: string; readonly bytes: number }>();

  /**
   * @param files - where the model is
   * @param model - path of the model file
   */
  constructor(files: FileSystem, model: string) {
    this.files = files;
    this.model = model;
  }

  /** Paths of the files that were asked for, in the order of first use. */
  get paths(): readonly string[] {
    return [...this.checked.values()].map(({ path }) => path);
  }

  /** The bytes of a reference, read on demand. Throws when they are not there or not allowed. */
  source(reference: ExternalReference, bytes: number, at: ErrorPlace): ByteSource {
    const { location, offset } = reference;
    const file = this.checked.get(location) ?? this.check(location, at);
    if (offset + bytes > file.bytes)
      throw invalid(
        `asks for ${bytes} bytes at ${offset} of "${location}", which has ${file.bytes}`,
        { ...at, file: file.path, offset },
        'Get the data file again; it is incomplete or belongs to another model.',
      );
    return (start, length) => this.files.read(file.path, offset + start, length);
  }

  private check(location: string, at: ErrorPlace): { path: string; bytes: number } {
    const folder = directoryOf(this.model);
    const path = joinPath(folder, location);
    const stat = this.files.stat(path);
    if (stat?.kind !== 'file')
      throw new FettleError(
        'IO_FAILED',
        `The external data file "${location}" of the model is missing.`,
        { at: { ...at, file: path }, fix: `Put it beside the model, into "${folder}".` },
      );
    const real = this.files.realPath(path);
    // a model that is itself a link (the hub's cache) may have its data beside the link's target
    const homes = [this.files.realPath(folder), directoryOf(this.files.realPath(this.model))];
    if (!homes.some((home) => real.startsWith(home.endsWith('/') ? home : `${home}/`)))
      throw invalid(
        `lies in "${location}", a link that leads out of the model's folder`,
        { ...at, file: path },
        'Copy the data file into the folder of the model.',
      );
    const file = { path, bytes: stat.bytes };
    this.checked.set(location, file);
    return file;
  }
}

function checkLocation(location: string, at: ErrorPlace): void {
  const parts = location.split(/[\\/]/);
  const absolute = parts[0] === '' || /^[A-Za-z]:/.test(location);
  if (!absolute && !parts.includes('..') && !location.includes('\0')) return;
  throw invalid(
    `lies in "${location}", which is outside of the model's folder`,
    at,
    'Put the data file beside the model and save the model with a relative location.',
  );
}

function wholeNumber(text: string | undefined, key: string, at: ErrorPlace): number | undefined {
  if (text === undefined) return undefined;
  const number = /^\d+$/.test(text) ? Number(text) : NaN;
  if (Number.isSafeInteger(number)) return number;
  throw invalid(`has the ${key} "${text}", which is no size`, at, 'Export the model again.');
}

function invalid(what: string, at: ErrorPlace, fix: string): FettleError {
  const name = at['value'] ?? at['node'];
  const subject = name === undefined ? 'External data' : `External data of "${name}"`;
  return new FettleError('MODEL_INVALID', `${subject} ${what}.`, { at, fix });
}
