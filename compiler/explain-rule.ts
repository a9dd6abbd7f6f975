/**
 * Why a rule left a node alone, or what it made of it. The model is cleaned up and fused while somebody
 * listens: every rule says at which of the nodes it starts from it came to a dead end, and why
 * (`PassContext.miss` and `refuse`). Nothing is known here about any pass.
 *
 *     a rule, a node   ->   its dead ends there; else those at the nearest node it started from
 */
import { FettleError, nearest } from '../runtime/errors.ts';
import type { Model, Node, Value } from './ir/graph.ts';
import { passes, pipelineFrom } from './passes.ts';
import type { PassRule, TrailStep } from './passes/pass.ts';
import type { RunPassesOptions } from './run-passes.ts';
import { runPasses } from './run-passes.ts';

/** A place where a rule came to an end. */
export interface DeadEnd {
  /** The pass. */
  readonly pass: string;
  /** The rule. */
  readonly rule: string;
  /** Name of the node or value, at the time. */
  readonly at: string;
  /** What was in the way. */
  readonly why: string;
  /** Whether the rule had found everything and was not applied all the same. */
  readonly refused: boolean;
}

/** What there is to say about a rule and a node. */
export interface Explanation {
  /** The rules the name stands for, and the ops they start from. */
  readonly rules: readonly (PassRule & { readonly pass: string })[];
  /** Where the rule came to an end at the node, in order. */
  readonly deadEnds: readonly DeadEnd[];
  /** When it never started at the node: its dead ends at the nearest one, and that one's name. */
  readonly nearest?: { readonly node: string; readonly deadEnds: readonly DeadEnd[] };
  /** What the passes made of the node, in order, for those that changed what stands for it. */
  readonly history: readonly { readonly pass: string; readonly became: readonly string[] }[];
  /** What has become of the node, as a sentence. */
  readonly became: string;
}

/** Dead ends kept for one node; rounds repeat each other, so more would say little. */
const MOST_DEAD_ENDS = 12;

/**
 * Cleans up and fuses a model and says what a rule made of a node.
 *
 * @param model - as read; it is changed
 * @param rule - name of a rule or of a whole pass; `*` for all
 * @param node - name of a node of the model, or of a value it computes
 * @param contextLength - most tokens, when the files beside the model say so
 * @throws {@link FettleError} USAGE when there is no such rule, or the model has no such node
 *
 * @example
 * const { deadEnds } = await explainRule(source.read(), 'attention', '/layers.0/Softmax');
 */
export async function explainRule(
  model: Model,
  rule: string,
  node: string,
  contextLength?: number,
): Promise<Explanation> {
  const rules = rulesCalled(rule);
  const chosen = new Set(rules.map(({ pass, name }) => `${pass}\n${name}`));
  const owners = new Set(rules.map(({ pass }) => pass));
  const neighbours = new Neighbours(model);
  const asked = neighbours.find(node);
  const found = new Map<string, DeadEnd[]>();
  const history: { pass: string; became: readonly string[] }[] = [];
  let standing = '';
  const options: RunPassesOptions = {
    ...(contextLength === undefined ? {} : { contextLength }),
    trail: (step) => {
      // what a pass says under its own name is about all its rules
      const own = step.rule === step.pass && owners.has(step.pass);
      if (!own && !chosen.has(`${step.pass}\n${step.rule}`)) return;
      for (const source of sourcesOf(step)) keep(found, source, step);
    },
    ran: ({ name }) => {
      const became = standingFor(model, asked);
      const text = became.join('\n');
      if (text !== standing) history.push({ pass: name, became });
      standing = text;
    },
  };
  standing = standingFor(model, asked).join('\n');
  const group = pipelineFrom(['clean-up', 'fuse']);
  const inside = new Set(
    group.flatMap((step) => ('passes' in step ? step.passes.map(({ name }) => name) : [step.name])),
  );
  const others = [...owners].filter((pass) => !inside.has(pass));
  const more = rule === '*' ? [] : pipelineFrom(others);
  await runPasses(model, [...group, ...more], options);
  const deadEnds = found.get(asked) ?? [];
  const near = deadEnds.length > 0 ? undefined : neighbours.nearest(asked, (one) => found.has(one));
  return {
    rules,
    deadEnds,
    ...(near === undefined ? {} : { nearest: { node: near, deadEnds: found.get(near) ?? [] } }),
    history,
    became: sentence(asked, standingFor(model, asked)),
  };
}

/** Rules of that name, or all rules of the pass of that name. */
function rulesCalled(wanted: string): readonly (PassRule & { readonly pass: string })[] {
  const all = passes.flatMap((entry) => {
    const { name: pass, rules = [] } = entry.create();
    // a pass that lists no rules is one itself
    const own = rules.length > 0 ? rules : [{ name: pass, starts: [] }];
    return own.map((rule) => ({ pass, ...rule }));
  });
  if (wanted === '*') return all;
  const fitting = all.filter(({ pass, name }) => pass === wanted || name === wanted);
  if (fitting.length > 0) return fitting;
  const names = [...new Set(all.flatMap(({ pass, name }) => [pass, name]))];
  const close = nearest(wanted, names);
  throw new FettleError('USAGE', `There is no rule or pass "${wanted}".`, {
    at: { rule: wanted },
    fix: close === undefined ? '`fettle passes` lists the rules.' : `Did you mean "${close}"?`,
  });
}

/** Which source nodes of a model are next to each other; they are known by name. */
class Neighbours {
  private readonly names = new Map<string, Set<string>>();
  private readonly values = new Map<string, string>();

  constructor(model: Model) {
    for (const node of model.graph.allNodes()) {
      // a node without a name goes by what it computes, as it does in every report
      if (node.name === '') node.name = node.outputs.find((output) => output)?.name ?? node.op;
      if (node.from.length === 0) node.from = [node.name];
      if (!this.names.has(node.name)) this.names.set(node.name, new Set());
      for (const output of node.outputs)
        if (output !== undefined) this.values.set(output.name, node.name);
    }
    for (const node of model.graph.allNodes())
      for (const input of node.inputs) this.connect(input?.producer?.name, node.name);
  }

  /** The node of that name, or the one that computes the value of that name. */
  find(wanted: string): string {
    const found = this.names.has(wanted) ? wanted : this.values.get(wanted);
    if (found !== undefined) return found;
    const close = nearest(wanted, this.names.keys()) ?? nearest(wanted, this.values.keys());
    throw new FettleError('USAGE', `The model has no node "${wanted}".`, {
      at: { node: wanted },
      fix: close === undefined ? 'Give the name of a node.' : `Did you mean "${close}"?`,
    });
  }

  /** The node fewest edges away from `start` that passes the test. */
  nearest(start: string, test: (name: string) => boolean): string | undefined {
    const seen = new Set([start]);
    for (const name of seen) {
      if (name !== start && test(name)) return name;
      for (const next of this.names.get(name) ?? []) seen.add(next);
    }
    return undefined;
  }

  private connect(one: string | undefined, other: string): void {
    if (one === undefined) return;
    this.names.get(one)?.add(other);
    this.names.get(other)?.add(one);
  }
}

/** Source nodes that a dead end is about. */
function sourcesOf({ at }: TrailStep): readonly string[] {
  if (typeof at === 'string') return [at];
  return isNode(at) ? at.from : (at.producer?.from ?? []);
}

function isNode(place: Node | Value): place is Node {
  return 'op' in place;
}

function keep(found: Map<string, DeadEnd[]>, source: string, step: TrailStep): void {
  const list = found.get(source) ?? [];
  found.set(source, list);
  const { pass, rule, why, refused } = step;
  const at = typeof step.at === 'string' ? step.at : step.at.name;
  const isNew = !list.some((one) => one.pass === pass && one.rule === rule && one.why === why);
  if (isNew && list.length < MOST_DEAD_ENDS) list.push({ pass, rule, at, why, refused });
}

/** What stands for a source node now, sorted. */
function standingFor(model: Model, source: string): readonly string[] {
  const nodes = [...model.graph.allNodes()].filter(({ from }) => from.includes(source));
  return nodes.map((node) => node.describe()).sort();
}

function sentence(node: string, standing: readonly string[]): string {
  return standing.length === 0
    ? `"${node}" is gone: nothing that is left stands for it.`
    : `"${node}" is now part of ${standing.join(', ')}.`;
}
