/**
 * Adds given numbers to the bias of linear ops: what rounding the weights takes from the mean of their
 * outputs, (W - Ŵ) mean(x), as calibration finds it (`calibrate/bias-shifts.ts`).
 *
 *     Linear(x, w, b)   ->   Linear(x, w, b + shift)
 *
 * Refuses products that take no bias.
 * Source: Nagel et al., Data-Free Quantization, arXiv:1906.04721, section 4.2.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { Node } from '../ir/graph.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import type { LinearSite } from './linear-site.ts';
import { linearSites } from './linear-site.ts';
import type { Pass, PassContext } from './pass.ts';

/** Options of {@link correctBias}. */
export interface CorrectBiasOptions {
  /** What is added to each output channel, by the name of the weights. Default none. */
  readonly shifts?: Readonly<Record<string, readonly number[]>>;
}

/** Defaults of {@link CorrectBiasOptions}. */
export const correctBiasDefaults: Required<CorrectBiasOptions> = { shifts: {} };

const RULE = 'shift';

/** Makes the pass. @throws FettleError USAGE for a shift that is not finite */
export function correctBias(options: CorrectBiasOptions = {}): Pass {
  const { shifts } = { ...correctBiasDefaults, ...options };
  for (const [name, list] of Object.entries(shifts))
    if (!list.every(Number.isFinite))
      throw new FettleError('USAGE', `The shifts of "${name}" are not all finite.`, {
        at: { pass: 'correct-bias', weights: name },
        fix: 'Give one number for each output channel.',
      });
  return {
    name: 'correct-bias',
    options: { shifts },
    rules: [{ name: RULE, starts: ['Conv', 'Gemm', 'fettle.Conv', 'fettle.Linear'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.nodes()) visit(node, shifts, context);
      return context.rewriter.changes > before;
    },
  };
}

function visit(
  node: Node,
  shifts: Required<CorrectBiasOptions>['shifts'],
  context: PassContext,
): void {
  const wanted = node.inputs.some(
    (input) => input !== undefined && Object.hasOwn(shifts, input.name),
  );
  if (!wanted) return;
  const sites = linearSites(node);
  if (sites === undefined || typeof sites === 'string') {
    context.refuse(RULE, node, sites ?? 'it is no product');
    return;
  }
  for (const site of sites) {
    const list = shifts[site.weight.name];
    if (list === undefined) continue;
    if (!site.takesBias) context.refuse(RULE, node, 'it takes no bias');
    else if (list.length !== site.outputs)
      context.refuse(RULE, node, `${list.length} shifts are given for ${site.outputs} channels`);
    else shift(site, list, context);
  }
}

function shift(site: LinearSite, list: readonly number[], context: PassContext): void {
  const { rewriter } = context;
  const old = site.bias?.constant();
  const numbers = old === undefined ? [0] : readNumbers(old);
  const values = list.map((by, channel) => by + (numbers[numbers.length === 1 ? 0 : channel] ?? 0));
  const dtype = old?.dtype ?? site.weight.dtype ?? 'f32';
  const name = site.bias?.name ?? `${site.weight.name}_bias`;
  const made = rewriter.constant(`${name}_corrected`, writeNumbers(dtype, [site.outputs], values));
  rewriter.setInput(site.node, site.places.bias, made);
  context.count(RULE);
}
