/**
 * Rows of tokens around a fused attention: what brings queries, keys and values from where a projection
 * leaves them to [batch, tokens, heads * width], and what brings its result back to heads apart.
 *
 *     Slice(Reshape(Linear(x, w)))     ->   Linear(x, the columns of w that the heads read)
 *
 * Heads that lie between others (q, k and v of one head beside each other, as GPT-NeoX and BLOOM pack
 * them) are read from columns of the weights that are put in order once, when nothing else reads the
 * product; otherwise they are sliced.
 */
import type { Bookkeeping } from '../analyze/bookkeeping.ts';
import type { HeadMap, SourceOrder } from '../analyze/head-map.ts';
import { isInOrder } from '../analyze/head-map.ts';
import { int, ints } from '../ir/attribute.ts';
import type { Dim } from '../ir/dim.ts';
import { divideDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { isLinear } from '../ops/fused-linear.ts';
import { int64s } from '../ops/numbers.ts';
import { internalDomain } from '../ops/quantized.ts';
import type { PassContext } from './pass.ts';
import { isView } from './views.ts';
import { pickedColumns } from './weight-columns.ts';

/** Where an attention's result goes, and the sizes of [batch, heads, tokens, width] there. */
export interface ResultPlace {
  /** What is replaced. */
  readonly output: Value;
  /** Sizes to reshape to; empty when they are those. */
  readonly target: readonly number[];
  /** Views between the attention and the output. */
  readonly nodes: readonly Node[];
}

/** Writes rows. */
export class AttentionRows {
  private readonly books: Bookkeeping;
  private readonly context: PassContext;

  constructor(books: Bookkeeping, context: PassContext) {
    this.books = books;
    this.context = context;
  }

  /** The first place behind an attention whose shape one constant can name. */
  placeOf(result: Value, { heads, width }: HeadMap): ResultPlace | undefined {
    const nodes: Node[] = [];
    let output = result;
    for (;;) {
      const { shape } = output;
      if (shape?.length === 4 && shape[1] === heads && shape[3] === width)
        return { output, target: [], nodes };
      const user: Node | undefined = output.onlyUser;
      if (!isView(user) || user.input(0) !== output) break;
      nodes.push(user);
      output = user.output(0);
    }
    const target = this.targetOf(result.shape);
    return target && { output: result, target, nodes: [] };
  }

  /** Sizes of a result that are known, 0 for the batch, and at most one open. */
  private targetOf(shape: readonly Dim[] | undefined): readonly number[] | undefined {
    if (shape === undefined || shape.length < 3) return undefined;
    let open = 0;
    const target = shape.map((dim, axis) => {
      if (typeof dim === 'number') return dim;
      if (axis === 0 && dim === this.books.batch) return 0;
      open++;
      return -1;
    });
    return open <= 1 ? target : undefined;
  }

  /** Rows of tokens as heads apart, in the shape that the rest of the graph reads. */
  apart(rows: Value, { heads, width }: HeadMap, target: readonly number[]): Value {
    const { rewriter } = this.context;
    const split = rewriter.op('Reshape', [rows, this.shape(rows, [0, 0, heads, width])]);
    const turned = rewriter.op('Transpose', [split], { perm: ints([0, 2, 1, 3]) });
    if (target.length === 0) return turned;
    return rewriter.op('Reshape', [turned, this.shape(rows, target)]);
  }

  private shape(value: Value, sizes: readonly number[]): Value {
    return this.context.rewriter.constant(`${value.name}_shape`, int64s(sizes));
  }

  /** Whether one constant can name the shape of {@link of}. */
  canMake({ source, order }: HeadMap): boolean {
    const rank = source.shape?.length;
    if (order === 'bhsd') return rank === 4;
    return rank !== 2 || this.outerSizes(source, order).filter((size) => size === -1).length < 2;
  }

  /**
   * Heads as [batch, tokens, heads * width].
   *
   * @param inside - nodes that the attention replaces, its last one included
   */
  of(map: HeadMap, inside: ReadonlySet<Node>): Value {
    const { rewriter } = this.context;
    const { order, places, columns, heads, width } = map;
    const ordered = isInOrder(map);
    const picked = ordered ? undefined : this.picked(map, inside);
    const source = picked ?? map.source;
    const wide = picked === undefined ? columns : heads * width;
    const constant = (what: string, values: readonly number[]): Value =>
      rewriter.constant(`${source.name}_${what}`, int64s(values));
    if (order === 'bhsd') {
      const turned = rewriter.op('Transpose', [source], { perm: ints([0, 2, 1, 3]) });
      return rewriter.op('Reshape', [turned, constant('rows', [0, 0, heads * width])]);
    }
    let rows = source;
    if (source.shape?.length !== 3 || source.shape[2] !== wide) {
      const outer = source.shape?.length === 2 ? this.outerSizes(source, order) : [0, -1];
      rows = rewriter.op('Reshape', [source, constant('rows', [...outer, wide])]);
    }
    if (order === 'sbc') rows = rewriter.op('Transpose', [rows], { perm: ints([1, 0, 2]) });
    if (picked !== undefined) return rows;
    const [first = 0] = places;
    if (!ordered) {
      const stride = strideOf(map);
      if (stride === undefined)
        return rewriter.op('Gather', [rows, constant('columns', places)], { axis: int(2) });
      const split = rewriter.op('Reshape', [
        rows,
        constant('groups', [0, 0, columns / stride, stride]),
      ]);
      const part = this.sliced(split, first, width, 3);
      return rewriter.op('Reshape', [part, constant('rows', [0, 0, heads * width])]);
    }
    return first === 0 && columns === heads * width
      ? rows
      : this.sliced(rows, first, heads * width, 2);
  }

  /** A product with the columns that the heads read, in their order; undefined when it cannot be had. */
  private picked(map: HeadMap, inside: ReadonlySet<Node>): Value | undefined {
    const { source, places, columns } = map;
    const product = source.producer;
    if (!isLinear(product) || activationNameOf(product) !== 'none') return undefined;
    const [x, w, bias, residual] = product.inputs;
    if (x === undefined || residual !== undefined || source.shape?.at(-1) !== columns)
      return undefined;
    if (w?.weight?.dtype !== 'f32' || (bias !== undefined && bias.weight?.dtype !== 'f32'))
      return undefined;
    // what is read elsewhere is computed anyway
    if (!staysInside(source, inside)) return undefined;
    const { rewriter } = this.context;
    const axis = product.int('transposed', 0) === 1 ? 0 : 1;
    const inputs = [x, rewriter.constant(`${w.name}_heads`, pickedColumns(w.weight, axis, places))];
    if (bias?.weight !== undefined)
      inputs.push(rewriter.constant(`${bias.name}_heads`, pickedColumns(bias.weight, 0, places)));
    return rewriter.op('Linear', inputs, Object.fromEntries(product.attributes), {
      domain: internalDomain,
      name: product.name,
      from: product.from,
    });
  }

  /** Sizes of the leading axes of a source whose rows are flattened; -1 for open ones. */
  private outerSizes(source: Value, order: SourceOrder): readonly number[] {
    const { batch } = this.books;
    const tokens = divideDims(source.shape?.[0] ?? 1, batch);
    const [b, t] = [batch, tokens].map((size) => (typeof size === 'number' ? size : -1));
    return order === 'sbc' ? [t ?? -1, b ?? -1] : [b ?? -1, t ?? -1];
  }

  private sliced(x: Value, from: number, count: number, axis: number): Value {
    const { rewriter } = this.context;
    const constant = (what: string, value: number): Value =>
      rewriter.constant(`${x.name}_${what}`, int64s([value]));
    return rewriter.op('Slice', [
      x,
      constant('start', from),
      constant('end', from + count),
      constant('axis', axis),
    ]);
  }
}

/** Whether everything that a value leads to is among some nodes, of which only the last leads on. */
function staysInside(value: Value, inside: ReadonlySet<Node>): boolean {
  const seen = new Set<Value>([value]);
  for (const one of seen) {
    if (one.isOutput) return false;
    for (const user of one.users.keys()) {
      if (!inside.has(user)) return false;
      const leadsOn = user.outputs.some((output) =>
        [...(output?.users.keys() ?? [])].some((next) => inside.has(next)),
      );
      for (const output of leadsOn ? user.outputs : []) if (output !== undefined) seen.add(output);
    }
  }
  return true;
}

/** Columns from one head to the next, where that is the same for all and divides a row; else undefined. */
function strideOf({ places, columns, heads, width }: HeadMap): number | undefined {
  const [first = 0] = places;
  const stride = heads === 1 ? columns : (places[width] ?? 0) - first;
  const isUniform = places.every(
    (place, index) => place === first + Math.floor(index / width) * stride + (index % width),
  );
  // heads behind each other are as many as a row has places for
  return isUniform && stride > 0 && first + width <= stride && heads * stride === columns
    ? stride
    : undefined;
}
