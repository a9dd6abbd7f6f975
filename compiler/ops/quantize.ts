/**
 * Linear quantization of ONNX: per tensor, per axis and per block, to 8, 4 and 2 bits, integer and
 * float; and onnxruntime's older spellings of the same ops.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html, DequantizeLinear,
 * DynamicQuantizeLinear.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { dtypeOfOnnx } from '../../runtime/tensor.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { floatsOf } from './dense.ts';
import { isFloat, readNumbers, writeNumbers } from './numbers.ts';
import type { Granularity } from './quantization.ts';
import { dynamicRange, quantizeValues, scaleIndex } from './quantization.ts';
import { normalizeAxis, opError } from './support.ts';

/** The axis and block size of a node, checked against the shapes when those are known. */
function granularity(
  context: EvaluateContext | InferContext,
  shape: readonly unknown[],
  scale: readonly unknown[],
): Granularity {
  const axis = context.node.int('axis', 1);
  const blockSize = context.node.int('block_size', 0);
  if (blockSize > 0 && scale.length !== shape.length)
    throw opError(context, `scale has rank ${scale.length}, wanted ${shape.length} for blocks`);
  const alone = scale.length === 0 || shape.length === 0;
  if (alone || (scale.length === 1 && scale[0] === 1 && shape.length !== 1))
    return { axis: 0, blockSize: 0 };
  // a vector with the default axis 1
  const place = shape.length === 1 ? 0 : axis;
  return { axis: normalizeAxis(context, place, shape.length), blockSize };
}

function quantizedDType(context: InferContext): DType | undefined {
  if (context.has(2)) return context.input(2).dtype;
  return dtypeOfOnnx(context.node.int('output_dtype', 0)) ?? 'u8';
}

const quantizeLinear: OpDefinition = {
  op: 'QuantizeLinear',
  domain: '',
  inputs: [2, 3],
  outputs: [1, 1],
  infer: (context) => [{ dtype: quantizedDType(context), shape: context.input(0).shape }],
  evaluate(context) {
    const [x, scale] = [context.input(0), context.input(1)];
    const zeroPoint = context.inputs[2];
    const declared = dtypeOfOnnx(context.node.int('output_dtype', 0));
    const dtype = zeroPoint?.dtype ?? declared ?? 'u8';
    const indexOf = scaleIndex(x.shape, scale.shape, granularity(context, x.shape, scale.shape));
    const scales = floatsOf(scale);
    // the division is single precision in every engine; the rounding shows it at ties
    const levels = Float32Array.from(floatsOf(x), (value, i) => value / (scales[indexOf(i)] ?? 1));
    const zeros = zeroPoint === undefined ? undefined : readNumbers(zeroPoint);
    const zeroOf = (i: number): number => zeros?.[indexOf(i)] ?? 0;
    const saturate = context.node.int('saturate', 1) !== 0;
    return [quantizeValues(levels, x.shape, dtype, zeroOf, saturate)];
  },
};

const dequantizeLinear: OpDefinition = {
  op: 'DequantizeLinear',
  domain: '',
  inputs: [2, 3],
  outputs: [1, 1],
  infer(context) {
    const declared = dtypeOfOnnx(context.node.int('output_dtype', 0));
    return [{ dtype: declared ?? context.input(1).dtype, shape: context.input(0).shape }];
  },
  evaluate(context) {
    const [x, scale] = [context.input(0), context.input(1)];
    const declared = dtypeOfOnnx(context.node.int('output_dtype', 0));
    const blocks = granularity(context, x.shape, scale.shape);
    return [dequantize(x, scale, context.inputs[2], blocks, declared)];
  },
};

/** `(x - zeroPoint) * scale`. */
export function dequantize(
  x: Tensor,
  scale: Tensor,
  zeroPoint: Tensor | undefined,
  blocks: Granularity,
  dtype: DType = scale.dtype,
): Tensor {
  const indexOf = scaleIndex(x.shape, scale.shape, blocks);
  const levels = readNumbers(x);
  const scales = floatsOf(scale);
  const zeros = zeroPoint === undefined ? undefined : readNumbers(zeroPoint);
  const values = new Float32Array(levels.length);
  for (let i = 0; i < values.length; i++) {
    const group = indexOf(i);
    values[i] = ((levels[i] ?? 0) - (zeros?.[group] ?? 0)) * (scales[group] ?? 1);
  }
  return writeNumbers(dtype, x.shape, values);
}

/** Outputs: quantized values, their scale, their zero point; the range always contains 0. */
const dynamicQuantizeLinear: OpDefinition = {
  op: 'DynamicQuantizeLinear',
  domain: '',
  inputs: [1, 1],
  outputs: [3, 3],
  infer(context) {
    const { dtype, shape } = context.input(0);
    if (dtype !== undefined && !isFloat(dtype))
      throw opError(context, `input must be a float, got ${dtype}`);
    return [
      { dtype: 'u8', shape },
      { dtype: 'f32', shape: [] },
      { dtype: 'u8', shape: [] },
    ];
  },
  evaluate(context) {
    const x = context.input(0);
    const values = floatsOf(x);
    const { scale, zeroPoint } = dynamicRange(values);
    const levels = Float32Array.from(values, (value) => value / scale);
    return [
      quantizeValues(levels, x.shape, 'u8', zeroPoint),
      writeNumbers('f32', [], [scale]),
      writeNumbers('u8', [], [zeroPoint]),
    ];
  },
};

/** QuantizeLinear and its relatives. */
export const quantizeOps: readonly OpDefinition[] = [
  quantizeLinear,
  dequantizeLinear,
  dynamicQuantizeLinear,
  { ...quantizeLinear, domain: 'com.microsoft' },
  { ...dequantizeLinear, domain: 'com.microsoft' },
];
