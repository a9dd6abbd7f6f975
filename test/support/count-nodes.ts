/** Nodes of all graphs of a model; Constant nodes are not counted, being constants by another name. */
import type { Model } from '../../compiler/ir/graph.ts';

/** How many there are. */
export function countNodes(model: Model): number {
  let count = 0;
  for (const node of model.graph.allNodes()) if (node.op !== 'Constant') count++;
  return count;
}
