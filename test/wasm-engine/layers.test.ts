/**
 * Layers on the WASM engine against onnxruntime-web and the reference evaluator: recurrent ones, what changes
 * the size of images, indexing. Every case runs on each binary of this host, alone and shared between three
 * threads, with the same bits.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { expectSame } from '../support/expect-same.ts';
import { hostVariants } from '../support/kernels.ts';
import type { OpCase } from '../support/op-case.ts';
import { buildOpCase, floatsIn, integersIn, values } from '../support/op-case.ts';
import { runOnOrt } from '../support/ort-run.ts';
import { runOnWasm } from '../support/run-on-wasm.ts';

interface LayerCase extends OpCase {
  /** False where onnxruntime-web has no kernel: the evaluator alone is the reference. */
  readonly ort?: boolean;
}

const state = (directions: number, hidden: number, seed: number): Tensor =>
  floatsIn([directions, 2, hidden], seed);

/** A recurrent layer over 5 steps of 2 sequences of 7 values. */
function recurrent(
  op: 'LSTM' | 'GRU' | 'RNN',
  hidden: number,
  direction: 'forward' | 'reverse' | 'bidirectional',
  more: {
    readonly name?: string;
    readonly attributes?: OpCase['attributes'];
    readonly lengths?: readonly number[];
    readonly initial?: boolean;
    readonly peepholes?: boolean;
    readonly bias?: boolean;
  } = {},
): LayerCase {
  const gates = { RNN: 1, GRU: 3, LSTM: 4 }[op];
  const directions = direction === 'bidirectional' ? 2 : 1;
  const lstm = op === 'LSTM';
  const inputs: (Tensor | undefined)[] = [
    floatsIn([5, 2, 7], 1),
    floatsIn([directions, gates * hidden, 7], 2, 0.5),
    floatsIn([directions, gates * hidden, hidden], 3, 0.5),
    more.bias === false ? undefined : floatsIn([directions, 2 * gates * hidden], 4, 0.3),
    more.lengths === undefined ? undefined : values('i32', [2], more.lengths),
    more.initial === true ? state(directions, hidden, 5) : undefined,
    ...(lstm && more.initial === true ? [state(directions, hidden, 6)] : []),
    ...(lstm && more.peepholes === true
      ? [...(more.initial === true ? [] : [undefined]), floatsIn([directions, 3 * hidden], 7, 0.3)]
      : []),
  ];
  return {
    name: `${op} ${direction} ${hidden}${more.name === undefined ? '' : `, ${more.name}`}`,
    op,
    inputs,
    constants: [1, 2, 3, 7].filter((index) => inputs[index] !== undefined),
    attributes: { hidden_size: hidden, direction, ...more.attributes },
    outputs: lstm ? 3 : 2,
  };
}

const images = floatsIn([2, 4, 7, 9], 11);
const sizes = (...list: number[]): Tensor => values('i64', [list.length], list);

function resize(name: string, attributes: OpCase['attributes'], to: readonly number[]): LayerCase {
  return {
    name: `Resize ${name} to ${to.join(' x ')}`,
    op: 'Resize',
    inputs: [images, undefined, undefined, sizes(2, 4, ...to)],
    constants: [3],
    ...(attributes === undefined ? {} : { attributes }),
  };
}

function transposed(name: string, filters: Tensor, attributes: OpCase['attributes']): LayerCase {
  const outputs = (filters.shape[1] ?? 1) * Number(attributes?.['group'] ?? 1);
  return {
    name: `ConvTranspose ${name}`,
    op: 'ConvTranspose',
    inputs: [
      filters.shape.length === 3 ? floatsIn([2, 4, 9], 12) : images,
      filters,
      floatsIn([outputs], 14),
    ],
    constants: [1, 2],
    ...(attributes === undefined ? {} : { attributes }),
  };
}

const cases: readonly LayerCase[] = [
  ...(['LSTM', 'GRU', 'RNN'] as const).flatMap((op) => [
    ...(['forward', 'reverse', 'bidirectional'] as const).map((way) => recurrent(op, 6, way)),
    recurrent(op, 16, 'bidirectional', { name: 'initial states', initial: true }),
    recurrent(op, 8, 'bidirectional', { name: 'sequence lengths', lengths: [5, 3], initial: true }),
    recurrent(op, 5, 'forward', { name: 'no biases', bias: false }),
  ]),
  recurrent('GRU', 6, 'bidirectional', {
    name: 'linear before reset',
    attributes: { linear_before_reset: 1 },
    initial: true,
  }),
  recurrent('LSTM', 6, 'forward', { name: 'peepholes', peepholes: true, initial: true }),
  recurrent('LSTM', 6, 'forward', { name: 'clipped', attributes: { clip: 0.4 } }),
  recurrent('LSTM', 6, 'forward', {
    name: 'other functions',
    attributes: { activations: ['HardSigmoid', 'Relu', 'Tanh'] },
  }),
  transposed('of stride 2', floatsIn([4, 3, 2, 2], 13), { strides: [2, 2] }),
  transposed('with overlaps and pads', floatsIn([4, 3, 4, 3], 13), {
    strides: [2, 3],
    pads: [1, 0, 2, 1],
    output_padding: [1, 0],
  }),
  transposed('in groups', floatsIn([4, 3, 3, 3], 13), {
    group: 2,
    strides: [2, 1],
    pads: [1, 1, 1, 1],
  }),
  transposed('dilated', floatsIn([4, 2, 3, 3], 13), { dilations: [2, 2] }),
  transposed('over one axis', floatsIn([4, 3, 5], 13), { strides: [3], pads: [2, 1] }),
  ...['half_pixel', 'align_corners', 'asymmetric', 'pytorch_half_pixel'].flatMap((way) => [
    resize(`linear ${way}`, { mode: 'linear', coordinate_transformation_mode: way }, [14, 13]),
    resize(`linear ${way}`, { mode: 'linear', coordinate_transformation_mode: way }, [3, 5]),
  ]),
  ...['floor', 'ceil', 'round_prefer_floor', 'round_prefer_ceil'].flatMap((nearest) =>
    ['asymmetric', 'half_pixel'].map((way) =>
      resize(
        `nearest ${nearest} ${way}`,
        { mode: 'nearest', nearest_mode: nearest, coordinate_transformation_mode: way },
        [10, 18],
      ),
    ),
  ),
  resize('cubic', { mode: 'cubic', coordinate_transformation_mode: 'half_pixel' }, [14, 13]),
  ...['reflect', 'edge'].map((mode): LayerCase => ({
    name: `Pad ${mode}`,
    op: 'Pad',
    inputs: [images, sizes(0, 1, 2, 3, 0, 2, 1, 0)],
    constants: [1],
    attributes: { mode },
  })),
  {
    name: 'Pad wrap',
    op: 'Pad',
    inputs: [images, sizes(0, 1, 2, 3, 0, 2, 1, 0)],
    constants: [1],
    attributes: { mode: 'wrap' },
  },
  {
    name: 'Pad that cuts on one side',
    op: 'Pad',
    inputs: [images, sizes(0, 0, -2, 3, 0, 0, 1, -1)],
    constants: [1],
  },
  {
    name: 'InstanceNormalization',
    op: 'InstanceNormalization',
    inputs: [images, floatsIn([4], 15), floatsIn([4], 16)],
    constants: [1, 2],
  },
  {
    name: 'GroupNormalization',
    op: 'GroupNormalization',
    inputs: [images, floatsIn([4], 15), floatsIn([4], 16)],
    constants: [1, 2],
    attributes: { num_groups: 2 },
    ort: false,
  },
  {
    name: 'MatMul over batches that do not merge',
    op: 'MatMul',
    inputs: [floatsIn([3, 1, 2, 5, 6], 17), floatsIn([1, 4, 1, 6, 3], 18)],
  },
  { name: 'MatMul of vectors', op: 'MatMul', inputs: [floatsIn([6], 17), floatsIn([2, 6, 3], 18)] },
  {
    name: 'Gemm that transposes both and weighs',
    op: 'Gemm',
    inputs: [floatsIn([6, 5], 17), floatsIn([3, 6], 18), floatsIn([5, 1], 19)],
    attributes: { transA: 1, transB: 1, alpha: 0.5, beta: 2.5 },
  },
  {
    name: 'TopK along an axis inside',
    op: 'TopK',
    inputs: [images, sizes(3)],
    constants: [1],
    attributes: { axis: 2 },
    outputs: 2,
  },
  {
    name: 'GatherElements',
    op: 'GatherElements',
    inputs: [images, integersIn('i64', [2, 4, 3, 9], -7, 7, 20)],
    attributes: { axis: 2 },
  },
  {
    name: 'GatherND in batches',
    op: 'GatherND',
    inputs: [images, integersIn('i64', [2, 5, 2], 0, 4, 21)],
    attributes: { batch_dims: 1 },
  },
  {
    name: 'ScatterElements that adds, with repeats',
    op: 'ScatterElements',
    inputs: [images, integersIn('i64', [2, 4, 3, 9], 0, 7, 22), floatsIn([2, 4, 3, 9], 23)],
    attributes: { axis: 2, reduction: 'add' },
  },
  {
    name: 'ScatterND',
    op: 'ScatterND',
    inputs: [images, values('i64', [3, 2], [0, 1, 1, 3, 0, 2]), floatsIn([3, 7, 9], 24)],
  },
  {
    name: 'CumSum backwards without itself',
    op: 'CumSum',
    inputs: [images, values('i64', [], [1])],
    constants: [1],
    attributes: { reverse: 1, exclusive: 1 },
  },
  {
    name: 'AveragePool that rounds up, without padding in the mean',
    op: 'AveragePool',
    inputs: [images],
    attributes: { kernel_shape: [3, 2], strides: [2, 2], pads: [1, 0, 1, 1], ceil_mode: 1 },
  },
];

const variants = await hostVariants();

for (const layer of cases)
  test(`${layer.name}: the reference's values, the same bits on any number of threads`, async () => {
    const { model, feeds } = buildOpCase(layer);
    inferModel(model);
    const references = [evaluate(model, feeds)];
    if (layer.ort !== false) references.push(await runOnOrt(encodeModel(model), feeds));
    for (const variant of variants) {
      const got = await runOnWasm(model, feeds, { variant });
      for (const reference of references)
        for (const [name, wanted] of reference) {
          const own = got.get(name);
          assert.ok(own !== undefined, name);
          // f32 sums in another order, and functions of the kernels' own
          expectSame(own, wanted, { tolerance: 2e-5, what: `${variant} ${name}` });
        }
      const shared = await runOnWasm(model, feeds, { variant, threads: 3 });
      for (const [name, { data }] of got) assert.deepEqual(shared.get(name)?.data, data);
    }
  });
