/**
 * Elementwise ops for the WASM engine: each is a formula over broadcast inputs, run by one kernel.
 */
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { Dim } from '../ir/dim.ts';
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
  lowering.push('EXPRESSION', words, { why, inPlace: inputs.map((place) => [y, place] as const) });
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
  emitExpression(lowering, formula, places, y);
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

const clip: FormulaOf = (node, [x = number(0)]) => {
  const bound = (index: number, name: string, fallback: number): number => {
    const given = node.inputs[index];
    if (given === undefined) return node.float(name, fallback);
    const constant = given.constant();
    if (constant === undefined) throw new Unsupported('bounds of a Clip that are computed');
    return Number(constant.data[0]);
  };
  return activated(x, 'clip', bound(1, 'min', -Infinity), bound(2, 'max', Infinity));
};

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

/** Lowers an elementwise node. */
export function lowerElementwise(lowering: Lowering, node: Node): void {
  const name = node.domain === '' ? node.op : `${node.domain}.${node.op}`;
  const formulaOf = formulas[name];
  if (formulaOf === undefined) throw new Unsupported(node.op);
  const given = node.op === 'Clip' ? node.inputs.slice(0, 1) : node.inputs;
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
