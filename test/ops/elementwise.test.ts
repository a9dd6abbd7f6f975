/** Elementwise ops agree with onnxruntime-web on dtypes and corners the ONNX cases leave out. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { float } from '../../compiler/ir/attribute.ts';
import { erf } from '../../compiler/ops/elementwise.ts';
import type { OpCase } from '../support/op-case.ts';
import { floatsIn, testOpCases, values } from '../support/op-case.ts';

const corners = values('f32', [8], [NaN, Infinity, -Infinity, -0, 0, 1e-40, -3.5, 2.5]);
const wide = { dtype: 'i64' as const, shape: [4], data: BigInt64Array.of(2n ** 62n, -7n, 3n, -1n) };

testOpCases('arithmetic agrees with onnxruntime', '', [
  ...['Add', 'Sub', 'Mul'].map((op): OpCase => ({
    name: '64-bit integers wrap around',
    op,
    inputs: [wide, { ...wide, data: BigInt64Array.of(2n ** 62n + 5n, 2n, -9n, 4n) }],
    tolerance: 0,
  })),
  {
    name: 'integers truncate towards zero',
    op: 'Div',
    inputs: [values('i32', [4], [7, -7, 7, -7]), values('i32', [4], [2, 2, -2, -2])],
    tolerance: 0,
  },
  {
    name: '64-bit integers truncate towards zero',
    op: 'Div',
    inputs: [wide, values('i64', [], [2])],
    tolerance: 0,
  },
  {
    name: 'broadcast in the middle',
    op: 'Add',
    inputs: [floatsIn([2, 1, 4], 1), floatsIn([3, 1], 2)],
  },
  { name: 'nothing to broadcast', op: 'Mul', inputs: [floatsIn([0, 3], 1), floatsIn([3], 2)] },
  { name: 'infinities and NaN', op: 'Div', inputs: [corners, values('f32', [], [0])] },
  {
    name: 'sign of the divisor',
    op: 'Mod',
    inputs: [values('i32', [4], [7, -7, 7, -7]), values('i32', [4], [3, 3, -3, -3])],
    tolerance: 0,
  },
  {
    name: 'sign of the dividend',
    op: 'Mod',
    inputs: [values('f32', [4], [7.5, -7.5, 7.5, -7.5]), values('f32', [4], [3, 3, -3, -3])],
    attributes: { fmod: 1 },
  },
  { name: 'exponent of another dtype', op: 'Pow', inputs: [floatsIn([5]), values('i64', [], [3])] },
  {
    name: 'integers',
    op: 'Pow',
    inputs: [values('i32', [3], [2, -3, 10]), values('i32', [3], [10, 3, 0])],
    tolerance: 0,
  },
  { name: 'NaN spreads', op: 'Max', inputs: [corners, values('f32', [1], [1])] },
  {
    name: 'three inputs that broadcast',
    op: 'Min',
    inputs: [floatsIn([2, 3], 1), floatsIn([3], 2), floatsIn([2, 1], 3)],
  },
  {
    name: 'three inputs',
    op: 'Mean',
    inputs: [floatsIn([2, 3], 1), floatsIn([3], 2), floatsIn([], 3)],
  },
  {
    name: 'ties go to even',
    op: 'Round',
    inputs: [values('f32', [6], [0.5, 1.5, 2.5, -0.5, -1.5, 2.4])],
    tolerance: 0,
  },
  { name: 'infinities and NaN', op: 'Sign', inputs: [corners] },
  { name: 'smallest of 8 bits', op: 'Abs', inputs: [values('i8', [2], [-128, 5])], tolerance: 0 },
]);

testOpCases('logic and selection agree with onnxruntime', '', [
  ...['Less', 'LessOrEqual', 'Greater', 'GreaterOrEqual', 'Equal'].flatMap((op): OpCase[] => [
    {
      name: 'infinities and NaN',
      op,
      inputs: [corners, values('f32', [8], [NaN, Infinity, -Infinity, 0, 1, 0, -3.5, 3])],
    },
    {
      name: '64-bit integers past 2^53',
      op,
      inputs: [
        { ...wide, data: BigInt64Array.of(2n ** 60n, 2n ** 60n + 1n, 1n, -1n) },
        { ...wide, data: BigInt64Array.of(2n ** 60n + 1n, 2n ** 60n, 1n, 0n) },
      ],
    },
  ]),
  { name: 'only positive', op: 'IsInf', inputs: [corners], attributes: { detect_negative: 0 } },
  {
    name: '64-bit integers, all three broadcast',
    op: 'Where',
    inputs: [values('bool', [2, 1], [1, 0]), wide, values('i64', [1], [-5])],
    tolerance: 0,
  },
  {
    name: 'left by more than fits',
    op: 'BitShift',
    inputs: [values('u32', [3], [1, 0x80000001, 255]), values('u32', [], [4])],
    attributes: { direction: 'LEFT' },
    tolerance: 0,
  },
  { name: 'of 16 bits', op: 'BitwiseNot', inputs: [values('u16', [2], [0, 0x0ff0])], tolerance: 0 },
  {
    name: 'negative numbers',
    op: 'BitwiseAnd',
    inputs: [values('i32', [2], [-1, -256]), values('i32', [2], [255, 0x1ff])],
    tolerance: 0,
  },
]);

testOpCases('activations agree with onnxruntime', '', [
  // f32 kernels approximate exp and tanh; 1e-5 of the range covers them
  ...[
    'Relu',
    'Sigmoid',
    'Tanh',
    'Softplus',
    'Softsign',
    'HardSwish',
    'Mish',
    'Elu',
    'Selu',
    'Celu',
    'Erf',
  ].map((op): OpCase => ({ name: 'from -8 to 8', op, inputs: [floatsIn([300], 3, 8)] })),
  ...['Relu', 'LeakyRelu'].map((op): OpCase => ({
    name: 'infinities and NaN',
    op,
    inputs: [corners],
  })),
  { name: 'exact', op: 'Gelu', inputs: [floatsIn([300], 3, 6)] },
  {
    name: 'by tanh',
    op: 'Gelu',
    inputs: [floatsIn([300], 3, 6)],
    attributes: { approximate: 'tanh' },
  },
  {
    name: 'other slope and offset',
    op: 'HardSigmoid',
    inputs: [floatsIn([50], 3, 8)],
    attributes: { alpha: 0.3, beta: 0.4 },
  },
  { name: 'slope per channel', op: 'PRelu', inputs: [floatsIn([2, 3, 4], 1), floatsIn([3, 1], 2)] },
  {
    name: 'other limits',
    op: 'ThresholdedRelu',
    inputs: [floatsIn([50], 1, 3)],
    attributes: { alpha: 1.5 },
  },
  {
    name: 'both limits',
    op: 'Clip',
    inputs: [floatsIn([50], 1, 3), values('f32', [], [-0.5]), values('f32', [], [2])],
  },
  {
    name: 'only the upper limit',
    op: 'Clip',
    inputs: [wide, undefined, values('i64', [], [2])],
    tolerance: 0,
  },
  {
    name: 'limits as attributes',
    op: 'Clip',
    opset: 8,
    inputs: [floatsIn([50], 1, 3)],
    attributes: { min: -0.5, max: float(1) },
  },
]);

test('the error function is exact to 15 digits', () => {
  // Abramowitz and Stegun, table 7.1, and Wolfram for the tail
  const known: readonly (readonly [number, number])[] = [
    [0.5, 0.5204998778130465],
    [1, 0.8427007929497149],
    [2, 0.9953222650189527],
    [2.5, 0.999593047982555],
    [3, 0.9999779095030014],
    [-1.5, -0.9661051464753108],
  ];
  for (const [x, wanted] of known)
    assert.ok(Math.abs(erf(x) - wanted) < 1e-15, `erf(${x}) = ${erf(x)}`);
  assert.equal(erf(Infinity), 1);
  assert.ok(Number.isNaN(erf(NaN)));
});
