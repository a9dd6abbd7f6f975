/**
 * Pooling: MaxPool with indices, AveragePool, LpPool, their global forms, MaxUnpool, RoiAlign.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__MaxPool.html, AveragePool, LpPool, MaxUnpool; RoiAlign
 * after "Mask R-CNN", https://arxiv.org/abs/1703.06870.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { addDims, isStatic, multiplyDims } from '../ir/dim.ts';
import type { ValueType } from '../ir/graph.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { floatsFor, floatsOf, integersOf, spanOf } from './dense.ts';
import type { Floats } from './gemm.ts';
import { writeNumbers } from './numbers.ts';
import { opError } from './support.ts';
import type { Window } from './window.ts';
import {
  extentOf,
  paddedTapCounts,
  resolveWindow,
  windowAttributes,
  windowCount,
  windowOffsets,
} from './window.ts';

function poolShape(context: InferContext): ValueType['shape'] {
  const { shape } = context.input(0);
  const kernel = context.node.ints('kernel_shape');
  if (kernel === undefined) throw opError(context, 'kernel_shape is missing');
  if (shape === undefined) return undefined;
  if (shape.length !== kernel.length + 2)
    throw opError(context, `input has rank ${shape.length}, wanted ${kernel.length + 2}`);
  const attributes = windowAttributes(context.node, kernel);
  const sizes = shape.slice(2).map((size, axis) => windowCount(attributes, axis, size));
  return [...shape.slice(0, 2), ...sizes];
}

function poolWindow(context: EvaluateContext): Window {
  const kernel = context.node.ints('kernel_shape') ?? [];
  const input = context.input(0).shape.slice(2);
  return resolveWindow(windowAttributes(context.node, kernel), input);
}

/** Reduces every window of every channel. `taps` are offsets into the plane at `start`; -1 is padding. */
function pool(
  x: Floats,
  planes: number,
  window: Window,
  reduce: (start: number, position: number, offsets: Int32Array, count: number) => number,
): Float64Array {
  const offsets = windowOffsets(window);
  const count = elementCount(window.output);
  const plane = elementCount(window.input);
  const result = new Float64Array(planes * count);
  for (let p = 0; p < planes; p++)
    for (let position = 0; position < count; position++)
      result[p * count + position] = reduce(p * plane, position, offsets, count);
  return result;
}

function poolOp(
  op: string,
  evaluate: (context: EvaluateContext, window: Window, x: Floats, planes: number) => Float64Array,
): OpDefinition {
  return {
    op,
    domain: '',
    inputs: [1, 1],
    outputs: [1, 1],
    infer: (context) => [{ dtype: context.input(0).dtype, shape: poolShape(context) }],
    evaluate(context) {
      const x = context.input(0);
      const window = poolWindow(context);
      const [batch = 1, channels = 1] = x.shape;
      const values = evaluate(context, window, floatsOf(x), batch * channels);
      return [writeNumbers(x.dtype, [batch, channels, ...window.output], values)];
    },
    cost(node, shapeOf) {
      const out = spanOf(shapeOf(node.output()), 0);
      const taps = elementCount(node.ints('kernel_shape') ?? []);
      return { flops: out * taps, bytes: 4 * (spanOf(shapeOf(node.input(0)), 0) + out) };
    },
  };
}

const averagePool = poolOp('AveragePool', (context, window, x, planes) => {
  const taps = elementCount(window.kernel);
  const padded = context.node.int('count_include_pad', 0) !== 0;
  const divisors = padded ? paddedTapCounts(window) : undefined;
  return pool(x, planes, window, (start, position, offsets, count) => {
    let sum = 0;
    let inside = 0;
    for (let tap = 0; tap < taps; tap++) {
      const offset = offsets[tap * count + position] as number;
      if (offset < 0) continue;
      sum += x[start + offset] as number;
      inside++;
    }
    return sum / (divisors?.[position] ?? Math.max(1, inside));
  });
});

const lpPool = poolOp('LpPool', (context, window, x, planes) => {
  const taps = elementCount(window.kernel);
  const p = exponentOf(context);
  return pool(x, planes, window, (start, position, offsets, count) => {
    let sum = 0;
    for (let tap = 0; tap < taps; tap++) {
      const offset = offsets[tap * count + position] as number;
      if (offset >= 0) sum += Math.abs(x[start + offset] as number) ** p;
    }
    return sum ** (1 / p);
  });
});

/** `p` was a float in opset 1. */
function exponentOf({ node }: { readonly node: EvaluateContext['node'] }): number {
  return node.float('p') ?? node.int('p', 2);
}

const maxPool: OpDefinition = {
  ...poolOp('MaxPool', () => new Float64Array(0)),
  outputs: [1, 2],
  infer(context) {
    const shape = poolShape(context);
    return [
      { dtype: context.input(0).dtype, shape },
      { dtype: 'i64', shape },
    ];
  },
  evaluate(context) {
    const input = context.input(0);
    const x = floatsOf(input);
    const window = poolWindow(context);
    const [batch = 1, channels = 1] = input.shape;
    const taps = elementCount(window.kernel);
    const count = elementCount(window.output);
    const plane = elementCount(window.input);
    const winners = new Float64Array(batch * channels * count);
    const values = pool(x, batch * channels, window, (start, position, offsets) => {
      let best = -Infinity;
      let where = -1;
      for (let tap = 0; tap < taps; tap++) {
        const offset = offsets[tap * count + position] as number;
        if (offset < 0) continue;
        const value = x[start + offset] as number;
        if (where >= 0 && !(value > best) && !Number.isNaN(value)) continue;
        [best, where] = [value, offset];
        if (Number.isNaN(value)) break;
      }
      winners[(start / plane) * count + position] = start + where;
      return best;
    });
    const shape = [batch, channels, ...window.output];
    if (context.node.int('storage_order', 0) === 1) columnMajor(winners, window.input);
    return [writeNumbers(input.dtype, shape, values), writeNumbers('i64', shape, winners)];
  },
};

/** Renumbers the cells of every plane with the first spatial dimension running fastest. */
function columnMajor(indices: Float64Array, spatial: readonly number[]): void {
  const plane = elementCount(spatial);
  for (let i = 0; i < indices.length; i++) {
    const index = indices[i] ?? 0;
    let rest = index % plane;
    let stride = plane;
    let flipped = 0;
    for (let axis = spatial.length - 1; axis >= 0; axis--) {
      const size = spatial[axis] ?? 1;
      stride /= size;
      flipped += (rest % size) * stride;
      rest = Math.floor(rest / size);
    }
    indices[i] = index - (index % plane) + flipped;
  }
}

function globalPool(
  op: string,
  reduce: (x: Floats, start: number, size: number, context: EvaluateContext) => number,
): OpDefinition {
  return {
    op,
    domain: '',
    inputs: [1, 1],
    outputs: [1, 1],
    infer(context) {
      const { dtype, shape } = context.input(0);
      return [{ dtype, shape: shape?.map((size, axis): Dim => (axis < 2 ? size : 1)) }];
    },
    evaluate(context) {
      const x = context.input(0);
      const size = spanOf(x.shape, 2);
      const shape = x.shape.map((dim, axis) => (axis < 2 ? dim : 1));
      const out = floatsFor(x.dtype, elementCount(shape));
      const values = floatsOf(x);
      for (let i = 0; i < out.length; i++) out[i] = reduce(values, i * size, size, context);
      return [writeNumbers(x.dtype, shape, out)];
    },
  };
}

const globalAveragePool = globalPool('GlobalAveragePool', (x, start, size) => {
  let sum = 0;
  for (let i = start; i < start + size; i++) sum += x[i] as number;
  return sum / size;
});

const globalMaxPool = globalPool('GlobalMaxPool', (x, start, size) => {
  let best = -Infinity;
  for (let i = start; i < start + size; i++) best = Math.max(best, x[i] as number);
  return best;
});

const globalLpPool = globalPool('GlobalLpPool', (x, start, size, context) => {
  const p = exponentOf(context);
  let sum = 0;
  for (let i = start; i < start + size; i++) sum += Math.abs(x[i] as number) ** p;
  return sum ** (1 / p);
});

const maxUnpool: OpDefinition = {
  op: 'MaxUnpool',
  domain: '',
  inputs: [2, 3],
  outputs: [1, 1],
  infer(context) {
    const { dtype, shape } = context.input(0);
    if (context.has(2)) {
      const sizes = context.elements(2);
      return [{ dtype, shape: sizes ?? shape?.map(() => context.fresh()) }];
    }
    return [{ dtype, shape: shape && unpooledShape(context, shape) }];
  },
  evaluate(context) {
    const x = context.input(0);
    const given = context.inputs[2];
    const sizes = given === undefined ? unpooledShape(context, x.shape) : integersOf(given);
    if (!isStatic(sizes)) throw opError(context, 'the output shape is not known');
    const out = floatsFor(x.dtype, elementCount(sizes));
    const [values, indices] = [floatsOf(x), floatsOf(context.input(1))];
    indices.forEach((index, i) => {
      if (index < 0 || index >= out.length) throw opError(context, `index ${index} is outside`);
      out[index] = values[i] ?? 0;
    });
    return [writeNumbers(x.dtype, sizes, out)];
  },
};

function unpooledShape(context: InferContext | EvaluateContext, shape: readonly Dim[]): Dim[] {
  const attributes = windowAttributes(context.node, context.node.ints('kernel_shape') ?? []);
  const rank = attributes.kernel.length;
  return shape.map((size, axis) => {
    if (axis < 2) return size;
    const stride = attributes.strides[axis - 2] ?? 1;
    const pads = (attributes.pads[axis - 2] ?? 0) + (attributes.pads[axis - 2 + rank] ?? 0);
    const extent = extentOf(attributes, axis - 2);
    // (size - 1) * stride + extent - pads
    return addDims(multiplyDims(stride, size), extent - pads - stride);
  });
}

/** Inputs: x [N, C, H, W], rois [count, 4] as x1 y1 x2 y2, batch_indices [count]. */
const roiAlign: OpDefinition = {
  op: 'RoiAlign',
  domain: '',
  inputs: [3, 3],
  outputs: [1, 1],
  infer(context) {
    const { dtype, shape } = context.input(0);
    const count = context.input(1).shape?.[0] ?? context.input(2).shape?.[0];
    const height = context.node.int('output_height', 1);
    const width = context.node.int('output_width', 1);
    return [{ dtype, shape: shape && [count ?? context.fresh(), shape[1] ?? 1, height, width] }];
  },
  evaluate: (context) => [evaluateRoiAlign(context)],
};

function evaluateRoiAlign(context: EvaluateContext): Tensor {
  const { node } = context;
  const x = context.input(0);
  const [data, rois, batches] = [x, context.input(1), context.input(2)].map(floatsOf);
  const [, channels = 1, height = 1, width = 1] = x.shape;
  const count = batches?.length ?? 0;
  const [rows, columns] = [node.int('output_height', 1), node.int('output_width', 1)];
  const scale = node.float('spatial_scale', 1);
  const sampling = node.int('sampling_ratio', 0);
  const largest = node.string('mode', 'avg') === 'max';
  const fallback = context.opset >= 16 ? 'half_pixel' : 'output_half_pixel';
  const half = node.string('coordinate_transformation_mode', fallback) === 'half_pixel';
  const out = floatsFor(x.dtype, count * channels * rows * columns);
  for (let r = 0; r < count; r++) {
    const edge = (i: number): number => (rois?.[4 * r + i] ?? 0) * scale - (half ? 0.5 : 0);
    const extent = (from: number, to: number): number =>
      half ? edge(to) - edge(from) : Math.max(1, edge(to) - edge(from));
    const [binHeight, binWidth] = [extent(1, 3) / rows, extent(0, 2) / columns];
    const samplesY = sampling > 0 ? sampling : Math.ceil(binHeight);
    const samplesX = sampling > 0 ? sampling : Math.ceil(binWidth);
    for (let c = 0; c < channels; c++) {
      const plane = ((batches?.[r] ?? 0) * channels + c) * height * width;
      for (let bin = 0; bin < rows * columns; bin++) {
        const [row, column] = [Math.floor(bin / columns), bin % columns];
        let [sum, best] = [0, -Infinity];
        for (let sample = 0; sample < samplesY * samplesX; sample++) {
          const iy = Math.floor(sample / samplesX);
          const y = edge(1) + (row + (iy + 0.5) / samplesY) * binHeight;
          const at = edge(0) + (column + ((sample % samplesX) + 0.5) / samplesX) * binWidth;
          const corners = bilinearTerms(data ?? new Float32Array(0), plane, height, width, y, at);
          sum += corners.reduce((total, term) => total + term, 0);
          best = Math.max(best, ...corners);
        }
        const samples = samplesY * samplesX;
        const value = samples === 0 ? 0 : largest ? best : sum / samples;
        out[(r * channels + c) * rows * columns + bin] = value;
      }
    }
  }
  return writeNumbers(x.dtype, [count, channels, rows, columns], out);
}

/** The four weighted neighbours of a point; zeros more than one cell outside. */
function bilinearTerms(
  data: Floats,
  plane: number,
  height: number,
  width: number,
  y: number,
  x: number,
): readonly number[] {
  if (y < -1 || y > height || x < -1 || x > width) return [0, 0, 0, 0];
  const [top, left] = [Math.min(Math.max(y, 0), height - 1), Math.min(Math.max(x, 0), width - 1)];
  const [y0, x0] = [Math.floor(top), Math.floor(left)];
  const [y1, x1] = [Math.min(y0 + 1, height - 1), Math.min(x0 + 1, width - 1)];
  const [fy, fx] = [top - y0, left - x0];
  const at = (row: number, column: number): number => data[plane + row * width + column] ?? 0;
  return [
    (1 - fy) * (1 - fx) * at(y0, x0),
    (1 - fy) * fx * at(y0, x1),
    fy * (1 - fx) * at(y1, x0),
    fy * fx * at(y1, x1),
  ];
}

/** Pooling. */
export const poolOps: readonly OpDefinition[] = [
  maxPool,
  averagePool,
  lpPool,
  globalAveragePool,
  globalMaxPool,
  globalLpPool,
  maxUnpool,
  roiAlign,
];
