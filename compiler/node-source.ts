/**
 * `<model>` on the command line -> a model source: a path, an http(s) URL (kept in a cache folder),
 * `builtin:…`, `shape:…` or `micro:…`.
 *
 * In the cache, what comes from one folder of a server is one folder in the hub layout:
 *
 *   <cache>/models/<host>-<hash of the folder's address>/onnx/model.onnx
 */
import fs from 'node:fs';
import path from 'node:path';
import { builtinFolder } from '../models/builtin.ts';
import { hubConfig, hubGenerationConfig } from '../models/hub-config.ts';
import { GENERATOR_VERSION, generatedEncoders, generatedModel } from '../models/index.ts';
import { FettleError } from '../runtime/errors.ts';
import type { DownloadOptions, DownloadResult } from './node-download.ts';
import { download } from './node-download.ts';
import type { FileStat, FileSystem } from './files.ts';
import { directoryOf } from './files.ts';
import { NodeFiles } from './node-files.ts';
import { openModel } from './onnx/read.ts';
import { sha256 } from '../runtime/sha256.ts';
import type { ModelSource } from './source.ts';
import { hubFiles, hubFolders, modelNames, openSource, referenceKind } from './source.ts';

/** How to resolve a model. */
export interface ResolveOptions extends Omit<DownloadOptions, 'optional'> {
  /** Where downloads are kept; see {@link defaultCacheFolder}. */
  readonly cacheFolder: string;
  /** Files on disk. Default: a new {@link NodeFiles}. */
  readonly files?: FileSystem | undefined;
}

/**
 * Finds the model that a `<model>` argument names, downloading it when it is a URL.
 *
 * @param reference - path of a file or folder, http(s) URL of either, `builtin:…`, `shape:…`, `micro:…`
 * @throws FettleError USAGE for an unknown prefix or name, IO_FAILED when it cannot be read or
 * downloaded, MODEL_INVALID when a file is damaged
 * @throws the signal's reason when aborted
 *
 * @example
 * const source = await resolveModel('builtin:nib', { cacheFolder });
 * const model = source.read();
 */
export async function resolveModel(
  reference: string,
  options: ResolveOptions,
): Promise<ModelSource> {
  const files = options.files ?? new NodeFiles();
  switch (referenceKind(reference)) {
    case 'path':
      return openSource(files, reference);
    case 'builtin':
      return openSource(files, builtinFolder(reference), { reference });
    case 'generated':
      return generatedSource(reference);
    case 'url': {
      const { file, name } = await fetchModel(parseUrl(reference), files, options);
      return openSource(files, file, { reference, name });
    }
  }
}

/**
 * The cache folder of the command line: `$XDG_CACHE_HOME/fettle`, or `.cache/fettle` in the home folder.
 *
 * @param environment - `process.env`
 * @param home - `os.homedir()`
 * @see https://specifications.freedesktop.org/basedir-spec/latest/
 */
export function defaultCacheFolder(
  environment: Readonly<Record<string, string | undefined>>,
  home: string,
): string {
  const base = environment['XDG_CACHE_HOME'];
  // the specification says that a relative path is to be ignored
  const root = base !== undefined && path.isAbsolute(base) ? base : path.join(home, '.cache');
  return path.join(root, 'fettle');
}

function generatedSource(reference: string): ModelSource {
  const generated = generatedEncoders.get(reference) ?? generatedModel(reference);
  const { config, name } = generated;
  const decoder = 'spelling' in generated ? generated : undefined;
  const spelling = decoder?.spelling.name;
  return {
    reference,
    name,
    config:
      decoder === undefined
        ? {}
        : {
            config: hubConfig(decoder.config),
            generationConfig: hubGenerationConfig(decoder.config),
          },
    text: undefined,
    read: () => generated.build(),
    bytes: () =>
      [...generated.build().graph.constants].reduce(
        (sum, { weight }) => sum + (weight?.byteLength ?? 0),
        0,
      ),
    // the weights follow from these; hashing them would take longer than compiling
    sha256: () =>
      sha256(
        new TextEncoder().encode(
          JSON.stringify({ generator: GENERATOR_VERSION, name, spelling, config }),
        ),
      ),
  };
}

function parseUrl(text: string): URL {
  let url: URL;
  try {
    url = new URL(text);
  } catch (cause) {
    throw new FettleError('USAGE', `"${text}" is no address.`, {
      at: { model: text },
      fix: 'Write it as https://host/path/model.onnx.',
      cause,
    });
  }
  if (url.username !== '' || url.password !== '')
    throw new FettleError('USAGE', 'An address with a user name or password cannot be read.', {
      at: { model: `${url.origin}${url.pathname}` },
      fix: 'Download the file yourself and name the local file.',
    });
  url.hash = '';
  return hubAddress(url);
}

/**
 * The address of files for a page of the Hugging Face hub; any other address as it is.
 *
 *   huggingface.co/who/what[/tree/main/…]     ->  huggingface.co/who/what/resolve/main/[…]
 *   huggingface.co/who/what/blob/main/a.onnx  ->  huggingface.co/who/what/resolve/main/a.onnx
 */
export function hubAddress(url: URL): URL {
  if (url.hostname !== 'huggingface.co' && url.hostname !== 'hf.co') return url;
  const [owner, name, view, revision = 'main', ...rest] = url.pathname.split('/').filter(Boolean);
  if (owner === undefined || name === undefined) return url;
  if (view !== undefined && view !== 'tree' && view !== 'blob') return url;
  const address = new URL(url);
  address.pathname = [owner, name, 'resolve', revision, ...rest].join('/');
  return address;
}

/** Brings a model and what lies beside it into the cache. */
async function fetchModel(
  url: URL,
  files: FileSystem,
  options: ResolveOptions,
): Promise<{ file: string; name: string }> {
  const isFile = /\.(onnx|ort|pb)$/i.test(url.pathname);
  const folder = isFile ? hubRoot(url) : asFolder(url);
  const cache = new CacheFolder(folder, options);
  const file = isFile ? await cache.required(url) : await cache.firstOf(modelNames);
  for (const location of externalLocations(files, file))
    await cache.required(cache.urlBeside(file, location));
  for (const name of hubFiles) await cache.optional(name);
  return { file, name: isFile ? fileName(url) : lastPart(folder) };
}

/** The folder that holds config.json: that of the file, or the one around `onnx/`. */
function hubRoot(file: URL): URL {
  const root = hubFolders(file.pathname).at(-1) ?? '/';
  return new URL(root.endsWith('/') ? root : `${root}/`, file);
}

function asFolder(url: URL): URL {
  const folder = new URL(url);
  folder.search = '';
  if (!folder.pathname.endsWith('/')) folder.pathname += '/';
  return folder;
}

function lastPart(folder: URL): string {
  // on the hub, a folder is …/name/resolve/revision/
  const { pathname } = folder;
  const parts = pathname
    .replace(/\/resolve\/[^/]+\/$/, '')
    .split('/')
    .filter(Boolean);
  return decodeURIComponent(parts.at(-1) ?? folder.hostname);
}

function fileName(url: URL): string {
  const stem = decodeURIComponent(url.pathname.split('/').at(-1) ?? '').replace(/\.[^.]*$/, '');
  return stem === 'model' ? lastPart(hubRoot(url)) : stem;
}

/** One folder of a server, mirrored. Once the server was out of reach, it is not asked again. */
class CacheFolder {
  private readonly base: URL;
  private readonly root: string;
  private readonly options: ResolveOptions;
  private isOffline = false;

  constructor(base: URL, options: ResolveOptions) {
    this.base = base;
    this.options = options;
    const key = sha256(new TextEncoder().encode(base.href)).slice(0, 16);
    const host = base.host.replace(/[^\w.-]/g, '_');
    this.root = path.join(options.cacheFolder, 'models', `${host}-${key}`);
  }

  /** Downloads a file that must be there; returns its path in the cache. */
  async required(url: URL): Promise<string> {
    const file = this.pathOf(url);
    await this.get(url, file, false);
    return file;
  }

  /** Downloads a file of the folder that may be missing; what the cache had of it then goes too. */
  async optional(name: string): Promise<string | undefined> {
    const url = new URL(encodePath(name), this.base);
    const file = this.pathOf(url);
    const result = await this.get(url, file, true);
    if (result !== 'absent') return file;
    if (!this.isOffline) fs.rmSync(file, { force: true });
    return undefined;
  }

  /** The first of several files that is there; what the cache has is asked for before the others. */
  async firstOf(names: readonly string[]): Promise<string> {
    const isKept = (name: string): boolean => fs.existsSync(path.join(this.root, name));
    const ordered = [...names.filter(isKept), ...names.filter((name) => !isKept(name))];
    for (const name of ordered) {
      const file = await this.optional(name);
      if (file !== undefined) return file;
    }
    throw new FettleError('IO_FAILED', `There is no model at ${this.base.href}.`, {
      at: { url: this.base.href },
      fix: `Name the .onnx file; ${names.join(', ')} were looked for.`,
    });
  }

  /** The address of external data that a downloaded model names. */
  urlBeside(model: string, location: string): URL {
    const from = path.relative(this.root, directoryOf(model)).split(path.sep).join('/');
    return new URL(encodePath(path.posix.join(from, location)), this.base);
  }

  /** Where a file of the folder lies in the cache. Nothing outside of the folder has a place. */
  private pathOf(url: URL): string {
    const inside = url.origin === this.base.origin && url.pathname.startsWith(this.base.pathname);
    const parts = inside
      ? url.pathname.slice(this.base.pathname.length).split('/').map(decodeURIComponent)
      : [];
    if (parts.length > 0 && parts.every((part) => /^(?!\.{1,2}$)[^/\\\0]+$/.test(part)))
      return path.join(this.root, ...parts);
    throw new FettleError(
      'IO_FAILED',
      `${url.origin}${url.pathname} cannot be kept in the cache.`,
      {
        at: { url: `${url.origin}${url.pathname}` },
        fix: 'Download the model yourself and name the local file.',
      },
    );
  }

  private async get(url: URL, file: string, optional: boolean): Promise<DownloadResult> {
    if (this.isOffline && fs.existsSync(file)) return 'offline';
    if (this.isOffline && optional) return 'absent';
    try {
      fs.mkdirSync(path.dirname(file), { recursive: true });
    } catch (cause) {
      throw new FettleError('IO_FAILED', `Cannot make the cache folder "${path.dirname(file)}".`, {
        at: { file: path.dirname(file) },
        fix: 'Choose a cache directory that can be written (XDG_CACHE_HOME).',
        cause,
      });
    }
    const result = await download(url, file, { ...this.options, optional });
    if (result === 'offline') this.isOffline = true;
    return result;
  }
}

function encodePath(name: string): string {
  return name.split('/').map(encodeURIComponent).join('/');
}

/**
 * External data files that a model names, relative to its folder, whether or not they are there yet:
 * the model is read on a file system that claims to have every file that is asked for.
 */
function externalLocations(files: FileSystem, model: string): string[] {
  const folder = directoryOf(model);
  const claimed = new ClaimingFiles(files, model);
  return openModel(claimed, model).externalPaths.map((file) =>
    path.relative(folder, file).split(path.sep).join('/'),
  );
}

/** A file system on which every file but one exists, is endless and holds zeros. */
class ClaimingFiles implements FileSystem {
  private readonly files: FileSystem;
  private readonly model: string;

  constructor(files: FileSystem, model: string) {
    this.files = files;
    this.model = model;
  }

  stat(file: string): FileStat | undefined {
    if (file === this.model) return this.files.stat(file);
    return { kind: 'file', bytes: Number.MAX_SAFE_INTEGER };
  }

  read(file: string, start: number, length: number): Uint8Array {
    return file === this.model ? this.files.read(file, start, length) : new Uint8Array(length);
  }

  realPath(file: string): string {
    return path.resolve(file).split(path.sep).join('/');
  }

  list(): readonly string[] {
    return [];
  }

  makeDirectory(): never {
    throw readOnly();
  }

  create(): never {
    throw readOnly();
  }

  rename(): never {
    throw readOnly();
  }

  remove(): never {
    throw readOnly();
  }
}

function readOnly(): Error {
  return new Error('internal: looking for external data writes nothing. Please report this.');
}
