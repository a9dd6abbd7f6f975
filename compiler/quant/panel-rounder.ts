/**
 * Rounds rows of a matrix under the loss Σ e H eᵀ, a block of rows at a time, in the algebra's memory:
 * GPTQ, then sweeps of coordinate descent. The loops are in `compiler/algebra/kernels/round.ts` and `sweep.ts`.
 */
import type { Algebra } from '../algebra/algebra.ts';
import * as abi from '../algebra/kernels/abi.ts';
import { codeStep, levelSpan } from './grid.ts';
import type { PreparedHessian } from './hessian.ts';

/** What the codes are. */
export interface CodeGrid {
  /** Bits of a code. */
  readonly bits: number;
  /** Whether the zero point is in the middle. */
  readonly symmetric: boolean;
  /** 16 ascending levels instead of integers. */
  readonly levels?: Int8Array | undefined;
}

/** How rows are rounded. */
export interface PanelOptions {
  /** Columns that share a scale. */
  readonly group: number;
  /** Whether scales below a group's range are tried. */
  readonly clip: boolean;
  /** Sweeps of coordinate descent, at most. */
  readonly sweeps: number;
}

/** Rounded rows. */
export interface RoundedRows {
  /** [rows, columns], one code a byte. */
  readonly codes: Uint8Array<ArrayBuffer>;
  /** [rows, groups]; f16 values. */
  readonly scales: Float32Array<ArrayBuffer>;
  /** [rows, groups]. */
  readonly zeros: Uint8Array<ArrayBuffer>;
  /** What they stand for, [rows, columns]. */
  readonly values: Float32Array<ArrayBuffer>;
  /** Σ e H eᵀ, damping not counted. */
  readonly loss: number;
}

/** Largest group in which errors are fed back for every candidate scale: what that costs grows with it. */
const FEEDBACK_GROUP = 128;

/** Factors on the scale that a group's range gives: 1, 0.98, …, 0.5. */
const rangeFactors: readonly number[] = Array.from({ length: 26 }, (_, i) => 1 - i / 50);

/** Factors on the scale that a group has. */
const besideFactors: readonly number[] = [0.86, 0.91, 0.94, 0.97, 0.985, 1, 1.015, 1.03, 1.06, 1.1];

/** Rounds rows with one Hessian; holds memory until {@link dispose}. */
export class PanelRounder {
  /** Most rows of one call. */
  readonly rows: number;
  private readonly algebra: Algebra;
  private readonly hessian: PreparedHessian;
  private readonly options: PanelOptions;
  private readonly groups: number;
  private readonly blocks: number[] = [];
  private readonly words = new Uint32Array(abi.ROUND_WORDS);
  private readonly block: number;
  private readonly staging: number;
  private readonly aside: number;
  private readonly order: number;
  private readonly factors: number;
  private readonly codes: number;
  private readonly book: number;
  private readonly sweepGroupOf: number;
  private readonly orderedGroupOf: number;

  /** @param rows - most rows of one call; a multiple of 8 */
  constructor(algebra: Algebra, hessian: PreparedHessian, options: PanelOptions, rows: number) {
    this.algebra = algebra;
    this.hessian = hessian;
    this.options = options;
    this.rows = rows;
    const { columns } = hessian;
    const { group } = options;
    this.groups = Math.ceil(columns / group);
    const { words } = this;
    const values = 4 * rows * columns;
    this.block = this.allocate(4 * abi.ROUND_WORDS);
    this.staging = this.allocate(values);
    this.aside = this.allocate(values);
    this.codes = this.allocate(rows * columns);
    this.factors = this.allocate(4 * Math.max(rangeFactors.length, besideFactors.length));
    this.book = this.allocate(4 * 32);
    for (const word of [abi.ROUND_W, abi.ROUND_Q, abi.ROUND_LEVEL])
      words[word] = this.allocate(values);
    words[abi.ROUND_E] = this.allocate(32 * columns);
    words[abi.ROUND_UT] = this.floats(hessian.factor);
    words[abi.ROUND_H] = this.floats(hessian.matrix);
    words[abi.ROUND_GROUP_UT] = this.floats(hessian.groupFactors);
    words[abi.ROUND_GROUP_INVERSE] = this.floats(hessian.groupInverses);
    words[abi.ROUND_SCALE] = this.allocate(4 * rows * this.groups);
    words[abi.ROUND_ZERO] = this.allocate(4 * rows * this.groups);
    words[abi.ROUND_K] = columns;
    words[abi.ROUND_GROUP] = group;
    words[abi.ROUND_FACTORS] = this.factors;
    words[abi.ROUND_SCRATCH] = this.allocate(32 * (6 * group + 64));
    const { order } = hessian;
    const groupOf = Int32Array.from({ length: columns }, (_, j) => Math.floor(j / group));
    this.sweepGroupOf = this.integers(groupOf);
    this.order = order === undefined ? 0 : this.integers(order);
    this.orderedGroupOf =
      order === undefined
        ? this.sweepGroupOf
        : this.integers(order.map((column) => groupOf[column] ?? 0));
  }

  /** Gives the memory back. */
  dispose(): void {
    for (const block of this.blocks.splice(0)) this.algebra.heap.release(block);
  }

  /**
   * Rounds rows.
   *
   * @param targets - [count, columns], finite, dead columns 0
   */
  round(targets: Float32Array, grid: CodeGrid): RoundedRows {
    const { algebra, hessian, options, words, groups } = this;
    const { heap, kernels } = algebra;
    const { columns } = hessian;
    const rows = targets.length / columns;
    const panels = Math.ceil(rows / abi.PANEL_ROWS);
    this.setGrid(grid, panels);
    heap.f32(this.staging, targets.length).set(targets);
    const [w = 0, q = 0, level = 0] = words;
    // beside the zero point that the range gives: with one of them zero is a level, with the other it is not
    const offsets = codeStep(grid.bits) - 1;
    if (hessian.order !== undefined && this.scalesInAdvance) {
      kernels.panelsIn(this.staging, rows, columns, 0, w);
      this.setFactors(options.clip ? rangeFactors : [1], offsets);
      kernels.chooseScales(this.block);
      kernels.panelsIn(this.staging, rows, columns, this.order, w);
      words[abi.ROUND_GROUP_OF] = this.orderedGroupOf;
      this.send();
      kernels.roundOrdered(this.block, groups);
      this.inNaturalOrder(rows);
    } else {
      kernels.panelsIn(this.staging, rows, columns, this.order, w);
      this.setFactors(options.clip ? rangeFactors : [1], offsets);
      kernels.roundGrouped(this.block);
      if (hessian.order !== undefined) {
        this.inNaturalOrder(rows);
        this.groupsInNaturalOrder(panels, hessian.order);
      }
    }
    for (let sweep = 0; sweep < options.sweeps; sweep++) {
      const fresh = sweep % 3 === 0 && options.clip;
      words[abi.ROUND_FRESH] = fresh ? 1 : 0;
      words[abi.ROUND_RESCALE] = options.clip ? 1 : 0;
      this.setFactors(fresh ? rangeFactors : besideFactors, grid.bits <= 4 ? 1 : 0);
      if (kernels.sweepGroups(this.block) === 0) break;
    }
    const loss = this.undampedLoss(panels);
    kernels.codesOut(
      this.block,
      level,
      words[abi.ROUND_ZERO] ?? 0,
      this.sweepGroupOf,
      groups,
      rows,
      columns,
      0,
      this.codes,
    );
    kernels.panelsOut(q, rows, columns, 0, this.staging);
    return {
      codes: heap.u8(this.codes, rows * columns).slice(),
      scales: this.perGroup(words[abi.ROUND_SCALE] ?? 0, rows),
      zeros: Uint8Array.from(this.perGroup(words[abi.ROUND_ZERO] ?? 0, rows)),
      values: heap.f32(this.staging, rows * columns).slice(),
      loss,
    };
  }

  /** Whether the order of columns does not keep groups together. */
  private get scalesInAdvance(): boolean {
    const { order, columns } = this.hessian;
    const { group } = this.options;
    const groupAt = (j: number): number => Math.floor((order?.[j] ?? j) / group);
    for (let j = 0; j < columns; j++) if (groupAt(j) !== groupAt(j - (j % group))) return true;
    return false;
  }

  private setGrid(grid: CodeGrid, panels: number): void {
    const { words } = this;
    words[abi.ROUND_PANELS] = panels;
    words[abi.ROUND_TOP] = levelSpan(grid.bits);
    words[abi.ROUND_STEP] = codeStep(grid.bits);
    words[abi.ROUND_SYMMETRIC] = grid.symmetric ? 1 : 0;
    words[abi.ROUND_FEEDBACK] = this.options.group <= FEEDBACK_GROUP ? 1 : 0;
    words[abi.ROUND_BOOK] = grid.levels === undefined ? 0 : this.book;
    words[abi.ROUND_GROUP_OF] = this.sweepGroupOf;
    const { levels } = grid;
    if (levels !== undefined) {
      const book = this.algebra.heap.f32(this.book, 32);
      for (let i = 0; i < 16; i++) {
        book[i] = levels[i] ?? 0;
        book[16 + i] = ((levels[i] ?? 0) + (levels[i + 1] ?? 0)) / 2;
      }
    }
  }

  private setFactors(factors: readonly number[], offsets: number): void {
    this.algebra.heap.f32(this.factors, factors.length).set(factors);
    this.words[abi.ROUND_FACTOR_COUNT] = factors.length;
    this.words[abi.ROUND_OFFSETS] = offsets;
    this.send();
  }

  private send(): void {
    new Uint32Array(this.algebra.heap.memory.buffer, this.block, abi.ROUND_WORDS).set(this.words);
  }

  /** Targets, values and levels from the order of rounding to their own. */
  private inNaturalOrder(rows: number): void {
    const { kernels } = this.algebra;
    const { columns } = this.hessian;
    const [w = 0, q = 0, level = 0] = this.words;
    kernels.panelsIn(this.staging, rows, columns, 0, w);
    for (const panels of [q, level]) {
      kernels.panelsOut(panels, rows, columns, this.order, this.aside);
      kernels.panelsIn(this.aside, rows, columns, 0, panels);
    }
  }

  private groupsInNaturalOrder(panels: number, order: Int32Array): void {
    const { groups } = this;
    const { group } = this.options;
    const { heap } = this.algebra;
    for (const word of [abi.ROUND_SCALE, abi.ROUND_ZERO]) {
      const all = heap.f32(this.words[word] ?? 0, panels * groups * 8);
      const before = all.slice();
      for (let g = 0; g < groups; g++) {
        const own = Math.floor((order[g * group] ?? 0) / group);
        for (let panel = 0; panel < panels; panel++) {
          const from = (panel * groups + g) * 8;
          all.set(before.subarray(from, from + 8), (panel * groups + own) * 8);
        }
      }
    }
  }

  private undampedLoss(panels: number): number {
    const { heap, kernels } = this.algebra;
    const { columns, damping, dead } = this.hessian;
    const matrix = heap.f32(this.words[abi.ROUND_H] ?? 0, columns * columns);
    const diagonal = Float32Array.from({ length: columns }, (_, j) => matrix[j * columns + j] ?? 0);
    const without = new Set(dead);
    for (let j = 0; j < columns; j++)
      matrix[j * columns + j] = without.has(j) ? 0 : (diagonal[j] ?? 0) - damping;
    this.words[abi.ROUND_PANELS] = panels;
    this.send();
    const loss = kernels.quadraticLoss(this.block);
    for (let j = 0; j < columns; j++) matrix[j * columns + j] = diagonal[j] ?? 0;
    return Math.max(0, loss);
  }

  /** [panels][groups][8] as [rows, groups]. */
  private perGroup(address: number, rows: number): Float32Array<ArrayBuffer> {
    const { groups } = this;
    const all = this.algebra.heap.f32(address, Math.ceil(rows / 8) * groups * 8);
    const result = new Float32Array(rows * groups);
    for (let row = 0; row < rows; row++)
      for (let g = 0; g < groups; g++)
        result[row * groups + g] = all[(Math.floor(row / 8) * groups + g) * 8 + (row % 8)] ?? 0;
    return result;
  }

  private allocate(bytes: number): number {
    const block = this.algebra.heap.allocate(bytes);
    this.blocks.push(block);
    return block;
  }

  private floats(values: Float32Array): number {
    const address = this.allocate(values.byteLength);
    this.algebra.heap.f32(address, values.length).set(values);
    return address;
  }

  private integers(values: Int32Array): number {
    const address = this.allocate(values.byteLength);
    this.algebra.heap.i32(address, values.length).set(values);
    return address;
  }
}
