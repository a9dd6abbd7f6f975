/**
 * What a unit costs in a format on a target: bytes in the bundle, to the byte, and a time estimate.
 *
 * Engines lay weights out in their own ways: our kernels pad rows to tiles of 16 and keep a byte per zero
 * point; onnxruntime stores 2 and 3 bits as 4 and unpacks everything to f32 when a session starts.
 */
import type { Target } from '../../targets/target.ts';
import { WEIGHT_ALIGNMENT } from '../emit/layout.ts';
import { codePacking, TILE_ROWS, tileBytes } from '../lower/pack-weights.ts';
import type { WeightFormat } from '../quant/formats.ts';
import { zeroBits } from '../quant/grid.ts';
import { packedRowBytes } from '../quant/pack.ts';

/** A matrix as costs see it. */
export interface MatrixShape {
  /** Output channels. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
  /** `table` for one that rows are gathered from. */
  readonly kind: string;
}

/** What a matrix costs. */
export interface MatrixCost {
  /** Bytes in the bundle, alignment included. */
  readonly bytesDownload: number;
  /** Bytes while the model runs. */
  readonly bytesResident: number;
  /** Time of one product with one row of activations, in microseconds. */
  readonly decodeUs: number;
}

/** Bytes that one thread reads from memory in a microsecond (24 GB/s, README "Speed"). */
const BYTES_PER_US = 24_000;
/**
 * Multiply-accumulates of one thread in a microsecond, by the kind of code: 23 billion a second were
 * measured for integer codes of at most 4 bits (README "Speed"); 8 bits and codebooks take 16-bit lanes
 * (decisions/001), floats a quarter of it.
 */
const MACS_PER_US = { narrow: 23_000, wide: 12_000, float: 6_000 } as const;

/**
 * What a matrix costs on a target.
 *
 * @returns undefined when the target has no layout for it
 */
export function matrixCost(
  shape: MatrixShape,
  format: WeightFormat,
  target: Target,
): MatrixCost | undefined {
  const bytes = target.engine === 'ort' ? ortBytes(shape, format) : ownBytes(shape, format);
  if (bytes === undefined) return undefined;
  const { rows, columns, kind } = shape;
  // filters are unpacked to f32, by onnxruntime when a session starts and by our plan when it is loaded
  const unpacks = target.engine === 'ort' || (kind === 'convolution' && format.kind !== 'float');
  const resident = unpacks ? Math.max(bytes, 4 * rows * columns) : bytes;
  return {
    bytesDownload: bytes,
    bytesResident: resident,
    decodeUs: timeOf(shape, format, resident),
  };
}

function timeOf({ rows, columns }: MatrixShape, format: WeightFormat, resident: number): number {
  const kind =
    format.kind === 'float'
      ? 'float'
      : format.kind === 'codebook' || format.bits === 8
        ? 'wide'
        : 'narrow';
  const us = Math.max(resident / BYTES_PER_US, (rows * columns) / MACS_PER_US[kind]);
  return Number(us.toPrecision(6));
}

/** Our own kernels: see lower/pack-weights.ts. */
function ownBytes({ rows, columns, kind }: MatrixShape, format: WeightFormat): number | undefined {
  if (kind === 'convolution' && format.kind !== 'float')
    return untiledBytes({ rows, columns }, format);
  const tiles = Math.ceil(rows / TILE_ROWS);
  if (format.kind === 'float') {
    const size = format.dtype === 'f16' ? 2 : 4;
    return align(tiles * TILE_ROWS * columns * size);
  }
  const group = format.group === 'channel' ? columns : format.group;
  const tables = format.kind === 'codebook' ? 1 : 0;
  const packing = codePacking(rows, columns, format.bits, group, tables);
  if (typeof packing === 'string') return undefined;
  const asymmetric = format.kind !== 'codebook' && !format.symmetric;
  const codebook = format.kind === 'codebook' ? align(tiles * CODEBOOK_BYTES) : 0;
  return align(tiles * tileBytes(packing, asymmetric)) + codebook;
}

/** Filters are stored as the compiler keeps them, see lower/wasm-unpack.ts. */
function untiledBytes(
  { rows, columns }: Pick<MatrixShape, 'rows' | 'columns'>,
  format: Exclude<WeightFormat, { kind: 'float' }>,
): number {
  const groups = format.group === 'channel' ? 1 : Math.ceil(columns / format.group);
  const extra =
    format.kind === 'codebook'
      ? CODEBOOK_BYTES
      : format.symmetric
        ? 0
        : rows * packedRowBytes(zeroBits(format.bits), groups);
  return (
    align(rows * packedRowBytes(format.bits, columns)) + align(2 * rows * groups) + align(extra)
  );
}

/** A codebook of 16 levels is repeated for each tile. */
const CODEBOOK_BYTES = 16;

/** onnxruntime: codes of 4 or 8 bits; the scales of a unit are f16; see lower/dequantize-linear.ts. */
function ortBytes({ rows, columns, kind }: MatrixShape, format: WeightFormat): number {
  const elements = rows * columns;
  if (format.kind === 'float') return align(elements * (format.dtype === 'f16' ? 2 : 4));
  const stored = format.kind === 'codebook' || format.bits === 8 ? 8 : 4;
  const groups = format.group === 'channel' ? 1 : Math.ceil(columns / format.group);
  const symmetric = format.kind === 'codebook' || format.symmetric;
  const zeros = symmetric
    ? 0
    : kind === 'table'
      ? rows * packedRowBytes(stored, groups)
      : Math.ceil((rows * groups * stored) / 8);
  return align(Math.ceil((elements * stored) / 8)) + align(2 * rows * groups) + align(zeros);
}

function align(bytes: number): number {
  return Math.ceil(bytes / WEIGHT_ALIGNMENT) * WEIGHT_ALIGNMENT;
}

/**
 * Bytes of a matrix as the compiler itself keeps it (quant/pack.ts): no tiles, no alignment. What the
 * average bits of a published format count.
 */
export function plainBytes({ rows, columns }: MatrixShape, format: WeightFormat): number {
  if (format.kind === 'float') return (rows * columns * format.bits) / 8;
  const groups = format.group === 'channel' ? 1 : Math.ceil(columns / format.group);
  const zeros =
    format.kind === 'codebook' || format.symmetric
      ? 0
      : rows * packedRowBytes(zeroBits(format.bits), groups);
  const table = format.kind === 'codebook' ? 16 : 0;
  return rows * packedRowBytes(format.bits, columns) + 2 * rows * groups + zeros + table;
}
