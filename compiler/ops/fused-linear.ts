/**
 * Fused linear layers.
 *
 *   fettle.Linear(x [..., K], w, bias? [N], residual? [..., N]) -> y [..., N]
 *     y = activation(x · W + bias) + residual
 *   fettle.GatedLinear(x [..., K], gate, up, gateBias? [N], upBias? [N]) -> y [..., N]
 *     y = activation(x · Wg + gateBias) * (x · Wu + upBias)
 *
 * With `transposed` = 1 a matrix is [N, K], else [K, N]. Matrices are constants, the outputs of
 * fettle.Dequantize over constants, or computed. `activation` names an entry of `activation-table.ts`.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import type { Node, Value, ValueType } from '../ir/graph.ts';
import { activationNameOf, fusedActivation } from './activation-table.ts';
import type { Cost, EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { floatsFor, floatsOf, spanOf } from './dense.ts';
import type { Floats } from './gemm.ts';
import { multiply, multiplyRows } from './gemm.ts';
import { applyAffine } from './norm.ts';
import { writeNumbers } from './numbers.ts';
import { internalDomain } from './quantized.ts';
import { opError, sameDim } from './support.ts';

/** Input places of a Linear node. */
export const linearInputs = { x: 0, weight: 1, bias: 2, residual: 3 } as const;

/** Input places of a GatedLinear node. */
export const gatedLinearInputs = { x: 0, gate: 1, up: 2, gateBias: 3, upBias: 4 } as const;

/** Whether a node is a fused Linear. */
export function isLinear(node: Node | undefined): node is Node & { readonly op: 'Linear' } {
  return node?.op === 'Linear' && node.domain === internalDomain;
}

/** Whether a node is a fused GatedLinear. */
export function isGatedLinear(
  node: Node | undefined,
): node is Node & { readonly op: 'GatedLinear' } {
  return node?.op === 'GatedLinear' && node.domain === internalDomain;
}

/** Output type of x · W, W being input `weight`. */
function inferProduct(context: InferContext, weight: number, bias: number): ValueType {
  const { dtype, shape } = context.input(0);
  const matrix = context.input(weight).shape;
  if (matrix !== undefined && matrix.length !== 2)
    throw opError(context, `a weight must have rank 2, got [${matrix.join(', ')}]`);
  if (shape?.length === 0) throw opError(context, 'x is a scalar');
  const [rows, columns] = matrix ?? [];
  const turned = context.node.int('transposed', 0) === 1;
  const [k, n] = turned ? [columns, rows] : [rows, columns];
  if (shape !== undefined && k !== undefined)
    sameDim(context, 'the inner sizes', shape.at(-1) ?? 1, k);
  const length = context.input(bias).shape?.at(-1);
  if (n !== undefined && length !== undefined) sameDim(context, 'outputs and bias', n, length);
  const outputs: Dim = n ?? length ?? context.fresh();
  return { dtype, shape: shape && [...shape.slice(0, -1), outputs] };
}

/** x · W + bias, with the shape of the result. */
function evaluateProduct(
  context: EvaluateContext,
  weight: Tensor,
  bias: Tensor | undefined,
): { readonly shape: readonly number[]; readonly data: Floats } {
  const x = context.input(0);
  const turned = context.node.int('transposed', 0) === 1;
  const [first = 1, second = 1] = weight.shape;
  const [k, n] = turned ? [second, first] : [first, second];
  if (x.shape.at(-1) !== k) throw opError(context, `x has ${x.shape.at(-1)} columns, wanted ${k}`);
  const rows = spanOf(x.shape, 0, x.shape.length - 1);
  const data = floatsFor(x.dtype, rows * n);
  const run = turned ? multiplyRows : multiply;
  run(
    rows,
    n,
    k,
    { data: floatsOf(x), offset: 0 },
    { data: floatsOf(weight), offset: 0 },
    { data, offset: 0 },
  );
  const shape = [...x.shape.slice(0, -1), n];
  applyAffine(data, shape, undefined, bias);
  return { shape, data };
}

function productCost(
  node: Node,
  shapeOf: (value: Value) => readonly number[],
  matrices: number,
): Cost {
  const rows = spanOf(shapeOf(node.input(0)), 0, shapeOf(node.input(0)).length - 1);
  const weights = matrices * spanOf(shapeOf(node.input(1)), 0);
  const moved = [node.inputs[0], ...node.inputs.slice(1 + matrices), node.output(0)].reduce(
    (sum, value) => sum + (value === undefined ? 0 : spanOf(shapeOf(value), 0)),
    0,
  );
  return { flops: 2 * rows * weights, bytes: 4 * (weights + moved) };
}

const linear: OpDefinition = {
  op: 'Linear',
  domain: internalDomain,
  inputs: [2, 4],
  outputs: [1, 1],
  infer(context) {
    activationNameOf(context.node);
    const y = inferProduct(context, linearInputs.weight, linearInputs.bias);
    const residual = context.input(linearInputs.residual).shape;
    if (y.shape !== undefined && residual !== undefined && residual.length !== y.shape.length)
      throw opError(context, `the residual [${residual}] has another rank than [${y.shape}]`);
    return [y];
  },
  evaluate(context) {
    const { node, inputs } = context;
    const activation = fusedActivation(node);
    const weight = context.input(linearInputs.weight);
    const { shape, data } = evaluateProduct(context, weight, inputs[linearInputs.bias]);
    for (let i = 0; i < data.length; i++) data[i] = activation(data[i] as number);
    applyAffine(data, shape, undefined, inputs[linearInputs.residual]);
    return [writeNumbers(context.input(0).dtype, shape, data)];
  },
  cost: (node, shapeOf) => productCost(node, shapeOf, 1),
};

const gatedLinear: OpDefinition = {
  op: 'GatedLinear',
  domain: internalDomain,
  inputs: [3, 5],
  outputs: [1, 1],
  infer(context) {
    activationNameOf(context.node);
    const { gate, up, gateBias, upBias } = gatedLinearInputs;
    const left = inferProduct(context, gate, gateBias);
    const right = inferProduct(context, up, upBias);
    if (left.shape !== undefined && right.shape !== undefined)
      sameDim(context, 'gate and up', left.shape.at(-1) ?? 1, right.shape.at(-1) ?? 1);
    return [left];
  },
  evaluate(context) {
    const { node, inputs } = context;
    const { gate, up, gateBias, upBias } = gatedLinearInputs;
    const activation = fusedActivation(node);
    const left = evaluateProduct(context, context.input(gate), inputs[gateBias]);
    const right = evaluateProduct(context, context.input(up), inputs[upBias]);
    const { shape, data } = left;
    for (let i = 0; i < data.length; i++)
      data[i] = activation(data[i] as number) * (right.data[i] as number);
    return [writeNumbers(context.input(0).dtype, shape, data)];
  },
  cost: (node, shapeOf) => productCost(node, shapeOf, 2),
};

/** Fused linear layers. */
export const fusedLinearOps: readonly OpDefinition[] = [linear, gatedLinear];
