/**
 * The f16 form of `quantize-weights`: large f32 constants are stored in half precision and widened by a
 * Cast where they are read, whatever reads them.
 *
 *     Add(x, c f32)   ->   Add(x, Cast(c f16))
 */
import { floatToHalf, halfToFloat } from '../../runtime/half.ts';
import { dtypes, elementCount } from '../../runtime/tensor.ts';
import { int } from '../ir/attribute.ts';
import type { Model, Value } from '../ir/graph.ts';
import { Weight } from '../ir/weight.ts';
import { floatReader } from '../quant/rows.ts';
import type { PassContext } from './pass.ts';
import { isSkipped } from './skip-list.ts';

/** Elements converted at a time. */
const blockElements = 1 << 20;

/** What is reported of one quantized constant, as the note `tensors`. */
export interface QuantizedTensorNote {
  /** The constant. */
  readonly name: string;
  /** Format it is stored in; another than asked for where groups did not fit. */
  readonly format: string;
  /** Output channels and inputs; the constant's own shape with f16. */
  readonly shape: readonly number[];
  /** `‖W - Ŵ‖² / ‖W‖²`, four significant digits. */
  readonly relativeError: number;
  /** Bytes of codes, scales and zero points. */
  readonly bytes: number;
  /** Block of the fused model it belongs to, -1 outside; absent for what is no matrix of a product. */
  readonly block?: number;
  /** What it does there: `qkv`, `down`, `table`, …; absent with `block`. */
  readonly part?: string;
}

/** Which constants are stored in half precision. */
export interface StoreHalvesSettings {
  /** Smallest constant, in elements. */
  readonly minElements: number;
  /** Names or patterns to leave alone. */
  readonly skip: readonly string[];
}

/**
 * Stores constants of the main graph and its subgraphs in f16.
 *
 * @param isWanted - whether a constant is to be stored so
 * @returns a line of the report per constant
 */
export function storeHalves(
  model: Model,
  settings: StoreHalvesSettings,
  isWanted: (constant: Value) => boolean,
  context: PassContext,
): QuantizedTensorNote[] {
  const notes: QuantizedTensorNote[] = [];
  for (const graph of model.graph.allGraphs())
    for (const constant of graph.constants) {
      const { weight } = constant;
      if (weight?.dtype !== 'f32' || elementCount(weight.shape) < settings.minElements) continue;
      if (!isWanted(constant)) continue;
      const why = constant.isOutput
        ? 'it is an output of the model'
        : isSkipped([constant.name], settings.skip)
          ? 'the skip list names it'
          : undefined;
      const halves = why === undefined ? halvesOf(weight) : { refused: why };
      if ('refused' in halves) {
        context.refuse('f16', constant, halves.refused);
        continue;
      }
      replace(model, constant, halves.weight, context);
      if (constant.useCount === 0) context.rewriter.removeConstant(graph, constant);
      context.count('f16');
      notes.push({
        name: constant.name,
        format: 'f16',
        shape: weight.shape,
        relativeError: Number(halves.relativeError.toPrecision(4)),
        bytes: halves.weight.byteLength,
      });
    }
  return notes;
}

function replace(model: Model, constant: Value, halves: Weight, context: PassContext): void {
  const { rewriter } = context;
  const first = model.graph.nodes().next().value;
  if (first === undefined) return;
  const stored = rewriter.constant(`${constant.name}.f16`, halves);
  const widened = rewriter
    .before(first)
    .op('Cast', [stored], { to: int(dtypes.f32.onnx) }, { name: constant.name, from: [] });
  rewriter.replaceUses(constant, widened);
}

/** The constant in f16, or why it has none; values below the smallest f16 become zero. */
function halvesOf(
  weight: Weight,
): { readonly weight: Weight; readonly relativeError: number } | { readonly refused: string } {
  const floats = floatReader('f32');
  const count = elementCount(weight.shape);
  const data = new Uint16Array(count);
  let error = 0;
  let norm = 0;
  for (let start = 0; start < count; start += blockElements) {
    const values = floats(weight.bytes(start * 4, Math.min(blockElements, count - start) * 4));
    for (let i = 0; i < values.length; i++) {
      const value = values[i] ?? 0;
      const half = floatToHalf(value);
      data[start + i] = half;
      const rounded = halfToFloat(half);
      // infinities of the source have an f16, and NaN too; what overflows only in f16 has not
      if (!Number.isFinite(value)) continue;
      if (!Number.isFinite(rounded)) return { refused: `${value} is beyond the largest f16` };
      error += (value - rounded) ** 2;
      norm += value ** 2;
    }
  }
  return {
    weight: Weight.of({ dtype: 'f16', shape: weight.shape, data }),
    relativeError: norm === 0 ? 0 : error / norm,
  };
}
