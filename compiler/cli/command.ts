/** What a command file exports, and how it is run. */
import type { Argv, CommandModule } from 'yargs';
import { Output } from './output.ts';

/** Options every command has. */
export interface CommonArguments {
  /** One JSON object on stdout. */
  readonly json: boolean;
}

/** A command of the command line: one file each, listed in `main.ts`. */
export interface Command<A extends object> {
  /** `name <positional>`, as yargs reads it. */
  readonly usage: string;
  /** One line of help. */
  readonly summary: string;
  /** Declares options. */
  readonly options: (parser: Argv<CommonArguments>) => Argv<A & CommonArguments>;
  /** Does the work; throws to fail. Returns an exit code other than 0 when the work says so. */
  readonly run: (args: A & CommonArguments, output: Output) => Promise<number | void> | number | void;
}

/**
 * The yargs module of a command.
 *
 * @param onExit - told the exit code
 */
export function toModule<A extends object>(
  command: Command<A>,
  onExit: (code: number) => void,
): CommandModule<CommonArguments, A & CommonArguments> {
  return {
    command: command.usage,
    describe: command.summary,
    builder: (parser) => command.options(parser),
    handler: async (args) => {
      const output = new Output(args.json);
      try {
        onExit((await command.run(args, output)) ?? 0);
      } catch (error) {
        onExit(output.failure(error));
      } finally {
        output.close();
      }
    },
  };
}
