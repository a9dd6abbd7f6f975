/**
 * AttributeProto -> Attribute. Subgraphs and references to attributes of a function are the caller's
 * to resolve; they need the names around the node.
 */
import onnxProto from 'onnx-proto';
import { FettleError } from '../../runtime/errors.ts';
import type { Attribute, AttributeContent } from '../ir/attribute.ts';
import type { Graph } from '../ir/graph.ts';
import type { AttributeProto, GraphProto } from './schema.ts';
import type { TensorStorage } from './tensor.ts';
import { readTensor } from './tensor.ts';
import { textOf } from './text.ts';
import { carry, encodeMessage, has, toBigInt, unknownFields, unknownsOf } from './wire.ts';

/** AttributeProto.AttributeType by name. */
export const attributeTypes: typeof onnxProto.onnx.AttributeProto.AttributeType =
  onnxProto.onnx.AttributeProto.AttributeType;

/**
 * Reads one attribute.
 *
 * @param name - its name on the node
 * @param source - what it holds
 * @param storage - where tensors are
 * @param node - name of the node, for messages
 * @param graphOf - reads a subgraph
 */
export function readAttribute(
  name: string,
  source: AttributeProto,
  storage: TensorStorage,
  node: string,
  graphOf: (graph: GraphProto) => Graph,
): Attribute {
  // inside a function the caller's attribute may have another name
  const proto =
    source.name === name ? source : { ...source, name, ...carry(unknownFields(source)) };
  const content = contentOf(proto, storage, node, graphOf);
  const carried = content.kind === 'opaque' ? undefined : unknownsOf(proto);
  return carried === undefined ? content : { ...content, carried };
}

function contentOf(
  proto: AttributeProto,
  storage: TensorStorage,
  node: string,
  graphOf: (graph: GraphProto) => Graph,
): AttributeContent {
  const at = { node, attribute: proto.name ?? '' };
  const incomplete = (): FettleError =>
    new FettleError(
      'MODEL_INVALID',
      `Attribute "${proto.name}" of node "${node}" has type ${typeOf(proto)} but no such value.`,
      { at, fix: 'Export the model again.' },
    );
  switch (typeOf(proto)) {
    case attributeTypes.FLOAT:
      return { kind: 'float', value: proto.f ?? 0 };
    case attributeTypes.INT:
      return { kind: 'int', value: proto.i === undefined ? 0n : toBigInt(proto.i) };
    case attributeTypes.STRING:
      return { kind: 'string', value: textOf(proto.s ?? new Uint8Array(0)) };
    case attributeTypes.TENSOR:
      if (!proto.t) throw incomplete();
      return { kind: 'tensor', value: readTensor(proto.t, storage, at, true) };
    case attributeTypes.GRAPH:
      if (!proto.g) throw incomplete();
      return { kind: 'graph', value: graphOf(proto.g) };
    case attributeTypes.FLOATS:
      return { kind: 'floats', value: proto.floats ?? [] };
    case attributeTypes.INTS:
      return { kind: 'ints', value: (proto.ints ?? []).map(toBigInt) };
    case attributeTypes.STRINGS:
      return { kind: 'strings', value: (proto.strings ?? []).map(textOf) };
    case attributeTypes.TENSORS:
      return {
        kind: 'tensors',
        value: (proto.tensors ?? []).map((tensor) => readTensor(tensor, storage, at, true)),
      };
    case attributeTypes.GRAPHS:
      return { kind: 'graphs', value: (proto.graphs ?? []).map(graphOf) };
    default:
      return {
        kind: 'opaque',
        value: encodeMessage('AttributeProto', { ...proto, ...carry(unknownFields(proto)) }),
      };
  }
}

/** The declared type; files before IR version 2 leave it out, and the field that is set tells. */
function typeOf(proto: AttributeProto): number {
  if (has(proto, 'type') && proto.type !== 0) return proto.type ?? 0;
  const fields = [
    ['f', attributeTypes.FLOAT],
    ['i', attributeTypes.INT],
    ['s', attributeTypes.STRING],
    ['t', attributeTypes.TENSOR],
    ['g', attributeTypes.GRAPH],
    ['floats', attributeTypes.FLOATS],
    ['ints', attributeTypes.INTS],
    ['strings', attributeTypes.STRINGS],
    ['tensors', attributeTypes.TENSORS],
    ['graphs', attributeTypes.GRAPHS],
  ] as const;
  return fields.find(([field]) => has(proto, field))?.[1] ?? attributeTypes.UNDEFINED;
}
