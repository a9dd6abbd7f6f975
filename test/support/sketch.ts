/** Small models written down in a few lines, for tests that look at structure. */
import type { Node } from '../../compiler/ir/graph.ts';
import { Graph, Model } from '../../compiler/ir/graph.ts';
import { inferNode } from '../../compiler/ir/infer.ts';
import { Rewriter } from '../../compiler/ir/rewriter.ts';
import type { PassContext, Refusal } from '../../compiler/passes/pass.ts';

/** A model being drawn, and everything a rule or pass needs to run on it. */
export interface Sketch {
  readonly model: Model;
  readonly rewriter: Rewriter;
  readonly context: PassContext;
  /** Refusals so far. */
  readonly refusals: Refusal[];
  /** Applications per rule so far. */
  readonly counts: Record<string, number>;
}

/** An empty model of the given opset. */
export function sketch(opset = 17): Sketch {
  const model = new Model(new Graph('sketch'), new Map([['', opset]]));
  const rewriter = new Rewriter(model, inferNode);
  const refusals: Refusal[] = [];
  const counts: Record<string, number> = {};
  const context: PassContext = {
    target: undefined,
    contextLength: undefined,
    rewriter,
    log: { info: () => {}, warn: () => {} },
    progress: () => {},
    signal: undefined,
    refuse: (rule, at, why) =>
      refusals.push({ pass: 'test', rule, at: typeof at === 'string' ? at : at.name, why }),
    miss: () => {},
    count: (rule, times = 1) => (counts[rule] = (counts[rule] ?? 0) + times),
    note: () => {},
  };
  return { model, rewriter, context, refusals, counts };
}

/** Op types in order. */
export function opsOf(model: Model): string[] {
  return [...model.graph.nodes()].map(({ op }) => op);
}

/** The first node of an op type. */
export function nodeOf(model: Model, op: string): Node {
  for (const node of model.graph.nodes()) if (node.op === op) return node;
  throw new Error(`The sketch has no ${op}.`);
}
