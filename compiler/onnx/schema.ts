/**
 * The messages of ONNX (IR version 13) as far as Fettle interprets them, for protobufjs.
 *
 * `onnx-proto` 8.0.1 stops at IR version 8 and its generated code drops what it does not know, so
 * decoding goes through protobufjs with this table instead. A field that is not listed (training info,
 * device configurations, quantization annotations, whatever comes next) is not lost: protobufjs keeps
 * its bytes in `$unknowns`, and the IR carries them through to the writer. Enum numbers are
 * `onnx-proto`'s.
 *
 * Typed tensor data is declared as bytes. On the wire a packed run and a byte string look the same, so
 * large lists stay views of the input until somebody reads them.
 *
 * @see https://github.com/onnx/onnx/blob/main/onnx/onnx.in.proto
 */
import protobuf from 'protobufjs/light.js';

/** A 64-bit integer as protobufjs hands it out and takes it back. */
export interface Long {
  readonly low: number;
  readonly high: number;
}

/** Fields without an interpretation, each with its tag. */
export interface Unknowns {
  $unknowns?: Uint8Array[];
}

/** `StringStringEntryProto` */
export interface EntryProto extends Unknowns {
  key?: string;
  value?: string;
}

/** `OperatorSetIdProto` */
export interface OpsetProto extends Unknowns {
  domain?: string;
  version?: Long;
}

/** `TensorProto` */
export interface TensorProto extends Unknowns {
  dims?: Long[];
  dataType?: number;
  floatData?: Uint8Array[];
  int32Data?: Uint8Array[];
  stringData?: Uint8Array[];
  int64Data?: Uint8Array[];
  name?: string;
  rawData?: Uint8Array;
  doubleData?: Uint8Array[];
  uint64Data?: Uint8Array[];
  externalData?: EntryProto[];
  dataLocation?: number;
}

/** `SparseTensorProto` */
export interface SparseTensorProto extends Unknowns {
  values?: TensorProto;
  indices?: TensorProto;
  dims?: Long[];
}

/** `TensorShapeProto.Dimension` */
export interface DimensionProto extends Unknowns {
  dimValue?: Long;
  dimParam?: string;
  denotation?: string;
}

/** `TypeProto`; sequences, maps and optionals stay in `$unknowns`. */
export interface TypeProto extends Unknowns {
  tensorType?: { elemType?: number; shape?: { dim?: DimensionProto[] } & Unknowns } & Unknowns;
  denotation?: string;
}

/** `ValueInfoProto` */
export interface ValueInfoProto extends Unknowns {
  name?: string;
  type?: TypeProto;
  docString?: string;
  metadataProps?: EntryProto[];
}

/** `AttributeProto`; sparse tensors and type protos stay in `$unknowns`. */
export interface AttributeProto extends Unknowns {
  name?: string;
  f?: number;
  i?: Long;
  s?: Uint8Array;
  t?: TensorProto;
  g?: GraphProto;
  floats?: number[];
  ints?: Long[];
  strings?: Uint8Array[];
  tensors?: TensorProto[];
  graphs?: GraphProto[];
  type?: number;
  refAttrName?: string;
}

/** `NodeProto` */
export interface NodeProto extends Unknowns {
  input?: string[];
  output?: string[];
  name?: string;
  opType?: string;
  attribute?: AttributeProto[];
  docString?: string;
  domain?: string;
  overload?: string;
  metadataProps?: EntryProto[];
}

/** `GraphProto` */
export interface GraphProto extends Unknowns {
  node?: NodeProto[];
  name?: string;
  initializer?: TensorProto[];
  docString?: string;
  input?: ValueInfoProto[];
  output?: ValueInfoProto[];
  valueInfo?: ValueInfoProto[];
  sparseInitializer?: SparseTensorProto[];
  metadataProps?: EntryProto[];
}

/** `FunctionProto` */
export interface FunctionProto extends Unknowns {
  name?: string;
  input?: string[];
  output?: string[];
  attribute?: string[];
  node?: NodeProto[];
  opsetImport?: OpsetProto[];
  domain?: string;
  attributeProto?: AttributeProto[];
  valueInfo?: ValueInfoProto[];
  overload?: string;
}

/** `ModelProto` */
export interface ModelProto extends Unknowns {
  irVersion?: Long;
  producerName?: string;
  producerVersion?: string;
  domain?: string;
  modelVersion?: Long;
  docString?: string;
  graph?: GraphProto;
  opsetImport?: OpsetProto[];
  metadataProps?: EntryProto[];
  functions?: FunctionProto[];
}

/** Message names with their interfaces. */
export interface Messages {
  StringStringEntryProto: EntryProto;
  OperatorSetIdProto: OpsetProto;
  TensorProto: TensorProto;
  SparseTensorProto: SparseTensorProto;
  TypeProto: TypeProto;
  ValueInfoProto: ValueInfoProto;
  AttributeProto: AttributeProto;
  NodeProto: NodeProto;
  GraphProto: GraphProto;
  FunctionProto: FunctionProto;
  ModelProto: ModelProto;
}

/** `name: [number, type]`; a type with `[]` is repeated. */
type Fields = Readonly<Record<string, readonly [id: number, type: string]>>;

const fieldTable: Readonly<Record<string, Fields>> = {
  StringStringEntryProto: { key: [1, 'string'], value: [2, 'string'] },
  OperatorSetIdProto: { domain: [1, 'string'], version: [2, 'int64'] },
  TensorProto: {
    dims: [1, 'int64[]'],
    dataType: [2, 'int32'],
    floatData: [4, 'bytes[]'],
    int32Data: [5, 'bytes[]'],
    stringData: [6, 'bytes[]'],
    int64Data: [7, 'bytes[]'],
    name: [8, 'string'],
    rawData: [9, 'bytes'],
    doubleData: [10, 'bytes[]'],
    uint64Data: [11, 'bytes[]'],
    externalData: [13, 'StringStringEntryProto[]'],
    dataLocation: [14, 'int32'],
  },
  SparseTensorProto: {
    values: [1, 'TensorProto'],
    indices: [2, 'TensorProto'],
    dims: [3, 'int64[]'],
  },
  DimensionProto: {
    dimValue: [1, 'int64'],
    dimParam: [2, 'string'],
    denotation: [3, 'string'],
  },
  TensorShapeProto: { dim: [1, 'DimensionProto[]'] },
  TensorTypeProto: { elemType: [1, 'int32'], shape: [2, 'TensorShapeProto'] },
  TypeProto: { tensorType: [1, 'TensorTypeProto'], denotation: [6, 'string'] },
  ValueInfoProto: {
    name: [1, 'string'],
    type: [2, 'TypeProto'],
    docString: [3, 'string'],
    metadataProps: [4, 'StringStringEntryProto[]'],
  },
  AttributeProto: {
    name: [1, 'string'],
    f: [2, 'float'],
    i: [3, 'int64'],
    s: [4, 'bytes'],
    t: [5, 'TensorProto'],
    g: [6, 'GraphProto'],
    floats: [7, 'float[]'],
    ints: [8, 'int64[]'],
    strings: [9, 'bytes[]'],
    tensors: [10, 'TensorProto[]'],
    graphs: [11, 'GraphProto[]'],
    type: [20, 'int32'],
    refAttrName: [21, 'string'],
  },
  NodeProto: {
    input: [1, 'string[]'],
    output: [2, 'string[]'],
    name: [3, 'string'],
    opType: [4, 'string'],
    attribute: [5, 'AttributeProto[]'],
    docString: [6, 'string'],
    domain: [7, 'string'],
    overload: [8, 'string'],
    metadataProps: [9, 'StringStringEntryProto[]'],
  },
  GraphProto: {
    node: [1, 'NodeProto[]'],
    name: [2, 'string'],
    initializer: [5, 'TensorProto[]'],
    docString: [10, 'string'],
    input: [11, 'ValueInfoProto[]'],
    output: [12, 'ValueInfoProto[]'],
    valueInfo: [13, 'ValueInfoProto[]'],
    sparseInitializer: [15, 'SparseTensorProto[]'],
    metadataProps: [16, 'StringStringEntryProto[]'],
  },
  FunctionProto: {
    name: [1, 'string'],
    input: [4, 'string[]'],
    output: [5, 'string[]'],
    attribute: [6, 'string[]'],
    node: [7, 'NodeProto[]'],
    opsetImport: [9, 'OperatorSetIdProto[]'],
    domain: [10, 'string'],
    attributeProto: [11, 'AttributeProto[]'],
    valueInfo: [12, 'ValueInfoProto[]'],
    overload: [13, 'string'],
  },
  ModelProto: {
    irVersion: [1, 'int64'],
    producerName: [2, 'string'],
    producerVersion: [3, 'string'],
    domain: [4, 'string'],
    modelVersion: [5, 'int64'],
    docString: [6, 'string'],
    graph: [7, 'GraphProto'],
    opsetImport: [8, 'OperatorSetIdProto[]'],
    metadataProps: [14, 'StringStringEntryProto[]'],
    functions: [25, 'FunctionProto[]'],
  },
};

const root = protobuf.Root.fromJSON({
  nested: Object.fromEntries(
    Object.entries(fieldTable).map(([message, fields]) => [
      message,
      { fields: Object.fromEntries(Object.entries(fields).map(fieldOf)) },
    ]),
  ),
});

/** The protobufjs type of a message. */
export function messageType(name: keyof Messages): protobuf.Type {
  return root.lookupType(name);
}

function fieldOf([name, [id, type]]: [string, readonly [number, string]]): [
  string,
  protobuf.IField,
] {
  return type.endsWith('[]')
    ? [name, { id, type: type.slice(0, -2), rule: 'repeated' }]
    : [name, { id, type }];
}
