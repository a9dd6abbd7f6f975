/**
 * A part of a model as a model of its own: values at its borders become inputs and outputs, and keep
 * their names, types and what is known about them.
 */
import { assert } from '../../runtime/errors.ts';
import { cloneModel } from '../ir/clone.ts';
import type { Graph, Model } from '../ir/graph.ts';
import { Value } from '../ir/graph.ts';
import { inferNode } from '../ir/infer.ts';
import { Rewriter } from '../ir/rewriter.ts';

/**
 * Cuts a part out of a model.
 *
 * @param model - not changed; constants are shared
 * @param inputs - names of values that come from outside; those that nothing needs are left out
 * @param outputs - names of values to compute, none of them an input
 */
export function stageModel(
  model: Model,
  inputs: readonly string[],
  outputs: readonly string[],
): Model {
  const copy = cloneModel(model);
  const { graph } = copy;
  const rewriter = new Rewriter(copy, inferNode);
  while (graph.outputs.length > 0) graph.removeOutput(graph.outputs.length - 1);
  const values = valuesOf(graph);
  const named = (name: string): Value => {
    const value = values.get(name);
    assert(value !== undefined, `the model has no value "${name}"`);
    return value;
  };
  for (const name of inputs) {
    const value = named(name);
    if (value.producer === undefined) continue;
    value.name = copy.uniqueName(`${name}_before`);
    const input = new Value(name, value);
    graph.inputs.push(input);
    rewriter.replaceUses(value, input);
  }
  for (const name of outputs) graph.setOutput(named(name));
  prune(rewriter);
  return copy;
}

/** Removes what no output depends on, inputs included. */
function prune(rewriter: Rewriter): void {
  const { graph } = rewriter.model;
  for (const node of [...graph.nodes()].toReversed())
    if (node.outputs.every((value) => value === undefined || value.useCount === 0))
      rewriter.remove(node);
  for (const constant of graph.constants)
    if (constant.useCount === 0) rewriter.removeConstant(graph, constant);
  for (const input of graph.inputs.filter(({ useCount }) => useCount === 0))
    rewriter.removeInput(input);
}

function valuesOf(graph: Graph): Map<string, Value> {
  const found = new Map<string, Value>();
  for (const value of graph.inputs) found.set(value.name, value);
  for (const node of graph.nodes())
    for (const value of node.outputs) if (value !== undefined) found.set(value.name, value);
  return found;
}
