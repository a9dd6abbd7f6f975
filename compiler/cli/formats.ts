/** `fettle formats`: number formats of weights and what they cost. */
import { bitsPerWeight, numberFormats } from '../quant/formats.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { table } from './text.ts';

/** Columns of the matrix the cost per weight is quoted for; only per-channel formats depend on it. */
const QUOTED_COLUMNS = 1024;

/** Lists the number formats. */
export const formats: Command = command({
  usage: 'formats',
  summary: 'list number formats with bits per weight',
  options: (parser) => parser,
  run: (_args, output) => {
    const rows = numberFormats.map((format) => ({
      ...format,
      bitsPerWeight: bitsPerWeight(format, QUOTED_COLUMNS),
    }));
    output.result(
      { formats: rows },
      table(
        ['format', 'kind', 'bits per weight', 'engines'],
        rows.map(({ name, kind, bitsPerWeight: bits, engines }) => [
          name,
          kind,
          bits.toFixed(3),
          engines.length === 0 ? 'not supported yet' : engines.join(', '),
        ]),
      ),
    );
  },
});
