/**
 * A list of sizes, rebuilt from the fewest ops.
 *
 *     s = Shape(x)
 *     Concat(Unsqueeze(Gather(s, 0)), [2], Unsqueeze(Div(Gather(s, 1), 2)), Unsqueeze(Gather(s, 2)))
 *     ->   Concat(Gather(s, [0]), [2, 12], Gather(s, [2]))          for x: [b, 24, h, w]
 *
 * Only the Shape nodes the computation already has are used, so nothing new is asked of other values,
 * and only when nodes are saved: what becomes dead must outnumber what is added.
 */
import { int } from '../ir/attribute.ts';
import type { Dim } from '../ir/dim.ts';
import { isStatic } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { filled, int64s } from '../ops/numbers.ts';
import type { PassContext } from './pass.ts';
import { obstacle, removeIfUnused, replaceByNew } from './replace.ts';

/** A run of sizes: constants, or elements of a shape. */
type Piece =
  | { readonly kind: 'constant'; readonly sizes: number[] }
  | { readonly kind: 'shape'; readonly source: Value; readonly indices: number[] };

/** Computations deeper than this are not looked into. */
const MOST_NODES = 200;

/** Rebuilds the sizes a node computes when that takes fewer nodes. */
export function shortenShape(node: Node, context: PassContext): void {
  const [output] = node.outputs;
  if (node.graph === undefined || node.outputs.length !== 1 || output === undefined) return;
  const { elements, shape, dtype } = output;
  if (node.domain !== '' || node.op === 'Shape' || dtype !== 'i64') return;
  // what is known altogether is a constant already, or left alone for a reason
  if (elements === undefined || isStatic(elements) || (shape?.length ?? 2) > 1) return;
  const isScalar = shape?.length === 0;
  const cone = coneOf(node);
  if (cone === undefined) return;
  const pieces = piecesFor(elements, cone.shapes);
  if (pieces === undefined) return;
  const used = new Set(pieces.flatMap((piece) => (piece.kind === 'shape' ? [piece.source] : [])));
  const unread = deadNodes(output, cone.nodes);
  const dead = unread.filter(
    ({ outputs }) => !outputs.some((value) => value !== undefined && used.has(value)),
  );
  const gathers = pieces.filter((piece) => piece.kind === 'shape' && !isWhole(piece, isScalar));
  const added = gathers.length + (pieces.length > 1 ? 1 : 0);
  if (added >= dead.length) return;
  const { rewriter } = context;
  const direct = pieces.length === 1 && gathers.length === 0 ? [...used][0] : undefined;
  if (direct !== undefined && obstacle(rewriter.model.graph, output, direct) !== undefined) return;
  rewriter.before(node);
  const axis = { axis: int(0) };
  const parts = pieces.map((piece) => {
    if (piece.kind === 'constant')
      return rewriter.constant(`${output.name}_sizes`, int64s(piece.sizes));
    if (isWhole(piece, isScalar)) return piece.source;
    const { indices } = piece;
    const which = isScalar ? filled('i64', [], indices[0] ?? 0) : int64s(indices);
    const index = rewriter.constant(`${output.name}_indices`, which);
    return rewriter.op('Gather', [piece.source, index], axis);
  });
  const [first] = parts;
  if (first === undefined) return;
  if (direct !== undefined) rewriter.replace(output, direct);
  else
    replaceByNew(rewriter, output, parts.length === 1 ? first : rewriter.op('Concat', parts, axis));
  // users come before what they read
  for (const unused of unread) removeIfUnused(rewriter, unused);
  context.count('shorten');
}

/** Whether a piece is all of its source, in order. */
function isWhole(piece: Piece, isScalar: boolean): boolean {
  return (
    piece.kind === 'shape' &&
    !isScalar &&
    piece.indices.length === piece.source.elements?.length &&
    piece.indices.every((index, at) => index === at)
  );
}

/** The nodes a value of sizes is computed by, down to the Shape nodes. */
function coneOf(
  root: Node,
): { readonly nodes: ReadonlySet<Node>; readonly shapes: readonly Value[] } | undefined {
  const nodes = new Set<Node>();
  const shapes: Value[] = [];
  const open = [root];
  for (let node = open.pop(); node !== undefined; node = open.pop()) {
    if (nodes.has(node)) continue;
    nodes.add(node);
    if (nodes.size > MOST_NODES) return undefined;
    const [output] = node.outputs;
    if (node.op === 'Shape' && output?.elements !== undefined && output.dtype === 'i64') {
      shapes.push(output);
      continue;
    }
    for (const input of node.inputs)
      if (input?.producer !== undefined && input.elements !== undefined) open.push(input.producer);
  }
  return { nodes, shapes };
}

/** Runs of constants and of shape elements; undefined when an element is in no shape. */
function piecesFor(elements: readonly Dim[], shapes: readonly Value[]): Piece[] | undefined {
  // the shape that has most of the elements first, so that few shapes are used
  const ranked = shapes
    .map((source) => ({
      source,
      hits: elements.filter((dim) => typeof dim === 'string' && source.elements?.includes(dim))
        .length,
    }))
    .sort((a, b) => b.hits - a.hits);
  const pieces: Piece[] = [];
  for (const dim of elements) {
    const last = pieces.at(-1);
    if (typeof dim === 'number') {
      if (last?.kind === 'constant') last.sizes.push(dim);
      else pieces.push({ kind: 'constant', sizes: [dim] });
      continue;
    }
    const found = ranked.find(({ source }) => source.elements?.includes(dim));
    if (found === undefined) return undefined;
    const { source } = found;
    const places = (source.elements ?? []).flatMap((own, index) => (own === dim ? [index] : []));
    const previous =
      last?.kind === 'shape' && last.source === source ? last.indices.at(-1) : undefined;
    // with equal sizes in several places, keep the run going
    const index =
      places.find((place) => previous !== undefined && place === previous + 1) ?? places[0];
    if (index === undefined) return undefined;
    if (last?.kind === 'shape' && last.source === source) last.indices.push(index);
    else pieces.push({ kind: 'shape', source, indices: [index] });
  }
  return pieces;
}

/** The nodes that nothing would need any more if nothing read `value`. */
function deadNodes(value: Value, cone: ReadonlySet<Node>): Node[] {
  const dead = new Set<Node>();
  const isDead = (node: Node): boolean =>
    node.outputs.every(
      (output) =>
        output === undefined ||
        output === value ||
        (!output.isOutput && [...output.users.keys()].every((user) => dead.has(user))),
    );
  const open = value.producer === undefined ? [] : [value.producer];
  for (let node = open.pop(); node !== undefined; node = open.pop()) {
    if (dead.has(node) || !cone.has(node) || !isDead(node)) continue;
    dead.add(node);
    for (const input of node.inputs) if (input?.producer !== undefined) open.push(input.producer);
  }
  return [...dead];
}
