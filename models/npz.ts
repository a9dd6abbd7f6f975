/**
 * NumPy's .npz files: a zip archive of .npy files, stored or deflated.
 *
 * @see https://numpy.org/doc/stable/reference/generated/numpy.savez.html
 * @see https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
 */
import { inflateRawSync } from 'node:zlib';
import { FettleError } from '../runtime/errors.ts';
import type { Tensor } from '../runtime/tensor.ts';
import { readNpy } from './npy.ts';

const END = 0x06054b50;
const END_BYTES = 22;
const ENTRY = 0x02014b50;
const ENTRY_BYTES = 46;
const LOCAL = 0x04034b50;
const LOCAL_BYTES = 30;

/** Bytes of a comment behind the archive, at most. */
const MOST_COMMENT = 65535;

/**
 * Reads a .npz file.
 *
 * @param bytes - the whole file, below 4 GiB
 * @param name - for messages
 * @returns arrays by name, without `.npy`
 * @throws FettleError MODEL_INVALID when it is no such archive, or holds something else than arrays
 */
export function readNpz(bytes: Uint8Array, name = 'arrays.npz'): Map<string, Tensor> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const arrays = new Map<string, Tensor>();
  try {
    const end = endOf(view, name);
    const count = view.getUint16(end + 10, true);
    let at = view.getUint32(end + 16, true);
    for (let index = 0; index < count; index++) {
      if (view.getUint32(at, true) !== ENTRY) throw bad(name, 'its directory is damaged');
      const nameBytes = view.getUint16(at + 28, true);
      const from = at + ENTRY_BYTES;
      const path = new TextDecoder().decode(bytes.subarray(from, from + nameBytes));
      const contents = contentsOf(bytes, view, at, `${name}/${path}`);
      arrays.set(path.replace(/\.npy$/, ''), readNpy(contents, `${name}/${path}`));
      at = from + nameBytes + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
    }
  } catch (cause) {
    if (cause instanceof FettleError) throw cause;
    throw bad(name, cause instanceof Error ? cause.message : String(cause), cause);
  }
  if (arrays.size === 0) throw bad(name, 'it holds no arrays');
  return arrays;
}

function endOf(view: DataView, name: string): number {
  const first = Math.max(0, view.byteLength - END_BYTES - MOST_COMMENT);
  for (let at = view.byteLength - END_BYTES; at >= first; at--)
    if (view.getUint32(at, true) === END) return at;
  throw bad(name, 'it is no zip archive');
}

function contentsOf(bytes: Uint8Array, view: DataView, entry: number, name: string): Uint8Array {
  const method = view.getUint16(entry + 10, true);
  const packed = view.getUint32(entry + 20, true);
  const size = view.getUint32(entry + 24, true);
  const local = view.getUint32(entry + 42, true);
  if (view.getUint32(local, true) !== LOCAL) throw bad(name, 'its header is damaged');
  const start =
    local + LOCAL_BYTES + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
  const stored = bytes.subarray(start, start + packed);
  if (stored.length !== packed) throw bad(name, 'the file ends early');
  if (method === 0) return stored;
  if (method !== 8) throw bad(name, `compression method ${method} is not known`);
  // no more than the archive promises, whatever the data says
  const inflated = inflateRawSync(stored, { maxOutputLength: Math.max(1, size) });
  return new Uint8Array(inflated.buffer, inflated.byteOffset, inflated.byteLength);
}

function bad(name: string, why: string, cause?: unknown): FettleError {
  return new FettleError('MODEL_INVALID', `Cannot read "${name}": ${why}.`, {
    at: { file: name },
    fix: 'Write it with numpy.savez.',
    cause,
  });
}
