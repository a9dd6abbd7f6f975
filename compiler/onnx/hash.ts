/**
 * The identity of a model: the hash of its graph file and its external data.
 */
import type { FileSystem } from '../files.ts';
import { missing } from '../files.ts';
import { Sha256 } from '../../runtime/sha256.ts';
import { openModel } from './read.ts';

/** Bytes read at a time. */
const BLOCK_BYTES = 8 * 1024 * 1024;

/**
 * SHA-256 of the graph file followed by its external data files, in the order of first use.
 *
 * @param files - where the model is
 * @param path - the `.onnx` file
 * @returns lower-case hex
 * @throws FettleError as `readModel` does
 */
export function hashModelSource(files: FileSystem, path: string): string {
  return hashFiles(files, [path, ...openModel(files, path).externalPaths]);
}

/** SHA-256 of several files one after the other, lower-case hex. */
export function hashFiles(files: FileSystem, paths: readonly string[]): string {
  const hash = new Sha256();
  for (const path of paths) {
    const stat = files.stat(path);
    if (stat?.kind !== 'file') throw missing(path, stat);
    for (let at = 0; at < stat.bytes; at += BLOCK_BYTES)
      hash.update(files.read(path, at, Math.min(BLOCK_BYTES, stat.bytes - at)));
  }
  return hash.hex();
}
