/** com.microsoft norms, Gelus, quantized products and fused ops agree with onnxruntime-web. */
import { float } from '../../compiler/ir/attribute.ts';
import { floatsIn, integersIn, testOpCases, values } from '../support/op-case.ts';

const contrib = 'com.microsoft';
const hidden = 24;
const x = floatsIn([2, 5, hidden], 1, 2);
const skip = floatsIn([2, 5, hidden], 2);
const gamma = floatsIn([hidden], 3);
const beta = floatsIn([hidden], 4);
const bias = floatsIn([hidden], 5);

testOpCases('fused normalizations agree with onnxruntime', contrib, [
  {
    name: 'with epsilon',
    op: 'SimplifiedLayerNormalization',
    domain: '',
    inputs: [x, gamma],
    attributes: { axis: -1, epsilon: 1e-6 },
  },
  {
    name: 'all inputs, sum of the inputs as fourth output',
    op: 'SkipLayerNormalization',
    inputs: [x, skip, gamma, beta, bias],
    attributes: { epsilon: 1e-5 },
    outputs: 4,
    compared: [0, 3],
  },
  { name: 'no beta and no bias', op: 'SkipLayerNormalization', inputs: [x, skip, gamma] },
  {
    name: 'skip shared by the batch',
    op: 'SkipLayerNormalization',
    inputs: [x, floatsIn([5, hidden], 6), gamma, beta],
  },
  {
    name: 'skip shared by the batch, with a leading 1',
    op: 'SkipSimplifiedLayerNormalization',
    inputs: [x, floatsIn([1, 5, hidden], 6), gamma],
  },
  {
    name: 'bias and sum',
    op: 'SkipSimplifiedLayerNormalization',
    inputs: [x, skip, gamma, bias],
    attributes: { epsilon: 1e-6 },
    outputs: 4,
    compared: [0, 3],
  },
  {
    name: 'words, positions, segments and mask',
    op: 'EmbedLayerNormalization',
    inputs: [
      integersIn('i32', [2, 6], 0, 10, 1),
      integersIn('i32', [2, 6], 0, 2, 2),
      floatsIn([10, 8], 3),
      floatsIn([7, 8], 4),
      floatsIn([2, 8], 5),
      floatsIn([8], 6),
      floatsIn([8], 7),
      values('i32', [2, 6], [1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0]),
    ],
    attributes: { epsilon: 1e-12 },
    outputs: 2,
  },
  {
    name: 'position ids, embedding sum, no segments',
    op: 'EmbedLayerNormalization',
    inputs: [
      integersIn('i32', [2, 4], 0, 10, 1),
      undefined,
      floatsIn([10, 8], 3),
      floatsIn([7, 8], 4),
      undefined,
      floatsIn([8], 6),
      floatsIn([8], 7),
      undefined,
      integersIn('i32', [2, 4], 0, 7, 9),
    ],
    outputs: 3,
    compared: [0, 2],
  },
]);

testOpCases('Gelu spellings agree with onnxruntime', contrib, [
  { name: 'exact', op: 'Gelu', inputs: [floatsIn([3, 40], 1, 6)] },
  { name: 'with bias', op: 'BiasGelu', inputs: [x, bias] },
  // onnxruntime computes tanh by a rational approximation
  { name: 'with bias', op: 'FastGelu', inputs: [x, bias], tolerance: 1e-4 },
  { name: 'without bias', op: 'FastGelu', inputs: [x], tolerance: 1e-4 },
  { name: 'default alpha', op: 'QuickGelu', inputs: [x] },
  { name: 'alpha 1 is SiLU', op: 'QuickGelu', inputs: [x], attributes: { alpha: float(1) } },
]);

testOpCases('fused products agree with onnxruntime', contrib, [
  {
    name: 'alpha and transposed B',
    op: 'FusedMatMul',
    inputs: [floatsIn([2, 3, 4, 8], 1), floatsIn([2, 3, 5, 8], 2)],
    attributes: { alpha: 0.125, transB: 1 },
  },
  {
    name: 'both transposed',
    op: 'FusedMatMul',
    inputs: [floatsIn([8, 4], 1), floatsIn([5, 8], 2)],
    attributes: { transA: 1, transB: 1 },
  },
  {
    name: 'batch moved next to the columns',
    op: 'FusedMatMul',
    inputs: [floatsIn([4, 3, 8], 1), floatsIn([3, 8, 5], 2)],
    attributes: { transBatchA: 1 },
  },
  {
    name: 'relu, bias and addend',
    op: 'FusedConv',
    inputs: [
      floatsIn([1, 3, 6, 6], 1),
      floatsIn([4, 3, 3, 3], 2),
      floatsIn([4], 3),
      floatsIn([1, 4, 6, 6], 4),
    ],
    attributes: { activation: 'Relu', pads: [1, 1, 1, 1], kernel_shape: [3, 3] },
  },
  {
    name: 'activation with parameters',
    op: 'FusedConv',
    inputs: [floatsIn([1, 4, 6, 6], 1), floatsIn([4, 2, 3, 3], 2)],
    attributes: { activation: 'HardSigmoid', activation_params: [0.25, 0.5], group: 2 },
  },
  {
    name: 'leaky relu',
    op: 'FusedGemm',
    inputs: [floatsIn([3, 8], 1), floatsIn([8, 5], 2), floatsIn([5], 3)],
    attributes: { activation: 'LeakyRelu', activation_alpha: 0.1 },
  },
]);

const packed = (
  n: number,
  blocks: number,
  bytes: number,
  seed: number,
): ReturnType<typeof values> => integersIn('u8', [n, blocks, bytes], 0, 256, seed);

testOpCases('packed weights agree with onnxruntime', contrib, [
  {
    name: '4 bits, default zero point',
    op: 'MatMulNBits',
    inputs: [floatsIn([2, 3, 64], 1), packed(8, 2, 16, 2), floatsIn([8, 2], 3, 0.1)],
    attributes: { K: 64, N: 8, bits: 4, block_size: 32 },
    constants: [1, 2],
    tolerance: 1e-4,
  },
  {
    name: '4 bits, packed zero points, a last block that is not full, bias',
    op: 'MatMulNBits',
    inputs: [
      floatsIn([3, 80], 1),
      packed(8, 3, 16, 2),
      floatsIn([8, 3], 3, 0.1),
      integersIn('u8', [8, 2], 0, 256, 4),
      undefined,
      floatsIn([8], 5),
    ],
    attributes: { K: 80, N: 8, bits: 4, block_size: 32 },
    constants: [1, 2, 3],
    tolerance: 1e-4,
  },
  {
    name: '4 bits, float zero points',
    op: 'MatMulNBits',
    inputs: [
      floatsIn([3, 64], 1),
      packed(8, 4, 8, 2),
      floatsIn([8, 4], 3, 0.1),
      floatsIn([8, 4], 4, 8),
    ],
    attributes: { K: 64, N: 8, bits: 4, block_size: 16 },
    constants: [1, 2, 3],
    tolerance: 1e-4,
  },
  {
    name: '4 bits, groups in any order',
    op: 'MatMulNBits',
    inputs: [
      floatsIn([3, 64], 1),
      packed(8, 2, 16, 2),
      floatsIn([8, 2], 3, 0.1),
      undefined,
      integersIn('i32', [64], 0, 2, 6),
    ],
    attributes: { K: 64, N: 8, bits: 4, block_size: 32 },
    constants: [1, 2, 4],
    tolerance: 1e-4,
  },
  {
    name: '8 bits, packed zero points',
    op: 'MatMulNBits',
    inputs: [
      floatsIn([3, 64], 1),
      packed(8, 2, 32, 2),
      floatsIn([8, 2], 3, 0.1),
      integersIn('u8', [8, 2], 0, 256, 4),
    ],
    attributes: { K: 64, N: 8, bits: 8, block_size: 32 },
    constants: [1, 2, 3],
    tolerance: 1e-4,
  },
  {
    name: '2 bits, packed zero points',
    op: 'MatMulNBits',
    inputs: [
      floatsIn([3, 128], 1),
      packed(16, 4, 8, 2),
      floatsIn([16, 4], 3, 0.1),
      integersIn('u8', [16, 1], 0, 256, 4),
    ],
    attributes: { K: 128, N: 16, bits: 2, block_size: 32 },
    constants: [1, 2, 3],
    tolerance: 1e-4,
  },
  {
    name: 'bytes of two 4-bit numbers, default zero point',
    op: 'GatherBlockQuantized',
    inputs: [
      integersIn('u8', [9, 16], 0, 256, 1),
      values('i64', [2, 3], [0, 8, 3, 3, 1, -1]),
      floatsIn([9, 2], 2),
    ],
    attributes: { bits: 4, block_size: 16, gather_axis: 0, quantize_axis: 1 },
    constants: [0, 2],
  },
  {
    name: 'bytes of two 4-bit numbers with zero points',
    op: 'GatherBlockQuantized',
    inputs: [
      integersIn('u8', [9, 24], 0, 256, 1),
      values('i64', [4], [0, 8, 3, 3]),
      floatsIn([9, 3], 2),
      integersIn('u8', [9, 2], 0, 256, 3),
    ],
    attributes: { bits: 4, block_size: 16, gather_axis: 0, quantize_axis: 1 },
    constants: [0, 2, 3],
  },
  {
    name: 'bytes',
    op: 'GatherBlockQuantized',
    inputs: [
      integersIn('u8', [9, 32], 0, 256, 1),
      values('i32', [4], [0, 8, 3, 3]),
      floatsIn([9, 2], 2),
      integersIn('u8', [9, 2], 0, 256, 3),
    ],
    attributes: { bits: 8, block_size: 16, gather_axis: 0, quantize_axis: 1 },
    constants: [0, 2, 3],
  },
  {
    name: 'u4 along other axes',
    op: 'GatherBlockQuantized',
    inputs: [
      integersIn('u4', [3, 32, 4], 0, 16, 1),
      values('i64', [2], [1, 2]),
      floatsIn([3, 2, 4], 2),
      integersIn('u4', [3, 2, 4], 0, 16, 3),
    ],
    attributes: { block_size: 16, gather_axis: 2, quantize_axis: 1 },
    constants: [0, 2, 3],
  },
]);

const scale = (value: number): ReturnType<typeof values> => values('f32', [], [value]);
const zero = (dtype: 'u8' | 'i8', value: number): ReturnType<typeof values> =>
  values(dtype, [], [value]);

testOpCases('quantized ops agree with onnxruntime', contrib, [
  {
    name: 'per-column weights and bias',
    op: 'DynamicQuantizeMatMul',
    inputs: [
      floatsIn([4, 16], 1, 3),
      integersIn('i8', [16, 6], -128, 128, 2),
      floatsIn([6], 3, 0.01),
      integersIn('i8', [6], -5, 5, 4),
      floatsIn([6], 5),
    ],
  },
  {
    name: 'per tensor, zero points, bias',
    op: 'MatMulIntegerToFloat',
    inputs: [
      integersIn('u8', [4, 16], 0, 256, 1),
      integersIn('u8', [16, 6], 0, 256, 2),
      scale(0.02),
      scale(0.03),
      zero('u8', 120),
      zero('u8', 131),
      floatsIn([6], 5),
    ],
  },
  {
    name: 'broadcast',
    op: 'QLinearAdd',
    inputs: [
      integersIn('u8', [3, 4, 5], 0, 256, 1),
      scale(0.02),
      zero('u8', 120),
      integersIn('u8', [5], 0, 256, 2),
      scale(0.01),
      zero('u8', 100),
      scale(0.03),
      zero('u8', 128),
    ],
    tolerance: 0,
  },
  {
    name: 'signed',
    op: 'QLinearMul',
    inputs: [
      integersIn('i8', [3, 5], -128, 128, 1),
      scale(0.02),
      zero('i8', 3),
      integersIn('i8', [3, 5], -128, 128, 2),
      scale(0.01),
      zero('i8', -4),
      scale(0.01),
      zero('i8', 1),
    ],
    tolerance: 0,
  },
  {
    // onnxruntime reads a table of 256 results made in single precision
    name: 'table',
    op: 'QLinearSigmoid',
    inputs: [
      integersIn('u8', [40], 0, 256, 1),
      scale(0.05),
      zero('u8', 128),
      scale(1 / 256),
      zero('u8', 0),
    ],
    tolerance: 0,
  },
  {
    name: 'negative slope',
    op: 'QLinearLeakyRelu',
    inputs: [
      integersIn('u8', [40], 0, 256, 1),
      scale(0.05),
      zero('u8', 128),
      scale(0.04),
      zero('u8', 90),
    ],
    attributes: { alpha: 0.2 },
    tolerance: 0,
  },
  {
    name: 'parts of different scale',
    op: 'QLinearConcat',
    inputs: [
      scale(0.02),
      zero('u8', 100),
      integersIn('u8', [2, 3, 4], 0, 256, 1),
      scale(0.02),
      zero('u8', 120),
      integersIn('u8', [2, 2, 4], 0, 256, 2),
      scale(0.03),
      zero('u8', 90),
    ],
    attributes: { axis: 1 },
    constants: [0, 1, 3, 4, 6, 7],
    tolerance: 0,
  },
  {
    name: 'last axis',
    op: 'QLinearSoftmax',
    inputs: [
      integersIn('u8', [3, 10], 0, 256, 1),
      scale(0.02),
      zero('u8', 120),
      scale(1 / 256),
      zero('u8', 0),
    ],
    attributes: { axis: -1, opset: 13 },
    constants: [1, 2, 3, 4],
    tolerance: 0,
  },
  {
    name: 'transposed weights with a scale per output, integer bias',
    op: 'QGemm',
    inputs: [
      integersIn('u8', [3, 16], 0, 256, 1),
      scale(0.02),
      zero('u8', 120),
      integersIn('i8', [5, 16], -128, 128, 2),
      values('f32', [5], [0.01, 0.02, 0.03, 0.01, 0.02]),
      values('i8', [5], [0, 0, 0, 0, 0]),
      integersIn('i32', [5], -500, 500, 3),
      scale(0.1),
      zero('u8', 110),
    ],
    attributes: { transB: 1, alpha: float(1) },
    constants: [1, 2, 3, 4, 5, 6, 7, 8],
    tolerance: 0,
  },
  {
    name: 'channels first',
    op: 'QLinearGlobalAveragePool',
    inputs: [
      integersIn('u8', [1, 3, 4, 4], 0, 256, 1),
      scale(0.05),
      zero('u8', 128),
      scale(0.04),
      zero('u8', 110),
    ],
    attributes: { channels_last: 0 },
    tolerance: 0,
  },
  {
    name: 'padded',
    op: 'QLinearAveragePool',
    inputs: [
      integersIn('u8', [1, 3, 5, 5], 0, 256, 1),
      scale(0.05),
      zero('u8', 128),
      scale(0.05),
      zero('u8', 128),
    ],
    attributes: { kernel_shape: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1] },
    tolerance: 0,
  },
  {
    name: 'per axis',
    op: 'DequantizeLinear',
    inputs: [
      integersIn('i8', [3, 4], -128, 128, 1),
      floatsIn([4], 2),
      integersIn('i8', [4], -9, 9, 3),
    ],
    attributes: { axis: 1 },
  },
  {
    name: '16 bits',
    op: 'QuantizeLinear',
    inputs: [floatsIn([3, 4], 1, 9), scale(0.001), values('u16', [], [32000])],
    tolerance: 0,
  },
]);
