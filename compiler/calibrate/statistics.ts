/**
 * What is kept of the activations a unit is multiplied with: running sums only, never the activations.
 * Per input channel ranges and moments; and, while its stage is processed, the Hessian of the loss of
 * its product, H = (2/Σw) Σ w_t x_t x_tᵀ (Frantar et al., GPTQ, arXiv:2210.17323), where w_t is 1 or the
 * attention a token gets (Sung et al., RSQ, arXiv:2503.01820).
 */
import { FettleError } from '../../runtime/errors.ts';
import type { Algebra, Gram } from '../algebra/algebra.ts';

/** The inputs of one unit over all samples. */
export interface UnitStatistics {
  /** Rows seen: tokens, or positions of images. */
  readonly tokens: number;
  /** Largest magnitude of each input channel, [columns]. */
  readonly absmax: Float32Array;
  /** Mean of each input channel, [columns]. */
  readonly mean: Float32Array;
  /** Mean square of each input channel, [columns]. */
  readonly meanSquare: Float32Array;
  /** Smallest value of all. */
  readonly least: number;
  /** Largest value of all. */
  readonly greatest: number;
  /** Trace of the Hessian without token weights, 2 Σ meanSquare. */
  readonly hessianTrace: number;
  /**
   * tr(W H Wᵀ): twice the mean square norm of the unit's product, by which losses of rounding become
   * relative; 0 where no Hessian was collected.
   */
  readonly outputEnergy: number;
  /** [columns, columns], symmetric; only while its stage is processed. */
  readonly hessian?: Float32Array;
  /**
   * (2/Σw) Σ w_t y_t x_tᵀ with y what the unquantized model would have given, [columns, columns]; only
   * when it is asked for, and only while its stage is processed.
   */
  readonly cross?: Float32Array;
}

/** What a {@link UnitSums} keeps besides ranges and moments. */
export interface UnitSumsOptions {
  /** For the Hessian; absent: none is kept. */
  readonly algebra?: Algebra | undefined;
  /** Whether rows come with those of the unquantized model. Default false. */
  readonly cross?: boolean;
}

/** Running sums over the inputs of a unit. */
export class UnitSums {
  private readonly columns: number;
  private readonly absmax: Float32Array;
  private readonly sums: Float64Array;
  private readonly squares: Float64Array;
  private readonly gram: Gram | undefined;
  private readonly cross: Gram | undefined;
  private tokens = 0;
  private least = Infinity;
  private greatest = -Infinity;

  constructor(columns: number, { algebra, cross = false }: UnitSumsOptions = {}) {
    this.columns = columns;
    this.absmax = new Float32Array(columns);
    this.sums = new Float64Array(columns);
    this.squares = new Float64Array(columns);
    this.gram = algebra?.gram(columns);
    this.cross = cross ? algebra?.gram(columns) : undefined;
  }

  /**
   * Adds rows.
   *
   * @param rows - [tokens, columns]
   * @param where - value, node and sample they come from, for messages
   * @param weights - factors of the rows in the Hessian, [tokens]
   * @param others - rows of the unquantized model, [tokens, columns]
   * @throws {@link FettleError} MODEL_INVALID when a value is not finite
   */
  add(
    rows: Float32Array,
    where: NotFinitePlace,
    weights?: Float32Array,
    others?: Float32Array,
  ): void {
    const { columns, absmax, sums, squares } = this;
    let [least, greatest] = [this.least, this.greatest];
    for (let start = 0; start < rows.length; start += columns)
      for (let column = 0; column < columns; column++) {
        // in bounds throughout; the casts spare a check per element
        const value = rows[start + column] as number;
        if (value < least) least = value;
        if (value > greatest) greatest = value;
        const magnitude = Math.abs(value);
        if (magnitude > (absmax[column] as number)) absmax[column] = magnitude;
        sums[column] = (sums[column] as number) + value;
        squares[column] = (squares[column] as number) + value * value;
      }
    if (squares.some((square) => !Number.isFinite(square))) throw notFinite(where);
    this.least = least;
    this.greatest = greatest;
    this.tokens += rows.length / columns;
    this.gram?.add(rows, weights);
    if (others !== undefined) this.cross?.add(others, weights, rows);
  }

  /** The statistics so far. */
  statistics(): UnitStatistics {
    const { tokens, absmax, sums, squares, gram, cross } = this;
    const count = Math.max(1, tokens);
    const meanSquare = Float32Array.from(squares, (square) => square / count);
    return {
      tokens,
      absmax,
      mean: Float32Array.from(sums, (sum) => sum / count),
      meanSquare,
      least: tokens === 0 ? 0 : this.least,
      greatest: tokens === 0 ? 0 : this.greatest,
      outputEnergy: 0,
      hessianTrace: squares.reduce((sum, square) => sum + (2 * square) / count, 0),
      ...(gram === undefined ? {} : { hessian: gram.hessian() }),
      ...(cross === undefined ? {} : { cross: cross.hessian() }),
    };
  }

  /** Gives memory back. */
  dispose(): void {
    this.gram?.dispose();
    this.cross?.dispose();
  }
}

/** Statistics without what is only kept while a stage is processed. */
export function withoutHessian(statistics: UnitStatistics): UnitStatistics {
  const { hessian: _, cross: __, ...rest } = statistics;
  return rest;
}

/** Where values were met that are not finite. */
export interface NotFinitePlace {
  /** The value. */
  readonly value: string;
  /** What computes it; '' when it is not known. */
  readonly node: string;
  /** Which sample it was; absent when it is not known. */
  readonly sample?: number;
}

/**
 * The error for activations that are NaN or infinite.
 *
 * @param weights - constant of the node that is the reason, when one is
 */
export function notFinite({ value, node, sample }: NotFinitePlace, weights?: string): FettleError {
  const which = sample === undefined ? '' : ` of sample ${sample}`;
  const who = node === '' ? 'a node' : `node "${node}"`;
  const why = weights === undefined ? '' : `; its weights "${weights}" hold NaN or infinity`;
  return new FettleError(
    'MODEL_INVALID',
    `Calibration met values that are not finite: "${value}"${which}, which ${who} computes${why}.`,
    {
      at: { node, value, ...(sample === undefined ? {} : { sample }) },
      fix:
        weights === undefined
          ? 'Check the data, and the weights of the model for NaN or infinities.'
          : 'Repair the weights.',
    },
  );
}
