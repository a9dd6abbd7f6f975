/**
 * Weight matrices in the order in which the WASM kernels read them. The layouts are specified in
 * runtime/wasm/kernels/abi.ts ("weight formats"); this is their maths, tile by tile, so that a matrix
 * is packed while it is written and never in memory twice.
 *
 *   codes [N, rowBytes], scales and zeros [N, groups]  ->  tiles of 16 rows x K inputs, each
 *   [group][scales of 16 rows | zeros | blocks of codes: 4 inputs of each of 16 rows are 64 neighbours]
 */
import { floatToHalf, fromHalfArray, halfToFloat, toHalfArray } from '../../runtime/half.ts';
import { bytesOf } from '../../runtime/tensor.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { codeStep, middleZero, zeroBits } from '../quant/grid.ts';
import { packedRowBytes, unpackRow } from '../quant/pack.ts';
import { Weight } from '../ir/weight.ts';

/** Rows of a tile. */
export const TILE_ROWS = 16;

/** How integer codes are packed. */
export interface CodePacking {
  /** Output rows. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
  /** Bits of a code as it comes. */
  readonly bits: number;
  /** Weight format of the ABI. */
  readonly format: number;
  /** Inputs of a block: 16 or 32. */
  readonly block: number;
  /** Blocks that share a scale. */
  readonly groupBlocks: number;
}

/** The parts of a matrix of codes, [rows, ...] each. */
export interface CodeParts {
  /** Packed as `quant/pack.ts` says, [rows, packedRowBytes(bits, columns)]. */
  readonly codes: Weight;
  /** f16 [rows, groups]. */
  readonly scales: Weight;
  /** Packed as `quant/pack.ts` says, [rows, packedRowBytes(zeroBits(bits), groups)]; none: codes are symmetric. */
  readonly zeros?: Weight | undefined;
}

/** Bits that one code takes in a format. */
const bitsOf: ReadonlyMap<number, number> = new Map([
  [abi.W8, 8],
  [abi.W4, 4],
  [abi.C4, 4],
  [abi.W3, 3],
  [abi.W2, 2],
]);

/**
 * How a matrix of `bits` with scales per `group` inputs is packed, or why it cannot be.
 *
 * @param group - inputs that share a scale; `columns` for one scale per row
 * @param codebooks - runs of rows with a codebook of their own; 0 when codes are integers
 */
export function codePacking(
  rows: number,
  columns: number,
  bits: number,
  group: number,
  codebooks = 0,
): CodePacking | string {
  const channel = group >= columns;
  if (!channel && group % 16 !== 0) return `groups of ${group} are no multiple of 16`;
  const block = channel || group % 32 === 0 ? 32 : 16;
  const blocks = Math.ceil(columns / block);
  const groupBlocks = channel ? blocks : group / block;
  const formats: Readonly<Record<number, number>> = {
    8: abi.W8,
    4: abi.W4,
    // the layout of 3 bits has no blocks of 16
    3: block === 32 ? abi.W3 : abi.W4,
    2: abi.W2,
  };
  const format = codebooks > 0 ? abi.C4 : formats[bits];
  if (codebooks > 1 && (rows / codebooks) % TILE_ROWS !== 0)
    return `${rows} rows with ${codebooks} codebooks have no whole tiles of ${TILE_ROWS} for each`;
  if (format === undefined) return `there is no layout for ${bits} bits`;
  return { rows, columns, bits, format, block, groupBlocks };
}

/** Scales per row. */
export function groupsOf({ columns, block, groupBlocks }: CodePacking): number {
  return Math.ceil(Math.ceil(columns / block) / groupBlocks);
}

/** Bytes in front of the codes of a group: its scales, and its zero points. */
export function headBytes(asymmetric: boolean): number {
  return TILE_ROWS * (asymmetric ? 3 : 2);
}

/** Bytes of the codes of one block of a tile. */
function blockBytes({ format, block }: CodePacking): number {
  return (block * TILE_ROWS * (bitsOf.get(format) ?? 8)) / 8;
}

/** Bytes of one tile. */
export function tileBytes(packing: CodePacking, asymmetric: boolean): number {
  const { columns, block } = packing;
  const blocks = Math.ceil(columns / block);
  return groupsOf(packing) * headBytes(asymmetric) + blocks * blockBytes(packing);
}

/** The packed form of a matrix, made when it is read. */
export function packedMatrix(parts: CodeParts, packing: CodePacking): Weight {
  const tiles = Math.ceil(packing.rows / TILE_ROWS);
  return byTile(tiles, tileBytes(packing, parts.zeros !== undefined), (tile, into) => {
    const first = tile * TILE_ROWS;
    const part = { first, count: Math.min(TILE_ROWS, packing.rows - first), into };
    packCodes(parts, packing, part);
    packScales(parts, packing, part);
    packZeros(parts, packing, part);
  });
}

/** Rows that become a tile. */
interface TilePart {
  readonly first: number;
  readonly count: number;
  readonly into: Uint8Array;
}

/** Where each group of a tile starts. */
function groupStarts(packing: CodePacking, asymmetric: boolean): number[] {
  const bytes = headBytes(asymmetric) + packing.groupBlocks * blockBytes(packing);
  return Array.from({ length: groupsOf(packing) }, (_, group) => group * bytes);
}

/**
 * How codes of 3 bits are written as those of 4: doubled, so that zero points stay as they are, and moved to
 * where the middle is when none are stored.
 */
function asNibbles(
  { bits, format }: CodePacking,
  symmetric: boolean,
): { readonly factor: number; readonly shift: number } {
  const wider = bits < 4 && format === abi.W4;
  if (!wider) return { factor: 1, shift: 0 };
  return { factor: codeStep(bits), shift: symmetric ? middleZero(4) - middleZero(bits) : 0 };
}

function packCodes(
  { codes, zeros }: CodeParts,
  packing: CodePacking,
  { first, count, into }: TilePart,
): void {
  const { columns, bits, format, block, groupBlocks } = packing;
  const rowBytes = packedRowBytes(bits, columns);
  const stored = codes.bytes(first * rowBytes, count * rowBytes);
  // four codes to a word: four neighbouring inputs stay neighbours in every format
  const words = new Uint32Array(Math.ceil(columns / 4));
  const loose = new Uint8Array(words.buffer);
  const every = 0x01010101;
  const { factor, shift } = asNibbles(packing, zeros === undefined);
  const shifts = shift * every;
  const last = columns % 4 === 0 ? -1 : (1 << (8 * (columns % 4))) - 1;
  const head = headBytes(zeros !== undefined);
  // bits side by side in a byte (w3 keeps its third bit elsewhere), and how many fours share one, as a power of 2
  const width = format === abi.W8 ? 8 : format === abi.W4 || format === abi.C4 ? 4 : 2;
  const fours = width === 8 ? 0 : width === 4 ? 1 : 2;
  const mask = (2 ** width - 1) * every;
  const bytes = blockBytes(packing);
  const target = new DataView(into.buffer, into.byteOffset, into.byteLength);
  const add = (at: number, word: number): void =>
    target.setUint32(at, target.getUint32(at, true) | word, true);
  for (let row = 0; row < count; row++) {
    unpackRow(stored, bits, columns, loose, row * rowBytes);
    const lane = (row >> 2) * 16 + (row & 3) * 4;
    for (let b = 0; b * block < columns; b++) {
      const base = (Math.floor(b / groupBlocks) + 1) * head + b * bytes + lane;
      const start = (b * block) >> 2;
      const end = Math.min(block >> 2, words.length - start);
      for (let four = 0; four < end; four++) {
        const whole = start + four + 1 < words.length;
        const word = ((words[start + four] ?? 0) * factor + shifts) & (whole ? -1 : last);
        add(base + 64 * (four >> fours), (word & mask) << ((four & ((1 << fours) - 1)) * width));
        if (format === abi.W3) add(base + 128, ((word >>> 2) & every) << four);
      }
    }
  }
}

/** Rows of padding get 0. */
function packScales(
  { scales, zeros }: CodeParts,
  packing: CodePacking,
  { first, count, into }: TilePart,
): void {
  const groups = groupsOf(packing);
  const starts = groupStarts(packing, zeros !== undefined);
  const stored = scales.bytes(first * groups * 2, count * groups * 2);
  for (let row = 0; row < count; row++)
    starts.forEach((start, group) => {
      const from = (row * groups + group) * 2;
      into[start + row * 2] = stored[from] ?? 0;
      into[start + row * 2 + 1] = stored[from + 1] ?? 0;
    });
}

function packZeros(
  { zeros }: CodeParts,
  packing: CodePacking,
  { first, count, into }: TilePart,
): void {
  if (zeros === undefined) return;
  const groups = groupsOf(packing);
  const bits = zeroBits(packing.bits);
  const rowBytes = packedRowBytes(bits, groups);
  const starts = groupStarts(packing, true);
  const stored = zeros.bytes(first * rowBytes, count * rowBytes);
  const loose = new Uint8Array(groups);
  for (let row = 0; row < count; row++) {
    unpackRow(stored, bits, groups, loose, row * rowBytes);
    starts.forEach((start, group) => {
      into[start + 2 * TILE_ROWS + row] = loose[group] ?? 0;
    });
  }
}

/**
 * Codebooks in the order of the kernels: one a tile, entries + 64.
 *
 * @param codebook - i8 [C, 16], -64..63
 */
export function packedCodebook(codebook: Weight, { rows }: CodePacking): Weight {
  const tiles = Math.ceil(rows / TILE_ROWS);
  const rowsEach = rows / (codebook.byteLength / TILE_ROWS);
  return byTile(tiles, TILE_ROWS, (tile, into) => {
    const first = Math.floor((tile * TILE_ROWS) / rowsEach) * TILE_ROWS;
    // a stored byte is the level modulo 256
    codebook.bytes(first, TILE_ROWS).forEach((level, i) => (into[i] = (level + 64) & 255));
  });
}

/** A matrix of floats, 16 rows interleaved: [tile][k][16 rows]. */
export interface FloatPacking {
  /** Output rows. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
  /** Whether the source is stored [columns, rows]. */
  readonly transposed: boolean;
  /** Whether halves are stored. */
  readonly half: boolean;
}

/** A float matrix in tiles, made when it is read. */
export function packedFloats(
  source: () => Float32Array,
  { rows, columns, transposed, half }: FloatPacking,
): Weight {
  const tiles = Math.ceil(rows / TILE_ROWS);
  const size = half ? 2 : 4;
  let held: Float32Array | undefined;
  return byTile(tiles, columns * TILE_ROWS * size, (tile, into) => {
    // tiles are read in order: the source is held from the first to the last one
    held ??= source();
    const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
    const first = tile * TILE_ROWS;
    const count = Math.min(TILE_ROWS, rows - first);
    for (let k = 0; k < columns; k++)
      for (let row = 0; row < count; row++) {
        const at = transposed ? k * rows + first + row : (first + row) * columns + k;
        const value = held[at] ?? 0;
        const to = (k * TILE_ROWS + row) * size;
        if (half) view.setUint16(to, floatToHalf(value), true);
        else view.setFloat32(to, value, true);
      }
    if (tile === tiles - 1) held = undefined;
  });
}

/** A constant as f32, whatever float, integer or bool it is stored as; made when it is read. */
export function floatsOf(weight: Weight): Float32Array {
  const { data } = weight.tensor();
  if (data instanceof Float32Array) return data;
  if (weight.dtype === 'f16') return fromHalfArray(data as Uint16Array);
  if (weight.dtype === 'bf16') {
    const bits = Uint32Array.from(data as Uint16Array, (pattern) => pattern << 16);
    return new Float32Array(bits.buffer);
  }
  return Float32Array.from(data as ArrayLike<number | bigint>, Number);
}

/**
 * Whether a float constant is stored as halves without losing anything: it is made of halves, or every
 * number in it is one (an exporter's f16 weights behind a Cast).
 */
export function fitsHalf(weight: Weight): boolean {
  if (weight.dtype === 'f16') return true;
  if (weight.dtype !== 'f32') return false;
  let fits = known.get(weight);
  if (fits === undefined) {
    fits = floatsOf(weight).every((value) => Object.is(halfToFloat(floatToHalf(value)), value));
    known.set(weight, fits);
  }
  return fits;
}

/** Weights are asked about by each of their readers, and looking through one takes a while. */
const known = new WeakMap<Weight, boolean>();

/** A float constant as halves, rounded when it is read. */
export function halvesOf(weight: Weight): Weight {
  if (weight.dtype === 'f16') return weight;
  return Weight.lazy('f16', weight.shape, (start, length) =>
    bytesOf(toHalfArray(floatsOf(weight))).subarray(start, start + length),
  );
}

/** A weight made of equal tiles, each computed when bytes of it are read. */
function byTile(
  tiles: number,
  bytes: number,
  fill: (tile: number, into: Uint8Array) => void,
): Weight {
  return Weight.lazy('u8', [tiles * bytes], (start, length) => {
    const from = Math.floor(start / bytes);
    const to = Math.ceil((start + length) / bytes);
    const packed = new Uint8Array(Math.max(0, to - from) * bytes);
    for (let tile = from; tile < to; tile++)
      fill(tile, packed.subarray((tile - from) * bytes, (tile - from + 1) * bytes));
    return packed.subarray(start - from * bytes, start - from * bytes + length);
  });
}
