/**
 * A fused norm as the ops onnxruntime has kernels for on every provider:
 *
 *     fettle.Norm(x, g, b) {layer}      ->   LayerNormalization(x, g, b)
 *     fettle.Norm(x, g, , s) {rms}      ->   SkipSimplifiedLayerNormalization(x, s, g), with the sum
 *
 * SimplifiedLayerNormalization is onnxruntime's own, registered in the ONNX domain for every opset, as is
 * LayerNormalization before opset 17. Source: onnxruntime/core/graph/contrib_ops/contrib_defs.cc.
 */
import { float, int } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { NormKind } from '../ops/fused-norm.ts';
import { normInputs, normKind } from '../ops/fused-norm.ts';
import { filled } from '../ops/numbers.ts';
import type { LowerContext } from './context.ts';

/** Writes a fused Norm. */
export function expandNorm(node: Node, context: LowerContext): readonly (Value | undefined)[] {
  const { rewriter } = context;
  const kind = normKind(node);
  const epsilon = node.float('epsilon', 1e-5);
  const x = node.input(normInputs.x);
  const { skip, skipBias, bias } = normInputs;
  const [residual, residualBias, beta] = [skip, skipBias, bias].map((index) => node.inputs[index]);
  const gain = gainOf(node, context);
  // the contrib ops take rows of tokens only
  if (residual === undefined || x.shape?.length !== 3) {
    let sum = residual === undefined ? x : rewriter.op('Add', [x, residual]);
    if (residualBias !== undefined) sum = rewriter.op('Add', [sum, residualBias]);
    return [writeNorm(context, kind, sum, gain, beta, epsilon), sum];
  }
  const layer = kind === 'layer';
  const inputs = layer
    ? [x, residual, gain, beta, residualBias]
    : [x, residual, gain, residualBias];
  while (inputs.at(-1) === undefined) inputs.pop();
  const usesSum = (node.outputs[1]?.useCount ?? 0) > 0;
  const made = rewriter.node(
    layer ? 'SkipLayerNormalization' : 'SkipSimplifiedLayerNormalization',
    inputs,
    { epsilon: float(epsilon) },
    { domain: 'com.microsoft', outputs: usesSum ? [true, false, false, true] : 1 },
  );
  return [made.output(0), usesSum ? made.output(3) : undefined];
}

/** Writes a norm of the last axis. */
export function writeNorm(
  { rewriter }: LowerContext,
  kind: NormKind,
  x: Value,
  gain: Value,
  bias: Value | undefined,
  epsilon: number,
): Value {
  const attributes = { axis: int(-1), epsilon: float(epsilon) };
  if (kind === 'layer') {
    const inputs = bias === undefined ? [x, gain] : [x, gain, bias];
    return rewriter.op('LayerNormalization', inputs, attributes);
  }
  const y = rewriter.op('SimplifiedLayerNormalization', [x, gain], {
    ...attributes,
    stash_type: int(1),
  });
  return bias === undefined ? y : rewriter.op('Add', [y, bias]);
}

/** The gain; ones where the norm has none, which the ops need. */
function gainOf(node: Node, { rewriter }: LowerContext): Value {
  const given = node.inputs[normInputs.gain];
  if (given !== undefined) return given;
  const x = node.input(normInputs.x);
  const columns = x.shape?.at(-1);
  const size = typeof columns === 'number' ? columns : 1;
  return rewriter.constant(`${node.output(0).name}_gain`, filled(x.dtype ?? 'f32', [size], 1));
}
