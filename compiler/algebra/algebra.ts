/**
 * Dense linear algebra of the compiler, in WebAssembly: products and Gram matrices, Cholesky factors,
 * Hadamard transforms, and the inner loops of rounding, to nearest (compiler/quant/affine.ts) and under a
 * quadratic loss (compiler/quant/panel-rounder.ts).
 * One thread, plain SIMD: results are the same bits on every engine. Matrices are row-major.
 */
import { assert, outOfRange } from '../../runtime/errors.ts';
import { unpackBinary } from '../../runtime/wasm/module.ts';
import { deflated } from './generated/algebra.ts';
import { Heap } from './heap.ts';

/** What the module exports; addresses are bytes. */
export interface AlgebraKernels {
  product(
    a: number,
    aFlipped: number,
    b: number,
    bFlipped: number,
    c: number,
    m: number,
    n: number,
    k: number,
    alpha: number,
    add: number,
    wide: number,
    weights: number,
    upper: number,
    scratch: number,
  ): void;
  productScratchBytes(n: number): number;
  cholesky(a: number, n: number): number;
  invertLower(l: number, x: number, n: number): void;
  hadamard(values: number, blocks: number, size: number, inner: number, scale: number): void;
  panelsIn(source: number, rows: number, k: number, order: number, panels: number): void;
  panelsOut(panels: number, rows: number, k: number, order: number, target: number): void;
  roundAffine(
    values: number,
    rows: number,
    columns: number,
    group: number,
    bits: number,
    symmetric: number,
    clip: number,
    codes: number,
    scales: number,
    zeros: number,
    sums: number,
    scratch: number,
  ): number;
  codesOut(
    block: number,
    levels: number,
    zeros: number,
    groupOf: number,
    groups: number,
    rows: number,
    k: number,
    order: number,
    codes: number,
  ): void;
  chooseScales(block: number): void;
  roundGrouped(block: number): void;
  roundOrdered(block: number, groups: number): void;
  sweepGroups(block: number): number;
  quadraticLoss(block: number): number;
}

/** Bytes at the start of the memory that the module's own data takes. */
const RESERVED_BYTES = 1024;

/** How a product reads its operands. */
export interface ProductOptions {
  /** A is stored [K, M]. Default false */
  readonly aTransposed?: boolean;
  /** B is stored [N, K], as the weights of a linear layer are. Default false */
  readonly bTransposed?: boolean;
}

/** Upper factor of an inverse, with what it took. */
export interface InverseFactor {
  /** [n, n], upper triangular U with UᵀU = (A + damping I)⁻¹. */
  readonly upper: Float64Array<ArrayBuffer>;
  /** What was added to the diagonal. */
  readonly damping: number;
}

/** The algebra: one instance has one memory, which grows to what its largest task needs. */
export class Algebra {
  /** Blocks of the memory, for the methods that keep matrices there. */
  readonly heap: Heap;
  /** The kernels. */
  readonly kernels: AlgebraKernels;

  private constructor(heap: Heap, kernels: AlgebraKernels) {
    this.heap = heap;
    this.kernels = kernels;
  }

  /**
   * An instance of its own.
   *
   * @throws FettleError ENGINE_UNAVAILABLE when the host cannot inflate or run the module
   */
  static async create(): Promise<Algebra> {
    const bytes = await unpackBinary(deflated, 'algebra');
    const heap = new Heap(RESERVED_BYTES);
    const { instance } = await WebAssembly.instantiate(bytes, { env: { memory: heap.memory } });
    return new Algebra(heap, instance.exports as unknown as AlgebraKernels);
  }

  /** Sums of outer products of rows with `columns` values; see {@link Gram}. */
  gram(columns: number): Gram {
    return new Gram(this, columns);
  }

  /**
   * A B, [m, n].
   *
   * @param a - [m, k]
   * @param b - [k, n]
   * @throws RangeError when a size does not fit
   */
  matmul(
    a: Float32Array,
    b: Float32Array,
    m: number,
    k: number,
    n: number,
    options: ProductOptions = {},
  ): Float32Array<ArrayBuffer> {
    if (a.length !== m * k) throw outOfRange('a.length', `${m} x ${k}`, a.length);
    if (b.length !== k * n) throw outOfRange('b.length', `${k} x ${n}`, b.length);
    return this.heap.scope((allocate) => {
      const left = allocate(a.byteLength);
      const right = allocate(b.byteLength);
      const out = allocate(4 * m * n);
      const scratch = allocate(this.kernels.productScratchBytes(n));
      this.heap.f32(left, a.length).set(a);
      this.heap.f32(right, b.length).set(b);
      const flags = [options.aTransposed, options.bTransposed].map((flag) => (flag ? 1 : 0));
      const [aFlag = 0, bFlag = 0] = flags;
      this.kernels.product(left, aFlag, right, bFlag, out, m, n, k, 1, 0, 0, 0, 0, scratch);
      return this.heap.f32(out, m * n).slice();
    });
  }

  /**
   * Lower Cholesky factor of a symmetric matrix, L Lᵀ = A.
   *
   * @param matrix - [n, n]; only its lower triangle is read
   * @returns zeros right of the diagonal; undefined when the matrix is not positive definite
   */
  cholesky(matrix: ArrayLike<number>, n: number): Float64Array<ArrayBuffer> | undefined {
    if (matrix.length !== n * n) throw outOfRange('matrix.length', `${n} x ${n}`, matrix.length);
    return this.heap.scope((allocate) => {
      const block = allocate(8 * n * n);
      this.heap.f64(block, n * n).set(matrix);
      if (this.kernels.cholesky(block, n) >= 0) return undefined;
      const lower = this.heap.f64(block, n * n).slice();
      for (let i = 0; i < n; i++) lower.fill(0, i * n + i + 1, (i + 1) * n);
      return lower;
    });
  }

  /**
   * The upper factor U of an inverse, UᵀU = (A + d I)⁻¹, d = `damping` times the mean of the diagonal,
   * as many times as it takes for A + d I to be positive definite.
   *
   * One factor and one inverse of it: with P reversing rows, P A P = L Lᵀ gives U = P L⁻¹ P.
   *
   * @param matrix - [n, n], symmetric
   * @param damping - share of the mean of the diagonal that is added
   * @param retries - times that more is added after a failure
   * @returns undefined when it is never positive definite
   */
  inverseFactor(
    matrix: ArrayLike<number>,
    n: number,
    damping: number = 0,
    retries: number = 50,
  ): InverseFactor | undefined {
    if (matrix.length !== n * n) throw outOfRange('matrix.length', `${n} x ${n}`, matrix.length);
    let trace = 0;
    for (let i = 0; i < n; i++) trace += matrix[i * n + i] ?? 0;
    if (!Number.isFinite(trace)) return undefined;
    // a matrix of zeros has no scale of its own
    const unit = (damping === 0 ? 0.01 : damping) * (trace > 0 ? trace / n : 1);
    const { heap, kernels } = this;
    return heap.scope((allocate) => {
      const lower = allocate(8 * n * n);
      let added = damping === 0 ? 0 : unit;
      for (let attempt = 0; attempt <= retries; attempt++, added += unit) {
        const reversed = heap.f64(lower, n * n);
        for (let i = 0; i < n; i++)
          for (let j = 0; j <= i; j++)
            reversed[i * n + j] = matrix[(n - 1 - i) * n + (n - 1 - j)] ?? 0;
        for (let i = 0; i < n; i++) reversed[i * n + i] = (reversed[i * n + i] ?? 0) + added;
        if (kernels.cholesky(lower, n) >= 0) continue;
        const inverse = allocate(8 * n * n);
        kernels.invertLower(lower, inverse, n);
        const upper = heap
          .f64(inverse, n * n)
          .slice()
          .reverse();
        return { upper, damping: added };
      }
      return undefined;
    });
  }

  /**
   * Multiplies by the Walsh-Hadamard matrix over √size, in place; its own inverse.
   *
   * @param values - blocks of [size, inner]
   * @param size - a power of two
   * @param inner - values that one index stands for. Default 1: vectors of `size` values
   */
  hadamard(values: Float32Array, size: number, inner: number = 1): void {
    if (size < 1 || (size & (size - 1)) !== 0) throw outOfRange('size', 'a power of two', size);
    const block = size * inner;
    if (values.length % block !== 0)
      throw outOfRange('values.length', `a multiple of ${block}`, values.length);
    this.heap.scope((allocate) => {
      const at = allocate(values.byteLength);
      this.heap.f32(at, values.length).set(values);
      this.kernels.hadamard(at, values.length / block, size, inner, 1 / Math.sqrt(size));
      values.set(this.heap.f32(at, values.length));
    });
  }
}

/** Tokens handed to the kernel at a time. */
const GRAM_TOKENS = 512;

/**
 * Running sums Σ w_t x_t x_tᵀ, or Σ w_t x_t y_tᵀ when every row comes with a second one. Sums of 256
 * tokens are f32, sums of those f64. Memory: 8 columns² bytes until {@link dispose}.
 */
export class Gram {
  /** Rows seen. */
  tokens = 0;
  /** Sum of their weights. */
  weight = 0;
  private readonly algebra: Algebra;
  private readonly columns: number;
  private sums: number | undefined;
  private symmetric = true;

  constructor(algebra: Algebra, columns: number) {
    if (!(columns >= 1)) throw outOfRange('columns', 'at least 1', columns);
    this.algebra = algebra;
    this.columns = columns;
    this.sums = algebra.heap.allocate(8 * columns * columns);
    algebra.heap.f64(this.sums, columns * columns).fill(0);
  }

  /**
   * Adds rows.
   *
   * @param values - [tokens, columns]
   * @param weights - one factor a row, at least 0. Default 1
   * @param others - y, [tokens, columns]; then the sums are Σ w x yᵀ, which are not symmetric
   * @throws RangeError when sizes disagree
   */
  add(values: Float32Array, weights?: Float32Array, others?: Float32Array): void {
    const { algebra, columns, sums } = this;
    assert(sums !== undefined, 'gram: used after dispose');
    const tokens = values.length / columns;
    if (!Number.isInteger(tokens))
      throw outOfRange('values.length', `a multiple of ${columns}`, values.length);
    if (weights !== undefined && weights.length !== tokens)
      throw outOfRange('weights.length', `${tokens}`, weights.length);
    if (others !== undefined && others.length !== values.length)
      throw outOfRange('others.length', `${values.length}`, others.length);
    if (others !== undefined) this.symmetric = false;
    this.tokens += tokens;
    this.weight += weights === undefined ? tokens : weights.reduce((sum, w) => sum + w, 0);
    const { heap, kernels } = algebra;
    heap.scope((allocate) => {
      const most = Math.min(tokens, GRAM_TOKENS);
      const left = allocate(4 * most * columns);
      const right = others === undefined ? left : allocate(4 * most * columns);
      const factors = weights === undefined ? 0 : allocate(4 * most);
      const scratch = allocate(kernels.productScratchBytes(columns));
      for (let first = 0; first < tokens; first += most) {
        const count = Math.min(most, tokens - first);
        const [from, to] = [first * columns, (first + count) * columns];
        heap.f32(left, count * columns).set(values.subarray(from, to));
        if (others !== undefined) heap.f32(right, count * columns).set(others.subarray(from, to));
        if (weights !== undefined)
          heap.f32(factors, count).set(weights.subarray(first, first + count));
        const upper = others === undefined ? 1 : 0;
        const sizes = [columns, columns, count] as const;
        kernels.product(left, 1, right, 0, sums, ...sizes, 1, 1, 1, factors, upper, scratch);
      }
    });
  }

  /**
   * The sums times `factor`, [columns, columns]; symmetric to the last bit unless rows came in pairs.
   */
  matrix(factor: number = 1): Float32Array<ArrayBuffer> {
    const { columns, sums } = this;
    assert(sums !== undefined, 'gram: used after dispose');
    const all = this.algebra.heap.f64(sums, columns * columns);
    const result = new Float32Array(columns * columns);
    for (let i = 0; i < columns; i++)
      for (let j = this.symmetric ? i : 0; j < columns; j++) {
        const value = (all[i * columns + j] ?? 0) * factor;
        result[i * columns + j] = value;
        if (this.symmetric) result[j * columns + i] = value;
      }
    return result;
  }

  /** The Hessian of a linear layer over these inputs, (2 / Σ w) Σ w x xᵀ; zeros when there are none. */
  hessian(): Float32Array<ArrayBuffer> {
    return this.matrix(this.weight > 0 ? 2 / this.weight : 0);
  }

  /** Gives the memory back. */
  dispose(): void {
    if (this.sums !== undefined) this.algebra.heap.release(this.sums);
    this.sums = undefined;
  }
}
