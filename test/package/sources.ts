/** The project's own sources, for the tests that hold the house rules. */
import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join, normalize, relative } from 'node:path';

/** Folder of the project. */
export const root: string = join(import.meta.dirname, '..', '..');

/** A source file. */
export interface Source {
  /** Path from the project's folder, with `/`. */
  readonly path: string;
  readonly text: string;
}

/** Hand-written TypeScript and WGSL of some top-level folders. */
export function sourcesOf(...folders: readonly string[]): Source[] {
  return folders.flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter(
        (path) => /\.(ts|mts|mjs|wgsl)$/.test(path) && !/(^|\/)(golden|generated)\//.test(path),
      )
      .sort()
      .map((path) => ({
        path: `${folder}/${path}`,
        text: readFileSync(join(root, folder, path), 'utf8'),
      })),
  );
}

/** An import or re-export, static or dynamic. */
export interface Import {
  /** The file that imports. */
  readonly from: string;
  /** A package name, or a path from the project's folder. */
  readonly to: string;
  /** Whether it is `import(…)`. */
  readonly dynamic: boolean;
  /** Whether only types are imported. */
  readonly typeOnly: boolean;
}

/** Every import of a source file. */
export function importsOf({ path, text }: Source): Import[] {
  const code = text.replace(/\/\*[\s\S]*?\*\//g, '');
  const found: Import[] = [];
  const statements =
    /(?:^|\n)\s*(import|export)\s+(type\s)?(?:[\w$*{][^'"();]*?\sfrom\s+)?['"]([^'"\n]+)['"]/g;
  for (const [, , type, name] of code.matchAll(statements))
    found.push({
      from: path,
      to: resolve(path, name),
      dynamic: false,
      typeOnly: type !== undefined,
    });
  for (const [, name] of code.matchAll(/\bimport\(\s*['"]([^'"\n]+)['"]/g))
    found.push({ from: path, to: resolve(path, name), dynamic: true, typeOnly: false });
  return found;
}

function resolve(from: string, name = ''): string {
  return name.startsWith('.') ? normalize(join(dirname(from), name)) : name;
}

/** Path of a file from the project's folder. */
export function fromRoot(path: string): string {
  return relative(root, path);
}
