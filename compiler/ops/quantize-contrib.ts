/**
 * onnxruntime's quantized ops: matrix products with float results, and the QLinear family, which
 * dequantizes, computes and quantizes again.
 *
 * Source: com.microsoft ops of these names in onnxruntime's ContribOperators.md.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Shape } from '../ir/dim.ts';
import { addDims } from '../ir/dim.ts';
import type { Node } from '../ir/graph.ts';
import { sigmoid } from './activation.ts';
import type { EvaluateContext, OpDefinition } from './definition.ts';
import { broadcastStrides, floatsOf, forEachIndex, optionalFloats } from './dense.ts';
import { combine, mapNumbers } from './elementwise.ts';
import { transposed } from './gemm.ts';
import { centered, product, productShape } from './matmul.ts';
import { readNumbers, writeNumbers } from './numbers.ts';
import { poolOps } from './pool.ts';
import { dynamicRange, quantizeValues } from './quantization.ts';
import { dequantize } from './quantize.ts';
import { broadcastDims, splitAtAxis, withSize } from './shapes.ts';
import { expectRank, normalizeAxis, opError, unsupported } from './support.ts';

const contrib = 'com.microsoft';
const perTensor = { axis: 0, blockSize: 0 };

/** The integer product times the scales, plus a bias; scales of several elements run along columns. */
function scaledProduct(
  context: EvaluateContext,
  a: ReturnType<typeof centered>,
  b: ReturnType<typeof centered>,
  aScale: ArrayLike<number>,
  bScale: ArrayLike<number>,
  bias: Tensor | undefined,
): Tensor {
  const { shape, data } = product(context, a, b, 'i32');
  const columns = shape.at(-1) ?? 1;
  const terms = optionalFloats(bias);
  const out = Float32Array.from(data, (sum, i) => {
    const left = aScale[aScale.length === 1 ? 0 : Math.floor(i / columns) % aScale.length] ?? 1;
    const right = bScale[bScale.length === 1 ? 0 : i % columns] ?? 1;
    return sum * left * right + (terms?.[i % columns] ?? 0);
  });
  return writeNumbers('f32', shape, out);
}

/** Inputs: a (float), b, b_scale, b_zero_point?, bias?; a is quantized to u8 on the way. */
const dynamicQuantizeMatMul: OpDefinition = {
  op: 'DynamicQuantizeMatMul',
  domain: contrib,
  inputs: [3, 5],
  outputs: [1, 1],
  infer: (context) => [
    {
      dtype: 'f32',
      shape: productShape(context, context.input(0).shape, context.input(1).shape),
    },
  ],
  evaluate(context) {
    const a = context.input(0);
    const values = floatsOf(a);
    const { scale, zeroPoint } = dynamicRange(values);
    const levels = Float32Array.from(values, (value) => value / scale);
    const quantized = quantizeValues(levels, a.shape, 'u8', zeroPoint);
    const zero = writeNumbers('u8', [], [zeroPoint]);
    const b = centered(context.input(1), context.inputs[3], -1);
    const scales = floatsOf(context.input(2));
    return [
      scaledProduct(context, centered(quantized, zero, -2), b, [scale], scales, context.inputs[4]),
    ];
  },
};

/** Inputs: a, b, a_scale, b_scale, a_zero_point?, b_zero_point?, bias?. */
const matMulIntegerToFloat: OpDefinition = {
  op: 'MatMulIntegerToFloat',
  domain: contrib,
  inputs: [4, 7],
  outputs: [1, 1],
  infer: (context) => [
    {
      dtype: context.input(2).dtype,
      shape: productShape(context, context.input(0).shape, context.input(1).shape),
    },
  ],
  evaluate(context) {
    const a = centered(context.input(0), context.inputs[4], -2);
    const b = centered(context.input(1), context.inputs[5], -1);
    const [aScale, bScale] = [floatsOf(context.input(2)), floatsOf(context.input(3))];
    return [scaledProduct(context, a, b, aScale, bScale, context.inputs[6])];
  },
};

/** Input `index` with the scale and zero point that follow it, as floats. */
function dequantizedInput(context: EvaluateContext, index: number): Tensor {
  return dequantize(
    context.input(index),
    context.input(index + 1),
    context.inputs[index + 2],
    perTensor,
  );
}

/** Floats quantized with the scale at `index` and the zero point after it, to `like`'s dtype. */
function requantized(context: EvaluateContext, y: Tensor, index: number, like: Tensor): Tensor {
  const [scale = 1] = floatsOf(context.input(index));
  const zeroPoint = context.inputs[index + 1];
  const levels = Float32Array.from(floatsOf(y), (value) => value / scale);
  const zero = zeroPoint === undefined ? 0 : (readNumbers(zeroPoint)[0] ?? 0);
  return quantizeValues(levels, y.shape, like.dtype, zero);
}

/** Inputs: a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point. */
function qLinearBinary(op: string, compute: (a: number, b: number) => number): OpDefinition {
  return {
    op,
    domain: contrib,
    inputs: [7, 8],
    outputs: [1, 1],
    infer: (context) => [
      {
        dtype: context.input(0).dtype,
        shape: broadcastDims(context, [context.input(0).shape, context.input(3).shape]),
      },
    ],
    evaluate(context) {
      const [a, b] = [dequantizedInput(context, 0), dequantizedInput(context, 3)];
      return [requantized(context, combine(context, a, b, 'f32', compute), 6, context.input(0))];
    },
  };
}

/** The context of the same node with other inputs. */
function withInputs(context: EvaluateContext, inputs: readonly Tensor[]): EvaluateContext {
  return {
    node: context.node,
    opset: context.opset,
    inputs,
    input(index) {
      const tensor = inputs[index];
      if (tensor === undefined) throw opError(context, `input ${index} is absent`);
      return tensor;
    },
    graph: (graph, values) => context.graph(graph, values),
    random: (seed) => context.random(seed),
  };
}

/** Inputs: x, x_scale, x_zero_point, y_scale, y_zero_point. */
function qLinearUnary(op: string, compute: (node: Node) => (x: number) => number): OpDefinition {
  return {
    op,
    domain: contrib,
    inputs: [4, 5],
    outputs: [1, 1],
    infer: (context) => [{ dtype: context.input(0).dtype, shape: context.input(0).shape }],
    evaluate(context) {
      const y = mapNumbers(dequantizedInput(context, 0), compute(context.node));
      return [requantized(context, y, 3, context.input(0))];
    },
  };
}

/** A float op of one tensor between dequantizing and quantizing; channels first only. */
function qLinearOf(op: string, float: OpDefinition | undefined): readonly OpDefinition[] {
  if (float?.evaluate === undefined) return [];
  const { evaluate } = float;
  return [
    {
      op,
      domain: contrib,
      inputs: [4, 5],
      outputs: [1, 1],
      infer(context) {
        if (context.node.int('channels_last', 0) !== 0) return [{ dtype: context.input(0).dtype }];
        return [{ ...float.infer(context)[0], dtype: context.input(0).dtype }];
      },
      evaluate(context) {
        if (context.node.int('channels_last', 0) !== 0) throw unsupported(context, 'channels_last');
        const [y] = evaluate(withInputs(context, [dequantizedInput(context, 0)]));
        if (y === undefined) throw opError(context, 'the float op gave no output');
        return [requantized(context, y, 3, context.input(0))];
      },
    },
  ];
}

/** Inputs: y_scale, y_zero_point, then x, x_scale, x_zero_point of every part. */
const qLinearConcat: OpDefinition = {
  op: 'QLinearConcat',
  domain: contrib,
  inputs: [5, Infinity],
  outputs: [1, 1],
  infer(context) {
    const { dtype } = context.input(1);
    const parts = context.node.inputs.flatMap((_, i) =>
      i >= 2 && i % 3 === 2 ? [context.input(i).shape] : [],
    );
    const known = parts.filter((shape) => shape !== undefined);
    const [first] = known;
    if (first === undefined || known.length < parts.length) return [{ dtype }];
    const axis = normalizeAxis(context, context.node.int('axis', 0), first.length);
    const size = addDims(...known.map((shape) => shape[axis] ?? 1));
    return [{ dtype, shape: withSize(first, axis, size) }];
  },
  evaluate(context) {
    const parts = context.node.inputs.flatMap((_, i) =>
      i >= 2 && i % 3 === 2 ? [dequantizedInput(context, i)] : [],
    );
    const [first] = parts;
    if (first === undefined) throw opError(context, 'there is nothing to concatenate');
    const axis = normalizeAxis(context, context.node.int('axis', 0), first.shape.length);
    const size = parts.reduce((sum, part) => sum + (part.shape[axis] ?? 1), 0);
    const shape = withSize(first.shape, axis, size);
    const outer = elementCount(first.shape.slice(0, axis));
    const joined = new Float32Array(elementCount(shape));
    let at = 0;
    for (let o = 0; o < outer; o++)
      for (const part of parts) {
        const run = elementCount(part.shape) / outer;
        joined.set(floatsOf(part).subarray(o * run, (o + 1) * run), at);
        at += run;
      }
    return [requantized(context, writeNumbers('f32', shape, joined), 0, context.input(1))];
  },
};

/** Inputs: x, x_scale, x_zero_point, y_scale, y_zero_point; before opset 13 all inner axes count. */
const qLinearSoftmax: OpDefinition = {
  op: 'QLinearSoftmax',
  domain: contrib,
  inputs: [5, 5],
  outputs: [1, 1],
  infer: (context) => [{ dtype: context.input(0).dtype, shape: context.input(0).shape }],
  evaluate(context) {
    const x = dequantizedInput(context, 0);
    const axis = normalizeAxis(context, context.node.int('axis', -1), x.shape.length);
    const all = context.node.int('opset', 13) < 13;
    const [outer, size, inner] = all
      ? [elementCount(x.shape.slice(0, axis)), elementCount(x.shape.slice(axis)), 1]
      : splitAtAxis(x.shape, axis);
    const data = floatsOf(x);
    const y = new Float32Array(data.length);
    for (let o = 0; o < outer; o++)
      for (let i = 0; i < inner; i++) {
        const at = (s: number): number => (o * size + s) * inner + i;
        let largest = -Infinity;
        for (let s = 0; s < size; s++) largest = Math.max(largest, data[at(s)] ?? 0);
        let sum = 0;
        for (let s = 0; s < size; s++) sum += Math.exp((data[at(s)] ?? 0) - largest);
        for (let s = 0; s < size; s++) y[at(s)] = Math.exp((data[at(s)] ?? 0) - largest) / sum;
      }
    return [requantized(context, writeNumbers('f32', x.shape, y), 3, context.input(0))];
  },
};

/** Inputs: a, a_scale, a_zero_point, b, b_scale, b_zero_point, c?, y_scale?, y_zero_point?. */
const qGemm: OpDefinition = {
  op: 'QGemm',
  domain: contrib,
  inputs: [6, 9],
  outputs: [1, 1],
  infer(context) {
    const flipped = (index: number, name: string): Shape | undefined => {
      const { shape } = context.input(index);
      expectRank(context, `input ${index}`, shape, 2);
      return context.node.int(name, 0) === 0 ? shape : shape?.toReversed();
    };
    const dtype = context.has(8) ? context.input(8).dtype : 'f32';
    return [{ dtype, shape: productShape(context, flipped(0, 'transA'), flipped(3, 'transB')) }];
  },
  evaluate(context) {
    const { node } = context;
    const side = (index: number, name: string, axis: number): ReturnType<typeof centered> => {
      const flip = node.int(name, 0) !== 0;
      // zero points of B run along its columns, which are rows when it is stored transposed
      const { shape, data } = centered(
        context.input(index),
        context.inputs[index + 2],
        flip ? -2 : axis,
      );
      const [rows = 1, columns = 1] = shape;
      return flip
        ? { shape: [columns, rows], data: transposed(data, rows, columns) }
        : { shape, data };
    };
    const { shape, data } = product(context, side(0, 'transA', -2), side(3, 'transB', -1), 'i32');
    const columns = shape[1] ?? 1;
    const [aScale = 1] = floatsOf(context.input(1));
    const bScale = floatsOf(context.input(4));
    const bias = context.inputs[6];
    const terms = optionalFloats(bias);
    const strides = broadcastStrides(bias?.shape ?? [], 2);
    const alpha = node.float('alpha', 1);
    const y = new Float32Array(data.length);
    forEachIndex(shape, [strides], (i, [from = 0]) => {
      const scale = alpha * aScale * (bScale[bScale.length === 1 ? 0 : i % columns] ?? 1);
      y[i] = ((data[i] ?? 0) + (terms?.[from] ?? 0)) * scale;
    });
    const result = writeNumbers('f32', shape, y);
    const like = context.inputs[8];
    return [like === undefined ? result : requantized(context, result, 7, like)];
  },
};

const floatPool = (op: string): OpDefinition | undefined =>
  poolOps.find((definition) => definition.op === op);

/** Quantized ops of onnxruntime. */
export const quantizeContribOps: readonly OpDefinition[] = [
  dynamicQuantizeMatMul,
  matMulIntegerToFloat,
  qLinearBinary('QLinearAdd', (a, b) => a + b),
  qLinearBinary('QLinearMul', (a, b) => a * b),
  qLinearUnary('QLinearSigmoid', () => sigmoid),
  qLinearUnary('QLinearLeakyRelu', (node) => {
    const alpha = node.float('alpha', 0.01);
    return (x) => (x < 0 ? alpha * x : x);
  }),
  qLinearConcat,
  qLinearSoftmax,
  qGemm,
  ...qLinearOf('QLinearAveragePool', floatPool('AveragePool')),
  ...qLinearOf('QLinearGlobalAveragePool', floatPool('GlobalAveragePool')),
];
