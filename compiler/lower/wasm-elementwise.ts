/**
 * Elementwise ops for the WASM engine: each is a formula over broadcast inputs, run by one kernel.
 */
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { Dim } from '../ir/dim.ts';
import { multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import type { ActivationName } from '../ops/activation-table.ts';
import { activations } from '../ops/activation-table.ts';
import { readExpression } from '../ops/fused-expression.ts';
import type { Word } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { Unsupported } from './wasm-context.ts';
import type { Formula } from './wasm-expression.ts';
import {
  activated,
  call,
  codeOf,
  formulaOf as formulaOfExpression,
  input,
  number,
} from './wasm-expression.ts';
import { sixLoops, stridesOf } from './wasm-movement.ts';

/** Computes a formula over places into a place of the broadcast shape. */
export function emitExpression(
  lowering: Lowering,
  formula: Formula,
  inputs: readonly Place[],
  y: Place,
  why = 'elementwise',
): void {
  const loops = sixLoops(
    y.shape.map((size, axis) => ({
      size,
      strides: [
        ...inputs.map((place) => broadcastStride(place.shape, axis - y.shape.length)),
        // keeps loops apart that the output does not walk through evenly, which it always does
        stridesOf(y.shape)[axis] ?? 0,
      ],
    })),
    inputs.length + 1,
  );
  const code = codeOf(formula);
  const words: Word[] = [
    y.address,
    lowering.code(code),
    code.length / abi.EXPRESSION_INSTRUCTIONWORDS,
    inputs.length,
    ...loops.map(({ size }) => size),
    ...inputs.flatMap((place, index): Word[] => [
      place.address,
      ...loops.map(({ strides }) => strides[index] ?? 0),
    ]),
  ];
  // what is broadcast is read again behind where the first results go, also when both fit one cache line
  const whole = inputs.filter((place) => multiplyDims(...place.shape) === multiplyDims(...y.shape));
  lowering.push('EXPRESSION', words, { why, inPlace: whole.map((place) => [y, place] as const) });
}

/** Element stride of an input along an axis counted from the end; 0 where it is broadcast. */
function broadcastStride(shape: readonly Dim[], fromEnd: number): Dim {
  const axis = shape.length + fromEnd;
  if (axis < 0 || shape[axis] === 1) return 0;
  return stridesOf(shape)[axis] ?? 0;
}

/** Lowers a node to a formula of its inputs. */
function lowerFormula(
  lowering: Lowering,
  node: Node,
  formula: Formula,
  inputs: readonly Value[],
): void {
  const places = inputs.map((value) => lowering.floats(value));
  const y = lowering.output(node);
  emitExpression(lowering, formula, places.map(alongChannels), y);

  /** Before opset 7, the slopes of a PRelu are those of the channels. */
  function alongChannels(place: Place): Place {
    const rank = y.shape.length;
    const [count] = place.shape;
    const isRow = place.shape.length === 1 && rank > 2 && count !== 1;
    if (node.op !== 'PRelu' || !isRow || lowering.model.opset >= 7) return place;
    return { ...place, shape: [count ?? 1, ...Array.from({ length: rank - 2 }, () => 1)] };
  }
}

type FormulaOf = (node: Node, inputs: readonly Formula[]) => Formula;

const fold =
  (op: string): FormulaOf =>
  (_, inputs) =>
    inputs.reduce((left, right) => call(op, left, right));

const unary =
  (op: string): FormulaOf =>
  (_, [x = number(0)]) =>
    call(op, x);

const activation =
  (name: ActivationName): FormulaOf =>
  (node, [x = number(0)]) => {
    const { alpha, beta } = activations[name];
    return activated(x, name, node.float('alpha', alpha ?? 0), node.float('beta', beta ?? 0));
  };

/** Integer division truncates. */
const divide: FormulaOf = (node, [a = number(0), b = number(1)]) => {
  const quotient = call('div', a, b);
  return /^[iu]\d/.test(node.output().dtype ?? '') ? call('trunc', quotient) : quotient;
};

const clip: FormulaOf = (node, [x = number(0), ...computed]) => {
  const rest = [...computed];
  const bound = (index: number, name: string, fallback: number): Formula => {
    const given = node.inputs[index];
    if (given === undefined) return number(node.float(name, fallback));
    const constant = given.constant();
    return constant === undefined
      ? (rest.shift() ?? number(fallback))
      : number(Number(constant.data[0]));
  };
  const [low, high] = [bound(1, 'min', -Infinity), bound(2, 'max', Infinity)];
  if (low.kind === 'number' && high.kind === 'number')
    return activated(x, 'clip', low.value, high.value);
  return call('min', call('max', x, low), high);
};

/** Inputs of a Clip that its formula reads: constant bounds are numbers in it. */
function clipInputs(node: Node): readonly (Value | undefined)[] {
  return node.inputs.filter((value, index) => index === 0 || value?.constant() === undefined);
}

const half = number(0.5);
const one = number(1);

/** Arc tangent to 2e-7: after Cephes' atanf, which brings |x| to at most tan(pi/8). */
function arcTangent(x: Formula): Formula {
  const size = call('abs', x);
  const large = call('less', number(2.414213562373095), size);
  const middle = call('less', number(0.414213562373095), size);
  const moved = call('div', call('sub', size, one), call('add', size, one));
  const z = call(
    'where',
    large,
    call('neg', call('reciprocal', size)),
    call('where', middle, moved, size),
  );
  const square = call('mul', z, z);
  const series = [8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1]
    .map(number)
    .reduce((sum, next) => call('add', call('mul', sum, square), next));
  const base = call('where', large, number(Math.PI / 2), call('mul', middle, number(Math.PI / 4)));
  const angle = call('add', base, call('add', z, call('mul', z, call('mul', square, series))));
  return call('mul', call('sign', x), angle);
}

/** Arc sine through the arc tangent. */
function arcSine(x: Formula): Formula {
  return arcTangent(call('div', x, call('sqrt', call('sub', one, call('mul', x, x)))));
}

/** (e^x + sign e^-x) / 2. */
const hyperbolic =
  (op: 'add' | 'sub'): FormulaOf =>
  (_, [x = number(0)]) =>
    call('mul', half, call(op, call('exp', x), call('exp', call('neg', x))));

const isInfinite: FormulaOf = (node, [x = number(0)]) => {
  const [low, high] = [node.int('detect_negative', 1), node.int('detect_positive', 1)];
  const found = [
    ...(low === 1 ? [call('equal', x, number(-Infinity))] : []),
    ...(high === 1 ? [call('equal', x, number(Infinity))] : []),
  ];
  return found.reduce((a, b) => call('or', a, b), number(0));
};

/** Constants of Selu as ONNX states them. */
const seluAlpha = 1.6732631921768188;
const seluGamma = 1.0507010221481323;

const grow = (x: Formula, alpha: number, gamma: number): Formula =>
  call(
    'mul',
    number(gamma),
    call('where', call('less', number(0), x), x, activated(x, 'elu', alpha)),
  );

/** Ops by name, with the number of inputs the formula reads (default all). */
const formulas: Readonly<Record<string, FormulaOf>> = {
  Add: fold('add'),
  Sub: fold('sub'),
  Mul: fold('mul'),
  Div: divide,
  Pow: fold('pow'),
  Min: fold('min'),
  Max: fold('max'),
  Sum: fold('add'),
  Mean: (_, inputs) =>
    call(
      'mul',
      inputs.reduce((a, b) => call('add', a, b)),
      number(1 / inputs.length),
    ),
  And: fold('and'),
  Or: fold('or'),
  Xor: (_, [a = number(0), b = number(0)]) => call('not', call('equal', a, b)),
  Not: unary('not'),
  Equal: fold('equal'),
  Less: fold('less'),
  LessOrEqual: fold('lessequal'),
  Greater: (_, [a = number(0), b = number(0)]) => call('less', b, a),
  GreaterOrEqual: (_, [a = number(0), b = number(0)]) => call('lessequal', b, a),
  Where: (_, [a = number(0), b = number(0), c = number(0)]) => call('where', a, b, c),
  Neg: unary('neg'),
  Abs: unary('abs'),
  Sqrt: unary('sqrt'),
  Reciprocal: unary('reciprocal'),
  Exp: unary('exp'),
  Log: unary('log'),
  Erf: unary('erf'),
  Floor: unary('floor'),
  Ceil: unary('ceil'),
  Round: unary('round'),
  Sign: unary('sign'),
  Sin: unary('sin'),
  Cos: unary('cos'),
  Tan: (_, [x = number(0)]) => call('div', call('sin', x), call('cos', x)),
  Atan: (_, [x = number(0)]) => arcTangent(x),
  Asin: (_, [x = number(0)]) => arcSine(x),
  Acos: (_, [x = number(0)]) => call('sub', number(Math.PI / 2), arcSine(x)),
  Sinh: hyperbolic('sub'),
  Cosh: hyperbolic('add'),
  Atanh: (_, [x = number(0)]) =>
    call('mul', half, call('log', call('div', call('add', one, x), call('sub', one, x)))),
  Asinh: (_, [x = number(0)]) => {
    const size = call('abs', x);
    const root = call('sqrt', call('add', call('mul', x, x), one));
    return call('mul', call('sign', x), call('log', call('add', size, root)));
  },
  Acosh: (_, [x = number(0)]) =>
    call('log', call('add', x, call('sqrt', call('sub', call('mul', x, x), one)))),
  IsNaN: (_, [x = number(0)]) => call('not', call('equal', x, x)),
  IsInf: isInfinite,
  Selu: (node, [x = number(0)]) =>
    grow(x, node.float('alpha', seluAlpha), node.float('gamma', seluGamma)),
  Celu: (node, [x = number(0)]) => {
    const alpha = node.float('alpha', 1);
    const below = call('sub', call('exp', call('div', x, number(alpha))), one);
    return call('where', call('less', x, number(0)), call('mul', number(alpha), below), x);
  },
  ThresholdedRelu: (node, [x = number(0)]) =>
    call('where', call('less', number(node.float('alpha', 1)), x), x, number(0)),
  Shrink: (node, [x = number(0)]) => {
    const [lambda, bias] = [number(node.float('lambd', 0.5)), number(node.float('bias', 0))];
    const above = call('where', call('less', lambda, x), call('sub', x, bias), number(0));
    return call('where', call('less', x, call('neg', lambda)), call('add', x, bias), above);
  },
  Relu: activation('relu'),
  LeakyRelu: activation('leaky-relu'),
  Sigmoid: activation('sigmoid'),
  HardSigmoid: activation('hard-sigmoid'),
  HardSwish: activation('hard-swish'),
  Tanh: activation('tanh'),
  Softplus: activation('softplus'),
  Elu: activation('elu'),
  Mish: activation('mish'),
  Swish: (node, [x = number(0)]) =>
    call('mul', x, activated(call('mul', x, number(node.float('alpha', 1))), 'sigmoid')),
  Gelu: (node, [x = number(0)]) =>
    activated(x, node.string('approximate', 'none') === 'tanh' ? 'gelu-tanh' : 'gelu'),
  Softsign: (_, [x = number(0)]) => call('div', x, call('add', number(1), call('abs', x))),
  Clip: clip,
  PRelu: (_, [x = number(0), slope = number(0)]) =>
    call('where', call('less', x, number(0)), call('mul', x, slope), x),
  Mod: (node, [a = number(0), b = number(1)]) =>
    node.int('fmod', 0) === 1
      ? call('mod', a, b)
      : call('sub', a, call('mul', b, call('floor', call('div', a, b)))),
  'com.microsoft.Gelu': (_, [x = number(0)]) => activated(x, 'gelu'),
  'com.microsoft.FastGelu': (_, [x = number(0), bias]) =>
    activated(bias === undefined ? x : call('add', x, bias), 'gelu-tanh'),
  'com.microsoft.BiasGelu': (_, [x = number(0), bias = number(0)]) =>
    activated(call('add', x, bias), 'gelu'),
  'com.microsoft.QuickGelu': (node, [x = number(0)]) =>
    activated(x, 'quick-gelu', node.float('alpha', 1.702)),
  'fettle.Activation': (node, [x = number(0)]) => {
    const name = activationNameOf(node);
    const { alpha, beta } = activations[name];
    return activated(x, name, node.float('alpha', alpha ?? 0), node.float('beta', beta ?? 0));
  },
  'fettle.Expression': (node) => formulaOfExpression(readExpression(node)),
};

/** Names of the ops lowered here, `domain.Op` or `Op`. */
export const elementwiseOps: readonly string[] = Object.keys(formulas);

/** Cast to bool: 1 for what is not 0. */
export function lowerCastToBool(lowering: Lowering, node: Node): void {
  lowerFormula(lowering, node, call('not', call('equal', input(0), number(0))), [node.input(0)]);
}

/** Lowers an elementwise node. */
export function lowerElementwise(lowering: Lowering, node: Node): void {
  const name = node.domain === '' ? node.op : `${node.domain}.${node.op}`;
  const formulaOf = formulas[name];
  if (formulaOf === undefined) throw new Unsupported(node.op);
  const given = node.op === 'Clip' ? clipInputs(node) : node.inputs;
  const inputs = given.filter((value) => value !== undefined);
  lowerFormula(
    lowering,
    node,
    formulaOf(
      node,
      inputs.map((_, index) => input(index)),
    ),
    inputs,
  );
}
