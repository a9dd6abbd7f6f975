/**
 * The reference for integer kernels: the same model, in which every input of a linear layer with codes
 * is rounded to int8 with one scale per block first, exactly as the kernels do it.
 */
import { int } from '../../compiler/ir/attribute.ts';
import { cloneModel } from '../../compiler/ir/clone.ts';
import type { Model, Value } from '../../compiler/ir/graph.ts';
import { inferNode } from '../../compiler/ir/infer.ts';
import { Rewriter } from '../../compiler/ir/rewriter.ts';
import { isDequantize, readDequantize } from '../../compiler/ops/quantized.ts';

/** A copy of a model of fused ops with rounded activations. */
export function withQuantizedActivations(model: Model): Model {
  const copy = cloneModel(model);
  const rewriter = new Rewriter(copy, inferNode);
  const i64 = (name: string, values: readonly number[]): Value =>
    rewriter.constant(name, {
      dtype: 'i64',
      shape: [values.length],
      data: BigInt64Array.from(values, BigInt),
    });
  for (const node of copy.graph.nodes()) {
    const codes = node.inputs[1]?.producer;
    if (!['Linear', 'GatedLinear'].includes(node.op) || !isDequantize(codes)) continue;
    const { columns, group } = readDequantize(codes);
    const block = group >= columns || group % 32 === 0 ? 32 : 16;
    const x = node.input(0);
    rewriter.before(node);
    const blocks = rewriter.op('Reshape', [x, i64('blocks', [0, 0, columns / block, block])]);
    const largest = rewriter.op('ReduceMax', [rewriter.op('Abs', [blocks]), i64('axes', [3])], {
      keepdims: int(1),
    });
    const limit = rewriter.constant('limit', {
      dtype: 'f32',
      shape: [],
      data: Float32Array.of(127),
    });
    const inverse = rewriter.op('Div', [limit, largest]);
    const rounded = rewriter.op('Round', [rewriter.op('Mul', [blocks, inverse])]);
    const back = rewriter.op('Mul', [rounded, rewriter.op('Div', [largest, limit])]);
    rewriter.setInput(node, 0, rewriter.op('Reshape', [back, i64('rows', [0, 0, columns])]));
  }
  return copy;
}
