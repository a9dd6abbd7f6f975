/**
 * Fused convolutions.
 *
 *   fettle.Conv(x, w, bias? [M], residual? [like y]) -> y
 *   fettle.ConvTranspose(x, w, bias? [M], residual? [like y]) -> y
 *     c = conv(x, w) + bias
 *     y = activation(c) + residual     residualFirst = 0
 *     y = activation(c + residual)     residualFirst = 1
 *
 * Shapes and attributes of the window are those of ONNX Conv and ConvTranspose. `activation`, `alpha`
 * and `beta` name an entry of `activation-table.ts`. What follows the convolution is computed in doubles
 * and rounded once.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf, fusedActivation } from './activation-table.ts';
import {
  convTransposeCost,
  convolveInputsBackwards,
  inferConvTranspose,
} from './conv-transpose.ts';
import type { Dense } from './conv.ts';
import { addBias, convCost, convShape, convolveInputs } from './conv.ts';
import type { Cost, EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { optionalFloats, spanOf } from './dense.ts';
import type { Floats } from './gemm.ts';
import { writeNumbers } from './numbers.ts';
import { internalDomain } from './quantized.ts';
import { opError, sameDim } from './support.ts';

/** Input places of a fused convolution. */
export const convInputs = { x: 0, weight: 1, bias: 2, residual: 3 } as const;

/** Whether a node is a fused Conv or ConvTranspose. */
export function isFusedConv(node: Node | undefined): node is Node {
  return (
    node !== undefined &&
    node.domain === internalDomain &&
    (node.op === 'Conv' || node.op === 'ConvTranspose')
  );
}

/** Attributes of a fused convolution that ONNX Conv and ConvTranspose do not have. */
export const epilogueAttributes: readonly string[] = [
  'activation',
  'alpha',
  'beta',
  'residualFirst',
];

/** What follows the sums, in place. */
function finish(context: EvaluateContext, { shape, data }: Dense): Tensor[] {
  const { node, inputs } = context;
  const { dtype } = context.input(convInputs.x);
  const values = Float64Array.from(data);
  addBias(values, shape[1] ?? 1, spanOf(shape, 2), optionalFloats(inputs[convInputs.bias]));
  const residual = optionalFloats(inputs[convInputs.residual]);
  const first = node.int('residualFirst', 0) === 1;
  if (residual !== undefined && residual.length !== values.length)
    throw opError(context, `the residual has ${residual.length} elements, not ${values.length}`);
  if (first) add(values, residual);
  const activation = fusedActivation(node);
  for (let i = 0; i < values.length; i++) values[i] = activation(values[i] as number);
  if (!first) add(values, residual);
  return [writeNumbers(dtype, shape, values)];
}

function add(values: Float64Array, addend: Floats | undefined): void {
  if (addend === undefined) return;
  for (let i = 0; i < values.length; i++) values[i] = (values[i] as number) + (addend[i] as number);
}

/** The activation exists, and a residual looks like the output. */
function checkEpilogue(
  context: InferContext,
  shape: readonly (number | string)[] | undefined,
): void {
  activationNameOf(context.node);
  const residual = context.input(convInputs.residual).shape;
  if (shape === undefined || residual === undefined) return;
  if (residual.length !== shape.length)
    throw opError(context, `the residual [${residual}] has another rank than [${shape}]`);
  shape.forEach((dim, axis) => sameDim(context, 'output and residual', dim, residual[axis] ?? 1));
}

function withResidual(cost: Cost, node: Node, shapeOf: (value: Value) => readonly number[]): Cost {
  const out = spanOf(shapeOf(node.output()), 0);
  const residual = node.inputs[convInputs.residual] === undefined ? 0 : out;
  return { flops: cost.flops + 2 * out, bytes: cost.bytes + 4 * residual };
}

const conv: OpDefinition = {
  op: 'Conv',
  domain: internalDomain,
  inputs: [2, 4],
  outputs: [1, 1],
  infer(context) {
    const shape = convShape(context, context.input(0), context.input(1));
    checkEpilogue(context, shape);
    return [{ dtype: context.input(0).dtype ?? context.input(1).dtype, shape }];
  },
  evaluate: (context) => finish(context, convolveInputs(context)),
  cost: (node, shapeOf) => withResidual(convCost(node, shapeOf), node, shapeOf),
};

const convTranspose: OpDefinition = {
  op: 'ConvTranspose',
  domain: internalDomain,
  inputs: [2, 4],
  outputs: [1, 1],
  infer(context) {
    const types = inferConvTranspose(context);
    checkEpilogue(context, types[0]?.shape);
    return types;
  },
  evaluate: (context) => finish(context, convolveInputsBackwards(context)),
  cost: (node, shapeOf) => withResidual(convTransposeCost(node, shapeOf), node, shapeOf),
};

/** Fused convolutions. */
export const fusedConvOps: readonly OpDefinition[] = [conv, convTranspose];
