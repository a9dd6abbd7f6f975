/**
 * Raises the ONNX opset of a model. Most ops only gained dtypes and optional attributes over the
 * years; `upgrade-rules.ts` holds the ones whose old spelling means something else, or nothing, later.
 *
 *     Squeeze(x), axes = [1]   (opset 12)   ->   Squeeze(x, axes)   (opset 13 and later)
 *
 * Source: https://github.com/onnx/onnx/blob/main/docs/Changelog.md, every entry from 8 to 21.
 */
import { FettleError } from '../../runtime/errors.ts';
import { inferNode } from '../ir/infer.ts';
import type { Model, Node } from '../ir/graph.ts';
import { Rewriter } from '../ir/rewriter.ts';
import type { UpgradeRule } from './upgrade-rules.ts';
import { upgradeRules } from './upgrade-rules.ts';

/** Oldest opset that can be raised: before it, binary ops had a `broadcast` attribute. */
export const oldestUpgradableOpset = 7;

/** Newest opset the rules know of. */
export const newestUpgradedOpset = 21;

/**
 * Raises the opset of a model in place.
 *
 * @param model - shapes inferred
 * @param to - the opset wanted, 13 to {@link newestUpgradedOpset}; nothing happens when the model's is
 * not below it
 * @throws {@link FettleError} OP_UNSUPPORTED naming the node that has no equivalent in the new opset
 */
export function upgradeOpset(model: Model, to: number): void {
  const from = model.opset;
  if (from >= to) return;
  if (from < oldestUpgradableOpset)
    throw new FettleError('OP_UNSUPPORTED', `Opset ${from} cannot be raised to ${to}.`, {
      at: { opset: from },
      fix: 'Export the model again with opset 13 or later, or keep its weights in f32 or f16.',
    });
  const due = upgradeRules.filter(({ since }) => since > from && since <= to);
  const nodes = [...model.graph.allNodes()].filter(({ domain }) => domain === '');
  const refused = firstRefusal(nodes, due, from);
  if (refused !== undefined) throw refused;
  model.opsets.set('', to);
  const rewriter = new Rewriter(model, inferNode);
  for (const rule of due)
    for (const node of nodes)
      // a rule may have replaced the node
      if (node.graph !== undefined && rule.ops.includes(node.op))
        rule.upgrade(node, rewriter, from);
}

/** Nothing is changed when one node cannot follow. */
function firstRefusal(
  nodes: readonly Node[],
  rules: readonly UpgradeRule[],
  from: number,
): FettleError | undefined {
  for (const node of nodes)
    for (const rule of rules) {
      const why = rule.ops.includes(node.op) ? rule.refuse?.(node, from) : undefined;
      if (why !== undefined)
        return new FettleError(
          'OP_UNSUPPORTED',
          `${node.describe()} cannot be raised from opset ${from} to ${rule.since}: ${why}.`,
          {
            at: { node: node.name, op: node.op, opset: from },
            fix: 'Export the model again with a later opset, or keep its weights in f32 or f16.',
          },
        );
    }
  return undefined;
}
