/**
 * A deep copy of a model, so that compiling never changes the caller's. Weights are shared; they never
 * change.
 */
import type { Attribute } from './attribute.ts';
import { Graph, Model, Node, Value } from './graph.ts';

/** Copies a model with all its graphs. */
export function cloneModel(model: Model): Model {
  const copies = new Map<Value, Value>();
  const copy = new Model(new Graph(model.graph.name), model.opsets);
  copy.irVersion = model.irVersion;
  copy.producerName = model.producerName;
  copy.producerVersion = model.producerVersion;
  copy.domain = model.domain;
  copy.modelVersion = model.modelVersion;
  copy.docString = model.docString;
  copy.carried = model.carried;
  for (const [key, value] of model.metadata) copy.metadata.set(key, value);
  copy.warnings.push(...model.warnings);
  copy.takeNamesOf(model);
  cloneInto(copy.graph, model.graph, copies);
  return copy;
}

function cloneInto(target: Graph, graph: Graph, copies: Map<Value, Value>): void {
  target.docString = graph.docString;
  target.metadata = graph.metadata;
  target.carried = graph.carried;
  for (const input of graph.inputs) target.inputs.push(cloneValue(input, copies));
  for (const constant of graph.constants) target.addConstant(cloneValue(constant, copies));
  for (const node of graph.nodes()) {
    const outputs = node.outputs.map((value) => value && cloneValue(value, copies));
    const twin = new Node(node.op, outputs, {
      domain: node.domain,
      overload: node.overload,
      name: node.name,
      from: node.from,
    });
    twin.docString = node.docString;
    twin.metadata = node.metadata;
    twin.carried = node.carried;
    for (const [name, attribute] of node.attributes)
      twin.setAttribute(name, cloneAttribute(attribute, copies));
    node.inputs.forEach((value, index) => twin.setInput(index, value && cloneValue(value, copies)));
    target.insert(twin);
  }
  for (const output of graph.outputs) target.setOutput(cloneValue(output, copies));
}

function cloneAttribute(attribute: Attribute, copies: Map<Value, Value>): Attribute {
  const cloneGraph = (graph: Graph): Graph => {
    const twin = new Graph(graph.name);
    cloneInto(twin, graph, copies);
    return twin;
  };
  if (attribute.kind === 'graph') return { ...attribute, value: cloneGraph(attribute.value) };
  if (attribute.kind === 'graphs') return { ...attribute, value: attribute.value.map(cloneGraph) };
  return attribute;
}

/** The twin of a value, made when it is first met. */
function cloneValue(value: Value, copies: Map<Value, Value>): Value {
  let twin = copies.get(value);
  if (twin !== undefined) return twin;
  twin = new Value(value.name, value);
  twin.weight = value.weight;
  twin.opaqueType = value.opaqueType;
  twin.docString = value.docString;
  twin.metadata = value.metadata;
  twin.denotations = value.denotations;
  twin.carried = value.carried;
  copies.set(value, twin);
  return twin;
}
