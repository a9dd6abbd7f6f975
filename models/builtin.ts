/**
 * Models that come with the package: folders in the hub layout, referred to as `builtin:name`.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { FettleError, nearest } from '../runtime/errors.ts';

/** Names after `builtin:`. */
export const builtinModels: readonly string[] = ['nib'];

/**
 * The folder of a built-in model.
 *
 * @param reference - `builtin:name`
 * @throws FettleError USAGE when there is no such model, IO_FAILED when the package is incomplete
 */
export function builtinFolder(reference: string): string {
  const name = reference.replace(/^builtin:/, '');
  if (!builtinModels.includes(name)) {
    const close = nearest(name, builtinModels);
    throw new FettleError('USAGE', `There is no built-in model "${name}".`, {
      at: { model: reference },
      fix:
        close === undefined
          ? `Choose one of: ${builtinModels.map((known) => `builtin:${known}`).join(', ')}.`
          : `Did you mean "builtin:${close}"?`,
    });
  }
  // beside this file in the sources; the build puts code into dist/ and leaves the models in place
  const places = [`./${name}/`, `../../models/${name}/`].map((place) =>
    fileURLToPath(new URL(place, import.meta.url)),
  );
  const folder = places.find((place) => existsSync(place));
  if (folder !== undefined) return folder.replace(/[\\/]$/, '');
  throw new FettleError('IO_FAILED', `The files of "builtin:${name}" are missing.`, {
    at: { file: places[0] ?? '' },
    fix: 'Install the package again.',
  });
}
