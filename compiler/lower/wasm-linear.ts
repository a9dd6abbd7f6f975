/**
 * Matrix products for the WASM engine: which kernel multiplies, in which weight format, and what is
 * done to the product on the way out.
 *
 *   codes behind fettle.Dequantize   QUANTIZE x once, LINEAR (int8 activations per block)
 *   f32 or f16 constant              DENSE over tiles of 16 rows
 *   computed matrix                  MATMUL, then an expression
 */
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Weight } from '../ir/weight.ts';
import { isDequantize, readDequantize } from '../ops/quantized.ts';
import { dequantizeMatrix } from '../quant/matrix.ts';
import { codebookFormat, integerFormat } from '../quant/formats.ts';
import type { CodeBits } from '../quant/formats.ts';
import type { CodePacking } from './pack-weights.ts';
import {
  codePacking,
  fitsHalf,
  floatsOf,
  packedCodebook,
  packedFloats,
  packedMatrix,
} from './pack-weights.ts';
import type { Address, Step, Word } from './plan.ts';
import { addressOf } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { f32, rowsOf, Unsupported } from './wasm-context.ts';
import { dequantizeBehind } from './wasm-unpack.ts';

/** A constant matrix in a kernel's layout. */
export type PackedMatrix =
  | {
      readonly kind: 'integer';
      readonly packing: CodePacking;
      readonly n: number;
      readonly k: number;
      readonly codes: Address;
      readonly asymmetric: boolean;
      readonly codebook: Word;
    }
  | {
      readonly kind: 'float';
      readonly n: number;
      readonly k: number;
      readonly format: number;
      readonly codes: Address;
    };

/** Where a matrix comes from: the constant behind casts and transposes, or codes. */
export interface MatrixSource {
  readonly value: Value;
  readonly dequantize: Node | undefined;
  readonly transposed: boolean;
}

/** What happens to a product. */
export interface Epilogue {
  readonly bias?: Value | undefined;
  /** A bias that is no value of the graph. */
  readonly biasAt?: Word;
  readonly activation?: number;
  readonly alpha?: number;
  readonly beta?: number;
  readonly residual?: Value | undefined;
}

/** Follows a value to the constant it is made from. */
export function sourceOf(value: Value): MatrixSource | undefined {
  if (value.weight !== undefined) return { value, dequantize: undefined, transposed: false };
  const { producer } = value;
  if (producer === undefined) return undefined;
  const isCodes: boolean = isDequantize(producer);
  if (isCodes) return { value, dequantize: producer, transposed: false };
  const [input] = producer.inputs;
  if (producer.domain !== '' || input === undefined) return undefined;
  if (producer.op === 'Cast' || producer.op === 'Identity') return sourceOf(input);
  const perm = producer.ints('perm');
  if (producer.op !== 'Transpose' || input.shape?.length !== 2) return undefined;
  if (perm !== undefined && perm[0] !== 1) return sourceOf(input);
  const source = sourceOf(input);
  return source === undefined ? undefined : { ...source, transposed: !source.transposed };
}

/** Whether a value is a constant, however it is stored. */
export function isConstantMatrix(value: Value | undefined): boolean {
  return value !== undefined && value.shape?.length === 2 && sourceOf(value) !== undefined;
}

/** Name of a float matrix with its rows, to find out whether a table is also a head. */
export function floatKey(lowering: Lowering, source: MatrixSource, rowsFirst: boolean): string {
  const weight = source.value.weight;
  return `${weight === undefined ? 0 : lowering.idOf(weight)} ${rowsFirst !== source.transposed}`;
}

/**
 * A constant matrix in the layout of the kernels.
 *
 * @param rowsFirst - whether the value reads [N, K]; else [K, N]
 * @returns undefined when it is no constant
 */
export function packMatrix(
  lowering: Lowering,
  value: Value,
  rowsFirst: boolean,
): PackedMatrix | undefined {
  const source = sourceOf(value);
  if (source === undefined || value.shape?.length !== 2) return undefined;
  const [first, second] = value.shape as readonly number[];
  const [n = 0, k = 0] = rowsFirst ? [first, second] : [second, first];
  if (source.dequantize !== undefined) {
    // as the Dequantize node gives it, codes are [N, K] when it does not transpose
    const codesFirst = !readDequantize(source.dequantize).transposed;
    if ((rowsFirst !== source.transposed) === codesFirst) {
      const packed = packIntegers(lowering, source.dequantize);
      if (packed !== undefined) return packed;
    }
    return unpacked(lowering, source, n, k, rowsFirst);
  }
  const { weight } = source.value;
  if (weight === undefined) return undefined;
  const half = lowering.sizes.halves && fitsHalf(weight);
  const key = `tiles ${floatKey(lowering, source, rowsFirst)}`;
  const buffer = lowering.weight(key, source.value.name, () => ({
    weight: packedFloats(() => floatsOf(weight), {
      rows: n,
      columns: k,
      transposed: rowsFirst === source.transposed,
      half,
    }),
    format: half ? 'f16' : 'f32',
  }));
  return { kind: 'float', n, k, format: half ? abi.F16 : abi.F32, codes: addressOf(buffer) };
}

function packIntegers(lowering: Lowering, node: Node): PackedMatrix | undefined {
  const [codes, scales, zeros, codebook] = node.inputs;
  const { bits, group, columns } = readDequantize(node);
  if (codes?.weight === undefined || scales?.weight === undefined) return undefined;
  const rows = codes.weight.shape[0] ?? 0;
  const packing = codePacking(rows, columns, bits, group, codebook?.weight?.shape[0]);
  if (typeof packing === 'string') {
    lowering.warnings.push(`"${codes.name}" is stored as f16: ${packing}.`);
    return undefined;
  }
  const size = group >= columns ? 'channel' : group;
  const format = (
    codebook === undefined
      ? integerFormat(bits as CodeBits, size, zeros === undefined)
      : codebookFormat(group)
  ).name;
  const parts = {
    codes: constantOf(codes),
    scales: constantOf(scales),
    zeros: zeros === undefined ? undefined : constantOf(zeros),
  };
  const ids = Object.values(parts).map((part) => (part === undefined ? 0 : lowering.idOf(part)));
  const key = `packed ${ids.join(' ')} ${rows} ${columns} ${bits} ${group}`;
  const matrix = lowering.weight(key, codes.name, () => ({
    weight: packedMatrix(parts, packing),
    format,
  }));
  return {
    kind: 'integer',
    packing,
    n: rows,
    k: columns,
    codes: addressOf(matrix),
    asymmetric: zeros !== undefined,
    codebook: codebook === undefined ? 0 : packedBook(lowering, codebook, packing, format),
  };
}

function packedBook(
  lowering: Lowering,
  codebook: Value,
  packing: CodePacking,
  format: string,
): Address {
  const weight = constantOf(codebook);
  const key = `codebook ${lowering.idOf(weight)} ${packing.rows}`;
  const make = (): { weight: Weight; format: string } => ({
    weight: packedCodebook(weight, packing),
    format,
  });
  return addressOf(lowering.weight(key, codebook.name, make));
}

function constantOf({ name, weight }: Value): Weight {
  if (weight === undefined) throw new Unsupported(`"${name}" is no constant`);
  return weight;
}

/** Codes in a form that no kernel multiplies: stored as halves. */
function unpacked(
  lowering: Lowering,
  source: MatrixSource,
  n: number,
  k: number,
  rowsFirst: boolean,
): PackedMatrix {
  const node = source.dequantize;
  if (node === undefined) throw new Unsupported('a matrix is no constant');
  const key = `halves ${lowering.idOf(node)} ${rowsFirst !== source.transposed}`;
  const buffer = lowering.weight(key, node.input(0).name, () => ({
    weight: packedFloats(() => dequantized(node), {
      rows: n,
      columns: k,
      transposed: rowsFirst === source.transposed,
      half: true,
    }),
    format: 'f16',
  }));
  return { kind: 'float', n, k, format: abi.F16, codes: addressOf(buffer) };
}

/** The values of a Dequantize node, in the orientation of its output. */
export function dequantized(node: Node): Float32Array {
  const { bits, group, columns, transposed } = readDequantize(node);
  const [codes, scales, zeros, codebook] = node.inputs.map((input) => input?.constant());
  if (codes === undefined || scales === undefined)
    throw new Unsupported(`${node.describe()} has codes that are no constants`);
  return dequantizeMatrix(
    {
      rows: codes.shape[0] ?? 0,
      columns,
      bits,
      group,
      codes: codes.data as Uint8Array<ArrayBuffer>,
      scales: scales.data as Uint16Array<ArrayBuffer>,
      zeros: zeros?.data as Uint8Array<ArrayBuffer> | undefined,
      codebook: codebook?.data as Int8Array<ArrayBuffer> | undefined,
    },
    transposed,
  );
}

/** Parameters of an epilogue that LINEAR and DENSE share. */
function epilogueWords(
  lowering: Lowering,
  epilogue: Epilogue,
  columns: number,
): {
  readonly BIAS: Word;
  readonly ACTIVATION: number;
  readonly ALPHA: number;
  readonly BETA: number;
  readonly RESIDUAL: Word;
  readonly RESIDUALROW: number;
} {
  const { bias, biasAt = 0, activation = abi.ACT_NONE, alpha = 0, beta = 0, residual } = epilogue;
  return {
    BIAS: bias === undefined ? biasAt : lowering.optional(bias),
    ACTIVATION: activation,
    ALPHA: f32(alpha),
    BETA: f32(beta),
    RESIDUAL: lowering.optional(residual),
    RESIDUALROW: columns * 4,
  };
}

const quantizedRows = new WeakMap<Lowering, Map<string, { place: Address; step: Step }>>();

/** x as int8 records, made once for all matrices that read it with the same blocks. */
function quantize(lowering: Lowering, x: Place, { block, format }: CodePacking): Address {
  let made = quantizedRows.get(lowering);
  if (made === undefined) quantizedRows.set(lowering, (made = new Map()));
  const [rows, columns] = rowsOf(x.shape);
  const k = lowering.fixed(columns, 'the size of a row');
  const { buffer, offset } = x.address;
  const key = `${lowering.segment} ${lowering.idOf(buffer)} ${offset} ${k} ${block}`;
  const form = format === abi.W8 ? 2 : 1;
  const known = made.get(key);
  const formsAt = abi.QUANTIZE_FORMS - 2;
  if (known !== undefined) {
    known.step.words[formsAt] = (known.step.words[formsAt] as number) | form;
    return known.place;
  }
  const blocks = Math.ceil(k / block);
  const bytes = multiplyDims(rows, blocks * (3 * block + 16));
  const place = addressOf(lowering.arena(`${buffer.name} as int8`, bytes));
  const step = lowering.emit(
    'QUANTIZE',
    { X: x.address, XROW: k * 4, Y: place, ROWS: rows, K: k, BLOCK: block, FORMS: form },
    { why: `int8 activations, one scale per ${block}` },
  );
  made.set(key, { place, step });
  return place;
}

/** Rows that a matrix product computes. */
function emitProduct(
  lowering: Lowering,
  x: Place,
  matrices: readonly [PackedMatrix, PackedMatrix?],
  epilogue: Epilogue,
  secondBias: Value | undefined,
  y: Place,
): void {
  const [matrix, second] = matrices;
  const [rows] = rowsOf(x.shape);
  const { n, k } = matrix;
  const words = epilogueWords(lowering, epilogue, n);
  const residual = epilogue.residual;
  const inPlace = residual === undefined ? [] : ([[y, lowering.floats(residual)]] as const);
  if (matrix.kind === 'integer') {
    const { packing } = matrix;
    const other = second?.kind === 'integer' ? second : undefined;
    const records = quantize(lowering, x, packing);
    lowering.emit(
      'LINEAR',
      {
        X: records,
        Y: y.address,
        YROW: n * 4,
        ROWS: rows,
        K: k,
        N: n,
        FORMAT: packing.format,
        BLOCK: packing.block,
        GROUPBLOCKS: packing.groupBlocks,
        W: matrix.codes,
        ZEROS: matrix.asymmetric ? 1 : 0,
        CODEBOOK: matrix.codebook,
        ...words,
        W2: other?.codes ?? 0,
        ZEROS2: other?.asymmetric === true ? 1 : 0,
        CODEBOOK2: other?.codebook ?? 0,
        BIAS2: lowering.optional(secondBias),
      },
      { why: `${matrix.codes.buffer.format}: packed codes x int8 activations`, inPlace },
    );
    return;
  }
  lowering.emit(
    'DENSE',
    {
      X: x.address,
      XROW: k * 4,
      Y: y.address,
      YROW: n * 4,
      ROWS: rows,
      K: k,
      N: n,
      FORMAT: matrix.format,
      W: matrix.codes,
      ...words,
      W2: second?.codes ?? 0,
      BIAS2: lowering.optional(secondBias),
    },
    { why: `${matrix.codes.buffer.format} weights x f32 activations`, inPlace },
  );
}

/** Multiplies by a constant matrix into a place. */
export function lowerProduct(
  lowering: Lowering,
  x: Value,
  matrix: PackedMatrix,
  epilogue: Epilogue,
  y: Place,
): void {
  emitProduct(lowering, lowering.floats(x), [matrix], epilogue, undefined, y);
}

/**
 * x · wᵀ + bias for a constant of any rank that reads as `rows` rows: the input weights of a recurrent
 * layer, all directions together.
 *
 * @param bias - f32 [rows], or 0
 */
export function lowerRows(
  lowering: Lowering,
  x: Place,
  value: Value,
  rows: number,
  bias: Word,
  y: Place,
): void {
  const k = lowering.fixed(x.shape.at(-1), 'the size of a row');
  const node = dequantizeBehind(value);
  const packed = node === undefined ? undefined : packIntegers(lowering, node);
  if (packed !== undefined && packed.n === rows && packed.k === k) {
    emitProduct(lowering, x, [packed], { biasAt: bias }, undefined, y);
    return;
  }
  const { weight } = value;
  const floats = weight === undefined ? undefined : (): Float32Array => floatsOf(weight);
  const source = floats ?? (node === undefined ? undefined : () => dequantized(node));
  if (source === undefined) throw new Unsupported(`"${value.name}" is no constant`);
  const half = weight !== undefined && fitsHalf(weight);
  const key = `rows in tiles ${lowering.idOf(weight ?? value)}`;
  const buffer = lowering.weight(key, value.name, () => ({
    weight: packedFloats(source, { rows, columns: k, transposed: false, half }),
    format: half ? 'f16' : 'f32',
  }));
  const format = half ? abi.F16 : abi.F32;
  const matrix = { kind: 'float', n: rows, k, format, codes: addressOf(buffer) } as const;
  emitProduct(lowering, x, [matrix], { biasAt: bias }, undefined, y);
}

/** Whether two matrices can be read by one gated step. */
export function sameLayout(a: PackedMatrix, b: PackedMatrix): boolean {
  if (a.n !== b.n || a.k !== b.k) return false;
  if (a.kind === 'float' || b.kind === 'float')
    return a.kind === 'float' && b.kind === 'float' && a.format === b.format;
  const [p, q] = [a.packing, b.packing];
  return p.format === q.format && p.block === q.block && p.groupBlocks === q.groupBlocks;
}

/** act(x·gate + gateBias) * (x·up + upBias) in one step. */
export function lowerGated(
  lowering: Lowering,
  x: Value,
  matrices: readonly [gate: PackedMatrix, up: PackedMatrix],
  biases: readonly [Value | undefined, Value | undefined],
  activation: Pick<Epilogue, 'activation' | 'alpha' | 'beta'>,
  y: Place,
): void {
  emitProduct(
    lowering,
    lowering.floats(x),
    matrices,
    { ...activation, bias: biases[0] },
    biases[1],
    y,
  );
}
