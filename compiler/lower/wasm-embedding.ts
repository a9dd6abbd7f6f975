/** Tables of embeddings for the WASM engine, which share their storage with a head that reads them too. */
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { Dim } from '../ir/dim.ts';
import { multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { fitsHalf, halvesOf } from './pack-weights.ts';
import { addressOf } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { f32 } from './wasm-context.ts';
import { floatKey, packMatrix, sourceOf } from './wasm-linear.ts';

/** Matrices that linear layers read with these rows, so that a table can share their storage. */
export function headTables(lowering: Lowering, nodes: readonly Node[]): ReadonlySet<string> {
  const keys = new Set<string>();
  for (const node of nodes) {
    const linear = node.domain === 'fettle' && node.op === 'Linear';
    const gemm = node.domain === '' && node.op === 'Gemm';
    if (!linear && !gemm && node.op !== 'MatMul') continue;
    const weight = node.inputs[1];
    const source = weight === undefined ? undefined : sourceOf(weight);
    if (source === undefined || source.dequantize !== undefined) continue;
    const turned = linear ? node.int('transposed', 0) : gemm ? node.int('transB', 0) : 0;
    keys.add(floatKey(lowering, source, turned === 1));
  }
  return keys;
}

/** Rows of a table: from packed codes or tiles where a head reads them too, else from plain rows. */
export function lowerEmbedding(
  lowering: Lowering,
  table: Value,
  ids: Place,
  y: Place,
  heads: ReadonlySet<string>,
): boolean {
  const source = sourceOf(table);
  if (source === undefined || table.shape?.length !== 2) return false;
  const [rows = 0, columns = 0] = table.shape as readonly number[];
  const shared = {
    IDS: ids.address,
    IDTYPE: abi.TYPE_I32,
    Y: y.address,
    ROWS: multiplyDims(...ids.shape) as Dim,
    K: columns,
    N: rows,
    MULTIPLY: f32(1),
  };
  const isShared = source.dequantize !== undefined || heads.has(floatKey(lowering, source, true));
  if (isShared) {
    const matrix = packMatrix(lowering, table, true);
    if (matrix === undefined) return false;
    const integer = matrix.kind === 'integer' ? matrix : undefined;
    lowering.emit(
      'EMBED',
      {
        ...shared,
        FORMAT: integer?.packing.format ?? (matrix.kind === 'float' ? matrix.format : abi.F32),
        BLOCK: integer?.packing.block ?? 32,
        GROUPBLOCKS: integer?.packing.groupBlocks ?? 1,
        W: matrix.codes,
        ZEROS: integer?.asymmetric === true ? 1 : 0,
        CODEBOOK: integer?.codebook ?? 0,
      },
      { why: `${matrix.codes.buffer.format} table` },
    );
    return true;
  }
  const { weight } = source.value;
  if (weight === undefined || source.transposed) return false;
  const half = lowering.sizes.halves && fitsHalf(weight);
  const key = `rows ${lowering.idOf(weight)}`;
  const buffer = half
    ? lowering.weight(key, source.value.name, () => ({ weight: halvesOf(weight) }))
    : lowering.floats(source.value).address.buffer;
  lowering.emit(
    'EMBED',
    {
      ...shared,
      FORMAT: half ? abi.PLAIN16 : abi.PLAIN32,
      BLOCK: 32,
      GROUPBLOCKS: 1,
      W: addressOf(buffer),
      ZEROS: 0,
      CODEBOOK: 0,
    },
    { why: 'a table that no linear layer shares' },
  );
  return true;
}
