/**
 * The activations that fused ops carry by name: one table for the compiler, its reference evaluation
 * and the kernels of every engine.
 *
 * Source of each formula: the ONNX operator of that name; quick-gelu from com.microsoft QuickGelu.
 */
import type { Node } from '../ir/graph.ts';
import { gelu, sigmoid, softplus } from './activation.ts';
import type { Unary } from './elementwise.ts';
import { opError } from './support.ts';

/** Name of an activation of a fused op. */
export type ActivationName =
  | 'none'
  | 'relu'
  | 'relu6'
  | 'leaky-relu'
  | 'clip'
  | 'sigmoid'
  | 'hard-sigmoid'
  | 'hard-swish'
  | 'silu'
  | 'gelu'
  | 'gelu-tanh'
  | 'quick-gelu'
  | 'mish'
  | 'tanh'
  | 'softplus'
  | 'elu';

/** A function of one element; alpha and beta are attributes of the op where the entry has defaults. */
export interface Activation {
  /** Default of `alpha`, when it has one: slope, lower bound or factor. */
  readonly alpha?: number;
  /** Default of `beta`, when it has one: upper bound or shift. */
  readonly beta?: number;
  /** The function. */
  of(alpha: number, beta: number): Unary;
}

/** Every activation by name. */
export const activations: Readonly<Record<ActivationName, Activation>> = {
  none: { of: () => (x) => x },
  relu: { of: () => (x) => (x < 0 ? 0 : x) },
  relu6: { of: () => (x) => Math.min(6, Math.max(0, x)) },
  'leaky-relu': { alpha: 0.01, of: (alpha) => (x) => (x < 0 ? alpha * x : x) },
  clip: {
    alpha: -Infinity,
    beta: Infinity,
    of: (low, high) => (x) => Math.min(high, Math.max(low, x)),
  },
  sigmoid: { of: () => sigmoid },
  'hard-sigmoid': {
    alpha: 0.2,
    beta: 0.5,
    of: (alpha, beta) => (x) => Math.max(0, Math.min(1, alpha * x + beta)),
  },
  'hard-swish': { of: () => (x) => x * Math.max(0, Math.min(1, x / 6 + 0.5)) },
  silu: { of: () => (x) => x * sigmoid(x) },
  gelu: { of: () => (x) => gelu(x) },
  'gelu-tanh': { of: () => (x) => gelu(x, true) },
  'quick-gelu': { alpha: 1.702, of: (alpha) => (x) => x * sigmoid(alpha * x) },
  mish: { of: () => (x) => x * Math.tanh(softplus(x)) },
  tanh: { of: () => Math.tanh },
  softplus: { of: () => softplus },
  elu: { alpha: 1, of: (alpha) => (x) => (x < 0 ? alpha * Math.expm1(x) : x) },
};

/** Whether a text names an activation of the table. */
export function isActivationName(name: string): name is ActivationName {
  return Object.hasOwn(activations, name);
}

/** The name of the activation a fused node carries; `none` when it has no attribute. */
export function activationNameOf(node: Node): ActivationName {
  const name = node.string('activation', 'none');
  if (!isActivationName(name)) throw opError({ node }, `there is no activation "${name}"`);
  return name;
}

/**
 * The function a fused node applies.
 *
 * @throws FettleError MODEL_INVALID for a name that is not in the table
 */
export function fusedActivation(node: Node): Unary {
  const entry = activations[activationNameOf(node)];
  return entry.of(node.float('alpha', entry.alpha ?? 0), node.float('beta', entry.beta ?? 0));
}
