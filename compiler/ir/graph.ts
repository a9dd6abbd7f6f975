/**
 * Graph, Node and Value with use lists. Nodes form a linked list that is always in topological order,
 * so inserting before a node and removing one are cheap and no pass has to sort.
 *
 * Everything here only keeps the links consistent. Passes change a graph through the Rewriter
 * (`rewriter.ts`), which also infers shapes, keeps provenance and counts.
 *
 * A value is in one of four states: graph input, constant (`weight` set), node output (`producer`
 * set), or detached. A subgraph (If, Loop, Scan) may use values of the graphs around it directly.
 * Names are unique over a model, subgraphs included.
 */
import { assert } from '../../runtime/errors.ts';
import type { DType, Tensor } from '../../runtime/tensor.ts';
import type { Attribute } from './attribute.ts';
import { graphsOf } from './attribute.ts';
import type { Dim, Shape } from './dim.ts';
import type { Weight } from './weight.ts';

/** What is known about a value without running the model. */
export interface ValueType {
  /** Element type, when known. */
  dtype?: DType | undefined;
  /** Dimensions, when the rank is known. */
  shape?: Shape | undefined;
  /** Contents of a small integer tensor (row-major), as far as they are known as dimensions. */
  elements?: readonly Dim[] | undefined;
}

/** A tensor that flows through the graph: an input, a constant or the output of a node. */
export class Value implements ValueType {
  /** Unique over the model. */
  name: string;
  dtype: DType | undefined;
  shape: Shape | undefined;
  elements: readonly Dim[] | undefined;
  /** The constant this value is, when it is one. */
  weight: Weight | undefined;
  /** Encoded ONNX TypeProto of a value that is no tensor (sequence, optional, map). */
  opaqueType: Uint8Array | undefined;
  /** Free text of the source file, kept for the round trip. */
  docString: string | undefined;
  /** ONNX `metadata_props` of the value. */
  metadata: ReadonlyMap<string, string> = new Map();
  /** ONNX denotations, kept for the round trip: of the type, then of each dimension. */
  denotations: readonly string[] | undefined;
  /** Encoded ValueInfoProto fields that Fettle does not know, kept for the round trip. */
  carried: Uint8Array | undefined;
  /** The node that computes it. */
  producer: Node | undefined;
  /** Nodes that read it -> how many of their inputs do. Iteration order is insertion order. */
  readonly users: Map<Node, number> = new Map();
  /** In how many graph outputs it is listed. */
  outputCount = 0;

  constructor(name: string, type: ValueType = {}) {
    this.name = name;
    this.dtype = type.dtype;
    this.shape = type.shape;
    this.elements = type.elements;
  }

  /** Uses by nodes and as graph output. */
  get useCount(): number {
    let count = this.outputCount;
    for (const uses of this.users.values()) count += uses;
    return count;
  }

  /** Whether it leaves its graph. */
  get isOutput(): boolean {
    return this.outputCount > 0;
  }

  /** The only node that reads it, when there is exactly one use and it is no graph output. */
  get onlyUser(): Node | undefined {
    if (this.useCount !== 1 || this.isOutput) return undefined;
    return this.users.keys().next().value;
  }

  /** The constant's contents, read now; undefined when it is no constant. */
  constant(): Tensor | undefined {
    return this.weight?.tensor();
  }
}

/** One operation. */
export class Node {
  /** ONNX op type, or the name of an internal op. */
  readonly op: string;
  /** '' for ONNX, 'com.microsoft', 'fettle' for internal ops, … */
  readonly domain: string;
  /** Overload of a model-local function; '' otherwise. */
  readonly overload: string;
  /** Name in the source file, or one made from `from`. May be empty, need not be unique. */
  name: string;
  /** Names of the source nodes this one replaces; its own name when it was read from the file. */
  from: readonly string[];
  /** ONNX `metadata_props` of the node. */
  metadata: ReadonlyMap<string, string> = new Map();
  /** Free text of the source file, kept for the round trip. */
  docString = '';
  /** Encoded NodeProto fields that Fettle does not know (device configurations), kept for the round trip. */
  carried: Uint8Array | undefined;
  /** The graph it belongs to; undefined once removed. */
  graph: Graph | undefined;
  /** @internal */
  previous: Node | undefined;
  /** @internal */
  next: Node | undefined;
  private readonly inputList: (Value | undefined)[] = [];
  private readonly outputList: (Value | undefined)[];
  private readonly attributeMap: Map<string, Attribute>;

  constructor(
    op: string,
    outputs: readonly (Value | undefined)[],
    details: {
      readonly domain?: string;
      readonly overload?: string;
      readonly name?: string;
      readonly attributes?: Readonly<Record<string, Attribute>>;
      readonly from?: readonly string[];
    } = {},
  ) {
    this.op = op;
    this.domain = details.domain ?? '';
    this.overload = details.overload ?? '';
    this.name = details.name ?? '';
    this.from = details.from ?? (this.name === '' ? [] : [this.name]);
    this.attributeMap = new Map(Object.entries(details.attributes ?? {}));
    this.outputList = [...outputs];
    for (const output of outputs) if (output !== undefined) output.producer = this;
    for (const attribute of this.attributeMap.values())
      for (const graph of graphsOf(attribute)) graph.owner = this;
  }

  /** Inputs in order; undefined where an optional one is absent. */
  get inputs(): readonly (Value | undefined)[] {
    return this.inputList;
  }

  /** Outputs in order; undefined where an optional one is absent. */
  get outputs(): readonly (Value | undefined)[] {
    return this.outputList;
  }

  /** Attributes by name, in file order. */
  get attributes(): ReadonlyMap<string, Attribute> {
    return this.attributeMap;
  }

  /** Input `index`; throws when it is absent, for ops that require it. */
  input(index: number): Value {
    const value = this.inputList[index];
    assert(value !== undefined, `${this.describe()}: input ${index} is absent`);
    return value;
  }

  /** Output `index`; throws when it is absent. */
  output(index = 0): Value {
    const value = this.outputList[index];
    assert(value !== undefined, `${this.describe()}: output ${index} is absent`);
    return value;
  }

  /** An int attribute as a number; values beyond 2^53 lose their last digits. */
  int(name: string, fallback: number): number;
  int(name: string): number | undefined;
  int(name: string, fallback?: number): number | undefined {
    const attribute = this.attributeMap.get(name);
    return attribute?.kind === 'int' ? Number(attribute.value) : fallback;
  }

  /** A float attribute. */
  float(name: string, fallback: number): number;
  float(name: string): number | undefined;
  float(name: string, fallback?: number): number | undefined {
    const attribute = this.attributeMap.get(name);
    return attribute?.kind === 'float' ? attribute.value : fallback;
  }

  /** A string attribute. */
  string(name: string, fallback: string): string;
  string(name: string): string | undefined;
  string(name: string, fallback?: string): string | undefined {
    const attribute = this.attributeMap.get(name);
    return attribute?.kind === 'string' ? attribute.value : fallback;
  }

  /** An int list attribute as numbers. */
  ints(name: string): number[] | undefined {
    const attribute = this.attributeMap.get(name);
    return attribute?.kind === 'ints' ? attribute.value.map(Number) : undefined;
  }

  /** A float list attribute. */
  floats(name: string): readonly number[] | undefined {
    const attribute = this.attributeMap.get(name);
    return attribute?.kind === 'floats' ? attribute.value : undefined;
  }

  /** A subgraph attribute. */
  subgraph(name: string): Graph | undefined {
    const attribute = this.attributeMap.get(name);
    return attribute?.kind === 'graph' ? attribute.value : undefined;
  }

  /** Every subgraph of every attribute. */
  get subgraphs(): readonly Graph[] {
    return [...this.attributeMap.values()].flatMap(graphsOf);
  }

  /** `Op "name"`, for messages. */
  describe(): string {
    const op = this.domain === '' ? this.op : `${this.domain}.${this.op}`;
    return this.name === '' ? op : `${op} "${this.name}"`;
  }

  /** Points input `index` at another value, or at none. Grows the list as needed. @internal */
  setInput(index: number, value: Value | undefined): void {
    while (this.inputList.length <= index) this.inputList.push(undefined);
    const old = this.inputList[index];
    if (old === value) return;
    this.inputList[index] = value;
    if (old !== undefined) {
      const uses = old.users.get(this) ?? 0;
      if (uses > 1) old.users.set(this, uses - 1);
      else old.users.delete(this);
    }
    if (value !== undefined) value.users.set(this, (value.users.get(this) ?? 0) + 1);
  }

  /** Replaces an attribute; undefined removes it. @internal */
  setAttribute(name: string, attribute: Attribute | undefined): void {
    if (attribute === undefined) {
      this.attributeMap.delete(name);
      return;
    }
    this.attributeMap.set(name, attribute);
    for (const graph of graphsOf(attribute)) graph.owner = this;
  }

  /** Gives up output `index`, which nothing may use. @internal */
  dropOutput(index: number): void {
    const value = this.outputList[index];
    if (value === undefined) return;
    assert(value.useCount === 0, `${this.describe()}: output "${value.name}" still has uses`);
    value.producer = undefined;
    this.outputList[index] = undefined;
  }

  /** Drops absent inputs and outputs at the end of the lists. @internal */
  trim(): void {
    for (const list of [this.inputList, this.outputList])
      while (list.length > 0 && list.at(-1) === undefined) list.pop();
  }
}

/** Nodes in topological order between inputs and outputs, and the constants they use. */
export class Graph {
  /** Name in the source file. */
  name: string;
  /** Free text of the source file, kept for the round trip. */
  docString = '';
  /** ONNX `metadata_props` of the graph. */
  metadata: ReadonlyMap<string, string> = new Map();
  /** Encoded GraphProto fields that Fettle does not know (quantization annotations), kept for the round trip. */
  carried: Uint8Array | undefined;
  /** The node whose attribute this subgraph is; undefined for the main graph. */
  owner: Node | undefined;
  /** Inputs in order. */
  readonly inputs: Value[] = [];
  /** Constants, in file order. Add and remove through {@link addConstant} and {@link removeConstant}. */
  readonly constants: Set<Value> = new Set();
  private readonly outputList: Value[] = [];
  private first: Node | undefined;
  private last: Node | undefined;
  private count = 0;

  constructor(name: string) {
    this.name = name;
  }

  /** Number of nodes, subgraphs not counted. */
  get nodeCount(): number {
    return this.count;
  }

  /** Outputs in order. */
  get outputs(): readonly Value[] {
    return this.outputList;
  }

  /**
   * Nodes in topological order. The node just visited may be removed or replaced while iterating;
   * nodes inserted before it are not visited.
   */
  *nodes(): Generator<Node, void> {
    for (let node = this.first; node !== undefined;) {
      const { next } = node;
      yield node;
      // a node that was removed together with its successors leads back into the list
      node = node.graph === this ? node.next : next?.graph === this ? next : this.after(next);
    }
  }

  /** Nodes of this graph and of every subgraph, each owner before its subgraphs' nodes. */
  *allNodes(): Generator<Node, void> {
    for (const node of this.nodes()) {
      yield node;
      for (const graph of node.subgraphs) yield* graph.allNodes();
    }
  }

  /** This graph and every subgraph. */
  *allGraphs(): Generator<Graph, void> {
    yield this;
    for (const node of this.nodes()) for (const graph of node.subgraphs) yield* graph.allGraphs();
  }

  /** Adds a node before `anchor`, or at the end. Its inputs must be defined before that place. @internal */
  insert(node: Node, anchor?: Node): void {
    assert(node.graph === undefined, `${node.describe()} is already in a graph`);
    node.graph = this;
    node.next = anchor;
    node.previous = anchor === undefined ? this.last : anchor.previous;
    if (node.previous === undefined) this.first = node;
    else node.previous.next = node;
    if (anchor === undefined) this.last = node;
    else anchor.previous = node;
    this.count++;
  }

  /** Takes a node out; nothing may use its outputs. @internal */
  remove(node: Node): void {
    assert(node.graph === this, `${node.describe()} is not in this graph`);
    for (const output of node.outputs)
      assert(
        output === undefined || output.useCount === 0,
        `${node.describe()}: output "${output?.name}" still has uses`,
      );
    node.inputs.forEach((_, index) => node.setInput(index, undefined));
    for (const graph of node.subgraphs) graph.clear();
    if (node.previous === undefined) this.first = node.next;
    else node.previous.next = node.next;
    if (node.next === undefined) this.last = node.previous;
    else node.next.previous = node.previous;
    node.graph = undefined;
    this.count--;
  }

  /** Moves a node to before `anchor`. @internal */
  move(node: Node, anchor: Node): void {
    if (node === anchor || node.next === anchor) return;
    if (node.previous === undefined) this.first = node.next;
    else node.previous.next = node.next;
    if (node.next === undefined) this.last = node.previous;
    else node.next.previous = node.previous;
    node.graph = undefined;
    this.count--;
    this.insert(node, anchor);
  }

  /** Lists a value as the last output, or replaces output `index`. @internal */
  setOutput(value: Value, index: number = this.outputList.length): void {
    const old = this.outputList[index];
    if (old !== undefined) old.outputCount--;
    this.outputList[index] = value;
    value.outputCount++;
  }

  /** Removes output `index`. @internal */
  removeOutput(index: number): void {
    for (const value of this.outputList.splice(index, 1)) value.outputCount--;
  }

  /** Adds a constant. @internal */
  addConstant(value: Value): void {
    assert(value.weight !== undefined, `"${value.name}" has no weight`);
    this.constants.add(value);
  }

  /** Removes a constant that nothing uses. @internal */
  removeConstant(value: Value): void {
    assert(value.useCount === 0, `constant "${value.name}" still has uses`);
    this.constants.delete(value);
  }

  /** The nearest node at or after a removed one that is still in this graph. */
  private after(node: Node | undefined): Node | undefined {
    let candidate = node;
    while (candidate !== undefined && candidate.graph !== this) candidate = candidate.next;
    return candidate;
  }

  /** Releases every use of values outside, when the owner goes. */
  private clear(): void {
    while (this.outputList.length > 0) this.removeOutput(this.outputList.length - 1);
    for (let node = this.last; node !== undefined; node = this.last) this.remove(node);
  }
}

/** A graph with what ONNX keeps around it. Functions have been inlined. */
export class Model {
  /** The main graph. */
  graph: Graph;
  /** Opset version by domain; '' is ONNX itself. */
  readonly opsets: Map<string, number>;
  /** ONNX IR version; at least 4, where initializers need not be graph inputs. */
  irVersion = 10;
  /** Tool that made the source. */
  producerName = '';
  /** Its version. */
  producerVersion = '';
  /** Namespace of the source model. */
  domain = '';
  /** Version of the source model. */
  modelVersion = 0n;
  /** Free text of the source. */
  docString = '';
  /** ONNX `metadata_props`. */
  readonly metadata: Map<string, string> = new Map();
  /** Things worth telling the user that did not stop the reader. */
  readonly warnings: string[] = [];
  /** Encoded ModelProto fields that Fettle does not know (training info), kept for the round trip. */
  carried: Uint8Array | undefined;
  private anonymousDims: number | undefined;
  private readonly taken = new Set<string>();
  /** Next suffix to try for a base that was taken. */
  private readonly suffixes = new Map<string, number>();

  constructor(graph: Graph, opsets: ReadonlyMap<string, number>) {
    this.graph = graph;
    this.opsets = new Map(opsets);
  }

  /** The ONNX opset version. */
  get opset(): number {
    return this.opsets.get('') ?? 1;
  }

  /** Registers a name that is in use. False when it already was. */
  claimName(name: string): boolean {
    if (this.taken.has(name)) return false;
    this.taken.add(name);
    return true;
  }

  /** Whether a name is in use, or was. */
  hasName(name: string): boolean {
    return this.taken.has(name);
  }

  /** A name that nothing in the model has, made from `base`, and registers it. */
  uniqueName(base: string): string {
    if (this.claimName(base)) return base;
    // starting at 1 every time takes quadratic time when thousands of names share a base
    let suffix = this.suffixes.get(base) ?? 1;
    while (!this.claimName(`${base}_${suffix}`)) suffix++;
    this.suffixes.set(base, suffix + 1);
    return `${base}_${suffix}`;
  }

  /** Registers every name that is in use in another model; for copies. @internal */
  takeNamesOf(model: Model): void {
    for (const name of model.taken) this.taken.add(name);
  }

  /** An anonymous size (`?1`, `?2`, …) that nothing else in the model has. */
  freshDim(): Dim {
    // a model that was parsed or copied may have some already
    this.anonymousDims ??= this.largestAnonymousDim();
    return `?${++this.anonymousDims}`;
  }

  private largestAnonymousDim(): number {
    let largest = 0;
    const look = (value: Value | undefined): void => {
      for (const dim of [...(value?.shape ?? []), ...(value?.elements ?? [])])
        if (typeof dim === 'string')
          for (const [, number] of dim.matchAll(/\?(\d+)/g))
            largest = Math.max(largest, Number(number));
    };
    for (const graph of this.graph.allGraphs()) {
      for (const value of [...graph.inputs, ...graph.constants]) look(value);
      for (const node of graph.nodes()) for (const value of node.outputs) look(value);
    }
    return largest;
  }
}
