/**
 * Where bundles go. A bundle is written to a temporary sibling of its final place and moved there when
 * it is complete; what was there before is replaced then and not earlier. Whatever goes wrong on the
 * way, nothing half-written stays and an older bundle is untouched.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { FileSystem } from '../files.ts';
import { directoryOf, joinPath, readFile } from '../files.ts';
import type { PackedFile } from './tar.ts';
import { packFiles } from './tar.ts';

/** One bundle on its way to its place. */
export interface Output {
  /** Where it will be: a folder, or a `.fettle` file. */
  readonly path: string;
  /** The folder to write it to. */
  readonly folder: string;
  /** Whether it becomes one file. */
  readonly packed: boolean;
  /** Packs it when needed; afterwards {@link Output.publish} only renames. */
  prepare(entries: readonly PackedFile[]): void;
  /** Empties the folder, to write another attempt. */
  restart(): void;
  /** Puts the complete bundle in its place. */
  publish(): void;
  /** Removes what is temporary; the place is left as it was. Does nothing after `publish`. */
  discard(): void;
}

/**
 * Opens the place of a bundle, so that a place that cannot be written to is found out before any work
 * is done.
 *
 * @param files - where it goes
 * @param path - a folder, or a path ending in `.fettle`
 * @throws {@link FettleError} IO_FAILED when something else is there or it cannot be written
 */
export function openOutput(files: FileSystem, path: string): Output {
  const place = path.replace(/(?<=[^/\\])[/\\]+$/, '');
  const packed = place.endsWith('.fettle');
  checkPlace(files, place, packed);
  const made = firstMissing(files, directoryOf(place));
  const stem = `${place}.${crypto.randomUUID().slice(0, 8)}`;
  const folder = `${stem}.partial`;
  const archive = `${stem}.packed`;
  const discard = (): void => {
    files.remove(folder);
    if (packed) files.remove(archive);
    // a parent that this compilation made goes too, unless somebody has put something there
    if (made !== undefined && isEmptyTree(files, made)) files.remove(made);
  };
  let published = false;
  try {
    files.makeDirectory(folder);
  } catch (error) {
    discard();
    throw error;
  }
  return {
    path: place,
    folder,
    packed,
    prepare(entries) {
      if (packed) packFiles(files, folder, entries, archive);
    },
    restart() {
      files.remove(folder);
      files.makeDirectory(folder);
    },
    publish() {
      if (packed) files.rename(archive, place);
      else replaceFolder(files, folder, place, `${stem}.old`);
      published = true;
      if (packed) files.remove(folder);
    },
    discard() {
      if (!published) discard();
    },
  };
}

/** A bundle may be replaced, and nothing else: a folder with other files in it is somebody's work. */
function checkPlace(files: FileSystem, place: string, packed: boolean): void {
  const kind = files.stat(place)?.kind;
  if (kind === undefined || (packed && kind === 'file')) return;
  const foreign = kind === 'directory' && !packed ? foreignFile(files, place) : '';
  if (foreign === undefined) return;
  const what = foreign === '' ? `a ${kind} is there` : `"${foreign}" in it is not part of a bundle`;
  throw new FettleError('IO_FAILED', `Cannot write the bundle to "${place}": ${what}.`, {
    at: { file: place },
    fix: 'Choose another place, or remove what is there.',
  });
}

/** A file in a folder that its manifest does not list; undefined when the folder is a bundle or empty. */
function foreignFile(files: FileSystem, folder: string): string | undefined {
  const names = files.list(folder);
  if (names.length === 0) return undefined;
  const listed = new Set(['manifest.json']);
  try {
    const text = new TextDecoder().decode(readFile(files, joinPath(folder, 'manifest.json')));
    const manifest = JSON.parse(text) as {
      files?: { path: string }[];
      weights?: { files?: { path: string }[] };
    };
    for (const file of [...(manifest.files ?? []), ...(manifest.weights?.files ?? [])])
      listed.add(file.path.split('/')[0] ?? '');
  } catch {
    return names.find((name) => name !== 'manifest.json') ?? names[0];
  }
  return names.find((name) => !listed.has(name));
}

function replaceFolder(files: FileSystem, from: string, to: string, aside: string): void {
  const replaces = files.stat(to) !== undefined;
  if (replaces) files.rename(to, aside);
  try {
    files.rename(from, to);
  } catch (error) {
    if (replaces) files.rename(aside, to);
    throw error;
  }
  if (replaces) files.remove(aside);
}

/** The outermost directory that has to be made for a path to exist. */
function firstMissing(files: FileSystem, directory: string): string | undefined {
  let missing: string | undefined;
  for (let at = directory; files.stat(at) === undefined; at = directoryOf(at)) {
    missing = at;
    if (directoryOf(at) === at || directoryOf(at) === '.') break;
  }
  return missing;
}

function isEmptyTree(files: FileSystem, directory: string): boolean {
  if (files.stat(directory)?.kind !== 'directory') return false;
  return files.list(directory).every((name) => isEmptyTree(files, joinPath(directory, name)));
}
