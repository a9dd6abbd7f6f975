/**
 * onnxruntime's fused normalizations and Gelu spellings.
 *
 * Source: com.microsoft SkipLayerNormalization, SkipSimplifiedLayerNormalization,
 * EmbedLayerNormalization, BiasGelu, FastGelu, QuickGelu, Gelu, BiasSplitGelu in onnxruntime's
 * ContribOperators.md; SimplifiedLayerNormalization in its contrib_defs.cc, which exporters write in
 * the ONNX domain as well.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { divideDims } from '../ir/dim.ts';
import type { Node } from '../ir/graph.ts';
import { gelu, sigmoid } from './activation.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { floatsFor, floatsOf } from './dense.ts';
import type { Unary } from './elementwise.ts';
import { combine, mapNumbers, sameAsInput } from './elementwise.ts';
import { applyAffine, evaluateRowNorm, inferRowNorm, normalizeRows, scaledType } from './norm.ts';
import { readNumbers, writeNumbers } from './numbers.ts';
import { expectRank, opError, sameDim } from './support.ts';

const contrib = 'com.microsoft';

const simplifiedLayerNormalization: OpDefinition = {
  op: 'SimplifiedLayerNormalization',
  domain: contrib,
  inputs: [2, 2],
  outputs: [1, 2],
  infer(context) {
    const [, , inverse = {}] = inferRowNorm(context);
    return [scaledType(context), inverse];
  },
  evaluate(context) {
    const [y, , inverse] = evaluateRowNorm(context, false);
    return [y, inverse];
  },
};

/** Where a skip op keeps its optional inputs. */
interface SkipLayout {
  readonly op: string;
  readonly centered: boolean;
  readonly beta: number;
  readonly bias: number;
}

/** Outputs: norm(input + skip + bias), mean, 1 / deviation, input + skip + bias. */
function skipNorm({ op, centered, beta, bias }: SkipLayout): OpDefinition {
  return {
    op,
    domain: contrib,
    inputs: [3, bias + 1],
    outputs: [1, 4],
    infer(context) {
      const { dtype, shape } = context.input(0);
      const gamma = context.input(2).shape;
      if (shape !== undefined && gamma !== undefined)
        sameDim(context, 'the hidden size and gamma', shape.at(-1) ?? 1, gamma.at(-1) ?? 1);
      const reduced = shape?.map((size, axis): Dim => (axis < shape.length - 1 ? size : 1));
      const statistics = { dtype: 'f32' as const, shape: reduced };
      return [{ dtype, shape }, statistics, statistics, { dtype, shape }];
    },
    evaluate(context) {
      const { node } = context;
      const x = context.input(0);
      const sum = Float64Array.from(floatsOf(x));
      applyAffine(sum, x.shape, undefined, skipOf(context.input(1), x));
      applyAffine(sum, x.shape, undefined, context.inputs[bias]);
      const epsilon = node.float('epsilon', 1e-12);
      const rows = normalizeRows(sum, x.shape.at(-1) ?? 1, epsilon, centered);
      const shift = beta < 0 ? undefined : context.inputs[beta];
      applyAffine(rows.values, x.shape, context.input(2), shift);
      const reduced = [...x.shape.slice(0, -1), 1];
      return [
        writeNumbers(x.dtype, x.shape, rows.values),
        writeNumbers('f32', reduced, rows.means),
        writeNumbers('f32', reduced, rows.inverses),
        writeNumbers(x.dtype, x.shape, sum),
      ];
    },
  };
}

/** A skip of shape [S, H] or [1, S, H] serves every batch. */
function skipOf(skip: Tensor, x: Tensor): Tensor {
  return skip.shape.length === x.shape.length ? skip : { ...skip, shape: x.shape.slice(-2) };
}

/**
 * Inputs: ids, segments?, words, positions, segment table?, gamma, beta, mask?, position_ids?.
 * Outputs: normalized sum of the embeddings, unmasked tokens per sequence, the sum.
 */
const embedLayerNormalization: OpDefinition = {
  op: 'EmbedLayerNormalization',
  domain: contrib,
  inputs: [7, 9],
  outputs: [1, 3],
  infer(context) {
    const [ids, words] = [context.input(0).shape, context.input(2)];
    expectRank(context, 'input_ids', ids, 2);
    expectRank(context, 'word_embedding', words.shape, 2);
    const hidden = words.shape?.[1];
    const shape = ids && hidden !== undefined ? [...ids, hidden] : undefined;
    return [
      { dtype: words.dtype, shape },
      { dtype: 'i32', shape: ids && ids.slice(0, 1) },
      { dtype: words.dtype, shape },
    ];
  },
  evaluate(context) {
    const [ids, words] = [context.input(0), context.input(2)];
    const [batch = 1, length = 1] = ids.shape;
    const hidden = words.shape[1] ?? 1;
    const sum = new Float64Array(batch * length * hidden);
    const positions = context.inputs[8];
    const place = positions && readNumbers(positions);
    const placeOf = (i: number): number =>
      place === undefined ? i % length : (place[place.length === length ? i % length : i] ?? 0);
    addRows(context, sum, words, readNumbers(ids));
    addRows(
      context,
      sum,
      context.input(3),
      Array.from({ length: batch * length }, (_, i) => placeOf(i)),
    );
    const [segments, table] = [context.inputs[1], context.inputs[4]];
    if (segments !== undefined && table !== undefined)
      addRows(context, sum, table, readNumbers(segments));
    const rows = normalizeRows(sum, hidden, context.node.float('epsilon', 1e-12));
    const shape = [batch, length, hidden];
    applyAffine(rows.values, shape, context.input(5), context.input(6));
    const mask = context.inputs[7] && readNumbers(context.inputs[7]);
    const counts = new Float64Array(batch);
    mask?.forEach((one, i) => {
      const sequence = Math.floor(i / length);
      counts[sequence] = (counts[sequence] ?? 0) + one;
    });
    return [
      writeNumbers(words.dtype, shape, rows.values),
      writeNumbers('i32', [batch], counts),
      writeNumbers(words.dtype, shape, sum),
    ];
  },
};

/** Adds row `ids[i]` of a table to row `i` of the sum. */
function addRows(
  context: EvaluateContext,
  sum: Float64Array,
  table: Tensor,
  ids: ArrayLike<number>,
): void {
  const [count = 1, width = 1] = table.shape;
  const data = floatsOf(table);
  for (let i = 0; i < ids.length; i++) {
    const row = ids[i] ?? 0;
    if (row < 0 || row >= count)
      throw opError(context, `id ${row} is outside a table of ${count} rows`);
    for (let j = 0; j < width; j++)
      sum[i * width + j] = (sum[i * width + j] ?? 0) + (data[row * width + j] ?? 0);
  }
}

/** An activation of `x + bias`, the bias being optional. */
function biasActivation(
  op: string,
  inputs: OpDefinition['inputs'],
  of: (node: Node) => Unary,
): OpDefinition {
  return {
    op,
    domain: contrib,
    inputs,
    outputs: [1, 1],
    infer(context) {
      expectRank(context, 'bias', context.input(1).shape, 1);
      return [...sameAsInput(context)];
    },
    evaluate(context) {
      const x = context.input(0);
      const bias = context.inputs[1];
      const compute = of(context.node);
      if (bias === undefined) return [mapNumbers(x, compute)];
      return [combine(context, x, bias, x.dtype, (a, b) => compute(a + b))];
    },
  };
}

/** The first half of `x + bias` times Gelu of the second half. */
const biasSplitGelu: OpDefinition = {
  op: 'BiasSplitGelu',
  domain: contrib,
  inputs: [2, 2],
  outputs: [1, 1],
  infer(context: InferContext) {
    const { dtype, shape } = context.input(0);
    return [{ dtype, shape: shape && [...shape.slice(0, -1), divideDims(shape.at(-1) ?? 1, 2)] }];
  },
  evaluate(context) {
    const x = context.input(0);
    const width = x.shape.at(-1) ?? 1;
    const half = width / 2;
    const [data, bias] = [floatsOf(x), floatsOf(context.input(1))];
    const shape = [...x.shape.slice(0, -1), half];
    const out = floatsFor(x.dtype, elementCount(shape));
    for (let i = 0; i < out.length; i++) {
      const [row, column] = [Math.floor(i / half), i % half];
      const at = (j: number): number => (data[row * width + j] ?? 0) + (bias[j] ?? 0);
      out[i] = at(column) * gelu(at(column + half));
    }
    return [writeNumbers(x.dtype, shape, out)];
  },
};

/** Fused normalizations and Gelus. */
export const normContribOps: readonly OpDefinition[] = [
  simplifiedLayerNormalization,
  { ...simplifiedLayerNormalization, domain: '' },
  skipNorm({ op: 'SkipLayerNormalization', centered: true, beta: 3, bias: 4 }),
  skipNorm({ op: 'SkipSimplifiedLayerNormalization', centered: false, beta: -1, bias: 3 }),
  embedLayerNormalization,
  biasActivation('Gelu', [1, 1], () => (x) => gelu(x)),
  biasActivation('BiasGelu', [2, 2], () => (x) => gelu(x)),
  biasActivation('FastGelu', [1, 2], () => (x) => gelu(x, true)),
  biasActivation('QuickGelu', [1, 1], (node) => {
    const alpha = node.float('alpha', 1.702);
    return (x) => x * sigmoid(alpha * x);
  }),
  biasSplitGelu,
];
