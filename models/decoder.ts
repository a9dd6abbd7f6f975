/**
 * Builds a decoder as a model: the order of its blocks here, the nodes of each part in a spelling.
 * Weights are seeded random numbers at the scale training leaves them (unit variance after each norm,
 * residual branches of 1/sqrt(2 * layers)), generated when read: a 5 GB model costs a few megabytes.
 *
 * input_ids, attention_mask[, position_ids], past_key_values.N.{key,value}
 *   -> logits, present.N.{key,value}
 */
import { ints } from '../compiler/ir/attribute.ts';
import type { Model, Value } from '../compiler/ir/graph.ts';
import type { DecoderConfig } from './decoder-config.ts';
import { Emitter } from './emitter.ts';
import { transposedRandomWeight } from './random.ts';
import type {
  DecoderInputs,
  LayerCache,
  NormWeights,
  Parts,
  Spelling,
} from './spelling/spelling.ts';

/** Seed of the weights when nobody chooses another. */
export const DEFAULT_SEED = 1;

/**
 * Builds a decoder with seeded random weights.
 *
 * @param name - graph name
 * @param config - sizes and variants
 * @param spelling - how it is written down
 * @param seed - default {@link DEFAULT_SEED}; the same name, config, spelling and seed give the same
 *   model, and the same weights under every spelling
 *
 * @example
 * const model = buildDecoder('gqa', microDecoders.gqa, torchSpelling);
 */
export function buildDecoder(
  name: string,
  config: DecoderConfig,
  spelling: Spelling,
  seed: number = DEFAULT_SEED,
): Model {
  return new DecoderBuilder(name, config, spelling, seed).build();
}

/** The residual stream: a sum, and a branch not yet added to it. */
interface Stream {
  readonly sum: Value;
  readonly branch?: Value;
}

class DecoderBuilder {
  private readonly emitter: Emitter;
  private readonly config: DecoderConfig;
  private readonly spelling: Spelling;

  constructor(name: string, config: DecoderConfig, spelling: Spelling, seed: number) {
    this.emitter = new Emitter(name, spelling.opsets, seed);
    this.config = config;
    this.spelling = spelling;
  }

  build(): Model {
    const { emitter: e, config } = this;
    const inputs = this.inputs();
    const parts = this.spelling.start(e, config, inputs);
    const table = e.weight('model.embed_tokens.weight', [config.vocabulary, config.width], {
      deviation: this.tableDeviation,
    });
    let embedded = e.op('/model/embed_tokens', 'Gather', [table, inputs.ids]);
    if (config.embeddingScale !== undefined)
      embedded = e.op('/model', 'Mul', [embedded, e.float(config.embeddingScale)]);
    let stream: Stream = { sum: embedded };
    const presents: LayerCache[] = [];
    for (const past of inputs.past) {
      const block = this.block(parts, presents.length, stream, past);
      stream = block.stream;
      presents.push(block.present);
    }
    const hidden =
      config.order === 'post'
        ? stream.sum
        : this.normed(parts, '/model/norm', 'model.norm', stream, 3).normed;
    const logits = this.capped(this.head(hidden, table));
    e.output('logits', logits, 'f32', ['batch_size', 'sequence_length', config.vocabulary]);
    const total = this.spelling.cache === 'fixed' ? config.contextLength : TOTAL;
    presents.forEach((present, layer) => {
      for (const part of ['key', 'value'] as const)
        e.output(`present.${layer}.${part}`, present[part], 'f32', this.cacheShape(total));
    });
    e.model.producerName = 'fettle-models';
    e.model.producerVersion = this.spelling.name;
    this.spelling.finish?.(e.model);
    return e.model;
  }

  private inputs(): DecoderInputs {
    const { emitter: e, config } = this;
    const ids = e.input('input_ids', 'i64', ['batch_size', 'sequence_length']);
    const isFixed = this.spelling.cache === 'fixed';
    const length = isFixed ? config.contextLength : TOTAL;
    const mask = e.input('attention_mask', 'i64', ['batch_size', length]);
    const places = isFixed ? e.input('cache_position', 'i64', ['sequence_length']) : undefined;
    const positions =
      config.positions === 'input' && this.spelling.takesPositions
        ? e.input('position_ids', 'i64', ['batch_size', 'sequence_length'])
        : undefined;
    const past = Array.from({ length: config.layers }, (_, layer) => {
      const cache = (part: string): Value =>
        e.input(
          `past_key_values.${layer}.${part}`,
          'f32',
          this.cacheShape(isFixed ? config.contextLength : 'past_sequence_length'),
        );
      return { key: cache('key'), value: cache('value') };
    });
    return { ids, mask, places, positions, past };
  }

  private cacheShape(tokens: string | number): (string | number)[] {
    return ['batch_size', this.config.kvHeads, tokens, this.config.headSize];
  }

  private block(
    parts: Parts,
    layer: number,
    stream: Stream,
    past: LayerCache,
  ): { stream: Stream; present: LayerCache } {
    const { emitter: e, config } = this;
    const path = `/model/layers.${layer}`;
    const name = `model.layers.${layer}`;
    const first = (x: Stream): Normed =>
      this.normed(parts, `${path}/input_layernorm`, `${name}.input_layernorm`, x);
    const second = (x: Stream): Normed =>
      this.normed(parts, `${path}/post_attention_layernorm`, `${name}.post_attention_layernorm`, x);
    const attention = (x: Value): { branch: Value; present: LayerCache } =>
      this.attention(parts, `${path}/self_attn`, `${name}.self_attn`, { x, past, layer });
    const mlp = (x: Value): Value => this.mlp(parts, `${path}/mlp`, `${name}.mlp`, x);

    switch (config.order) {
      case 'pre': {
        const before = first(stream);
        const { branch, present } = attention(before.normed);
        const middle = second({ sum: before.sum, branch });
        return { stream: { sum: middle.sum, branch: mlp(middle.normed) }, present };
      }
      case 'parallel': {
        const { sum, normed } = first(stream);
        const { branch, present } = attention(normed);
        const both = e.op(path, 'Add', [branch, mlp(normed)]);
        return { stream: { sum, branch: both }, present };
      }
      case 'post': {
        const { branch, present } = attention(stream.sum);
        const middle = first({ sum: stream.sum, branch }).normed;
        return { stream: { sum: second({ sum: middle, branch: mlp(middle) }).normed }, present };
      }
      case 'output': {
        const { branch, present } = attention(stream.sum);
        const middle = e.op(path, 'Add', [stream.sum, first({ sum: branch }).normed]);
        const sum = e.op(path, 'Add', [middle, second({ sum: mlp(middle) }).normed]);
        return { stream: { sum }, present };
      }
    }
  }

  private normed(parts: Parts, path: string, name: string, x: Stream, gain = 1): Normed {
    const weights = this.normWeights(name, this.config.width, gain);
    if (x.branch !== undefined) return parts.addNorm(path, x.sum, x.branch, weights);
    return { sum: x.sum, normed: parts.norm(path, x.sum, weights) };
  }

  private normWeights(name: string, size: number, mean = 1): NormWeights {
    const { emitter: e, config } = this;
    const offset = config.norm.plusOne === true && !this.spelling.foldsGainOffset ? 1 : 0;
    const gain = e.weight(`${name}.weight`, [size], { mean: mean - offset, deviation: 0.1 });
    if (config.norm.kind === 'rms') return { gain };
    return { gain, bias: e.weight(`${name}.bias`, [size], { deviation: 0.05 }) };
  }

  private attention(
    parts: Parts,
    path: string,
    name: string,
    { x, past, layer }: { x: Value; past: LayerCache; layer: number },
  ): { branch: Value; present: LayerCache } {
    const { config, emitter: e } = this;
    const { heads, kvHeads, headSize, width, biases } = config;
    const project = (part: string, count: number): Value =>
      this.linear(`${path}/${part}`, `${name}.${part}`, x, {
        from: width,
        to: count * headSize,
        bias: biases.queryKeyValue,
      });
    const headNorm = (part: string): NormWeights | undefined =>
      config.queryKeyNorm ? this.normWeights(`${name}.${part}`, headSize) : undefined;
    const { context, present } = parts.attention(path, {
      query: project('q_proj', heads),
      key: project('k_proj', kvHeads),
      value: project('v_proj', kvHeads),
      layer,
      sinks:
        config.attention?.sinks === true
          ? e.weight(`${name}.sinks`, [heads], { deviation: 1 })
          : undefined,
      queryNorm: headNorm('q_norm'),
      keyNorm: headNorm('k_norm'),
      past,
    });
    const branch = this.linear(`${path}/o_proj`, `${name}.o_proj`, context, {
      from: heads * headSize,
      to: width,
      bias: biases.attentionOutput,
      gain: this.branchGain,
    });
    return { branch, present };
  }

  private mlp(parts: Parts, path: string, name: string, x: Value): Value {
    const { emitter: e, config } = this;
    const { kind, width: inner } = config.mlp;
    const bias = config.biases.mlp;
    const wide = (part: string): Value =>
      this.linear(`${path}/${part}`, `${name}.${part}`, x, { from: config.width, to: inner, bias });
    const activate = (y: Value): Value => parts.activation(`${path}/act_fn`, y);
    let hidden: Value;
    if (kind === 'gated') {
      const gate = activate(wide('gate_proj'));
      hidden = e.op(path, 'Mul', [gate, wide('up_proj')]);
    } else {
      hidden = activate(wide('up_proj'));
    }
    return this.linear(`${path}/down_proj`, `${name}.down_proj`, hidden, {
      from: inner,
      to: config.width,
      bias,
      gain: this.branchGain,
    });
  }

  /** x [batch, sequence, from] -> x · W + b, W stored [from, to] as exporters do. */
  private linear(
    path: string,
    name: string,
    x: Value,
    shape: { from: number; to: number; bias: boolean; gain?: number },
  ): Value {
    const { emitter: e } = this;
    const { from, to, bias, gain = 1 } = shape;
    const weight = e.weight(`${name}.weight`, [from, to], { deviation: gain / Math.sqrt(from) });
    const product = e.op(path, 'MatMul', [x, weight]);
    if (!bias) return product;
    return e.op(path, 'Add', [e.weight(`${name}.bias`, [to], { deviation: 0.1 }), product]);
  }

  private capped(logits: Value): Value {
    const { emitter: e, config } = this;
    if (config.logitSoftcap === undefined) return logits;
    const cap = e.float(config.logitSoftcap);
    return e.op('/model', 'Mul', [
      e.op('/model', 'Tanh', [e.op('/model', 'Div', [logits, cap])]),
      cap,
    ]);
  }

  private head(hidden: Value, table: Value): Value {
    const { emitter: e, config } = this;
    const { vocabulary, width } = config;
    if (config.head === 'untied')
      return this.linear('/lm_head', 'lm_head', hidden, {
        from: width,
        to: vocabulary,
        bias: false,
      });
    const transposed =
      config.head === 'tied'
        ? e.op('/lm_head', 'Transpose', [table], { perm: ints([1, 0]) })
        : e.constant(
            'lm_head.weight',
            transposedRandomWeight(vocabulary, width, e.seedOf('model.embed_tokens.weight'), {
              deviation: this.tableDeviation,
            }),
          );
    return e.op('/lm_head', 'MatMul', [hidden, transposed]);
  }

  /** Unit variance of a product with a normed row of `width` numbers. */
  private get tableDeviation(): number {
    return 1 / Math.sqrt(this.config.width);
  }

  /** Keeps the residual stream's variance independent of the depth. */
  private get branchGain(): number {
    return 1 / Math.sqrt(2 * this.config.layers);
  }
}

const TOTAL = 'past_sequence_length + sequence_length';

interface Normed {
  readonly sum: Value;
  readonly normed: Value;
}
