/**
 * What a command may print. Results go to stdout: text for people, or with `--json` exactly one JSON
 * object. Everything on the way there (notes, warnings, progress) goes to stderr, and a progress bar
 * is drawn only on a terminal.
 */
import { Presets, SingleBar } from 'cli-progress';
import { FettleError } from '../../runtime/errors.ts';
import type { Log, Progress } from '../passes/pass.ts';

/** Exit codes of the command line. */
export const exitCodes = { done: 0, failed: 1, misuse: 2, budgetMissed: 3 } as const;

/** The two streams of a program; `process` is one. */
export interface Terminal {
  /** For results. */
  readonly stdout: Stream;
  /** For everything else. */
  readonly stderr: Stream;
}

interface Stream {
  readonly isTTY?: boolean | undefined;
  write(text: string): unknown;
}

/** Where a command writes. */
export class Output implements Log {
  /** Whether stdout carries one JSON object. */
  readonly json: boolean;
  /** Aborted by Ctrl-C; the second Ctrl-C ends the process. */
  readonly signal: AbortSignal;
  private readonly terminal: Terminal;
  private bar: { readonly what: string; readonly bar: SingleBar } | undefined;
  private readonly controller = new AbortController();
  private readonly interrupt = (): void => {
    this.controller.abort(new DOMException('Interrupted.', 'AbortError'));
  };

  constructor(json: boolean, terminal: Terminal) {
    this.json = json;
    this.terminal = terminal;
    this.signal = this.controller.signal;
    process.once('SIGINT', this.interrupt);
  }

  /**
   * The result of the command.
   *
   * @param value - what `--json` prints
   * @param text - what people read instead
   */
  result(value: object, text: string): void {
    this.endProgress();
    this.terminal.stdout.write(this.json ? `${JSON.stringify(value)}\n` : `${text.trimEnd()}\n`);
  }

  /** Text as it comes, for streamed results; stderr when stdout is for JSON. */
  stream(text: string): void {
    (this.json ? this.terminal.stderr : this.terminal.stdout).write(text);
  }

  info(message: string): void {
    this.endProgress();
    this.terminal.stderr.write(`${message}\n`);
  }

  warn(message: string): void {
    this.info(`warning: ${message}`);
  }

  /** Progress of long work, drawn when stderr is a terminal. */
  readonly progress: Progress = (what, done, total) => {
    if (!this.terminal.stderr.isTTY) return;
    if (this.bar?.what !== what) {
      this.endProgress();
      const bar = new SingleBar(
        {
          format: `${what} {bar} {percentage}% {eta_formatted}`,
          clearOnComplete: true,
          hideCursor: true,
        },
        Presets.shades_classic,
      );
      bar.start(total, done);
      this.bar = { what, bar };
    }
    this.bar.bar.update(done);
    if (done >= total) this.endProgress();
  };

  /** Prints a failure and returns the exit code it stands for. */
  failure(error: unknown): number {
    this.endProgress();
    const known = describeFailure(error);
    if (this.json) this.terminal.stdout.write(`${JSON.stringify({ error: known.error })}\n`);
    const { code, message, at, fix } = known.error;
    const place = Object.entries(at)
      .map(([key, value]) => `${key} ${value}`)
      .join(', ');
    this.terminal.stderr.write(`fettle: ${message}\n`);
    if (place !== '') this.terminal.stderr.write(`  at ${place}\n`);
    this.terminal.stderr.write(`  ${fix}\n`);
    if (code === 'INTERNAL' && error instanceof Error)
      this.terminal.stderr.write(`${error.stack}\n`);
    return known.exitCode;
  }

  /** Stops the bar and gives Ctrl-C back. */
  close(): void {
    this.endProgress();
    process.removeListener('SIGINT', this.interrupt);
  }

  private endProgress(): void {
    this.bar?.bar.stop();
    this.bar = undefined;
  }
}

/** Whether an error of the language is about a value the user gave; see {@link outOfRange}. */
function isOurs(message: string): boolean {
  return / wanted .+, got /.test(message);
}

/** A failure as `--json` prints it, and its exit code. */
function describeFailure(error: unknown): {
  readonly error: { code: string; message: string; at: object; fix: string };
  readonly exitCode: number;
} {
  if (error instanceof FettleError) {
    const { code } = error;
    const exitCode =
      code === 'BUDGET_EXCEEDED'
        ? exitCodes.budgetMissed
        : code === 'USAGE' || code === 'TARGET_UNKNOWN'
          ? exitCodes.misuse
          : exitCodes.failed;
    const { message, at, fix = 'See fettle --help.' } = error;
    return { error: { code, message, at, fix }, exitCode };
  }
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof DOMException && error.name === 'AbortError')
    return {
      error: { code: 'INTERRUPTED', message, at: {}, fix: 'Run the command again.' },
      exitCode: exitCodes.failed,
    };
  if ((error instanceof RangeError || error instanceof TypeError) && isOurs(message))
    return {
      error: { code: 'USAGE', message, at: {}, fix: 'See --help of the command.' },
      exitCode: exitCodes.misuse,
    };
  return {
    error: { code: 'INTERNAL', message, at: {}, fix: 'This is a bug of Fettle: report it.' },
    exitCode: exitCodes.failed,
  };
}
