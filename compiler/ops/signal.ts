/**
 * Spectra: DFT, STFT, MelWeightMatrix. Complex numbers are a last axis of two; a last axis of one is
 * real. Transforms are computed term by term, which is slow and exact enough to compare with.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { addDims, divideDims, subtractDims } from '../ir/dim.ts';
import type { ValueType } from '../ir/graph.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { readNumbers, readScalar, writeNumbers } from './numbers.ts';
import { splitAtAxis } from './shapes.ts';
import { dtypeAttribute, normalizeAxis, onnxOp, opError } from './support.ts';

/** Sums `x[t] · exp(sign · 2πi · k · t / length)` over t for one k. */
function transformBin(
  at: (t: number) => readonly [re: number, im: number],
  length: number,
  k: number,
  sign: number,
): readonly [re: number, im: number] {
  let [re, im] = [0, 0];
  for (let t = 0; t < length; t++) {
    // reduced to one turn first, which keeps the angle exact
    const angle = (sign * 2 * Math.PI * ((k * t) % length)) / length;
    const [x, y] = at(t);
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    re += x * cos - y * sin;
    im += x * sin + y * cos;
  }
  return [re, im];
}

/** Number of bins: half of them, and the middle, when the other half mirrors it. */
function binCount(length: Dim, onesided: boolean): Dim {
  return onesided ? addDims(divideDims(length, 2), 1) : length;
}

/** Axis of DFT: an attribute before opset 20, then an input whose default is the last but one. */
function dftAxis(context: InferContext | EvaluateContext, rank: number, given?: number): number {
  const fallback = context.opset < 20 ? context.node.int('axis', 1) : -2;
  return normalizeAxis(context, given ?? fallback, rank);
}

const dftOp = onnxOp('DFT', [1, 3], [1, 1], {
  infer: (context) => {
    const { dtype, shape } = context.input(0);
    if (shape === undefined) return [{ dtype }];
    const given = context.elements(2)?.[0];
    if (context.has(2) && typeof given !== 'number')
      return [{ dtype, shape: [...shape.slice(0, -1).map(() => context.fresh()), 2] }];
    const axis = dftAxis(context, shape.length, given as number | undefined);
    const length = context.has(1)
      ? (context.elements(1)?.[0] ?? context.fresh())
      : (shape[axis] ?? 1);
    const bins = binCount(length, context.node.int('onesided', 0) === 1);
    return [
      { dtype, shape: [...shape.slice(0, -1), 2].map((dim, i) => (i === axis ? bins : dim)) },
    ];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const given = context.inputs[2] && readScalar(context.inputs[2]);
    const axis = dftAxis(context, x.shape.length, given);
    const parts = x.shape.at(-1) ?? 1;
    const [outer, size, rest] = splitAtAxis(x.shape, axis);
    const inner = rest / parts;
    const length = context.inputs[1] === undefined ? size : readScalar(context.inputs[1]);
    const inverse = context.node.int('inverse', 0) === 1;
    const bins = binCount(length, context.node.int('onesided', 0) === 1) as number;
    const numbers = readNumbers(x);
    const shape = [...x.shape.slice(0, -1), 2].map((dim, i) => (i === axis ? bins : dim));
    const result = new Float64Array(elementCount(shape));
    for (let block = 0; block < outer; block++)
      for (let offset = 0; offset < inner; offset++) {
        const at = (t: number): readonly [number, number] => {
          if (t >= size) return [0, 0];
          const from = ((block * size + t) * inner + offset) * parts;
          return [numbers[from] ?? 0, parts === 2 ? (numbers[from + 1] ?? 0) : 0];
        };
        for (let k = 0; k < bins; k++) {
          const [re, im] = transformBin(at, length, k, inverse ? 1 : -1);
          const to = ((block * bins + k) * inner + offset) * 2;
          result[to] = inverse ? re / length : re;
          result[to + 1] = inverse ? im / length : im;
        }
      }
    return [writeNumbers(x.dtype, shape, result)];
  },
});

function inferStft(context: InferContext): readonly ValueType[] {
  const { dtype, shape } = context.input(0);
  if (shape === undefined) return [{ dtype }];
  const [batch = 1, samples = 1] = shape;
  const step = context.elements(1)?.[0];
  const length = context.elements(3)?.[0] ?? context.input(2).shape?.[0];
  if (step === undefined || length === undefined)
    return [{ dtype, shape: [batch, context.fresh(), context.fresh(), 2] }];
  const frames = addDims(divideDims(subtractDims(samples, length), step), 1);
  const bins = binCount(length, context.node.int('onesided', 1) === 1);
  return [{ dtype, shape: [batch, frames, bins, 2] }];
}

function evaluateStft(context: EvaluateContext): readonly Tensor[] {
  const x = context.input(0);
  const [batch = 1, samples = 1, parts = 1] = x.shape;
  const step = readScalar(context.input(1));
  const window = context.inputs[2] && readNumbers(context.inputs[2]);
  const length = context.inputs[3] === undefined ? window?.length : readScalar(context.inputs[3]);
  if (length === undefined) throw opError(context, 'has neither a window nor a frame length');
  const frames = Math.floor((samples - length) / step) + 1;
  const bins = binCount(length, context.node.int('onesided', 1) === 1) as number;
  const numbers = readNumbers(x);
  const result = new Float64Array(batch * frames * bins * 2);
  for (let row = 0; row < batch; row++)
    for (let frame = 0; frame < frames; frame++) {
      const at = (t: number): readonly [number, number] => {
        const from = (row * samples + frame * step + t) * parts;
        const factor = window?.[t] ?? 1;
        return [(numbers[from] ?? 0) * factor, parts === 2 ? (numbers[from + 1] ?? 0) * factor : 0];
      };
      for (let k = 0; k < bins; k++)
        result.set(transformBin(at, length, k, -1), ((row * frames + frame) * bins + k) * 2);
    }
  return [writeNumbers(x.dtype, [batch, frames, bins, 2], result)];
}

const melWeightMatrixOp = onnxOp('MelWeightMatrix', [5, 5], [1, 1], {
  infer: (context) => {
    const bands = context.elements(0)?.[0] ?? context.fresh();
    const length = context.elements(1)?.[0] ?? context.fresh();
    const dtype = dtypeAttribute(context, 'output_datatype') ?? 'f32';
    return [{ dtype, shape: [binCount(length, true), bands] }];
  },
  evaluate: (context) => {
    const [bands = 0, length = 0, rate = 0, lowest = 0, highest = 0] = [0, 1, 2, 3, 4].map((i) =>
      readScalar(context.input(i)),
    );
    const bins = Math.floor(length / 2) + 1;
    const toMel = (hertz: number): number => 2595 * Math.log10(1 + hertz / 700);
    const toHertz = (mel: number): number => 700 * (10 ** (mel / 2595) - 1);
    const stepMel = (toMel(highest) - toMel(lowest)) / (bands + 2);
    // edges of the triangles, as bins
    const edges = Array.from({ length: bands + 2 }, (_, i) =>
      Math.floor(((length + 1) * toHertz(toMel(lowest) + i * stepMel)) / rate),
    );
    const result = new Float64Array(bins * bands);
    for (let band = 0; band < bands; band++) {
      const [low = 0, center = 0, high = 0] = edges.slice(band, band + 3);
      // the peak belongs to the rising side, which may be the peak alone
      for (let bin = low; bin <= center; bin++)
        result[bin * bands + band] = low === center ? 1 : (bin - low) / (center - low);
      for (let bin = center; bin < high; bin++)
        result[bin * bands + band] = (high - bin) / (high - center);
    }
    const dtype = dtypeAttribute(context, 'output_datatype') ?? 'f32';
    return [writeNumbers(dtype, [bins, bands], result)];
  },
});

/** Spectra. */
export const signalOps: readonly OpDefinition[] = [
  dftOp,
  onnxOp('STFT', [2, 4], [1, 1], { infer: inferStft, evaluate: evaluateStft }),
  melWeightMatrixOp,
];
