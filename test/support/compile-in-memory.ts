/** A model compiled into memory with the whole pipeline of a target, and opened. */
import { compile } from '../../compiler/compile.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { folderSource } from '../../compiler/run-bundle.ts';
import type { OpenOptions, Session } from '../../runtime/node.ts';
import { openBundle } from '../../runtime/node.ts';

/**
 * Compiles a model and opens the bundle.
 *
 * @param recipe - fields of a recipe; canaries are left out
 */
export async function openCompiled(
  name: string,
  build: () => Model,
  recipe: object,
  options: OpenOptions & { readonly target?: string } = {},
): Promise<Session> {
  const files = new MemoryFiles();
  const { target = 'wasm', ...open } = options;
  await compile(
    {
      reference: name,
      name,
      config: {},
      text: undefined,
      read: build,
      bytes: () => 0,
      sha256: () => '0'.repeat(64),
    },
    {
      targets: [target],
      recipe: parseRecipe({ canaries: false, ...recipe }),
      files,
      out: 'bundle',
    },
  );
  return openBundle(folderSource(files, 'bundle'), open);
}
