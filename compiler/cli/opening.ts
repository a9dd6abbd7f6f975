/**
 * How commands get at models and bundles. A command that runs things treats both alike: a model is
 * compiled as it is (no pass, no quantization) for onnxruntime-web, in memory, and opened like any
 * other bundle.
 */
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import type { OpenOptions, Session } from '../../runtime/node.ts';
import { openBundle } from '../../runtime/node.ts';
import { compile } from '../compile.ts';
import { asIs } from '../evaluate/as-is.ts';
import type { FileSystem } from '../files.ts';
import { MemoryFiles } from '../files.ts';
import { defaultCacheFolder, resolveModel } from '../node-source.ts';
import { defaultRecipe } from '../recipe.ts';
import { folderSource } from '../run-bundle.ts';
import type { ModelSource } from '../source.ts';
import type { Output } from './output.ts';

/** Whether an argument names a bundle: a folder with a manifest, a `.fettle` file, or a URL of either. */
export function isBundle(reference: string): boolean {
  if (reference.endsWith('.fettle') || reference.endsWith('/manifest.json')) return true;
  return existsSync(join(reference, 'manifest.json'));
}

/** The folder or file of a bundle that was named by its manifest. */
export function bundlePath(reference: string): string {
  return reference.replace(/\/manifest\.json$/, '');
}

/** The model behind a `<model>` argument. */
export function modelSource(reference: string, output: Output): Promise<ModelSource> {
  return resolveModel(reference, {
    cacheFolder: defaultCacheFolder(process.env, homedir()),
    progress: output.progress,
    signal: output.signal,
    warn: (message) => output.warn(message),
  });
}

/** Something that can be run, and what to call it. */
export interface Opened {
  readonly session: Session;
  readonly name: string;
  readonly kind: 'model' | 'bundle';
}

/** Opens a bundle, or a model as it is. The caller disposes the session. */
export async function openRunnable(
  reference: string,
  output: Output,
  options: OpenOptions = {},
): Promise<Opened> {
  if (isBundle(reference)) {
    const session = await openBundle(bundlePath(reference), { ...loading(output), ...options });
    return { session, name: session.manifest.model.name, kind: 'bundle' };
  }
  const source = await modelSource(reference, output);
  return { session: await openAsIs(source, output, options), name: source.name, kind: 'model' };
}

/** Opens a model as it is, on onnxruntime-web. */
export async function openAsIs(
  source: ModelSource,
  output: Output,
  options: OpenOptions = {},
): Promise<Session> {
  const files = new MemoryFiles();
  await compileAsIs(source, files, 'as-is', output.signal);
  return openBundle(folderSource(files, 'as-is'), { ...loading(output), ...options });
}

/** Writes a model as it is as a bundle folder for onnxruntime-web. */
export async function compileAsIs(
  source: ModelSource,
  files: FileSystem,
  out: string,
  signal: AbortSignal,
): Promise<void> {
  const recipe = { ...defaultRecipe, canaries: false };
  await compile(source, { targets: [asIs], files, out, signal, recipe });
}

function loading(output: Output): OpenOptions {
  return {
    signal: output.signal,
    onProgress: ({ loadedBytes, totalBytes }) =>
      output.progress('load', loadedBytes, Math.max(1, totalBytes)),
  };
}
