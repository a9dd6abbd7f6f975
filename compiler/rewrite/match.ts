/**
 * The matcher: backtracking over alternatives and exchangeable inputs, by continuations, so that a
 * later failure tries the next way round. It changes nothing.
 *
 * While it works it can keep a trail of the furthest it got and what stopped it there, which answers
 * "why does my rule not fire on this node?".
 */
import { halfToFloat } from '../../runtime/half.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Bindings, ConstantValue, OpShape, Pattern, Shape } from './pattern.ts';
import { scalarValue } from './pattern.ts';

/** A successful match. */
export interface Match<B extends Bindings> {
  /** Captures by name. */
  readonly bindings: B;
  /** Nodes of the match, the root first; those used elsewhere too (`uses: 'any'`) are not in it. */
  readonly nodes: readonly Node[];
}

/** The furthest a failed match got. */
export interface Mismatch {
  /** Nodes that had matched by then. */
  readonly depth: number;
  /** Where it stopped: a node or value name. */
  readonly at: string;
  /** What was seen there and what was wanted. */
  readonly why: string;
}

/**
 * Matches a pattern whose root is an operation.
 *
 * @param onMismatch - told about every dead end, for the trail
 * @returns undefined when it does not match
 */
export function match<B extends Bindings>(
  pattern: Pattern<B>,
  root: Node,
  onMismatch?: (mismatch: Mismatch) => void,
): Match<B> | undefined {
  const matcher = new Matcher(root, onMismatch);
  return matcher.start(pattern.shape) ? (matcher.result() as Match<B>) : undefined;
}

/** Op types a pattern's root can have. */
export function rootOps(shape: Shape): readonly string[] {
  if (shape.kind === 'op') return shape.ops;
  return shape.kind === 'oneOf' ? shape.alternatives.flatMap(rootOps) : [];
}

type Continue = () => boolean;

class Matcher {
  private readonly root: Node;
  private readonly onMismatch: ((mismatch: Mismatch) => void) | undefined;
  private readonly captures = new Map<string, Value | Node>();
  /** Matched operations in order; `owned` ones have no use outside the match. */
  private readonly visited: { readonly node: Node; readonly owned: boolean }[] = [];

  constructor(root: Node, onMismatch: ((mismatch: Mismatch) => void) | undefined) {
    this.root = root;
    this.onMismatch = onMismatch;
  }

  start(shape: Shape): boolean {
    if (shape.kind === 'oneOf')
      return shape.alternatives.some((alternative) => this.start(alternative));
    return shape.kind === 'op' && this.operation(shape, this.root, () => this.usesAreInside());
  }

  result(): Match<Bindings> {
    const nodes = this.visited.filter(({ owned }) => owned).map(({ node }) => node);
    return { bindings: Object.fromEntries(this.captures), nodes: [...new Set(nodes)] };
  }

  private value(shape: Shape | null, value: Value | undefined, next: Continue): boolean {
    if (shape === null) return value === undefined ? next() : this.stop(value, 'an absent input');
    if (shape.kind === 'any') return next();
    if (shape.kind === 'oneOf')
      return shape.alternatives.some((alternative) => this.value(alternative, value, next));
    if (value === undefined) return this.stop(undefined, describe(shape));
    if (shape.kind === 'op') {
      const { producer } = value;
      if (producer === undefined || producer.graph !== this.root.graph)
        return this.stop(value, describe(shape));
      if (producer.outputs[shape.output] !== value)
        return this.stop(value, `output ${shape.output} of ${describe(shape)}`);
      return this.operation(shape, producer, next);
    }
    if (shape.kind === 'value') {
      if (shape.test?.(value) === false)
        return this.stop(value, shape.wanted ?? `"${shape.name}" as tested`);
      return this.capture(shape.name, value, next);
    }
    if (!isConstant(value)) return this.stop(value, describe(shape));
    if (shape.kind === 'constant') {
      if (shape.test?.(value) === false) return this.stop(value, `"${shape.name}" as tested`);
      return this.capture(shape.name, value, next);
    }
    const number = scalarOfValue(value);
    if (number === undefined || !shape.test(number))
      return this.stop(value, describe(shape), number);
    return shape.name === undefined ? next() : this.capture(shape.name, value, next);
  }

  private operation(shape: OpShape, node: Node, next: Continue): boolean {
    if (!shape.ops.includes(node.op)) return this.stop(node, describe(shape));
    if (shape.domain !== undefined && shape.domain !== node.domain)
      return this.stop(node, `domain "${shape.domain}"`);
    for (const [name, test] of Object.entries(shape.attributes)) {
      const holds =
        typeof test === 'function'
          ? test(node)
          : typeof test === 'number'
            ? (node.int(name) ?? node.float(name)) === test
            : node.string(name) === test;
      if (!holds)
        return this.stop(
          node,
          `attribute ${name}${typeof test === 'function' ? ' as tested' : ` = ${test}`}`,
        );
    }
    const { inputs } = node;
    if (!shape.moreInputs && inputs.slice(shape.inputs.length).some((input) => input !== undefined))
      return this.stop(node, `${shape.inputs.length} inputs`);
    const owned = !shape.anyUses || node === this.root;
    this.visited.push({ node, owned });
    const named = (then: Continue): boolean =>
      shape.name === undefined ? then() : this.capture(shape.name, node, then);
    const inOrder = (order: readonly (Value | undefined)[]): boolean => {
      const from = (index: number): boolean =>
        index === shape.inputs.length
          ? next()
          : this.value(shape.inputs[index] ?? null, order[index], () => from(index + 1));
      return from(0);
    };
    const found = named(
      () =>
        inOrder(inputs) ||
        (shape.commutes &&
          inputs.length >= 2 &&
          inputs[0] !== inputs[1] &&
          inOrder([inputs[1], inputs[0], ...inputs.slice(2)])),
    );
    if (!found) this.visited.pop();
    return found;
  }

  private capture(name: string, seen: Value | Node, next: Continue): boolean {
    const known = this.captures.get(name);
    if (known !== undefined)
      return known === seen || sameConstant(known, seen)
        ? next()
        : this.stop(seen, `the same "${name}" as before`);
    this.captures.set(name, seen);
    if (next()) return true;
    this.captures.delete(name);
    return false;
  }

  /** Interior values must not be needed by anybody once the match is replaced. */
  private usesAreInside(): boolean {
    const inside = new Set(this.visited.map(({ node }) => node));
    for (const { node, owned } of this.visited) {
      if (!owned || node === this.root) continue;
      for (const output of node.outputs) {
        if (output === undefined) continue;
        if (output.isOutput) return this.stop(output, 'an interior value, not a graph output');
        for (const user of output.users.keys())
          if (!inside.has(user))
            return this.stop(output, `no use outside the match (${user.describe()})`);
      }
    }
    return true;
  }

  private stop(place: Value | Node | undefined, wanted: string, saw?: number): false {
    if (this.onMismatch === undefined) return false;
    const isNode = place !== undefined && 'op' in place;
    const seen =
      saw !== undefined
        ? String(saw)
        : place === undefined
          ? 'an absent input'
          : isNode
            ? place.describe()
            : isConstant(place)
              ? `constant ${place.dtype} [${place.shape}]`
              : (place.producer?.describe() ?? 'a graph input');
    this.onMismatch({
      depth: this.visited.length,
      at: place?.name ?? '',
      why: `wanted ${wanted}, saw ${seen}`,
    });
    return false;
  }
}

function isConstant(value: Value): value is ConstantValue {
  return value.weight !== undefined;
}

/** Exporters write the same small constant again and again; equal scalars count as the same capture. */
function sameConstant(a: Value | Node, b: Value | Node): boolean {
  if ('op' in a || 'op' in b || !isConstant(a) || !isConstant(b)) return false;
  const left = scalarOfValue(a);
  return left !== undefined && left === scalarOfValue(b) && a.dtype === b.dtype;
}

function scalarOfValue(value: ConstantValue): number | undefined {
  if (value.weight.byteLength > 16) return undefined;
  const tensor = value.weight.tensor();
  if (tensor.dtype === 'f16' && tensor.data.length === 1)
    return halfToFloat(Number(tensor.data[0]));
  return scalarValue(tensor);
}

function describe(shape: Shape): string {
  if (shape.kind === 'op') return shape.ops.join(' or ');
  if (shape.kind === 'constant') return `a constant "${shape.name}"`;
  if (shape.kind === 'scalar') return shape.wanted;
  return shape.kind === 'oneOf' ? shape.alternatives.map(describe).join(' or ') : 'a value';
}
