/** Ops that compute each element from the elements at the same place, in any layout. */
import type { Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { isActivation } from '../ops/fused-activation.ts';

const unary: ReadonlySet<string> = new Set(
  (
    'Abs Neg Reciprocal Sqrt Exp Log Erf Sin Cos Floor Ceil Relu LeakyRelu Elu Celu Selu Sigmoid ' +
    'HardSigmoid HardSwish Tanh Softplus Softsign Gelu Mish Cast Identity Not'
  ).split(' '),
);

const binary: ReadonlySet<string> = new Set(['Add', 'Sub', 'Mul', 'Div', 'Pow', 'Min', 'Max']);

/** The operands of an elementwise op, constants among them; undefined for another op. */
export function elementwiseOperands(node: Node): readonly Value[] | undefined {
  const inputs = node.inputs.filter((input) => input !== undefined);
  if (isActivation(node as Node | undefined)) return inputs;
  if (node.domain !== '') return undefined;
  if (unary.has(node.op) && inputs.length === 1) return inputs;
  // bounds of a Clip are scalars, whatever the layout
  if (node.op === 'Clip') return inputs.slice(0, 1);
  return binary.has(node.op) && inputs.length === 2 ? inputs : undefined;
}

/** A node like `node` with other first inputs. */
export function withInputs(rewriter: Rewriter, node: Node, inputs: readonly Value[]): Value {
  return rewriter.op(
    node.op,
    [...inputs, ...node.inputs.slice(inputs.length)],
    Object.fromEntries(node.attributes),
    { domain: node.domain, name: node.name, from: node.from },
  );
}
