/** Shapes of the heavy ops follow named sizes instead of losing them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Attributes } from '../../compiler/ir/attribute.ts';
import { int, ints, string } from '../../compiler/ir/attribute.ts';
import type { Shape } from '../../compiler/ir/dim.ts';
import { FettleError } from '../../runtime/errors.ts';
import { values } from '../support/op-case.ts';
import { ModelBuilder } from '../support/model-builder.ts';

interface SymbolicCase {
  readonly op: string;
  readonly domain?: string;
  readonly inputs: readonly (Shape | undefined)[];
  readonly attributes?: Attributes;
  readonly outputs: readonly (Shape | undefined)[];
}

const contrib = 'com.microsoft';
const cases: readonly SymbolicCase[] = [
  {
    op: 'MatMul',
    inputs: [
      ['batch', 'sequence', 64],
      [64, 96],
    ],
    outputs: [['batch', 'sequence', 96]],
  },
  {
    op: 'Gemm',
    inputs: [['batch', 64], [10, 64], [10]],
    attributes: { transB: int(1) },
    outputs: [['batch', 10]],
  },
  {
    op: 'Einsum',
    inputs: [
      ['b', 'h', 'q', 64],
      ['b', 'h', 'k', 64],
    ],
    attributes: { equation: string('bhqd,bhkd->bhqk') },
    outputs: [['b', 'h', 'q', 'k']],
  },
  {
    op: 'Conv',
    inputs: [
      ['batch', 3, 'height', 'width'],
      [16, 3, 3, 3],
    ],
    attributes: { strides: ints([2, 1]), pads: ints([1, 1, 1, 1]) },
    outputs: [['batch', 16, 'floordiv(height - 1, 2) + 1', 'width']],
  },
  {
    op: 'Conv',
    inputs: [
      ['batch', 3, '2*height', 'width'],
      [16, 3, 3, 3],
    ],
    attributes: { strides: ints([2, 2]), auto_pad: string('SAME_UPPER') },
    outputs: [['batch', 16, 'height', 'floordiv(width + 1, 2)']],
  },
  {
    op: 'ConvTranspose',
    inputs: [
      ['batch', 8, 'height', 'width'],
      [8, 4, 2, 2],
    ],
    attributes: { strides: ints([2, 2]) },
    outputs: [['batch', 4, '2*height', '2*width']],
  },
  {
    op: 'MaxPool',
    inputs: [['batch', 8, 'height', '4*width']],
    attributes: { kernel_shape: ints([2, 2]), strides: ints([2, 2]) },
    outputs: [['batch', 8, 'floordiv(height - 2, 2) + 1', '2*width']],
  },
  {
    op: 'GlobalAveragePool',
    inputs: [['batch', 8, 'height', 'width']],
    outputs: [['batch', 8, 1, 1]],
  },
  {
    op: 'LSTM',
    inputs: [
      ['steps', 'batch', 40],
      [2, 96, 40],
      [2, 96, 24],
    ],
    attributes: { hidden_size: int(24), direction: string('bidirectional') },
    outputs: [
      ['steps', 2, 'batch', 24],
      [2, 'batch', 24],
      [2, 'batch', 24],
    ],
  },
  {
    op: 'Attention',
    inputs: [
      ['batch', 'sequence', 512],
      ['batch', 'sequence', 128],
      ['batch', 'sequence', 128],
      undefined,
      ['batch', 2, 'past', 64],
      ['batch', 2, 'past', 64],
    ],
    attributes: { q_num_heads: int(8), kv_num_heads: int(2) },
    outputs: [
      ['batch', 'sequence', 512],
      ['batch', 2, 'past + sequence', 64],
      ['batch', 2, 'past + sequence', 64],
    ],
  },
  {
    op: 'GroupQueryAttention',
    domain: contrib,
    inputs: [['batch', 'sequence', 768], undefined, undefined, undefined, undefined, ['batch'], []],
    attributes: { num_heads: int(8), kv_num_heads: int(2) },
    outputs: [
      ['batch', 'sequence', 512],
      ['batch', 2, 'sequence', 64],
    ],
  },
  {
    op: 'MultiHeadAttention',
    domain: contrib,
    inputs: [
      ['batch', 'sequence', 512],
      ['batch', 'sequence', 512],
      ['batch', 'sequence', 512],
      undefined,
      undefined,
      undefined,
      ['batch', 8, 'past', 64],
      ['batch', 8, 'past', 64],
    ],
    attributes: { num_heads: int(8) },
    outputs: [
      ['batch', 'sequence', 512],
      ['batch', 8, 'past + sequence', 64],
    ],
  },
  {
    op: 'MatMulNBits',
    domain: contrib,
    inputs: [
      ['batch', 'sequence', 64],
      [96, 2, 16],
      [96, 2],
    ],
    attributes: { N: int(96), K: int(64), bits: int(4), block_size: int(32) },
    outputs: [['batch', 'sequence', 96]],
  },
  {
    op: 'SkipSimplifiedLayerNormalization',
    domain: contrib,
    inputs: [['batch', 'sequence', 64], ['batch', 'sequence', 64], [64]],
    outputs: [
      ['batch', 'sequence', 64],
      ['batch', 'sequence', 1],
      ['batch', 'sequence', 1],
      ['batch', 'sequence', 64],
    ],
  },
];

test('shapes of the heavy ops keep named sizes', () => {
  for (const { op, domain = '', inputs, attributes = {}, outputs } of cases) {
    const builder = new ModelBuilder(23, { [contrib]: 1 });
    const operands = inputs.map((shape, i) => shape && builder.input(`x${i}`, shape));
    const node = builder.rewriter.node(op, operands, attributes, {
      domain,
      outputs: outputs.length,
    });
    outputs.forEach((shape, i) => assert.deepEqual(node.output(i).shape, shape, `${op} ${i}`));
  }
});

test('Resize multiplies named sizes by whole scales and takes sizes as they come', () => {
  const builder = new ModelBuilder(19);
  const x = builder.input('x', ['batch', 3, 'height', 'width']);
  const scales = builder.constant('scales', values('f32', [4], [1, 1, 2, 4]));
  const up = builder.op('Resize', [x, undefined, scales]);
  assert.deepEqual(up.shape, ['batch', 3, '2*height', '4*width']);
  const like = builder.op('Shape', [builder.input('like', ['batch', 3, 'h', 'w'])]);
  const resized = builder.op('Resize', [x, undefined, undefined, like]);
  assert.deepEqual(resized.shape, ['batch', 3, 'h', 'w']);
});

test('operands that cannot fit are refused with the node named', () => {
  const builder = new ModelBuilder(19);
  const wrong: readonly (readonly [string, readonly Shape[], Attributes])[] = [
    [
      'MatMul',
      [
        ['n', 64],
        [32, 8],
      ],
      {},
    ],
    [
      'Conv',
      [
        ['n', 4, 8, 8],
        [16, 3, 3, 3],
      ],
      {},
    ],
    [
      'Conv',
      [
        ['n', 3, 8, 8],
        [16, 3, 3, 3],
      ],
      { strides: ints([1]) },
    ],
    ['MaxPool', [['n', 4, 8, 8]], { kernel_shape: ints([2]) }],
    ['Einsum', [['n', 4]], { equation: string('abc->a') }],
    [
      'LSTM',
      [
        ['n', 4],
        [1, 8, 4],
        [1, 8, 2],
      ],
      {},
    ],
  ];
  wrong.forEach(([op, shapes, attributes], index) => {
    const operands = shapes.map((shape, i) => builder.input(`x${index}_${i}`, shape));
    const name = `${op}_${index}`;
    assert.throws(
      () => builder.op(op, operands, attributes, { name }),
      (error) =>
        error instanceof FettleError &&
        error.code === 'MODEL_INVALID' &&
        error.message.includes(name),
      op,
    );
  });
});
