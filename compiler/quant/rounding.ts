/**
 * How a matrix is rounded: the choices of a recipe, what calibration knows about the inputs of the matrix,
 * and what comes out. `round-unit.ts` does it.
 */
import type { PreparedHessian } from './hessian.ts';
import type { QuantizedMatrix } from './matrix.ts';

/** A way to round a matrix. */
export interface RoundingMethod {
  /**
   * `nearest`: every value for itself, scales by the error that the mean square of each input gives;
   * `gptq`: errors are fed back into the inputs still to come.
   */
  readonly name: 'nearest' | 'gptq';
  /** Whether scales below the range of a group are tried. Default true */
  readonly clip?: boolean;
  /**
   * Which inputs come first. `groups` (default): groups by what their inputs weigh, and inputs inside
   * their group; scales are chosen as a group is entered. `columns`: inputs by what they weigh; scales
   * are chosen in advance. `none`: as they are.
   */
  readonly order?: 'groups' | 'columns' | 'none';
  /** Share of the mean of the Hessian's diagonal that is added to it. Default 0.01 */
  readonly damping?: number;
  /** Use only blocks of this many inputs of the Hessian. Default: all of it up to 6,144 inputs, then 2,048. */
  readonly blockDiagonal?: number;
  /**
   * Sweeps of coordinate descent after GPTQ: groups are rounded again, scales included, and single codes
   * move while the loss falls. Default 6; it ends early when nothing changes
   */
  readonly sweeps?: number;
  /**
   * How much of the error of earlier layers a layer makes up for, 0..1; needs
   * {@link RoundingStatistics.cross}. Default 0.75: calibration
   * data are not what the model will see
   */
  readonly propagation?: number;
  /** Codebooks of a codebook format, each for as many contiguous rows. Default 1 */
  readonly codebooks?: number;
}

/** What rounding uses of the statistics of a unit's inputs x [tokens, columns]. */
export interface RoundingStatistics {
  /** (2 / T) Σ w_t x xᵀ, [columns, columns]; of the model as rounded so far. */
  readonly hessian?: Float32Array | undefined;
  /**
   * (2 / T) Σ w_t y xᵀ, [columns, columns], y the same inputs in the model before rounding: then rounding
   * aims at the outputs that the original layer gave for the original inputs.
   */
  readonly cross?: Float32Array | undefined;
  /** Mean of x², [columns]: the diagonal, when there is no Hessian. */
  readonly meanSquare?: Float32Array | undefined;
  /** Keeps what is computed from the Hessian, for the same matrix in other formats. Default: it is not kept. */
  readonly prepared?: Map<string, PreparedHessian>;
}

/** A rounded matrix and what it cost. */
export interface RoundedUnit {
  /** Codes, scales, zero points. */
  readonly matrix: QuantizedMatrix;
  /**
   * Σ e H eᵀ over all rows, e = what was aimed at minus what it became; with the identity for H when
   * nothing is known about the inputs.
   */
  readonly loss: number;
  /** `‖W - Ŵ‖² / ‖W‖²`. */
  readonly relativeError: number;
}

/**
 * The method for a table whose rows are also gathered: there an error counts the same in every column, so
 * the identity weighs as much as the Hessian of the product. With the Hessian alone, rows would carry
 * errors where the product does not see them and everything behind the gather does (`nib` in 2 bits: KL
 * 0.170 against 0.161 without a Hessian).
 */
export function methodForTable(method: RoundingMethod): RoundingMethod {
  return { ...method, damping: Math.max(1, method.damping ?? 0) };
}
