/**
 * Exact algebra: rewrites that move constants or layouts past linear ops and change results by rounding
 * only. Unlike fusion they give weights other numbers, so a recipe can turn all of them off at once.
 */
export const exactAlgebra: ReadonlySet<string> = new Set([
  'fold-batch-norm',
  'fold-scalars',
  'fold-norm-gains',
  'merge-linears',
  'sink-transposes',
  'reassociate-reshapes',
]);
