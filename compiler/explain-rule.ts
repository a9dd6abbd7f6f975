/**
 * Why a rule left a node alone: what it refused there while the model was cleaned up and fused, and what
 * has become of the node.
 */
import { FettleError, nearest } from '../runtime/errors.ts';
import type { Model } from './ir/graph.ts';
import { pipelineFrom } from './passes.ts';
import type { Refusal } from './passes/pass.ts';
import { runPasses } from './run-passes.ts';

/** What there is to say about a rule and a node. */
export interface Explanation {
  /** What the rule refused at the node. */
  readonly refusals: readonly Refusal[];
  /** What has become of the node, as a sentence. */
  readonly became: string;
}

/**
 * Cleans up and fuses a model and says what a rule made of a node.
 *
 * @param model - as read; it is changed
 * @param rule - name of a rule or of a whole pass
 * @param node - name of a node of the model
 * @param contextLength - most tokens, when the files beside the model say so
 * @throws {@link FettleError} USAGE when the model has no such node
 *
 * @example
 * const { refusals } = await explainRule(source.read(), 'attention', '/layers.0/Softmax');
 */
export async function explainRule(
  model: Model,
  rule: string,
  node: string,
  contextLength?: number,
): Promise<Explanation> {
  const names = [...model.graph.allNodes()].map(({ name }) => name);
  if (!names.includes(node)) {
    const close = nearest(node, names);
    throw new FettleError('USAGE', `The model has no node "${node}".`, {
      at: { node },
      fix: close === undefined ? 'Give the name of a node.' : `Did you mean "${close}"?`,
    });
  }
  const options = contextLength === undefined ? {} : { contextLength };
  const reports = await runPasses(model, pipelineFrom(['clean-up', 'fuse']), options);
  const seen = new Set<string>();
  const refusals = reports
    .flatMap((report) => report.refusals)
    .filter(({ pass, rule: name, at, why }) => {
      const key = `${pass} ${name} ${at} ${why}`;
      const fits =
        (pass === rule || name === rule || rule === '*') && at === node && !seen.has(key);
      seen.add(key);
      return fits;
    });
  const users = [...model.graph.allNodes()].filter((one) => one.from.includes(node));
  const became =
    users.length === 0
      ? `"${node}" is gone: nothing that is left stands for it.`
      : `"${node}" is now part of ${users.map((one) => one.describe()).join(', ')}.`;
  return { refusals, became };
}
