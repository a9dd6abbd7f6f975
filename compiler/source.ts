/**
 * Where a model comes from: a file, or a folder in the layout of the Hugging Face hub
 *
 *   config.json  generation_config.json  tokenizer.json  tokenizer_config.json  chat_template.jinja
 *   onnx/model.onnx (or model.onnx) with its external data
 *
 * and everything that lies beside the graph and that a bundle wants to carry. What needs a network or
 * a disk (URLs, the cache, `builtin:`) is in `node-source.ts`, which ends here.
 */
import { FettleError, nearest } from '../runtime/errors.ts';
import type { ModelConfig } from './analyze/config.ts';
import type { FileSystem } from './files.ts';
import { baseName, directoryOf, joinPath, missing, readFile } from './files.ts';
import type { Model } from './ir/graph.ts';
import { hashModelSource } from './onnx/hash.ts';
import { openModel } from './onnx/read.ts';

/** Files that make a model usable with strings, as they are on disk. */
export interface TextFiles {
  /** `tokenizer.json`. */
  readonly tokenizer: Uint8Array;
  /** `tokenizer_config.json`. */
  readonly tokenizerConfig: Uint8Array | undefined;
  /** Chat template (Jinja), from its own file or from the tokenizer's settings. */
  readonly chatTemplate: string | undefined;
}

/** A model and what came with it. */
export interface ModelSource {
  /** What the user wrote. */
  readonly reference: string;
  /** Short name for files and reports. */
  readonly name: string;
  /** Parsed JSON files; each absent when there is none. */
  readonly config: ModelConfig;
  /** Tokenizer files; undefined when there is no `tokenizer.json`. */
  readonly text: TextFiles | undefined;
  /** Reads the graph; every call gives a new model. Throws MODEL_INVALID when it is damaged. */
  read(): Model;
  /** Bytes of the graph and its external data; of the weights when the model is generated. */
  bytes(): number;
  /** Lower-case hex SHA-256 of the graph file followed by its external data, in order of first use. */
  sha256(): string;
}

/** The kinds of model reference. */
export type ReferenceKind = 'path' | 'url' | 'builtin' | 'generated';

const prefixes = ['builtin:', 'shape:', 'micro:', 'http://', 'https://'] as const;

/**
 * What kind of thing a `<model>` argument names.
 *
 * @throws FettleError USAGE for an unknown prefix
 */
export function referenceKind(reference: string): ReferenceKind {
  if (/^https?:\/\//i.test(reference)) return 'url';
  if (reference.startsWith('builtin:')) return 'builtin';
  if (/^(shape|micro):/.test(reference)) return 'generated';
  // a single letter is a Windows drive
  const prefix = /^[a-z][a-z0-9+.-]+:(\/\/)?/i.exec(reference)?.[0];
  if (prefix === undefined) return 'path';
  const close = nearest(prefix, prefixes);
  throw new FettleError('USAGE', `Cannot read "${reference}": "${prefix}" is no known prefix.`, {
    at: { model: reference },
    fix:
      close === undefined
        ? `Name a file, a folder, or something that starts with ${prefixes.join(', ')}.`
        : `Did you mean "${close}${reference.slice(prefix.length)}"?`,
  });
}

/**
 * Opens a model file or a folder in the hub layout.
 *
 * @param files - where they are
 * @param path - the `.onnx` file or the folder
 * @param overrides - reference and name, where the user wrote something else than the path
 * @throws FettleError IO_FAILED when nothing is there or the folder has no model, MODEL_INVALID when
 * a JSON file is damaged
 */
export function openSource(
  files: FileSystem,
  path: string,
  overrides: { readonly reference?: string; readonly name?: string } = {},
): ModelSource {
  const stat = files.stat(path);
  if (stat === undefined || stat.kind === 'other') throw missing(path, stat);
  const file = stat.kind === 'directory' ? modelIn(files, path) : path;
  const folders = hubFolders(file);
  const config = readConfig(files, folders);
  return {
    reference: overrides.reference ?? path,
    name: overrides.name ?? nameOf(files, file),
    config,
    text: readText(files, folders, config),
    read: () => openModel(files, file).model,
    bytes: () => bytesOfModel(files, file),
    sha256: () => hashModelSource(files, file),
  };
}

/** Folders that may hold the hub's files of a model file: its own, and the one around `onnx/`. */
export function hubFolders(file: string): string[] {
  const folder = directoryOf(file);
  if (baseName(folder) !== 'onnx') return [folder];
  return [folder, directoryOf(folder)];
}

/** Names of the text files of the hub layout. */
export const hubFiles: readonly string[] = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
];

/** Where a folder's model is looked for, best first. */
export const modelNames: readonly string[] = [
  'onnx/model.onnx',
  'model.onnx',
  'onnx/decoder_model_merged.onnx',
  'decoder_model_merged.onnx',
];

function modelIn(files: FileSystem, folder: string): string {
  for (const name of modelNames) {
    const path = joinPath(folder, name);
    if (files.stat(path)?.kind === 'file') return path;
  }
  const found = ['', 'onnx'].flatMap((name) => {
    const directory = name === '' ? folder : joinPath(folder, name);
    if (files.stat(directory)?.kind !== 'directory') return [];
    return files
      .list(directory)
      .filter((entry) => entry.endsWith('.onnx'))
      .map((entry) => joinPath(directory, entry));
  });
  const [only] = found;
  if (only !== undefined && found.length === 1) return only;
  throw new FettleError(
    'IO_FAILED',
    found.length === 0
      ? `The folder "${folder}" holds no model: neither onnx/model.onnx nor model.onnx.`
      : `The folder "${folder}" holds ${found.length} models and none is called model.onnx.`,
    {
      at: { file: folder },
      fix:
        found.length === 0
          ? 'Name the .onnx file, or a folder that has one.'
          : `Name one of: ${found.join(', ')}.`,
    },
  );
}

function nameOf(files: FileSystem, file: string): string {
  const stem = baseName(file).replace(/\.onnx$/i, '');
  if (stem !== 'model' && stem !== 'decoder_model_merged') return stem;
  const folder = hubFolders(file).at(-1) ?? '.';
  return baseName(files.realPath(folder)) || stem;
}

function findFile(files: FileSystem, folders: readonly string[], name: string): string | undefined {
  return folders
    .map((folder) => joinPath(folder, name))
    .find((path) => files.stat(path)?.kind === 'file');
}

function readConfig(files: FileSystem, folders: readonly string[]): ModelConfig {
  const json = (name: string): Readonly<Record<string, unknown>> | undefined => {
    const path = findFile(files, folders, name);
    return path === undefined ? undefined : parseObject(readFile(files, path), path);
  };
  return {
    config: json('config.json'),
    generationConfig: json('generation_config.json'),
    tokenizer: json('tokenizer.json'),
    tokenizerConfig: json('tokenizer_config.json'),
  };
}

function readText(
  files: FileSystem,
  folders: readonly string[],
  config: ModelConfig,
): TextFiles | undefined {
  const bytes = (name: string): Uint8Array | undefined => {
    const path = findFile(files, folders, name);
    return path === undefined ? undefined : readFile(files, path);
  };
  const tokenizer = bytes('tokenizer.json');
  if (tokenizer === undefined) return undefined;
  const template = bytes('chat_template.jinja');
  return {
    tokenizer,
    tokenizerConfig: bytes('tokenizer_config.json'),
    chatTemplate:
      template === undefined
        ? templateOf(config.tokenizerConfig?.['chat_template'])
        : new TextDecoder().decode(template),
  };
}

/** A template is a string, or a list of named ones of which `default` counts. */
function templateOf(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return undefined;
  const entries = value.filter(
    (entry): entry is { name?: unknown; template: string } =>
      typeof entry === 'object' && entry !== null && typeof entry.template === 'string',
  );
  return (entries.find(({ name }) => name === 'default') ?? entries[0])?.template;
}

function parseObject(bytes: Uint8Array, path: string): Readonly<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw damaged(path, reason, error);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw damaged(path, 'it holds no JSON object');
  return value as Record<string, unknown>;
}

function damaged(path: string, why: string, cause?: unknown): FettleError {
  return new FettleError('MODEL_INVALID', `Cannot read "${path}": ${why}.`, {
    at: { file: path },
    fix: 'Get the file again, or remove it when the model does not need it.',
    cause,
  });
}

/** Bytes of the graph file and its external data. */
function bytesOfModel(files: FileSystem, file: string): number {
  return [file, ...openModel(files, file).externalPaths].reduce(
    (sum, path) => sum + (files.stat(path)?.bytes ?? 0),
    0,
  );
}
