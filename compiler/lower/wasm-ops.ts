/**
 * Every op that the WASM engine runs and how it is lowered: the one list. To add an op: a function in
 * its family's file, and a line here.
 */
import type { Dim } from '../ir/dim.ts';
import { multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf, activations } from '../ops/activation-table.ts';
import { gatedLinearInputs, linearInputs } from '../ops/fused-linear.ts';
import { normInputs, normKind } from '../ops/fused-norm.ts';
import { shifted } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { f32, rowsOf, Unsupported } from './wasm-context.ts';
import { lowerAttention, rotaryTables } from './wasm-attention.ts';
import { elementwiseOps, emitExpression, lowerElementwise } from './wasm-elementwise.ts';
import { activated, activationIds, call, input } from './wasm-expression.ts';
import type { Epilogue } from './wasm-linear.ts';
import {
  isConstantMatrix,
  lowerEmbedding,
  lowerGated,
  lowerProduct,
  packMatrix,
  sameLayout,
} from './wasm-linear.ts';
import * as movement from './wasm-movement.ts';
import * as vision from './wasm-vision.ts';

/** Lowers one node; `heads` names tables that linear layers share. */
export type LowerNode = (lowering: Lowering, node: Node, heads: ReadonlySet<string>) => void;

function activationOf(node: Node): Pick<Epilogue, 'activation' | 'alpha' | 'beta'> & {
  readonly name: ReturnType<typeof activationNameOf>;
  readonly alpha: number;
  readonly beta: number;
} {
  const name = activationNameOf(node);
  const { alpha = 0, beta = 0 } = activations[name];
  const chosen = { alpha: node.float('alpha', alpha), beta: node.float('beta', beta) };
  if (name === 'quick-gelu' && Math.abs(chosen.alpha - 1.702) > 1e-6)
    throw new Unsupported(`quick-gelu with factor ${chosen.alpha}`);
  return { name, activation: activationIds[name], ...chosen };
}

function lowerLinear(lowering: Lowering, node: Node): void {
  const x = node.input(linearInputs.x);
  const weight = node.input(linearInputs.weight);
  const rowsFirst = node.int('transposed', 0) === 1;
  const matrix = packMatrix(lowering, weight, rowsFirst);
  const { name, alpha, beta, activation = 0 } = activationOf(node);
  const bias = node.inputs[linearInputs.bias];
  const residual = node.inputs[linearInputs.residual];
  if (matrix === undefined) {
    const place = multiply(lowering, node, x, weight, rowsFirst, 1);
    finish(lowering, place, bias, residual, (formula) => activated(formula, name, alpha, beta));
    return;
  }
  const same =
    residual === undefined ||
    residual.shape?.every((dim, axis) => dim === node.output().shape?.[axis]);
  const epilogue = {
    bias,
    activation,
    alpha,
    beta,
    residual: same === true ? residual : undefined,
  };
  const y = lowering.output(node);
  lowerProduct(lowering, x, matrix, epilogue, y);
  if (same !== true && residual !== undefined)
    emitExpression(lowering, call('add', input(0), input(1)), [y, lowering.floats(residual)], y);
}

/** Bias, activation and residual of a product, as one expression in place. */
function finish(
  lowering: Lowering,
  y: Place,
  bias: Value | undefined,
  residual: Value | undefined,
  activate: (formula: ReturnType<typeof input>) => ReturnType<typeof input> = (formula) => formula,
): void {
  const places = [y];
  let formula = input(0);
  if (bias !== undefined)
    formula = call('add', formula, input(places.push(lowering.floats(bias)) - 1));
  formula = activate(formula);
  if (residual !== undefined)
    formula = call('add', formula, input(places.push(lowering.floats(residual)) - 1));
  if (formula.kind !== 'input') emitExpression(lowering, formula, places, y, 'behind a product');
}

function lowerGatedLinear(lowering: Lowering, node: Node): void {
  const at = gatedLinearInputs;
  const rowsFirst = node.int('transposed', 0) === 1;
  const x = node.input(at.x);
  const gate = packMatrix(lowering, node.input(at.gate), rowsFirst);
  const up = packMatrix(lowering, node.input(at.up), rowsFirst);
  if (gate === undefined || up === undefined) throw new Unsupported('matrices that are computed');
  const { name: _name, ...activation } = activationOf(node);
  const [gateBias, upBias] = [node.inputs[at.gateBias], node.inputs[at.upBias]];
  const y = lowering.output(node);
  if (sameLayout(gate, up)) {
    lowerGated(lowering, x, [gate, up], [gateBias, upBias], activation, y);
    return;
  }
  const second = lowering.fresh(`${node.name} up`, y.shape);
  lowerProduct(lowering, x, gate, { ...activation, bias: gateBias }, y);
  lowerProduct(lowering, x, up, { bias: upBias }, second);
  emitExpression(lowering, call('mul', input(0), input(1)), [y, second], y, 'gate');
}

/** x · w with computed w, batches as they broadcast. */
function multiply(
  lowering: Lowering,
  node: Node,
  left: Value,
  right: Value,
  transposed: boolean,
  scale: number,
): Place {
  const [x, w] = [lowering.floats(left), lowering.floats(right)];
  const y = lowering.output(node);
  if (x.shape.length < 2 || w.shape.length < 2) throw new Unsupported('products of vectors');
  const [m, k] = x.shape.slice(-2) as [Dim, Dim];
  const n = y.shape.at(-1) ?? 1;
  const batchShape = y.shape.slice(0, -2);
  // two loops over batches: the last axis, and all in front of it
  const merged = movement.mergeLoops(
    batchShape.map((size, axis) => {
      const stride = (place: Place): Dim => {
        const at = axis - batchShape.length + place.shape.length - 2;
        if (at < 0 || place.shape[at] === 1) return 0;
        return multiplyDims(4, ...place.shape.slice(at + 1));
      };
      return { size, strides: [stride(x), stride(w), stride(y)] };
    }),
  );
  if (merged.length > 2) throw new Unsupported(`batches over ${merged.length} axes`);
  const none = { size: 1, strides: [0, 0, 0] };
  const [outer = none, inner = none] = merged.length < 2 ? [none, ...merged] : merged;
  lowering.emit('MATMUL', {
    X: x.address,
    XROW: multiplyDims(4, k),
    XBATCH: outer.strides[0] ?? 0,
    XHEAD: inner.strides[0] ?? 0,
    W: w.address,
    WROW: multiplyDims(4, w.shape.at(-1) ?? 1),
    WBATCH: outer.strides[1] ?? 0,
    WHEAD: inner.strides[1] ?? 0,
    TRANSPOSED: transposed ? 1 : 0,
    Y: y.address,
    YROW: multiplyDims(4, n),
    YBATCH: outer.strides[2] ?? 0,
    YHEAD: inner.strides[2] ?? 0,
    BATCH: outer.size,
    HEADS: inner.size,
    M: m,
    K: k,
    N: n,
    SCALE: f32(scale),
  });
  return y;
}

function lowerMatMul(lowering: Lowering, node: Node): void {
  const [x, weight] = [node.input(0), node.input(1)];
  const matrix = packMatrix(lowering, weight, false);
  if (matrix === undefined) multiply(lowering, node, x, weight, false, 1);
  else lowerProduct(lowering, x, matrix, {}, lowering.output(node));
}

function lowerGemm(lowering: Lowering, node: Node): void {
  const [x, weight, bias] = [node.input(0), node.input(1), node.inputs[2]];
  const [alpha, beta] = [node.float('alpha', 1), node.float('beta', 1)];
  if (node.int('transA', 0) === 1) throw new Unsupported('a Gemm that transposes its input');
  if (bias !== undefined && beta !== 1) throw new Unsupported(`a Gemm with beta ${beta}`);
  const rowsFirst = node.int('transB', 0) === 1;
  const matrix = packMatrix(lowering, weight, rowsFirst);
  const isRow = bias?.weight !== undefined && multiplyDims(...(bias.shape ?? [])) === matrix?.n;
  if (matrix !== undefined && alpha === 1 && (bias === undefined || isRow)) {
    lowerProduct(lowering, x, matrix, { bias }, lowering.output(node));
    return;
  }
  if (matrix !== undefined && alpha === 1) {
    const y = lowering.output(node);
    lowerProduct(lowering, x, matrix, {}, y);
    finish(lowering, y, bias, undefined);
    return;
  }
  finish(lowering, multiply(lowering, node, x, weight, rowsFirst, alpha), bias, undefined);
}

function lowerNorm(lowering: Lowering, node: Node): void {
  const { gain, bias, skip, skipBias } = normInputs;
  const sum = node.outputs[1];
  emitNorm(lowering, node, {
    kind: normKind(node) === 'rms' ? 0 : 1,
    epsilon: node.float('epsilon', 1e-5),
    gain: node.inputs[gain],
    bias: node.inputs[bias],
    skip: node.inputs[skip],
    skipBias: node.inputs[skipBias],
    sum: sum !== undefined && sum.useCount > 0 ? 1 : undefined,
  });
}

interface NormParts {
  readonly kind: number;
  readonly epsilon: number;
  readonly gain: Value | undefined;
  readonly bias: Value | undefined;
  readonly skip?: Value | undefined;
  readonly skipBias?: Value | undefined;
  /** Output that receives the sum. */
  readonly sum?: number | undefined;
}

function emitNorm(lowering: Lowering, node: Node, parts: NormParts): void {
  const x = lowering.floats(node.input(0));
  const [rows, columns] = rowsOf(x.shape);
  const n = lowering.fixed(columns, 'the size of a row');
  const skip = parts.skip === undefined ? undefined : lowering.floats(parts.skip);
  if (skip !== undefined && multiplyDims(...skip.shape) !== multiplyDims(...x.shape))
    throw new Unsupported('a norm whose second input is broadcast');
  const y = lowering.output(node);
  const sum = parts.sum === undefined ? undefined : lowering.output(node, parts.sum);
  // the sum takes over the residual stream; else the result may
  const inPlace: (readonly [Place, Place])[] =
    sum === undefined
      ? [[y, x]]
      : [
          [sum, skip ?? x],
          [sum, x],
          [y, x],
        ];
  lowering.emit(
    'NORM',
    {
      X: x.address,
      XROW: n * 4,
      Y: y.address,
      YROW: n * 4,
      ROWS: rows,
      HEADS: 1,
      N: n,
      KIND: parts.kind,
      EPSILON: f32(parts.epsilon),
      GAIN: lowering.optional(parts.gain),
      BIAS: lowering.optional(parts.bias),
      SKIP: skip?.address ?? 0,
      SKIPBIAS: lowering.optional(parts.skipBias),
      SUM: sum?.address ?? 0,
    },
    { why: skip === undefined ? 'norm' : 'sum and norm in one step', inPlace },
  );
}

function lowerLayerNorm(lowering: Lowering, node: Node): void {
  const rank = node.input(0).shape?.length ?? 0;
  const axis = movement.axisOf(node.int('axis', -1), rank);
  if (axis !== rank - 1) throw new Unsupported('a norm over several axes');
  if (node.outputs.slice(1).some((output) => output !== undefined && output.useCount > 0))
    throw new Unsupported('a norm that gives its statistics');
  emitNorm(lowering, node, {
    kind: node.op === 'LayerNormalization' ? 1 : 0,
    epsilon: node.float('epsilon', 1e-5),
    gain: node.inputs[1],
    bias: node.inputs[2],
  });
}

function lowerRotary(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const [rows, columns] = rowsOf(x.shape);
  const width = lowering.fixed(columns, 'the size of a row');
  const heads = node.int('heads', 1);
  const y = lowering.output(node);
  lowering.emit(
    'ROTARY',
    {
      X: x.address,
      XROW: width * 4,
      Y: y.address,
      YROW: width * 4,
      ROWS: rows,
      HEADS: heads,
      SIZE: width / heads,
      DIMS: node.int('rotaryDims', width / heads),
      INTERLEAVED: node.int('interleaved', 0),
      ...rotaryTables(lowering, node.input(1), node.input(2), node.inputs[3]),
      PAST: 0,
      SEQUENCE: x.shape[1] ?? 1,
    },
    { inPlace: [[y, x]] },
  );
}

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

const view: LowerNode = (lowering, node) => movement.lowerView(lowering, node);

const lowerers: Readonly<Record<string, LowerNode>> = {
  ...Object.fromEntries(elementwiseOps.map((op): [string, LowerNode] => [op, lowerElementwise])),
  ...Object.fromEntries(
    vision.reduceOps.map((op): [string, LowerNode] => [op, vision.lowerReduce]),
  ),
  'fettle.Linear': lowerLinear,
  'fettle.GatedLinear': lowerGatedLinear,
  'fettle.Norm': lowerNorm,
  'fettle.Rotary': lowerRotary,
  'fettle.Attention': lowerAttention,
  'fettle.Conv': vision.lowerConv,
  MatMul: lowerMatMul,
  Gemm: lowerGemm,
  Conv: vision.lowerConv,
  LayerNormalization: lowerLayerNorm,
  RMSNormalization: lowerLayerNorm,
  SimplifiedLayerNormalization: lowerLayerNorm,
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
  Resize: vision.lowerResize,
  Upsample: vision.lowerResize,
  Gather: lowerGather,
  Range: lowerRange,
  ConstantOfShape: lowerConstantOfShape,
  Cast: movement.lowerCast,
  Transpose: movement.lowerTranspose,
  Concat: movement.lowerConcat,
  Slice: movement.lowerSlice,
  Split: movement.lowerSplit,
  Expand: movement.lowerExpand,
  Pad: movement.lowerPad,
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
