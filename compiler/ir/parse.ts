/**
 * Reads the text that `print.ts` writes. Types of node outputs may be left out: they are inferred.
 * `//` starts a comment.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { dtypes, isDType, tensor as checkedTensor, viewBytes } from '../../runtime/tensor.ts';
import { isWide, writeBigInts, writeNumbers } from '../ops/numbers.ts';
import type { Attribute } from './attribute.ts';
import { parseDim } from './dim.ts';
import type { Dim } from './dim.ts';
import type { ValueType } from './graph.ts';
import { Graph, Model, Node, Value } from './graph.ts';
import { inferNode } from './infer.ts';
import { decodeBase64, tensorFromFormula } from './text-contents.ts';
import { TextReader } from './text-reader.ts';
import { Weight } from './weight.ts';

/**
 * A model from its text form.
 *
 * @param text - one graph
 * @throws FettleError MODEL_INVALID with line and column
 *
 * @example
 * const model = parseModel('graph g (x: f32[n]) -> (y) { opset 17 %y = Relu(%x) }');
 */
export function parseModel(text: string): Model {
  const parser = new ModelParser(text);
  const model = parser.model();
  inferMissing(model.graph, model, parser.untyped);
  return model;
}

/** Fills in types that the text leaves out, and contents of shape tensors, which it never has. */
function inferMissing(graph: Graph, model: Model, untyped: ReadonlySet<Value>): void {
  for (const node of graph.nodes()) {
    // a typed node with subgraphs is left as it is written, and so is what it contains
    const complete = node.outputs.every((output) => output === undefined || !untyped.has(output));
    if (node.subgraphs.length > 0 && complete) {
      for (const inner of node.subgraphs) inferMissing(inner, model, untyped);
      continue;
    }
    const types = inferNode(node, model);
    for (const [index, output] of node.outputs.entries()) {
      const type = types[index];
      if (output === undefined || type === undefined) continue;
      if (untyped.has(output)) {
        output.dtype = type.dtype;
        output.shape = type.shape;
      }
      output.elements = type.elements;
    }
  }
}

class ModelParser {
  /** Values whose type the text leaves out, unlike those whose type it says is unknown. */
  readonly untyped: Set<Value> = new Set();
  private readonly text: TextReader;
  private readonly values = new Map<string, Value>();
  private readonly opsets = new Map<string, number>();

  constructor(text: string) {
    this.text = new TextReader(text);
  }

  model(): Model {
    const graph = this.graph(true);
    this.text.end();
    if (this.opsets.size === 0) this.text.fail('the graph has no "opset"');
    const model = new Model(graph, this.opsets);
    for (const name of this.values.keys()) model.claimName(name);
    return model;
  }

  private graph(isMain: boolean): Graph {
    this.text.expect('graph');
    const graph = new Graph(this.text.peeks('(') ? '' : this.text.name());
    for (const [name, type] of this.signature()) graph.inputs.push(this.define(name, type));
    this.text.expect('->');
    const outputs = this.signature();
    this.text.expect('{');
    while (!this.text.takes('}')) {
      if (isMain && this.text.takes('opset')) this.opset();
      else if (this.text.takes('const')) this.constant(graph);
      else this.node(graph);
    }
    for (const [name, type] of outputs) {
      const value = this.lookUp(name);
      if (type !== undefined && this.untyped.delete(value)) setType(value, type);
      graph.setOutput(value);
    }
    return graph;
  }

  private signature(): readonly (readonly [name: string, type: ParsedType | undefined])[] {
    return this.list('(', ')', () => [this.text.name(), this.type()] as const);
  }

  private opset(): void {
    const domain = this.text.peeksNumber() ? '' : this.text.name();
    this.opsets.set(domain, Number(this.text.number()));
  }

  private constant(graph: Graph): void {
    this.text.expect('%');
    const name = this.text.name();
    this.text.expect(':');
    const weight = this.tensor('=');
    const value = this.define(name, { dtype: weight.dtype, shape: weight.shape });
    value.weight = weight;
    graph.addConstant(value);
  }

  private node(graph: Graph): void {
    const outputs: ([name: string, type: ParsedType | undefined] | undefined)[] = [];
    if (this.text.peeks('%') || this.text.peeks('_')) {
      do {
        if (this.text.takes('%')) outputs.push([this.text.name(), this.type()]);
        else {
          this.text.expect('_');
          outputs.push(undefined);
        }
      } while (this.text.takes(','));
      this.text.expect('=');
    }
    const first = this.text.name();
    const [domain, op] = this.text.takes('::') ? [first, this.text.name()] : ['', first];
    const overload = this.text.takes(':') ? this.text.name() : '';
    const inputs = this.list('(', ')', () => this.reference());
    const attributes: Record<string, Attribute> = {};
    if (this.text.peeks('{'))
      this.list('{', '}', () => {
        const name = this.text.name();
        this.text.expect('=');
        attributes[name] = this.attribute();
      });
    const name = this.text.takes('@') ? this.text.name() : '';
    // outputs are defined after the subgraphs, which cannot see them
    const values = outputs.map((output) => output && this.define(...output));
    const node = new Node(op, values, { domain, overload, name, attributes });
    inputs.forEach((value, index) => node.setInput(index, value));
    graph.insert(node);
  }

  private reference(): Value | undefined {
    if (this.text.takes('_')) return undefined;
    this.text.expect('%');
    return this.lookUp(this.text.name());
  }

  private attribute(): Attribute {
    const { text } = this;
    if (text.peeks('graph')) return { kind: 'graph', value: this.graph(false) };
    if (text.takes('opaque')) return { kind: 'opaque', value: this.base64() };
    if (text.peeks('"')) return { kind: 'string', value: text.string() };
    for (const kind of ['ints', 'floats', 'strings', 'tensors', 'graphs'] as const)
      if (text.takes(`${kind}[`)) {
        text.expect(']');
        return { kind, value: [] };
      }
    if (text.peeks('[')) return this.listAttribute();
    if (text.peeksNumber()) {
      const number = text.number();
      return isInt(number)
        ? { kind: 'int', value: BigInt(number) }
        : { kind: 'float', value: toFloat(number) };
    }
    return { kind: 'tensor', value: this.tensor() };
  }

  private listAttribute(): Attribute {
    const items = this.list('[', ']', () => this.attribute());
    const [first] = items;
    if (first?.kind === 'int') return { kind: 'ints', value: this.same(items, first.kind) };
    if (first?.kind === 'float') return { kind: 'floats', value: this.same(items, first.kind) };
    if (first?.kind === 'string') return { kind: 'strings', value: this.same(items, first.kind) };
    if (first?.kind === 'tensor') return { kind: 'tensors', value: this.same(items, first.kind) };
    if (first?.kind === 'graph') return { kind: 'graphs', value: this.same(items, first.kind) };
    return this.text.fail('an empty list says of what: "ints[]", "floats[]", …');
  }

  /** Values of attributes of one kind. */
  private same<K extends keyof SingleValues>(
    items: readonly Attribute[],
    kind: K,
  ): readonly SingleValues[K][] {
    return items.map((item) =>
      item.kind === kind
        ? (item.value as SingleValues[K])
        : this.text.fail(`a list of ${kind}s has a ${item.kind}`),
    );
  }

  private type(): ParsedType | undefined {
    if (!this.text.takes(':')) return undefined;
    if (this.text.takes('opaque')) return { opaqueType: this.base64() };
    const dtype = this.text.takes('?') ? undefined : this.dtype();
    return { dtype, shape: this.text.peeks('[') ? this.dims() : undefined };
  }

  private dtype(): DType {
    const name = this.text.name();
    return isDType(name) ? name : this.text.fail(`"${name}" is not a dtype`);
  }

  private dims(): readonly Dim[] {
    return this.text.bracketed().map((dim) => (/^-?\d+$/.test(dim) ? Number(dim) : parseDim(dim)));
  }

  private tensor(separator?: string): Weight {
    const dtype = this.dtype();
    const shape = this.dims().map((dim) =>
      typeof dim === 'number' ? dim : this.text.fail(`a constant has no size "${dim}"`),
    );
    if (separator !== undefined) this.text.expect(separator);
    try {
      const { data } = this.contents(dtype, shape);
      return Weight.of(checkedTensor(dtype, shape, data));
    } catch (error) {
      if (error instanceof RangeError || error instanceof TypeError)
        return this.text.fail(error.message, error);
      throw error;
    }
  }

  private contents(dtype: DType, shape: readonly number[]): Tensor {
    const { text } = this;
    if (text.peeks('#'))
      return text.fail('a digest is not enough to read a constant; print the model in full');
    if (text.takes('base64')) return { dtype, shape, data: viewBytes(dtype, this.base64()) };
    if (dtype === 'string') return { dtype, shape, data: this.list('{', '}', () => text.string()) };
    if (!text.peeks('{')) {
      const name = text.name();
      const args = this.list('(', ')', () => toFloat(text.number()));
      const made = tensorFromFormula(name, args, dtype, shape);
      return made ?? text.fail(`there is no formula "${name}"; wanted fill, ramp or random`);
    }
    const numbers = this.list('{', '}', () => text.number());
    if (isWide(dtype))
      return writeBigInts(
        dtype,
        shape,
        numbers.map((n) => this.bigint(n)),
      );
    const width = dtypes[dtype].kind === 'complex' ? 2 : 1;
    if (numbers.length !== width * shape.reduce((a, b) => a * b, 1))
      return text.fail(`${numbers.length} elements for [${shape.join(', ')}]`);
    return writeNumbers(dtype, shape, numbers.map(toFloat));
  }

  private bigint(text: string): bigint {
    return isInt(text) ? BigInt(text) : this.text.fail(`"${text}" is not an integer`);
  }

  private base64(): Uint8Array {
    this.text.expect('(');
    const encoded = this.text.string();
    this.text.expect(')');
    try {
      return decodeBase64(encoded);
    } catch (error) {
      return this.text.fail('not base64', error);
    }
  }

  private list<T>(open: string, close: string, item: () => T): T[] {
    this.text.expect(open);
    const items: T[] = [];
    if (this.text.takes(close)) return items;
    do items.push(item());
    while (this.text.takes(','));
    this.text.expect(close);
    return items;
  }

  private define(name: string, type: ParsedType | undefined): Value {
    if (this.values.has(name)) this.text.fail(`"${name}" is defined twice`);
    const value = new Value(name);
    if (type === undefined) this.untyped.add(value);
    else setType(value, type);
    this.values.set(name, value);
    return value;
  }

  private lookUp(name: string): Value {
    return this.values.get(name) ?? this.text.fail(`"${name}" is not defined here`);
  }
}

/** What attributes that can be in a list hold. */
interface SingleValues {
  readonly int: bigint;
  readonly float: number;
  readonly string: string;
  readonly tensor: Weight;
  readonly graph: Graph;
}

/** A type as written. */
interface ParsedType extends ValueType {
  readonly opaqueType?: Uint8Array;
}

function setType(value: Value, type: ParsedType): void {
  value.dtype = type.dtype;
  value.shape = type.shape;
  value.opaqueType = type.opaqueType;
}

function isInt(text: string): boolean {
  return /^-?\d+$/.test(text);
}

function toFloat(text: string): number {
  if (text === 'true' || text === 'false') return Number(text === 'true');
  if (text === 'nan') return NaN;
  if (text === 'inf' || text === '-inf') return text === 'inf' ? Infinity : -Infinity;
  return Number(text);
}
