/** `fettle targets`: what can be compiled for. */
import { targets as list } from '../../targets/index.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { table } from './text.ts';

/** Lists the targets. */
export const targets: Command = command({
  usage: 'targets',
  summary: 'list what can be compiled for',
  options: (parser) => parser,
  run: (_args, output) => {
    const rows = list.map(({ id, engine, hosts, weightFormats, summary }) => [
      id,
      engine,
      hosts.join(', '),
      weightFormats.join(' '),
      summary,
    ]);
    output.result({ targets: list }, table(['target', 'engine', 'hosts', 'weights', 'for'], rows));
  },
});
