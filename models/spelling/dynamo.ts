/**
 * The spelling of PyTorch's `dynamo=True` exporter at opset 18: axes and split sizes as inputs, Reciprocal
 * behind Sqrt, scaled dot-product attention taken apart as PyTorch does (the root of the scale on queries
 * and on keys, a guard against rows that are hidden whole), halves by Split.
 *
 * Source: torch.onnx, decomposition of aten.scaled_dot_product_attention.
 */
import { float, int, ints } from '../../compiler/ir/attribute.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { rotarySize } from '../decoder-config.ts';
import type { AttentionInputs, DecoderInputs, NormWeights, Spelling } from './spelling.ts';
import { TorchParts } from './torch.ts';

/** PyTorch, dynamo exporter. */
export const dynamoSpelling: Spelling = {
  name: 'dynamo',
  summary: 'plain ONNX ops as the dynamo exporter writes them, opset 18',
  opsets: { '': 18 },
  takesPositions: true,
  cache: 'grows',
  foldsGainOffset: false,
  start: (emitter, config, inputs) => new DynamoParts(emitter, config, inputs),
};

class DynamoParts extends TorchParts {
  override norm(path: string, x: Value, { gain, bias }: NormWeights): Value {
    const { emitter: e, config } = this;
    if (bias !== undefined)
      return e.op(path, 'LayerNormalization', [x, gain, bias], {
        axis: int(-1),
        epsilon: float(config.norm.epsilon),
      });
    const squares = e.op(path, 'Pow', [x, e.float(2)]);
    const mean = e.op(path, 'ReduceMean', [squares, e.ints(-1)], {
      keepdims: int(1),
      noop_with_empty_axes: int(0),
    });
    const root = e.op(path, 'Sqrt', [e.op(path, 'Add', [mean, e.float(config.norm.epsilon)])]);
    const normed = e.op(path, 'Mul', [x, e.op(path, 'Reciprocal', [root])]);
    const scale = config.norm.plusOne === true ? e.op(path, 'Add', [gain, e.float(1)]) : gain;
    return e.op(path, 'Mul', [normed, scale]);
  }

  protected override append(path: string, past: Value, x: Value): Value {
    return this.emitter.op(path, 'Concat', [past, x], { axis: int(-2) });
  }

  /** The root of the scale on both sides. */
  protected override scores(path: string, query: Value, key: Value): Value {
    const { emitter: e } = this;
    const root = e.float(this.config.headSize ** -0.25);
    const keys = e.op(path, 'Transpose', [key], { perm: ints([0, 1, 3, 2]) });
    return e.op(path, 'MatMul', [
      e.op(path, 'Mul', [query, root]),
      e.op(path, 'Mul', [keys, root]),
    ]);
  }

  protected override weights(path: string, scores: Value, inputs: AttentionInputs): Value {
    const { emitter: e } = this;
    const weights = super.weights(path, scores, inputs);
    // a row that is hidden whole is 0 / 0
    return e.op(path, 'Where', [e.op(path, 'IsNaN', [weights]), e.float(0), weights]);
  }

  protected override largest(path: string, x: Value): Value {
    const { emitter: e } = this;
    return e.op(path, 'ReduceMax', [x, e.ints(-1)], { keepdims: int(1) });
  }

  override activation(path: string, x: Value): Value {
    const { emitter: e } = this;
    if (this.config.mlp.activation !== 'gelu') return super.activation(path, x);
    const erf = e.op(path, 'Erf', [e.op(path, 'Mul', [x, e.float(Math.SQRT1_2)])]);
    const half = e.op(path, 'Mul', [x, e.float(0.5)]);
    return e.op(path, 'Mul', [half, e.op(path, 'Add', [erf, e.float(1)])]);
  }

  /** Halves by Split. */
  protected override swapHalves(path: string, x: Value): Value {
    const { emitter: e } = this;
    const half = rotarySize(this.config) / 2;
    const parts = e.node(path, 'Split', [x, e.ints(half, half)], { axis: int(-1) }, { outputs: 2 });
    return e.op(path, 'Concat', [e.op(path, 'Neg', [parts.output(1)]), parts.output(0)], {
      axis: int(-1),
    });
  }

  /** Hidden where later or padding, as -infinity. */
  protected override additiveMask({ ids, mask, past }: DecoderInputs): Value {
    const { emitter: e } = this;
    const path = '/model';
    const size = (x: Value, axis: number): Value =>
      e.op(path, 'Squeeze', [e.op(path, 'Shape', [x], { start: int(axis), end: int(axis + 1) })]);
    const [before] = past;
    const start = before === undefined ? e.int(0) : size(before.key, 2);
    const end = e.op(path, 'Add', [start, size(ids, 1)]);
    const places = e.op(path, 'Range', [start, end, e.int(1)]);
    const keys = e.op(path, 'Range', [e.int(0), end, e.int(1)]);
    const later = e.op(path, 'Greater', [keys, e.op(path, 'Unsqueeze', [places, e.ints(1)])]);
    const padding = e.op(path, 'Not', [e.op(path, 'Cast', [mask], { to: int(9) })]);
    const hidden = e.op(path, 'Or', [
      e.op(path, 'Unsqueeze', [later, e.ints(0, 1)]),
      e.op(path, 'Unsqueeze', [padding, e.ints(1, 2)]),
    ]);
    return e.op(path, 'Where', [hidden, e.float(-Infinity), e.float(0)]);
  }
}
