/**
 * How exporters write the activations that follow a convolution: as one op, or spelt out.
 *
 *     Mul(x, Div(Clip(Add(x, 3), 0, 6), 6))    hard-swish, also with the division last or as a product
 *     Mul(x, Sigmoid(x))                       silu
 *     Mul(x, Tanh(Softplus(x)))                mish
 *
 * Source: the ONNX operator pages; arXiv:1905.02244 (hard-swish), arXiv:1908.08681 (mish).
 */
import type { Node, Value } from '../ir/graph.ts';
import type { ActivationName } from '../ops/activation-table.ts';
import { isActivationName } from '../ops/activation-table.ts';
import { internalDomain } from '../ops/quantized.ts';
import type { Pattern } from '../rewrite/pattern.ts';
import { oneOf, op, scalar } from '../rewrite/pattern.ts';
import { numbersOf } from './constants.ts';

/** An activation with its parameters; those left out have the defaults of the table. */
export interface FoundActivation {
  /** Entry of the table. */
  readonly name: ActivationName;
  /** Slope, lower bound or factor. */
  readonly alpha?: number;
  /** Upper bound or shift. */
  readonly beta?: number;
}

/** What a form captures. */
export interface FormBindings {
  readonly [name: string]: Value | Node | undefined;
  /** The argument. */
  readonly x: Value;
}

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
export function activationOf(node: Node): FoundActivation | string {
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
      return activationByName(node);
    default:
      return named[node.op] ?? 'it is no activation of the table';
  }
}

const named: Readonly<Record<string, FoundActivation>> = {
  Sigmoid: { name: 'sigmoid' },
  HardSwish: { name: 'hard-swish' },
  Silu: { name: 'silu' },
  Mish: { name: 'mish' },
  Tanh: { name: 'tanh' },
  Softplus: { name: 'softplus' },
};

/** A lone activation of the internal domain. */
function activationByName(node: Node): FoundActivation | string {
  const name = node.string('activation', '');
  if (node.domain !== internalDomain || !isActivationName(name))
    return 'it is no activation of the table';
  const [alpha, beta] = [node.float('alpha'), node.float('beta')];
  return {
    name,
    ...(alpha === undefined ? {} : { alpha }),
    ...(beta === undefined ? {} : { beta }),
  };
}

/** Clip from 0 is relu or relu6; other bounds stay bounds. */
function clipOf(node: Node): FoundActivation | string {
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

/** An activation spelt out in several ops. */
export interface ActivationForm {
  /** Entry of the table. */
  readonly name: ActivationName;
  /** Parameters, when they are not the defaults. */
  readonly alpha?: number;
  /** See `alpha`. */
  readonly beta?: number;
  /** What it looks like around its argument. */
  pattern<B extends { readonly x: Value }>(x: Pattern<B>): Pattern<B>;
}

const near =
  (name: string, wanted: number) =>
  (node: Node): boolean =>
    Math.abs((node.float(name) ?? defaultOf[name] ?? NaN) - wanted) < 1e-4;

/** Defaults of HardSigmoid and of Clip in old opsets. */
const defaultOf: Readonly<Record<string, number>> = { alpha: 0.2, beta: 0.5 };

/** Clip(x + 3, 0, 6). */
function raised<B extends { readonly x: Value }>(x: Pattern<B>): Pattern<B> {
  const sum = op('Add', [x, scalar(3)]);
  const bounds = { min: near('min', 0), max: near('max', 6) };
  return oneOf(
    op('Clip', [sum, scalar(0), scalar(6)]),
    op('Clip', [sum], { attributes: bounds }),
    op('Min', [op('Max', [sum, scalar(0)]), scalar(6)]),
    op('Activation', [sum], { domain: internalDomain, attributes: { activation: 'relu6' } }),
  ) as unknown as Pattern<B>;
}

/** Clip(x + 3, 0, 6) / 6. */
function gate<B extends { readonly x: Value }>(x: Pattern<B>): Pattern<B> {
  return oneOf(
    op('Div', [raised(x), scalar(6)]),
    op('Mul', [raised(x), scalar(1 / 6)]),
  ) as unknown as Pattern<B>;
}

/** Longer forms first: the shorter ones are parts of them. */
export const activationForms: readonly ActivationForm[] = [
  {
    name: 'hard-swish',
    pattern: (x) =>
      oneOf(
        op('Div', [op('Mul', [x, raised(x)]), scalar(6)]),
        op('Mul', [op('Mul', [x, raised(x)]), scalar(1 / 6)]),
        op('Mul', [x, gate(x)]),
        op('Mul', [
          x,
          op('HardSigmoid', [x], {
            attributes: { alpha: near('alpha', 1 / 6), beta: near('beta', 0.5) },
          }),
        ]),
      ) as unknown as typeof x,
  },
  { name: 'hard-sigmoid', alpha: 1 / 6, beta: 0.5, pattern: (x) => gate(x) },
  { name: 'silu', pattern: (x) => op('Mul', [x, op('Sigmoid', [x])]) as unknown as typeof x },
  {
    name: 'mish',
    pattern: (x) => op('Mul', [x, op('Tanh', [op('Softplus', [x])])]) as unknown as typeof x,
  },
];
