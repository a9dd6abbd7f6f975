/** The folder of shared models and test data, which a user's checkout does not have. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

const folder = join(import.meta.dirname, '../../../shared');

/** Path of a shared file or folder. */
export function sharedPath(...parts: readonly string[]): string {
  return join(folder, ...parts);
}

/** Option for `test()`: skips with the reason when the shared data is not there. */
export function needsShared(...parts: readonly string[]): { readonly skip: string | false } {
  const path = sharedPath(...parts);
  return { skip: existsSync(path) ? false : `${path} is not there` };
}

/** Paths of every file with a given ending below a shared folder, sorted; empty when absent. */
export function sharedFiles(ending: string, ...parts: readonly string[]): readonly string[] {
  const root = sharedPath(...parts);
  if (!existsSync(root)) return [];
  return readdirSync(root, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith(ending))
    .sort()
    .map((path) => join(root, path));
}
