/**
 * Node attributes. The kind is kept beside the value, since ONNX tells an int from a float and an
 * absent list from an empty one. Integers are bigint: ONNX has 64 bits and uses all of them
 * (`Slice` ends at 2^63-1). Read them through the accessors of {@link Node}.
 */
import type { Graph } from './graph.ts';
import type { Weight } from './weight.ts';

/** One attribute of a node. */
export type Attribute = AttributeContent & {
  /** Encoded AttributeProto fields besides name and contents (doc string), kept for the round trip. */
  readonly carried?: Uint8Array;
};

/** Kind and contents of an attribute. */
export type AttributeContent =
  | { readonly kind: 'int'; readonly value: bigint }
  | { readonly kind: 'float'; readonly value: number }
  | { readonly kind: 'string'; readonly value: string }
  | { readonly kind: 'tensor'; readonly value: Weight }
  | { readonly kind: 'graph'; readonly value: Graph }
  | { readonly kind: 'ints'; readonly value: readonly bigint[] }
  | { readonly kind: 'floats'; readonly value: readonly number[] }
  | { readonly kind: 'strings'; readonly value: readonly string[] }
  | { readonly kind: 'tensors'; readonly value: readonly Weight[] }
  | { readonly kind: 'graphs'; readonly value: readonly Graph[] }
  /** What Fettle never looks into (sparse tensors, type protos): the encoded AttributeProto. */
  | { readonly kind: 'opaque'; readonly value: Uint8Array };

/** Attributes by name. */
export type Attributes = Readonly<Record<string, Attribute>>;

/** An int attribute. */
export function int(value: number | bigint): Attribute {
  return { kind: 'int', value: BigInt(value) };
}

/** A float attribute; stored as f32 in ONNX. */
export function float(value: number): Attribute {
  return { kind: 'float', value };
}

/** A string attribute. */
export function string(value: string): Attribute {
  return { kind: 'string', value };
}

/** An int list attribute. */
export function ints(values: readonly (number | bigint)[]): Attribute {
  return { kind: 'ints', value: values.map(BigInt) };
}

/** A float list attribute. */
export function floats(values: readonly number[]): Attribute {
  return { kind: 'floats', value: values };
}

/** A string list attribute. */
export function strings(values: readonly string[]): Attribute {
  return { kind: 'strings', value: values };
}

/** A tensor attribute. */
export function tensorAttribute(value: Weight): Attribute {
  return { kind: 'tensor', value };
}

/** A subgraph attribute. */
export function graphAttribute(value: Graph): Attribute {
  return { kind: 'graph', value };
}

/** The subgraphs an attribute holds. */
export function graphsOf(attribute: Attribute): readonly Graph[] {
  if (attribute.kind === 'graph') return [attribute.value];
  return attribute.kind === 'graphs' ? attribute.value : [];
}
