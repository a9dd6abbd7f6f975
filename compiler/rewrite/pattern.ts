/**
 * Subgraph patterns that read like the graph they match:
 *
 *   op('Add', [op('MatMul', [value('x'), constant('w')]).as('matmul'), constant('b')])
 *
 * A pattern is data; `match.ts` interprets it. Captures are typed: what `build` receives has exactly
 * the names the pattern gives, so a misspelt one does not compile. A name used twice must meet the
 * same value both times. Interior nodes must have no use outside the match, unless the pattern says
 * `uses: 'any'`, and are never graph outputs.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Weight } from '../ir/weight.ts';

/** A captured constant: a value that certainly has a weight. */
export type ConstantValue = Value & { readonly weight: Weight };

/** Captures by name. */
export type Bindings = Readonly<Record<string, Value | Node | undefined>>;

/** What a capture with no name adds. */
export type NoBindings = Readonly<Record<never, never>>;

/** @internal What the matcher interprets. */
export type Shape =
  | { readonly kind: 'any' }
  | {
      readonly kind: 'value';
      readonly name: string;
      readonly test: ((value: Value) => boolean) | undefined;
      /** What the test wants, in words. */
      readonly wanted: string | undefined;
    }
  | {
      readonly kind: 'constant';
      readonly name: string;
      readonly test: ((value: ConstantValue) => boolean) | undefined;
    }
  | {
      readonly kind: 'scalar';
      readonly wanted: string;
      readonly test: (value: number) => boolean;
      readonly name: string | undefined;
    }
  | { readonly kind: 'oneOf'; readonly alternatives: readonly Shape[] }
  | OpShape;

/** @internal An operation and its inputs. */
export interface OpShape {
  readonly kind: 'op';
  readonly ops: readonly string[];
  readonly domain: string | undefined;
  readonly inputs: readonly (Shape | null)[];
  readonly attributes: Readonly<Record<string, AttributeTest>>;
  readonly commutes: boolean;
  readonly anyUses: boolean;
  readonly moreInputs: boolean;
  readonly output: number;
  readonly name: string | undefined;
}

/** Tests an attribute: an exact number or string, or a predicate over what is there. */
export type AttributeTest = number | string | ((node: Node) => boolean);

/** A pattern that binds `B` when it matches. */
export class Pattern<B extends Bindings> {
  /** @internal */
  readonly shape: Shape;
  /** Only for the type checker. @internal */
  declare readonly bindings: B;

  constructor(shape: Shape) {
    this.shape = shape;
  }

  /**
   * Captures the operation itself under a name.
   *
   * @param name - unique in the pattern
   */
  as<const N extends string>(name: N): Pattern<B & { readonly [K in N]: Node }> {
    if (this.shape.kind !== 'op') throw new TypeError(`as("${name}"): only op() can be captured.`);
    return new Pattern({ ...this.shape, name });
  }
}

type AnyPattern = Pattern<Bindings>;
type BindingsOf<P> = P extends Pattern<infer B> ? B : NoBindings;
type Merge<Ps extends readonly unknown[]> = Ps extends readonly [infer P, ...infer Rest]
  ? BindingsOf<P> & Merge<Rest>
  : NoBindings;
type PartialUnion<Ps extends readonly unknown[]> = Ps extends readonly [infer P, ...infer Rest]
  ? Partial<BindingsOf<P>> & PartialUnion<Rest>
  : NoBindings;

/** Ops whose two inputs may change places. */
const commutative = new Set(['Add', 'Mul', 'Min', 'Max', 'And', 'Or', 'Xor', 'Equal', 'Sum']);

/** Options of {@link op}. */
export interface OpOptions {
  /** Domain; default: any whose op has this name. */
  readonly domain?: string;
  /** Attributes that must hold. An absent attribute is no match for a number or string. */
  readonly attributes?: Readonly<Record<string, AttributeTest>>;
  /** Whether inputs 0 and 1 may change places. Default: true for Add, Mul, Min, Max, And, Or, Xor, Equal. */
  readonly commutes?: boolean;
  /** 'any' lets an interior value be used outside the match too; it is then kept. Default 'match'. */
  readonly uses?: 'any' | 'match';
  /** Whether further inputs than those listed may be present. Default false. */
  readonly moreInputs?: boolean;
  /** Which output of the operation the pattern stands for. Default 0. */
  readonly output?: number;
}

/**
 * An operation.
 *
 * @param name - op type, or several that are treated alike
 * @param inputs - patterns of the inputs in order; null where an optional input must be absent
 */
export function op<const Ps extends readonly (AnyPattern | null)[]>(
  name: string | readonly string[],
  inputs: Ps,
  options: OpOptions = {},
): Pattern<Merge<Ps>> {
  const ops = typeof name === 'string' ? [name] : name;
  return new Pattern({
    kind: 'op',
    ops,
    domain: options.domain,
    inputs: inputs.map((input) => input?.shape ?? null),
    attributes: options.attributes ?? {},
    commutes: options.commutes ?? (inputs.length >= 2 && ops.every((one) => commutative.has(one))),
    anyUses: options.uses === 'any',
    moreInputs: options.moreInputs ?? false,
    output: options.output ?? 0,
    name: undefined,
  });
}

/**
 * Any value, captured.
 *
 * @param test - must hold, for example a rank
 * @param wanted - the test in words, for the trail of a mismatch: `a value of rank 4`
 */
export function value<const N extends string>(
  name: N,
  test?: (value: Value) => boolean,
  wanted?: string,
): Pattern<{ readonly [K in N]: Value }> {
  return new Pattern({ kind: 'value', name, test, wanted });
}

/**
 * A constant, captured.
 *
 * @param test - must hold; reading its contents is fine for small constants
 */
export function constant<const N extends string>(
  name: N,
  test?: (value: ConstantValue) => boolean,
): Pattern<{ readonly [K in N]: ConstantValue }> {
  return new Pattern({ kind: 'constant', name, test });
}

/**
 * A constant with one element, near a number.
 *
 * @param expected - the number
 * @param tolerance - largest relative difference; default 1e-3, since exporters write constants in f16 too
 */
export function scalar(expected: number, tolerance = 1e-3): Pattern<NoBindings> {
  const bound = Math.abs(expected) * tolerance;
  return new Pattern({
    kind: 'scalar',
    wanted: String(expected),
    test: (seen) => Math.abs(seen - expected) <= bound,
    name: undefined,
  });
}

/**
 * A constant with one element of any size, captured.
 *
 * @param test - must hold for its number
 */
export function scalarOf<const N extends string>(
  name: N,
  test: (value: number) => boolean = () => true,
): Pattern<{ readonly [K in N]: ConstantValue }> {
  return new Pattern({ kind: 'scalar', wanted: 'a scalar', test, name });
}

/** Any value, or none, not captured. */
export const anything: Pattern<NoBindings> = new Pattern({ kind: 'any' });

/** The first of several patterns that leads to a match; captures become optional. */
export function oneOf<const Ps extends readonly AnyPattern[]>(
  ...alternatives: Ps
): Pattern<PartialUnion<Ps>> {
  return new Pattern({ kind: 'oneOf', alternatives: alternatives.map(({ shape }) => shape) });
}

/**
 * A pattern with or without one-input operations around it, for example casts an exporter put in.
 *
 * @param names - op types that may stand in between, at most one of them
 */
export function maybe<B extends Bindings>(
  names: string | readonly string[],
  inner: Pattern<B>,
): Pattern<B> {
  const wrapped = op(names, [inner as AnyPattern], { moreInputs: true });
  return new Pattern({ kind: 'oneOf', alternatives: [wrapped.shape, inner.shape] });
}

/** The number of a constant with one element; undefined when it is something else. */
export function scalarValue(tensor: Tensor): number | undefined {
  if (tensor.data.length !== 1 || tensor.dtype === 'string') return undefined;
  if (tensor.dtype !== 'f32' && tensor.dtype !== 'f64' && !/^[iu](8|16|32|64)$/.test(tensor.dtype))
    return undefined;
  return Number(tensor.data[0]);
}
