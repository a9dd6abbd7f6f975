/**
 * The fused normalization: an optional residual addition and the norm of the sum, in one op.
 *
 *   fettle.Norm(x [..., D], gain? [D], bias? [D], skip? [..., D], skipBias? [D]) -> y [..., D], sum? [..., D]
 *
 * `sum = x + skip + skipBias`, `y = norm(sum) * gain + bias` over the last axis. Attributes: `kind` is
 * `rms` or `layer`, `epsilon` is added to the mean square or variance. Statistics are taken in f32 or
 * better whatever the dtype.
 *
 * Source: https://arxiv.org/abs/1607.06450 (layer), https://arxiv.org/abs/1910.07467 (rms).
 */
import type { Node } from '../ir/graph.ts';
import type { OpDefinition } from './definition.ts';
import { floatsOf, spanOf } from './dense.ts';
import { applyAffine, normalizeRows } from './norm.ts';
import { writeNumbers } from './numbers.ts';
import { internalDomain } from './quantized.ts';
import { opError, sameDim } from './support.ts';

/** Input places of a Norm node. */
export const normInputs = { x: 0, gain: 1, bias: 2, skip: 3, skipBias: 4 } as const;

/** Which statistics a norm uses: `rms` the mean square, `layer` mean and variance. */
export type NormKind = 'rms' | 'layer';

/** Whether a node is a fused Norm. */
export function isNorm(node: Node | undefined): node is Node & { readonly op: 'Norm' } {
  return node?.op === 'Norm' && node.domain === internalDomain;
}

/** The kind of a Norm node. */
export function normKind(node: Node): NormKind {
  const kind = node.string('kind', '');
  if (kind !== 'rms' && kind !== 'layer')
    throw opError({ node }, `kind must be rms or layer, got "${kind}"`);
  return kind;
}

const norm: OpDefinition = {
  op: 'Norm',
  domain: internalDomain,
  inputs: [1, 5],
  outputs: [1, 2],
  infer(context) {
    normKind(context.node);
    const { dtype, shape } = context.input(normInputs.x);
    for (const index of [normInputs.gain, normInputs.bias, normInputs.skipBias]) {
      const other = context.input(index).shape;
      if (shape !== undefined && other !== undefined)
        sameDim(context, 'the sizes of a row', shape.at(-1) ?? 1, other.at(-1) ?? 1);
    }
    return [
      { dtype, shape },
      { dtype, shape },
    ];
  },
  evaluate(context) {
    const { node, inputs } = context;
    const x = context.input(normInputs.x);
    const sum = Float64Array.from(floatsOf(x));
    applyAffine(sum, x.shape, undefined, inputs[normInputs.skip]);
    applyAffine(sum, x.shape, undefined, inputs[normInputs.skipBias]);
    const epsilon = node.float('epsilon', 1e-5);
    const rows = normalizeRows(sum, x.shape.at(-1) ?? 1, epsilon, normKind(node) === 'layer');
    applyAffine(rows.values, x.shape, inputs[normInputs.gain], inputs[normInputs.bias]);
    return [writeNumbers(x.dtype, x.shape, rows.values), writeNumbers(x.dtype, x.shape, sum)];
  },
  cost(node, shapeOf) {
    const elements = spanOf(shapeOf(node.input(0)), 0);
    const tensors = [node.inputs[0], node.inputs[normInputs.skip], ...node.outputs];
    const moved = tensors.filter((value) => value !== undefined).length;
    return { flops: 6 * elements, bytes: 4 * elements * moved };
  },
};

/** The fused normalization. */
export const fusedNormOps: readonly OpDefinition[] = [norm];
