/**
 * Finds the files inside a packed bundle: an uncompressed ustar archive of regular files. Only headers
 * are read here; contents are sliced from the source when they are needed.
 *
 * Source: POSIX.1 (IEEE Std 1003.1), pax, "ustar Interchange Format".
 */
import { renew } from './check.ts';
import { FettleError } from './errors.ts';
import { isSafePath } from './paths.ts';

const BLOCK = 512;
const MOST_ENTRIES = 70_000;

/** Bytes that can be read from any place. */
export interface RandomAccess {
  /** Size of the whole. */
  readonly bytes: number;
  /** Bytes `start` to `end`; both lie within the whole. */
  read(start: number, end: number): Promise<Uint8Array>;
}

/** Where a file's contents lie in the archive. */
export interface TarEntry {
  /** Offset of the contents in the archive. */
  readonly start: number;
  /** Size of the contents. */
  readonly bytes: number;
}

/**
 * Path -> place of every file in an archive.
 *
 * @throws {@link FettleError} BUNDLE_CORRUPT when it is no ustar archive of regular files with safe paths
 */
export async function indexTar(archive: RandomAccess): Promise<Map<string, TarEntry>> {
  const entries = new Map<string, TarEntry>();
  let offset = 0;
  for (;;) {
    if (offset + BLOCK > archive.bytes)
      throw corrupt(offset, 'a header or the end mark', 'nothing');
    const header = await archive.read(offset, offset + BLOCK);
    if (header.every((byte) => byte === 0)) return entries;
    const [path, bytes] = parseHeader(header, offset);
    const start = offset + BLOCK;
    if (start + bytes > archive.bytes)
      throw corrupt(offset, `${bytes} bytes of "${path}"`, `${archive.bytes - start}`);
    if (entries.has(path)) throw corrupt(offset, 'every path once', `"${path}" twice`);
    if (entries.size === MOST_ENTRIES)
      throw corrupt(offset, `at most ${MOST_ENTRIES} files`, 'more');
    entries.set(path, { start, bytes });
    offset = start + Math.ceil(bytes / BLOCK) * BLOCK;
  }
}

function parseHeader(header: Uint8Array, offset: number): [path: string, bytes: number] {
  if (text(header, 257, 6) !== 'ustar') throw corrupt(offset, 'a ustar header', 'something else');
  const sum = header.reduce((total, byte, i) => total + (i >= 148 && i < 156 ? 32 : byte), 0);
  if (octal(header, 148, 8) !== sum)
    throw corrupt(offset, 'a header that matches its checksum', 'not');
  const type = header[156];
  if (type !== 0 && type !== 0x30) throw corrupt(offset, 'a regular file', 'another kind of entry');
  const prefix = text(header, 345, 155);
  const name = text(header, 0, 100);
  const path = prefix === '' ? name : `${prefix}/${name}`;
  if (!isSafePath(path))
    throw corrupt(offset, 'a relative path of plain names', JSON.stringify(path));
  const bytes = octal(header, 124, 12);
  if (bytes === undefined) throw corrupt(offset, `a size for "${path}"`, 'no octal number');
  return [path, bytes];
}

/** A NUL-terminated field. Bytes above 127 become characters that no safe path has. */
function text(header: Uint8Array, start: number, length: number): string {
  const field = header.subarray(start, start + length);
  const end = field.indexOf(0);
  return String.fromCharCode(...field.subarray(0, end < 0 ? length : end));
}

function octal(header: Uint8Array, start: number, length: number): number | undefined {
  const digits = text(header, start, length).trim();
  return /^[0-7]{1,12}$/.test(digits) ? Number.parseInt(digits, 8) : undefined;
}

function corrupt(byte: number, wanted: string, got: string): FettleError {
  return new FettleError(
    'BUNDLE_CORRUPT',
    `Packed bundle, byte ${byte}: wanted ${wanted}, got ${got}.`,
    { at: { byte }, fix: renew },
  );
}
