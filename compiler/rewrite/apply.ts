/**
 * Applies rules until none fires: a worklist in topological order, rules indexed by the op of their
 * root. A rewrite puts the users of what it made, and what it made, back on the list. Rules that undo
 * each other run into the bound and the error names them.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import type { PassContext } from '../passes/pass.ts';
import type { Match, Mismatch } from './match.ts';
import { match, rootOps } from './match.ts';
import type { Bindings } from './pattern.ts';
import type { Rule } from './rule.ts';

/** Rewrites allowed per node of the model before it counts as endless. */
const REWRITES_PER_NODE = 10;

/**
 * Applies rules to a model and all its subgraphs.
 *
 * @param rules - tried in order on each node
 * @returns whether anything changed
 * @throws {@link FettleError} PASS_FAILED when the rewriting does not end
 */
export function applyRules(model: Model, rules: readonly Rule[], context: PassContext): boolean {
  const byRoot = new Map<string, Rule[]>();
  for (const one of rules)
    for (const name of new Set(rootOps(one.pattern.shape)))
      byRoot.set(name, [...(byRoot.get(name) ?? []), one]);

  const work = new Set(model.graph.allNodes());
  const limit = REWRITES_PER_NODE * (work.size + 10);
  const refused = new Set<string>();
  let applied = 0;
  for (const node of work) {
    work.delete(node);
    if (node.graph === undefined) continue;
    for (const one of byRoot.get(node.op) ?? []) {
      const found = match(one.pattern, node);
      if (found === undefined) {
        context.miss(one.name, node, () => trailOf(one, node));
        continue;
      }
      const made = replaceMatch(one, node, found, context, refused);
      if (made === undefined) continue;
      if (++applied > limit)
        throw new FettleError(
          'PASS_FAILED',
          `Rewriting does not end; the last rule was "${one.name}".`,
          {
            at: { rule: one.name, node: node.name },
            fix: 'Two rules undo each other. Please report the model.',
          },
        );
      for (const value of made) {
        if (value.producer !== undefined) work.add(value.producer);
        for (const user of value.users.keys()) work.add(user);
      }
      break;
    }
  }
  return applied > 0;
}

/** What stopped a rule on a node: the dead end that had got furthest. */
export function explainMismatch(one: Rule, node: Node): Mismatch | undefined {
  let furthest: Mismatch | undefined;
  const found = match(one.pattern, node, (mismatch) => {
    if (furthest === undefined || mismatch.depth >= furthest.depth) furthest = mismatch;
  });
  return found === undefined ? furthest : undefined;
}

function trailOf(one: Rule, node: Node): string {
  const mismatch = explainMismatch(one, node);
  if (mismatch === undefined) return 'it matches now';
  const { depth, at, why } = mismatch;
  const place = at === '' || at === node.name ? '' : ` at "${at}"`;
  return depth === 0 ? `${why}${place}` : `after ${depth} matched${place}: ${why}`;
}

/** Builds and splices in one replacement; the values that replaced something, or undefined if refused. */
function replaceMatch(
  one: Rule,
  root: Node,
  found: Match<Bindings>,
  context: PassContext,
  refused: Set<string>,
): readonly Value[] | undefined {
  const { rewriter } = context;
  rewriter.before(root);
  const from = new Set(found.nodes.flatMap((node) => node.from));
  const built = rewriter.deriving([...from], () => one.build(found.bindings, rewriter, found));
  if ('refused' in built) {
    const key = `${one.name}\n${built.at.name}\n${built.refused}`;
    if (!refused.has(key)) context.refuse(one.name, built.at, built.refused);
    refused.add(key);
    return undefined;
  }
  const values = Array.isArray(built) ? built : [built];
  const replaced: Value[] = [];
  root.outputs.forEach((old, index) => {
    const value: Value | undefined = values[index];
    if (old === undefined || value === undefined) return;
    checkReplacement(one, old, value);
    rewriter.replace(old, value);
    replaced.push(value);
  });
  for (const node of found.nodes)
    if (node.graph !== undefined && node.outputs.every((output) => (output?.useCount ?? 0) === 0))
      rewriter.remove(node);
  context.count(one.name);
  return replaced;
}

/** A rule that changes the dtype or the rank of a value is wrong, whatever the model. */
function checkReplacement(one: Rule, old: Value, value: Value): void {
  const dtypeDiffers =
    old.dtype !== undefined && value.dtype !== undefined && old.dtype !== value.dtype;
  const rankDiffers =
    old.shape !== undefined && value.shape !== undefined && old.shape.length !== value.shape.length;
  if (!dtypeDiffers && !rankDiffers) return;
  throw new FettleError(
    'PASS_FAILED',
    `Rule "${one.name}" would turn "${old.name}" from ${old.dtype} [${old.shape}] into ${value.dtype} [${value.shape}].`,
    {
      at: { rule: one.name, value: old.name },
      fix: 'This is a bug of the rule. Please report the model.',
    },
  );
}
