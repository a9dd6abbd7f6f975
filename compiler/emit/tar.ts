/**
 * Packs a bundle folder into one `*.fettle` file: an uncompressed ustar archive whose bytes depend on
 * the contents alone (no times, owners or directories).
 *
 * @see https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html (ustar Interchange Format)
 */
import { FettleError } from '../../runtime/errors.ts';
import type { FileSystem } from '../files.ts';
import { joinPath } from '../files.ts';

/** A file to pack. */
export interface PackedFile {
  /** Path in the bundle. */
  readonly path: string;
  /** Size in bytes. */
  readonly bytes: number;
}

const BLOCK_BYTES = 512;
const PIECE_BYTES = 4 << 20;

/** ustar writes sizes as 11 octal digits. */
const MAX_FILE_BYTES = 8 ** 11 - 1;

/** Bytes of the archive that {@link packFiles} writes for these files. */
export function packedBytes(entries: readonly PackedFile[]): number {
  const padded = (bytes: number): number => Math.ceil(bytes / BLOCK_BYTES) * BLOCK_BYTES;
  return entries.reduce((sum, entry) => sum + BLOCK_BYTES + padded(entry.bytes), 2 * BLOCK_BYTES);
}

/**
 * Writes an archive of files, a few megabytes at a time.
 *
 * @param files - where everything is
 * @param folder - the folder that the paths are relative to
 * @param entries - what to pack, in this order
 * @param path - where the archive goes; nothing is left there on failure
 * @throws {@link FettleError} IO_FAILED when a file cannot be read or written
 */
export function packFiles(
  files: FileSystem,
  folder: string,
  entries: readonly PackedFile[],
  path: string,
): void {
  const writer = files.create(path);
  try {
    for (const entry of entries) {
      writer.write(header(entry));
      for (let at = 0; at < entry.bytes; at += PIECE_BYTES)
        writer.write(
          files.read(joinPath(folder, entry.path), at, Math.min(PIECE_BYTES, entry.bytes - at)),
        );
      writer.write(new Uint8Array(-entry.bytes & (BLOCK_BYTES - 1)));
    }
    writer.write(new Uint8Array(2 * BLOCK_BYTES));
    writer.close();
  } catch (error) {
    writer.abort();
    throw error;
  }
}

function header({ path, bytes }: PackedFile): Uint8Array {
  const block = new Uint8Array(BLOCK_BYTES);
  const [prefix, name] = splitPath(path);
  const put = (offset: number, text: string): void => {
    block.set(new TextEncoder().encode(text), offset);
  };
  if (bytes > MAX_FILE_BYTES)
    throw new FettleError('IO_FAILED', `Cannot pack "${path}": it has ${bytes} bytes.`, {
      at: { file: path },
      fix: 'Write the bundle as a folder.',
    });
  put(0, name);
  put(100, '0000644\0'); // mode
  put(108, '0000000\0'); // owner
  put(116, '0000000\0'); // group
  put(124, `${bytes.toString(8).padStart(11, '0')}\0`);
  put(136, '00000000000\0'); // modification time
  put(148, '        '); // the checksum counts its own field as spaces
  put(156, '0'); // a regular file
  put(257, 'ustar\0' + '00');
  put(329, '0000000\0'); // device numbers
  put(337, '0000000\0');
  put(345, prefix);
  const sum = block.reduce((total, byte) => total + byte, 0);
  put(148, `${sum.toString(8).padStart(6, '0')}\0 `);
  return block;
}

/** The name has 100 bytes, the directory in front of it another 155. Bundle paths are ASCII. */
function splitPath(path: string): readonly [prefix: string, name: string] {
  if (path.length <= 100) return ['', path];
  const at = path.indexOf('/', path.length - 101);
  if (at > 0 && at <= 155) return [path.slice(0, at), path.slice(at + 1)];
  throw new FettleError('IO_FAILED', `Cannot pack "${path}": the path is too long.`, {
    at: { file: path },
    fix: 'Use shorter file names.',
  });
}
