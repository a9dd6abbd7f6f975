/**
 * The one way to change a graph. New nodes go in front of an anchor, get unique names, their types
 * inferred and the names of the source nodes they stand for; changes are counted.
 */
import { assert } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import type { Attribute, Attributes } from './attribute.ts';
import type { Graph, Model, ValueType } from './graph.ts';
import { Node, Value } from './graph.ts';
import { Weight } from './weight.ts';

/** Computes the types of a node's outputs; see `infer.ts`. */
export type InferNode = (node: Node, model: Model) => readonly ValueType[];

/** Details of a new node. */
export interface NodeOptions {
  /** Domain; default ''. */
  readonly domain?: string;
  /** Name; default: the anchor's, so that a message names what the user wrote. */
  readonly name?: string;
  /** Number of outputs, or for each whether it is present; default 1. */
  readonly outputs?: number | readonly boolean[];
  /** Names of the source nodes it stands for; default: the anchor's. */
  readonly from?: readonly string[];
}

/** Edits one model in place. */
export class Rewriter {
  /** The model being edited. */
  readonly model: Model;
  /** Edits so far. */
  changes = 0;
  private readonly infer: InferNode;
  private anchor: Node | undefined;
  private graph: Graph;
  private sources: readonly string[] | undefined;

  constructor(model: Model, infer: InferNode) {
    this.model = model;
    this.graph = model.graph;
    this.infer = infer;
  }

  /** Puts new nodes in front of `anchor` from now on, in the graph it belongs to. */
  before(anchor: Node): this {
    assert(anchor.graph !== undefined, `${anchor.describe()} is not in a graph`);
    this.anchor = anchor;
    this.graph = anchor.graph;
    return this;
  }

  /** Appends new nodes at the end of `graph` from now on. */
  atEnd(graph: Graph = this.model.graph): this {
    this.anchor = undefined;
    this.graph = graph;
    return this;
  }

  /**
   * Adds a node with one output.
   *
   * @param op - op type
   * @param inputs - undefined where an optional input is absent
   * @param attributes - made with `int()`, `float()`, … of `attribute.ts`
   * @returns its output, with dtype and shape inferred
   */
  op(
    op: string,
    inputs: readonly (Value | undefined)[],
    attributes: Attributes = {},
    options: NodeOptions = {},
  ): Value {
    return this.node(op, inputs, attributes, options).output(0);
  }

  /** Adds a node; see {@link Rewriter.op}. */
  node(
    op: string,
    inputs: readonly (Value | undefined)[],
    attributes: Attributes = {},
    options: NodeOptions = {},
  ): Node {
    const name = options.name ?? this.anchor?.name ?? '';
    const base = name === '' ? op : name;
    const wanted = options.outputs ?? 1;
    const present =
      typeof wanted === 'number' ? Array.from({ length: wanted }, () => true) : wanted;
    const outputs = present.map((given) =>
      given ? new Value(this.model.uniqueName(`${base}_out`)) : undefined,
    );
    const node = new Node(op, outputs, {
      domain: options.domain ?? '',
      name,
      attributes,
      from: options.from ?? this.sources ?? this.anchor?.from ?? [],
    });
    inputs.forEach((value, index) => node.setInput(index, value));
    this.graph.insert(node, this.anchor);
    this.refresh(node);
    this.changes++;
    return node;
  }

  /** Runs `build`; nodes it adds stand for the source nodes `from`. */
  deriving<T>(from: readonly string[], build: () => T): T {
    const outer = this.sources;
    this.sources = from;
    try {
      return build();
    } finally {
      this.sources = outer;
    }
  }

  /** Adds a constant held in memory to the main graph, where every subgraph can use it too. */
  constant(name: string, value: Tensor | Weight): Value {
    const weight = value instanceof Weight ? value : Weight.of(value);
    const result = new Value(this.model.uniqueName(name), {
      dtype: weight.dtype,
      shape: weight.shape,
    });
    result.weight = weight;
    this.model.graph.addConstant(result);
    this.changes++;
    return result;
  }

  /** Adds an input to the main graph. Its name must be new. */
  graphInput(name: string, type: ValueType): Value {
    assert(this.model.claimName(name), `the name "${name}" is taken`);
    const value = new Value(name, type);
    this.model.graph.inputs.push(value);
    this.changes++;
    return value;
  }

  /** Takes away an input of the main graph that nothing uses. */
  removeInput(value: Value): void {
    const { inputs } = this.model.graph;
    const index = inputs.indexOf(value);
    assert(index >= 0 && value.useCount === 0, `input "${value.name}" is used, or is none`);
    inputs.splice(index, 1);
    this.changes++;
  }

  /** Makes a value of the main graph its last output under a new public name. */
  graphOutput(name: string, value: Value): void {
    assert(this.model.claimName(name), `the name "${name}" is taken`);
    value.name = name;
    this.model.graph.setOutput(value);
    this.changes++;
  }

  /** Takes a value off the outputs of the main graph. */
  removeOutput(value: Value): void {
    const index = this.model.graph.outputs.indexOf(value);
    assert(index >= 0, `"${value.name}" is no output`);
    this.model.graph.removeOutput(index);
    this.changes++;
  }

  /** Makes every user of `old`, graph outputs included, use `value` instead. */
  replaceUses(old: Value, value: Value): void {
    if (old === value) return;
    for (const node of old.users.keys())
      node.inputs.forEach((input, index) => {
        if (input === old) node.setInput(index, value);
      });
    if (old.isOutput)
      for (const graph of this.model.graph.allGraphs()) {
        const { outputs } = graph;
        for (let at = outputs.indexOf(old); at >= 0; at = outputs.indexOf(old))
          graph.setOutput(value, at);
        // going on would walk through every node for each output
        if (!old.isOutput) break;
      }
    this.changes++;
  }

  /**
   * Replaces a value that is a graph output and must keep its public name: `value` takes the name.
   * Interior values are replaced as {@link Rewriter.replaceUses} does.
   */
  replace(old: Value, value: Value): void {
    if (old.isOutput && value.producer !== undefined && !value.isOutput) {
      const { name } = old;
      old.name = this.model.uniqueName(`${name}_replaced`);
      value.name = name;
    }
    value.dtype ??= old.dtype;
    value.shape ??= old.shape;
    this.replaceUses(old, value);
  }

  /** Points an input at another value. */
  setInput(node: Node, index: number, value: Value | undefined): void {
    node.setInput(index, value);
    this.changes++;
  }

  /** Changes or, with undefined, removes an attribute. */
  setAttribute(node: Node, name: string, attribute: Attribute | undefined): void {
    node.setAttribute(name, attribute);
    this.changes++;
  }

  /** Removes a node that nothing uses. */
  remove(node: Node): void {
    assert(node.graph !== undefined, `${node.describe()} was already removed`);
    if (this.anchor === node) this.anchor = node.next;
    node.graph.remove(node);
    this.changes++;
  }

  /** Gives up an optional output that nothing uses, and trailing gaps with it. */
  dropOutput(node: Node, index: number): void {
    node.dropOutput(index);
    node.trim();
    this.changes++;
  }

  /** Removes a constant that nothing uses from the graph that holds it. */
  removeConstant(graph: Graph, value: Value): void {
    graph.removeConstant(value);
    this.changes++;
  }

  /** Infers the types of a node's outputs again. */
  refresh(node: Node): void {
    const types = this.infer(node, this.model);
    node.outputs.forEach((output, index) => {
      const type = types[index];
      if (output === undefined || type === undefined) return;
      output.dtype = type.dtype ?? output.dtype;
      output.shape = type.shape ?? output.shape;
      output.elements = type.elements ?? output.elements;
    });
  }
}
