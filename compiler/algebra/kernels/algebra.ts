/** Entry of the linear algebra module. No relaxed SIMD: the same bits on every engine. */
export { roundAffine } from './affine.ts';
export { product, productScratchBytes } from './product.ts';
export { cholesky, invertLower } from './factor.ts';
export { hadamard } from './hadamard.ts';
export { codesOut, panelsIn, panelsOut } from './panel.ts';
export { chooseScales, roundGrouped, roundOrdered } from './round.ts';
export { quadraticLoss, sweepGroups } from './sweep.ts';
