/**
 * A fused convolution as ONNX ops, in the order in which onnxruntime fuses them again:
 *
 *     fettle.Conv(x, w, b, r) {activation}   ->   Conv, [Add r], activation, [Add r]
 */
import type { Node, Value } from '../ir/graph.ts';
import { convInputs, epilogueAttributes } from '../ops/fused-conv.ts';
import type { LowerContext } from './context.ts';
import { expandActivation } from './expand-activation.ts';

/** Writes a fused Conv or ConvTranspose in ONNX ops. */
export function expandConv(node: Node, { rewriter }: LowerContext): readonly Value[] {
  const attributes = Object.fromEntries(
    [...node.attributes].filter(([name]) => !epilogueAttributes.includes(name)),
  );
  const inputs = [convInputs.x, convInputs.weight, convInputs.bias].map(
    (index) => node.inputs[index],
  );
  if (inputs.at(-1) === undefined) inputs.pop();
  const residual = node.inputs[convInputs.residual];
  const first = node.int('residualFirst', 0) === 1;

  let value = rewriter.op(node.op, inputs, attributes);
  if (residual !== undefined && first) value = rewriter.op('Add', [value, residual]);
  value = expandActivation(rewriter, node, value);
  if (residual !== undefined && !first) value = rewriter.op('Add', [value, residual]);
  return [value];
}
