/**
 * Takes away views and transposes in a row that come to nothing, or to less.
 *
 *     Transpose(Reshape(Transpose(Reshape(x))))   ->   Reshape(Transpose(x)), Reshape(x) or x
 *
 * What a chain does to the order of elements is found by following numbered elements through it, for two
 * sets of sizes. Exact.
 */
import { elementCount, tensor } from '../../runtime/tensor.ts';
import { Bookkeeping } from '../analyze/bookkeeping.ts';
import { knownShape, probe } from '../analyze/probe.ts';
import { ints } from '../ir/attribute.ts';
import type { Dim } from '../ir/dim.ts';
import { sameShape } from '../ir/dim.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { int64s, readNumbers } from '../ops/numbers.ts';
import { removeAll } from './fuse-activation.ts';
import type { Pass, PassContext } from './pass.ts';
import { obstacle, replaceByNew, replaceValue } from './replace.ts';
import { isTranspose, isView, reshapeTarget, viewOps } from './views.ts';

/** Makes the pass. It has no options. */
export function fuseLayout(): Pass {
  return {
    name: 'fuse-layout',
    options: {},
    rules: [{ name: 'chain', starts: [...viewOps, 'Transpose'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      const books = new Bookkeeping(model);
      for (const node of [...model.graph.nodes()].reverse())
        if (node.graph !== undefined && isLayout(node)) shortenChain(model, node, books, context);
      return context.rewriter.changes > before;
    },
  };
}

function isLayout(node: Node | undefined): boolean {
  return isView(node) || isTranspose(node);
}

/** Longest chain looked at. */
const LONGEST = 8;

function shortenChain(model: Model, end: Node, books: Bookkeeping, context: PassContext): void {
  const root = end.output(0);
  const chain = [end];
  for (
    let node = end.input(0).producer;
    node !== undefined && isLayout(node) && chain.length < LONGEST;
  ) {
    // what something else needs is no part of the chain
    if (node.output(0).onlyUser !== chain.at(-1)) break;
    chain.push(node);
    node = node.input(0).producer;
  }
  const transposes = chain.filter(({ op }) => op === 'Transpose').length;
  const source = chain.at(-1)?.input(0);
  const miss = (why: string): void => context.miss('chain', end, why);
  if (chain.length < 2) return miss('what is in front of it is no view that only it reads');
  if (transposes === 0) return miss('there is no Transpose among the views');
  if (source?.shape === undefined || root.shape === undefined) return miss('a shape is not known');
  const found = orderOf(model, source, root, books);
  if (typeof found === 'string') {
    // heads are split by a Reshape and a Transpose, and there is no shorter way
    if (chain.length > 2) context.refuse('chain', end, found);
    else miss(found);
    return;
  }
  const turned =
    found.perm === undefined ? source.shape : found.perm.map((axis) => source.shape?.[axis] ?? 1);
  const target = sameShape(turned, root.shape)
    ? []
    : reshapeTarget(turned as readonly Dim[], root.shape);
  if (target === undefined)
    return context.refuse('chain', end, 'two sizes of its result are known only when it runs');
  const count = (found.perm === undefined ? 0 : 1) + (target.length > 0 ? 1 : 0);
  if (count >= chain.length) return miss('it takes as many ops as it has');
  const why = count === 0 ? obstacle(model.graph, root, source) : undefined;
  if (why !== undefined) return context.refuse('chain', end, why);
  const { rewriter } = context;
  rewriter.before(end);
  const from = [...new Set(chain.flatMap((node) => node.from))];
  let value = source;
  if (found.perm !== undefined)
    value = rewriter.op('Transpose', [value], { perm: ints(found.perm) }, { from });
  if (target.length > 0)
    value = rewriter.op(
      'Reshape',
      [value, rewriter.constant(`${root.name}_shape`, int64s(target))],
      {},
      { from },
    );
  if (count === 0) replaceValue(rewriter, root, value);
  else replaceByNew(rewriter, root, value);
  removeAll(chain, context);
  context.count('chain');
}

/** How the elements of `root` are those of `source`: in order, or in the order of a transpose. */
function orderOf(
  model: Model,
  source: Value,
  root: Value,
  books: Bookkeeping,
): { readonly perm: readonly number[] | undefined } | string {
  let perms: readonly (readonly number[])[] | undefined;
  for (const call of [
    { batch: 2, sequence: 5, past: 3 },
    { batch: 3, sequence: 7, past: 2 },
  ]) {
    const inputs = books.call(call);
    const shape = knownShape(source.shape, inputs.sizes);
    if (shape === undefined) return 'its sizes do not follow from those of the inputs';
    if (shape.length > 5 || elementCount(shape) > 1 << 22) return 'it is too large to follow';
    // an axis that happens to be 1 here could be anywhere
    if (source.shape?.some((dim, axis) => dim !== 1 && shape[axis] === 1) === true)
      return 'a size that a run decides is 1';
    const numbered = tensor(
      'f32',
      shape,
      Float32Array.from({ length: elementCount(shape) }, (_, i) => i),
    );
    const given = new Map([...inputs.given, [source, numbered]]);
    const got = probe(model, root, { sizes: inputs.sizes, given });
    if (got === undefined || source.dtype !== 'f32') return 'it cannot be followed';
    const order = readNumbers(got);
    perms = (perms ?? permutations(shape.length)).filter((perm) => isOrder(order, shape, perm));
    if (perms.length === 0) break;
  }
  const [perm] = perms ?? [];
  return perm === undefined
    ? 'no transpose puts the elements in that order'
    : { perm: perm.every((axis, i) => axis === i) ? undefined : perm };
}

/** Every order of `rank` axes, the natural one first. */
function permutations(rank: number): readonly (readonly number[])[] {
  if (rank === 0) return [[]];
  return permutations(rank - 1)
    .flatMap((perm) =>
      Array.from({ length: rank }, (_, at) => [
        ...perm.slice(0, rank - 1 - at),
        rank - 1,
        ...perm.slice(rank - 1 - at),
      ]),
    )
    .sort((a, b) => (a.join() < b.join() ? -1 : 1));
}

function isOrder(
  order: ArrayLike<number>,
  shape: readonly number[],
  perm: readonly number[],
): boolean {
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const turned = perm.map((axis) => shape[axis] ?? 1);
  const steps = perm.map((axis) => strides[axis] ?? 1);
  const position = turned.map(() => 0);
  let wanted = 0;
  for (let i = 0; i < order.length; i++) {
    if (order[i] !== wanted) return false;
    for (let axis = turned.length - 1; axis >= 0; axis--) {
      const size = turned[axis] ?? 1;
      position[axis] = (position[axis] ?? 0) + 1;
      wanted += steps[axis] ?? 0;
      if ((position[axis] ?? 0) < size) break;
      wanted -= size * (steps[axis] ?? 0);
      position[axis] = 0;
    }
  }
  return true;
}
