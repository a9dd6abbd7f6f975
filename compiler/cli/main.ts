/** `fettle`: the list of commands, and exit codes. Everything that prints lives in this folder. */
import yargs from 'yargs';
import { FettleError, nearest } from '../../runtime/errors.ts';
import { bench } from './bench.ts';
import type { Command } from './command.ts';
import { compile } from './compile.ts';
import { demo } from './demo.ts';
import { evaluate } from './evaluate.ts';
import { formats } from './formats.ts';
import { generate } from './generate.ts';
import { inspect } from './inspect.ts';
import type { Terminal } from './output.ts';
import { Output, exitCodes } from './output.ts';
import { passes } from './passes.ts';
import { report } from './report.ts';
import { run } from './run.ts';
import { solve } from './solve.ts';
import { targets } from './targets.ts';
import { VERSION } from '../version.ts';

/** Every command, in the order of the help text. */
const commands: readonly Command[] = [
  inspect,
  compile,
  run,
  generate,
  evaluate,
  bench,
  report,
  solve,
  targets,
  passes,
  formats,
  demo,
];

const commandNames = commands.map(({ name }) => name);

/**
 * Runs the command line.
 *
 * @param argv - arguments after the program's name
 * @param terminal - where to print; the process's own streams by default (help always goes there)
 * @returns the exit code: 0 done, 1 failed, 2 misuse, 3 a budget was missed
 */
export async function main(argv: readonly string[], terminal: Terminal = process): Promise<number> {
  let exitCode: number = exitCodes.done;
  let parser = yargs([...argv])
    .scriptName('fettle')
    .usage('$0 <command>\n\nCompiles ONNX models into small bundles and runs them.')
    .option('json', { type: 'boolean', default: false, describe: 'print one JSON object' })
    .demandCommand(1, 'Name a command.')
    .strict()
    .recommendCommands()
    .version(VERSION)
    .wrap(100)
    .exitProcess(false)
    .fail((message: string | null, error: Error | undefined) => {
      throw error ?? misuse(message ?? 'Wrong arguments.', argv);
    });
  for (const one of commands)
    parser = parser.command(one.module((code) => (exitCode = code), terminal));
  try {
    await parser.parseAsync();
  } catch (error) {
    const output = new Output(argv.includes('--json'), terminal);
    exitCode = output.failure(error);
    output.close();
  }
  return exitCode;
}

/** What yargs found wrong, as our own error with a hint. */
function misuse(message: string, argv: readonly string[]): FettleError {
  const first = argv[0] ?? '';
  const close =
    first !== '' && !commandNames.includes(first) ? nearest(first, commandNames) : undefined;
  // yargs says "Unknown argument" or its own suggestion for a command that is not there
  const unknown = first !== '' && !first.startsWith('-') && !commandNames.includes(first);
  const what = unknown ? `There is no command "${first}".` : message.replaceAll('\n', ' ');
  return new FettleError('USAGE', what, {
    at: { command: first },
    fix:
      close === undefined
        ? `See: fettle ${commandNames.includes(first) ? `${first} ` : ''}--help`
        : `Did you mean "fettle ${close}"?`,
  });
}
