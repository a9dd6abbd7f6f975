/**
 * Resize and Upsample: nearest, linear and cubic in any number of dimensions.
 *
 * Interpolation is separable, so every axis becomes a table of `taps` source cells and weights per
 * output cell, and the axes are applied one after the other.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__Resize.html; cubic after R. Keys, "Cubic convolution
 * interpolation for digital image processing" (1981).
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import { isStatic, multiplyDims } from '../ir/dim.ts';
import type { Node, ValueType } from '../ir/graph.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { floatsOf } from './dense.ts';
import type { Floats } from './gemm.ts';
import { writeNumbers } from './numbers.ts';
import { splitAtAxis } from './shapes.ts';
import type { OpPlace } from './support.ts';
import { normalizeAxes, opError } from './support.ts';

/** How one axis is resampled. */
interface Sampling {
  readonly mode: string;
  readonly nearest: string;
  readonly coordinates: string;
  readonly cubicA: number;
  readonly excludeOutside: boolean;
  readonly antialias: boolean;
}

/** One axis: sizes, their ratio, and the region of interest in 0 … 1. */
export interface AxisPlan {
  readonly axis: number;
  readonly input: number;
  readonly output: number;
  readonly scale: number;
  readonly roi: readonly [start: number, end: number];
}

/** For each output cell, `taps` source cells and weights; -1 marks a cell to be extrapolated. */
export interface AxisTable {
  readonly taps: number;
  readonly cells: Int32Array;
  readonly weights: Float64Array;
}

function samplingOf(node: Node, legacy: boolean): Sampling {
  return {
    mode: node.string('mode', 'nearest'),
    nearest: legacy ? 'floor' : node.string('nearest_mode', 'round_prefer_floor'),
    coordinates: legacy
      ? 'asymmetric'
      : node.string('coordinate_transformation_mode', 'half_pixel'),
    cubicA: node.float('cubic_coeff_a', -0.75),
    excludeOutside: node.int('exclude_outside', 0) !== 0,
    antialias: node.int('antialias', 0) !== 0,
  };
}

/** Where output cell `x` lies in the input. */
function sourceOf(place: OpPlace, coordinates: string, plan: AxisPlan, x: number): number {
  const { input, output, scale, roi } = plan;
  // the spec's length_resized is this product, which need not be whole
  const stretched = scale * input;
  switch (coordinates) {
    case 'half_pixel':
      return (x + 0.5) / scale - 0.5;
    case 'half_pixel_symmetric':
      return (input / 2) * (1 - output / stretched) + (x + 0.5) / scale - 0.5;
    case 'pytorch_half_pixel':
      return output === 1 ? 0 : (x + 0.5) / scale - 0.5;
    case 'align_corners':
      return stretched === 1 || output === 1 ? 0 : (x * (input - 1)) / (stretched - 1);
    case 'asymmetric':
      return x / scale;
    case 'tf_half_pixel_for_nn':
      return (x + 0.5) / scale;
    case 'tf_crop_and_resize': {
      const [start, end] = roi;
      if (output === 1) return ((start + end) * (input - 1)) / 2;
      return start * (input - 1) + (x * (end - start) * (input - 1)) / (output - 1);
    }
    default:
      throw opError(place, `unknown coordinate_transformation_mode "${coordinates}"`);
  }
}

/** Weights of the cells around a source position; `ratio` in (0, 1] is its distance to the left one. */
function tapWeights(place: OpPlace, sampling: Sampling, ratio: number, scale: number): number[] {
  const { mode, antialias, cubicA: a } = sampling;
  if (mode === 'nearest') return nearestWeights(place, sampling.nearest, ratio);
  if (mode !== 'linear' && mode !== 'cubic') throw opError(place, `unknown mode "${mode}"`);
  const radius = mode === 'linear' ? 1 : 2;
  const stretch = antialias ? Math.min(1, scale) : 1;
  const start = Math.floor(-radius / stretch) + 1;
  const count = 2 - 2 * start;
  const weights = Array.from({ length: count }, (_, i) => {
    const distance = Math.abs((start + i - ratio) * stretch);
    return mode === 'linear' ? Math.max(0, 1 - distance) : cubicWeight(distance, a);
  });
  if (stretch === 1) return weights;
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => weight / sum);
}

function cubicWeight(x: number, a: number): number {
  if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}

function nearestWeights(place: OpPlace, mode: string, ratio: number): number[] {
  const left = [1, 0];
  const right = [0, 1];
  if (ratio === 1) return right;
  if (mode === 'round_prefer_floor') return ratio <= 0.5 ? left : right;
  if (mode === 'round_prefer_ceil') return ratio < 0.5 ? left : right;
  if (mode === 'floor') return left;
  if (mode === 'ceil') return right;
  throw opError(place, `unknown nearest_mode "${mode}"`);
}

function tableOf(place: OpPlace, sampling: Sampling, plan: AxisPlan): AxisTable {
  const { input, output, scale } = plan;
  const rows = Array.from({ length: output }, (_, x) => {
    const source = sourceOf(place, sampling.coordinates, plan, x);
    const outside = source < 0 || source > input - 1;
    const left = Number.isInteger(source) ? source - 1 : Math.floor(source);
    const weights = tapWeights(place, sampling, source - left, scale);
    const start = left - (weights.length / 2 - 1);
    if (sampling.excludeOutside) keepInside(weights, start, input);
    const extrapolated = sampling.coordinates === 'tf_crop_and_resize' && outside;
    return { start, weights, extrapolated };
  });
  const taps = Math.max(1, ...rows.map((row) => row.weights.length));
  const cells = new Int32Array(output * taps);
  const table = new Float64Array(output * taps);
  rows.forEach(({ start, weights, extrapolated }, x) =>
    weights.forEach((weight, tap) => {
      table[x * taps + tap] = weight;
      cells[x * taps + tap] = extrapolated ? -1 : Math.min(input - 1, Math.max(0, start + tap));
    }),
  );
  return { taps, cells, weights: table };
}

function keepInside(weights: number[], start: number, size: number): void {
  weights.forEach((_, tap) => {
    if (start + tap < 0 || start + tap >= size) weights[tap] = 0;
  });
  const sum = weights.reduce((total, weight) => total + weight, 0);
  if (sum !== 0) weights.forEach((weight, tap) => (weights[tap] = weight / sum));
}

/** Resamples one axis. */
function applyAxis(
  x: Floats,
  shape: readonly number[],
  plan: AxisPlan,
  { taps, cells, weights }: AxisTable,
  extrapolation: number,
): Float64Array {
  const [outer, size, inner] = splitAtAxis(shape, plan.axis);
  const result = new Float64Array(outer * plan.output * inner);
  for (let o = 0; o < outer; o++)
    for (let to = 0; to < plan.output; to++)
      for (let tap = to * taps; tap < (to + 1) * taps; tap++) {
        const weight = weights[tap] as number;
        const cell = cells[tap] as number;
        if (weight === 0) continue;
        const from = (o * size + cell) * inner;
        const target = (o * plan.output + to) * inner;
        for (let i = 0; i < inner; i++) {
          const value = cell < 0 ? extrapolation : (x[from + i] as number);
          result[target + i] = (result[target + i] as number) + weight * value;
        }
      }
  return result;
}

/** Inputs and attributes by opset: Upsample 7 and 9, Resize 10, Resize 11 and later. */
interface Request {
  readonly legacy: boolean;
  readonly scales: number;
  readonly sizes: number;
  readonly roi: number;
}

function requestOf(node: Node, opset: number): Request {
  const legacy = node.op === 'Upsample' || opset < 11;
  return legacy
    ? { legacy, scales: 1, sizes: -1, roi: -1 }
    : { legacy, scales: 2, sizes: 3, roi: 1 };
}

/** Output size when scales are given for symbolic sizes. */
function scaledDim(context: InferContext, size: Dim, scale: number): Dim {
  if (typeof size === 'number') return Math.floor(size * scale);
  return Number.isInteger(scale) ? multiplyDims(size, scale) : context.fresh();
}

/** Sizes and scales of every axis, once the input's shape and one of the lists are known. */
function resolve(
  place: OpPlace,
  shape: readonly number[],
  axes: readonly number[],
  scales: readonly number[] | undefined,
  sizes: readonly number[] | undefined,
): { readonly output: readonly number[]; readonly scale: readonly number[] } {
  const output = [...shape];
  const scale = shape.map(() => 1);
  const list = sizes ?? scales;
  if (list === undefined) throw opError(place, 'neither scales nor sizes are given');
  if (list.length !== axes.length)
    throw opError(place, `${list.length} scales or sizes for ${axes.length} axes`);
  const policy = place.node.string('keep_aspect_ratio_policy', 'stretch');
  const ratios = axes.map((axis, i) =>
    sizes === undefined ? (scales?.[i] ?? 1) : (sizes[i] ?? 1) / (shape[axis] ?? 1),
  );
  const common = policy === 'not_larger' ? Math.min(...ratios) : Math.max(...ratios);
  axes.forEach((axis, i) => {
    const size = shape[axis] ?? 1;
    const keep = sizes !== undefined && policy !== 'stretch';
    scale[axis] = keep ? common : (ratios[i] ?? 1);
    if (sizes === undefined) output[axis] = Math.floor(size * (ratios[i] ?? 1));
    else output[axis] = keep ? Math.floor(common * size + 0.5) : (sizes[i] ?? 1);
  });
  return { output, scale };
}

function axesOf(place: OpPlace, rank: number): number[] {
  const axes = place.node.ints('axes') ?? Array.from({ length: rank }, (_, axis) => axis);
  return normalizeAxes(place, axes, rank);
}

function inferResize(context: InferContext): ValueType[] {
  const { node } = context;
  const request = requestOf(context.node, context.opset);
  const { dtype, shape } = context.input(0);
  if (shape === undefined) return [{ dtype }];
  const axes = axesOf(context, shape.length);
  const sizes = context.has(request.sizes) ? context.elements(request.sizes) : undefined;
  const constant = context.has(request.scales) ? context.constant(request.scales) : undefined;
  const scales = node.floats('scales') ?? (constant && Array.from(floatsOf(constant)));
  const known = scales !== undefined && scales.length > 0 ? scales : undefined;
  if (isStatic(shape) && (known !== undefined || isStatic(sizes)))
    return [
      {
        dtype,
        shape: resolve(context, shape, axes, known, isStatic(sizes) ? sizes : undefined).output,
      },
    ];
  const policy = node.string('keep_aspect_ratio_policy', 'stretch');
  const result: Dim[] = [...shape];
  axes.forEach((axis, i) => {
    const size = policy === 'stretch' ? sizes?.[i] : undefined;
    const scale = known?.[i];
    result[axis] =
      scale === undefined ? (size ?? context.fresh()) : scaledDim(context, shape[axis] ?? 1, scale);
  });
  return [{ dtype, shape: result satisfies Shape }];
}

/** The axes of a Resize or Upsample that change, each with its table, in the order of the node. */
export interface Resampling {
  /** Shape of the result. */
  readonly output: readonly number[];
  readonly axes: readonly { readonly plan: AxisPlan; readonly table: AxisTable }[];
  /** What lies outside the region of interest. */
  readonly extrapolation: number;
}

/**
 * How a node resamples an input of this shape.
 *
 * @param listed - numbers of an input of the node; undefined when it is absent or empty
 */
export function resampling(
  place: OpPlace,
  opset: number,
  input: readonly number[],
  listed: (index: number) => readonly number[] | undefined,
): Resampling {
  const { node } = place;
  const request = requestOf(node, opset);
  const axes = axesOf(place, input.length);
  const scales = node.floats('scales') ?? listed(request.scales);
  const { output, scale } = resolve(place, input, axes, scales, listed(request.sizes));
  const sampling = samplingOf(node, request.legacy);
  const roi = sampling.coordinates === 'tf_crop_and_resize' ? listed(request.roi) : undefined;
  const changed = axes.flatMap((axis, i) => {
    const [size, target] = [input[axis] ?? 1, output[axis] ?? 1];
    const region: [number, number] = [roi?.[i] ?? 0, roi?.[i + axes.length] ?? 1];
    const cropped = region[0] !== 0 || region[1] !== 1;
    if (size === target && scale[axis] === 1 && !cropped) return [];
    const plan = { axis, input: size, output: target, scale: scale[axis] ?? 1, roi: region };
    return [{ plan, table: tableOf(place, sampling, plan) }];
  });
  return { output, axes: changed, extrapolation: node.float('extrapolation_value', 0) };
}

function evaluateResize(context: EvaluateContext): Tensor {
  const x = context.input(0);
  const listed = (index: number): number[] | undefined => {
    const tensor = context.inputs[index];
    const values = tensor && Array.from(floatsOf(tensor));
    return values?.length === 0 ? undefined : values;
  };
  const { axes, extrapolation } = resampling(context, context.opset, x.shape, listed);
  let values = floatsOf(x);
  let shape: readonly number[] = x.shape;
  for (const { plan, table } of axes) {
    values = applyAxis(values, shape, plan, table, extrapolation);
    shape = shape.map((dim, axis) => (axis === plan.axis ? plan.output : dim));
  }
  return writeNumbers(x.dtype, shape, values);
}

const resize: OpDefinition = {
  op: 'Resize',
  domain: '',
  inputs: [1, 4],
  outputs: [1, 1],
  infer: inferResize,
  evaluate: (context) => [evaluateResize(context)],
};

/** Resize and Upsample. */
export const resizeOps: readonly OpDefinition[] = [
  resize,
  { ...resize, op: 'Upsample', inputs: [1, 2] },
];
