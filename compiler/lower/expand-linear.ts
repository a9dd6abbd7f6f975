/**
 * Fused linear layers as ONNX ops, in the forms that onnxruntime prepacks:
 *
 *     fettle.Linear(x, w, b, r) {activation}     ->   MatMul, Add b, activation, Add r
 *     fettle.Linear(x [M, K], w [N, K], b)       ->   Gemm {transB = 1}
 *     fettle.GatedLinear(x, g, u) {activation}   ->   MatMul, activation, MatMul, Mul
 *
 * A matrix [N, K] of a product of higher rank is turned by a Transpose, which is folded when the
 * session starts.
 */
import { int, ints } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import { gatedLinearInputs, linearInputs } from '../ops/fused-linear.ts';
import type { LowerContext } from './context.ts';
import { expandActivation } from './expand-activation.ts';

/** Writes a fused Linear. */
export function expandLinear(node: Node, context: LowerContext): readonly Value[] {
  const { rewriter } = context;
  const { weight, bias, residual } = linearInputs;
  const product = writeProduct(node, node.input(weight), node.inputs[bias], context);
  const y = expandActivation(rewriter, node, product);
  const added = node.inputs[residual];
  return [added === undefined ? y : rewriter.op('Add', [y, added])];
}

/** Writes a fused GatedLinear. */
export function expandGatedLinear(node: Node, context: LowerContext): readonly Value[] {
  const { rewriter } = context;
  const { gate, up, gateBias, upBias } = gatedLinearInputs;
  const left = writeProduct(node, node.input(gate), node.inputs[gateBias], context);
  const acted = expandActivation(rewriter, node, left);
  const right = writeProduct(node, node.input(up), node.inputs[upBias], context);
  return [rewriter.op('Mul', [acted, right])];
}

function writeProduct(
  node: Node,
  matrix: Value,
  bias: Value | undefined,
  { rewriter }: LowerContext,
): Value {
  const x = node.input(0);
  const turned = node.int('transposed', 0) === 1;
  if (x.shape?.length === 2 && (turned || bias !== undefined)) {
    const inputs = bias === undefined ? [x, matrix] : [x, matrix, bias];
    return rewriter.op('Gemm', inputs, { transB: int(turned ? 1 : 0) });
  }
  const right = turned ? rewriter.op('Transpose', [matrix], { perm: ints([1, 0]) }) : matrix;
  const product = rewriter.op('MatMul', [x, right]);
  return bias === undefined ? product : rewriter.op('Add', [product, bias]);
}
