/** Products, recurrence, norms and quantization agree with onnxruntime-web where ONNX has no case. */
import { float } from '../../compiler/ir/attribute.ts';
import type { OpCase, ShortAttribute } from '../support/op-case.ts';
import { floatsIn, integersIn, testOpCases, values } from '../support/op-case.ts';

testOpCases('products agree with onnxruntime', '', [
  { name: 'vector and matrix', op: 'MatMul', inputs: [floatsIn([6], 1), floatsIn([2, 6, 5], 2)] },
  { name: 'matrix and vector', op: 'MatMul', inputs: [floatsIn([3, 6], 1), floatsIn([6], 2)] },
  { name: 'vectors', op: 'MatMul', inputs: [floatsIn([6], 1), floatsIn([6], 2)] },
  {
    name: 'batches broadcast both ways',
    op: 'MatMul',
    inputs: [floatsIn([3, 1, 4, 6], 1), floatsIn([2, 6, 5], 2)],
  },
  {
    name: 'more rows and columns than tiles',
    op: 'MatMul',
    inputs: [floatsIn([37, 65], 1), floatsIn([65, 43], 2)],
  },
  {
    name: 'both transposed, alpha, beta, bias per row',
    op: 'Gemm',
    inputs: [floatsIn([6, 3], 1), floatsIn([5, 6], 2), floatsIn([3, 1], 3)],
    attributes: { transA: 1, transB: 1, alpha: 0.5, beta: 2.5 },
  },
  {
    name: 'zero points per row and column',
    op: 'MatMulInteger',
    inputs: [
      integersIn('u8', [4, 16], 0, 256, 1),
      integersIn('i8', [16, 6], -128, 128, 2),
      values('u8', [], [100]),
      integersIn('i8', [6], -9, 9, 3),
    ],
    tolerance: 0,
  },
  ...[
    ['bij,bjk->bik', [2, 3, 4], [2, 4, 5]],
    ['bhqd,bhkd->bhqk', [2, 3, 4, 5], [2, 3, 6, 5]],
    ['ij,jk', [3, 4], [4, 5]],
    ['...ij,...jk->...ik', [2, 5, 3, 4], [2, 5, 4, 6]],
    ['i,j->ij', [3], [4]],
    ['ijk,kl->jl', [2, 3, 4], [4, 5]],
    ['b i d , b j d -> b i j', [2, 3, 4], [2, 5, 4]],
  ].map(([equation, a, b]): OpCase => ({
    name: `${equation}`,
    op: 'Einsum',
    inputs: [floatsIn(a as number[], 1), floatsIn(b as number[], 2)],
    attributes: { equation: equation as string },
  })),
  {
    name: 'three operands',
    op: 'Einsum',
    inputs: [floatsIn([2, 3], 1), floatsIn([3, 4], 2), floatsIn([4, 5, 2], 3)],
    attributes: { equation: 'ab,bc,cda->d' },
  },
  {
    name: 'diagonal of a batch',
    op: 'Einsum',
    inputs: [floatsIn([2, 3, 3], 1)],
    attributes: { equation: '...ii->i...' },
  },
]);

const [steps, batch, width, hidden] = [5, 3, 4, 6];
const sequence = floatsIn([steps, batch, width], 1);
const lengths = values('i32', [batch], [5, 2, 3]);

/** Inputs of a recurrent layer; gates times hidden rows. */
function layer(
  directions: number,
  gates: number,
  options: { peephole?: boolean } = {},
): OpCase['inputs'] {
  const state = [directions, batch, hidden];
  const lstm = gates === 4;
  return [
    sequence,
    floatsIn([directions, gates * hidden, width], 2),
    floatsIn([directions, gates * hidden, hidden], 3),
    floatsIn([directions, 2 * gates * hidden], 4),
    lengths,
    floatsIn(state, 5),
    ...(lstm ? [floatsIn(state, 6)] : []),
    ...(options.peephole === true ? [floatsIn([directions, 3 * hidden], 7)] : []),
  ];
}

const directions = ['forward', 'reverse', 'bidirectional'];
const recurrent = (
  op: string,
  gates: number,
  outputs: number,
  attributes: Readonly<Record<string, ShortAttribute>> = {},
  name = '',
): OpCase[] =>
  directions.map((direction) => ({
    name: `${direction} with lengths and initial states${name}`,
    op,
    inputs: layer(direction === 'bidirectional' ? 2 : 1, gates),
    attributes: { hidden_size: hidden, direction, ...attributes },
    outputs,
  }));

testOpCases('recurrent layers agree with onnxruntime', '', [
  ...recurrent('RNN', 1, 2),
  ...recurrent('GRU', 3, 2),
  ...recurrent('GRU', 3, 2, { linear_before_reset: 1, clip: 0.5 }, ', linear before reset, clip'),
  ...recurrent('LSTM', 4, 3),
  ...recurrent('LSTM', 4, 3, { clip: 0.4 }, ', clip'),
  {
    name: 'peepholes, coupled gates',
    op: 'LSTM',
    inputs: layer(1, 4, { peephole: true }),
    attributes: { hidden_size: hidden, input_forget: 1 },
    outputs: 3,
  },
  {
    name: 'peepholes, bidirectional',
    op: 'LSTM',
    inputs: layer(2, 4, { peephole: true }),
    attributes: { hidden_size: hidden, direction: 'bidirectional' },
    outputs: 3,
  },
  {
    name: 'activations with parameters',
    op: 'LSTM',
    inputs: layer(1, 4),
    attributes: {
      hidden_size: hidden,
      activations: ['HardSigmoid', 'ScaledTanh', 'LeakyRelu'],
      activation_alpha: [0.3, 1.5, 0.05],
      activation_beta: [0.4, 0.7],
    },
    outputs: 3,
  },
  {
    name: 'relu',
    op: 'RNN',
    inputs: layer(1, 1),
    attributes: { hidden_size: hidden, activations: ['Relu'] },
    outputs: 2,
  },
]);

const x = floatsIn([2, 6, 3, 4], 1, 3);
const channels = (count: number, seed: number): ReturnType<typeof floatsIn> =>
  floatsIn([count], seed);

testOpCases('norms agree with onnxruntime', '', [
  {
    name: 'per channel from opset 21 on',
    op: 'GroupNormalization',
    opset: 21,
    inputs: [x, channels(6, 2), channels(6, 3)],
    attributes: { num_groups: 3, epsilon: 1e-3 },
  },
  {
    name: 'per group in opset 18',
    op: 'GroupNormalization',
    opset: 18,
    inputs: [x, channels(3, 2), channels(3, 3)],
    attributes: { num_groups: 3 },
  },
  {
    name: 'two axes',
    op: 'RMSNormalization',
    opset: 23,
    inputs: [x, floatsIn([3, 4], 2)],
    attributes: { axis: -2, epsilon: 1e-3 },
  },
  {
    name: 'mean and deviation, scale that broadcasts',
    op: 'LayerNormalization',
    inputs: [x, floatsIn([3, 1], 2), floatsIn([3, 4], 3)],
    attributes: { axis: 2 },
    outputs: 3,
    compared: [0],
  },
  {
    name: 'mean and deviation',
    op: 'LayerNormalization',
    inputs: [x, floatsIn([4], 2), floatsIn([4], 3)],
    attributes: { axis: -1 },
    outputs: 3,
  },
  {
    name: 'three dimensions',
    op: 'InstanceNormalization',
    inputs: [floatsIn([2, 3, 2, 3, 4], 1), channels(3, 2), channels(3, 3)],
  },
  {
    name: 'rank 2',
    op: 'BatchNormalization',
    inputs: [
      floatsIn([5, 6], 1),
      channels(6, 2),
      channels(6, 3),
      channels(6, 4),
      values('f32', [6], [0.5, 1, 2, 0.1, 3, 0.7]),
    ],
    attributes: { epsilon: 1e-3 },
  },
  {
    name: 'odd size',
    op: 'LRN',
    inputs: [x],
    attributes: { size: 5, alpha: 0.5, bias: float(2) },
  },
  { name: 'p 1, inner axis', op: 'LpNormalization', inputs: [x], attributes: { p: 1, axis: 1 } },
  {
    name: 'other axes',
    op: 'MeanVarianceNormalization',
    inputs: [x],
    attributes: { axes: [2, 3] },
  },
]);

testOpCases('quantization agrees with onnxruntime', '', [
  {
    name: 'blocks of 4-bit integers',
    op: 'DequantizeLinear',
    inputs: [
      integersIn('u4', [8, 6], 0, 16, 1),
      floatsIn([2, 6], 2),
      integersIn('u4', [2, 6], 0, 16, 3),
    ],
    attributes: { axis: 0, block_size: 4 },
    constants: [0, 1, 2],
  },
  {
    name: 'signed blocks along the last axis',
    op: 'DequantizeLinear',
    inputs: [integersIn('i4', [3, 8], -8, 8, 1), floatsIn([3, 2], 2)],
    attributes: { axis: -1, block_size: 4 },
    constants: [0, 1],
  },
  {
    name: 'per axis of a larger tensor',
    op: 'DequantizeLinear',
    inputs: [
      integersIn('i8', [2, 3, 4], -128, 128, 1),
      floatsIn([3], 2),
      integersIn('i8', [3], -5, 5, 3),
    ],
    attributes: { axis: -2 },
  },
  {
    name: 'blocks to 8 bits',
    op: 'QuantizeLinear',
    inputs: [
      floatsIn([4, 8], 1, 9),
      values('f32', [4, 2], [0.1, 0.2, 0.3, 0.1, 0.05, 0.07, 0.1, 0.2]),
    ],
    attributes: { axis: 1, block_size: 4, output_dtype: 3 },
    tolerance: 0,
  },
  {
    name: 'ties to even, saturation',
    op: 'QuantizeLinear',
    inputs: [
      values('f32', [9], [0.5, 1.5, 2.5, -0.5, -1.5, 200, -200, 127.5, 126.5]),
      values('f32', [], [1]),
      values('i8', [], [0]),
    ],
    tolerance: 0,
  },
  {
    name: 'all positive, all negative',
    op: 'DynamicQuantizeLinear',
    inputs: [values('f32', [4], [0.1, 0.5, 2.5, 1.25])],
    outputs: 3,
    attributes: {},
  },
  {
    name: 'zeros',
    op: 'DynamicQuantizeLinear',
    inputs: [values('f32', [3], [0, 0, 0])],
    outputs: 3,
    compared: [0, 2],
    attributes: {},
  },
]);

testOpCases('Det agrees with onnxruntime', '', [
  { name: 'batch', op: 'Det', opset: 22, inputs: [floatsIn([2, 4, 4], 1, 2)] },
  {
    name: 'swapped rows',
    op: 'Det',
    opset: 22,
    inputs: [values('f32', [2, 2], [0, 1, 1, 0])],
    attributes: {},
  },
]);
