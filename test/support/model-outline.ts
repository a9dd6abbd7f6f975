/**
 * A model as plain data, so that two models can be compared with deepEqual: everything a file says,
 * weights by content.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import type { Attribute } from '../../compiler/ir/attribute.ts';
import type { Graph, Model, Node, Value } from '../../compiler/ir/graph.ts';
import type { Weight } from '../../compiler/ir/weight.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';

/** Asserts that decoding what is written gives the same model. */
export function assertRoundTrip(model: Model): void {
  assert.deepEqual(outlineModel(decodeModel(encodeModel(model))), outlineModel(model));
}

/** `Op(inputs) -> outputs` of every node of the main graph. */
export function outlineNodes(model: Model): string[] {
  const names = (list: Node['inputs']): string => list.map((value) => value?.name ?? '').join(', ');
  return [...model.graph.nodes()].map(
    ({ op, inputs, outputs }) => `${op}(${names(inputs)}) -> ${names(outputs)}`,
  );
}

/** Plain data of a whole model. */
export function outlineModel(model: Model): unknown {
  return {
    irVersion: model.irVersion,
    producer: [model.producerName, model.producerVersion, model.domain, model.docString],
    modelVersion: model.modelVersion,
    opsets: [...model.opsets],
    metadata: [...model.metadata],
    carried: hex(model.carried),
    graph: outlineGraph(model.graph),
  };
}

function outlineGraph(graph: Graph): unknown {
  return {
    name: graph.name,
    docString: graph.docString,
    metadata: [...graph.metadata],
    carried: hex(graph.carried),
    inputs: graph.inputs.map(outlineValue),
    constants: [...graph.constants].map(outlineValue),
    nodes: [...graph.nodes()].map(outlineNode),
    outputs: graph.outputs.map(outlineValue),
  };
}

function outlineNode(node: Node): unknown {
  return {
    op: [node.domain, node.op, node.overload, node.name],
    inputs: node.inputs.map((value) => value?.name),
    outputs: node.outputs.map((value) => value && outlineValue(value)),
    attributes: [...node.attributes].map(([name, attribute]) => [
      name,
      outlineAttribute(attribute),
    ]),
    docString: node.docString,
    metadata: [...node.metadata],
    carried: hex(node.carried),
  };
}

function outlineAttribute(attribute: Attribute): unknown {
  const carried = hex(attribute.carried);
  const { kind, value } = attribute;
  if (kind === 'graph') return { kind, carried, value: outlineGraph(value) };
  if (kind === 'graphs') return { kind, carried, value: value.map(outlineGraph) };
  if (kind === 'tensor') return { kind, carried, value: outlineWeight(value) };
  if (kind === 'tensors') return { kind, carried, value: value.map(outlineWeight) };
  return { kind, carried, value: kind === 'opaque' ? hex(value) : value };
}

function outlineValue(value: Value): unknown {
  return {
    name: value.name,
    dtype: value.dtype,
    shape: value.shape,
    opaqueType: hex(value.opaqueType),
    docString: value.docString,
    metadata: [...value.metadata],
    denotations: value.denotations,
    carried: hex(value.carried),
    weight: value.weight && outlineWeight(value.weight),
  };
}

function outlineWeight(weight: Weight): unknown {
  const { dtype, shape, carried } = weight;
  const contents =
    dtype === 'string'
      ? weight.tensor().data
      : createHash('sha256').update(weight.bytes()).digest('hex');
  return { dtype, shape, contents, tensor: hex(carried?.tensor), sparse: hex(carried?.sparse) };
}

function hex(bytes: Uint8Array | undefined): string | undefined {
  return bytes && Buffer.from(bytes).toString('hex');
}
