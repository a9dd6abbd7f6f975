/**
 * What fusion left as it was, and why: for every node that is still none of the fused ops, what the rules
 * that start from it said last. Rules are listened to as `explain-rule.ts` does.
 *
 *     13 x Add    fold-scalars/before refused: zeros are padded behind the shift
 */
import type { Model, Node } from './ir/graph.ts';
import { internalDomain } from './ops/quantized.ts';
import { pipelineFrom } from './passes.ts';
import { runPasses } from './run-passes.ts';

/** Nodes that were left for the same reason. */
export interface Remainder {
  /** Op type, with its domain unless it is ONNX's. */
  readonly op: string;
  /** How many nodes. */
  readonly count: number;
  /** Name of one of them. */
  readonly example: string;
  /** What stopped each rule that starts from the op; one sentence when there is no such rule. */
  readonly reasons: readonly string[];
}

/**
 * Cleans up and fuses a model and says why what is left is left.
 *
 * @param model - as read; it is changed
 * @param contextLength - most tokens, when the files beside the model say so
 * @returns most frequent first
 */
export async function explainRemainders(
  model: Model,
  contextLength?: number,
): Promise<readonly Remainder[]> {
  const said = new Map<Node, Map<string, string>>();
  const pipeline = pipelineFrom(['clean-up', 'fuse', 'fuse-expression']);
  const starts = new Set(
    pipeline
      .flatMap((step) => ('passes' in step ? step.passes : [step]))
      .flatMap(({ rules = [] }) => rules.flatMap((rule) => rule.starts)),
  );
  await runPasses(model, pipeline, {
    ...(contextLength === undefined ? {} : { contextLength }),
    trail: ({ pass, rule, at, why, refused }) => {
      const node = typeof at === 'string' ? undefined : 'op' in at ? at : at.producer;
      if (node === undefined) return;
      const reasons = said.get(node) ?? new Map<string, string>();
      said.set(node, reasons);
      const name = rule === pass ? pass : `${pass}/${rule}`;
      const sentence = `${name} ${refused ? 'refused' : 'found nothing'}: ${why}`;
      // the last word counts, but a refusal says more than finding nothing
      if (refused || !(reasons.get(name) ?? '').startsWith(`${name} refused`))
        reasons.set(name, sentence);
    },
  });
  const groups = new Map<string, Remainder>();
  for (const node of model.graph.allNodes()) {
    if (node.domain === internalDomain || node.op === 'Constant') continue;
    const op = node.domain === '' ? node.op : `${node.domain}.${node.op}`;
    const reasons = reasonsFor(starts.has(op), [...(said.get(node)?.values() ?? [])]);
    const key = [op, ...reasons].join('\n');
    const known = groups.get(key);
    const example = known?.example ?? (node.name || (node.outputs[0]?.name ?? ''));
    groups.set(key, { op, count: (known?.count ?? 0) + 1, example, reasons });
  }
  return [...groups.values()].sort((a, b) => b.count - a.count);
}

/** Refusals alone when there are any: those rules came closest. */
function reasonsFor(isStart: boolean, said: readonly string[]): readonly string[] {
  const refusals = said.filter((reason) => / refused: /.test(reason));
  if (refusals.length > 0) return refusals;
  if (said.length > 0) return said;
  return [
    isStart
      ? 'it is in a branch, or not of the form that rules about it start from'
      : 'no rule of fusion starts from it',
  ];
}
