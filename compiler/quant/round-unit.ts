/**
 * Rounds one matrix to a format by a method, with what is known about its inputs.
 *
 *   nearest  scales by the error weighted with the mean square of each input, every value for itself
 *   gptq     the loss Σ e H eᵀ: GPTQ, then coordinate descent
 *
 * Both are the same procedure; `nearest` has only the diagonal of H, so that nothing is fed back. The
 * loss of a rounded layer is not all: its inputs already carry the errors of the layers before. With
 * `cross` the layer aims at what it gave before rounding: Ŵ X_q near W X, that is W* = W + W D with
 * D = (X X_qᵀ - H)(H + d I)⁻¹, and then Ŵ near W* under H.
 *
 * Sources: GPTQ (../shared/ALGORITHMS.md B4), rounding flips (Q6); the asymmetric target is that of
 * Li et al., GPTAQ, arXiv:2504.02692, in closed form.
 */
import type { Algebra } from '../algebra/algebra.ts';
import { FettleError, outOfRange } from '../../runtime/errors.ts';
import { toHalfArray } from '../../runtime/half.ts';
import type { CodeFormat } from './formats.ts';
import { levelSpan, middleZero, zeroBits } from './grid.ts';
import type { PreparedHessian } from './hessian.ts';
import { prepareHessian } from './hessian.ts';
import { learnLevels } from './learned-codebook.ts';
import type { QuantizedMatrix, RowSource } from './matrix.ts';
import { CODEBOOK_LEVELS, whyUnfit } from './matrix.ts';
import { packRows } from './pack.ts';
import type { CodeGrid } from './panel-rounder.ts';
import { PanelRounder } from './panel-rounder.ts';
import type { RoundedUnit, RoundingMethod, RoundingStatistics } from './rounding.ts';

/** Columns up to which a Hessian is used whole: beyond, its factors take gigabytes. */
const FULL_COLUMNS = 6144;

/** Blocks of a larger one. */
const DEFAULT_BLOCK = 2048;

/** Columns that rounding to nearest handles at a time: nothing connects them. */
const NEAREST_BLOCK = 256;

/** Values of a block of rows. */
const BLOCK_VALUES = 1 << 19;

/** Largest finite f16. */
const HALF_MAX = 65504;

/**
 * Rounds a matrix.
 *
 * @param rows - finite values
 * @param format - any code format
 * @param statistics - of the inputs; without any, all inputs weigh the same and `gptq` is `nearest`
 * @param onRows - called with the number of rows done
 * @throws {@link FettleError} MODEL_INVALID when a value is not finite (named by row and column), needs a
 *   scale beyond f16, or the Hessian is not finite
 */
export function roundUnit(
  rows: RowSource,
  format: CodeFormat,
  method: RoundingMethod,
  statistics: RoundingStatistics,
  algebra: Algebra,
  onRows: (done: number) => void = () => undefined,
): RoundedUnit {
  const { columns } = rows;
  const group = format.group === 'channel' ? columns : Math.min(format.group, columns);
  const hessian = statistics.hessian;
  if (hessian !== undefined && hessian.length !== columns * columns)
    throw outOfRange('hessian.length', `${columns} x ${columns}`, hessian.length);
  const sink = new UnitSink(rows, format, group);
  const levels = codebooks(rows, format, method, statistics, group);
  const block = blockSize(
    method.name === 'nearest' ? { ...method, blockDiagonal: NEAREST_BLOCK } : method,
    columns,
    group,
  );
  for (let start = 0; start < columns; start += block) {
    const count = Math.min(block, columns - start);
    const prepared = preparedBlock(algebra, method, statistics, columns, {
      start,
      count,
      group: Math.min(group, count),
    });
    const whole = count === columns && method.name === 'gptq';
    const correction = whole ? propagation(algebra, prepared, statistics, method) : undefined;
    const sweeps = method.name === 'nearest' ? 0 : (method.sweeps ?? 6);
    const most = Math.max(8, Math.floor(BLOCK_VALUES / count / 8) * 8);
    const options = { group: Math.min(group, count), clip: method.clip ?? true, sweeps };
    const rounder = new PanelRounder(algebra, prepared, options, Math.min(most, padded(rows.rows)));
    try {
      eachBlockOfRows(rows, levels.length, rounder.rows, (first, taken, book) => {
        const values = sink.read(first, taken, start, count);
        const targets =
          correction === undefined
            ? values.slice()
            : addProduct(algebra, values, correction, count);
        for (const column of prepared.dead)
          for (let r = 0; r < taken; r++) targets[r * count + column] = 0;
        const grid: CodeGrid = {
          bits: format.bits,
          symmetric: format.kind === 'codebook' || format.symmetric,
          levels: levels[book],
        };
        sink.add(first, start, count, values, rounder.round(targets, grid));
        if (start + count === columns) onRows(first + taken);
      });
    } finally {
      rounder.dispose();
    }
  }
  return sink.result(levels);
}

/** Collects codes and scales of blocks of rows and columns. */
class UnitSink {
  private readonly source: RowSource;
  private readonly format: CodeFormat;
  private readonly group: number;
  private readonly groups: number;
  private readonly largest: number;
  private readonly codes: Uint8Array<ArrayBuffer>;
  private readonly scales: Uint16Array<ArrayBuffer>;
  private readonly zeros: Uint8Array<ArrayBuffer>;
  private loss = 0;
  private squaredError = 0;
  private squaredNorm = 0;

  constructor(source: RowSource, format: CodeFormat, group: number) {
    this.source = source;
    this.format = format;
    this.group = group;
    this.groups = Math.ceil(source.columns / group);
    const { kind, bits } = format;
    const steps =
      kind === 'codebook' ? 63 : levelSpan(bits) - (format.symmetric ? middleZero(bits) : 0);
    this.largest = HALF_MAX * steps;
    this.codes = new Uint8Array(source.rows * source.columns);
    this.scales = new Uint16Array(source.rows * this.groups);
    this.zeros = new Uint8Array(source.rows * this.groups);
  }

  /** Some columns of some rows, checked. */
  read(first: number, taken: number, start: number, count: number): Float32Array {
    const { columns } = this.source;
    const all = this.source.read(first, taken);
    let norm = 0;
    for (let i = 0; i < taken * columns; i++) norm += (all[i] ?? 0) ** 2;
    // a magnitude that no scale reaches is far above the root of the smallest such sum
    if (!(norm < HALF_MAX ** 2))
      for (let r = 0; r < taken; r++) {
        const row = all.subarray(r * columns, (r + 1) * columns);
        if (row.some((value) => !(Math.abs(value) <= this.largest))) throw unfit(row, first + r);
      }
    if (count === columns) return all;
    const part = new Float32Array(taken * count);
    for (let r = 0; r < taken; r++) {
      const from = r * columns + start;
      part.set(all.subarray(from, from + count), r * count);
    }
    return part;
  }

  add(
    first: number,
    start: number,
    count: number,
    values: Float32Array,
    rounded: ReturnType<PanelRounder['round']>,
  ): void {
    const { columns } = this.source;
    const { groups, group } = this;
    const taken = values.length / count;
    const own = Math.ceil(count / group);
    const halves = toHalfArray(rounded.scales);
    for (let r = 0; r < taken; r++) {
      const row = first + r;
      this.codes.set(rounded.codes.subarray(r * count, (r + 1) * count), row * columns + start);
      for (let g = 0; g < own; g++) {
        const at = row * groups + start / group + g;
        const scale = rounded.scales[r * own + g] ?? 0;
        if (!(scale <= HALF_MAX)) throw unfit(new Float32Array(), row);
        this.scales[at] = halves[r * own + g] ?? 0;
        this.zeros[at] = rounded.zeros[r * own + g] ?? 0;
      }
    }
    for (let i = 0; i < values.length; i++) {
      const value = values[i] ?? 0;
      this.squaredNorm += value * value;
      this.squaredError += (value - (rounded.values[i] ?? 0)) ** 2;
    }
    this.loss += rounded.loss;
  }

  result(levels: readonly (Int8Array | undefined)[]): RoundedUnit {
    const { rows, columns } = this.source;
    const { bits, kind } = this.format;
    const stored = kind === 'integer' && !this.format.symmetric;
    const matrix: QuantizedMatrix = {
      rows,
      columns,
      bits,
      group: this.group,
      codes: packRows(this.codes, bits, rows, columns),
      scales: this.scales,
      zeros: stored ? packRows(this.zeros, zeroBits(bits), rows, this.groups) : undefined,
      ...(kind === 'codebook' ? { codebook: joined(levels) } : {}),
    };
    const { loss, squaredError, squaredNorm } = this;
    return { matrix, loss, relativeError: squaredNorm === 0 ? 0 : squaredError / squaredNorm };
  }
}

function unfit(row: Float32Array, index: number): FettleError {
  return new FettleError('MODEL_INVALID', `A weight cannot be rounded: ${whyUnfit(row, index)}.`, {
    at: { row: index },
    fix: 'Leave the tensor as it is (skip it by name), or repair the weights.',
  });
}

function joined(levels: readonly (Int8Array | undefined)[]): Int8Array<ArrayBuffer> {
  const all = new Int8Array(levels.length * CODEBOOK_LEVELS);
  levels.forEach((list, i) => all.set(list ?? [], i * CODEBOOK_LEVELS));
  return all;
}

/** The codebooks of the matrix; one undefined entry for integers. */
function codebooks(
  rows: RowSource,
  format: CodeFormat,
  method: RoundingMethod,
  statistics: RoundingStatistics,
  group: number,
): (Int8Array | undefined)[] {
  if (format.kind !== 'codebook') return [undefined];
  const { codebooks: count = 1 } = method;
  if (rows.rows % count !== 0) throw outOfRange('codebooks', `a divisor of ${rows.rows}`, count);
  const each = rows.rows / count;
  const weights = diagonal(statistics, rows.columns);
  return Array.from({ length: count }, (_, i) => learnLevels(rows, i * each, each, group, weights));
}

function diagonal(statistics: RoundingStatistics, columns: number): Float32Array | undefined {
  const { hessian, meanSquare } = statistics;
  if (hessian === undefined) return meanSquare?.map((value) => 2 * value);
  return Float32Array.from({ length: columns }, (_, j) => hessian[j * columns + j] ?? 0);
}

/** Block of the Hessian that is used: whole groups. */
function blockSize(method: RoundingMethod, columns: number, group: number): number {
  const wanted = method.blockDiagonal ?? (columns <= FULL_COLUMNS ? columns : DEFAULT_BLOCK);
  if (!(wanted >= 1)) throw outOfRange('blockDiagonal', 'at least 1', wanted);
  return Math.min(columns, Math.ceil(wanted / group) * group);
}

/** Columns `start` to `start + count` of what is known about the inputs. */
function hessianBlock(
  method: RoundingMethod,
  statistics: RoundingStatistics,
  columns: number,
  start: number,
  count: number,
): Float32Array {
  const { hessian } = statistics;
  const block = new Float32Array(count * count);
  if (method.name === 'gptq' && hessian !== undefined) {
    for (let i = 0; i < count; i++) {
      const from = (start + i) * columns + start;
      block.set(hessian.subarray(from, from + count), i * count);
    }
    return block;
  }
  const weights = diagonal(statistics, columns);
  for (let i = 0; i < count; i++) block[i * count + i] = weights?.[start + i] ?? 1;
  return block;
}

/** That block made ready for a size of groups, or what was kept of it. */
function preparedBlock(
  algebra: Algebra,
  method: RoundingMethod,
  statistics: RoundingStatistics,
  columns: number,
  { start, count, group }: Readonly<Record<'start' | 'count' | 'group', number>>,
): PreparedHessian {
  const order = method.name === 'nearest' ? 'none' : (method.order ?? 'groups');
  const damping = method.name === 'nearest' ? 0 : (method.damping ?? 0.01);
  const key = [method.name, order, damping, start, count, group].join(' ');
  const known = statistics.prepared?.get(key);
  if (known !== undefined) return known;
  const own = hessianBlock(method, statistics, columns, start, count);
  const prepared = prepareHessian(algebra, own, count, group, damping, order);
  statistics.prepared?.set(key, prepared);
  return prepared;
}

/** D of the file's header times its strength; undefined when there is nothing to make up for. */
function propagation(
  algebra: Algebra,
  prepared: PreparedHessian,
  { hessian, cross }: RoundingStatistics,
  method: RoundingMethod,
): Float32Array | undefined {
  const { propagation: strength = 0.75 } = method;
  if (cross === undefined || hessian === undefined || strength === 0) return undefined;
  const { columns } = prepared;
  if (cross.length !== columns * columns)
    throw outOfRange('cross.length', `${columns} x ${columns}`, cross.length);
  const inverse = algebra.inverseFactor(prepared.matrix, columns);
  if (inverse === undefined) return undefined;
  const upper = Float32Array.from(inverse.upper);
  const difference = cross.map((value, i) => strength * (value - (hessian[i] ?? 0)));
  const half = algebra.matmul(difference, upper, columns, columns, columns, { bTransposed: true });
  return algebra.matmul(half, upper, columns, columns, columns);
}

function addProduct(
  algebra: Algebra,
  values: Float32Array,
  correction: Float32Array,
  columns: number,
): Float32Array {
  const product = algebra.matmul(values, correction, values.length / columns, columns, columns);
  for (let i = 0; i < product.length; i++) product[i] = (product[i] ?? 0) + (values[i] ?? 0);
  return product;
}

function padded(rows: number): number {
  return Math.ceil(rows / 8) * 8;
}

/** Calls with blocks of at most `most` rows, none of which spans two codebooks. */
function eachBlockOfRows(
  source: RowSource,
  books: number,
  most: number,
  work: (first: number, count: number, book: number) => void,
): void {
  const each = source.rows / books;
  for (let book = 0; book < books; book++)
    for (let first = book * each; first < (book + 1) * each; first += most)
      work(first, Math.min(most, (book + 1) * each - first), book);
}
