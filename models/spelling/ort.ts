/**
 * The spelling of onnxruntime's model builder: com.microsoft ops for the cache, the rotary embedding
 * and the residual norms. Rotary tables are constants over the whole context; the (1 + g) of a Gemma
 * gain is folded into the constant.
 *
 * Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
 */
import { float, int } from '../../compiler/ir/attribute.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { tensor } from '../../runtime/tensor.ts';
import type { DecoderConfig } from '../decoder-config.ts';
import { biasSlopes, rotaryFrequencies, rotarySize, windowOf } from '../decoder-config.ts';
import type { Emitter } from '../emitter.ts';
import type {
  AttentionInputs,
  DecoderInputs,
  LayerCache,
  NormWeights,
  Parts,
  Spelling,
} from './spelling.ts';

/** onnxruntime's model builder. */
export const ortSpelling: Spelling = {
  name: 'ort',
  summary: 'com.microsoft ops as the onnxruntime model builder writes them',
  opsets: { '': 17, 'com.microsoft': 1 },
  takesPositions: false,
  cache: 'grows',
  foldsGainOffset: true,
  start: (emitter, config, inputs) => new OrtParts(emitter, config, inputs),
};

const MICROSOFT = 'com.microsoft';
const I32 = 6;

class OrtParts implements Parts {
  private readonly emitter: Emitter;
  private readonly config: DecoderConfig;
  /** i32 [batch]: index of the last real token. */
  private readonly lastIndex: Value;
  /** i32 scalar: past + sequence. */
  private readonly total: Value;
  /** [contextLength, rotary / 2]. */
  private readonly cos: Value | undefined;
  private readonly sin: Value | undefined;

  /** [1, heads, sequence, total], what falls with the distance. */
  private readonly bias: Value | undefined;

  constructor(emitter: Emitter, config: DecoderConfig, { ids, mask }: DecoderInputs) {
    this.emitter = emitter;
    this.config = config;
    const e = emitter;
    const path = '/model/attn_mask_reformat';
    const count = e.op(path, 'ReduceSum', [mask, e.ints(1)], { keepdims: int(0) });
    this.lastIndex = e.op(path, 'Cast', [e.op(path, 'Sub', [count, e.int(1)])], { to: int(I32) });
    const size = e.op(path, 'Gather', [e.op(path, 'Shape', [mask]), e.int(1)], { axis: int(0) });
    this.total = e.op(path, 'Cast', [size], { to: int(I32) });
    const [cos, sin] = [Math.cos, Math.sin].map((wave) => rotaryTable(config, wave));
    this.cos = cos && rotarySize(config) > 0 ? e.constant('cos_cache', cos) : undefined;
    this.sin = sin && rotarySize(config) > 0 ? e.constant('sin_cache', sin) : undefined;
    this.bias = config.attention?.linearBias === true ? this.linearBias(ids, size) : undefined;
  }

  private linearBias(ids: Value, total: Value): Value {
    const { emitter: e, config } = this;
    const path = '/model/alibi';
    const slopes = e.constant(
      'model.alibi_slopes',
      tensor('f32', [1, config.heads, 1, 1], biasSlopes(config)),
    );
    const keys = e.op(path, 'Cast', [e.op(path, 'Range', [e.int(0), total, e.int(1)])], {
      to: int(1),
    });
    const rows = e.op(path, 'Mul', [slopes, keys]);
    const sequence = e.op(path, 'Shape', [ids], { start: int(1), end: int(2) });
    const sizes = e.op(path, 'Concat', [e.ints(1, 1), sequence, e.ints(1)], { axis: int(0) });
    return e.op(path, 'Expand', [rows, sizes]);
  }

  norm(path: string, x: Value, { gain, bias }: NormWeights): Value {
    const attributes = { axis: int(-1), epsilon: float(this.config.norm.epsilon) };
    if (bias !== undefined)
      return this.emitter.op(path, 'LayerNormalization', [x, gain, bias], attributes);
    return this.emitter.op(path, 'SimplifiedLayerNormalization', [x, gain], {
      ...attributes,
      stash_type: int(1),
    });
  }

  addNorm(
    path: string,
    skip: Value,
    branch: Value,
    { gain, bias }: NormWeights,
  ): { sum: Value; normed: Value } {
    const op = bias === undefined ? 'SkipSimplifiedLayerNormalization' : 'SkipLayerNormalization';
    const node = this.emitter.node(
      path,
      op,
      bias === undefined ? [skip, branch, gain] : [skip, branch, gain, bias],
      { epsilon: float(this.config.norm.epsilon) },
      { domain: MICROSOFT, outputs: [true, false, false, true] },
    );
    return { sum: node.output(3), normed: node.output(0) };
  }

  attention(path: string, inputs: AttentionInputs): { context: Value; present: LayerCache } {
    const { config } = this;
    const { heads, kvHeads } = config;
    const { softcap } = config.attention ?? {};
    const window = windowOf(config, inputs.layer);
    const turns = rotarySize(config) > 0;
    const node = this.emitter.node(
      path,
      'GroupQueryAttention',
      [
        this.headNorm(`${path}/q_norm`, inputs.query, inputs.queryNorm, heads),
        this.headNorm(`${path}/k_norm`, inputs.key, inputs.keyNorm, kvHeads),
        inputs.value,
        inputs.past.key,
        inputs.past.value,
        this.lastIndex,
        this.total,
        turns ? this.cos : undefined,
        turns ? this.sin : undefined,
        ...(this.bias === undefined && inputs.sinks === undefined
          ? []
          : [undefined, this.bias, inputs.sinks]),
      ],
      {
        num_heads: int(heads),
        kv_num_heads: int(kvHeads),
        scale: float(config.headSize ** -0.5),
        do_rotary: int(turns ? 1 : 0),
        ...(softcap === undefined ? {} : { softcap: float(softcap) }),
        ...(window === 0 ? {} : { local_window_size: int(window) }),
        rotary_interleaved: int(config.rotary.pairs === 'interleaved' ? 1 : 0),
      },
      { domain: MICROSOFT, outputs: 3 },
    );
    return { context: node.output(0), present: { key: node.output(1), value: node.output(2) } };
  }

  activation(path: string, x: Value): Value {
    const { emitter: e } = this;
    switch (this.config.mlp.activation) {
      case 'silu':
        return e.op(path, 'Mul', [x, e.op(path, 'Sigmoid', [x])]);
      case 'gelu':
        return e.node(path, 'Gelu', [x], {}, { domain: MICROSOFT }).output(0);
      case 'gelu-tanh':
        return e.node(path, 'FastGelu', [x], {}, { domain: MICROSOFT }).output(0);
    }
  }

  /** Norm of each head, between two reshapes. */
  private headNorm(path: string, x: Value, weights: NormWeights | undefined, heads: number): Value {
    if (weights === undefined) return x;
    const { emitter: e, config } = this;
    const split = e.op(path, 'Reshape', [x, e.ints(0, -1, config.headSize)]);
    const normed = this.norm(path, split, weights);
    return e.op(path, 'Reshape', [normed, e.ints(0, -1, heads * config.headSize)]);
  }
}

/** [contextLength, rotary / 2] of `wave(position * frequency)`, computed when read. */
export function rotaryTable(config: DecoderConfig, wave: (angle: number) => number): Weight {
  const frequencies = rotaryFrequencies(config);
  const columns = rotarySize(config) / 2;
  return Weight.lazy('f32', [config.contextLength, columns], (start, length) => {
    const first = Math.floor(start / 4);
    const values = new Float32Array(Math.ceil((start + length) / 4) - first);
    for (let i = 0; i < values.length; i++) {
      const position = Math.floor((first + i) / columns);
      // the angle in f32, as the exporters compute it
      const angle = Math.fround(position * (frequencies[(first + i) % columns] ?? 0));
      values[i] = wave(angle);
    }
    return new Uint8Array(values.buffer, start - first * 4, length);
  });
}
