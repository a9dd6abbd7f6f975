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

/** Where a command writes. */
export class Output implements Log {
  /** Whether stdout carries one JSON object. */
  readonly json: boolean;
  /** Aborted by Ctrl-C; the second Ctrl-C ends the process. */
  readonly signal: AbortSignal;
  private bar: { readonly what: string; readonly bar: SingleBar } | undefined;
  private readonly controller = new AbortController();
  private readonly interrupt = (): void => {
    this.controller.abort(new FettleError('USAGE', 'Interrupted.'));
  };

  constructor(json: boolean) {
    this.json = json;
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
    process.stdout.write(this.json ? `${JSON.stringify(value)}\n` : `${text.trimEnd()}\n`);
  }

  /** Text as it comes, for streamed results; stderr when stdout is for JSON. */
  stream(text: string): void {
    (this.json ? process.stderr : process.stdout).write(text);
  }

  info(message: string): void {
    this.endProgress();
    process.stderr.write(`${message}\n`);
  }

  warn(message: string): void {
    this.info(`warning: ${message}`);
  }

  /** Progress of long work, drawn when stderr is a terminal. */
  readonly progress: Progress = (what, done, total) => {
    if (!process.stderr.isTTY) return;
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
    if (this.json) process.stdout.write(`${JSON.stringify({ error: known.error })}\n`);
    const { code, message, at, fix } = known.error;
    const place = Object.entries(at)
      .map(([key, value]) => `${key} ${value}`)
      .join(', ');
    process.stderr.write(`fettle: ${message}\n`);
    if (place !== '') process.stderr.write(`  at ${place}\n`);
    if (fix !== undefined) process.stderr.write(`  ${fix}\n`);
    if (code === 'INTERNAL' && error instanceof Error) process.stderr.write(`${error.stack}\n`);
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

/** A failure as `--json` prints it, and its exit code. */
function describeFailure(error: unknown): {
  readonly error: { code: string; message: string; at: object; fix: string | undefined };
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
    return { error: error.toJSON(), exitCode };
  }
  const message = error instanceof Error ? error.message : String(error);
  const misuse = error instanceof TypeError || error instanceof RangeError;
  return {
    error: { code: misuse ? 'USAGE' : 'INTERNAL', message, at: {}, fix: undefined },
    exitCode: misuse ? exitCodes.misuse : exitCodes.failed,
  };
}
