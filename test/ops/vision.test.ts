/** Convolutions, pools, resizing and sampling agree with onnxruntime-web where ONNX has no case. */
import { float } from '../../compiler/ir/attribute.ts';
import { readNumbers } from '../../compiler/ops/numbers.ts';
import type { OpCase, ShortAttribute } from '../support/op-case.ts';
import { floatsIn, integersIn, testOpCases, values } from '../support/op-case.ts';

const image = floatsIn([2, 4, 7, 9], 1);

testOpCases('convolutions agree with onnxruntime', '', [
  {
    name: 'groups, dilations, uneven padding, bias',
    op: 'Conv',
    inputs: [image, floatsIn([6, 2, 3, 2], 2), floatsIn([6], 3)],
    attributes: { group: 2, dilations: [2, 3], pads: [1, 0, 2, 3], strides: [1, 2] },
  },
  {
    name: 'depthwise, SAME_LOWER',
    op: 'Conv',
    inputs: [image, floatsIn([4, 1, 4, 4], 2)],
    attributes: { group: 4, auto_pad: 'SAME_LOWER', strides: [2, 2] },
  },
  {
    name: 'one dimension, more positions than a tile',
    op: 'Conv',
    inputs: [floatsIn([1, 64, 3000], 1), floatsIn([5, 64, 8], 2)],
    attributes: { pads: [4, 3] },
  },
  {
    name: 'three dimensions',
    op: 'Conv',
    inputs: [floatsIn([1, 3, 5, 6, 7], 1), floatsIn([4, 3, 2, 3, 2], 2)],
    attributes: { auto_pad: 'VALID', strides: [1, 2, 2] },
  },
  {
    name: 'groups, output padding, dilations',
    op: 'ConvTranspose',
    inputs: [image, floatsIn([4, 3, 3, 3], 2), floatsIn([6], 3)],
    attributes: {
      group: 2,
      strides: [2, 3],
      output_padding: [1, 2],
      pads: [1, 0, 1, 1],
      dilations: [2, 1],
    },
  },
  {
    name: 'SAME_UPPER with an odd total',
    op: 'ConvTranspose',
    inputs: [image, floatsIn([4, 3, 4, 4], 2)],
    attributes: { auto_pad: 'SAME_UPPER', strides: [1, 3] },
  },
  {
    name: 'SAME_LOWER with an odd total',
    op: 'ConvTranspose',
    inputs: [image, floatsIn([4, 3, 4, 4], 2)],
    attributes: { auto_pad: 'SAME_LOWER', strides: [1, 3] },
  },
  {
    name: 'output shape with an odd total',
    op: 'ConvTranspose',
    inputs: [image, floatsIn([4, 3, 4, 4], 2)],
    attributes: { output_shape: [15, 20], strides: [2, 2] },
  },
  {
    name: 'unsigned input and weights',
    op: 'ConvInteger',
    inputs: [
      integersIn('u8', [1, 2, 6, 6], 0, 256, 1),
      integersIn('u8', [3, 2, 3, 3], 0, 256, 2),
      values('u8', [], [120]),
      values('u8', [], [130]),
    ],
    attributes: { pads: [1, 1, 1, 1] },
    tolerance: 0,
  },
  {
    name: 'scale per channel, bias, groups',
    op: 'QLinearConv',
    inputs: [
      integersIn('u8', [1, 4, 6, 6], 0, 256, 1),
      values('f32', [], [0.02]),
      values('u8', [], [120]),
      integersIn('i8', [6, 2, 3, 3], -128, 128, 2),
      values('f32', [6], [0.01, 0.02, 0.03, 0.01, 0.02, 0.03]),
      values('i8', [6], [0, 0, 0, 0, 0, 0]),
      values('f32', [], [0.1]),
      values('u8', [], [100]),
      integersIn('i32', [6], -1000, 1000, 3),
    ],
    attributes: { group: 2, pads: [1, 1, 1, 1] },
    constants: [1, 2, 3, 4, 5, 6, 7, 8],
    tolerance: 0,
  },
  {
    name: 'groups, offset groups, mask, bias',
    op: 'DeformConv',
    opset: 19,
    inputs: [
      floatsIn([2, 4, 6, 7], 1),
      floatsIn([6, 2, 3, 2], 2),
      floatsIn([2, 24, 3, 7], 3, 2),
      floatsIn([6], 4),
      floatsIn([2, 12, 3, 7], 5),
    ],
    attributes: {
      group: 2,
      offset_group: 2,
      kernel_shape: [3, 2],
      strides: [2, 1],
      pads: [1, 0, 1, 1],
    },
  },
  {
    name: 'dilations, padding, strides',
    op: 'Col2Im',
    inputs: [floatsIn([2, 18, 16], 1), values('i64', [2], [7, 8]), values('i64', [2], [3, 3])],
    attributes: { dilations: [1, 2], pads: [1, 0, 1, 0], strides: [2, 1] },
  },
]);

const pools = (op: string, list: readonly Readonly<Record<string, ShortAttribute>>[]): OpCase[] =>
  list.map((attributes) => ({ name: JSON.stringify(attributes), op, inputs: [image], attributes }));

testOpCases('pools agree with onnxruntime', '', [
  ...pools('AveragePool', [
    { kernel_shape: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1], ceil_mode: 1 },
    {
      kernel_shape: [3, 3],
      strides: [2, 2],
      pads: [1, 1, 1, 1],
      ceil_mode: 1,
      count_include_pad: 1,
    },
    { kernel_shape: [3, 2], dilations: [2, 3], pads: [1, 1, 0, 1], count_include_pad: 1 },
    { kernel_shape: [3, 2], auto_pad: 'SAME_LOWER', strides: [2, 2] },
  ]),
  ...pools('MaxPool', [
    { kernel_shape: [3, 3], strides: [3, 2], pads: [1, 1, 1, 1], ceil_mode: 1 },
    { kernel_shape: [2, 2], strides: [3, 3], ceil_mode: 1, pads: [0, 0, 1, 1] },
  ]),
  ...[0, 1].map((order): OpCase => ({
    name: `indices in storage order ${order}, dilations`,
    op: 'MaxPool',
    inputs: [image],
    attributes: {
      kernel_shape: [3, 2],
      dilations: [2, 1],
      storage_order: order,
      pads: [1, 0, 0, 1],
    },
    outputs: 2,
  })),
  {
    name: 'bytes',
    op: 'MaxPool',
    inputs: [integersIn('i8', [1, 2, 6, 6], -128, 128, 1)],
    attributes: { kernel_shape: [2, 2], strides: [2, 2] },
    tolerance: 0,
  },
  ...pools('LpPool', [
    { kernel_shape: [3, 2], p: 1, strides: [2, 1] },
    { kernel_shape: [3, 2], p: 3, pads: [1, 1, 1, 1], dilations: [2, 1] },
  ]),
  { name: 'p 3', op: 'GlobalLpPool', opset: 18, inputs: [image], attributes: { p: 3 } },
  { name: 'three dimensions', op: 'GlobalAveragePool', inputs: [floatsIn([2, 3, 2, 3, 4], 1)] },
  {
    name: 'output shape',
    op: 'MaxUnpool',
    inputs: [
      floatsIn([1, 1, 2, 2], 1),
      values('i64', [1, 1, 2, 2], [5, 7, 13, 15]),
      values('i64', [4], [1, 1, 5, 5]),
    ],
    attributes: { kernel_shape: [2, 2], strides: [2, 2] },
  },
  ...['avg', 'max'].flatMap((mode) =>
    ['half_pixel', 'output_half_pixel'].map((corner): OpCase => ({
      name: `${mode}, ${corner}`,
      op: 'RoiAlign',
      opset: 16,
      inputs: [
        image,
        values('f32', [3, 4], [1, 1, 12, 11, 0, 3, 17, 8, 4, 2, 5, 3]),
        values('i64', [3], [0, 1, 1]),
      ],
      attributes: {
        mode,
        coordinate_transformation_mode: corner,
        output_height: 3,
        output_width: 2,
        spatial_scale: 0.5,
        sampling_ratio: corner === 'half_pixel' ? 0 : 2,
      },
    })),
  ),
]);

const scales = (...list: number[]): OpCase['inputs'][number] => values('f32', [list.length], list);
const sizes = (...list: number[]): OpCase['inputs'][number] => values('i64', [list.length], list);
const small = floatsIn([1, 2, 6, 8], 3);

testOpCases('Resize agrees with onnxruntime', '', [
  ...[
    'half_pixel',
    'half_pixel_symmetric',
    'pytorch_half_pixel',
    'align_corners',
    'asymmetric',
  ].flatMap((coordinates) =>
    ['nearest', 'linear', 'cubic'].map((mode): OpCase => ({
      name: `${mode}, ${coordinates}`,
      op: 'Resize',
      inputs: [small, undefined, undefined, sizes(1, 2, 9, 5)],
      attributes: { mode, coordinate_transformation_mode: coordinates },
    })),
  ),
  ...['floor', 'ceil', 'round_prefer_floor', 'round_prefer_ceil'].map((nearest): OpCase => ({
    name: `nearest ${nearest}, asymmetric`,
    op: 'Resize',
    inputs: [small, undefined, scales(1, 1, 0.5, 2)],
    attributes: { nearest_mode: nearest, coordinate_transformation_mode: 'asymmetric' },
  })),
  ...['linear', 'cubic'].map((mode): OpCase => ({
    name: `${mode}, antialias`,
    op: 'Resize',
    inputs: [small, undefined, scales(1, 1, 0.6, 0.4)],
    attributes: { mode, antialias: 1 },
  })),
  {
    name: 'cubic, outside excluded, antialias',
    op: 'Resize',
    inputs: [small, undefined, scales(1, 1, 0.6, 0.5)],
    attributes: { mode: 'cubic', antialias: 1, exclude_outside: 1 },
  },
  {
    name: 'axes in another order',
    op: 'Resize',
    inputs: [small, undefined, undefined, sizes(4, 9)],
    attributes: { mode: 'linear', axes: [3, 2] },
  },
  ...['not_larger', 'not_smaller'].map((policy): OpCase => ({
    name: `sizes, ${policy}`,
    op: 'Resize',
    inputs: [small, undefined, undefined, sizes(7, 5)],
    attributes: { axes: [2, 3], keep_aspect_ratio_policy: policy },
  })),
  {
    name: 'crop with extrapolation',
    op: 'Resize',
    inputs: [small, scales(0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7), undefined, sizes(1, 2, 4, 5)],
    attributes: {
      mode: 'linear',
      coordinate_transformation_mode: 'tf_crop_and_resize',
      extrapolation_value: float(10),
    },
  },
  {
    name: 'opset 10',
    op: 'Resize',
    opset: 10,
    inputs: [small, scales(1, 1, 2, 1.5)],
    attributes: { mode: 'linear' },
    constants: [1],
  },
]);

// centre and size
const boxes = values(
  'f32',
  [2, 30, 4],
  Array.from(readNumbers(floatsIn([2, 30, 4], 1)), (x, i) => (i % 4 < 2 ? 4 * x : 2 + x)),
);
const grid = floatsIn([2, 3, 4, 2], 5, 1.4);

testOpCases('sampling agrees with onnxruntime', '', [
  ...['zeros', 'border', 'reflection'].flatMap((padding) =>
    ['linear', 'nearest', 'cubic'].flatMap((mode) =>
      [0, 1].map((aligned): OpCase => ({
        name: `${mode}, ${padding}, align_corners ${aligned}`,
        op: 'GridSample',
        opset: 20,
        inputs: [image, grid],
        attributes: { mode, padding_mode: padding, align_corners: aligned },
        // the coordinates are single precision there
        tolerance: 1e-4,
      })),
    ),
  ),
  {
    name: 'three dimensions',
    op: 'GridSample',
    opset: 20,
    inputs: [floatsIn([1, 2, 3, 4, 5], 1), floatsIn([1, 2, 3, 4, 3], 2, 1.3)],
    attributes: { mode: 'linear', padding_mode: 'border' },
    tolerance: 1e-4,
  },
  ...[0, 1].flatMap((aligned) =>
    [sizes(2, 3, 4, 5), sizes(2, 3, 2, 4, 5)].map((size, i): OpCase => ({
      name: `${i + 2} axes, align_corners ${aligned}`,
      op: 'AffineGrid',
      opset: 20,
      inputs: [floatsIn([2, i + 2, i + 3], 1), size],
      attributes: { align_corners: aligned },
    })),
  ),
  {
    name: 'crops one axis and pads another',
    op: 'CenterCropPad',
    inputs: [floatsIn([5, 4, 3], 1), sizes(2, 7)],
    attributes: { axes: [0, 1] },
  },
  {
    name: 'crops and pads by odd and even numbers',
    op: 'CenterCropPad',
    inputs: [floatsIn([5, 4], 1), sizes(8, 1)],
  },
  {
    name: 'centred boxes, several classes and batches',
    op: 'NonMaxSuppression',
    inputs: [
      boxes,
      floatsIn([2, 3, 30], 2),
      values('i64', [1], [6]),
      values('f32', [1], [0.3]),
      values('f32', [1], [-0.5]),
    ],
    attributes: { center_point_box: 1 },
  },
]);
