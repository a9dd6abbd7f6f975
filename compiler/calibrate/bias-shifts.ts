/**
 * What rounding takes from the mean of a unit's outputs, for the pass `correct-bias`:
 *
 *     shift = (W - Ŵ) mean(x)
 *
 * Source: Nagel et al., Data-Free Quantization, arXiv:1906.04721, section 4.2, with means measured.
 */
import type { WeightUnit } from '../passes/weight-units.ts';
import { unitRows } from '../passes/weight-units.ts';
import { dequantizeMatrix } from '../quant/matrix.ts';
import type { RoundedUnit } from '../quant/rounding.ts';
import type { UnitStatistics } from './statistics.ts';

/**
 * The shift of each output channel, [rows].
 *
 * @param statistics - of the inputs the rounded unit gets
 */
export function biasShift(
  unit: WeightUnit,
  { matrix }: Pick<RoundedUnit, 'matrix'>,
  { mean }: Pick<UnitStatistics, 'mean'>,
): readonly number[] {
  const { rows, columns } = unit;
  const rounded = dequantizeMatrix(matrix);
  const source = unitRows(unit);
  const shifts: number[] = [];
  for (let row = 0; row < rows; row++) {
    const values = source.read(row, 1);
    let shift = 0;
    for (let j = 0; j < columns; j++)
      shift += ((values[j] ?? 0) - (rounded[row * columns + j] ?? 0)) * (mean[j] ?? 0);
    shifts.push(shift);
  }
  return shifts;
}
