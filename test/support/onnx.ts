/**
 * Small ONNX files made by hand for tests, with the messages spelt out.
 */
import type { Model, Node } from '../../compiler/ir/graph.ts';
import type {
  AttributeProto,
  GraphProto,
  ModelProto,
  NodeProto,
  TensorProto,
  ValueInfoProto,
} from '../../compiler/onnx/schema.ts';
import { encodeMessage, fromNumber } from '../../compiler/onnx/wire.ts';

/** The nodes of a model's main graph. */
export function nodesOf(model: Model): Node[] {
  return [...model.graph.nodes()];
}

/** A tensor value of a dtype number and dimensions. */
export function value(
  name: string,
  dims: readonly (number | string)[] = [2],
  elemType = 1,
): ValueInfoProto {
  const dim = dims.map((size) =>
    typeof size === 'string' ? { dimParam: size } : { dimValue: fromNumber(size) },
  );
  return { name, type: { tensorType: { elemType, shape: { dim } } } };
}

/** A node. */
export function node(
  opType: string,
  input: string[],
  output: string[],
  more: Partial<NodeProto> = {},
): NodeProto {
  return { opType, input, output, ...more };
}

/** An f32 tensor. */
export function floats(name: string, values: readonly number[]): TensorProto {
  return {
    name,
    dims: [fromNumber(values.length)],
    dataType: 1,
    rawData: new Uint8Array(Float32Array.from(values).buffer),
  };
}

/** A subgraph attribute. */
export function graphAttribute(name: string, g: GraphProto): AttributeProto {
  return { name, g, type: 5 };
}

/** An encoded model with opset 17, IR version 8 and what `more` changes. */
export function modelBytes(graph: GraphProto, more: Partial<ModelProto> = {}): Uint8Array {
  return encodeMessage('ModelProto', {
    irVersion: fromNumber(8),
    opsetImport: [{ version: fromNumber(17) }],
    graph: { name: 'test', ...graph },
    ...more,
  });
}

/** A graph x -> Relu -> y. */
export function reluGraph(more: Partial<GraphProto> = {}): GraphProto {
  return { node: [node('Relu', ['x'], ['y'])], input: [value('x')], output: [value('y')], ...more };
}
