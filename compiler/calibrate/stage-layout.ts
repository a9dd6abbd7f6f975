/** The order of a model's nodes, and how many bytes cross each position of it. */
import { elementCount } from '../../runtime/tensor.ts';
import { isStatic } from '../ir/dim.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import type { WeightUnit } from '../passes/weight-units.ts';

/** Bytes assumed for a value whose shape is not known. */
const UNKNOWN_BYTES = 4096;

/** Where a model may be cut, and what that costs. */
export class StageLayout {
  /** The model. */
  readonly model: Model;
  /** Nodes that depend on more than constants, in order. */
  readonly nodes: readonly Node[];
  /** Nodes that multiply by a unit. */
  readonly products: ReadonlySet<Node>;
  /** Values that the nodes compute, with the place of their node. */
  private readonly places = new Map<Value, number>();
  private readonly lastUses = new Map<Value, number>();
  /** Bytes that cross in front of each node. */
  private readonly crossing: Float64Array;

  constructor(model: Model, units: readonly WeightUnit[]) {
    this.model = model;
    this.nodes = dependentNodes(model);
    this.products = new Set(
      units.flatMap(({ sites }) =>
        sites.filter(({ kind }) => kind !== 'table').map(({ node }) => node),
      ),
    );
    this.nodes.forEach((node, place) => {
      for (const value of node.outputs) if (value !== undefined) this.places.set(value, place);
      for (const value of readsOf(node)) this.lastUses.set(value, place);
    });
    // + behind the node that computes a value, - behind the last one that reads it
    const changes = new Float64Array(this.nodes.length + 2);
    for (const [value, place] of this.places) {
      const bytes = bytesOf(value);
      const last = Math.max(place, this.lastUse(value));
      changes[place + 1] = (changes[place + 1] ?? 0) + bytes;
      changes[last + 1] = (changes[last + 1] ?? 0) - bytes;
    }
    let sum = 0;
    this.crossing = changes.map((change) => (sum += change));
  }

  /** Place of the last node that reads a value; -1 when none does. */
  lastUse(value: Value): number {
    return this.lastUses.get(value) ?? -1;
  }

  /** Whether a value depends on more than constants. */
  isComputed(value: Value): boolean {
    return this.places.has(value) || isInput(value);
  }

  /** Whether a value is an input of the model, or computed in front of a place. */
  comesBefore(value: Value, place: number): boolean {
    const at = this.places.get(value);
    return at === undefined ? isInput(value) : at < place;
  }

  /** The position in `from`..`to` that the fewest bytes cross, the first of equals. */
  cheapest(from: number, to: number): number {
    let best = from;
    for (let at = from + 1; at <= to; at++)
      if ((this.crossing[at] ?? 0) < (this.crossing[best] ?? 0)) best = at;
    return best;
  }
}

/** Values a node reads, those that its subgraphs capture included. */
export function readsOf(node: Node): readonly Value[] {
  const found = node.inputs.filter((value) => value !== undefined);
  for (const graph of node.subgraphs)
    for (const inner of graph.allNodes())
      for (const value of inner.inputs) if (value !== undefined) found.push(value);
  return found;
}

function dependentNodes(model: Model): readonly Node[] {
  const constants = new Set<Value>();
  const isConstant = (value: Value): boolean => value.weight !== undefined || constants.has(value);
  const nodes: Node[] = [];
  for (const node of model.graph.nodes()) {
    const inputs = readsOf(node);
    if (inputs.length === 0 || !inputs.every(isConstant)) nodes.push(node);
    else for (const value of node.outputs) if (value !== undefined) constants.add(value);
  }
  return nodes;
}

function isInput(value: Value): boolean {
  return value.weight === undefined && value.producer === undefined;
}

function bytesOf({ shape }: Value): number {
  return isStatic(shape) ? 4 * elementCount(shape) : UNKNOWN_BYTES;
}
