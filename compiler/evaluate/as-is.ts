/**
 * A model as it is, runnable: compiled with an empty pipeline, so that evaluation and benchmarks have
 * one code for models and bundles.
 */
import type { BundleSource } from '../../runtime/source.ts';
import { missingFile } from '../../runtime/source.ts';
import { ortWasm } from '../../targets/ort-wasm.ts';
import type { Target } from '../../targets/target.ts';
import type { FileSystem } from '../files.ts';
import { joinPath, readFile } from '../files.ts';

/** onnxruntime-web on WASM, and not a node touched. */
export const asIs: Target = {
  ...ortWasm,
  id: 'as-is',
  summary: 'onnxruntime-web on WASM with the model as it is; for comparison',
  pipeline: [],
};

/** A bundle source over the compiler's file system. */
export function filesSource(files: FileSystem, folder: string): BundleSource {
  return {
    name: folder,
    read: async (path) => {
      const full = joinPath(folder, path);
      if (files.stat(full)?.kind !== 'file') throw missingFile(folder, path);
      return readFile(files, full);
    },
    size: async (path) => files.stat(joinPath(folder, path))?.bytes,
  };
}
