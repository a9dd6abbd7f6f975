/**
 * Writes an Einsum of two operands as a matrix product, which every later pass and engine knows.
 *
 *     Einsum(q, k) "bqhd,bkhd->bhqk"     ->   MatMul(Transpose(q), Transpose(k))
 *     Einsum(x, w) "bsc,chd->bshd"       ->   Reshape(MatMul(x, Reshape(w)))
 *     Einsum(x) "bshd->bhsd"             ->   Transpose(x)
 *
 * Labels are sorted into those of both operands that stay (batch), that are summed (inner), and those of
 * one operand (rows, columns). Several rows or columns become batch axes of size 1 on the other side, so
 * that no size has to be known; a constant operand is turned into one matrix instead. Refuses diagonals,
 * sums over a label of one operand, labels of two sizes and more than two operands.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__Einsum.html.
 */
import { ints } from '../ir/attribute.ts';
import type { Dim } from '../ir/dim.ts';
import { isStatic, multiplyDims, sameShape } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { parseEquation } from '../ops/einsum.ts';
import { int64s } from '../ops/numbers.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused, replaceByNew } from './replace.ts';
import { reshapeTarget } from './views.ts';

/** Makes the pass. It has no options. */
export function expandEinsum(): Pass {
  return {
    name: 'expand-einsum',
    options: {},
    rules: [
      { name: 'transpose', starts: ['Einsum'] },
      { name: 'product', starts: ['Einsum'] },
    ],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes())
        if (node.op === 'Einsum' && node.domain === '') visit(node, context);
      return context.rewriter.changes > before;
    },
  };
}

/** An operand whose axes are labelled. */
interface Labelled {
  readonly value: Value;
  readonly labels: readonly string[];
}

function visit(node: Node, context: PassContext): void {
  const operands = node.inputs.filter((input) => input !== undefined);
  const shapes = operands.flatMap(({ shape }) => (shape === undefined ? [] : [shape]));
  if (shapes.length < operands.length) {
    context.refuse('product', node, 'the rank of an operand is not known');
    return;
  }
  const { terms, output } = parseEquation(
    { node },
    shapes.map((shape) => shape.length),
  );
  const all = operands.map((value, i): Labelled => ({ value, labels: terms[i] ?? [] }));
  const [left, right] = all;
  const rule = right === undefined ? 'transpose' : 'product';
  const why = obstacle(all, output);
  if (why !== undefined || left === undefined) {
    context.refuse(rule, node, why ?? 'it has no operand');
    return;
  }
  context.rewriter.before(node);
  const made =
    right === undefined
      ? new Expansion(node, context).turned(left, output)
      : new Expansion(node, context).product(left, right, output);
  if (made === undefined) {
    context.refuse(rule, node, 'sizes that only a run knows would have to be multiplied');
    return;
  }
  replaceByNew(context.rewriter, node.output(0), made);
  removeIfUnused(context.rewriter, node);
  context.count(rule);
}

/** Why no product says the same. */
function obstacle(operands: readonly Labelled[], output: readonly string[]): string | undefined {
  if (operands.length > 2) return `it has ${operands.length} operands`;
  const sizes = new Map<string, Dim>();
  for (const { value, labels } of operands) {
    if (new Set(labels).size < labels.length) return 'it takes a diagonal';
    for (const [axis, label] of labels.entries()) {
      const size = value.shape?.[axis] ?? 1;
      const seen = sizes.get(label);
      // an ellipsis broadcasts, a label must not
      if (seen !== undefined && seen !== size)
        return `"${label}" has the sizes ${seen} and ${size}`;
      sizes.set(label, size);
      const others = operands.filter((other) => other.labels.includes(label)).length;
      if (others === 1 && !output.includes(label)) return `it sums over "${label}" of one operand`;
    }
  }
  return undefined;
}

class Expansion {
  private readonly node: Node;
  private readonly context: PassContext;

  constructor(node: Node, context: PassContext) {
    this.node = node;
    this.context = context;
  }

  /** An operand with its axes in another order. */
  turned({ value, labels }: Labelled, order: readonly string[]): Value {
    const perm = order.map((label) => labels.indexOf(label));
    return perm.every((from, to) => from === to)
      ? value
      : this.context.rewriter.op('Transpose', [value], { perm: ints(perm) });
  }

  product(left: Labelled, right: Labelled, output: readonly string[]): Value | undefined {
    const choices = [left.labels, right.labels, output].flatMap((order) => [
      groupsOf(left, right, output, order),
      groupsOf(right, left, output, order),
    ]);
    // the choice with the fewest transposes, the smaller ones first
    const [best] = choices.toSorted((a, b) => a.cost - b.cost);
    if (best === undefined) return undefined;
    const { inner, rows, columns, batch } = best;
    if (inner.length === 0 && rows.length + columns.length === 0)
      return this.op('Mul', [this.turned(left, output), this.turned(right, output)]);
    if (batch.length === 0 && right.value.weight !== undefined)
      return this.byMatrix(left, right, groupsOf(left, right, output, left.labels));
    if (batch.length === 0 && left.value.weight !== undefined)
      return this.byMatrix(right, left, groupsOf(right, left, output, right.labels));
    return this.byBatches(best);
  }

  /** x · W, where W is a constant matrix. */
  private byMatrix(x: Labelled, w: Labelled, groups: Groups): Value | undefined {
    const { rows, inner, output } = groups;
    // of the constant, whose order costs nothing, the one that is wanted
    const columns = output.filter((label) => groups.columns.includes(label));
    const sizeOf = ({ value, labels }: Labelled, of: readonly string[]): Dim[] =>
      of.map((label) => value.shape?.[labels.indexOf(label)] ?? 1);
    const outer = sizeOf(x, rows);
    const depth = multiplyDims(...sizeOf(w, inner));
    const matrix = this.reshaped(this.turned(w, [...inner, ...columns]), [
      depth,
      multiplyDims(...sizeOf(w, columns)),
    ]);
    const flat = this.reshaped(this.turned(x, [...rows, ...inner]), [...outer, depth]);
    if (matrix === undefined || flat === undefined) return undefined;
    const apart = this.reshaped(this.op('MatMul', [flat, matrix]), [
      ...outer,
      ...sizeOf(w, columns),
    ]);
    return apart && this.turned({ value: apart, labels: [...rows, ...columns] }, output);
  }

  /** Batched products; all rows and columns but the last are axes of size 1 on the other side. */
  private byBatches(groups: Groups): Value | undefined {
    const { left, right, rows, columns, inner, output, lead } = groups;
    const [row, column] = [rows.at(-1), columns.at(-1)];
    const a = this.operand(left, [...lead, row ?? ABSENT], inner, []);
    const b = this.operand(right, lead, inner, [column ?? ABSENT]);
    if (a === undefined || b === undefined) return undefined;
    const absent = [row, column].flatMap((label, i) =>
      label === undefined ? [lead.length + i] : [],
    );
    const product = this.op('MatMul', [a, b]);
    const value = absent.length === 0 ? product : this.moved('Squeeze', product, absent);
    const labels = [...lead, row, column].filter((label) => label !== undefined);
    return this.turned({ value, labels }, output);
  }

  /** An operand as [before…, inner, after…], the inner axes joined, with size 1 for what it lacks. */
  private operand(
    { value, labels }: Labelled,
    before: readonly string[],
    inner: readonly string[],
    after: readonly string[],
  ): Value | undefined {
    const order = [...before, ...(inner.length === 0 ? [ABSENT] : inner), ...after];
    const missing = order.flatMap((label, axis) => (labels.includes(label) ? [] : [axis]));
    const turned = this.turned(
      { value, labels },
      order.filter((label) => labels.includes(label)),
    );
    const whole = missing.length === 0 ? turned : this.moved('Unsqueeze', turned, missing);
    if (inner.length < 2) return whole;
    const { shape = [] } = whole;
    const from = before.length;
    return this.reshaped(whole, [
      ...shape.slice(0, from),
      multiplyDims(...shape.slice(from, from + inner.length)),
      ...shape.slice(from + inner.length),
    ]);
  }

  private reshaped(value: Value, wanted: readonly Dim[]): Value | undefined {
    const { shape = [] } = value;
    if (sameShape(shape, wanted)) return value;
    const target = isStatic(wanted) ? wanted : reshapeTarget(shape, wanted);
    return target && this.op('Reshape', [value, this.constant('shape', target)]);
  }

  /** Adds or takes away axes of size 1. */
  private moved(op: 'Squeeze' | 'Unsqueeze', value: Value, axes: readonly number[]): Value {
    const { rewriter } = this.context;
    return rewriter.model.opset < 13
      ? rewriter.op(op, [value], { axes: ints(axes) })
      : this.op(op, [value, this.constant('axes', axes)]);
  }

  private op(name: string, inputs: readonly Value[]): Value {
    return this.context.rewriter.op(name, inputs);
  }

  private constant(what: string, values: readonly number[]): Value {
    const name = `${this.node.output(0).name}_${what}`;
    return this.context.rewriter.constant(name, int64s(values));
  }
}

/** Stands for an axis that an operand lacks. */
const ABSENT = '';

interface Groups {
  readonly left: Labelled;
  readonly right: Labelled;
  /** Labels of the left operand alone. */
  readonly rows: readonly string[];
  /** Labels of the right operand alone. */
  readonly columns: readonly string[];
  /** Labels that are summed over. */
  readonly inner: readonly string[];
  /** Labels of both that stay. */
  readonly batch: readonly string[];
  readonly output: readonly string[];
  /** Axes in front of the matrices. */
  readonly lead: readonly string[];
  /** How much is transposed. */
  readonly cost: number;
}

/** Sorts labels, in a given order as far as it has them. */
function groupsOf(
  left: Labelled,
  right: Labelled,
  output: readonly string[],
  order: readonly string[],
): Groups {
  const ordered = (labels: readonly string[]): readonly string[] => {
    const first = order.filter((label) => labels.includes(label));
    return [...first, ...labels.filter((label) => !first.includes(label))];
  };
  const shared = left.labels.filter((label) => right.labels.includes(label));
  const inner = shared.filter((label) => !output.includes(label));
  const batch = ordered(shared.filter((label) => output.includes(label)));
  const rows = ordered(left.labels.filter((label) => !shared.includes(label)));
  const columns = ordered(right.labels.filter((label) => !shared.includes(label)));
  const lead = [...batch, ...rows.slice(0, -1), ...columns.slice(0, -1)];
  const [row, column] = [rows.slice(-1), columns.slice(-1)];
  const own = (labels: readonly string[], all: readonly string[]): readonly string[] =>
    all.filter((label) => labels.includes(label));
  const same = (a: readonly string[], b: readonly string[]): boolean => a.join(' ') === b.join(' ');
  // the last two axes may trade places in a product's operand, other moves copy more
  const cost =
    (same(own(left.labels, [...lead, ...row, ...inner]), left.labels) ? 0 : 2) +
    (same(own(right.labels, [...lead, ...inner, ...column]), right.labels)
      ? 0
      : same(own(right.labels, [...lead, ...column, ...inner]), right.labels)
        ? 1
        : 2) +
    (same([...lead, ...row, ...column], output) ? 0 : 3);
  return { left, right, rows, columns, inner, batch, output, lead, cost };
}
