/** Movement, reductions and indexing agree with onnxruntime-web beyond the ONNX cases. */
import { float } from '../../compiler/ir/attribute.ts';
import type { OpCase } from '../support/op-case.ts';
import { floatsIn, integersIn, testOpCases, values } from '../support/op-case.ts';

const i64 = (...numbers: number[]) => values('i64', [numbers.length], numbers);
const x = floatsIn([3, 4, 5], 7);

testOpCases('movement agrees with onnxruntime', '', [
  { name: 'copied and inferred sizes', op: 'Reshape', inputs: [x, i64(0, -1)], constants: [1] },
  {
    name: 'sizes of 0 that are meant',
    op: 'Reshape',
    inputs: [floatsIn([0, 4]), i64(4, 0)],
    constants: [1],
    attributes: { allowzero: 1 },
  },
  { name: 'three axes', op: 'Transpose', inputs: [x], attributes: { perm: [2, 0, 1] } },
  {
    name: 'reversed by default',
    op: 'Transpose',
    inputs: [integersIn('i64', [2, 3], -9, 9)],
    tolerance: 0,
  },
  {
    name: 'forward, backward and past the ends',
    op: 'Slice',
    inputs: [x, i64(-100, 3, 1), i64(100, -100, 4), i64(0, 1, 2), i64(2, -2, 1)],
    constants: [1, 2, 3, 4],
  },
  { name: 'empty', op: 'Slice', inputs: [x, i64(2), i64(1), i64(1)], constants: [1, 2, 3] },
  {
    name: 'bounds as attributes',
    op: 'Slice',
    opset: 9,
    inputs: [x],
    attributes: { starts: [1, -2], ends: [2 ** 31, -1], axes: [0, 2] },
  },
  {
    name: 'uneven parts',
    op: 'Split',
    inputs: [x],
    attributes: { axis: 2, num_outputs: 2 },
    outputs: 2,
  },
  {
    name: 'listed parts',
    op: 'Split',
    inputs: [x, i64(1, 0, 3)],
    constants: [1],
    attributes: { axis: 1 },
    outputs: 3,
  },
  {
    name: 'sizes as attribute',
    op: 'Split',
    opset: 11,
    inputs: [x],
    attributes: { axis: -1, split: [2, 3] },
    outputs: 2,
  },
  ...['constant', 'edge', 'reflect', 'wrap'].map((mode): OpCase => ({
    name: `${mode}, with negative pads`,
    op: 'Pad',
    inputs: [x, i64(1, 0, 2, 0, -1, 3), mode === 'constant' ? values('f32', [], [7]) : undefined],
    constants: [1],
    attributes: { mode },
  })),
  { name: 'some axes', op: 'Pad', inputs: [x, i64(1, 2), undefined, i64(-2)], constants: [1, 3] },
  {
    name: 'pads as attribute',
    op: 'Pad',
    opset: 10,
    inputs: [floatsIn([2, 3])],
    attributes: { pads: [0, 1, 2, 0], value: float(1.5) },
  },
  {
    name: 'booleans',
    op: 'Tile',
    inputs: [values('bool', [2, 1], [1, 0]), i64(2, 3)],
    constants: [1],
    tolerance: 0,
  },
  { name: 'both ways', op: 'Expand', inputs: [floatsIn([3, 1]), i64(2, 1, 4)], constants: [1] },
  {
    name: 'bytes',
    op: 'Concat',
    inputs: [integersIn('u8', [2, 1], 0, 99), integersIn('u8', [2, 3], 0, 99, 2)],
    attributes: { axis: -1 },
    tolerance: 0,
  },
  {
    name: 'an empty part',
    op: 'Concat',
    inputs: [floatsIn([2, 0]), floatsIn([2, 3], 2)],
    attributes: { axis: 1 },
  },
  {
    name: 'columns first',
    op: 'DepthToSpace',
    inputs: [floatsIn([2, 8, 2, 3])],
    attributes: { blocksize: 2, mode: 'DCR' },
  },
  { name: 'without axes', op: 'Squeeze', inputs: [floatsIn([1, 3, 1])] },
  {
    name: 'axes as attribute',
    op: 'Unsqueeze',
    opset: 11,
    inputs: [floatsIn([3])],
    attributes: { axes: [0, 2] },
  },
  { name: 'a shape of a part', op: 'Shape', inputs: [x], attributes: { start: -2 }, tolerance: 0 },
  {
    name: 'batch last',
    op: 'ReverseSequence',
    inputs: [floatsIn([4, 3, 2]), i64(1, 4, 2)],
    attributes: { time_axis: 0, batch_axis: 1 },
  },
  {
    name: 'batches',
    op: 'Trilu',
    inputs: [floatsIn([2, 3, 4]), values('i64', [], [1])],
    attributes: { upper: 0 },
  },
]);

testOpCases('indexing agrees with onnxruntime', '', [
  {
    name: 'two axes of negative indices',
    op: 'Gather',
    inputs: [x, values('i64', [2, 2], [0, -1, 3, -4])],
    attributes: { axis: 1 },
  },
  {
    name: 'a scalar index drops the axis',
    op: 'Gather',
    inputs: [x, values('i32', [], [2])],
    attributes: { axis: 0 },
  },
  {
    name: 'fewer rows than the data',
    op: 'GatherElements',
    inputs: [x, integersIn('i64', [2, 4, 3], -5, 5)],
    attributes: { axis: 2 },
  },
  {
    name: 'batches',
    op: 'GatherND',
    inputs: [floatsIn([2, 3, 4]), values('i64', [2, 2, 1], [0, 2, 1, -1])],
    attributes: { batch_dims: 1 },
  },
  ...['none', 'add', 'mul', 'max', 'min'].flatMap((reduction): OpCase[] => [
    // with no reduction onnxruntime leaves the order of duplicates open
    {
      name: reduction,
      op: 'ScatterElements',
      inputs: [
        floatsIn([3, 3], 1),
        values('i64', [2, 3], reduction === 'none' ? [0, 1, 2, 1, 0, 0] : [0, 1, 2, 0, 1, 0]),
        floatsIn([2, 3], 2),
      ],
      attributes: { axis: 0, reduction },
    },
    {
      name: reduction,
      op: 'ScatterND',
      inputs: [
        floatsIn([4, 2], 1),
        values('i64', [2, 1], reduction === 'none' ? [3, 1] : [1, 1]),
        floatsIn([2, 2], 2),
      ],
      attributes: { reduction },
    },
  ]),
  {
    name: 'negative indices',
    op: 'OneHot',
    inputs: [i64(0, -1, 5), values('i64', [], [3]), values('f32', [2], [-1, 1])],
    constants: [1],
    attributes: { axis: 0 },
  },
  {
    name: 'ties keep their order',
    op: 'TopK',
    inputs: [values('f32', [6], [1, 3, 3, 2, 3, 0]), i64(4)],
    constants: [1],
    outputs: 2,
  },
  {
    name: 'smallest along the first axis',
    op: 'TopK',
    inputs: [floatsIn([5, 3], 4), i64(2)],
    constants: [1],
    attributes: { axis: 0, largest: 0 },
    outputs: 2,
  },
  {
    name: 'two axes',
    op: 'NonZero',
    inputs: [values('f32', [2, 3], [0, 1, 0, 2, 0, 3])],
    tolerance: 0,
  },
  {
    name: 'without axis',
    op: 'Compress',
    inputs: [floatsIn([2, 3]), values('bool', [4], [0, 1, 0, 1])],
    constants: [1],
  },
]);

testOpCases('reductions agree with onnxruntime', '', [
  ...['Sum', 'Mean', 'Max', 'Min', 'Prod', 'L1', 'L2', 'SumSquare', 'LogSumExp'].map(
    (kind): OpCase => ({
      name: 'two axes, not kept',
      op: `Reduce${kind}`,
      inputs: [x, i64(0, -1)],
      constants: [1],
      attributes: { keepdims: 0 },
    }),
  ),
  { name: 'every axis', op: 'ReduceMax', inputs: [x] },
  {
    name: 'no axis is no reduction',
    op: 'ReduceSum',
    inputs: [x],
    attributes: { noop_with_empty_axes: 1 },
  },
  {
    name: 'axes as attribute',
    op: 'ReduceMean',
    opset: 13,
    inputs: [x],
    attributes: { axes: [1] },
  },
  {
    name: '64-bit integers past 2^53',
    op: 'ReduceSum',
    inputs: [{ dtype: 'i64', shape: [2], data: BigInt64Array.of(2n ** 60n, 1n) }],
    tolerance: 0,
  },
  {
    name: 'large exponents',
    op: 'ReduceLogSumExp',
    inputs: [values('f32', [3], [1000, 1000, -5])],
  },
  {
    name: 'flattened at the axis before opset 13',
    op: 'Softmax',
    opset: 11,
    inputs: [x],
    attributes: { axis: 1 },
  },
  { name: 'last axis by default since opset 13', op: 'LogSoftmax', inputs: [x] },
  {
    name: 'reversed, without itself',
    op: 'CumSum',
    inputs: [x, values('i64', [], [-2])],
    constants: [1],
    attributes: { exclusive: 1, reverse: 1 },
  },
  {
    name: 'ties take the first',
    op: 'ArgMax',
    inputs: [values('f32', [2, 3], [1, 3, 3, 2, 2, 0])],
    attributes: { axis: 1 },
    tolerance: 0,
  },
]);
