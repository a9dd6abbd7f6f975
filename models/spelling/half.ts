/**
 * The spelling of a model that was converted to f16: weights, inputs and outputs in halves, and a Cast to
 * f32 and back around ops that lose too much in them (powers, means, roots, softmax, angles).
 *
 * Source: onnxconverter-common, float16.convert_float_to_float16 and its op_block_list.
 */
import { dtypes } from '../../runtime/tensor.ts';
import { int } from '../../compiler/ir/attribute.ts';
import type { Model, Value } from '../../compiler/ir/graph.ts';
import { inferNode } from '../../compiler/ir/infer.ts';
import { Rewriter } from '../../compiler/ir/rewriter.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { castTensor } from '../../compiler/ops/cast.ts';
import type { Spelling } from './spelling.ts';
import { torchSpelling } from './torch.ts';

/** PyTorch, converted to f16. */
export const halfSpelling: Spelling = {
  ...torchSpelling,
  name: 'half',
  summary: 'as torch, in f16 with f32 around norms, softmax and angles',
  finish: narrow,
};

/** Ops that stay in f32. */
const wideOps: ReadonlySet<string> = new Set([
  'Pow',
  'ReduceMean',
  'Sqrt',
  'Softmax',
  'Cos',
  'Sin',
  'LayerNormalization',
  'CumSum',
  'Range',
]);

/** Converts a model in place. */
function narrow(model: Model): void {
  const rewriter = new Rewriter(model, inferNode);
  const { graph } = model;
  const wide = new Map<Value, Value>();
  for (const value of [...graph.inputs, ...graph.constants]) {
    const { weight } = value;
    if (value.dtype !== 'f32') continue;
    value.dtype = 'f16';
    if (weight === undefined) continue;
    // generated when read, as the f32 weights are
    value.weight = Weight.lazy('f16', weight.shape, (start, length) => {
      const tensor = castTensor(weight.tensor(), 'f16');
      const data = tensor.data as Uint16Array;
      return new Uint8Array(data.buffer, data.byteOffset + start, length);
    });
  }
  const nodes = [...graph.nodes()];
  for (const [index, node] of nodes.entries()) {
    if (node.op === 'Cast' && node.int('to') === dtypes.f32.onnx)
      rewriter.setAttribute(node, 'to', int(dtypes.f16.onnx));
    if (!wideOps.has(node.op)) {
      rewriter.refresh(node);
      continue;
    }
    rewriter.before(node);
    node.inputs.forEach((input, place) => {
      if (input?.dtype !== 'f16') return;
      let cast = wide.get(input);
      if (cast === undefined) {
        cast = rewriter.op('Cast', [input], { to: int(dtypes.f32.onnx) });
        wide.set(input, cast);
      }
      rewriter.setInput(node, place, cast);
    });
    rewriter.refresh(node);
    const output = node.output(0);
    const next = nodes[index + 1];
    if (output.dtype !== 'f32' || next === undefined) continue;
    rewriter.before(next);
    const users = [...output.users.keys()];
    const half = rewriter.op('Cast', [output], { to: int(dtypes.f16.onnx) });
    for (const user of users)
      user.inputs.forEach((input, place) => {
        if (input === output) rewriter.setInput(user, place, half);
      });
  }
}
