/** Ops that compute each row from the same rows: tokens stay apart. */
import type { Node } from '../ir/graph.ts';

const rowWise: ReadonlySet<string> = new Set(
  (
    'fettle.Linear fettle.GatedLinear fettle.Norm fettle.Activation fettle.Expression ' +
    'Add Sub Mul Div Tanh Sigmoid Relu LeakyRelu Elu Gelu HardSigmoid HardSwish Mish Softplus Cast ' +
    'Identity Neg Abs Sqrt Reciprocal Where Clip Min Max Erf Exp Log Pow'
  ).split(' '),
);

/** Why a node may connect tokens or count them; undefined when it treats them one by one. */
export function treatsTokensAlike(node: Node): string | undefined {
  const name = node.domain === '' ? node.op : `${node.domain}.${node.op}`;
  // rows of a table, by what is known of each token
  if (node.op === 'Gather' && node.inputs[0]?.weight !== undefined && node.int('axis', 0) === 0)
    return undefined;
  if (!rowWise.has(name)) return `${name} is not known to treat tokens one by one`;
  // a constant with a row for each token would be another one for later tokens
  const perToken = node.inputs.find((input) => {
    const dim = input?.weight?.shape.at(-2);
    return node.domain === '' && dim !== undefined && dim !== 1;
  });
  return perToken === undefined ? undefined : `its constant "${perToken.name}" has rows of its own`;
}
