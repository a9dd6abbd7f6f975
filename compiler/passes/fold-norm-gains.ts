/**
 * Puts the gain and the bias of a norm into the linear ops behind it.
 *
 *     Linear(Norm(x, g, b), w, c)   ->   Linear(Norm(x), g·w, c + w·b)
 *
 * Only when linear ops with constant weights are all that reads the norm. Refuses tied weights, that is
 * an output matrix that is an embedding table as well: they would have to be stored twice.
 * Computed in doubles and rounded once to f32.
 *
 * In no pipeline by itself: a kernel reads the gain with the row it norms, so no time is saved, and nib in
 * w4g32 loses as much either way (65.71 with it, 65.77 without, per token of held-out text). Transforms
 * that turn the residual stream need it first.
 * Source: Ashkboos et al., SliceGPT, arXiv:2401.15024, section 3.1.
 */
import type { Node } from '../ir/graph.ts';
import { isNorm, normInputs } from '../ops/fused-norm.ts';
import { readNumbers } from '../ops/numbers.ts';
import type { LinearSite, NewWeights } from './linear-site.ts';
import { KEPT_CODES, readersOf, setWeights, takingAffine } from './linear-site.ts';
import type { Pass, PassContext } from './pass.ts';

/** Makes the pass. It has no options. */
export function foldNormGains(): Pass {
  return {
    name: 'fold-norm-gains',
    options: {},
    rules: [{ name: 'gain', starts: ['fettle.Norm'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes()) if (isNorm(node)) visit(node, context);
      return context.rewriter.changes > before;
    },
  };
}

function visit(norm: Node, context: PassContext): void {
  const { rewriter } = context;
  const gain = norm.inputs[normInputs.gain];
  const bias = norm.inputs[normInputs.bias];
  if (gain === undefined && bias === undefined) {
    context.miss('gain', norm, 'it has no gain and no bias');
    return;
  }
  const sites = readersOf(norm.output(0));
  if (sites === undefined) {
    context.miss('gain', norm, 'no linear op reads it');
    return;
  }
  const folded = typeof sites === 'string' ? sites : weightsOf(norm, sites);
  if (typeof folded === 'string') {
    context.refuse('gain', norm, folded);
    return;
  }
  for (const [site, weights] of folded) setWeights(rewriter, site, weights);
  rewriter.setInput(norm, normInputs.gain, undefined);
  rewriter.setInput(norm, normInputs.bias, undefined);
  norm.trim();
  context.count('gain');
}

function weightsOf(
  norm: Node,
  sites: readonly LinearSite[],
): readonly (readonly [LinearSite, NewWeights])[] | string {
  const size = norm.input(normInputs.x).shape?.at(-1);
  if (typeof size !== 'number') return 'the size of its rows is not known';
  if (sites.some(({ axis, inputs }) => axis !== -1 || inputs !== size))
    return 'its readers see other channels than the rows';
  const scale = rowOf(norm, normInputs.gain, size, 1);
  const shift = rowOf(norm, normInputs.bias, size, 0);
  if (scale === undefined || shift === undefined) return 'its gain or bias is not constant';
  if (shift.some((by) => by !== 0) && sites.some(({ takesBias }) => !takesBias))
    return 'a product without a bias cannot take a shift';
  if (sites.some(({ weight }) => weight.weight?.grid !== undefined)) return KEPT_CODES;
  const made: (readonly [LinearSite, NewWeights])[] = [];
  for (const site of sites) {
    const weights = takingAffine(site, scale, shift);
    if (weights === undefined) return 'the folded weights would not be finite';
    made.push([site, weights]);
  }
  return made;
}

/** An optional row of a norm, `absent` where it has none; undefined when it is computed. */
function rowOf(norm: Node, index: number, size: number, absent: number): Float64Array | undefined {
  const value = norm.inputs[index];
  if (value === undefined) return new Float64Array(size).fill(absent);
  const tensor = value.constant();
  if (tensor === undefined) return undefined;
  const numbers = readNumbers(tensor);
  return Float64Array.from(
    { length: size },
    (_, i) => numbers[numbers.length === 1 ? 0 : i] ?? absent,
  );
}
