/**
 * The spelling of PyTorch's TorchScript exporter at opset 17 on a Hugging Face model with eager
 * attention: plain ONNX ops, shapes computed in the graph, RMS norm in six nodes, the cache grown by
 * Concat, grouped heads repeated by Expand.
 */
import { float, int, ints } from '../../compiler/ir/attribute.ts';
import type { Value } from '../../compiler/ir/graph.ts';
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

/** PyTorch, TorchScript exporter. */
export const torchSpelling: Spelling = {
  name: 'torch',
  summary: 'plain ONNX ops as the TorchScript exporter writes them, opset 17',
  opsets: { '': 17 },
  takesPositions: true,
  cache: 'grows',
  foldsGainOffset: false,
  start: (emitter, config, inputs) => new TorchParts(emitter, config, inputs),
};

/** Lowest finite f32: what a masked score is. */
const LOWEST = -3.4028234663852886e38;
/** Slice end that means the end. */
const LAST = 2n ** 63n - 1n;
const F32 = 1;
const I64 = 7;

/** How the exporter writes each part; other exporters' spellings differ in some of them. @internal */
export class TorchParts implements Parts {
  protected readonly emitter: Emitter;
  protected readonly config: DecoderConfig;
  /** [batch, 1, sequence, total], 0 or LOWEST. */
  protected readonly mask: Value;
  /** Masks of layers with a window, by its size. */
  protected readonly masks = new Map<number, Value>();
  /** [1, heads, 1, total], what falls with the distance up to a term that a softmax ignores. */
  protected readonly bias: Value | undefined;
  /** [batch, 1, sequence, rotary]. */
  protected readonly cos: Value;
  protected readonly sin: Value;

  constructor(emitter: Emitter, config: DecoderConfig, inputs: DecoderInputs) {
    this.emitter = emitter;
    this.config = config;
    const positions = inputs.positions ?? this.countPositions(inputs);
    this.mask = this.additiveMask(inputs);
    for (const window of new Set(config.attention?.windows ?? []))
      if (window > 0) this.masks.set(window, this.withWindow(inputs, window));
    this.bias = config.attention?.linearBias === true ? this.linearBias(inputs) : undefined;
    [this.cos, this.sin] =
      rotarySize(config) === 0 ? [this.mask, this.mask] : this.rotaryTables(positions);
  }

  norm(path: string, x: Value, { gain, bias }: NormWeights): Value {
    const { emitter: e, config } = this;
    if (bias !== undefined)
      return e.op(path, 'LayerNormalization', [x, gain, bias], {
        axis: int(-1),
        epsilon: float(config.norm.epsilon),
      });
    const squares = e.op(path, 'Pow', [x, e.float(2)]);
    const mean = e.op(path, 'ReduceMean', [squares], { axes: ints([-1]), keepdims: int(1) });
    const root = e.op(path, 'Sqrt', [e.op(path, 'Add', [mean, e.float(config.norm.epsilon)])]);
    const normed = e.op(path, 'Mul', [x, e.op(path, 'Div', [e.float(1), root])]);
    const scale = config.norm.plusOne === true ? e.op(path, 'Add', [gain, e.float(1)]) : gain;
    return e.op(path, 'Mul', [scale, normed]);
  }

  addNorm(
    path: string,
    skip: Value,
    branch: Value,
    weights: NormWeights,
  ): { sum: Value; normed: Value } {
    const sum = this.emitter.op(path, 'Add', [skip, branch]);
    return { sum, normed: this.norm(path, sum, weights) };
  }

  attention(path: string, inputs: AttentionInputs): { context: Value; present: LayerCache } {
    const { emitter: e, config } = this;
    const { heads, kvHeads, headSize } = config;
    const [batch, sequence] = this.sizes(path, inputs.query, 0, 1);
    const split = (x: Value, count: number): Value =>
      e.op(path, 'Transpose', [this.reshape(path, x, [batch, sequence, count, headSize])], {
        perm: ints([0, 2, 1, 3]),
      });
    const turned = (x: Value, weights: NormWeights | undefined): Value =>
      this.rotate(path, weights === undefined ? x : this.norm(`${path}/norm`, x, weights));
    const query = turned(split(inputs.query, heads), inputs.queryNorm);
    const present = this.cached(
      path,
      inputs.past,
      turned(split(inputs.key, kvHeads), inputs.keyNorm),
      split(inputs.value, kvHeads),
    );
    const rows = this.attend(path, query, present, inputs);
    return { context: this.reshape(path, rows, [batch, sequence, heads * headSize]), present };
  }

  /** What queries read, [batch, sequence, heads, headSize]. */
  protected attend(
    path: string,
    query: Value,
    { key, value }: LayerCache,
    inputs: AttentionInputs,
  ): Value {
    const scores = this.scores(path, query, this.repeat(path, key));
    const hidden = this.hidden(path, this.capped(path, scores), inputs);
    const weights = this.weights(path, hidden, inputs);
    const mixed = this.mixed(path, weights, this.repeat(path, value));
    return this.emitter.op(path, 'Transpose', [mixed], { perm: ints([0, 2, 1, 3]) });
  }

  /** Keys and values of all tokens. */
  protected cached(path: string, past: LayerCache, key: Value, value: Value): LayerCache {
    return {
      key: this.append(path, past.key, key),
      value: this.append(path, past.value, value),
    };
  }

  /** New tokens behind the cached ones. */
  protected append(path: string, past: Value, x: Value): Value {
    return this.emitter.op(path, 'Concat', [past, x], { axis: int(2) });
  }

  /** Scaled products of queries and keys, [batch, heads, sequence, total]. */
  protected scores(path: string, query: Value, key: Value): Value {
    const { emitter: e, config } = this;
    const keys = e.op(path, 'Transpose', [key], { perm: ints([0, 1, 3, 2]) });
    return e.op(path, 'Mul', [
      e.op(path, 'MatMul', [query, keys]),
      e.float(config.headSize ** -0.5),
    ]);
  }

  private capped(path: string, scores: Value): Value {
    const { emitter: e, config } = this;
    const { softcap } = config.attention ?? {};
    if (softcap === undefined) return scores;
    const cap = e.float(softcap);
    return e.op(path, 'Mul', [e.op(path, 'Tanh', [e.op(path, 'Div', [scores, cap])]), cap]);
  }

  /** Scores with the mask of a layer, and what falls with the distance. */
  protected hidden(path: string, scores: Value, { layer }: AttentionInputs): Value {
    const { emitter: e } = this;
    const near = this.bias === undefined ? scores : e.op(path, 'Add', [scores, this.bias]);
    return e.op(path, 'Add', [near, this.maskOf(layer)]);
  }

  /** The mask of a layer. */
  protected maskOf(layer: number): Value {
    return this.masks.get(windowOf(this.config, layer)) ?? this.mask;
  }

  /** Softmax of scores; a sink takes part and is dropped again. */
  protected weights(path: string, scores: Value, { sinks, query }: AttentionInputs): Value {
    const { emitter: e, config } = this;
    if (sinks === undefined) return e.op(path, 'Softmax', [scores], { axis: int(-1) });
    const [batch = 1, sequence = 1] = this.sizes(path, query, 0, 1);
    const column = e.op(path, 'Expand', [
      e.op(path, 'Reshape', [sinks, e.ints(1, -1, 1, 1)]),
      this.shape(path, [batch, config.heads, sequence, 1]),
    ]);
    const all = e.op(path, 'Concat', [scores, column], { axis: int(-1) });
    const largest = this.largest(path, all);
    const weights = e.op(path, 'Softmax', [e.op(path, 'Sub', [all, largest])], { axis: int(-1) });
    return this.slice(path, weights, 0, -1);
  }

  /** Largest of each row, kept as an axis of size 1. */
  protected largest(path: string, x: Value): Value {
    return this.emitter.op(path, 'ReduceMax', [x], { axes: ints([-1]), keepdims: int(1) });
  }

  protected mixed(path: string, weights: Value, value: Value): Value {
    return this.emitter.op(path, 'MatMul', [weights, value]);
  }

  activation(path: string, x: Value): Value {
    const { emitter: e } = this;
    switch (this.config.mlp.activation) {
      case 'silu':
        return e.op(path, 'Mul', [x, e.op(path, 'Sigmoid', [x])]);
      case 'gelu': {
        const erf = e.op(path, 'Erf', [e.op(path, 'Div', [x, e.float(Math.SQRT2)])]);
        const product = e.op(path, 'Mul', [x, e.op(path, 'Add', [erf, e.float(1)])]);
        return e.op(path, 'Mul', [product, e.float(0.5)]);
      }
      case 'gelu-tanh': {
        const cube = e.op(path, 'Mul', [e.op(path, 'Pow', [x, e.float(3)]), e.float(0.044715)]);
        const inner = e.op(path, 'Mul', [
          e.op(path, 'Add', [x, cube]),
          e.float(Math.sqrt(2 / Math.PI)),
        ]);
        const one = e.op(path, 'Add', [e.op(path, 'Tanh', [inner]), e.float(1)]);
        return e.op(path, 'Mul', [e.op(path, 'Mul', [x, e.float(0.5)]), one]);
      }
    }
  }

  /** Sizes of `axes` of x, each an i64 vector of one element. */
  protected sizes(path: string, x: Value, ...axes: readonly number[]): Value[] {
    const { emitter: e } = this;
    return axes.map((axis) => {
      const size = e.op(path, 'Gather', [e.op(path, 'Shape', [x]), e.int(axis)], { axis: int(0) });
      return e.op(path, 'Unsqueeze', [size, e.ints(0)]);
    });
  }

  protected shape(path: string, sizes: readonly (Value | number)[]): Value {
    const { emitter: e } = this;
    return e.op(
      path,
      'Concat',
      sizes.map((size) => (typeof size === 'number' ? e.ints(size) : size)),
      { axis: int(0) },
    );
  }

  protected reshape(path: string, x: Value, sizes: readonly (Value | number | undefined)[]): Value {
    const known = sizes.map((size) => size ?? -1);
    return this.emitter.op(path, 'Reshape', [x, this.shape(path, known)]);
  }

  /** Repeats each key/value head for its group of query heads. */
  protected repeat(path: string, x: Value): Value {
    const { emitter: e, config } = this;
    const { heads, kvHeads, headSize } = config;
    if (heads === kvHeads) return x;
    const [batch = 1, total = 1] = this.sizes(path, x, 0, 2);
    const groups = e.op(path, 'Expand', [
      e.op(path, 'Unsqueeze', [x, e.ints(2)]),
      this.shape(path, [batch, kvHeads, heads / kvHeads, total, headSize]),
    ]);
    return this.reshape(path, groups, [batch, heads, total, headSize]);
  }

  /** x [batch, heads, sequence, headSize] turned by its position. */
  protected rotate(path: string, x: Value): Value {
    const { emitter: e, config } = this;
    const size = rotarySize(config);
    if (size === 0) return x;
    const whole = size === config.headSize;
    const part = whole ? x : this.slice(path, x, 0, size);
    const swapped =
      config.rotary.pairs === 'half' ? this.swapHalves(path, part) : this.swapPairs(path, part);
    const turned = e.op(path, 'Add', [
      e.op(path, 'Mul', [part, this.cos]),
      e.op(path, 'Mul', [swapped, this.sin]),
    ]);
    if (whole) return turned;
    const rest = this.slice(path, x, size, config.headSize);
    return e.op(path, 'Concat', [turned, rest], { axis: int(-1) });
  }

  /** [a, b] -> [-b, a] by halves of the last axis. */
  protected swapHalves(path: string, x: Value): Value {
    const size = rotarySize(this.config);
    const first = this.slice(path, x, 0, size / 2);
    const second = this.slice(path, x, size / 2, LAST);
    const negative = this.emitter.op(path, 'Neg', [second]);
    return this.emitter.op(path, 'Concat', [negative, first], { axis: int(-1) });
  }

  /** [a0, b0, a1, b1, …] -> [-b0, a0, -b1, a1, …]. */
  protected swapPairs(path: string, x: Value): Value {
    const { emitter: e, config } = this;
    const even = this.slice(path, x, 0, LAST, 2);
    const odd = this.slice(path, x, 1, LAST, 2);
    const stacked = e.op(
      path,
      'Concat',
      [e.op(path, 'Neg', [odd]), even].map((part) => e.op(path, 'Unsqueeze', [part, e.ints(-1)])),
      { axis: int(-1) },
    );
    const [batch, heads, sequence] = this.sizes(path, x, 0, 1, 2);
    return this.reshape(path, stacked, [batch, heads, sequence, rotarySize(config)]);
  }

  protected slice(path: string, x: Value, start: number, end: number | bigint, step = 1): Value {
    const { emitter: e } = this;
    return e.op(path, 'Slice', [x, e.ints(start), e.ints(end), e.ints(-1), e.ints(step)]);
  }

  /** positions i64 [batch, sequence] -> cos, sin [batch, 1, sequence, rotary]. */
  protected rotaryTables(positions: Value): [Value, Value] {
    const { emitter: e, config } = this;
    const path = '/model/rotary_emb';
    const frequencies = rotaryFrequencies(config);
    const row = e.constant(
      'model.rotary_emb.inv_freq',
      tensor('f32', [1, frequencies.length, 1], frequencies),
    );
    const column = e.op(path, 'Cast', [e.op(path, 'Unsqueeze', [positions, e.ints(1)])], {
      to: int(F32),
    });
    const angles = e.op(path, 'Transpose', [e.op(path, 'MatMul', [row, column])], {
      perm: ints([0, 2, 1]),
    });
    const table =
      config.rotary.pairs === 'half'
        ? e.op(path, 'Concat', [angles, angles], { axis: int(-1) })
        : this.repeatPairs(path, angles);
    return [
      e.op(path, 'Unsqueeze', [e.op(path, 'Cos', [table]), e.ints(1)]),
      e.op(path, 'Unsqueeze', [e.op(path, 'Sin', [table]), e.ints(1)]),
    ];
  }

  /** [a0, a1, …] -> [a0, a0, a1, a1, …] over the last axis. */
  protected repeatPairs(path: string, angles: Value): Value {
    const { emitter: e } = this;
    const column = e.op(path, 'Unsqueeze', [angles, e.ints(-1)]);
    const pairs = e.op(path, 'Concat', [column, column], { axis: int(-1) });
    const [batch, sequence] = this.sizes(path, angles, 0, 1);
    return this.reshape(path, pairs, [batch, sequence, rotarySize(this.config)]);
  }

  /** Causal and padding mask as numbers to add to the scores. */
  protected additiveMask(inputs: DecoderInputs): Value {
    const { emitter: e } = this;
    const path = '/model';
    const [keys, queries] = this.places(inputs);
    const causal = e.op(path, 'LessOrEqual', [keys, queries]); // [sequence, total]
    const real = e.op(path, 'Greater', [
      e.op(path, 'Unsqueeze', [inputs.mask, e.ints(1, 2)]),
      e.int(0),
    ]);
    const seen = e.op(path, 'And', [e.op(path, 'Unsqueeze', [causal, e.ints(0, 1)]), real]);
    return e.op(path, 'Where', [seen, e.float(0), e.float(LOWEST)]);
  }

  /** Places of keys, [1, total], and of queries, [sequence, 1]. */
  protected places({
    ids,
    mask,
    past,
    places,
  }: DecoderInputs): readonly [keys: Value, queries: Value] {
    const { emitter: e } = this;
    const path = '/model';
    const size = (x: Value, axis: number): Value =>
      e.op(path, 'Gather', [e.op(path, 'Shape', [x]), e.int(axis)], { axis: int(0) });
    const range = (end: Value): Value => e.op(path, 'Range', [e.int(0), end, e.int(1)]);
    const keys = e.op(path, 'Unsqueeze', [range(size(mask, 1)), e.ints(0)]);
    if (places !== undefined) return [keys, e.op(path, 'Unsqueeze', [places, e.ints(1)])];
    const before = past[0];
    const present = range(size(ids, 1));
    const queries =
      before === undefined ? present : e.op(path, 'Add', [present, size(before.key, 2)]);
    return [keys, e.op(path, 'Unsqueeze', [queries, e.ints(1)])];
  }

  /** The mask without keys that are too far behind. */
  private withWindow(inputs: DecoderInputs, window: number): Value {
    const { emitter: e } = this;
    const path = '/model';
    const [keys, queries] = this.places(inputs);
    const near = e.op(path, 'Greater', [keys, e.op(path, 'Sub', [queries, e.int(window)])]);
    const hidden = e.op(path, 'Where', [near, e.float(0), e.float(LOWEST)]);
    return e.op(path, 'Min', [this.mask, hidden]);
  }

  /** ALiBi as BLOOM adds it: slope times place of the key, counted from the mask. */
  private linearBias({ mask }: DecoderInputs): Value {
    const { emitter: e, config } = this;
    const path = '/model/alibi';
    const slopes = e.constant(
      'model.alibi_slopes',
      tensor('f32', [config.heads, 1], biasSlopes(config)),
    );
    const counted = e.op(path, 'Sub', [e.op(path, 'CumSum', [mask, e.int(1)]), e.int(1)]);
    const real = e.op(path, 'Cast', [e.op(path, 'Mul', [counted, mask])], { to: int(F32) });
    const rows = e.op(path, 'Mul', [slopes, e.op(path, 'Unsqueeze', [real, e.ints(1)])]); // [batch, heads, total]
    return e.op(path, 'Unsqueeze', [rows, e.ints(2)]);
  }

  /** Number of real tokens before each token, for the last `sequence` columns of the mask. */
  protected countPositions({ ids, mask }: DecoderInputs): Value {
    const { emitter: e } = this;
    const path = '/model';
    const long = e.op(path, 'Cast', [mask], { to: int(I64) });
    const counted = e.op(path, 'Sub', [e.op(path, 'CumSum', [long, e.int(1)]), e.int(1)]);
    // padding in front would count -1; a real token never does
    const positions = e.op(path, 'Where', [
      e.op(path, 'Equal', [long, e.int(0)]),
      e.int(1),
      counted,
    ]);
    const [sequence] = this.sizes(path, ids, 1);
    const start = e.op(path, 'Neg', [sequence]);
    return e.op(path, 'Slice', [positions, start, e.ints(LAST), e.ints(1)]);
  }
}
