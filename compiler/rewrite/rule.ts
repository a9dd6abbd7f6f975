/** Rewrite rules: a pattern, and what to put in its place or why not. */
import type { Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import type { PassRule } from '../passes/pass.ts';
import type { Match } from './match.ts';
import { rootOps } from './match.ts';
import type { Bindings, Pattern } from './pattern.ts';

/** A rule matched and was not applied. */
export interface Refusal {
  /** Why, as a sentence without the place. */
  readonly refused: string;
  /** Where. */
  readonly at: Node | Value;
}

/** Says why a match is left alone. */
export function refuse(why: string, at: Node | Value): Refusal {
  return { refused: why, at };
}

/**
 * What `build` returns: the value that replaces the root's output; for a root with several outputs one
 * for each, undefined where nothing uses it; or a refusal. It must create nothing before it is certain.
 */
export type Replacement = Value | readonly (Value | undefined)[] | Refusal;

/** A rewrite rule. Make it with {@link rule}, which checks the captures. */
export interface Rule {
  /** Kebab-case, unique; what `--explain` and the report print. */
  readonly name: string;
  /** What to look for. */
  readonly pattern: Pattern<Bindings>;
  /** Makes the replacement in front of the root. */
  readonly build: (bindings: Bindings, rewriter: Rewriter, match: Match<Bindings>) => Replacement;
}

/**
 * A rule with typed captures.
 *
 * @example
 * const matMulAdd = rule({
 *   name: 'mat-mul-add',
 *   pattern: op('Add', [op('MatMul', [value('x'), constant('w')]), constant('b')]),
 *   build: ({ x, w, b }, rewriter) =>
 *     x.shape?.length === 2 ? rewriter.op('Gemm', [x, w, b]) : refuse('needs rank 2', x),
 * });
 */
export function rule<B extends Bindings>(definition: {
  readonly name: string;
  readonly pattern: Pattern<B>;
  readonly build: (bindings: B, rewriter: Rewriter, match: Match<B>) => Replacement;
}): Rule {
  // the cast forgets the names again; the matcher binds exactly those the pattern has
  return definition as unknown as Rule;
}

/** What a pass says about rules that are patterns; those that share a name are one. */
export function passRules(rules: readonly Rule[]): readonly PassRule[] {
  const starts = new Map<string, Set<string>>();
  for (const { name, pattern } of rules)
    starts.set(name, new Set([...(starts.get(name) ?? []), ...rootOps(pattern.shape)]));
  return [...starts].map(([name, ops]) => ({ name, starts: [...ops] }));
}
