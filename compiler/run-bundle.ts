/**
 * Runs a bundle that was just written, through the runtime: for the expected outputs of canaries and
 * for measuring quality. The caller passes the `openBundle` of its host (`fettle/runtime` or
 * `fettle/runtime/node`), so that compiling itself stays free of engines.
 */
import type { OpenOptions, Session } from '../runtime/index.ts';
import type { BundleSource } from '../runtime/source.ts';
import { missingFile } from '../runtime/source.ts';
import type { BundleRunner } from './emit/expected.ts';
import type { FileSystem } from './files.ts';
import { joinPath, readFile } from './files.ts';

/** Opens a bundle; the runtime's `openBundle`. */
export type OpenBundle = (source: BundleSource, options: OpenOptions) => Promise<Session>;

/** A bundle folder behind the compiler's file system, as the runtime reads it. */
export function folderSource(files: FileSystem, folder: string): BundleSource {
  return {
    name: folder,
    read: async (path) => {
      const place = joinPath(folder, path);
      if (files.stat(place)?.kind !== 'file') throw missingFile(folder, path);
      return readFile(files, place);
    },
    size: async (path) => files.stat(joinPath(folder, path))?.bytes,
  };
}

/**
 * Makes a runner for `compile()`. Bundles for a GPU run on WebAssembly: hosts that compile rarely have
 * one, and what is expected should not depend on it.
 *
 * @param files - where bundles are written
 * @param open - the host's `openBundle`
 *
 * @example
 * await compile(source, { targets: ['ort-wasm'], files, out, run: bundleRunner(files, openBundle) });
 */
export function bundleRunner(files: FileSystem, open: OpenBundle): BundleRunner {
  return async (folder, inputs, signal) => {
    // just written and hashed, so not hashed again; one thread, so that sums are the same everywhere
    const session = await open(folderSource(files, folder), {
      verify: false,
      ort: { provider: 'wasm', threads: 1 },
      ...(signal === undefined ? {} : { signal }),
    });
    try {
      const outputs = [];
      for (const feeds of inputs) {
        const results = await session.run(Object.fromEntries(feeds));
        outputs.push(new Map(Object.entries(results)));
      }
      return outputs;
    } finally {
      await session.dispose();
    }
  };
}
