/**
 * Puts the nodes of a graph into topological order. ONNX demands that order; not every writer keeps it.
 * A file that is in order is left exactly as it is, and otherwise the earliest node that can run comes
 * next.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { AttributeProto, GraphProto, NodeProto } from './schema.ts';

/** The nodes in an order in which every value is defined before it is used. */
export function sortNodes(nodes: readonly NodeProto[]): readonly NodeProto[] {
  const producers = new Map<string, number>();
  nodes.forEach((node, i) => {
    for (const name of node.output ?? []) if (name !== '') producers.set(name, i);
  });
  const users = nodes.map((): number[] => []);
  const waiting = nodes.map((node, i) => {
    const needed = new Set<number>();
    for (const name of namesUsed(node)) {
      const producer = producers.get(name);
      if (producer !== undefined) needed.add(producer);
    }
    for (const producer of needed) users[producer]?.push(i);
    return needed;
  });
  if (waiting.every((needed, i) => [...needed].every((producer) => producer < i))) return nodes;
  const open = waiting.map((needed) => needed.size);
  const ready = new MinHeap();
  open.forEach((count, i) => {
    if (count === 0) ready.push(i);
  });
  const sorted: NodeProto[] = [];
  const done = new Set<number>();
  for (let i = ready.pop(); i !== undefined; i = ready.pop()) {
    const node = nodes[i];
    if (node !== undefined) sorted.push(node);
    done.add(i);
    for (const user of users[i] ?? []) {
      const left = (open[user] ?? 0) - 1;
      open[user] = left;
      if (left === 0) ready.push(user);
    }
  }
  if (sorted.length < nodes.length) throw cycleError(nodes, waiting, done);
  return sorted;
}

/** Names a node reads: its inputs, and what its subgraphs take from the graphs around them. */
function namesUsed(node: NodeProto): Set<string> {
  const names = new Set(node.input ?? []);
  for (const attribute of node.attribute ?? [])
    for (const graph of subgraphsOf(attribute))
      for (const name of freeNames(graph)) names.add(name);
  names.delete('');
  return names;
}

function freeNames(graph: GraphProto): Set<string> {
  const names = new Set(graph.output?.map(({ name }) => name ?? ''));
  for (const node of graph.node ?? []) for (const name of namesUsed(node)) names.add(name);
  for (const { name } of graph.input ?? []) names.delete(name ?? '');
  for (const { name } of graph.initializer ?? []) names.delete(name ?? '');
  for (const { values } of graph.sparseInitializer ?? []) names.delete(values?.name ?? '');
  for (const node of graph.node ?? []) for (const name of node.output ?? []) names.delete(name);
  return names;
}

function subgraphsOf(attribute: AttributeProto): readonly GraphProto[] {
  return [...(attribute.g ? [attribute.g] : []), ...(attribute.graphs ?? [])];
}

/** Follows unfinished producers until a node comes up again: that one is on a cycle. */
function cycleError(
  nodes: readonly NodeProto[],
  needs: readonly ReadonlySet<number>[],
  done: ReadonlySet<number>,
): FettleError {
  const seen = new Set<number>();
  let at = nodes.findIndex((_, i) => !done.has(i));
  while (!seen.has(at)) {
    seen.add(at);
    at = [...(needs[at] ?? [])].find((producer) => !done.has(producer)) ?? at;
  }
  const node = nodes[at];
  const name = node?.name || node?.output?.[0] || '';
  return new FettleError(
    'MODEL_INVALID',
    `The graph has a cycle: ${node?.opType} "${name}" depends on its own output.`,
    {
      at: { node: name },
      fix: 'Export the model again; ONNX graphs have no cycles (use Loop or Scan).',
    },
  );
}

/** Smallest number first. */
class MinHeap {
  private readonly items: number[] = [];

  push(item: number): void {
    const { items } = this;
    let at = items.push(item) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if ((items[parent] ?? 0) <= item) break;
      items[at] = items[parent] ?? 0;
      at = parent;
    }
    items[at] = item;
  }

  pop(): number | undefined {
    const { items } = this;
    const [first] = items;
    const last = items.pop();
    if (items.length === 0 || last === undefined) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= items.length) break;
      if ((items[child + 1] ?? Infinity) < (items[child] ?? 0)) child++;
      if ((items[child] ?? 0) >= last) break;
      items[at] = items[child] ?? 0;
      at = child;
    }
    items[at] = last;
    return first;
  }
}
