/**
 * Activations that other ops carry in an attribute: the fused forms of Conv and Gemm, and the
 * recurrent ops.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__LSTM.html (activations, activation_alpha and _beta).
 */
import type { Node } from '../ir/graph.ts';
import { gelu, sigmoid, softplus } from './activation.ts';
import type { Unary } from './elementwise.ts';
import type { Floats } from './gemm.ts';
import { unsupported } from './support.ts';

type Factory = (alpha: number | undefined, beta: number | undefined) => Unary;

/** By lower-case ONNX name. Defaults of alpha and beta are those of the op of the same name. */
const factories: ReadonlyMap<string, Factory> = new Map<string, Factory>([
  ['relu', () => (x) => (x < 0 ? 0 : x)],
  ['tanh', () => Math.tanh],
  ['sigmoid', () => sigmoid],
  [
    'affine',
    (alpha = 1, beta = 0) =>
      (x) =>
        alpha * x + beta,
  ],
  [
    'leakyrelu',
    (alpha = 0.01) =>
      (x) =>
        x < 0 ? alpha * x : x,
  ],
  [
    'thresholdedrelu',
    (alpha = 1) =>
      (x) =>
        x > alpha ? x : 0,
  ],
  [
    'scaledtanh',
    (alpha = 1, beta = 1) =>
      (x) =>
        alpha * Math.tanh(beta * x),
  ],
  [
    'hardsigmoid',
    (alpha = 0.2, beta = 0.5) =>
      (x) =>
        Math.min(1, Math.max(0, alpha * x + beta)),
  ],
  [
    'elu',
    (alpha = 1) =>
      (x) =>
        x < 0 ? alpha * Math.expm1(x) : x,
  ],
  ['softsign', () => (x) => x / (1 + Math.abs(x))],
  ['softplus', () => softplus],
  ['hardswish', () => (x) => x * Math.min(1, Math.max(0, x / 6 + 0.5))],
  ['gelu', () => (x) => gelu(x)],
  [
    'clip',
    (low = -Infinity, high = Infinity) =>
      (x) =>
        Math.min(high, Math.max(low, x)),
  ],
]);

/**
 * An activation by its ONNX name, in any case.
 *
 * @throws FettleError OP_UNSUPPORTED for an unknown name
 */
export function activationNamed(node: Node, name: string, alpha?: number, beta?: number): Unary {
  const factory = factories.get(name.toLowerCase());
  if (factory === undefined) throw unsupported({ node }, `activation "${name}"`);
  return factory(alpha, beta);
}

/** The activation a com.microsoft Fused op applies; undefined when it has none. */
export function activationOf(node: Node): Unary | undefined {
  const name = node.string('activation', '');
  if (name === '') return undefined;
  const [first, second] = node.floats('activation_params') ?? [];
  const alpha = node.float('activation_alpha') ?? first;
  return activationNamed(node, name, alpha, node.float('activation_beta') ?? second);
}

/** Applies an activation in place. */
export function activate(values: Floats, activation: Unary): void {
  for (let i = 0; i < values.length; i++) values[i] = activation(values[i] ?? 0);
}
