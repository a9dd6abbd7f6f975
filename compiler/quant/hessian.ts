/**
 * What rounding needs of a Hessian, in the memory of the algebra: itself, the factor of its inverse in the
 * order in which columns are rounded, and the same of every group alone.
 *
 * Columns that never had an input (a diagonal of 0) weigh 1 and round to 0. The diagonal is damped by
 * 0.01 of its mean, again and again until the matrix has a factor: ../shared/ALGORITHMS.md B4.
 */
import type { Algebra } from '../algebra/algebra.ts';
import { FettleError } from '../../runtime/errors.ts';

/** Times that damping is added before a Hessian is given up. */
const RETRIES = 50;

/** Order of the columns while they are rounded. */
export type ColumnOrder = 'groups' | 'columns' | 'none';

/** A Hessian ready for rounding. */
export interface PreparedHessian {
  /** Columns. */
  readonly columns: number;
  /** Damped, dead columns set, natural order, [columns, columns]. */
  readonly matrix: Float32Array<ArrayBuffer>;
  /** What was added to its diagonal. */
  readonly damping: number;
  /** Columns that have no input. */
  readonly dead: readonly number[];
  /** Column of each place in the order of rounding; undefined: as they are. */
  readonly order: Int32Array<ArrayBuffer> | undefined;
  /** Transposed upper factor of the inverse in that order, [columns, columns]. */
  readonly factor: Float32Array<ArrayBuffer>;
  /** The factor of each group's own block, natural order, [columns, group]. */
  readonly groupFactors: Float32Array<ArrayBuffer>;
  /** The inverse of each group's own block, [columns, group]. */
  readonly groupInverses: Float32Array<ArrayBuffer>;
}

/**
 * Prepares a Hessian.
 *
 * @param hessian - [columns, columns], symmetric, at least 0 on its diagonal
 * @param group - columns that share a scale
 * @param damping - share of the mean of the diagonal
 * @throws {@link FettleError} MODEL_INVALID when it is not finite, or has no factor however damped
 */
export function prepareHessian(
  algebra: Algebra,
  hessian: Float32Array,
  columns: number,
  group: number,
  damping: number,
  ordering: ColumnOrder,
): PreparedHessian {
  const matrix = hessian.slice();
  const dead: number[] = [];
  let trace = 0;
  for (let j = 0; j < columns; j++) {
    const diagonal = matrix[j * columns + j] ?? 0;
    if (!Number.isFinite(diagonal) || diagonal < 0) throw invalid(j, diagonal);
    trace += diagonal;
    if (diagonal > 0) continue;
    dead.push(j);
    for (let k = 0; k < columns; k++) matrix[j * columns + k] = matrix[k * columns + j] = 0;
  }
  // without any input nothing is known: every column weighs the same
  const alive = columns - dead.length;
  for (const j of dead) matrix[j * columns + j] = alive === 0 ? 1 : trace / alive;
  const order = columnOrder(matrix, columns, group, ordering);
  const ordered = order === undefined ? matrix : permuted(matrix, columns, order);
  const found = algebra.inverseFactor(ordered, columns, damping, RETRIES);
  if (found === undefined) throw invalid(undefined, undefined);
  for (let j = 0; j < columns; j++)
    matrix[j * columns + j] = (matrix[j * columns + j] ?? 0) + found.damping;
  return {
    columns,
    matrix,
    damping: found.damping,
    dead,
    order,
    factor: transposed(found.upper, columns),
    ...groupBlocks(algebra, matrix, columns, group),
  };
}

function invalid(column: number | undefined, diagonal: number | undefined): FettleError {
  return new FettleError(
    'MODEL_INVALID',
    column === undefined
      ? 'The Hessian of the calibration inputs is not positive definite, however much is added to its diagonal.'
      : `The calibration inputs of column ${column} have a mean square of ${diagonal}.`,
    {
      ...(column === undefined ? {} : { at: { column } }),
      fix: 'Check the calibration data and the model for NaN or infinity.',
    },
  );
}

/** Groups, or columns, by decreasing diagonal; ties stay as they are, a shorter last group stays last. */
function columnOrder(
  matrix: Float32Array,
  columns: number,
  group: number,
  ordering: ColumnOrder,
): Int32Array<ArrayBuffer> | undefined {
  if (ordering === 'none') return undefined;
  const weight = (j: number): number => matrix[j * columns + j] ?? 0;
  const sorted = (list: number[]): number[] => list.sort((a, b) => weight(b) - weight(a) || a - b);
  const all = Array.from({ length: columns }, (_, j) => j);
  if (ordering === 'columns') return Int32Array.from(sorted(all));
  const groups = Array.from({ length: Math.ceil(columns / group) }, (_, g) => {
    const members = sorted(all.slice(g * group, (g + 1) * group));
    return { g, members, weight: members.reduce((sum, j) => sum + weight(j), 0) };
  });
  const last = columns % group === 0 ? undefined : groups.pop();
  groups.sort((a, b) => b.weight - a.weight || a.g - b.g);
  if (last !== undefined) groups.push(last);
  return Int32Array.from(groups.flatMap(({ members }) => members));
}

function permuted(matrix: Float32Array, columns: number, order: Int32Array): Float32Array {
  const result = new Float32Array(columns * columns);
  for (let i = 0; i < columns; i++) {
    const row = (order[i] ?? 0) * columns;
    for (let j = 0; j < columns; j++) result[i * columns + j] = matrix[row + (order[j] ?? 0)] ?? 0;
  }
  return result;
}

function transposed(upper: Float64Array, columns: number): Float32Array<ArrayBuffer> {
  const result = new Float32Array(columns * columns);
  for (let i = 0; i < columns; i++)
    for (let j = i; j < columns; j++) result[j * columns + i] = upper[i * columns + j] ?? 0;
  return result;
}

/** Factor and inverse of the diagonal block of every group. */
function groupBlocks(
  algebra: Algebra,
  matrix: Float32Array,
  columns: number,
  group: number,
): Pick<PreparedHessian, 'groupFactors' | 'groupInverses'> {
  const groupFactors = new Float32Array(columns * group);
  const groupInverses = new Float32Array(columns * group);
  for (let start = 0; start < columns; start += group) {
    const count = Math.min(group, columns - start);
    const block = new Float32Array(count * count);
    for (let i = 0; i < count; i++)
      for (let j = 0; j < count; j++)
        block[i * count + j] = matrix[(start + i) * columns + start + j] ?? 0;
    const found = algebra.inverseFactor(block, count, 0, RETRIES);
    if (found === undefined) throw invalid(undefined, undefined);
    const { upper } = found;
    for (let i = 0; i < count; i++)
      for (let j = i; j < count; j++)
        groupFactors[(start + j) * group + i] = upper[i * count + j] ?? 0;
    // with one group its inverse is never asked for
    if (count === columns) break;
    for (let i = 0; i < count; i++)
      for (let j = 0; j < count; j++) {
        let sum = 0;
        for (let k = 0; k <= Math.min(i, j); k++)
          sum += (upper[k * count + i] ?? 0) * (upper[k * count + j] ?? 0);
        groupInverses[(start + i) * group + j] = sum;
      }
  }
  return { groupFactors, groupInverses };
}
