/**
 * Finds the values that alone determine a value: walking backwards from it, the places where everything
 * passes through one value again. Recognition by meaning starts here: what lies between such a value
 * and the root is a function of one tensor, which can be probed whatever its spelling.
 *
 *     Mul(x, Sigmoid(x))     the root's dominators: x, then those of x
 */
import type { Graph, Node, Value } from '../ir/graph.ts';

/** One value that determines the root, and what lies between. */
export interface Dominator {
  /** The value. */
  readonly value: Value;
  /** Nodes between it and the root, the root's producer included. */
  readonly nodes: ReadonlySet<Node>;
}

/** Steps of one walk; the longest spelling known (an interleaved rotary embedding) takes under 30. */
const MOST_STEPS = 80;

/** Places of nodes in their graph, found again when nodes were added. */
export class NodeOrder {
  private readonly places = new Map<Node, number>();

  /** Position of the node that computes a value; -1 when no node of its graph does. */
  of(value: Value): number {
    const { producer } = value;
    if (producer?.graph === undefined) return -1;
    const known = this.places.get(producer) ?? this.between(producer);
    if (known !== undefined) return known;
    this.number(producer.graph);
    return this.places.get(producer) ?? -1;
  }

  /** A new node's place between those of its neighbours; numbering everything again takes its time. */
  private between(node: Node): number | undefined {
    const before = node.previous === undefined ? -1 : this.places.get(node.previous);
    const after = node.next === undefined ? Infinity : this.places.get(node.next);
    if (before === undefined || after === undefined) return undefined;
    const place = Number.isFinite(after) ? (before + after) / 2 : before + 1;
    // neighbours of another numbering may be the wrong way round, or as close as doubles get
    if (!(before < place && place < after)) return undefined;
    this.places.set(node, place);
    return place;
  }

  private number(graph: Graph): void {
    let place = 0;
    for (const node of graph.nodes()) this.places.set(node, place++);
  }
}

/**
 * The dominators of a value, nearest first.
 *
 * @param follow - inputs through which a node passes on what is followed; undefined to stop there
 */
export function dominators(
  root: Value,
  order: NodeOrder,
  follow: (node: Node) => readonly Value[] | undefined,
): readonly Dominator[] {
  const found: Dominator[] = [];
  const frontier = new Set([root]);
  const nodes = new Set<Node>();
  for (let step = 0; step < MOST_STEPS; step++) {
    const latest = [...frontier].reduce((a, b) => (order.of(b) > order.of(a) ? b : a));
    if (frontier.size === 1 && latest !== root)
      found.push({ value: latest, nodes: new Set(nodes) });
    const { producer } = latest;
    const inputs = producer === undefined ? undefined : follow(producer);
    if (producer === undefined || inputs === undefined || inputs.length === 0) break;
    nodes.add(producer);
    for (const output of producer.outputs) if (output !== undefined) frontier.delete(output);
    for (const input of inputs) frontier.add(input);
  }
  return found;
}

/** Whether nothing outside needs the interior of a match: every output but the root's stays inside. */
export function isClosed(nodes: ReadonlySet<Node>, root: Value): boolean {
  return escapingValue(nodes, root) === undefined;
}

/** An interior value that something outside needs. */
export function escapingValue(nodes: ReadonlySet<Node>, root: Value): Value | undefined {
  for (const node of nodes)
    for (const output of node.outputs) {
      if (output === undefined || output === root) continue;
      if (output.isOutput) return output;
      for (const user of output.users.keys()) if (!nodes.has(user)) return output;
    }
  return undefined;
}
