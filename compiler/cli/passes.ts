/** `fettle passes`: the rewrites a pipeline is made of, and why one did not happen. */
import { FettleError } from '../../runtime/errors.ts';
import { contextLengthIn } from '../analyze/config.ts';
import type { DeadEnd, Explanation } from '../explain-rule.ts';
import { explainRule } from '../explain-rule.ts';
import { passes as list } from '../passes.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { modelSource } from './opening.ts';
import { table } from './text.ts';

/** Lists the passes; with `--why`, says what a rule made of a node. */
export const passes: Command = command({
  usage: 'passes [model]',
  summary: 'list the passes of the compiler, or say why a rule left a node alone',
  options: (parser) =>
    parser
      .positional('model', { type: 'string', describe: 'the model that --why is about' })
      .option('why', {
        type: 'string',
        nargs: 2,
        array: true,
        describe: 'a rule or pass, and the name of a node: why it was not applied there',
      }),
  run: async ({ model, why }, output) => {
    if (why !== undefined) {
      const [rule = '', node = ''] = why;
      if (model === undefined)
        throw new FettleError('USAGE', '--why is about a model, and none is given.', {
          at: { option: 'why' },
          fix: `Write fettle passes <model> --why ${rule} ${node}`,
        });
      const source = await modelSource(model, output);
      const explanation = await explainRule(
        source.read(),
        rule,
        node,
        contextLengthIn(source.config),
      );
      output.result({ ...explanation }, describe(explanation));
      return;
    }
    const rows = list.map((entry) => ({
      name: entry.name,
      summary: entry.summary,
      rules: (entry.create().rules ?? []).map((rule) => rule.name),
    }));
    output.result(
      { passes: rows },
      table(
        ['pass', 'what it does', 'rules'],
        rows.map(({ name, summary, rules }) => [name, summary, rules.join(' ')]),
      ),
    );
  },
});

function describe({ rules, deadEnds, nearest, history, became }: Explanation): string {
  const lines = deadEnds.map(lineOf);
  if (lines.length === 0) {
    const starts = rules.flatMap((rule) => rule.starts);
    lines.push(
      starts.length === 0
        ? 'The rule says nothing about it.'
        : `The rule does not start there; it starts from ${[...new Set(starts)].join(', ')}.`,
    );
    if (nearest !== undefined)
      lines.push(`Nearest, at "${nearest.node}":`, ...nearest.deadEnds.map(lineOf));
  }
  const steps = history.map(({ pass, became: now }) => `${pass}: ${now.join(', ') || 'gone'}`);
  return [...lines, ...(steps.length > 0 ? ['What became of it:', ...steps] : []), became].join(
    '\n',
  );
}

function lineOf({ pass, rule, at, why, refused }: DeadEnd): string {
  const name = rule === pass ? pass : `${pass}/${rule}`;
  return `${name} ${refused ? 'refused' : 'found nothing'} at ${at}: ${why}`;
}
