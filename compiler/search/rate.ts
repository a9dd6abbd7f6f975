/**
 * How much each format of a unit disturbs the unit's output, before anything is run through the model:
 * a sample of its rows is rounded by the method in question, and the loss is taken relative to the energy
 * of the same rows.
 *
 *   outputError = Σ e H eᵀ / Σ w H wᵀ      over sampled rows w, e = w - ŵ
 *
 * Times the unit's noise gain this predicts the model's error (../shared/ALGORITHMS.md Z3, suffixGain).
 */
import type { Algebra } from '../algebra/algebra.ts';
import { throwIfAborted } from '../../runtime/errors.ts';
import { halfToFloat, floatToHalf } from '../../runtime/half.ts';
import type { WeightFormat } from '../quant/formats.ts';
import type { RowSource } from '../quant/matrix.ts';
import { roundUnit } from '../quant/round-unit.ts';
import type { RoundingMethod, RoundingStatistics } from '../quant/rounding.ts';

/** One format of a unit, rated. */
export interface Rating {
  /** The format. */
  readonly format: WeightFormat;
  /** Relative squared error of the unit's output. */
  readonly outputError: number;
  /** Relative squared error of its weights. */
  readonly weightError: number;
}

/** Ratings of a unit, and the energy they are relative to. */
export interface UnitRatings {
  /** In the order of the formats. */
  readonly ratings: readonly Rating[];
  /** `tr(W H Wᵀ)`, of all rows. */
  readonly outputEnergy: number;
}

/** Values that are rounded per format: enough rows for a mean, few enough for a hundred units. */
const SAMPLED_VALUES = 1 << 15;
/** Rows at least. */
const SAMPLED_ROWS = 64;
/** Inputs beyond which a Hessian is used in blocks of so many: its factors grow with the cube. */
const LARGE_COLUMNS = 768;

/**
 * Rates formats.
 *
 * @param rows - the matrix, [output channels, inputs]
 * @param statistics - of its inputs; `{}` for a table that nothing multiplies by
 */
export function rateFormats(
  rows: RowSource,
  formats: readonly WeightFormat[],
  method: RoundingMethod,
  statistics: RoundingStatistics,
  algebra: Algebra,
  signal?: AbortSignal,
): UnitRatings {
  const sample = sampleRows(rows);
  const values = sample.read(0, sample.rows);
  const energy = energyOf(values, sample, statistics, algebra);
  const norm = values.reduce((sum, value) => sum + value * value, 0);
  const known = { ...statistics, prepared: new Map() };
  const block = rows.columns > LARGE_COLUMNS ? { blockDiagonal: LARGE_COLUMNS } : {};
  const ratings = formats.map((format): Rating => {
    throwIfAborted(signal);
    if (format.kind === 'float') {
      const error = format.dtype === 'f16' ? halfError(values) / Math.max(norm, 1e-300) : 0;
      return { format, outputError: error, weightError: error };
    }
    const quick: RoundingMethod = { ...method, sweeps: 0, ...block };
    const { loss, relativeError } = roundUnit(sample, format, quick, known, algebra);
    return {
      format,
      outputError: energy > 0 ? loss / energy : relativeError,
      weightError: relativeError,
    };
  });
  return { ratings, outputEnergy: energy * (rows.rows / Math.max(1, sample.rows)) };
}

/** Rows spread evenly over a matrix, held in memory. */
function sampleRows(source: RowSource): RowSource {
  const { rows, columns } = source;
  const wanted = Math.max(SAMPLED_ROWS, Math.floor(SAMPLED_VALUES / Math.max(1, columns)));
  const count = Math.min(rows, wanted);
  const held = new Float32Array(count * columns);
  for (let i = 0; i < count; i++) {
    const row = Math.floor((i * rows) / count);
    held.set(source.read(row, 1).subarray(0, columns), i * columns);
  }
  return {
    rows: count,
    columns,
    read: (start, length) => held.slice(start * columns, (start + length) * columns),
  };
}

/** `Σ w H wᵀ` over rows. */
function energyOf(
  values: Float32Array,
  { rows, columns }: RowSource,
  { hessian, meanSquare }: RoundingStatistics,
  algebra: Algebra,
): number {
  let sum = 0;
  if (hessian !== undefined) {
    const product = algebra.matmul(values, hessian, rows, columns, columns);
    for (let i = 0; i < product.length; i++) sum += (product[i] ?? 0) * (values[i] ?? 0);
    return sum;
  }
  for (let i = 0; i < values.length; i++) {
    const weight = meanSquare === undefined ? 1 : 2 * (meanSquare[i % columns] ?? 0);
    sum += weight * (values[i] ?? 0) ** 2;
  }
  return sum;
}

function halfError(values: Float32Array): number {
  return values.reduce((sum, value) => sum + (value - halfToFloat(floatToHalf(value))) ** 2, 0);
}
