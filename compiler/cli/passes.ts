/** `fettle passes`: the rewrites a pipeline is made of, and why one did not happen. */
import { contextLengthIn } from '../analyze/config.ts';
import type { Explanation } from '../explain-rule.ts';
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
    if (why !== undefined && model !== undefined) {
      const [rule = '', node = ''] = why;
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
    const rows = list.map(({ name, summary }) => ({ name, summary }));
    output.result(
      { passes: rows },
      table(
        ['pass', 'what it does'],
        rows.map(({ name, summary }) => [name, summary]),
      ),
    );
  },
});

function describe({ refusals, became }: Explanation): string {
  return [
    ...refusals.map(({ pass, rule, at, why }) => `${pass} (${rule}) at ${at}: ${why}`),
    became,
  ].join('\n');
}
