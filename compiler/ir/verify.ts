/**
 * What a legal model is. Runs after reading and after every pass; finds everything that is wrong and
 * reports the first three.
 *
 * Checked: names, static single assignment, topological order, captures of subgraphs, use lists,
 * constants, arity, and that declared dtypes and shapes are ones the ops can give.
 */
import { FettleError } from '../../runtime/errors.ts';
import { definitionOf } from '../ops/index.ts';
import type { Graph, Model, Node, Value } from './graph.ts';
import { liveSubgraphs, typeProblem } from './infer.ts';

/** How many failures a message spells out. */
const REPORTED = 3;

/**
 * Throws unless a model is consistent.
 *
 * @throws FettleError MODEL_INVALID that names the first three failures and says how many there are
 */
export function verifyModel(model: Model): void {
  const failures = findFailures(model);
  const [first] = failures;
  if (first === undefined) return;
  const more = failures.length - REPORTED;
  const listed = failures.slice(0, REPORTED).map((failure) => failure.problem);
  const rest = more > 0 ? ` And ${more} more.` : '';
  throw new FettleError(
    'MODEL_INVALID',
    `The model has ${failures.length === 1 ? 'a failure' : `${failures.length} failures`}: ${listed.join(' ')}${rest}`,
    {
      at: { ...first.at, failures: failures.length },
      fix: 'Export the model again; when a pass broke it, report the pass and the model.',
    },
  );
}

/** One broken rule. */
export interface Failure {
  /** As a sentence. */
  readonly problem: string;
  /** Node and value. */
  readonly at: Readonly<Record<string, string>>;
}

/** Everything that is wrong with a model; empty when nothing is. */
export function findFailures(model: Model): readonly Failure[] {
  const verifier = new Verifier(model);
  verifier.graph(model.graph, new Set());
  verifier.uses();
  return verifier.failures;
}

class Verifier {
  readonly failures: Failure[] = [];
  private readonly model: Model;
  private readonly names = new Map<string, Value>();
  /** Every use seen, to compare with the use lists. */
  private readonly seen = new Map<Value, Map<Node, number>>();
  private readonly listed = new Map<Value, number>();

  constructor(model: Model) {
    this.model = model;
  }

  /**
   * Checks a graph.
   *
   * @param visible - values of the graphs around it
   * @param live - whether it can run; types in a branch that cannot are not looked at
   */
  graph(graph: Graph, visible: ReadonlySet<Value>, live = true): void {
    const scope = new Set(visible);
    for (const value of graph.inputs) {
      if (value.producer !== undefined || value.weight !== undefined)
        this.fail(`Input "${value.name}" is also computed or constant.`, value);
      this.define(value, scope);
    }
    for (const value of graph.constants) {
      this.constant(value);
      this.define(value, scope);
    }
    let previous: Node | undefined;
    let count = 0;
    for (const node of graph.nodes()) {
      if (node.graph !== graph || node.previous !== previous)
        this.fail(`${node.describe()} is not linked to its neighbours.`, node);
      this.node(node, scope, live);
      previous = node;
      count++;
    }
    if (count !== graph.nodeCount)
      this.fail(`Graph "${graph.name}" counts ${graph.nodeCount} nodes and has ${count}.`);
    for (const value of graph.outputs) {
      this.listed.set(value, (this.listed.get(value) ?? 0) + 1);
      if (!scope.has(value))
        this.fail(`Output "${value.name}" is not computed in its graph.`, value);
    }
  }

  private node(node: Node, scope: Set<Value>, live: boolean): void {
    for (const [index, value] of node.inputs.entries()) {
      if (value === undefined) continue;
      const users = this.seen.get(value) ?? new Map<Node, number>();
      this.seen.set(value, users.set(node, (users.get(node) ?? 0) + 1));
      if (!scope.has(value))
        this.fail(
          `${node.describe()}: input ${index}, "${value.name}", is not defined before it.`,
          node,
          value,
        );
    }
    const alive = liveSubgraphs(node);
    for (const graph of node.subgraphs) {
      if (graph.owner !== node)
        this.fail(`${node.describe()}: subgraph "${graph.name}" belongs to another node.`, node);
      this.graph(graph, scope, live && alive.includes(graph));
    }
    this.arity(node);
    const problem = live ? typeProblem(node, this.model) : undefined;
    if (problem !== undefined) this.fail(problem, node);
    for (const value of node.outputs) {
      if (value === undefined) continue;
      if (value.producer !== node || value.weight !== undefined)
        this.fail(`"${value.name}" is not only the output of ${node.describe()}.`, node, value);
      this.define(value, scope);
    }
  }

  private arity(node: Node): void {
    const definition = definitionOf(node);
    if (definition === undefined) return;
    for (const [what, list, [least, most]] of [
      ['inputs', node.inputs, definition.inputs],
      ['outputs', node.outputs, definition.outputs],
    ] as const) {
      if (list.length < least || list.length > most)
        this.fail(
          `${node.describe()} has ${list.length} ${what}; ${node.op} has ${rangeText(least, most)}.`,
          node,
        );
    }
    const absent = node.inputs.slice(0, definition.inputs[0]).indexOf(undefined);
    if (absent >= 0) this.fail(`${node.describe()}: input ${absent} is required and absent.`, node);
  }

  private constant(value: Value): void {
    const { weight } = value;
    if (weight === undefined || value.producer !== undefined) {
      this.fail(`Constant "${value.name}" has no contents, or a node computes it.`, value);
      return;
    }
    const shape = value.shape?.join(', ');
    if (value.dtype !== weight.dtype || shape !== weight.shape.join(', '))
      this.fail(
        `Constant "${value.name}" says ${value.dtype}[${shape}] and holds ${weight.dtype}[${weight.shape.join(', ')}].`,
        value,
      );
  }

  private define(value: Value, scope: Set<Value>): void {
    if (scope.has(value)) this.fail(`"${value.name}" is defined twice.`, value);
    scope.add(value);
    const other = this.names.get(value.name);
    if (value.name === '') this.fail('A value has no name.', value);
    else if (other !== undefined && other !== value)
      this.fail(`Two values are called "${value.name}".`, value);
    this.names.set(value.name, value);
  }

  /** Compares the use lists with the uses there are. */
  uses(): void {
    for (const value of new Set([...this.names.values(), ...this.seen.keys()])) {
      const users = this.seen.get(value) ?? new Map<Node, number>();
      const agrees =
        users.size === value.users.size &&
        [...users].every(([node, uses]) => value.users.get(node) === uses);
      if (!agrees) this.fail(`The use list of "${value.name}" is wrong.`, value);
      if (value.outputCount !== (this.listed.get(value) ?? 0))
        this.fail(`"${value.name}" miscounts the outputs it is listed in.`, value);
    }
  }

  private fail(problem: string, ...places: readonly (Node | Value)[]): void {
    const at: Record<string, string> = {};
    for (const place of places) at['op' in place ? 'node' : 'value'] = place.name;
    this.failures.push({ problem, at });
  }
}

function rangeText(least: number, most: number): string {
  if (most === Infinity) return `at least ${least}`;
  return least === most ? `${least}` : `${least} to ${most}`;
}
