/**
 * Replacing an output by something that is already there, without changing what the model's user sees.
 *
 * The outputs of the main graph have public names, and a subgraph may not hand out a value that was
 * computed outside of it (onnxruntime refuses such a model), so not every replacement is possible.
 */
import type { Graph, Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import type { Weight } from '../ir/weight.ts';

/**
 * Why `value` cannot stand in for `old` everywhere, or undefined when it can.
 *
 * @param graph - the main graph
 */
export function obstacle(graph: Graph, old: Value, value: Value): string | undefined {
  const home = old.producer?.graph;
  if (!old.isOutput) return undefined;
  if (home !== graph && (value.producer === undefined || value.producer.graph !== home))
    return 'a subgraph cannot hand out a value from outside of it';
  if (value.weight !== undefined) return undefined;
  if (value.producer === undefined) return 'it makes an output of the graph out of an input';
  if (value.producer.graph !== home) return 'a graph cannot hand out a value of a subgraph';
  if (value.isOutput) return 'both values are outputs of the graph';
  return undefined;
}

/**
 * Makes every use of `old` use `value`, keeping the names of graph outputs, and removes the node that
 * computed `old` when nothing needs it any more. Ask {@link obstacle} first.
 */
export function replaceValue(rewriter: Rewriter, old: Value, value: Value): void {
  const { producer } = old;
  if (old.isOutput && value.weight !== undefined) replaceByConstant(rewriter, old, value.weight);
  else rewriter.replace(old, value);
  if (producer !== undefined) removeIfUnused(rewriter, producer);
}

/**
 * Makes every use of `old` use a new constant, which takes its name.
 *
 * @returns the constant
 */
export function replaceByConstant(rewriter: Rewriter, old: Value, weight: Weight): Value {
  const constant = rewriter.constant(old.name, weight);
  [old.name, constant.name] = [constant.name, old.name];
  constant.elements = old.elements;
  rewriter.replaceUses(old, constant);
  return constant;
}

/** Removes a node none of whose outputs is used. */
export function removeIfUnused(rewriter: Rewriter, node: Node): void {
  if (node.graph === undefined) return;
  if (node.outputs.every((output) => output === undefined || output.useCount === 0))
    rewriter.remove(node);
}

/**
 * Makes every use of `old` use the output of a new node, which takes its name, and removes the node
 * that computed `old` when nothing needs it any more.
 */
export function replaceByNew(rewriter: Rewriter, old: Value, value: Value): void {
  const { producer } = old;
  [old.name, value.name] = [value.name, old.name];
  value.dtype ??= old.dtype;
  value.shape ??= old.shape;
  value.elements ??= old.elements;
  rewriter.replaceUses(old, value);
  if (producer !== undefined) removeIfUnused(rewriter, producer);
}
