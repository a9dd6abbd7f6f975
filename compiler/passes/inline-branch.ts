/**
 * Puts the nodes of a subgraph without inputs in the place of the node that owns it.
 *
 *     y = If(c) { then: a = Relu(x); return a }    ->    a = Relu(x); uses of y read a
 */
import type { Graph, Node } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { obstacle, replaceValue } from './replace.ts';

/**
 * Replaces `owner` by what one of its branches computes.
 *
 * @param owner - an `If`
 * @param branch - one of its subgraphs
 */
export function inlineBranch(rewriter: Rewriter, owner: Node, branch: Graph): void {
  const { model } = rewriter;
  for (const constant of branch.constants) {
    branch.constants.delete(constant);
    model.graph.addConstant(constant);
  }
  for (const node of branch.nodes()) moveBefore(rewriter, owner, node);
  const results = [...branch.outputs];
  while (branch.outputs.length > 0) branch.removeOutput(branch.outputs.length - 1);
  owner.outputs.forEach((output, index) => {
    const result = results[index];
    if (output === undefined || result === undefined) return;
    const direct = obstacle(model.graph, output, result) === undefined;
    const value = direct ? result : rewriter.before(owner).op('Identity', [result]);
    if (owner.graph !== undefined) replaceValue(rewriter, output, value);
  });
  if (owner.graph !== undefined) rewriter.remove(owner);
}

/** A node of a graph cannot change graphs, so an equal one takes over its values' uses. */
function moveBefore(rewriter: Rewriter, owner: Node, node: Node): void {
  const attributes = Object.fromEntries(node.attributes);
  // nested subgraphs move along, and must not be cleared with the old node
  for (const name of Object.keys(attributes)) rewriter.setAttribute(node, name, undefined);
  const copy = rewriter.before(owner).node(node.op, node.inputs, attributes, {
    domain: node.domain,
    name: node.name,
    from: node.from,
    outputs: node.outputs.length,
  });
  copy.metadata = node.metadata;
  node.outputs.forEach((old, index) => {
    if (old === undefined) {
      rewriter.dropOutput(copy, index);
      return;
    }
    const value = copy.output(index);
    [old.name, value.name] = [value.name, old.name];
    value.dtype ??= old.dtype;
    value.shape ??= old.shape;
    value.opaqueType = old.opaqueType;
    rewriter.replaceUses(old, value);
  });
}
