/**
 * Removes what no output of the model depends on.
 *
 *     y = Relu(x); z = Exp(x); return y    ->    y = Relu(x); return y
 *     y, yh, yc = LSTM(…); return y        ->    y = LSTM(…); return y
 *
 * Nodes and constants in every graph, optional outputs that nothing reads, and outputs of `If` that
 * nothing reads together with what their branches computed for them. Never removes inputs of the
 * model, an output in the middle of a variadic list, or anything of an op Fettle does not know.
 */
import { graphAttribute } from '../ir/attribute.ts';
import type { Graph, Node } from '../ir/graph.ts';
import { definitionOf } from '../ops/index.ts';
import type { Pass, PassContext } from './pass.ts';

/** Makes the pass. It has no options. */
export function eliminateDead(): Pass {
  return {
    name: 'eliminate-dead',
    options: {},
    run(model, context) {
      const before = context.rewriter.changes;
      removeDead(model.graph, context);
      return context.rewriter.changes > before;
    },
  };
}

/**
 * Removes what nothing reads from a graph and its subgraphs. Users come after what they use, so one
 * walk from the end finds everything.
 */
export function removeDead(graph: Graph, context: PassContext): void {
  const { rewriter } = context;
  for (const node of [...graph.nodes()].reverse()) {
    if (node.outputs.every((output) => output === undefined || output.useCount === 0)) {
      rewriter.remove(node);
      context.count('node');
      continue;
    }
    const kept = node.op === 'If' && node.domain === '' ? dropBranchOutputs(node, context) : node;
    for (const subgraph of kept.subgraphs) removeDead(subgraph, context);
    if (kept === node) dropOptionalOutputs(node, context);
  }
  for (const constant of graph.constants)
    if (constant.useCount === 0) {
      rewriter.removeConstant(graph, constant);
      context.count('constant');
    }
}

function dropOptionalOutputs(node: Node, context: PassContext): void {
  const definition = definitionOf(node);
  if (definition === undefined) return;
  const [fewest, most] = definition.outputs;
  if (most > MOST_OPTIONAL_OUTPUTS) return;
  for (let index = node.outputs.length - 1; index >= fewest; index--) {
    const output = node.outputs[index];
    if (output === undefined || output.useCount > 0) continue;
    context.rewriter.dropOutput(node, index);
    context.count('optional-output');
  }
}

/** No op has so many optional outputs; a larger count means a list of outputs, each with a meaning. */
const MOST_OPTIONAL_OUTPUTS = 16;

/** An `If` with an output nobody reads becomes one without it. */
function dropBranchOutputs(node: Node, context: PassContext): Node {
  const unused = node.outputs.flatMap((output, index) =>
    output === undefined || output.useCount === 0 ? [index] : [],
  );
  if (unused.length === 0) return node;
  const { rewriter } = context;
  const kept = node.outputs.flatMap((output) =>
    output !== undefined && output.useCount > 0 ? [output] : [],
  );
  const attributes = [...node.attributes];
  // the branches move to the new node, and must not be cleared with the old one
  for (const [name] of attributes) rewriter.setAttribute(node, name, undefined);
  for (const [, attribute] of attributes)
    if (attribute.kind === 'graph')
      for (const index of [...unused].reverse()) attribute.value.removeOutput(index);
  const smaller = rewriter
    .before(node)
    .node(
      node.op,
      node.inputs,
      Object.fromEntries(
        attributes.map(([name, attribute]) => [
          name,
          attribute.kind === 'graph' ? graphAttribute(attribute.value) : attribute,
        ]),
      ),
      { outputs: kept.length },
    );
  kept.forEach((old, index) => rewriter.replace(old, smaller.output(index)));
  rewriter.remove(node);
  context.count('branch-output', unused.length);
  return smaller;
}
