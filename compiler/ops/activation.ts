/**
 * Activation functions and Clip. Source of every formula: the ONNX operator pages.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Node } from '../ir/graph.ts';
import type { EvaluateContext, OpDefinition } from './definition.ts';
import type { Unary } from './elementwise.ts';
import { combine, erf, mapNumbers, sameAsInput, unaryOp } from './elementwise.ts';
import { isWide, readBigInts, readScalar, writeBigInts } from './numbers.ts';
import { broadcastShapes } from './shapes.ts';
import { opError } from './support.ts';

/** A function of one element whose constants are attributes. */
function activationOp(op: string, of: (node: Node) => Unary): OpDefinition {
  return {
    ...unaryOp(op, (x) => x),
    evaluate: (context) => [mapNumbers(context.input(0), of(context.node))],
  };
}

/** `1 / (1 + exp(-x))`. */
export function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

/** `log(1 + exp(x))` without overflow. */
export function softplus(x: number): number {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

/** Gelu, exact or with the tanh approximation. */
export function gelu(x: number, approximate = false): number {
  if (!approximate) return 0.5 * x * (1 + erf(x * Math.SQRT1_2));
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

/** NaN stays NaN, which `x > 0 ? x : 0` would lose. */
function relu(x: number): number {
  return x < 0 ? 0 : x;
}

const clipOp: OpDefinition = {
  op: 'Clip',
  domain: '',
  inputs: [1, 3],
  outputs: [1, 1],
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    return [{ dtype, shape }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const [, low, high] = context.inputs;
    if (isWide(x.dtype)) return [clipWide(x, low, high)];
    const min = low === undefined ? context.node.float('min', -Infinity) : readScalar(low);
    const max = high === undefined ? context.node.float('max', Infinity) : readScalar(high);
    return [
      mapNumbers(x, (value) => (value > max ? max : value < min ? clampLow(min, max) : value)),
    ];
  },
};

/** When min > max every element becomes max. */
function clampLow(min: number, max: number): number {
  return min > max ? max : min;
}

function clipWide(x: Tensor, low: Tensor | undefined, high: Tensor | undefined): Tensor {
  const min = low && readBigInts(low)[0];
  const max = high && readBigInts(high)[0];
  const clipped = Array.from(readBigInts(x), (value) => {
    const raised = min !== undefined && value < min ? min : value;
    return max !== undefined && raised > max ? max : raised;
  });
  return writeBigInts(x.dtype, x.shape, clipped);
}

const preluOp: OpDefinition = {
  op: 'PRelu',
  domain: '',
  inputs: [2, 2],
  outputs: [1, 1],
  infer: sameAsInput,
  evaluate: (context) => {
    const x = context.input(0);
    const slope = alignedSlope(context, x, context.input(1));
    const shape = broadcastShapes(context, [x.shape, slope.shape]);
    if (shape.length !== x.shape.length || shape.some((dim, i) => dim !== x.shape[i]))
      throw opError(context, `slope [${slope.shape}] does not broadcast to [${x.shape}]`);
    return [combine(context, x, slope, x.dtype, (value, by) => (value < 0 ? value * by : value))];
  },
};

/** Before opset 7 a slope of one dimension belonged to the channels. */
function alignedSlope(context: EvaluateContext, x: Tensor, slope: Tensor): Tensor {
  const [channels] = slope.shape;
  if (context.opset >= 7 || slope.shape.length !== 1 || channels === undefined || channels === 1)
    return slope;
  return { ...slope, shape: [channels, ...x.shape.slice(2).map(() => 1)] };
}

/** Activation functions and Clip. */
export const activationOps: readonly OpDefinition[] = [
  activationOp('Relu', () => relu),
  activationOp('Sigmoid', () => sigmoid),
  activationOp('Softplus', () => softplus),
  activationOp('Softsign', () => (x) => x / (1 + Math.abs(x))),
  activationOp('Mish', () => (x) => x * Math.tanh(softplus(x))),
  activationOp('HardSwish', () => (x) => x * Math.max(0, Math.min(1, x / 6 + 0.5))),
  activationOp('Gelu', (node) => {
    const approximate = node.string('approximate', 'none') === 'tanh';
    return (x) => gelu(x, approximate);
  }),
  activationOp('Swish', (node) => {
    const alpha = node.float('alpha', 1);
    return (x) => x * sigmoid(alpha * x);
  }),
  activationOp('LeakyRelu', (node) => {
    const alpha = node.float('alpha', 0.01);
    return (x) => (x < 0 ? alpha * x : x);
  }),
  activationOp('ThresholdedRelu', (node) => {
    const alpha = node.float('alpha', 1);
    return (x) => (x > alpha ? x : Number.isNaN(x) ? x : 0);
  }),
  activationOp('Elu', (node) => {
    const alpha = node.float('alpha', 1);
    return (x) => (x < 0 ? alpha * Math.expm1(x) : x);
  }),
  activationOp('Celu', (node) => {
    const alpha = node.float('alpha', 1);
    return (x) => (x < 0 ? alpha * Math.expm1(x / alpha) : x);
  }),
  activationOp('Selu', (node) => {
    const alpha = node.float('alpha', 1.67326319217681884765625);
    const gamma = node.float('gamma', 1.05070102214813232421875);
    return (x) => gamma * (x < 0 ? alpha * Math.expm1(x) : x);
  }),
  activationOp('HardSigmoid', (node) => {
    const alpha = node.float('alpha', 0.2);
    const beta = node.float('beta', 0.5);
    return (x) => Math.max(0, Math.min(1, alpha * x + beta));
  }),
  activationOp('Shrink', (node) => {
    const bias = node.float('bias', 0);
    const lambda = node.float('lambd', 0.5);
    return (x) => (x < -lambda ? x + bias : x > lambda ? x - bias : Number.isNaN(x) ? x : 0);
  }),
  preluOp,
  clipOp,
];
