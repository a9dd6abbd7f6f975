/**
 * The clean-up that every target starts with: what a graph loses without anybody missing it.
 *
 * Results stay the same to the last bit, with two exceptions: floats computed at compile time
 * (`fold-constants`) and weights that absorb a batch normalization (`fold-batch-norm`).
 */
import type { PipelineStep } from '../../targets/target.ts';

/** Most rounds. Real models need three or four; each round that changes something removes nodes. */
export const cleanUpRounds = 12;

/** Steps of one round, repeated until nothing changes. A pipeline asks for all of it as `clean-up`. */
export const cleanUp: readonly PipelineStep[] = [
  // first, so that no later pass spends time on what nobody reads
  'eliminate-dead',
  // turns sizes into constants, which the next pass computes with
  'simplify-shapes',
  'fold-constants',
  // merging makes no-ops (two transposes that cancel), so it comes before removing them
  'merge-adjacent',
  'eliminate-identity',
  // wants weights to itself, so it comes before equal ones are shared
  'fold-batch-norm',
  // weights that an exporter copied per layer become one, and so do the ops on them …
  'deduplicate-weights',
  // … when equal ops are merged
  'eliminate-common-subexpressions',
];
