/**
 * compile(): a model, targets and a recipe -> one bundle per target.
 *
 *   read -> infer -> verify -> clean-up (shared by targets)            front-half.ts
 *        -> per target: quantize -> lower -> emit -> canaries -> budgets   build-bundle.ts
 *        -> publish
 */
import { FettleError, throwIfAborted } from '../runtime/errors.ts';
import type { Target } from '../targets/target.ts';
import { checkTargetActivations } from './activations.ts';
import type { BuiltBundle } from './build-bundle.ts';
import { buildBundle } from './build-bundle.ts';
import { checkTargetFormat, checkTargetKv } from './choose-format.ts';
import type { CompileOptions, CompileResult, Quality, RefusedTarget } from './compile-options.ts';
import { relativeLoss } from './compile-options.ts';
import type { Output } from './emit/output.ts';
import { openOutput } from './emit/output.ts';
import { targetById } from './find-target.ts';
import { FrontHalves } from './front-half.ts';
import type { Recipe } from './recipe.ts';
import { defaultRecipe } from './recipe.ts';
import type { ModelSource } from './source.ts';

/**
 * Compiles a model into one bundle per target. All bundles appear at the end, complete, or none does;
 * what was at their places before is replaced then. Of several targets, those whose engine cannot run
 * the model are left out with a warning, as long as one of them can.
 *
 * @param source - a model with what lies beside it, from `openSource`
 * @param options - targets, recipe and where to write
 * @throws {@link FettleError} MODEL_INVALID or OP_UNSUPPORTED when the model cannot be compiled,
 * TARGET_UNKNOWN for a target that does not exist, USAGE when target and recipe do not fit,
 * BUDGET_EXCEEDED when a budget of the recipe is missed, IO_FAILED when the place cannot be written
 *
 * @example
 * const files = new NodeFiles();
 * const { bundles } = await compile(openSource(files, 'model.onnx'), {
 *   targets: ['ort-wasm'],
 *   recipe: parseRecipe({ weights: 'w4g32' }),
 *   files,
 *   out: 'bundle',
 * });
 */
export async function compile(
  source: ModelSource,
  options: CompileOptions,
): Promise<CompileResult> {
  const start = performance.now();
  const { recipe = defaultRecipe, files } = options;
  const targets = resolveTargets(options, recipe);
  const outputs: Output[] = [];
  try {
    for (const target of targets)
      outputs.push(openOutput(files, placeOf(options.out, target, targets.length)));
    const fronts = new FrontHalves(source, recipe, options);
    const built: BuiltBundle[] = [];
    const finished: Output[] = [];
    const refused: RefusedTarget[] = [];
    for (const [index, target] of targets.entries()) {
      const output = outputs[index];
      if (output === undefined) continue;
      try {
        const front = await fronts.of(target);
        built.push(await buildBundle({ front, target, output, recipe, options }));
        finished.push(output);
      } catch (error) {
        // what one engine cannot run another one of the list may: that is what naming several is for
        if (targets.length === 1 || !isRefusal(error)) throw error;
        refused.push({ target: target.id, error });
        options.log?.warn(`No bundle for "${target.id}": ${error.message}`);
      }
    }
    throwIfAborted(options.signal);
    const [first] = refused;
    if (built.length === 0 && first !== undefined) throw first.error;
    for (const output of finished) output.publish();
    const loss = worstLoss(built.flatMap(({ bundle }) => bundle.quality ?? []));
    return {
      bundles: built.map(({ bundle }) => bundle),
      passes: [...fronts.reports, ...built.flatMap(({ reports }) => reports)],
      ...(refused.length === 0 ? {} : { refused }),
      ...(loss === undefined ? {} : { loss }),
      wallMs: performance.now() - start,
    };
  } finally {
    for (const output of outputs) output.discard();
  }
}

/** Whether a target cannot run the model at all; budgets and broken models concern every target. */
function isRefusal(error: unknown): error is FettleError {
  return (
    error instanceof FettleError &&
    (error.code === 'OP_UNSUPPORTED' || error.code === 'SHAPE_UNKNOWN')
  );
}

function resolveTargets(options: CompileOptions, recipe: Recipe): readonly Target[] {
  const targets = options.targets.map((target) =>
    typeof target === 'string' ? targetById(target) : target,
  );
  const ids = targets.map(({ id }) => id);
  const twice = ids.find((id, index) => ids.indexOf(id) !== index);
  if (targets.length === 0 || twice !== undefined)
    throw new FettleError(
      'USAGE',
      twice === undefined ? 'No target is given.' : `Target "${twice}" is given twice.`,
      { at: { option: 'target' }, fix: 'Name each target once, for example ort-wasm.' },
    );
  for (const target of targets) {
    checkTargetFormat(target, recipe);
    checkTargetKv(target, recipe);
    checkTargetActivations(target, recipe);
  }
  if (recipe.maxLoss !== undefined && options.measure === undefined)
    throw new FettleError('USAGE', 'A loss budget needs data to measure the loss on.', {
      at: { option: 'maxLoss' },
      fix: 'Pass calibration data, or leave out the loss budget.',
    });
  return targets;
}

function placeOf(out: string, target: Target, count: number): string {
  if (out === '')
    throw new FettleError('USAGE', 'No output is named.', {
      at: { option: 'out' },
      fix: 'Name a folder, or a file that ends in .fettle.',
    });
  if (count === 1) return out;
  if (out.endsWith('.fettle')) return out.replace(/fettle$/, `${target.id}.fettle`);
  return `${out.replace(/[/\\]+$/, '')}/${target.id}`;
}

/** The measurement with the largest relative loss. */
function worstLoss(qualities: readonly Quality[]): CompileResult['loss'] {
  const [worst] = qualities.toSorted((a, b) => relativeLoss(b) - relativeLoss(a));
  if (worst === undefined) return undefined;
  return { metric: worst.metric, before: worst.before, after: worst.after };
}
