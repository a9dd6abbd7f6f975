/**
 * Turns the values of each attention head by an orthogonal matrix, and turns them back in the output
 * projection, so that no channel of a head is much larger than the others when they are rounded.
 *
 *     v = x W_v, o = attention(…, v) W_o   ->   v = x (W_v R), o = attention(…, v) (Rᵀ W_o)
 *
 * Exact: attention adds up rows of v. Values in the KV cache are turned ones. Refuses values and
 * outputs that something else reads, and weights that are not constant.
 * Source: ../shared/ALGORITHMS.md B7 and Q7 (R2).
 */
import type { Node } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { attentionInputs, isFusedAttention, readAttention } from '../ops/fused-attention.ts';
import { isLinear, linearInputs } from '../ops/fused-linear.ts';
import { Rotation } from '../quant/rotation.ts';
import type { LinearSite, NewWeights } from './linear-site.ts';
import { linearSites, readersOf, setWeights } from './linear-site.ts';
import type { Pass, PassContext } from './pass.ts';
import { givingTurned, readingTurned } from './turn-weights.ts';

/** Options of {@link rotateValues}. */
export interface RotateValuesOptions {
  /** Which rotation. Default 1. */
  readonly seed?: number;
}

/** Defaults of {@link RotateValuesOptions}. */
export const rotateValuesDefaults: Required<RotateValuesOptions> = { seed: 1 };

const RULE = 'values';

/** Makes the pass. */
export function rotateValues(options: RotateValuesOptions = {}): Pass {
  const { seed } = { ...rotateValuesDefaults, ...options };
  return {
    name: 'rotate-values',
    options: { seed },
    rules: [{ name: RULE, starts: ['fettle.Attention'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.nodes())
        if (isFusedAttention(node)) visit(node, seed, context);
      return context.rewriter.changes > before;
    },
  };
}

function visit(node: Node, seed: number, context: PassContext): void {
  const turned = turnedWeights(node, seed);
  if (typeof turned === 'string') {
    context.refuse(RULE, node, turned);
    return;
  }
  for (const [site, weights] of turned) setWeights(context.rewriter, site, weights);
  context.count(RULE);
}

function turnedWeights(
  node: Node,
  seed: number,
): readonly (readonly [LinearSite, NewWeights])[] | string {
  const { heads, kvHeads, headSize } = readAttention(node);
  const packed = node.inputs[attentionInputs.v] === undefined;
  const value = node.input(packed ? attentionInputs.q : attentionInputs.v);
  const { producer } = value;
  if (!isLinear(producer)) return 'its values do not come from a product';
  if (activationNameOf(producer) !== 'none') return 'its values come out of an activation';
  if (producer.inputs[linearInputs.residual] !== undefined)
    return 'something is added to its values';
  if (value.useCount !== 1) return 'its values are used elsewhere';
  const [writer] = sitesOf(producer);
  if (typeof writer === 'string') return writer;
  const readers = readersOf(node.output(0));
  if (readers === undefined) return 'its output goes to no product';
  if (typeof readers === 'string') return readers;
  if (readers.some(({ axis, inputs }) => axis !== -1 || inputs !== heads * headSize))
    return 'its readers see other channels than the heads';
  if (writer === undefined) return 'its values do not come from a product';
  const rotation = new Rotation(headSize, seed);
  const from = packed ? (heads + kvHeads) * headSize : 0;
  const made: (readonly [LinearSite, NewWeights])[] = [];
  const given = givingTurned(writer, rotation, { from, count: kvHeads });
  if (given !== undefined) made.push([writer, given]);
  for (const reader of readers) {
    const read = readingTurned(reader, rotation, { from: 0, count: heads });
    if (read !== undefined) made.push([reader, read]);
  }
  return made;
}

function sitesOf(node: Node): readonly (LinearSite | string)[] {
  const sites = linearSites(node);
  return sites === undefined || typeof sites === 'string' ? [sites ?? 'it is no product'] : sites;
}
