/**
 * Reads an attention outwards from its softmax: back to the product of queries and keys through scales,
 * masks, biases, a soft cap and sinks in any order, and on to the product with the values.
 *
 *     Softmax(Add(Mul(MatMul(q, k), 0.125), mask)) · v
 *
 * Source: https://arxiv.org/abs/1706.03762; soft cap https://arxiv.org/abs/2408.00118.
 */
import type { Node, Value } from '../ir/graph.ts';
import { integersOf, uniformValueOf } from '../passes/constants.ts';
import { isView } from '../passes/views.ts';
import type { Bookkeeping } from './bookkeeping.ts';

/** A mask that hides keys where a condition has a value. */
export interface Hiding {
  /** bool. */
  readonly condition: Value;
  /** Whether a key is hidden where the condition holds. */
  readonly when: boolean;
}

/** Something that is added to scores. */
export interface Bias {
  /** Broadcasts to [batch, heads, queries, keys]. */
  readonly value: Value;
  /** What it is multiplied by. */
  readonly factor: number;
}

/** An attention as its softmax sees it. */
export interface Scores {
  /** Product of queries and keys. */
  readonly product: Node;
  /** Product of probabilities and values. */
  readonly mix: Node;
  /** Keys are [.., D, T] behind a MatMul, [.., T, D] behind one that transposes. */
  readonly keysTransposed: boolean;
  /** Factor of the product. */
  readonly scale: number;
  /** 0 for none. */
  readonly softcap: number;
  /** Added to the scores. */
  readonly biases: readonly Bias[];
  /** Masks by condition. */
  readonly hidings: readonly Hiding[];
  /** Logit of a sink per head. */
  readonly sinks: Value | undefined;
  /** Everything between the products, both included. */
  readonly nodes: ReadonlySet<Node>;
}

/** Why no attention was read, and where. */
export interface Obstacle {
  /** As a sentence. */
  readonly why: string;
  /** Where. */
  readonly at: Node | Value;
}

/** What hides a key is below this; exporters write -1e4 up to -infinity. */
export const HIDDEN = -9999;

/** Reads the attention around a softmax; undefined when it is another softmax. */
export function readScores(softmax: Node, books: Bookkeeping): Scores | Obstacle | undefined {
  const mix = findMix(softmax);
  if (mix === undefined) return undefined;
  const walk = new Walk(books);
  const obstacle = walk.from(softmax.input(0));
  if (walk.product === undefined) return obstacle;
  if ((walk.sinks !== undefined) !== mix.dropsLast)
    return { why: 'a sink is not taken away behind the softmax', at: softmax };
  const transposed = walk.product.domain === '' || walk.product.int('transB', 0) === 0;
  return {
    product: walk.product,
    mix: mix.node,
    keysTransposed: transposed,
    scale: walk.softcap === 0 ? walk.scale : walk.scale * walk.softcap,
    softcap: walk.softcap,
    biases: walk.biases,
    hidings: walk.hidings,
    sinks: walk.sinks,
    nodes: new Set([...walk.nodes, softmax, ...mix.nodes, mix.node]),
  };
}

/** The product that probabilities go into. */
function findMix(
  softmax: Node,
):
  | { readonly node: Node; readonly nodes: readonly Node[]; readonly dropsLast: boolean }
  | undefined {
  const nodes: Node[] = [];
  let value = softmax.output(0);
  let dropsLast = false;
  for (let step = 0; step < 8; step++) {
    const users = [...value.users.keys()];
    const guard = users.length === 2 ? nanGuard(value, users) : undefined;
    const [user] = users;
    if (value.isOutput || user === undefined || (users.length > 1 && guard === undefined))
      return undefined;
    if (guard !== undefined) {
      nodes.push(...guard);
      value = (guard.at(-1) ?? user).output(0);
      continue;
    }
    if (isProduct(user) && user.input(0) === value)
      return user.domain === '' ||
        (user.int('transA', 0) === 0 && user.int('transB', 0) === 0 && user.float('alpha', 1) === 1)
        ? { node: user, nodes, dropsLast }
        : undefined;
    if (user.op === 'Slice' && dropsLastColumn(user)) dropsLast = true;
    else if (!isTransparent(user)) return undefined;
    nodes.push(user);
    value = user.output(0);
  }
  return undefined;
}

/** `Where(IsNaN(p), 0, p)`, with which exporters guard rows that are hidden whole. */
function nanGuard(value: Value, users: readonly Node[]): readonly Node[] | undefined {
  const test = users.find((user) => user.op === 'IsNaN');
  const choice = users.find((user) => user.op === 'Where');
  if (test === undefined || choice === undefined) return undefined;
  const [condition, zero, kept] = choice.inputs;
  return condition === test.output(0) && kept === value && uniformValueOf(zero) === 0
    ? [test, choice]
    : undefined;
}

function dropsLastColumn(node: Node): boolean {
  const [starts, stops, axes] = [1, 2, 3].map((index) => integersOf(node.inputs[index]));
  const rank = node.input(0).shape?.length ?? 0;
  return starts?.[0] === 0 && stops?.[0] === -1 && ((axes?.[0] ?? 0) + rank) % rank === rank - 1;
}

function isProduct(node: Node): boolean {
  return (
    (node.op === 'MatMul' && node.domain === '') ||
    (node.op === 'FusedMatMul' && node.domain === 'com.microsoft')
  );
}

function isTransparent(node: Node): boolean {
  return node.domain === '' && (['Cast', 'Identity', 'Dropout'].includes(node.op) || isView(node));
}

/** Whether a node only writes the same numbers in another shape. */
function repeats(node: Node | undefined): boolean {
  return node?.op === 'Expand' || isView(node);
}

/** The walk from the softmax back to the product. */
class Walk {
  readonly biases: Bias[] = [];
  readonly hidings: Hiding[] = [];
  readonly nodes: Node[] = [];
  product: Node | undefined;
  sinks: Value | undefined;
  scale = 1;
  softcap = 0;
  private readonly books: Bookkeeping;

  constructor(books: Bookkeeping) {
    this.books = books;
  }

  /** Follows a value; the obstacle that ended the walk, or undefined when it reached the product. */
  from(start: Value): Obstacle {
    let value = start;
    for (let step = 0; step < 40; step++) {
      const node = value.producer;
      if (node === undefined) return { why: 'the scores are an input of the graph', at: value };
      this.nodes.push(node);
      if (isProduct(node)) return this.end(node);
      const next = this.through(node);
      if (!('users' in next)) return next;
      value = next;
    }
    return { why: 'the scores are computed in too many steps', at: value };
  }

  private end(node: Node): Obstacle {
    const [q, k] = [node.input(0), node.input(1)];
    if (
      q.weight !== undefined ||
      k.weight !== undefined ||
      (node.domain !== '' && node.int('transA', 0) !== 0)
    )
      return { why: 'the scores are no product of queries and keys', at: node };
    this.product = node;
    this.scale *= node.domain === '' ? 1 : node.float('alpha', 1);
    return { why: '', at: node };
  }

  private through(node: Node): Value | Obstacle {
    const [a, b, c] = node.inputs;
    const stuck = (why: string): Obstacle => ({ why, at: node });
    if (a === undefined || node.domain !== '') return stuck(`its scores go through ${node.op}`);
    if (isTransparent(node)) return a;
    switch (node.op) {
      case 'Mul':
      case 'Div':
        return this.scaled(node, a, b) ?? stuck('its scores are multiplied by no constant');
      case 'Tanh':
        if (this.softcap !== 0 || (this.biases.length + this.hidings.length > 0 && this.scale <= 0))
          return stuck('its scores go through a second tanh');
        this.softcap = this.scale;
        this.scale = 1;
        return a;
      case 'Add':
        if (b === undefined) return stuck('it adds nothing');
        return this.added(a, b) ?? stuck('neither term of its sum is known to be the mask');
      case 'Max':
        if (b !== undefined && (uniformValueOf(b) ?? 0) < HIDDEN) return a;
        return stuck('its scores go through Max');
      case 'Where':
        return (
          (b === undefined || c === undefined ? undefined : this.chosen(a, b, c)) ??
          stuck('its mask is no condition')
        );
      case 'Sub':
        return this.shifted(a, b) ?? stuck('something is subtracted from its scores');
      case 'Concat':
        return this.withSink(node) ?? stuck('its scores are joined to something that is no sink');
      default:
        return stuck(`its scores go through ${node.op}`);
    }
  }

  private scaled(node: Node, a: Value, b: Value | undefined): Value | undefined {
    const right = uniformValueOf(b);
    if (right !== undefined) {
      this.scale = node.op === 'Mul' ? this.scale * right : this.scale / right;
      return a;
    }
    const left = node.op === 'Mul' ? uniformValueOf(a) : undefined;
    if (left === undefined) return undefined;
    this.scale *= left;
    return b;
  }

  private added(a: Value, b: Value): Value | undefined {
    const [bookA, bookB] = [this.isBias(a), this.isBias(b)];
    // a mask below the soft cap would hide nothing
    if (bookA === bookB || this.softcap !== 0 || this.scale <= 0) return undefined;
    this.biases.push({ value: bookA ? a : b, factor: this.scale });
    return bookA ? b : a;
  }

  /** A term that is not computed from this attention's queries and keys. */
  private isBias(value: Value): boolean {
    if (this.books.has(value)) return true;
    return !this.leadsToProduct(value);
  }

  private leadsToProduct(value: Value): boolean {
    let current: Value | undefined = value;
    for (let step = 0; step < 24 && current !== undefined; step++) {
      const node: Node | undefined = current.producer;
      if (node === undefined) return false;
      if (isProduct(node)) return node.inputs.every((input) => input?.weight === undefined);
      if (
        !['Mul', 'Div', 'Add', 'Sub', 'Where', 'Tanh', 'Max', 'Concat'].includes(node.op) &&
        !isTransparent(node)
      )
        return false;
      current = node.inputs.find((input) => input !== undefined && !this.books.has(input));
    }
    return false;
  }

  private chosen(condition: Value, yes: Value, no: Value): Value | undefined {
    if (!this.books.has(condition) || this.softcap !== 0) return undefined;
    const [whenYes, whenNo] = [uniformValueOf(yes), uniformValueOf(no)];
    if (whenNo !== undefined && whenNo < HIDDEN) {
      this.hidings.push({ condition, when: false });
      return yes;
    }
    if (whenYes === undefined || whenYes >= HIDDEN) return undefined;
    this.hidings.push({ condition, when: true });
    return no;
  }

  /** `x - ReduceMax(x)`, which a softmax does anyway. */
  private shifted(a: Value, b: Value | undefined): Value | undefined {
    const largest = b?.producer;
    if (largest?.op !== 'ReduceMax' || largest.inputs[0] !== a) return undefined;
    this.nodes.push(largest);
    return a;
  }

  private withSink(node: Node): Value | undefined {
    const [scores, sink, ...more] = node.inputs;
    const rank = node.output(0).shape?.length ?? 0;
    if (scores === undefined || sink === undefined || more.length > 0 || rank === 0)
      return undefined;
    if ((node.int('axis', 0) + rank) % rank !== rank - 1 || !this.books.has(sink)) return undefined;
    let source = sink;
    while (repeats(source.producer)) source = source.producer?.inputs[0] ?? sink;
    if (source.weight === undefined) return undefined;
    this.sinks = source;
    return scores;
  }
}
