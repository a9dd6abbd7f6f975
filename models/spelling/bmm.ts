/**
 * The spelling of models of the time of torch.bmm (BART, OPT, BLOOM as first published): sequences and
 * heads in one dimension around the products, scores put apart for the mask and together again, a softmax
 * in three dimensions, queries scaled in front.
 *
 * Source: transformers before 4.30, OPTAttention.
 */
import { int, ints } from '../../compiler/ir/attribute.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import type { AttentionInputs, Spelling } from './spelling.ts';
import { TorchParts } from './torch.ts';

/** torch.bmm. */
export const bmmSpelling: Spelling = {
  name: 'bmm',
  summary: 'products with sequences and heads in one dimension, opset 14',
  opsets: { '': 14 },
  takesPositions: true,
  cache: 'grows',
  foldsGainOffset: false,
  start: (emitter, config, inputs) => new BmmParts(emitter, config, inputs),
};

class BmmParts extends TorchParts {
  protected override scores(path: string, query: Value, key: Value): Value {
    const { emitter: e, config } = this;
    const [batch, sequence, total] = [
      ...this.sizes(path, query, 0, 2),
      ...this.sizes(path, key, 2),
    ];
    const scaled = e.op(path, 'Mul', [query, e.float(config.headSize ** -0.5)]);
    const keys = e.op(path, 'Transpose', [this.joined(path, key)], { perm: ints([0, 2, 1]) });
    const scores = e.op(path, 'MatMul', [this.joined(path, scaled), keys]);
    return this.reshape(path, scores, [batch, config.heads, sequence, total]);
  }

  protected override weights(path: string, scores: Value, inputs: AttentionInputs): Value {
    if (inputs.sinks !== undefined) return this.joined(path, super.weights(path, scores, inputs));
    return this.emitter.op(path, 'Softmax', [this.joined(path, scores)], { axis: int(2) });
  }

  protected override mixed(path: string, weights: Value, value: Value): Value {
    const { emitter: e, config } = this;
    const [batch] = this.sizes(path, value, 0);
    const [sequence] = this.sizes(path, weights, 1);
    const mixed = e.op(path, 'MatMul', [weights, this.joined(path, value)]);
    return this.reshape(path, mixed, [batch, config.heads, sequence, config.headSize]);
  }

  /** [batch, heads, a, b] -> [batch * heads, a, b]. */
  private joined(path: string, x: Value): Value {
    const { emitter: e, config } = this;
    const [batch, rows, columns] = this.sizes(path, x, 0, 2, 3);
    const count = e.op(path, 'Mul', [batch, e.ints(config.heads)]);
    return this.reshape(path, x, [count, rows, columns]);
  }
}
