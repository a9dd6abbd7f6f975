/**
 * Divides channels of a value by given numbers where it is made, and multiplies the weights that read it
 * by them: outliers move from activations to weights, or weights of loud channels are rounded finer.
 *
 *     Norm(x, g, b) -> Linear(w)          ->   Norm(x, g / s, b / s) -> Linear(s w)
 *     Linear(x, v, c) -> Linear(w)        ->   Linear(x, v / s, c / s) -> Linear(s w)
 *     GatedLinear(x, g, u) -> Linear(w)   ->   GatedLinear(x, g, u / s) -> Linear(s w)
 *
 * Exact up to rounding. Which numbers is decided by calibration (`calibrate/channel-scales.ts`):
 * SmoothQuant, AWQ, or logarithmic equalisation. Refuses values that something else reads, and makers
 * that a factor does not pass through.
 * Sources: Xiao et al., SmoothQuant, arXiv:2211.10438; Lin et al., AWQ, arXiv:2306.00978; Li et al.,
 * FPTQ, arXiv:2308.15987.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { isGatedLinear, isLinear, linearInputs } from '../ops/fused-linear.ts';
import { isNorm, normInputs } from '../ops/fused-norm.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import type { LinearSite, NewWeights } from './linear-site.ts';
import { givingScaled, linearSites, readersOf, setWeights, takingAffine } from './linear-site.ts';
import type { Pass, PassContext } from './pass.ts';

/** Options of {@link scaleChannels}. */
export interface ScaleChannelsOptions {
  /** Divisors of the channels of a value, by its name. Default none. */
  readonly scales?: Readonly<Record<string, readonly number[]>>;
}

/** Defaults of {@link ScaleChannelsOptions}. */
export const scaleChannelsDefaults: Required<ScaleChannelsOptions> = { scales: {} };

const RULE = 'channels';

/** Makes the pass. @throws FettleError USAGE for a scale that is not a positive number */
export function scaleChannels(options: ScaleChannelsOptions = {}): Pass {
  const { scales } = { ...scaleChannelsDefaults, ...options };
  for (const [name, list] of Object.entries(scales))
    if (!list.every((scale) => Number.isFinite(scale) && scale > 0))
      throw new FettleError('USAGE', `The scales of "${name}" are not all positive numbers.`, {
        at: { pass: 'scale-channels', value: name },
        fix: 'Give one positive number for each channel.',
      });
  return {
    name: 'scale-channels',
    options: { scales },
    rules: [{ name: RULE, starts: ['fettle.Norm', 'fettle.Linear', 'fettle.GatedLinear'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.nodes()) {
        const value = node.outputs[0];
        const list = value === undefined ? undefined : scales[value.name];
        if (value !== undefined && list !== undefined) visit(node, value, list, context);
      }
      return context.rewriter.changes > before;
    },
  };
}

/** Why the channels of a value cannot be scaled; undefined when they can. */
export function whyNotScalable(node: Node): string | undefined {
  const readers = readersOf(node.output(0));
  if (readers === undefined) return 'no product reads it';
  if (typeof readers === 'string') return readers;
  const maker = makerOf(node);
  return typeof maker === 'string' ? maker : undefined;
}

function visit(node: Node, value: Value, scales: readonly number[], context: PassContext): void {
  const { rewriter } = context;
  const refuse = (why: string): void => context.refuse(RULE, node, why);
  const readers = readersOf(value);
  const maker = makerOf(node);
  if (readers === undefined) return refuse('no product reads it');
  if (typeof readers === 'string') return refuse(readers);
  if (typeof maker === 'string') return refuse(maker);
  if (readers.some(({ axis, inputs }) => axis !== -1 || inputs !== scales.length))
    return refuse(`${scales.length} scales are given for another number of channels`);
  const factors = Float64Array.from(scales);
  const inverse = factors.map((scale) => 1 / scale);
  const zeros = new Float64Array(scales.length);
  const made: (readonly [LinearSite, NewWeights])[] = [];
  for (const site of readers) {
    const weights = takingAffine(site, factors, zeros);
    if (weights === undefined) return refuse('the scaled weights would not be finite');
    made.push([site, weights]);
  }
  if (maker.site !== undefined) {
    const weights = givingScaled(maker.site, inverse);
    if (weights === undefined) return refuse('the scaled weights would not be finite');
    made.push([maker.site, weights]);
  }
  for (const [site, weights] of made) setWeights(rewriter, site, weights);
  if (maker.site === undefined) {
    scaleRow(node, normInputs.gain, inverse, 1, context);
    if (node.inputs[normInputs.bias] !== undefined)
      scaleRow(node, normInputs.bias, inverse, 0, context);
  }
  context.count(RULE);
}

/** Where the factor goes: the gain of a norm, or the weights of a product. */
function makerOf(node: Node): { readonly site: LinearSite | undefined } | string {
  if (isNorm(node)) {
    const rows = [node.inputs[normInputs.gain], node.inputs[normInputs.bias]];
    const constant = rows.every((row) => row === undefined || row.weight !== undefined);
    return constant ? { site: undefined } : 'its gain or bias is not constant';
  }
  const gated = isGatedLinear(node);
  if (!gated && !isLinear(node)) return 'a factor does not pass through it';
  if (!gated && activationNameOf(node) !== 'none') return 'a factor does not pass its activation';
  if (!gated && node.inputs[linearInputs.residual] !== undefined) return 'something is added to it';
  const sites = linearSites(node);
  if (typeof sites === 'string') return sites;
  // of a gated pair the second product is the one without an activation
  const site = sites?.at(-1);
  return site === undefined ? 'its weights are not constant' : { site };
}

function scaleRow(
  node: Node,
  index: number,
  factors: Float64Array,
  absent: number,
  { rewriter }: PassContext,
): void {
  const old = node.inputs[index];
  const tensor = old?.constant();
  const numbers = tensor === undefined ? [absent] : readNumbers(tensor);
  const values = factors.map(
    (factor, channel) => factor * (numbers[numbers.length === 1 ? 0 : channel] ?? absent),
  );
  const name = old?.name ?? `${node.output(0).name}_gain`;
  const dtype = tensor?.dtype ?? node.output(0).dtype ?? 'f32';
  const scaled = rewriter.constant(`${name}_scaled`, writeNumbers(dtype, [values.length], values));
  rewriter.setInput(node, index, scaled);
}
