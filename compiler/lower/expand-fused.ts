/**
 * Turns the fused ops that only the compiler knows back into ops that onnxruntime runs. To add one:
 * its `expand-*.ts`, and a line in the table.
 */
import type { Model, Node, Value } from '../ir/graph.ts';
import { internalDomain } from '../ops/quantized.ts';
import { removeIfUnused, replaceByNew } from '../passes/replace.ts';
import type { LowerContext } from './context.ts';
import { expandActivation } from './expand-activation.ts';
import { expandAttention } from './expand-attention.ts';
import { expandConv } from './expand-conv.ts';
import { expandExpression } from './expand-expression.ts';
import { expandGatedLinear, expandLinear } from './expand-linear.ts';
import { expandNorm } from './expand-norm.ts';
import { upgradeOpset } from './upgrade-opset.ts';

/** Writes a node in other ops, in front of it; a value for each output that is used. */
export type Expand = (node: Node, context: LowerContext) => readonly (Value | undefined)[];

/** By op of the internal domain. Dequantize is not here: its form depends on who reads it. */
const expanders: Readonly<Record<string, Expand>> = {
  Activation: (node, { rewriter }) => [expandActivation(rewriter, node, node.input(0))],
  Attention: expandAttention,
  Conv: expandConv,
  ConvTranspose: expandConv,
  Expression: expandExpression,
  GatedLinear: expandGatedLinear,
  Linear: expandLinear,
  Norm: expandNorm,
};

/** What attention is written in takes as inputs what were attributes before this opset. */
const attentionOpset = 13;

/** Expands every fused node of a model that has an expansion. */
export function expandFused(model: Model, context: LowerContext): void {
  const { rewriter } = context;
  const nodes = [...model.graph.allNodes()];
  if (nodes.some(({ op, domain }) => op === 'Attention' && domain === internalDomain))
    upgradeOpset(model, attentionOpset);
  for (const node of model.graph.allNodes()) {
    if (node.domain !== internalDomain) continue;
    const expand = expanders[node.op];
    if (expand === undefined) continue;
    rewriter.before(node);
    const values = expand(node, context);
    node.outputs.forEach((old, index) => {
      const value = values[index];
      if (old !== undefined && value !== undefined) replaceByNew(rewriter, old, value);
    });
    removeIfUnused(rewriter, node);
  }
}
