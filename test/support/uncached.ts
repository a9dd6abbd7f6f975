/**
 * Decoders without a cache, as a plain export of `model(input_ids)` gives them: those of the builders with
 * their cache taken out, and a GPT of its own whose positions are learned, turned or ALiBi.
 */
import { float, int, ints, tensorAttribute } from '../../compiler/ir/attribute.ts';
import type { Model, Value } from '../../compiler/ir/graph.ts';
import { inferModel, inferNode } from '../../compiler/ir/infer.ts';
import { Rewriter } from '../../compiler/ir/rewriter.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { tensor } from '../../runtime/tensor.ts';
import { ModelBuilder } from './model-builder.ts';
import { normalValues } from './random-values.ts';

/** Takes the cache out of a decoder that a builder wrote: every call starts at the first token. */
export function withoutCache(model: Model): Model {
  const rewriter = new Rewriter(model, inferNode);
  for (const output of model.graph.outputs.filter(({ name }) => name !== 'logits'))
    rewriter.removeOutput(output);
  for (const past of model.graph.inputs.filter(({ name }) => name.startsWith('past_'))) {
    for (const node of past.users.keys())
      if (node.op === 'Concat') rewriter.replaceUses(node.output(0), node.input(1));
    const sizes = (past.shape ?? []).map((dim) => (typeof dim === 'number' ? dim : 0));
    const none = tensor('f32', [1, ...sizes.slice(1)], new Float32Array(0));
    rewriter.replaceUses(past, rewriter.constant('no_past', none));
    rewriter.removeInput(past);
  }
  for (const input of model.graph.inputs) {
    if (input.name === 'attention_mask') input.shape = ['batch_size', 'sequence_length'];
  }
  for (const node of model.graph.allNodes())
    for (const output of node.outputs)
      if (output !== undefined) [output.shape, output.elements] = [undefined, undefined];
  inferModel(model);
  return model;
}

/** How a GPT knows where a token is. */
export type Positions = 'learned' | 'sinusoidal' | 'rotary' | 'alibi' | 'learned-input' | 'buckets';

const [layers, width, heads, vocabulary, places] = [2, 32, 4, 48, 64] as const;
const size = width / heads;

/** A GPT of two layers: pre-norm, one product for queries, keys and values, a causal mask by Trilu. */
export function plainGpt(positions: Positions, causal = true, seed = 1): Model {
  return new Gpt(positions, causal, seed).build();
}

class Gpt {
  private readonly b = new ModelBuilder(17);
  private readonly positions: Positions;
  private readonly causal: boolean;
  private seed: number;

  constructor(positions: Positions, causal: boolean, seed: number) {
    this.seed = seed;
    this.positions = positions;
    this.causal = causal;
  }

  build(): Model {
    const { b } = this;
    const ids = b.input('input_ids', ['b', 's'], 'i64');
    const table = this.weight([vocabulary, width], width);
    const tokens = b.op('Gather', [table, ids], { axis: int(0) });
    const count = this.sizeOf(ids, 1);
    const range = b.op('Range', [b.integers('zero', [0], []), count, b.integers('one', [1], [])]);
    const row = b.op('Unsqueeze', [range, this.list(0)]);
    let x = this.placed(tokens, row);
    const mask = this.mask(count, range);
    for (let layer = 0; layer < layers; layer++) {
      x = b.op('Add', [x, this.attention(this.norm(x), mask, range)]);
      const wide = this.linear(this.norm(x), width, 4 * width);
      x = b.op('Add', [x, this.linear(b.op('Relu', [wide]), 4 * width, width)]);
    }
    b.output('logits', this.linear(this.norm(x), width, vocabulary));
    return b.model;
  }

  private placed(tokens: Value, row: Value): Value {
    const { b } = this;
    if (this.positions === 'learned' || this.positions === 'learned-input') {
      const table = this.weight([places, width], 4);
      const places_ =
        this.positions === 'learned' ? row : b.input('position_ids', ['b', 's'], 'i64');
      return b.op('Add', [tokens, b.op('Gather', [table, places_], { axis: int(0) })]);
    }
    if (this.positions !== 'sinusoidal') return tokens;
    const angles = this.angles(row, width / 2);
    const waves = b.op('Concat', [b.op('Sin', [angles]), b.op('Cos', [angles])], { axis: int(-1) });
    return b.op('Add', [tokens, waves]);
  }

  /** [1, tokens] -> [1, tokens, pairs]. */
  private angles(row: Value, pairs: number): Value {
    const { b } = this;
    const place = b.op('Unsqueeze', [b.op('Cast', [row], { to: int(1) }), this.list(2)]);
    const rates = Float32Array.from({ length: pairs }, (_, i) => 50 ** (-i / pairs));
    return b.op('Mul', [place, b.floats(`rates${this.seed++}`, [pairs], rates)]);
  }

  private mask(count: Value, range: Value): Value | undefined {
    const { b } = this;
    const square = b.op(
      'Concat',
      [b.op('Unsqueeze', [count, this.list(0)]), b.op('Unsqueeze', [count, this.list(0)])],
      { axis: int(0) },
    );
    const hidden = b.op('ConstantOfShape', [square], {
      value: tensorAttribute(Weight.of(tensor('f32', [1], Float32Array.of(-1e30)))),
    });
    const above = b.op('Trilu', [hidden, b.integers('first', [1], [])], { upper: int(1) });
    const far = this.distances(range);
    if (far === undefined) return this.causal ? above : undefined;
    return this.causal ? b.op('Add', [far, above]) : far;
  }

  /** A term of how far back a key is: ALiBi, or one that no slope explains. */
  private distances(range: Value): Value | undefined {
    const { b } = this;
    if (this.positions !== 'alibi' && this.positions !== 'buckets') return undefined;
    const places = b.op('Cast', [range], { to: int(1) });
    const rows = b.op('Unsqueeze', [places, this.list(1)]);
    const back = b.op('Sub', [b.op('Unsqueeze', [places, this.list(0)]), rows]);
    const term = this.positions === 'alibi' ? back : b.op('Sin', [back]);
    const slopes = Float32Array.from({ length: heads }, (_, i) => 2 ** (-2 * (i + 1)));
    return b.op('Mul', [b.floats('slopes', [1, heads, 1, 1], slopes), term]);
  }

  private attention(x: Value, mask: Value | undefined, range: Value): Value {
    const { b } = this;
    const packed = this.linear(x, width, 3 * width);
    const parts = b.rewriter.node(
      'Split',
      [packed, this.list(width, width, width)],
      { axis: int(-1) },
      { outputs: 3 },
    );
    const split = (index: number): Value => {
      const shaped = b.op('Reshape', [parts.output(index), this.list(0, 0, heads, size)]);
      return b.op('Transpose', [shaped], { perm: ints([0, 2, 1, 3]) });
    };
    const turned = (value: Value): Value =>
      this.positions === 'rotary' ? this.rotated(value, range) : value;
    const keys = b.op('Transpose', [turned(split(1))], { perm: ints([0, 1, 3, 2]) });
    const scores = b.op('Div', [
      b.op('MatMul', [turned(split(0)), keys]),
      b.floats(`root${this.seed++}`, [], Float32Array.of(Math.sqrt(size))),
    ]);
    const masked = mask === undefined ? scores : b.op('Add', [scores, mask]);
    const mixed = b.op('MatMul', [b.op('Softmax', [masked], { axis: int(-1) }), split(2)]);
    const rows = b.op('Transpose', [mixed], { perm: ints([0, 2, 1, 3]) });
    return this.linear(b.op('Reshape', [rows, this.list(0, 0, width)]), width, width);
  }

  private rotated(x: Value, range: Value): Value {
    const { b } = this;
    const angles = this.angles(b.op('Unsqueeze', [range, this.list(0)]), size / 2);
    const both = b.op('Concat', [angles, angles], { axis: int(-1) });
    const halves = b.rewriter.node(
      'Split',
      [x, this.list(size / 2, size / 2)],
      { axis: int(-1) },
      { outputs: 2 },
    );
    const swapped = b.op('Concat', [b.op('Neg', [halves.output(1)]), halves.output(0)], {
      axis: int(-1),
    });
    return b.op('Add', [
      b.op('Mul', [x, b.op('Cos', [both])]),
      b.op('Mul', [swapped, b.op('Sin', [both])]),
    ]);
  }

  private norm(x: Value): Value {
    const { b } = this;
    const weights = [this.weight([width], 1), this.weight([width], 9)];
    return b.op('LayerNormalization', [x, ...weights], { axis: int(-1), epsilon: float(1e-5) });
  }

  private linear(x: Value, from: number, to: number): Value {
    const { b } = this;
    const product = b.op('MatMul', [x, this.weight([from, to], from / 2)]);
    return b.op('Add', [product, this.weight([to], 9)]);
  }

  private sizeOf(value: Value, axis: number): Value {
    const { b } = this;
    return b.op('Gather', [b.op('Shape', [value]), b.integers(`axis${this.seed++}`, [axis], [])], {
      axis: int(0),
    });
  }

  private list(...values: readonly number[]): Value {
    return this.b.integers(`list${this.seed++}`, values);
  }

  private weight(shape: readonly number[], fan: number): Value {
    const count = shape.reduce((a, c) => a * c, 1);
    const values = normalValues(count, this.seed).map((value) => value / Math.sqrt(fan));
    return this.b.floats(`w${this.seed++}`, shape, values);
  }
}
