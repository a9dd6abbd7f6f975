/**
 * The spelling of models that write products of heads as Einsum, exported through tf2onnx, Keras or JAX:
 * heads stay behind tokens, queries are grouped by the head of keys they share, and nothing is repeated.
 *
 *     BSKGD, BTKD -> BKGST      BKGST, BTKD -> BSKGD
 */
import { ints } from '../../compiler/ir/attribute.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { string } from '../../compiler/ir/attribute.ts';
import type { Spelling } from './spelling.ts';
import { TorchParts } from './torch.ts';

/** Einsum. */
export const einsumSpelling: Spelling = {
  name: 'einsum',
  summary: 'products of heads as Einsum over grouped queries, opset 17',
  opsets: { '': 17 },
  takesPositions: true,
  cache: 'grows',
  foldsGainOffset: false,
  start: (emitter, config, inputs) => new EinsumParts(emitter, config, inputs),
};

class EinsumParts extends TorchParts {
  /** [batch, heads, sequence, total], from queries with heads apart and keys that are not repeated. */
  protected override scores(path: string, query: Value, key: Value): Value {
    const { emitter: e, config } = this;
    const { heads, kvHeads, headSize } = config;
    const [batch, sequence, total] = [
      ...this.sizes(path, query, 0, 2),
      ...this.sizes(path, key, 2),
    ];
    const rows = e.op(path, 'Transpose', [query], { perm: ints([0, 2, 1, 3]) });
    const groups = this.reshape(path, rows, [batch, sequence, kvHeads, heads / kvHeads, headSize]);
    const keys = e.op(path, 'Transpose', [key], { perm: ints([0, 2, 1, 3]) });
    const scaled = e.op(path, 'Mul', [groups, e.float(headSize ** -0.5)]);
    const scores = e.op(path, 'Einsum', [scaled, keys], {
      equation: string('BSKGD,BTKD->BKGST'),
    });
    return this.reshape(path, scores, [batch, heads, sequence, total]);
  }

  protected override mixed(path: string, weights: Value, value: Value): Value {
    const { emitter: e, config } = this;
    const { heads, kvHeads, headSize } = config;
    const [batch, sequence, total] = this.sizes(path, weights, 0, 2, 3);
    const groups = this.reshape(path, weights, [batch, kvHeads, heads / kvHeads, sequence, total]);
    const values = e.op(path, 'Transpose', [value], { perm: ints([0, 2, 1, 3]) });
    const mixed = e.op(path, 'Einsum', [groups, values], {
      equation: string('BKGST,BTKD->BSKGD'),
    });
    const rows = this.reshape(path, mixed, [batch, sequence, heads, headSize]);
    return e.op(path, 'Transpose', [rows], { perm: ints([0, 2, 1, 3]) });
  }

  protected override repeat(_path: string, x: Value): Value {
    return x;
  }
}
