/**
 * Every op that the WASM engine runs and how it is lowered: the one list. To add an op: a function in
 * its family's file, and a line here.
 */
import { multiplyDims } from '../ir/dim.ts';
import type { Node } from '../ir/graph.ts';
import { shifted } from './plan.ts';
import { lowerAttention } from './wasm-attention.ts';
import type { Lowering } from './wasm-context.ts';
import { f32, Unsupported } from './wasm-context.ts';
import { elementwiseOps, lowerCastToBool, lowerElementwise } from './wasm-elementwise.ts';
import * as indexing from './wasm-indexing.ts';
import { lowerEmbedding } from './wasm-embedding.ts';
import { isConstantMatrix } from './wasm-linear.ts';
import * as movement from './wasm-movement.ts';
import * as norms from './wasm-norms.ts';
import * as products from './wasm-products.ts';
import { lowerRecurrent } from './wasm-recurrent.ts';
import * as resample from './wasm-resample.ts';
import * as vision from './wasm-vision.ts';

/** Lowers one node; `heads` names tables that linear layers share. */
export type LowerNode = (lowering: Lowering, node: Node, heads: ReadonlySet<string>) => void;

function lowerGather(lowering: Lowering, node: Node, heads: ReadonlySet<string>): void {
  const [table, indices] = [node.input(0), node.input(1)];
  const isTable = node.int('axis', 0) === 0 && lowering.isConstant(table);
  const isFloat = table.dtype !== undefined && /f\d/.test(table.dtype);
  if (isTable && isFloat && isConstantMatrix(table)) {
    const ids = lowering.ints(indices);
    const y = lowering.fresh(node.output().name, lowering.shapeOf(node.output()));
    if (lowerEmbedding(lowering, table, ids, y, heads)) {
      lowering.define(node.output(), y);
      return;
    }
  }
  movement.lowerGather(lowering, node);
}

/** Range: a part of a table of all numbers it can hold. */
function lowerRange(lowering: Lowering, node: Node): void {
  const [start, , delta] = [0, 1, 2].map(
    (index) => movement.sizesOf(lowering, node.inputs[index])?.[0],
  );
  if (start === undefined || delta !== 1) throw new Unsupported('a Range whose start is computed');
  const most = lowering.sizes.context + lowering.sizes.chunk;
  const floats = Float32Array.from({ length: most }, (_, index) => index);
  const address = shifted(lowering.table('numbers', floats), multiplyDims(4, start));
  const shape = lowering.shapeOf(node.output());
  lowering.define(node.output(), { address, shape, type: 'f32', segment: undefined });
}

function lowerConstantOfShape(lowering: Lowering, node: Node): void {
  const attribute = node.attributes.get('value');
  const value = attribute?.kind === 'tensor' ? Number(attribute.value.tensor().data[0]) : 0;
  const y = lowering.output(node);
  lowering.emit('FILL', {
    Y: y.address,
    COUNT: multiplyDims(...y.shape),
    ELEMENT: 4,
    VALUE: f32(value),
    HIGH: 0,
  });
}

const cast: LowerNode = (lowering, node) => {
  const toBool = node.output().dtype === 'bool' && node.input(0).dtype !== 'bool';
  if (toBool) lowerCastToBool(lowering, node);
  else movement.lowerCast(lowering, node);
};

const view: LowerNode = (lowering, node) => movement.lowerView(lowering, node);

const lowerers: Readonly<Record<string, LowerNode>> = {
  ...Object.fromEntries(elementwiseOps.map((op): [string, LowerNode] => [op, lowerElementwise])),
  ...Object.fromEntries(
    vision.reduceOps.map((op): [string, LowerNode] => [op, vision.lowerReduce]),
  ),
  'fettle.Linear': products.lowerLinear,
  'fettle.GatedLinear': products.lowerGatedLinear,
  'fettle.Norm': norms.lowerNorm,
  'fettle.Attention': lowerAttention,
  'fettle.Conv': vision.lowerConv,
  'fettle.ConvTranspose': resample.lowerConvTranspose,
  MatMul: products.lowerMatMul,
  Gemm: products.lowerGemm,
  'com.microsoft.FusedMatMul': products.lowerFusedMatMul,
  Conv: vision.lowerConv,
  LayerNormalization: norms.lowerLayerNorm,
  RMSNormalization: norms.lowerLayerNorm,
  SimplifiedLayerNormalization: norms.lowerLayerNorm,
  BatchNormalization: vision.lowerBatchNorm,
  Softmax: vision.lowerSoftmax,
  LogSoftmax: vision.lowerSoftmax,
  MaxPool: vision.lowerPool,
  AveragePool: vision.lowerPool,
  GlobalAveragePool: vision.lowerGlobalPool,
  GlobalMaxPool: vision.lowerGlobalPool,
  ArgMax: vision.lowerArgMax,
  ArgMin: vision.lowerArgMax,
  TopK: vision.lowerTopK,
  Resize: resample.lowerResize,
  Upsample: resample.lowerResize,
  ConvTranspose: resample.lowerConvTranspose,
  DepthToSpace: resample.lowerDepth,
  SpaceToDepth: resample.lowerDepth,
  InstanceNormalization: vision.lowerGroupNorm,
  GroupNormalization: vision.lowerGroupNorm,
  LpNormalization: vision.lowerLpNorm,
  MeanVarianceNormalization: norms.lowerMeanVariance,
  LSTM: lowerRecurrent,
  GRU: lowerRecurrent,
  RNN: lowerRecurrent,
  GatherElements: indexing.lowerGatherElements,
  GatherND: indexing.lowerGatherND,
  Scatter: indexing.lowerScatterElements,
  ScatterElements: indexing.lowerScatterElements,
  ScatterND: indexing.lowerScatterND,
  CumSum: indexing.lowerCumSum,
  OneHot: indexing.lowerOneHot,
  Trilu: indexing.lowerTrilu,
  Hardmax: indexing.lowerHardmax,
  Gather: lowerGather,
  Range: lowerRange,
  ConstantOfShape: lowerConstantOfShape,
  Cast: cast,
  CastLike: cast,
  Transpose: movement.lowerTranspose,
  Concat: movement.lowerConcat,
  Slice: movement.lowerSlice,
  Split: movement.lowerSplit,
  Expand: movement.lowerExpand,
  Pad: resample.lowerPad,
  Tile: movement.lowerTile,
  Reshape: view,
  Squeeze: view,
  Unsqueeze: view,
  Flatten: view,
  Identity: view,
  Dropout: view,
};

const keyOf = ({ domain, op }: Node): string => (domain === '' ? op : `${domain}.${op}`);

/** How a node is lowered; undefined when it has no kernel. */
export function lowererOf(node: Node): LowerNode | undefined {
  const key = keyOf(node);
  return Object.hasOwn(lowerers, key) ? lowerers[key] : undefined;
}

const rowwiseOps: ReadonlySet<string> = new Set([
  ...elementwiseOps,
  'fettle.Linear',
  'fettle.GatedLinear',
  'fettle.Norm',
  'MatMul',
  'LayerNormalization',
  'RMSNormalization',
  'SimplifiedLayerNormalization',
  'Cast',
  'Identity',
]);

/** Whether a node computes each row of tokens by itself. */
export function rowwise(node: Node): boolean {
  if (!rowwiseOps.has(keyOf(node))) return false;
  return node.op !== 'MatMul' || isConstantMatrix(node.inputs[1]);
}

/** Names of the ops that have kernels, `domain.Op` or `Op`, in alphabetical order. */
export const wasmOps: readonly string[] = Object.keys(lowerers).sort();
