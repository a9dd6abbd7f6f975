/**
 * Fusion: what exporters scatter over many nodes becomes the ops of `ops/fused-*.ts`, after clean-up.
 * Results change by rounding only.
 */
import type { PipelineStep } from '../../targets/target.ts';
import { cleanUp } from './clean-up.ts';

/** Most rounds; the last one only finds that nothing is left to do. */
export const fuseRounds = 8;

/** Steps of one round, repeated until nothing changes. A pipeline asks for all of it as `fuse`. */
export const fuse: readonly PipelineStep[] = [
  // one float dtype and one spelling of products for all that follows
  'widen-halves',
  'expand-einsum',
  'unpack-attention',
  'split-caches',
  // and no value that is needed for its shape alone
  'lift-shapes',
  // the parts that others contain
  'fuse-activation',
  'simplify-resize',
  'fold-pad',
  'fuse-conv',
  'fuse-pool',
  'fuse-norm',
  // biases, activations and residuals go in one after the other, so several rounds
  'fuse-linear',
  'fuse-gated-mlp',
  // reads projections back to the linear ops, and puts views around itself that clean-up takes away
  'fuse-attention',
  'fuse-layout',
  'fuse-qkv',
  // what is left between the fused ops
  'fold-scalars',
  'merge-linears',
  'sink-transposes',
  'reassociate-reshapes',
  ...cleanUp,
];
