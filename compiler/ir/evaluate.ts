/**
 * The reference evaluator: runs a graph node by node with the evaluation each op defines. Slow and
 * plain; used for constant folding, tests, golden checks and as the yardstick of the engines.
 * A tensor is released after its last use.
 */
import { FettleError, nearest, outOfRange, wrongType } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import type { EvaluateContext } from '../ops/definition.ts';
import { definitionOf } from '../ops/index.ts';
import type { Graph, Model, Node, Value } from './graph.ts';

/** Options of {@link evaluate}. */
export interface EvaluateOptions {
  /** Names of the values wanted, interior ones too. Default: the graph's outputs. */
  readonly outputs?: readonly string[];
  /** Sees every value of the main graph and its subgraphs when it has been computed. */
  readonly onValue?: (value: Value, tensor: Tensor) => void;
  /** What a node computes with instead of its inputs, for engines that round them. */
  readonly read?: (
    node: Node,
    inputs: readonly (Tensor | undefined)[],
  ) => readonly (Tensor | undefined)[];
  /** Stops between two nodes. */
  readonly signal?: AbortSignal;
}

/**
 * Runs a model.
 *
 * @param model - any model whose ops have an evaluation
 * @param inputs - a tensor for each graph input, by name
 * @returns the wanted values, by name
 * @throws FettleError OP_UNSUPPORTED when an op cannot be evaluated
 * @throws TypeError or RangeError when an input is missing or does not fit
 *
 * @example
 * const outputs = evaluate(model, { x: tensor('f32', [1], Float32Array.of(2)) });
 */
export function evaluate(
  model: Model,
  inputs: ReadonlyMap<string, Tensor> | Readonly<Record<string, Tensor>>,
  options: EvaluateOptions = {},
): Map<string, Tensor> {
  const given = new Map(inputs instanceof Map ? inputs : Object.entries(inputs));
  const run = new Run(model, options);
  const scope: Scope = { values: new Map(), outer: undefined };
  for (const value of model.graph.inputs) {
    const tensor = given.get(value.name);
    if (tensor === undefined) throw wrongType(`input "${value.name}"`, 'a tensor', tensor);
    checkInput(value, tensor);
    run.set(scope, value, tensor);
  }
  const wanted =
    options.outputs === undefined
      ? model.graph.outputs
      : options.outputs.map((name) => findValue(model.graph, name));
  const tensors = run.graph(model.graph, scope, wanted);
  return new Map(wanted.map((value, index) => [value.name, tensors[index] as Tensor]));
}

/**
 * Evaluates one node, for constant folding.
 *
 * @param inputs - undefined where an optional input is absent
 * @throws FettleError OP_UNSUPPORTED when the op has no evaluation; subgraphs may only use constants
 */
export function evaluateNode(
  node: Node,
  model: Model,
  inputs: readonly (Tensor | undefined)[],
): readonly (Tensor | undefined)[] {
  return new Run(model, {}).node(node, inputs, { values: new Map(), outer: undefined });
}

/** Computed values of one graph, and those of the graphs around it. */
interface Scope {
  readonly values: Map<Value, Tensor>;
  readonly outer: Scope | undefined;
}

/** What a graph has to compute for some outputs. */
interface Schedule {
  readonly wanted: readonly Value[];
  readonly nodes: readonly Node[];
  /** Values that nothing reads after this node. */
  readonly releasedAfter: ReadonlyMap<Node, readonly Value[]>;
}

class Run {
  private readonly model: Model;
  private readonly options: EvaluateOptions;
  private readonly schedules = new Map<Graph, Schedule>();

  constructor(model: Model, options: EvaluateOptions) {
    this.model = model;
    this.options = options;
  }

  set(scope: Scope, value: Value, tensor: Tensor): void {
    scope.values.set(value, tensor);
    this.options.onValue?.(value, tensor);
  }

  /** Runs a graph whose inputs are already in the scope. */
  graph(graph: Graph, scope: Scope, wanted: readonly Value[]): readonly Tensor[] {
    let schedule = this.schedules.get(graph);
    if (schedule === undefined || schedule.wanted !== wanted) {
      schedule = scheduleOf(graph, wanted);
      this.schedules.set(graph, schedule);
    }
    for (const node of schedule.nodes) {
      this.options.signal?.throwIfAborted();
      const stored = node.inputs.map((value) => value && this.get(value, scope, node));
      const inputs = this.options.read?.(node, stored) ?? stored;
      const results = this.node(node, inputs, scope);
      for (const [index, output] of node.outputs.entries()) {
        const tensor = results[index];
        if (output !== undefined && tensor !== undefined) this.set(scope, output, tensor);
      }
      for (const value of schedule.releasedAfter.get(node) ?? []) scope.values.delete(value);
    }
    return wanted.map((value) => this.get(value, scope));
  }

  node(
    node: Node,
    inputs: readonly (Tensor | undefined)[],
    scope: Scope,
  ): readonly (Tensor | undefined)[] {
    const definition = definitionOf(node);
    if (definition?.evaluate === undefined)
      throw new FettleError(
        'OP_UNSUPPORTED',
        `${node.describe()}: the reference evaluator has no ${node.op}.`,
        {
          at: { node: node.name, op: node.op },
          fix: 'Evaluate the model on an engine instead, or ask for outputs that do not need the node.',
        },
      );
    const { model } = this;
    const context: EvaluateContext = {
      node,
      opset: model.opsets.get(node.domain) ?? (node.domain === 'ai.onnx' ? model.opset : 1),
      inputs,
      input: (index) => {
        const tensor = inputs[index];
        if (tensor === undefined)
          throw new FettleError('MODEL_INVALID', `${node.describe()}: input ${index} is absent.`, {
            at: { node: node.name, op: node.op },
            fix: `Give the node the inputs that ${node.op} requires.`,
          });
        return tensor;
      },
      graph: (graph, arguments_) => this.subgraph(graph, arguments_, scope),
      random: uniformNumbers,
    };
    try {
      return definition.evaluate(context);
    } catch (error) {
      // operands that no check of the op caught show as the language's own errors
      if (!(error instanceof RangeError || error instanceof TypeError)) throw error;
      const given = inputs.map((tensor) => (tensor ? `${tensor.dtype} [${tensor.shape}]` : 'none'));
      throw new FettleError(
        'MODEL_INVALID',
        `${node.describe()} cannot be evaluated on ${given.join(', ')}: ${error.message}`,
        {
          at: { node: node.name, op: node.op },
          fix: 'Check the operands of this node, or export the model again.',
          cause: error,
        },
      );
    }
  }

  private subgraph(
    graph: Graph,
    inputs: readonly (Tensor | undefined)[],
    outer: Scope,
  ): readonly Tensor[] {
    const scope: Scope = { values: new Map(), outer };
    for (const [index, value] of graph.inputs.entries()) {
      const tensor = inputs[index];
      if (tensor !== undefined) this.set(scope, value, tensor);
    }
    return this.graph(graph, scope, graph.outputs);
  }

  private get(value: Value, scope: Scope, reader?: Node): Tensor {
    for (let at: Scope | undefined = scope; at !== undefined; at = at.outer) {
      const tensor = at.values.get(value);
      if (tensor !== undefined) return tensor;
    }
    if (value.weight !== undefined) return value.weight.tensor();
    const by = reader === undefined ? '' : `, which ${reader.describe()} reads,`;
    throw new FettleError('MODEL_INVALID', `Value "${value.name}"${by} has not been computed.`, {
      at: { value: value.name },
      fix: 'Verify the model first; a node reads what no node before it gives.',
    });
  }
}

/** The nodes that the wanted values need, and when each value of this graph can go. */
function scheduleOf(graph: Graph, wanted: readonly Value[]): Schedule {
  const needed = new Set<Value>(wanted);
  const nodes: Node[] = [];
  for (const node of [...graph.nodes()].reverse()) {
    if (!node.outputs.some((output) => output !== undefined && needed.has(output))) continue;
    nodes.push(node);
    for (const value of readsOf(node)) needed.add(value);
  }
  const kept = new Set<Value>(wanted);
  const releasedAfter = new Map<Node, Value[]>();
  for (const node of nodes) {
    // from the last node to the first: the first reader seen is the last one to run
    const released: Value[] = [];
    for (const value of [...readsOf(node), ...node.outputs]) {
      if (value === undefined || kept.has(value)) continue;
      kept.add(value);
      released.push(value);
    }
    releasedAfter.set(node, released);
  }
  return { wanted, nodes: nodes.reverse(), releasedAfter };
}

/** Values a node reads, those that its subgraphs take from outside included. */
function* readsOf(node: Node): Generator<Value, void> {
  for (const value of node.inputs) if (value !== undefined) yield value;
  for (const graph of node.subgraphs) {
    for (const inner of graph.allNodes())
      for (const value of inner.inputs) if (value !== undefined) yield value;
    for (const inner of graph.allGraphs()) yield* inner.outputs;
  }
}

function findValue(graph: Graph, name: string): Value {
  const names: string[] = [];
  const visible = [...graph.inputs, ...graph.constants, ...graph.outputs];
  for (const node of graph.nodes())
    for (const output of node.outputs) if (output !== undefined) visible.push(output);
  for (const value of visible) {
    if (value.name === name) return value;
    names.push(value.name);
  }
  const hint = nearest(name, names);
  throw outOfRange('outputs', hint === undefined ? 'a value of the graph' : `"${hint}"`, name);
}

function checkInput(value: Value, tensor: Tensor): void {
  const { dtype, shape } = value;
  const name = `input "${value.name}"`;
  if (dtype !== undefined && dtype !== tensor.dtype)
    throw new TypeError(`${name}: wanted ${dtype}, got ${tensor.dtype}.`);
  if (shape === undefined) return;
  const fits =
    shape.length === tensor.shape.length &&
    shape.every((dim, axis) => typeof dim === 'string' || dim === tensor.shape[axis]);
  if (!fits) throw outOfRange(name, `[${shape.join(', ')}]`, `[${tensor.shape.join(', ')}]`);
}

/** Mulberry32: 32 bits of state are plenty for initializers and tests. */
function uniformNumbers(seed: number): () => number {
  let state = Math.trunc(seed) | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let word = Math.imul(state ^ (state >>> 15), 1 | state);
    word = (word + Math.imul(word ^ (word >>> 7), 61 | word)) ^ word;
    return ((word ^ (word >>> 14)) >>> 0) / 2 ** 32;
  };
}
