/**
 * Builds a BERT-like sentence encoder as PyTorch's TorchScript exporter writes it at opset 17: post-norm
 * blocks, layer norms, GELU by Erf, eager attention with an additive padding mask. Weights are seeded
 * random numbers at the scale training leaves them, generated when read.
 *
 * input_ids, attention_mask, token_type_ids i64 [batch, sequence] -> last_hidden_state [batch, sequence, width]
 *
 * Source: https://arxiv.org/abs/1810.04805
 */
import { float, int, ints } from '../compiler/ir/attribute.ts';
import type { Model, Value } from '../compiler/ir/graph.ts';
import { Emitter } from './emitter.ts';

/** Sizes of an encoder. */
export interface EncoderConfig {
  /** Blocks. */
  readonly layers: number;
  /** Columns of the residual stream. */
  readonly width: number;
  /** Attention heads; divides `width`. */
  readonly heads: number;
  /** Columns between the two layers of the feed-forward. */
  readonly hidden: number;
  /** Tokens of the vocabulary. */
  readonly vocabulary: number;
  /** Rows of the position table. */
  readonly positions: number;
  /** Rows of the token type table. */
  readonly tokenTypes: number;
  /** Epsilon of the norms. */
  readonly epsilon: number;
}

/** https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/blob/main/config.json */
export const miniLmL6: EncoderConfig = {
  layers: 6,
  width: 384,
  heads: 12,
  hidden: 1536,
  vocabulary: 30_522,
  positions: 512,
  tokenTypes: 2,
  epsilon: 1e-12,
};

/** Real shapes by the name after `shape:`. */
export const shapeEncoders: Readonly<Record<string, EncoderConfig>> = { minilm: miniLmL6 };

/** Lowest finite f32: what a masked score is. */
const LOWEST = -3.4028234663852886e38;
const F32 = 1;
const SIZES = ['batch_size', 'sequence_length'] as const;

/**
 * Builds an encoder with seeded random weights.
 *
 * @param name - graph name
 * @param seed - the same name, config and seed give the same model
 *
 * @example
 * const model = buildEncoder('minilm', miniLmL6);
 */
export function buildEncoder(name: string, config: EncoderConfig, seed = 1): Model {
  return new EncoderBuilder(name, config, seed).build();
}

class EncoderBuilder {
  private readonly emitter: Emitter;
  private readonly config: EncoderConfig;

  constructor(name: string, config: EncoderConfig, seed: number) {
    this.emitter = new Emitter(name, { '': 17 }, seed);
    this.config = config;
  }

  build(): Model {
    const { emitter: e, config } = this;
    const names = ['input_ids', 'attention_mask', 'token_type_ids'] as const;
    const [ids, mask, types] = names.map((input) => e.input(input, 'i64', SIZES));
    if (ids === undefined || mask === undefined || types === undefined) throw new RangeError();
    const bias = this.mask(mask);
    let x = this.embeddings(ids, types);
    for (let layer = 0; layer < config.layers; layer++) x = this.block(layer, x, bias);
    e.output('last_hidden_state', x, 'f32', [...SIZES, config.width]);
    e.model.producerName = 'fettle-models';
    e.model.producerVersion = 'torch';
    return e.model;
  }

  /** Words, token types, positions, and their norm. */
  private embeddings(ids: Value, types: Value): Value {
    const { emitter: e, config } = this;
    const path = '/embeddings';
    const table = (name: string, rows: number): Value =>
      e.weight(`embeddings.${name}.weight`, [rows, config.width], { deviation: 0.05 });
    const words = e.op(`${path}/word_embeddings`, 'Gather', [
      table('word_embeddings', config.vocabulary),
      ids,
    ]);
    const kinds = e.op(`${path}/token_type_embeddings`, 'Gather', [
      table('token_type_embeddings', config.tokenTypes),
      types,
    ]);
    const sum = e.op(path, 'Add', [words, kinds]);
    const all = e.constant('embeddings.position_ids', {
      dtype: 'i64',
      shape: [1, config.positions],
      data: BigInt64Array.from({ length: config.positions }, (_, i) => BigInt(i)),
    });
    const [, length] = this.sizes(path, ids);
    const rows = e.op(path, 'Slice', [all, e.ints(0), length, e.ints(1), e.ints(1)]);
    const places = e.op(`${path}/position_embeddings`, 'Gather', [
      table('position_embeddings', config.positions),
      rows,
    ]);
    return this.norm(`${path}/LayerNorm`, 'embeddings.LayerNorm', e.op(path, 'Add', [sum, places]));
  }

  /** Padding as numbers to add to the scores, [batch, 1, 1, sequence]. */
  private mask(mask: Value): Value {
    const { emitter: e } = this;
    const wide = e.op('', 'Cast', [e.op('', 'Unsqueeze', [mask, e.ints(1, 2)])], { to: int(F32) });
    return e.op('', 'Mul', [e.op('', 'Sub', [e.float(1), wide]), e.float(LOWEST)]);
  }

  private block(layer: number, x: Value, mask: Value): Value {
    const { emitter: e, config } = this;
    const path = `/encoder/layer.${layer}`;
    const name = `encoder.layer.${layer}`;
    const { width, hidden } = config;
    const mixed = this.attention(`${path}/attention/self`, `${name}.attention.self`, x, mask);
    const attended = this.linear(`${path}/attention/output/dense`, mixed, width, width);
    const middle = this.norm(
      `${path}/attention/output/LayerNorm`,
      `${name}.attention.output.LayerNorm`,
      e.op(`${path}/attention/output`, 'Add', [attended, x]),
    );
    const wide = this.gelu(
      `${path}/intermediate`,
      this.linear(`${path}/intermediate/dense`, middle, width, hidden),
    );
    const narrow = this.linear(`${path}/output/dense`, wide, hidden, width);
    const sum = e.op(`${path}/output`, 'Add', [narrow, middle]);
    return this.norm(`${path}/output/LayerNorm`, `${name}.output.LayerNorm`, sum);
  }

  private attention(path: string, name: string, x: Value, mask: Value): Value {
    const { emitter: e, config } = this;
    const { heads, width } = config;
    const headSize = width / heads;
    const [batch, length] = this.sizes(path, x);
    const shape = (...sizes: Value[]): Value => e.op(path, 'Concat', sizes, { axis: int(0) });
    const split = (part: string, perm: readonly number[]): Value => {
      // queries and keys of trained encoders are larger than their inputs: scores that matter
      const gain = part === 'value' ? 1 : 1.5;
      const rows = this.linear(`${path}/${part}`, x, width, width, gain, `${name}.${part}`);
      const split = shape(batch, length, e.ints(heads), e.ints(headSize));
      return e.op(path, 'Transpose', [e.op(path, 'Reshape', [rows, split])], { perm: ints(perm) });
    };
    const query = split('query', [0, 2, 1, 3]);
    const key = split('key', [0, 2, 3, 1]);
    const value = split('value', [0, 2, 1, 3]);
    const scores = e.op(path, 'MatMul', [query, key]);
    const scaled = e.op(path, 'Div', [scores, e.float(Math.sqrt(headSize))]);
    const weights = e.op(path, 'Softmax', [e.op(path, 'Add', [scaled, mask])], { axis: int(-1) });
    const context = e.op(path, 'Transpose', [e.op(path, 'MatMul', [weights, value])], {
      perm: ints([0, 2, 1, 3]),
    });
    return e.op(path, 'Reshape', [context, shape(batch, length, e.ints(width))]);
  }

  private linear(
    path: string,
    x: Value,
    inputs: number,
    outputs: number,
    gain = 1,
    name = path.slice(1).replaceAll('/', '.'),
  ): Value {
    const { emitter: e } = this;
    const deviation = gain / Math.sqrt(inputs);
    const weight = e.weight(`${name}.weight`, [inputs, outputs], { deviation });
    const bias = e.weight(`${name}.bias`, [outputs], { deviation: 0.05 });
    return e.op(path, 'Add', [bias, e.op(path, 'MatMul', [x, weight])]);
  }

  private norm(path: string, name: string, x: Value): Value {
    const { emitter: e, config } = this;
    const gain = e.weight(`${name}.weight`, [config.width], { mean: 1, deviation: 0.1 });
    const bias = e.weight(`${name}.bias`, [config.width], { deviation: 0.05 });
    return e.op(path, 'LayerNormalization', [x, gain, bias], {
      axis: int(-1),
      epsilon: float(config.epsilon),
    });
  }

  private gelu(path: string, x: Value): Value {
    const { emitter: e } = this;
    const erf = e.op(path, 'Erf', [e.op(path, 'Div', [x, e.float(Math.SQRT2)])]);
    const product = e.op(path, 'Mul', [x, e.op(path, 'Add', [erf, e.float(1)])]);
    return e.op(path, 'Mul', [product, e.float(0.5)]);
  }

  /** Sizes of the first two axes, each an i64 vector of one element. */
  private sizes(path: string, x: Value): readonly [Value, Value] {
    const { emitter: e } = this;
    const size = (axis: number): Value => {
      const shape = e.op(path, 'Shape', [x]);
      const one = e.op(path, 'Gather', [shape, e.int(axis)], { axis: int(0) });
      return e.op(path, 'Unsqueeze', [one, e.ints(0)]);
    };
    return [size(0), size(1)];
  }
}
