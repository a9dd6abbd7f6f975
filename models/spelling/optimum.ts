/**
 * The spelling of Optimum's exports of older Hugging Face models at opset 14: rotary tables that are
 * gathered by position, a causal triangle by Trilu, masks multiplied by the lowest number,
 * scores divided by a root, heads repeated by Tile, layer norms in nine nodes.
 *
 * Source: https://huggingface.co/docs/optimum-onnx on models of transformers before 4.40.
 */
import { int, ints, tensorAttribute } from '../../compiler/ir/attribute.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { tensor } from '../../runtime/tensor.ts';
import { rotaryFrequencies } from '../decoder-config.ts';
import type { AttentionInputs, DecoderInputs, NormWeights, Spelling } from './spelling.ts';
import { TorchParts } from './torch.ts';

/** Optimum. */
export const optimumSpelling: Spelling = {
  name: 'optimum',
  summary: 'plain ONNX ops as Optimum exported older models, opset 14',
  opsets: { '': 14 },
  takesPositions: true,
  cache: 'grows',
  foldsGainOffset: false,
  start: (emitter, config, inputs) => new OptimumParts(emitter, config, inputs),
};

const LOWEST = -3.4028234663852886e38;

class OptimumParts extends TorchParts {
  override norm(path: string, x: Value, { gain, bias }: NormWeights): Value {
    const { emitter: e, config } = this;
    const mean = (of: Value): Value =>
      e.op(path, 'ReduceMean', [of], { axes: ints([-1]), keepdims: int(1) });
    const centred = bias === undefined ? x : e.op(path, 'Sub', [x, mean(x)]);
    const squares = mean(e.op(path, 'Mul', [centred, centred]));
    const root = e.op(path, 'Sqrt', [e.op(path, 'Add', [squares, e.float(config.norm.epsilon)])]);
    const normed = e.op(path, 'Div', [centred, root]);
    const scale = config.norm.plusOne === true ? e.op(path, 'Add', [e.float(1), gain]) : gain;
    const scaled = e.op(path, 'Mul', [normed, scale]);
    return bias === undefined ? scaled : e.op(path, 'Add', [scaled, bias]);
  }

  protected override scores(path: string, query: Value, key: Value): Value {
    const { emitter: e } = this;
    const keys = e.op(path, 'Transpose', [key], { perm: ints([0, 1, 3, 2]) });
    return e.op(path, 'Div', [
      e.op(path, 'MatMul', [query, keys]),
      e.float(Math.sqrt(this.config.headSize)),
    ]);
  }

  protected override hidden(path: string, scores: Value, inputs: AttentionInputs): Value {
    return this.emitter.op(path, 'Max', [
      super.hidden(path, scores, inputs),
      this.emitter.float(LOWEST),
    ]);
  }

  /** Each head several times, by Tile. */
  protected override repeat(path: string, x: Value): Value {
    const { emitter: e, config } = this;
    const { heads, kvHeads, headSize } = config;
    if (heads === kvHeads) return x;
    const tiled = e.op(path, 'Tile', [
      e.op(path, 'Unsqueeze', [x, e.ints(2)]),
      e.ints(1, 1, heads / kvHeads, 1, 1),
    ]);
    return e.op(path, 'Reshape', [tiled, e.ints(0, heads, -1, headSize)]);
  }

  /** Rows of constant tables over the whole context. */
  protected override rotaryTables(positions: Value): [Value, Value] {
    const { emitter: e, config } = this;
    const path = '/model/rotary_emb';
    const frequencies = rotaryFrequencies(config);
    const pairs = frequencies.length;
    const table = (name: string, wave: (angle: number) => number): Value => {
      const columns = 2 * pairs;
      // computed when read: a long context has megabytes of them
      const weight = Weight.lazy('f32', [config.contextLength, columns], (start, length) => {
        const first = Math.floor(start / 4);
        const values = Float32Array.from(
          { length: Math.ceil((start + length) / 4) - first },
          (_, i) => {
            const column = (first + i) % columns;
            const pair = config.rotary.pairs === 'half' ? column % pairs : column >> 1;
            const position = Math.floor((first + i) / columns);
            return wave(Math.fround(position * (frequencies[pair] ?? 0)));
          },
        );
        return new Uint8Array(values.buffer, start - first * 4, length);
      });
      return e.constant(name, weight);
    };
    const rows = (name: string, wave: (angle: number) => number): Value =>
      e.op(path, 'Unsqueeze', [
        e.op(path, 'Gather', [table(name, wave), positions], { axis: int(0) }),
        e.ints(1),
      ]);
    return [rows('cos_cached', Math.cos), rows('sin_cached', Math.sin)];
  }

  /** Rows of a triangle, and the inverted mask times the lowest number. */
  protected override additiveMask({ ids, mask, past }: DecoderInputs): Value {
    const { emitter: e } = this;
    const path = '/model';
    const size = (x: Value, axis: number): Value =>
      e.op(path, 'Gather', [e.op(path, 'Shape', [x]), e.ints(axis)], { axis: int(0) });
    const [before] = past;
    const start = before === undefined ? e.ints(0) : size(before.key, 2);
    const end = e.op(path, 'Add', [start, size(ids, 1)]);
    const square = e.op(
      path,
      'ConstantOfShape',
      [e.op(path, 'Concat', [end, end], { axis: int(0) })],
      {
        value: tensorAttribute(Weight.of(tensor('f32', [1], Float32Array.of(LOWEST)))),
      },
    );
    const triangle = e.op(path, 'Trilu', [square, e.int(1)], { upper: int(1) });
    const rows = e.op(path, 'Slice', [triangle, start, end, e.ints(0)]);
    const causal = e.op(path, 'Unsqueeze', [rows, e.ints(0, 1)]);
    const floats = e.op(path, 'Cast', [e.op(path, 'Unsqueeze', [mask, e.ints(1, 2)])], {
      to: int(1),
    });
    const inverted = e.op(path, 'Sub', [e.float(1), floats]);
    const padding = e.op(path, 'Mul', [inverted, e.float(LOWEST)]);
    return e.op(path, 'Add', [padding, causal]);
  }
}
