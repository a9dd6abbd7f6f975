/**
 * Products for the WASM engine: linear layers with constant matrices, and products of what is computed,
 * with batches as they broadcast.
 */
import type { Dim } from '../ir/dim.ts';
import { addDims, multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf, activations } from '../ops/activation-table.ts';
import { gatedLinearInputs, linearInputs } from '../ops/fused-linear.ts';
import { shifted } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { f32, Unsupported } from './wasm-context.ts';
import { emitExpression } from './wasm-elementwise.ts';
import { activated, activationIds, call, input, number } from './wasm-expression.ts';
import type { Epilogue } from './wasm-linear.ts';
import { lowerGated, lowerProduct, packMatrix, sameLayout } from './wasm-linear.ts';
import * as movement from './wasm-movement.ts';

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

/** fettle.Linear. */
export function lowerLinear(lowering: Lowering, node: Node): void {
  const x = node.input(linearInputs.x);
  const weight = node.input(linearInputs.weight);
  const rowsFirst = node.int('transposed', 0) === 1;
  const matrix = packMatrix(lowering, weight, rowsFirst);
  const { name, alpha, beta, activation = 0 } = activationOf(node);
  const bias = node.inputs[linearInputs.bias];
  const residual = node.inputs[linearInputs.residual];
  if (matrix === undefined) {
    const [left, right] = [lowering.floats(x), lowering.floats(weight)];
    const place = multiply(lowering, node, left, right, rowsFirst, 1);
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

/** fettle.GatedLinear: one step where both matrices are laid out alike. */
export function lowerGatedLinear(lowering: Lowering, node: Node): void {
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
  left: Place,
  right: Place,
  transposed: boolean,
  scale: number,
): Place {
  const y = lowering.output(node);
  // a vector is a matrix of one row, or of one column
  const x = left.shape.length === 1 ? { ...left, shape: [1, ...left.shape] } : left;
  const w = right.shape.length === 1 ? { ...right, shape: [...right.shape, 1] } : right;
  const [m, k] = x.shape.slice(-2) as [Dim, Dim];
  const n = w.shape.at(transposed ? -2 : -1) ?? 1;
  const rank = Math.max(x.shape.length, w.shape.length) - 2;
  const sizeAt = (place: Place, axis: number): Dim | undefined =>
    place.shape[axis - rank + place.shape.length - 2];
  const batches = Array.from({ length: rank }, (_, axis): Dim => {
    const size = sizeAt(x, axis) ?? 1;
    return size === 1 ? (sizeAt(w, axis) ?? 1) : size;
  });
  const strides = (place: Place, axis: number): Dim => {
    const at = axis - rank + place.shape.length - 2;
    if (at < 0 || place.shape[at] === 1) return 0;
    return multiplyDims(4, ...place.shape.slice(at + 1));
  };
  const merged = movement.mergeLoops(
    batches.map((size, axis) => ({
      size,
      strides: [
        strides(x, axis),
        strides(w, axis),
        multiplyDims(4, m, n, ...batches.slice(axis + 1)),
      ],
    })),
  );
  const emit = (loops: readonly movement.Loop[], at: readonly Dim[]): void => {
    const [first, ...rest] = loops;
    // the kernel has two loops over batches; what is left is written out
    if (first !== undefined && loops.length > 2) {
      const count = lowering.fixed(first.size, 'a batch of a product');
      if (count > MOST_BATCHES) throw new Unsupported(`a product over ${count} batches`);
      for (let i = 0; i < count; i++)
        emit(
          rest,
          at.map((offset, side) => addDims(offset, multiplyDims(i, first.strides[side] ?? 0))),
        );
      return;
    }
    const none = { size: 1, strides: [0, 0, 0] };
    const [outer = none, inner = none] = loops.length < 2 ? [none, ...loops] : loops;
    lowering.emit('MATMUL', {
      X: shifted(x.address, at[0] ?? 0),
      XROW: multiplyDims(4, k),
      XBATCH: outer.strides[0] ?? 0,
      XHEAD: inner.strides[0] ?? 0,
      W: shifted(w.address, at[1] ?? 0),
      WROW: multiplyDims(4, w.shape.at(-1) ?? 1),
      WBATCH: outer.strides[1] ?? 0,
      WHEAD: inner.strides[1] ?? 0,
      TRANSPOSED: transposed ? 1 : 0,
      Y: shifted(y.address, at[2] ?? 0),
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
  };
  emit(merged, [0, 0, 0]);
  return y;
}

/** Steps that one product may take, where its batches do not merge into two loops. */
const MOST_BATCHES = 64;

/** MatMul of anything. */
export function lowerMatMul(lowering: Lowering, node: Node): void {
  const [x, weight] = [node.input(0), node.input(1)];
  const isVector = x.shape?.length === 1;
  const matrix = isVector ? undefined : packMatrix(lowering, weight, false);
  if (matrix === undefined)
    multiply(lowering, node, lowering.floats(x), lowering.floats(weight), false, 1);
  else lowerProduct(lowering, x, matrix, {}, lowering.output(node));
}

/** MatMul with its own transposes and factor, as onnxruntime writes it. */
export function lowerFusedMatMul(lowering: Lowering, node: Node): void {
  const turned = node.int('transA', 0) === 1;
  const batchTurned = node.int('transBatchA', 0) === 1 || node.int('transBatchB', 0) === 1;
  if (batchTurned) throw new Unsupported('a product that transposes batches');
  const alpha = node.float('alpha', 1);
  const rowsFirst = node.int('transB', 0) === 1;
  const matrix = turned ? undefined : packMatrix(lowering, node.input(1), rowsFirst);
  if (matrix !== undefined && alpha === 1) {
    lowerProduct(lowering, node.input(0), matrix, {}, lowering.output(node));
    return;
  }
  const x = lowering.floats(node.input(0));
  const left = turned ? turnedMatrix(lowering, x) : x;
  multiply(lowering, node, left, lowering.floats(node.input(1)), rowsFirst, alpha);
}

/** A copy with the last two axes exchanged. */
function turnedMatrix(lowering: Lowering, x: Place): Place {
  const [m = 1, k = 1] = x.shape.slice(-2);
  const lead = x.shape.slice(0, -2);
  const shape = [...lead, k, m];
  const turned = lowering.fresh('transposed', shape);
  const own = movement.stridesOf(x.shape);
  const strides = [...own.slice(0, -2), own.at(-1) ?? 1, own.at(-2) ?? 1];
  movement.move(
    lowering,
    shape,
    { place: x, strides },
    { place: turned, strides: movement.stridesOf(shape) },
    'transposed for a product',
  );
  return turned;
}

/** Gemm with its transposes and factors. */
export function lowerGemm(lowering: Lowering, node: Node): void {
  const [x, weight, bias] = [node.input(0), node.input(1), node.inputs[2]];
  const [alpha, beta] = [node.float('alpha', 1), node.float('beta', 1)];
  const added = beta === 0 ? undefined : bias;
  const rowsFirst = node.int('transB', 0) === 1;
  const turned = node.int('transA', 0) === 1;
  const matrix = turned || alpha !== 1 ? undefined : packMatrix(lowering, weight, rowsFirst);
  const isRow = added?.weight !== undefined && multiplyDims(...(added.shape ?? [])) === matrix?.n;
  if (matrix !== undefined && beta === 1 && (added === undefined || isRow)) {
    lowerProduct(lowering, x, matrix, { bias: added }, lowering.output(node));
    return;
  }
  const left = lowering.floats(x);
  let y: Place;
  if (matrix === undefined)
    y = multiply(
      lowering,
      node,
      turned ? turnedMatrix(lowering, left) : left,
      lowering.floats(weight),
      rowsFirst,
      alpha,
    );
  else {
    y = lowering.output(node);
    lowerProduct(lowering, x, matrix, {}, y);
  }
  if (added === undefined) return;
  const part = beta === 1 ? input(1) : call('mul', input(1), number(beta));
  const places = [y, lowering.floats(added)];
  emitExpression(lowering, call('add', input(0), part), places, y, 'behind a product');
}
