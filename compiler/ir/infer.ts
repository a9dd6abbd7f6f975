/**
 * Dtype and shape inference: walks the nodes in order and asks each op's definition. What the file
 * declares and what is inferred are merged: a known size beats a named one, a named one beats an
 * anonymous one. Contents of small integer tensors are followed as symbolic dimensions
 * (`ValueType.elements`), so that `Shape -> Gather -> Concat -> Reshape` ends in a known shape.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { InferContext } from '../ops/definition.ts';
import { takenBranch } from '../ops/control.ts';
import { definitionOf } from '../ops/index.ts';
import { writeNumbers } from '../ops/numbers.ts';
import { MAX_ELEMENTS, wholeNumbers } from '../ops/support.ts';
import type { Dim, Shape } from './dim.ts';
import { isAnonymous, isStatic } from './dim.ts';
import type { Graph, Model, Node, Value, ValueType } from './graph.ts';
import type { InferNode } from './rewriter.ts';

/** Options of {@link inferModel}. */
export interface InferOptions {
  /** Only this node and what comes after it. Default: the whole model. */
  readonly from?: Node;
  /** What a declared shape that is certainly wrong does. Default `throw`. */
  readonly contradictions?: 'throw' | 'warn';
}

/**
 * Infers the types of every value of a model, subgraphs included, and writes them to the values.
 * An op that Fettle does not know leaves its outputs as declared, with one warning per op.
 *
 * @throws FettleError MODEL_INVALID when inputs do not fit an op or a declared shape is wrong
 */
export function inferModel(model: Model, options: InferOptions = {}): void {
  const inference = new Inference(model, options.contradictions ?? 'throw');
  let first = options.from;
  while (first?.graph?.owner !== undefined) first = first.graph.owner;
  let reached = first === undefined;
  for (const node of model.graph.nodes()) {
    reached ||= node === first;
    if (reached) inference.update(node);
  }
}

/**
 * Types of one node's outputs from the types of its inputs, what is declared left aside.
 * Empty for an op that Fettle does not know.
 */
export const inferNode: InferNode = (node, model) =>
  new Inference(model, 'throw').infer(node).map(dropAbsent);

/**
 * What is wrong with the types around one node, as a sentence; undefined when nothing is. Changes
 * nothing. Nodes with subgraphs are not looked at: their contents are.
 */
export function typeProblem(node: Node, model: Model): string | undefined {
  const definition = definitionOf(node);
  if (definition === undefined || node.subgraphs.length > 0) return undefined;
  const anonymous = '?0'; // stands for every size that is not known; never kept
  const context = { ...new Inference(model, 'throw').contextOf(node), fresh: () => anonymous };
  let types: readonly ValueType[];
  try {
    types = definition.infer(context);
  } catch (error) {
    if (error instanceof FettleError) return error.message;
    throw error;
  }
  for (const [index, output] of node.outputs.entries()) {
    const { dtype, shape } = types[index] ?? {};
    if (output === undefined) continue;
    const fits =
      (dtype === undefined || output.dtype === undefined || dtype === output.dtype) &&
      (shape === undefined ||
        output.shape === undefined ||
        mergeShapes(output.shape, shape) !== undefined);
    if (!fits)
      return `${node.describe()}: "${output.name}" is declared as ${typeText(output)}, but the op gives ${typeText({ dtype, shape })}.`;
  }
  return undefined;
}

/**
 * Subgraphs that certainly can run: not the branches of an If whose condition is not known. An error
 * in one of those is an error when it is taken.
 */
export function liveSubgraphs(node: Node): readonly Graph[] {
  if (node.op !== 'If') return node.subgraphs;
  const taken = takenBranch(elementsOf(node.inputs[0])?.[0]);
  const graph = taken && node.subgraph(taken);
  return graph === undefined ? [] : [graph];
}

/** Sizes computed from attributes and contents of a damaged file may be anything. */
function checkSizes(node: Node, shape: Shape | undefined): void {
  const wrong = shape?.find(
    (dim) => typeof dim === 'number' && !(Number.isSafeInteger(dim) && dim >= 0),
  );
  if (wrong !== undefined)
    throw new FettleError(
      'MODEL_INVALID',
      `${node.describe()}: its inputs and attributes give an output of [${shape?.join(', ')}].`,
      { at: { node: node.name, op: node.op }, fix: 'Check the exporter that wrote the model.' },
    );
}

function typeText({ dtype, shape }: ValueType): string {
  return `${dtype ?? '?'}${shape === undefined ? '' : textOf(shape)}`;
}

function dropAbsent(type: ValueType): ValueType {
  const result: ValueType = {};
  if (type.dtype !== undefined) result.dtype = type.dtype;
  if (type.shape !== undefined) result.shape = type.shape;
  if (type.elements !== undefined) result.elements = type.elements;
  return result;
}

/** One run over a model. */
class Inference {
  private readonly model: Model;
  private readonly contradictions: 'throw' | 'warn';
  /** Declared types of values in subgraphs, which a loop may infer more than once. */
  private readonly declared = new Map<Value, ValueType>();

  constructor(model: Model, contradictions: 'throw' | 'warn') {
    this.model = model;
    this.contradictions = contradictions;
  }

  /** Types of the outputs; empty when the op is unknown. */
  infer(node: Node): readonly ValueType[] {
    const definition = definitionOf(node);
    if (definition === undefined) {
      this.warnUnknown(node);
      return [];
    }
    const types = definition.infer(this.contextOf(node));
    for (const { shape } of types) checkSizes(node, shape);
    return types.map((type) => this.limited(type));
  }

  /** Infers a node and merges the result into its outputs. */
  update(node: Node): void {
    const types = this.infer(node);
    for (const [index, output] of node.outputs.entries()) {
      const type = types[index];
      if (output !== undefined && type !== undefined) this.merge(node, output, type);
    }
  }

  contextOf(node: Node): InferContext {
    const { model } = this;
    return {
      node,
      opset: model.opsets.get(node.domain) ?? (node.domain === 'ai.onnx' ? model.opset : 1),
      input: (index) => node.inputs[index] ?? {},
      has: (index) => node.inputs[index] !== undefined,
      constant: (index) => knownContents(node.inputs[index]),
      elements: (index) => elementsOf(node.inputs[index]),
      fresh: () => model.freshDim(),
      graph: (graph, inputs) => this.subgraph(graph, inputs),
      warn: (message) => this.warn(message),
    };
  }

  private subgraph(
    graph: Graph,
    inputs: readonly Readonly<ValueType>[],
  ): readonly Readonly<ValueType>[] {
    for (const value of valuesOf(graph)) this.restore(value);
    for (const [index, value] of graph.inputs.entries()) {
      const given = inputs[index];
      if (given === undefined) continue;
      value.dtype = given.dtype ?? value.dtype;
      value.shape = given.shape ?? value.shape;
      value.elements = given.elements;
    }
    for (const node of graph.nodes()) this.update(node);
    return graph.outputs.map(({ dtype, shape, elements }) => ({ dtype, shape, elements }));
  }

  /** Sets a value of a subgraph back to what was declared before this run. */
  private restore(value: Value): void {
    const known = this.declared.get(value);
    if (known === undefined) {
      const { dtype, shape } = value;
      this.declared.set(value, { dtype, shape });
      value.elements = undefined;
      return;
    }
    value.dtype = known.dtype;
    value.shape = known.shape;
    value.elements = undefined;
  }

  private merge(node: Node, value: Value, type: ValueType): void {
    if (type.dtype !== undefined) {
      if (value.dtype !== undefined && value.dtype !== type.dtype)
        this.contradiction(node, value, value.dtype, type.dtype);
      value.dtype = type.dtype;
    }
    if (type.shape !== undefined)
      value.shape =
        value.shape === undefined
          ? type.shape
          : (mergeShapes(value.shape, type.shape) ??
            this.contradiction(node, value, textOf(value.shape), textOf(type.shape), type.shape));
    value.elements = type.elements;
  }

  private contradiction<T>(
    node: Node,
    value: Value,
    declared: string,
    inferred: string,
    result?: T,
  ): T | undefined {
    const message = `${node.describe()}: "${value.name}" is declared as ${declared}, but the op gives ${inferred}.`;
    if (this.contradictions === 'throw')
      throw new FettleError('MODEL_INVALID', message, {
        at: { node: node.name, op: node.op, value: value.name },
        fix: 'Remove the declared type of this value from the model, or export it again.',
      });
    this.warn(message);
    return result;
  }

  private warn(message: string): void {
    if (!this.model.warnings.includes(message)) this.model.warnings.push(message);
  }

  /** Drops contents that are too large to be a shape. */
  private limited(type: ValueType): ValueType {
    const { elements } = type;
    return elements !== undefined && elements.length > MAX_ELEMENTS
      ? { dtype: type.dtype, shape: type.shape }
      : type;
  }

  private warnUnknown(node: Node): void {
    const op = node.domain === '' ? node.op : `${node.domain}.${node.op}`;
    const message = `Op "${op}" is not known to Fettle: it is left as it is, and its outputs have the types the file declares.`;
    this.warn(message);
  }
}

/** Values that a graph itself defines. */
function* valuesOf(graph: Graph): Generator<Value, void> {
  yield* graph.inputs;
  for (const node of graph.nodes())
    for (const output of node.outputs) if (output !== undefined) yield output;
}

/** The best of two shapes of one value; undefined when they contradict each other. */
function mergeShapes(declared: Shape, inferred: Shape): Shape | undefined {
  if (declared.length !== inferred.length) return undefined;
  const merged: Dim[] = [];
  for (const [axis, a] of declared.entries()) {
    const b = inferred[axis] ?? a;
    if (typeof a === 'number' && typeof b === 'number' && a !== b) return undefined;
    merged.push(preferred(a, b));
  }
  return merged;
}

function preferred(declared: Dim, inferred: Dim): Dim {
  if (typeof inferred === 'number' || !isAnonymous(inferred)) return inferred;
  // both anonymous: an expression says more than a bare `?3`; between equals the older name stays
  return isAnonymous(declared) && /^\?\d+$/.test(String(declared)) && !/^\?\d+$/.test(inferred)
    ? inferred
    : declared;
}

function textOf(shape: Shape): string {
  return `[${shape.join(', ')}]`;
}

/** Contents of a small tensor of whole numbers as dimensions. */
function elementsOf(value: Value | undefined): readonly Dim[] | undefined {
  if (value === undefined) return undefined;
  if (value.elements !== undefined) return value.elements;
  const { weight } = value;
  // asked before reading: a large weight stays where it is
  if (weight === undefined || elementCount(weight.shape) > MAX_ELEMENTS) return undefined;
  return wholeNumbers(weight.tensor());
}

/** Contents of a constant, or of a value whose elements are all known. */
function knownContents(value: Value | undefined): Tensor | undefined {
  if (value === undefined) return undefined;
  if (value.weight !== undefined) return value.weight.tensor();
  const { dtype, shape, elements } = value;
  if (dtype === undefined || !isStatic(shape) || elements === undefined || !isStatic(elements))
    return undefined;
  return elements.length === elementCount(shape) ? writeNumbers(dtype, shape, elements) : undefined;
}
