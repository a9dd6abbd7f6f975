/**
 * Raising the opset: every rule on a model in its old spelling, run on onnxruntime-web before and after.
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import type { Attributes } from '../../compiler/ir/attribute.ts';
import { float, floats, int, ints, string } from '../../compiler/ir/attribute.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import type { Model, Value } from '../../compiler/ir/graph.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { upgradeOpset } from '../../compiler/lower/upgrade-opset.ts';
import { upgradeRules } from '../../compiler/lower/upgrade-rules.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { assertFails } from '../support/errors.ts';
import { expectSame } from '../support/expect-same.ts';
import { ModelBuilder } from '../support/model-builder.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { normalValues, uniform } from '../support/random-values.ts';

/** A node with one data input x, constants after it, in its old spelling. */
interface Case {
  readonly op: string;
  readonly opset: number;
  readonly shape: readonly number[];
  readonly attributes?: Attributes;
  /** Further inputs. */
  readonly more?: (b: ModelBuilder) => (Value | undefined)[];
  readonly outputs?: number;
  /** Ops after raising to 21, when not the op itself. */
  readonly becomes?: readonly string[];
}

const random = (shape: readonly number[], seed: number): Tensor => ({
  dtype: 'f32',
  shape,
  data: normalValues(
    shape.reduce((product, dim) => product * dim, 1),
    seed,
  ),
});

const statistics = (b: ModelBuilder): Value[] =>
  ['scale', 'bias', 'mean', 'var'].map((name, index) => {
    const next = uniform(index);
    const data = Float32Array.from({ length: 3 }, () => next() + 0.5);
    return b.floats(name, [3], data);
  });

const cases: readonly Case[] = [
  {
    op: 'BatchNormalization',
    opset: 8,
    shape: [2, 3, 4],
    attributes: { spatial: int(1) },
    more: statistics,
  },
  { op: 'BatchNormalization', opset: 9, shape: [2, 3, 4], more: statistics },
  { op: 'Dropout', opset: 9, shape: [3, 4], attributes: { ratio: float(0.3) } },
  { op: 'Dropout', opset: 11, shape: [3, 4], attributes: { ratio: float(0.3) } },
  { op: 'TopK', opset: 9, shape: [3, 7], attributes: { k: int(2), axis: int(-1) }, outputs: 2 },
  {
    op: 'Slice',
    opset: 9,
    shape: [5, 6, 7],
    attributes: { starts: ints([1, -4]), ends: ints([2n ** 63n - 1n, 6]), axes: ints([0, 2]) },
  },
  { op: 'Slice', opset: 9, shape: [5, 6], attributes: { starts: ints([1]), ends: ints([3]) } },
  {
    op: 'Upsample',
    opset: 8,
    shape: [1, 2, 3, 3],
    attributes: { mode: string('nearest'), scales: floats([1, 1, 2, 1.5]) },
    becomes: ['Resize'],
  },
  {
    op: 'Upsample',
    opset: 9,
    shape: [1, 2, 3, 3],
    attributes: { mode: string('linear') },
    more: (b) => [b.floats('scales', [4], Float32Array.of(1, 1, 2, 2))],
    becomes: ['Resize'],
  },
  ...(
    [
      ['nearest', 1, 1.75],
      ['nearest', 0.5, 0.6],
      ['linear', 1.5, 0.6],
    ] as const
  ).map(([mode, height, width]): Case => ({
    op: 'Resize',
    opset: 10,
    shape: [1, 2, 4, 5],
    attributes: { mode: string(mode) },
    more: (b) => [b.floats('scales', [4], Float32Array.of(1, 1, height, width))],
  })),
  {
    op: 'Resize',
    opset: 11,
    shape: [1, 1, 4, 4],
    attributes: { mode: string('linear') },
    more: (b) => [
      b.floats('roi', [0], new Float32Array()),
      b.floats('scales', [0], new Float32Array()),
      b.integers('sizes', [1, 1, 7, 3]),
    ],
  },
  { op: 'Clip', opset: 10, shape: [3, 4], attributes: { min: float(-0.5), max: float(0.25) } },
  { op: 'Clip', opset: 6 + 1, shape: [3, 4], attributes: { max: float(0.25) } },
  {
    op: 'Pad',
    opset: 10,
    shape: [2, 3],
    attributes: { pads: ints([0, 1, 2, 0]), value: float(7), mode: string('constant') },
  },
  {
    op: 'Scatter',
    opset: 10,
    shape: [3, 3],
    attributes: { axis: int(1) },
    more: (b) => [b.integers('indices', [2, 0], [1, 2]), b.constant('updates', random([1, 2], 9))],
    becomes: ['ScatterElements'],
  },
  { op: 'Squeeze', opset: 11, shape: [1, 3, 1], attributes: { axes: ints([0]) } },
  { op: 'Squeeze', opset: 11, shape: [1, 3, 1] },
  { op: 'Unsqueeze', opset: 11, shape: [3, 2], attributes: { axes: ints([0, 2]) } },
  { op: 'ReduceSum', opset: 11, shape: [3, 2], attributes: { axes: ints([1]), keepdims: int(0) } },
  ...['Mean', 'Max', 'Min', 'L2', 'LogSumExp'].map((name): Case => ({
    op: `Reduce${name}`,
    opset: 13,
    shape: [3, 2, 4],
    attributes: { axes: ints([-1, 0]) },
  })),
  { op: 'ReduceMean', opset: 17, shape: [3, 2] },
  { op: 'Split', opset: 11, shape: [6, 2], attributes: { split: ints([1, 5]) }, outputs: 2 },
  { op: 'Split', opset: 13, shape: [6, 2], outputs: 3 },
  ...['Softmax', 'LogSoftmax', 'Hardmax'].flatMap((op): Case[] => [
    { op, opset: 11, shape: [2, 3, 4], becomes: ['Flatten', op, 'Reshape', 'Shape'] },
    { op, opset: 11, shape: [2, 3, 4], attributes: { axis: int(2) } },
    { op, opset: 11, shape: [2, 3, 4], attributes: { axis: int(-1) } },
  ]),
  {
    op: 'RoiAlign',
    opset: 10,
    shape: [1, 2, 6, 6],
    attributes: { output_height: int(2), output_width: int(2), sampling_ratio: int(2) },
    more: (b) => [
      b.floats('rois', [1, 4], Float32Array.of(0.5, 1, 4.5, 5)),
      b.integers('batch', [0]),
    ],
  },
  {
    op: 'GridSample',
    opset: 16,
    shape: [1, 1, 4, 4],
    attributes: { mode: string('bicubic') },
    more: (b) => [b.constant('grid', random([1, 3, 3, 2], 4))],
  },
  {
    op: 'GridSample',
    opset: 16,
    shape: [1, 1, 4, 4],
    more: (b) => [b.constant('grid', random([1, 3, 3, 2], 4))],
  },
  { op: 'DFT', opset: 17, shape: [2, 4, 1], attributes: { axis: int(1) } },
];

function build({ op, opset, shape, attributes, more, outputs = 1 }: Case): Model {
  const b = new ModelBuilder(opset);
  b.model.irVersion = 4;
  const x = b.input('x', shape);
  const node = b.rewriter.node(op, [x, ...(more?.(b) ?? [])], attributes ?? {}, {
    outputs,
    name: 'it',
  });
  for (let index = 0; index < outputs; index++) b.output(`y${index}`, node.output(index));
  return b.model;
}

for (const example of cases) {
  const { op, opset, attributes = {}, becomes = [op] } = example;
  test(`${op} of opset ${opset} with ${Object.keys(attributes)} means the same in 21`, async () => {
    const [before, after] = [build(example), build(example)];
    upgradeOpset(after, 21);
    inferModel(after);
    verifyModel(after);
    assert.equal(after.opset, 21);
    assert.deepEqual(
      [...after.graph.nodes()].map((node) => node.op).toSorted(),
      becomes.toSorted(),
    );
    after.irVersion = 10;
    // a new node has the name of the old one; onnxruntime wants names to differ
    for (const node of after.graph.nodes()) node.name = '';
    const inputs = new Map([['x', random(example.shape, 1)]]);
    const wanted = await runOnOrt(encodeModel(before), inputs);
    const got = await runOnOrt(encodeModel(after), inputs);
    assert.deepEqual([...got.keys()], [...wanted.keys()]);
    for (const [name, tensor] of wanted) {
      const result = got.get(name);
      assert.ok(result !== undefined);
      // the same kernels; a flattened Softmax may add in another order
      expectSame(result, tensor, { tolerance: 1e-6, what: name });
    }
  });
}

test('what has no equivalent is refused by name, before anything is changed', () => {
  const refusals: readonly (readonly [Case, RegExp])[] = [
    [
      {
        op: 'BatchNormalization',
        opset: 8,
        shape: [2, 3, 4],
        attributes: { spatial: int(0) },
        more: statistics,
      },
      /BatchNormalization "it" cannot be raised from opset 8 to 9/,
    ],
    [
      { op: 'BatchNormalization', opset: 9, shape: [2, 3, 4], more: statistics, outputs: 5 },
      /as in training/,
    ],
    [
      {
        op: 'Resize',
        opset: 10,
        shape: [1, 1, 4, 4],
        more: (b) => [b.floats('scales', [4], Float32Array.of(1, 1, 2, 0.5))],
      },
      /up for some axes and down for others/,
    ],
    [
      {
        op: 'Resize',
        opset: 11,
        shape: [1, 1, 4, 4],
        attributes: { coordinate_transformation_mode: string('tf_half_pixel_for_nn') },
        more: (b) => [undefined, b.floats('scales', [4], Float32Array.of(1, 1, 2, 2))],
      },
      /tf_half_pixel_for_nn/,
    ],
    [
      {
        op: 'GroupNormalization',
        opset: 18,
        shape: [1, 4, 2],
        attributes: { num_groups: int(2) },
        more: (b) => [b.constant('s', random([2], 1)), b.constant('b', random([2], 2))],
      },
      /one per group/,
    ],
  ];
  for (const [example, message] of refusals) {
    const model = build(example);
    assertFails(() => upgradeOpset(model, 21), 'OP_UNSUPPORTED', message);
    assert.equal(model.opset, example.opset);
  }
  const old = build({ op: 'Relu', opset: 6, shape: [2] });
  assertFails(() => upgradeOpset(old, 21), 'OP_UNSUPPORTED', /Opset 6 cannot be raised/);
});

test('subgraphs are raised too', () => {
  const b = new ModelBuilder(11);
  const x = b.input('x', [1, 3]);
  const inner = new ModelBuilder(11);
  const squeezed = inner.op('Squeeze', [x], { axes: ints([0]) });
  inner.output('inner', squeezed);
  const graph = inner.model.graph;
  const condition = b.input('c', [], 'bool');
  const branch = { kind: 'graph', value: graph } as const;
  const other = new ModelBuilder(11);
  other.output('other', other.op('Reshape', [x, b.integers('shape', [3])]));
  const y = b.op('If', [condition], {
    then_branch: branch,
    else_branch: { kind: 'graph', value: other.model.graph },
  });
  b.output('y', y);
  upgradeOpset(b.model, 13);
  const [node] = [...graph.nodes()];
  assert.equal(node?.attributes.size, 0);
  assert.deepEqual(node?.input(1).constant()?.data, BigInt64Array.of(0n));
});

test('every rule has a case or a refusal here', () => {
  const tested = new Set(cases.map(({ op }) => op));
  const refusedOnly = ['Scan', 'GroupNormalization'];
  for (const rule of upgradeRules)
    assert.ok(
      rule.ops.some((op) => tested.has(op) || refusedOnly.includes(op)),
      `${rule.ops} since ${rule.since}`,
    );
});
