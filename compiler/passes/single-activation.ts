/**
 * Ops that are an activation of the table by themselves. Those spelt out in several ops have become
 * `fettle.Activation` before (`fuse-activation`).
 *
 *     Clip(x, 0, 6)   ->   relu6
 *
 * Source: the ONNX operator pages; com.microsoft in onnxruntime's ContribOperators.md.
 */
import type { Node } from '../ir/graph.ts';
import type { ActivationChoice } from '../ops/fused-activation.ts';
import { activationChoice } from '../ops/fused-activation.ts';
import { internalDomain } from '../ops/quantized.ts';
import { numbersOf } from './constants.ts';

/** Ops that are an activation by themselves, if their attributes and bounds are known. */
export const activationOps: readonly string[] = [
  'Relu',
  'Clip',
  'LeakyRelu',
  'Sigmoid',
  'HardSigmoid',
  'HardSwish',
  'Swish',
  'Silu',
  'QuickGelu',
  'Gelu',
  'FastGelu',
  'Mish',
  'Tanh',
  'Softplus',
  'Elu',
  'Activation',
];

/** The activation that a node of {@link activationOps} is; a sentence when its bounds are computed. */
export function activationOf(node: Node): ActivationChoice | string {
  const alpha = node.float('alpha');
  const slope = (fallback: number): { alpha: number } => ({ alpha: alpha ?? fallback });
  switch (node.op) {
    case 'Relu':
      return { name: 'relu' };
    case 'Clip':
      return clipOf(node);
    case 'LeakyRelu':
      return { name: 'leaky-relu', ...slope(0.01) };
    case 'Elu':
      return { name: 'elu', ...slope(1) };
    case 'HardSigmoid':
      return { name: 'hard-sigmoid', ...slope(0.2), beta: node.float('beta', 0.5) };
    case 'Swish':
    case 'QuickGelu': {
      const factor = alpha ?? (node.op === 'Swish' ? 1 : 1.702);
      return factor === 1 ? { name: 'silu' } : { name: 'quick-gelu', alpha: factor };
    }
    case 'Gelu':
      return { name: node.string('approximate', 'none') === 'tanh' ? 'gelu-tanh' : 'gelu' };
    case 'FastGelu':
      return node.inputs[1] === undefined ? { name: 'gelu-tanh' } : 'it adds a bias first';
    case 'Activation':
      return node.domain === internalDomain ? activationChoice(node) : unknown;
    default:
      return named[node.op] ?? unknown;
  }
}

const unknown = 'it is no activation of the table';

const named: Readonly<Record<string, ActivationChoice>> = {
  Sigmoid: { name: 'sigmoid' },
  HardSwish: { name: 'hard-swish' },
  Silu: { name: 'silu' },
  Mish: { name: 'mish' },
  Tanh: { name: 'tanh' },
  Softplus: { name: 'softplus' },
};

/** Clip from 0 is relu or relu6; other bounds stay bounds. */
function clipOf(node: Node): ActivationChoice | string {
  const low = bound(node, 'min', 1, -Infinity);
  const high = bound(node, 'max', 2, Infinity);
  if (low === undefined || high === undefined) return 'its bounds are not constant';
  if (low > high) return 'its bounds are the wrong way round';
  if (low === 0 && high === Infinity) return { name: 'relu' };
  if (low === 0 && high === 6) return { name: 'relu6' };
  return {
    name: 'clip',
    ...(low === -Infinity ? {} : { alpha: low }),
    ...(high === Infinity ? {} : { beta: high }),
  };
}

/** A bound: an attribute before opset 11, then an optional input; undefined when it is computed. */
function bound(node: Node, name: string, index: number, absent: number): number | undefined {
  const input = node.inputs[index];
  if (input !== undefined) return numbersOf(input)?.[0];
  const value = node.float(name, absent);
  // the default of the attribute is the largest float, which is no bound
  return Math.abs(value) > 3.4e38 ? absent : value;
}
