/**
 * Every pass, and how a pipeline becomes passes. To add one: its file in `passes/`, a line here, and
 * golden cases in `test/golden/<name>/`.
 */
import { FettleError, nearest } from '../runtime/errors.ts';
import type { PipelineStep } from '../targets/target.ts';
import { cleanUp, cleanUpRounds } from './passes/clean-up.ts';
import { correctBias, correctBiasDefaults } from './passes/correct-bias.ts';
import { deduplicateWeights, deduplicateWeightsDefaults } from './passes/deduplicate-weights.ts';
import { eliminateCommonSubexpressions } from './passes/eliminate-common-subexpressions.ts';
import { eliminateDead } from './passes/eliminate-dead.ts';
import { eliminateIdentity } from './passes/eliminate-identity.ts';
import { equalizeLayers, equalizeLayersDefaults } from './passes/equalize-layers.ts';
import { expandEinsum } from './passes/expand-einsum.ts';
import { expandIntegers } from './passes/expand-integers.ts';
import { fixInputs, fixInputsDefaults } from './passes/fix-inputs.ts';
import { foldBatchNorm } from './passes/fold-batch-norm.ts';
import { foldNormGains } from './passes/fold-norm-gains.ts';
import { foldPad } from './passes/fold-pad.ts';
import { foldScalars } from './passes/fold-scalars.ts';
import { fuse, fuseRounds } from './passes/fuse.ts';
import { fuseActivation } from './passes/fuse-activation.ts';
import { fuseAttention } from './passes/fuse-attention.ts';
import { fuseConv } from './passes/fuse-conv.ts';
import { fuseExpression } from './passes/fuse-expression.ts';
import { fuseGatedMlp } from './passes/fuse-gated-mlp.ts';
import { fuseLayout } from './passes/fuse-layout.ts';
import { fuseLinear } from './passes/fuse-linear.ts';
import { fuseNorm } from './passes/fuse-norm.ts';
import { fuseQkv } from './passes/fuse-qkv.ts';
import { fusePool } from './passes/fuse-pool.ts';
import { foldConstants, foldConstantsDefaults } from './passes/fold-constants.ts';
import { insertKvCache } from './passes/insert-kv-cache.ts';
import { liftShapes } from './passes/lift-shapes.ts';
import { mergeAdjacent } from './passes/merge-adjacent.ts';
import { mergeLinears } from './passes/merge-linears.ts';
import type { PassEntry } from './passes/pass-options.ts';
import { passEntry } from './passes/pass-options.ts';
import type { Pass, PassGroup } from './passes/pass.ts';
import { quantizeActivations, quantizeActivationsDefaults } from './passes/quantize-activations.ts';
import { quantizeWeights, quantizeWeightsDefaults } from './passes/quantize-weights.ts';
import { reassociateReshapes } from './passes/reassociate-reshapes.ts';
import { restoreCodes } from './passes/restore-codes.ts';
import { rotateSpine, rotateSpineDefaults } from './passes/rotate-spine.ts';
import { rotateValues, rotateValuesDefaults } from './passes/rotate-values.ts';
import { scaleChannels, scaleChannelsDefaults } from './passes/scale-channels.ts';
import { simplifyResize } from './passes/simplify-resize.ts';
import { simplifyShapes } from './passes/simplify-shapes.ts';
import { sinkTransposes } from './passes/sink-transposes.ts';
import { specializeShapes, specializeShapesDefaults } from './passes/specialize-shapes.ts';
import { splitCaches } from './passes/split-caches.ts';
import { unpackAttention } from './passes/unpack-attention.ts';
import { untieTables, untieTablesDefaults } from './passes/untie-tables.ts';
import { widenHalves } from './passes/widen-halves.ts';

/** Every pass, alphabetically. */
export const passes: readonly PassEntry[] = [
  passEntry(
    'Adds what rounding takes from the mean of outputs to biases.',
    correctBiasDefaults,
    correctBias,
  ),
  passEntry(
    'Stores equal weights once, also when one is the transpose of the other.',
    deduplicateWeightsDefaults,
    deduplicateWeights,
  ),
  passEntry('Computes once what is computed twice.', {}, eliminateCommonSubexpressions),
  passEntry('Removes nodes, constants and outputs that nothing depends on.', {}, eliminateDead),
  passEntry('Removes ops that hand on their input unchanged.', {}, eliminateIdentity),
  passEntry(
    'Gives channels between two layers equal widths in the weights of both.',
    equalizeLayersDefaults,
    equalizeLayers,
  ),
  passEntry('Writes an Einsum of two operands as a matrix product.', {}, expandEinsum),
  passEntry('Writes 8-bit integer arithmetic in float ops.', {}, expandIntegers),
  passEntry(
    'Makes constants of inputs whose value is known when compiling.',
    fixInputsDefaults,
    fixInputs,
  ),
  passEntry('Puts batch normalization into the convolution before it.', {}, foldBatchNorm),
  passEntry(
    'Computes at compile time what depends on constants only.',
    foldConstantsDefaults,
    foldConstants,
  ),
  passEntry('Puts gains and biases of norms into the linear ops behind them.', {}, foldNormGains),
  passEntry('Puts padding into the convolution or pool behind it.', {}, foldPad),
  passEntry(
    'Puts constant factors and shifts around a linear op into its weights.',
    {},
    foldScalars,
  ),
  passEntry('Recognises an activation that is spread over several nodes.', {}, fuseActivation),
  passEntry('Makes one op of attention, from its heads to its cache.', {}, fuseAttention),
  passEntry('Puts activations and residual sums behind a convolution into it.', {}, fuseConv),
  passEntry('Makes one pass over memory of elementwise ops in a row.', {}, fuseExpression),
  passEntry('Makes one op of the two products of a gated feed-forward layer.', {}, fuseGatedMlp),
  passEntry('Takes away views and transposes around linear layers.', {}, fuseLayout),
  passEntry(
    'Makes one op of a matrix product, its bias, activation and residual sum.',
    {},
    fuseLinear,
  ),
  passEntry('Recognises layer and RMS normalization in any spelling.', {}, fuseNorm),
  passEntry('Makes one mean of a global average and the view behind it.', {}, fusePool),
  passEntry('Lets an attention read queries, keys and values from one product.', {}, fuseQkv),
  passEntry('Gives a causal decoder without a cache one.', {}, insertKvCache),
  passEntry('Reads sizes from the inputs instead of values on the way.', {}, liftShapes),
  passEntry('Makes one op of two of a kind in a row.', {}, mergeAdjacent),
  passEntry(
    'Makes one linear op of two in a row where that leaves fewer weights.',
    {},
    mergeLinears,
  ),
  passEntry(
    'Makes products of 8-bit integers, for onnxruntime.',
    quantizeActivationsDefaults,
    quantizeActivations,
  ),
  passEntry(
    'Stores weight matrices and tables in fewer bits.',
    quantizeWeightsDefaults,
    quantizeWeights,
  ),
  passEntry(
    'Takes away reshapes around linear ops that only count rows differently.',
    {},
    reassociateReshapes,
  ),
  passEntry('Stores weights in the 8 bits a model brought them in.', {}, restoreCodes),
  passEntry(
    'Turns the residual stream, so that no channel of it stands out.',
    rotateSpineDefaults,
    rotateSpine,
  ),
  passEntry(
    'Turns the values of attention heads, so that no channel stands out.',
    rotateValuesDefaults,
    rotateValues,
  ),
  passEntry(
    'Divides channels where they are made, and multiplies the weights that read them.',
    scaleChannelsDefaults,
    scaleChannels,
  ),
  passEntry('Says a resize by whole factors as constant factors.', {}, simplifyResize),
  passEntry('Replaces shape arithmetic by constants or shorter ops.', {}, simplifyShapes),
  passEntry('Moves transposes past elementwise ops to the next transpose.', {}, sinkTransposes),
  passEntry(
    'Fixes sizes of inputs that the model leaves open.',
    specializeShapesDefaults,
    specializeShapes,
  ),
  passEntry('Gives keys and values that are stacked in one cache one each.', {}, splitCaches),
  passEntry('Takes apart the packed inputs of fused attention ops.', {}, unpackAttention),
  passEntry(
    'Gives a product that multiplies by an embedding table a matrix of its own.',
    untieTablesDefaults,
    untieTables,
  ),
  passEntry('Computes in f32 what a model computes in half precision.', {}, widenHalves),
];

/** Sequences a pipeline can ask for by one name. */
const groups: Readonly<Record<string, { steps: readonly PipelineStep[]; rounds: number }>> = {
  'clean-up': { steps: cleanUp, rounds: cleanUpRounds },
  fuse: { steps: fuse, rounds: fuseRounds },
};

/** The entry of a pass, or undefined when there is none of that name. */
export function findPass(name: string): PassEntry | undefined {
  return passes.find((entry) => entry.name === name);
}

/**
 * Makes the passes of a pipeline.
 *
 * @param steps - pass ids, ids with options, or `clean-up` for the whole of it
 * @param without - pass ids that are left out, also inside of groups
 * @throws FettleError USAGE for a pass or an option that does not exist
 *
 * @example
 * const reports = await runPasses(model, pipelineFrom(['clean-up']));
 */
export function pipelineFrom(
  steps: readonly PipelineStep[],
  without: ReadonlySet<string> = new Set(),
): (Pass | PassGroup)[] {
  const kept = (step: PipelineStep): boolean => !without.has(nameOf(step));
  return steps.filter(kept).map((step) => {
    const [name, options] = typeof step === 'string' ? [step, undefined] : step;
    const group = Object.hasOwn(groups, name) ? groups[name] : undefined;
    if (group === undefined) return passFrom(name, options);
    if (options !== undefined && Object.keys(options).length > 0)
      throw new FettleError('USAGE', `"${name}" is a sequence of passes and takes no options.`, {
        at: { pass: name },
        fix: `Name the pass that has the option instead of "${name}".`,
      });
    const members = group.steps
      .filter(kept)
      .map((inner) =>
        typeof inner === 'string' ? passFrom(inner, undefined) : passFrom(...inner),
      );
    return { name, passes: members, rounds: group.rounds };
  });
}

function nameOf(step: PipelineStep): string {
  return typeof step === 'string' ? step : step[0];
}

function passFrom(name: string, options: Readonly<Record<string, unknown>> | undefined): Pass {
  const entry = findPass(name);
  if (entry !== undefined) return entry.create(options);
  const names = [...Object.keys(groups), ...passes.map((pass) => pass.name)];
  const guess = nearest(name, names);
  throw new FettleError('USAGE', `There is no pass "${name}".`, {
    at: { pass: name },
    fix: guess === undefined ? `Use one of: ${names.join(', ')}.` : `Did you mean "${guess}"?`,
  });
}
