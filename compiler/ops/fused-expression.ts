/**
 * An elementwise expression: what several arithmetic nodes in a row compute, in one pass over memory.
 *
 *   fettle.Expression(a, b?, …) -> y, attribute `expression`: "mul(a, sigmoid(add(b, 3)))"
 *
 *   expression = letter | number | function '(' expression {',' expression} ')'
 *
 * Letters are the inputs in order, which broadcast; numbers are written shortest and mean f32.
 * Activations have the names of `activation-table.ts`, with alpha and beta behind the argument.
 * Evaluation computes in doubles and rounds once.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Node } from '../ir/graph.ts';
import { gelu, sigmoid, softplus } from './activation.ts';
import type { EvaluateContext, OpDefinition } from './definition.ts';
import { floatsOf, spanOf } from './dense.ts';
import { erf, inferBroadcast } from './elementwise.ts';
import { roundHalfEven } from './float-formats.ts';
import { writeNumbers } from './numbers.ts';
import { internalDomain } from './quantized.ts';
import { broadcastIndices, broadcastShapes } from './shapes.ts';
import { opError } from './support.ts';

/** Most inputs and most functions of one expression: what a kernel keeps in registers. */
export const expressionLimits = { inputs: 8, functions: 16 } as const;

/** A parsed expression. */
export type Expression =
  | { readonly kind: 'input'; readonly index: number }
  | { readonly kind: 'number'; readonly value: number }
  | {
      readonly kind: 'call';
      readonly name: ExpressionFunction;
      readonly arguments: readonly Expression[];
    };

/** Name of a function of the language. */
export type ExpressionFunction = keyof typeof expressionFunctions;

/** Functions of one to three numbers; their number of parameters is their arity. */
export const expressionFunctions = {
  add: (x: number, y: number): number => x + y,
  sub: (x: number, y: number): number => x - y,
  mul: (x: number, y: number): number => x * y,
  div: (x: number, y: number): number => x / y,
  pow: (x: number, y: number): number => x ** y,
  min: (x: number, y: number): number => Math.min(x, y),
  max: (x: number, y: number): number => Math.max(x, y),
  neg: (x: number): number => -x,
  abs: (x: number): number => Math.abs(x),
  sqrt: (x: number): number => Math.sqrt(x),
  reciprocal: (x: number): number => 1 / x,
  exp: (x: number): number => Math.exp(x),
  log: (x: number): number => Math.log(x),
  erf: (x: number): number => erf(x),
  // the argument is rounded first: engines compute it in f32, and ties are what rounding is about
  round: (x: number): number => roundHalfEven(Math.fround(x)),
  sin: (x: number): number => Math.sin(x),
  cos: (x: number): number => Math.cos(x),
  tanh: (x: number): number => Math.tanh(x),
  sigmoid: (x: number): number => sigmoid(x),
  relu: (x: number): number => (x < 0 ? 0 : x),
  relu6: (x: number): number => Math.min(6, Math.max(0, x)),
  softplus: (x: number): number => softplus(x),
  gelu: (x: number): number => gelu(x),
  'gelu-tanh': (x: number): number => gelu(x, true),
  silu: (x: number): number => x * sigmoid(x),
  'quick-gelu': (x: number, alpha: number): number => x * sigmoid(alpha * x),
  'hard-swish': (x: number): number => x * Math.max(0, Math.min(1, x / 6 + 0.5)),
  mish: (x: number): number => x * Math.tanh(softplus(x)),
  'leaky-relu': (x: number, alpha: number): number => (x < 0 ? alpha * x : x),
  elu: (x: number, alpha: number): number => (x < 0 ? alpha * Math.expm1(x) : x),
  clip: (x: number, low: number, high: number): number => Math.min(high, Math.max(low, x)),
  'hard-sigmoid': (x: number, alpha: number, beta: number): number =>
    Math.max(0, Math.min(1, alpha * x + beta)),
} as const;

/** Whether a node is a fused expression. */
export function isExpression(node: Node | undefined): node is Node {
  return node?.op === 'Expression' && node.domain === internalDomain;
}

/** The text of an expression. */
export function printExpression(expression: Expression): string {
  if (expression.kind === 'input') return String.fromCharCode(97 + expression.index);
  if (expression.kind === 'call')
    return `${expression.name}(${expression.arguments.map(printExpression).join(', ')})`;
  return shortestSingle(expression.value);
}

/** The fewest digits that read back as the same f32. */
function shortestSingle(value: number): string {
  const single = Math.fround(value);
  for (let digits = 1; digits < 9; digits++) {
    const text = String(Number(single.toPrecision(digits)));
    if (Math.fround(Number(text)) === single) return text;
  }
  return String(single);
}

/** How many functions an expression applies. */
export function functionCount(expression: Expression): number {
  if (expression.kind !== 'call') return 0;
  return expression.arguments.reduce((sum, part) => sum + functionCount(part), 1);
}

/**
 * The expression of a fused node.
 *
 * @throws FettleError MODEL_INVALID when it does not parse or names an input that is absent
 */
export function readExpression(node: Node): Expression {
  const text = node.string('expression', '');
  const tokens = text.match(/[a-z][a-z\d-]*|-?(?:\d[\d.]*(?:e[+-]?\d+)?|Infinity)|[(),]/g) ?? [];
  let at = 0;
  const fail = (): never => {
    throw opError({ node }, `cannot read the expression "${text}"`);
  };
  const take = (wanted: string): void => {
    if (tokens[at++] !== wanted) fail();
  };
  const parse = (): Expression => {
    const token = tokens[at++] ?? fail();
    if (/^-?[\dI]/.test(token)) return { kind: 'number', value: Math.fround(Number(token)) };
    if (token.length === 1 && tokens[at] !== '(') {
      const index = token.charCodeAt(0) - 97;
      if (node.inputs[index] === undefined) fail();
      return { kind: 'input', index };
    }
    if (!isFunctionName(token)) return fail();
    const parts: Expression[] = [];
    for (let i = 0; i < expressionFunctions[token].length; i++) {
      take(i === 0 ? '(' : ',');
      parts.push(parse());
    }
    take(')');
    return { kind: 'call', name: token, arguments: parts };
  };
  const expression = parse();
  if (at !== tokens.length) fail();
  return expression;
}

function isFunctionName(name: string): name is ExpressionFunction {
  return Object.hasOwn(expressionFunctions, name);
}

/** Element `i` of the output from the values of the inputs there. */
function compiled(expression: Expression): (inputs: readonly number[]) => number {
  if (expression.kind === 'number') return () => expression.value;
  if (expression.kind === 'input') return (inputs) => inputs[expression.index] as number;
  const parts = expression.arguments.map(compiled);
  const apply = expressionFunctions[expression.name] as (...numbers: readonly number[]) => number;
  return (inputs) => apply(...parts.map((part) => part(inputs)));
}

function evaluate(context: EvaluateContext): Tensor[] {
  const { node } = context;
  const compute = compiled(readExpression(node));
  const operands = node.inputs.map((_, index) => context.input(index));
  const shape = broadcastShapes(
    context,
    operands.map((operand) => operand.shape),
  );
  const sources = operands.map((operand) => ({
    data: floatsOf(operand),
    indices: broadcastIndices(operand.shape, shape),
  }));
  const values = new Float64Array(elementCount(shape));
  const at = sources.map(() => 0);
  for (let i = 0; i < values.length; i++) {
    sources.forEach(({ data, indices }, index) => {
      at[index] = data[indices?.[i] ?? i] as number;
    });
    values[i] = compute(at);
  }
  return [writeNumbers(context.input(0).dtype, shape, values)];
}

/** Fused elementwise expressions. */
export const fusedExpressionOps: readonly OpDefinition[] = [
  {
    op: 'Expression',
    domain: internalDomain,
    inputs: [1, expressionLimits.inputs],
    outputs: [1, 1],
    infer(context) {
      readExpression(context.node);
      return [inferBroadcast(context, context.node.inputs.length)];
    },
    evaluate,
    cost(node, shapeOf) {
      const out = spanOf(shapeOf(node.output()), 0);
      const read = node.inputs.reduce(
        (sum, input) => sum + (input === undefined ? 0 : spanOf(shapeOf(input), 0)),
        0,
      );
      return { flops: out * functionCount(readExpression(node)), bytes: 4 * (out + read) };
    },
  },
];
