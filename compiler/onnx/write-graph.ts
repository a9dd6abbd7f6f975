/**
 * Graph -> GraphProto. Numeric tensors are written as raw data, whatever field they came from; what the
 * reader carried along without knowing it comes after the known fields.
 */
import type { Attribute } from '../ir/attribute.ts';
import { dimToText, isAnonymous } from '../ir/dim.ts';
import type { Graph, Model, Node, Value } from '../ir/graph.ts';
import type { Weight } from '../ir/weight.ts';
import { dtypes } from '../../runtime/tensor.ts';
import { attributeTypes } from './attribute.ts';
import type {
  AttributeProto,
  DimensionProto,
  EntryProto,
  GraphProto,
  NodeProto,
  SparseTensorProto,
  TensorProto,
  TypeProto,
  ValueInfoProto,
} from './schema.ts';
import { bytesOfText } from './text.ts';
import { carry, decodeMessage, fromBigInt, fromNumber, unknownFields } from './wire.ts';

/** Where the bytes of a constant are in a file beside the model. */
export interface ExternalPlace {
  /** Path relative to the model, `/` between parts. */
  readonly location: string;
  /** First byte. */
  readonly offset: number;
  /** Number of bytes. */
  readonly length: number;
}

/** Decides which constants are external data: their place, or undefined to keep them in the file. */
export type ExternalPlaces = (value: Value) => ExternalPlace | undefined;

/** Makes messages of the graphs of one model. */
export class GraphWriter {
  private readonly model: Model;
  private readonly external: ExternalPlaces;
  private names: Set<string> | undefined;

  constructor(model: Model, external: ExternalPlaces) {
    this.model = model;
    this.external = external;
  }

  /** Nodes and name: the fields before the initializers. */
  head(graph: Graph): GraphProto {
    const owned = new Set([...graph.inputs, ...graph.constants]);
    const node: NodeProto[] = [];
    for (const each of graph.nodes()) {
      node.push(this.node(each));
      for (const output of each.outputs) if (output !== undefined) owned.add(output);
    }
    for (const value of graph.outputs)
      if (!owned.has(value))
        node.push({ input: [value.name], output: [this.copyName(value)], opType: 'Identity' });
    return { node, name: graph.name };
  }

  /** Everything after the initializers. */
  tail(graph: Graph): GraphProto {
    const owned = new Set([...graph.inputs, ...graph.constants]);
    const inner: Value[] = [...graph.constants].filter(isAnnotated);
    for (const node of graph.nodes())
      for (const output of node.outputs) {
        if (output === undefined) continue;
        owned.add(output);
        if (!graph.outputs.includes(output) && (isTyped(output) || isAnnotated(output)))
          inner.push(output);
      }
    const sparse = [...graph.constants].flatMap((value) => sparseOf(value) ?? []);
    return {
      ...(graph.docString === '' ? {} : { docString: graph.docString }),
      input: graph.inputs.map((value) => valueInfo(value)),
      output: graph.outputs.map((value) =>
        owned.has(value) ? valueInfo(value) : { ...valueInfo(value), name: this.copyName(value) },
      ),
      valueInfo: inner.map((value) => valueInfo(value)),
      sparseInitializer: sparse,
      metadataProps: entries(graph.metadata),
      ...carry(graph.carried),
    };
  }

  /** A whole subgraph, its constants in memory. */
  whole(graph: Graph): GraphProto {
    const constants = [...graph.constants].filter((value) => sparseOf(value) === undefined);
    return {
      ...this.head(graph),
      initializer: constants.map((value) => {
        const { before, raw, after } = this.initializer(value);
        return { ...before, ...(raw === undefined ? {} : { rawData: raw.bytes() }), ...after };
      }),
      ...this.tail(graph),
    };
  }

  /** A constant: the fields before its raw data, the weight that gives the raw data, the fields after. */
  initializer(value: Value): { before: TensorProto; raw: Weight | undefined; after: TensorProto } {
    const weight = weightOf(value);
    const place = weight.dtype === 'string' ? undefined : this.external(value);
    const before = { ...contentsHead(weight), name: value.name };
    const carried = carry(carriedTensor(weight).fields);
    if (place === undefined)
      return { before, raw: weight.dtype === 'string' ? undefined : weight, after: carried };
    const externalData = entries(
      new Map(Object.entries({ ...place }).map(([key, text]) => [key, String(text)])),
    );
    return { before, raw: undefined, after: { externalData, dataLocation: 1, ...carried } };
  }

  private node(node: Node): NodeProto {
    return {
      input: node.inputs.map((value) => value?.name ?? ''),
      output: node.outputs.map((value) => value?.name ?? ''),
      ...(node.name === '' ? {} : { name: node.name }),
      opType: node.op,
      attribute: [...node.attributes].map(([name, attribute]) => this.attribute(name, attribute)),
      ...(node.docString === '' ? {} : { docString: node.docString }),
      ...(node.domain === '' ? {} : { domain: node.domain }),
      ...(node.overload === '' ? {} : { overload: node.overload }),
      metadataProps: entries(node.metadata),
      ...carry(node.carried),
    };
  }

  private attribute(name: string, attribute: Attribute): AttributeProto {
    const { kind, value } = attribute;
    if (kind === 'opaque') return Object.assign(decodeMessage('AttributeProto', value), { name });
    return { name, ...this.attributeContents(attribute), ...carry(attribute.carried) };
  }

  private attributeContents({
    kind,
    value,
  }: Exclude<Attribute, { kind: 'opaque' }>): AttributeProto {
    switch (kind) {
      case 'float':
        return { f: value, type: attributeTypes.FLOAT };
      case 'int':
        return { i: fromBigInt(value), type: attributeTypes.INT };
      case 'string':
        return { s: bytesOfText(value), type: attributeTypes.STRING };
      case 'tensor':
        return { t: tensorProto(value), type: attributeTypes.TENSOR };
      case 'graph':
        return { g: this.whole(value), type: attributeTypes.GRAPH };
      case 'floats':
        return { floats: [...value], type: attributeTypes.FLOATS };
      case 'ints':
        return { ints: value.map(fromBigInt), type: attributeTypes.INTS };
      case 'strings':
        return { strings: value.map(bytesOfText), type: attributeTypes.STRINGS };
      case 'tensors':
        return { tensors: value.map(tensorProto), type: attributeTypes.TENSORS };
      case 'graphs':
        return { graphs: value.map((graph) => this.whole(graph)), type: attributeTypes.GRAPHS };
    }
  }

  /**
   * Name of the copy of an outer value that a subgraph returns as it is. Engines want the outputs of a
   * subgraph to be made in it.
   */
  private copyName(value: Value): string {
    this.names ??= namesOf(this.model);
    let name = `${value.name}_copy`;
    while (this.names.has(name)) name += '_';
    return name;
  }
}

/** The SparseTensorProto of a constant that the file stores sparse. */
export function sparseOf(value: Value): SparseTensorProto | undefined {
  const sparse = value.weight?.carried?.sparse;
  if (sparse === undefined) return undefined;
  const proto = decodeMessage('SparseTensorProto', sparse);
  return {
    ...proto,
    values: { ...proto.values, name: value.name },
    ...carry(unknownFields(proto)),
  };
}

/** The weight of a constant. */
function weightOf(value: Value): Weight {
  if (value.weight === undefined) throw new TypeError(`"${value.name}" is no constant.`);
  return value.weight;
}

function tensorProto(weight: Weight): TensorProto {
  const { name, fields } = carriedTensor(weight);
  return {
    ...contentsHead(weight),
    ...(name === undefined ? {} : { name }),
    ...(weight.dtype === 'string' ? {} : { rawData: weight.bytes() }),
    ...carry(fields),
  };
}

/** Dimensions, dtype and, for strings, the contents. */
function contentsHead(weight: Weight): TensorProto {
  const head = { dims: weight.shape.map(fromNumber), dataType: dtypes[weight.dtype].onnx };
  if (weight.dtype !== 'string') return head;
  return { ...head, stringData: (weight.tensor().data as readonly string[]).map(bytesOfText) };
}

function carriedTensor(weight: Weight): { name?: string; fields?: readonly Uint8Array[] } {
  const bytes = weight.carried?.tensor;
  if (bytes === undefined) return {};
  const proto = decodeMessage('TensorProto', bytes);
  const name = proto.name ?? '';
  return { ...(name === '' ? {} : { name }), fields: unknownFields(proto) };
}

function valueInfo(value: Value): ValueInfoProto {
  return {
    name: value.name,
    ...typeOf(value),
    ...(value.docString === undefined ? {} : { docString: value.docString }),
    metadataProps: entries(value.metadata),
    ...carry(value.carried),
  };
}

function typeOf(value: Value): { type?: TypeProto } {
  if (value.opaqueType !== undefined) return { type: decodeMessage('TypeProto', value.opaqueType) };
  if (!isTyped(value)) return {};
  const [denotation = '', ...ofDims] = value.denotations ?? [];
  const dim = value.shape?.map((size, i): DimensionProto => {
    const label = ofDims[i] ?? '';
    const extra = label === '' ? {} : { denotation: label };
    if (typeof size === 'number') return { dimValue: fromNumber(size), ...extra };
    return isAnonymous(size) ? extra : { dimParam: dimToText(size), ...extra };
  });
  return {
    type: {
      tensorType: {
        ...(value.dtype === undefined ? {} : { elemType: dtypes[value.dtype].onnx }),
        ...(dim === undefined ? {} : { shape: { dim } }),
      },
      ...(denotation === '' ? {} : { denotation }),
    },
  };
}

function isTyped(value: Value): boolean {
  return value.dtype !== undefined || value.shape !== undefined || value.opaqueType !== undefined;
}

/** Whether there is more to say about a constant than its tensor says. */
function isAnnotated(value: Value): boolean {
  return (
    value.docString !== undefined ||
    value.metadata.size > 0 ||
    value.denotations !== undefined ||
    value.carried !== undefined
  );
}

/** ONNX key-value entries. */
export function entries(map: ReadonlyMap<string, string>): EntryProto[] {
  return [...map].map(([key, value]) => ({ key, value }));
}

function namesOf(model: Model): Set<string> {
  const names = new Set<string>();
  for (const graph of model.graph.allGraphs()) {
    for (const value of [...graph.inputs, ...graph.constants]) names.add(value.name);
    for (const node of graph.nodes())
      for (const output of node.outputs) if (output !== undefined) names.add(output.name);
  }
  return names;
}
