/**
 * Writes the weight buffer as chunk files. Weights are read, hashed and written a few megabytes at a
 * time, so that the buffer is never in memory.
 */
import type { FileSpec } from '../../runtime/manifest.ts';
import type { DType } from '../../runtime/tensor.ts';
import { viewBytes } from '../../runtime/tensor.ts';
import type { FileSystem, FileWriter } from '../files.ts';
import { joinPath } from '../files.ts';
import { turn } from '../turn.ts';
import type { Progress } from '../passes/pass.ts';
import { Sha256 } from '../../runtime/sha256.ts';
import type { WeightLayout } from './layout.ts';

/** Bytes read at a time. */
const PIECE_BYTES = 4 << 20;

/** How a long write reports and stops. */
export interface WriteControl {
  /** Told after each piece. */
  readonly progress: Progress;
  /** Stops between pieces. */
  readonly signal: AbortSignal | undefined;
}

/** What was written. */
export interface WrittenWeights {
  /** The chunk files in order; none when there are no weights. */
  readonly files: readonly FileSpec[];
  /** Names of weights that hold NaN or +infinity; -infinity is what masks are made of. */
  readonly notFinite: readonly string[];
}

/**
 * Writes `weights-00.bin`, `weights-01.bin`, … into a folder.
 *
 * @throws {@link FettleError} IO_FAILED when a weight cannot be read or a file cannot be written
 */
export async function writeWeights(
  files: FileSystem,
  folder: string,
  layout: WeightLayout,
  control: WriteControl,
): Promise<WrittenWeights> {
  const chunks = new ChunkWriter(files, folder, layout);
  try {
    const notFinite = new Set<string>();
    for (const { name, weight, offset } of layout.placed) {
      chunks.pad(offset);
      for (let at = 0; at < weight.byteLength; at += PIECE_BYTES) {
        const piece = weight.bytes(at, Math.min(PIECE_BYTES, weight.byteLength - at));
        if (holdsNotFinite(weight.dtype, piece)) notFinite.add(name);
        chunks.write(piece);
        control.progress('write weights', chunks.end, layout.bytes);
        await turn(control.signal);
      }
    }
    chunks.pad(layout.bytes);
    return { files: chunks.done(), notFinite: [...notFinite] };
  } catch (error) {
    chunks.abort();
    throw error;
  }
}

/** Whether bytes of floats hold NaN or +infinity; -infinity is what masks are made of. */
export function holdsNotFinite(dtype: DType, piece: Uint8Array): boolean {
  if (dtype !== 'f32' && dtype !== 'f16' && dtype !== 'bf16') return false;
  const patterns = viewBytes(dtype === 'f32' ? 'u32' : 'u16', piece) as Uint32Array | Uint16Array;
  const [infinity, sign] =
    dtype === 'f32' ? [0x7f800000, 0x80000000] : [dtype === 'f16' ? 0x7c00 : 0x7f80, 0x8000];
  // as unsigned patterns: +infinity and its NaN up to the sign bit, then the NaN above -infinity
  return patterns.some((word) => word >= infinity && (word < sign || word > sign + infinity));
}

/** Cuts a stream of bytes into files of `layout.chunkBytes`. */
class ChunkWriter {
  /** Bytes written so far. */
  end = 0;
  private readonly files: FileSystem;
  private readonly folder: string;
  private readonly layout: WeightLayout;
  private readonly finished: FileSpec[] = [];
  private open:
    | { readonly path: string; readonly writer: FileWriter; readonly hash: Sha256 }
    | undefined;

  constructor(files: FileSystem, folder: string, layout: WeightLayout) {
    this.files = files;
    this.folder = folder;
    this.layout = layout;
  }

  /** Zeros up to byte `offset` of the buffer; less than one alignment. */
  pad(offset: number): void {
    if (offset > this.end) this.write(new Uint8Array(offset - this.end));
  }

  write(bytes: Uint8Array): void {
    const { chunkBytes } = this.layout;
    for (let at = 0; at < bytes.length;) {
      this.open ??= this.start();
      const length = Math.min(bytes.length - at, chunkBytes - (this.end % chunkBytes));
      const part = bytes.subarray(at, at + length);
      this.open.hash.update(part);
      this.open.writer.write(part);
      at += length;
      this.end += length;
      if (this.end % chunkBytes === 0) this.finish();
    }
  }

  done(): readonly FileSpec[] {
    this.finish();
    return this.finished;
  }

  abort(): void {
    this.open?.writer.abort();
  }

  private start(): NonNullable<ChunkWriter['open']> {
    const path = `weights-${String(this.finished.length).padStart(2, '0')}.bin`;
    return { path, writer: this.files.create(joinPath(this.folder, path)), hash: new Sha256() };
  }

  private finish(): void {
    if (this.open === undefined) return;
    const { path, writer, hash } = this.open;
    writer.close();
    const before = this.finished.reduce((sum, file) => sum + file.bytes, 0);
    this.finished.push({ path, bytes: this.end - before, sha256: hash.hex() });
    this.open = undefined;
  }
}
