/**
 * Ops whose older spelling is not valid, or means something else, in a later opset. In the order of
 * the opset that brought the change; several changes of one op are several rules.
 *
 * Source: https://github.com/onnx/onnx/blob/main/docs/Changelog.md
 */
import type { DType } from '../../runtime/tensor.ts';
import { floatToHalf } from '../../runtime/half.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { int, string } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';

/** A change of one or more ops. */
export interface UpgradeRule {
  /** Opset that brought it. */
  readonly since: number;
  /** Op types. */
  readonly ops: readonly string[];
  /** Why a node cannot follow; undefined when it can. */
  refuse?(node: Node, from: number): string | undefined;
  /** Respells a node. `from` is the opset the model had. */
  upgrade(node: Node, rewriter: Rewriter, from: number): void;
}

const reductions: readonly string[] = [
  'ReduceL1',
  'ReduceL2',
  'ReduceLogSum',
  'ReduceLogSumExp',
  'ReduceMax',
  'ReduceMean',
  'ReduceMin',
  'ReduceProd',
  'ReduceSumSquare',
];

/** Every rule, by the opset that brought the change. */
export const upgradeRules: readonly UpgradeRule[] = [
  {
    since: 9,
    ops: ['BatchNormalization'],
    refuse: (node) =>
      node.int('spatial', 1) === 0 ? 'it normalizes each position on its own' : undefined,
    upgrade: (node, rewriter) => rewriter.setAttribute(node, 'spatial', undefined),
  },
  {
    since: 9,
    ops: ['Scan'],
    refuse: () => 'its batch dimension is gone',
    upgrade: () => undefined,
  },
  {
    since: 10,
    ops: ['Dropout'],
    refuse: (node) =>
      node.outputs[1] !== undefined && node.outputs[1].useCount > 0
        ? 'its mask was no boolean'
        : undefined,
    upgrade: () => undefined,
  },
  { since: 10, ops: ['TopK'], upgrade: intsToInput('k', 1) },
  {
    since: 10,
    ops: ['Slice'],
    upgrade(node, rewriter) {
      for (const [index, name] of ['starts', 'ends', 'axes'].entries())
        intsToInput(name, index + 1)(node, rewriter);
    },
  },
  {
    since: 10,
    ops: ['Upsample'],
    upgrade(node, rewriter) {
      const listed = node.floats('scales');
      const scales =
        node.inputs[1] ??
        rewriter.constant(`${node.name}_scales`, {
          dtype: 'f32',
          shape: [listed?.length ?? 0],
          data: Float32Array.from(listed ?? []),
        });
      respell(node, 'Resize', [node.inputs[0], undefined, scales], rewriter, {
        mode: string(node.string('mode', 'nearest')),
        ...oldResize,
      });
    },
  },
  {
    since: 11,
    ops: ['Resize'],
    refuse: (node, from) =>
      from === 10 && oldNearest(node) === undefined
        ? 'it takes nearest pixels up for some axes and down for others, or by unknown scales'
        : undefined,
    upgrade(node, rewriter, from) {
      if (from < 10) return; // made from Upsample just now
      const nearest = oldNearest(node) ?? 'floor';
      rewriter.setInput(node, 2, node.inputs[1]);
      rewriter.setInput(node, 1, undefined);
      for (const [name, value] of Object.entries(oldResize))
        rewriter.setAttribute(node, name, value);
      rewriter.setAttribute(node, 'nearest_mode', string(nearest));
    },
  },
  {
    since: 11,
    ops: ['Clip'],
    upgrade(node, rewriter) {
      numberToInput('min', 1)(node, rewriter);
      numberToInput('max', 2)(node, rewriter);
    },
  },
  {
    since: 11,
    ops: ['Pad'],
    upgrade(node, rewriter) {
      intsToInput('pads', 1)(node, rewriter);
      numberToInput('value', 2)(node, rewriter);
    },
  },
  {
    since: 11,
    ops: ['Scatter'],
    upgrade: (node, rewriter) =>
      respell(node, 'ScatterElements', node.inputs, rewriter, Object.fromEntries(node.attributes)),
  },
  // the ratio only matters in training, which these opsets did not do
  {
    since: 12,
    ops: ['Dropout'],
    upgrade: (node, rewriter) => rewriter.setAttribute(node, 'ratio', undefined),
  },
  { since: 13, ops: ['ReduceSum', 'Squeeze', 'Unsqueeze'], upgrade: intsToInput('axes', 1) },
  { since: 13, ops: ['Split'], upgrade: intsToInput('split', 1) },
  { since: 13, ops: ['Softmax', 'LogSoftmax', 'Hardmax'], upgrade: flattenedSoftmax },
  {
    since: 13,
    ops: ['Resize'],
    refuse: (node) =>
      node.string('coordinate_transformation_mode') === 'tf_half_pixel_for_nn'
        ? 'its coordinates tf_half_pixel_for_nn are gone'
        : undefined,
    upgrade(node, rewriter) {
      // sizes and scales exclude each other now; an unused one was an empty tensor
      if (node.inputs[3] !== undefined) rewriter.setInput(node, 2, undefined);
    },
  },
  {
    since: 14,
    ops: ['BatchNormalization'],
    // in inference there was one output; listing more, read or not, meant training
    refuse: (node) =>
      node.outputs.slice(1).some((output) => output !== undefined)
        ? 'it normalizes by the statistics of its input, as in training'
        : undefined,
    upgrade: () => undefined,
  },
  {
    since: 16,
    ops: ['RoiAlign'],
    upgrade: (node, rewriter) =>
      rewriter.setAttribute(node, 'coordinate_transformation_mode', string('output_half_pixel')),
  },
  { since: 18, ops: reductions, upgrade: intsToInput('axes', 1) },
  {
    since: 18,
    ops: ['Split'],
    upgrade(node, rewriter) {
      if (node.inputs[1] === undefined)
        rewriter.setAttribute(node, 'num_outputs', int(node.outputs.length));
    },
  },
  {
    since: 20,
    ops: ['DFT'],
    upgrade(node, rewriter) {
      const axis = BigInt64Array.of(BigInt(node.int('axis', 1)));
      const value = rewriter.constant(`${node.name}_axis`, { dtype: 'i64', shape: [], data: axis });
      rewriter.setInput(node, 2, value);
      rewriter.setAttribute(node, 'axis', undefined);
    },
  },
  {
    since: 20,
    ops: ['GridSample'],
    upgrade(node, rewriter) {
      const renamed: Readonly<Record<string, string>> = { bilinear: 'linear', bicubic: 'cubic' };
      const mode = renamed[node.string('mode', 'bilinear')];
      if (mode !== undefined) rewriter.setAttribute(node, 'mode', string(mode));
    },
  },
  {
    since: 21,
    ops: ['GroupNormalization'],
    refuse: () => 'its scale and bias were one per group, and are one per channel now',
    upgrade: () => undefined,
  },
];

/** What Upsample and the first Resize computed. */
const oldResize = {
  coordinate_transformation_mode: string('asymmetric'),
  nearest_mode: string('floor'),
} as const;

/**
 * How the first Resize rounded to nearest pixels, which its text leaves open and onnxruntime does: down
 * where an axis grows, up where it shrinks. Undefined when one word cannot say it.
 */
function oldNearest(node: Node): 'floor' | 'ceil' | undefined {
  if (node.string('mode', 'nearest') !== 'nearest') return 'floor';
  const scales = node.inputs[1]?.constant()?.data;
  if (!(scales instanceof Float32Array)) return undefined;
  if (scales.every((scale) => scale >= 1)) return 'floor';
  return scales.every((scale) => scale <= 1) ? 'ceil' : undefined;
}

/** Moves a list of integers (or one) from an attribute to an input. */
function intsToInput(name: string, index: number): (node: Node, rewriter: Rewriter) => void {
  return (node, rewriter) => {
    const single = node.int(name);
    const values = single === undefined ? node.ints(name) : [single];
    if (values === undefined) return;
    const data = BigInt64Array.from(exactInts(node, name) ?? values.map(BigInt));
    const shape = [data.length];
    rewriter.setInput(
      node,
      index,
      rewriter.constant(`${node.name}_${name}`, { dtype: 'i64', shape, data }),
    );
    rewriter.setAttribute(node, name, undefined);
  };
}

/** The attribute's integers with all 64 bits: a Slice ends at 2^63 - 1. */
function exactInts(node: Node, name: string): readonly bigint[] | undefined {
  const attribute = node.attributes.get(name);
  return attribute?.kind === 'ints' ? attribute.value : undefined;
}

/** Moves a number from an attribute to a scalar input of the dtype of input 0. */
function numberToInput(name: string, index: number): (node: Node, rewriter: Rewriter) => void {
  return (node, rewriter) => {
    const value = node.float(name);
    if (value === undefined) return;
    const scalar = scalarOf(node.inputs[0]?.dtype ?? 'f32', value);
    rewriter.setInput(node, index, rewriter.constant(`${node.name}_${name}`, scalar));
    rewriter.setAttribute(node, name, undefined);
  };
}

function scalarOf(dtype: DType, value: number): Tensor {
  if (dtype === 'f64') return { dtype, shape: [], data: Float64Array.of(value) };
  if (dtype === 'f16') return { dtype, shape: [], data: Uint16Array.of(floatToHalf(value)) };
  return { dtype: 'f32', shape: [], data: Float32Array.of(value) };
}

/**
 * Before opset 13, Softmax ran over all axes from `axis` (default 1) on; since then over that one axis
 * (default -1). The two agree on the last axis; elsewhere the tensor is flattened around it.
 */
function flattenedSoftmax(node: Node, rewriter: Rewriter): void {
  const axis = node.int('axis', 1);
  const x = node.input(0);
  const rank = x.shape?.length;
  if (axis === -1 || axis + 1 === rank) {
    rewriter.setAttribute(node, 'axis', int(axis));
    return;
  }
  rewriter.before(node);
  const shape = rewriter.op('Shape', [x]);
  const flat = rewriter.op('Flatten', [x], { axis: int(axis) });
  const result = rewriter.op('Reshape', [rewriter.op(node.op, [flat], { axis: int(-1) }), shape]);
  rewriter.replace(node.output(), result);
  rewriter.remove(node);
}

/** Replaces a node by one of another op type with the same outputs. */
function respell(
  node: Node,
  op: string,
  inputs: readonly (Value | undefined)[],
  rewriter: Rewriter,
  attributes: Parameters<Rewriter['node']>[2],
): void {
  const present = node.outputs.map((output) => output !== undefined);
  const made = rewriter.before(node).node(op, inputs, attributes, { outputs: present });
  for (const [index, output] of node.outputs.entries())
    if (output !== undefined) rewriter.replace(output, made.output(index));
  rewriter.remove(node);
}
