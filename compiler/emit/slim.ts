/**
 * Takes out of a graph what only people read, right before it is encoded: types and long names of
 * interior values, comments, metadata. A graph from PyTorch shrinks to about half. What is left for
 * people: node names, which engines put into their messages, and the names of inputs, outputs and weights.
 *
 *   /layers.0/self_attn/Concat_4_output_0: f32[batch, 2, sequence, 32]  ->  v1f
 */
import type { Model, Value } from '../ir/graph.ts';

/** Slims a model in place. Its interior values have no known types afterwards. */
export function slimGraph(model: Model): void {
  model.docString = '';
  model.metadata.clear();
  let count = 0;
  const shortName = (): string => {
    let name = `v${(count++).toString(36)}`;
    while (!model.claimName(name)) name = `v${(count++).toString(36)}`;
    return name;
  };
  for (const graph of model.graph.allGraphs()) {
    graph.docString = '';
    graph.metadata = new Map();
    for (const value of [...graph.inputs, ...graph.constants, ...graph.outputs]) forget(value);
    for (const node of graph.nodes()) {
      node.docString = '';
      node.metadata = new Map();
      for (const output of node.outputs) {
        if (output === undefined || output.isOutput) continue;
        forget(output);
        output.name = shortName();
        output.dtype = undefined;
        output.shape = undefined;
      }
    }
  }
}

function forget(value: Value): void {
  value.docString = undefined;
  value.metadata = new Map();
}
