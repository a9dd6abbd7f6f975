/** `fettle passes`: the rewrites a pipeline is made of. */
import { passes as list } from '../passes.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { table } from './text.ts';

/** Lists the passes. */
export const passes: Command = command({
  usage: 'passes',
  summary: 'list the passes of the compiler',
  options: (parser) => parser,
  run: (_args, output) => {
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
