/** Ops that only give the same elements another shape, and permutations. */
import type { Shape } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';

/** Ops whose output holds the elements of input 0 in the same order. */
export const viewOps: ReadonlySet<string> = new Set(['Reshape', 'Squeeze', 'Unsqueeze', 'Flatten']);

/** Whether a node is one of {@link viewOps}. */
export function isView(node: Node | undefined): node is Node {
  return node !== undefined && node.domain === '' && viewOps.has(node.op);
}

/** Whether a node is a Transpose. */
export function isTranspose(node: Node | undefined): boolean {
  return node?.op === 'Transpose' && node.domain === '';
}

/** `value`, what it is a view of, what that is a view of, … */
export function* throughViews(value: Value): Generator<Value, void> {
  let current = value;
  yield current;
  while (isView(current.producer)) {
    current = current.producer.input(0);
    yield current;
  }
}

/** The permutation of a Transpose; undefined when it reverses axes of an unknown rank. */
export function permutationOf(node: Node): readonly number[] | undefined {
  const listed = node.ints('perm');
  if (listed !== undefined) return listed;
  const rank = node.input(0).shape?.length;
  return rank === undefined ? undefined : Array.from({ length: rank }, (_, i) => rank - 1 - i);
}

/**
 * The constant a Reshape needs to turn one shape into another of the same size: known sizes as they
 * are, 0 where the size at the same place is kept, and at most one -1.
 *
 * A -1 is only computed by an engine when no other size is 0, so sizes known to be 0 rule it out.
 *
 * @returns undefined when one constant cannot say it for every value of the symbols
 */
export function reshapeTarget(from: Shape, to: Shape): readonly number[] | undefined {
  let inferred = 0;
  const target = to.map((dim, index) => {
    if (typeof dim === 'number' && dim > 0) return dim;
    if (from[index] === dim) return 0;
    inferred++;
    return -1;
  });
  if (inferred === 0) return target;
  return inferred === 1 && !to.includes(0) ? target : undefined;
}
