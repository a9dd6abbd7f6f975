/** The passes of fusion and exact algebra, those of clean-up left out. */
import { passes } from '../../compiler/passes.ts';
import { exactAlgebra } from '../../compiler/passes/algebra.ts';
import { cleanUp } from '../../compiler/passes/clean-up.ts';
import { fuse } from '../../compiler/passes/fuse.ts';

const grouped = new Set(fuse.filter((step) => !cleanUp.includes(step)));

/** Their names, as they are listed. Without `insert-kv-cache`, which changes what a model takes. */
export const fusionPasses: readonly string[] = passes
  .map(({ name }) => name)
  .filter((name) => grouped.has(name) || exactAlgebra.has(name) || name === 'fuse-expression');
