/**
 * The spelling of ONNX's own ops for language models at opset 24: RMSNormalization, RotaryEmbedding over
 * tables, TensorScatter into caches of fixed length, and Attention that is told how many keys are valid.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__Attention.html, "in-place cache" of TensorScatter.
 */
import { float, int, ints } from '../../compiler/ir/attribute.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import type { DecoderConfig } from '../decoder-config.ts';
import { rotarySize } from '../decoder-config.ts';
import type { Emitter } from '../emitter.ts';
import { rotaryTable } from './ort.ts';
import type {
  AttentionInputs,
  DecoderInputs,
  LayerCache,
  NormWeights,
  Spelling,
} from './spelling.ts';
import { TorchParts } from './torch.ts';

/** ONNX 24. */
export const onnxSpelling: Spelling = {
  name: 'onnx',
  summary: "ONNX's own attention, rotary embedding and cache ops, opset 24",
  opsets: { '': 24 },
  takesPositions: false,
  cache: 'fixed',
  foldsGainOffset: true,
  start: (emitter, config, inputs) => new OnnxParts(emitter, config, inputs),
};

class OnnxParts extends TorchParts {
  /** i64 [batch, sequence]. */
  private readonly positions: Value;
  /** i64 [batch], rows of the caches that are written, and where the next one is. */
  private readonly lengths: Value;
  private readonly starts: Value;
  private readonly tables: readonly (Value | undefined)[];

  constructor(emitter: Emitter, config: DecoderConfig, inputs: DecoderInputs) {
    super(emitter, config, inputs);
    const e = emitter;
    const path = '/model';
    const { ids, places = e.ints(0) } = inputs;
    const batch = e.op(path, 'Shape', [ids], { start: int(0), end: int(1) });
    const rows = e.op(path, 'Expand', [
      e.op(path, 'Unsqueeze', [places, e.ints(0)]),
      e.op(path, 'Shape', [ids]),
    ]);
    this.positions = rows;
    const end = (pick: string): Value =>
      e.op(path, pick, [places, e.ints(0)], { keepdims: int(1) });
    this.starts = e.op(path, 'Expand', [end('ReduceMin'), batch]);
    this.lengths = e.op(path, 'Expand', [e.op(path, 'Add', [end('ReduceMax'), e.ints(1)]), batch]);
    this.tables = [Math.cos, Math.sin].map((wave, index) =>
      rotarySize(config) === 0
        ? undefined
        : e.constant(index === 0 ? 'cos_cache' : 'sin_cache', rotaryTable(config, wave)),
    );
  }

  override norm(path: string, x: Value, { gain, bias }: NormWeights): Value {
    return this.emitter.op(
      path,
      bias === undefined ? 'RMSNormalization' : 'LayerNormalization',
      bias === undefined ? [x, gain] : [x, gain, bias],
      { axis: int(-1), epsilon: float(this.config.norm.epsilon) },
    );
  }

  protected override rotate(path: string, x: Value): Value {
    const [cos, sin] = this.tables;
    if (cos === undefined || sin === undefined) return x;
    const { rotary, headSize } = this.config;
    const size = rotarySize(this.config);
    return this.emitter.op(path, 'RotaryEmbedding', [x, cos, sin, this.positions], {
      interleaved: int(rotary.pairs === 'interleaved' ? 1 : 0),
      ...(size === headSize ? {} : { rotary_embedding_dim: int(size) }),
    });
  }

  protected override cached(path: string, past: LayerCache, key: Value, value: Value): LayerCache {
    const append = (cache: Value, fresh: Value): Value =>
      this.emitter.op(path, 'TensorScatter', [cache, fresh, this.starts], { axis: int(2) });
    return { key: append(past.key, key), value: append(past.value, value) };
  }

  protected override attend(
    path: string,
    query: Value,
    { key, value }: LayerCache,
    inputs: AttentionInputs,
  ): Value {
    const { emitter: e, config } = this;
    if (inputs.sinks !== undefined || config.attention !== undefined)
      return super.attend(path, query, { key, value }, inputs);
    const heads = e.op(
      path,
      'Attention',
      [query, key, value, undefined, undefined, undefined, this.lengths],
      { is_causal: int(1), scale: float(config.headSize ** -0.5) },
    );
    return e.op(path, 'Transpose', [heads], { perm: ints([0, 2, 1, 3]) });
  }
}
