/**
 * What the first session of a process adds to the process's memory (Linux): code of the engine, the weights,
 * a context filled to its end, and the tokenizer where the bundle has one.
 *
 * The child is the runtime bundled to plain JavaScript, as a user ships it: a loader that compiles TypeScript
 * takes megabytes of its own. It resets the peak of its process (`/proc/self/clear_refs`) after its modules
 * are read and before the bundle is opened.
 */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';
import type { SessionMemory } from './session-memory-child.ts';

/** Why memory cannot be measured here; false when it can. */
export const noSessionMemory: string | false = existsSync('/proc/self/clear_refs')
  ? false
  : 'needs Linux to reset a peak';

/** How a session is measured. */
export interface SessionMemoryOptions {
  /** Binary of Node. Default: the running one. */
  readonly node?: string;
  /** Threads. Default 1. */
  readonly threads?: number;
}

/** Builds the child into a folder; returns what measures with it. */
export async function sessionMemory(
  folder: string,
): Promise<(bundle: string, options?: SessionMemoryOptions) => SessionMemory> {
  await build({
    entryPoints: [join(import.meta.dirname, 'session-memory-child.ts')],
    outdir: folder,
    outExtension: { '.js': '.mjs' },
    bundle: true,
    splitting: true,
    format: 'esm',
    target: 'es2022',
    platform: 'node',
    external: ['onnxruntime-web'],
  });
  const script = join(folder, 'session-memory-child.mjs');
  return (bundle, { node = process.execPath, threads = 1 } = {}) =>
    JSON.parse(
      execFileSync(node, ['--expose-gc', script, bundle, String(threads)], { encoding: 'utf8' }),
    ) as SessionMemory;
}
