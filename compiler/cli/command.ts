/** What a command file exports, and how it is run. */
import type { ArgumentsCamelCase, Argv, CommandModule } from 'yargs';
import type { Terminal } from './output.ts';
import { Output } from './output.ts';

/** Options every command has. */
export interface CommonArguments {
  /** One JSON object on stdout. */
  readonly json: boolean;
}

/** A command of the command line: one file each, listed in `main.ts`. */
export interface Command {
  /** The word after `fettle`. */
  readonly name: string;
  /**
   * The yargs module.
   *
   * @param onExit - told the exit code
   * @param terminal - where it prints
   */
  module(onExit: (code: number) => void, terminal: Terminal): CommandModule<CommonArguments>;
}

/**
 * Makes a command.
 *
 * @param definition - `usage` as yargs reads it (`name <positional>`), one line of help, the options,
 *   and the work: it throws to fail, and may return an exit code other than 0
 */
export function command<O>(definition: {
  readonly usage: string;
  readonly summary: string;
  readonly options: (parser: Argv<CommonArguments>) => Argv<O>;
  readonly run: (
    args: ArgumentsCamelCase<O>,
    output: Output,
  ) => Promise<number | void> | number | void;
}): Command {
  const { usage, summary, options, run } = definition;
  return {
    name: usage.split(' ')[0] ?? usage,
    module: (onExit, terminal) => ({
      command: usage,
      describe: summary,
      builder: (parser) => options(parser as Argv<CommonArguments>) as Argv,
      handler: async (args) => {
        const output = new Output(args['json'] === true, terminal);
        try {
          // yargs has parsed them with the options above; its module type cannot carry that along
          onExit((await run(args as ArgumentsCamelCase<O>, output)) ?? 0);
        } catch (error) {
          onExit(output.failure(error));
        } finally {
          output.close();
        }
      },
    }),
  };
}
