/** The command line in this process: what it returned and what it printed. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { main } from '../../compiler/cli/main.ts';

/** One finished command. */
export interface Finished {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `fettle` with streams that are no terminal. */
export async function fettle(...args: readonly string[]): Promise<Finished> {
  const printed = { stdout: '', stderr: '' };
  const stream = (name: 'stdout' | 'stderr'): { write(text: string): void } => ({
    write: (text) => {
      printed[name] += text;
    },
  });
  const exitCode = await main(args, { stdout: stream('stdout'), stderr: stream('stderr') });
  return { exitCode, ...printed };
}

/** Runs a command that succeeds with `--json`, and returns the one object on stdout. */
// eslint-disable-next-line typescript/no-explicit-any
export async function fettleJson(...args: readonly string[]): Promise<any> {
  const { exitCode, stdout, stderr } = await fettle(...args, '--json');
  assert.equal(exitCode, 0, stderr);
  assert.ok(stdout.endsWith('\n') && !stdout.trimEnd().includes('\n'), 'not one line');
  return JSON.parse(stdout);
}

/** Runs a command that fails; checks the object it prints and what people read. */
export async function fettleFails(
  args: readonly string[],
  exitCode: number,
  code: string,
): Promise<{ readonly message: string; readonly at: object; readonly fix: string }> {
  const finished = await fettle(...args, '--json');
  const { error } = JSON.parse(finished.stdout) as {
    error: { code: string; message: string; at: object; fix: string };
  };
  assert.equal(error.code, code, error.message);
  assert.equal(finished.exitCode, exitCode, error.message);
  assert.ok(error.message !== '' && typeof error.at === 'object', JSON.stringify(error));
  assert.ok(error.fix !== '', `no fix: ${error.message}`);
  assert.ok(finished.stderr.includes(error.message) && finished.stderr.includes(error.fix));
  assert.doesNotMatch(finished.stderr, /\n\s+at .*\.ts:/, 'a stack trace');
  return error;
}

/** Asserts that an object has these keys, at least. */
export function assertKeys(value: unknown, ...keys: readonly string[]): void {
  assert.ok(typeof value === 'object' && value !== null);
  const missing = keys.filter((key) => !(key in value));
  assert.deepEqual(missing, [], `has ${Object.keys(value).join(', ')}`);
}

/** A folder that is there for the length of `action`. */
export async function withFolder<T>(action: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'fettle-cli-'));
  try {
    return await action(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
