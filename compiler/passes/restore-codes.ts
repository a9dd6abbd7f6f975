/**
 * Stores the weights that a model brought in 8 bits as it brought them, after everything that looks for
 * constant matrices: `expand-integers` made floats of them, which remember their codes.
 *
 *     MatMul(x, w f32 [K, N], made of codes)   ->   MatMul(x, fettle.Dequantize(codes, scales f16, zeros))
 *
 * Scales are rounded to f16, 2^-12 of a weight at most. Left in floats: small weights, scales that halves
 * do not hold, scales along another axis than the outputs, and integers whose products are wanted to the last bit.
 */
import { floatToHalf } from '../../runtime/half.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { WeightGrid } from '../ir/weight.ts';
import type { QuantizedMatrix } from '../quant/matrix.ts';
import { insertDequantize } from './insert-dequantize.ts';
import type { Pass } from './pass.ts';
import type { WeightUnit } from './weight-units.ts';
import { weightUnits } from './weight-units.ts';

/** Smallest weight that is worth it, in elements. */
const MIN_ELEMENTS = 1024;

/** The least number that an f16 holds with all its bits. */
const LEAST_HALF = 2 ** -14;
const LARGEST_HALF = 65_504;

/** Makes the pass. It has no options. */
export function restoreCodes(): Pass {
  return {
    name: 'restore-codes',
    options: {},
    run(model, context) {
      const before = context.rewriter.changes;
      for (const unit of weightUnits(model, { minElements: MIN_ELEMENTS })) {
        const grid = unit.constant.weight?.grid;
        if (grid === undefined) continue;
        const matrix = matrixOf(unit, grid);
        if (typeof matrix === 'string') {
          context.refuse('restore', unit.constant, matrix);
          continue;
        }
        insertDequantize(model, unit.sites, matrix, context);
        context.count('restore');
      }
      return context.rewriter.changes > before;
    },
  };
}

/** The codes of a unit with rows as outputs, or why they cannot be stored so. */
function matrixOf(unit: WeightUnit, grid: WeightGrid): QuantizedMatrix | string {
  const { rows, columns, sites, kind } = unit;
  const { codes, scales, zeros, axis, exact } = grid;
  const [{ storedTransposed }] = sites;
  if (exact && kind !== 'convolution') return 'its products are wanted to the last bit';
  if (scales.length > 1 && axis !== (storedTransposed ? 1 : 0))
    return 'its scales lie along its inputs';
  if (scales.some((scale) => !(Math.abs(scale) >= LEAST_HALF && Math.abs(scale) <= LARGEST_HALF)))
    return 'halves do not hold its scales';
  if (elementCount(codes.shape) !== rows * columns) return 'its codes have another size';
  const signed = codes.dtype === 'i8' ? 128 : 0;
  const stored = codes.bytes();
  const packed = new Uint8Array(rows * columns);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) {
      const from = storedTransposed ? column * rows + row : row * columns + column;
      packed[row * columns + column] = ((stored[from] ?? 0) + signed) & 255;
    }
  const each = (list: readonly number[], row: number): number =>
    list[list.length === 1 ? 0 : row] ?? 0;
  const zeroOf = (row: number): number => each(zeros, row) + signed;
  const centered = zeros.every((zero) => zero + signed === 128);
  return {
    rows,
    columns,
    bits: 8,
    group: columns,
    codes: packed,
    scales: Uint16Array.from({ length: rows }, (_, row) => floatToHalf(each(scales, row))),
    zeros: centered ? undefined : Uint8Array.from({ length: rows }, (_, row) => zeroOf(row)),
  };
}
