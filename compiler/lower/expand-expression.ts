/**
 * A fused expression as ONNX ops, one for each of its functions.
 *
 *     fettle.Expression(a, b) {"mul(a, sigmoid(add(b, 3)))"}   ->   Mul(a, Sigmoid(Add(b, 3)))
 */
import type { Node, Value } from '../ir/graph.ts';
import { isActivationName } from '../ops/activation-table.ts';
import type { Expression, ExpressionFunction } from '../ops/fused-expression.ts';
import { readExpression } from '../ops/fused-expression.ts';
import type { LowerContext } from './context.ts';
import { scalarLike, writeActivation } from './expand-activation.ts';

/** Functions that are an ONNX op with the same operands. */
const ops: Readonly<Partial<Record<ExpressionFunction, string>>> = {
  add: 'Add',
  sub: 'Sub',
  mul: 'Mul',
  div: 'Div',
  pow: 'Pow',
  min: 'Min',
  max: 'Max',
  neg: 'Neg',
  abs: 'Abs',
  sqrt: 'Sqrt',
  reciprocal: 'Reciprocal',
  exp: 'Exp',
  log: 'Log',
  erf: 'Erf',
  round: 'Round',
  sin: 'Sin',
  cos: 'Cos',
};

/** Writes a fused expression in ONNX ops. */
export function expandExpression(node: Node, { rewriter }: LowerContext): readonly Value[] {
  const write = (expression: Expression): Value => {
    if (expression.kind === 'input') return node.input(expression.index);
    if (expression.kind === 'number') return scalarLike(rewriter, node.input(0), expression.value);
    const { name, arguments: parts } = expression;
    const op = ops[name];
    if (op !== undefined) return rewriter.op(op, parts.map(write));
    const [argument, ...parameters] = parts;
    if (argument === undefined || !isActivationName(name))
      throw new TypeError(`expandExpression: ${name} has no ONNX op.`);
    const [alpha, beta] = parameters.map((part) =>
      part.kind === 'number' ? part.value : undefined,
    );
    return writeActivation(rewriter, name, write(argument), alpha, beta);
  };
  return [write(readExpression(node))];
}
