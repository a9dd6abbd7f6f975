/**
 * Convolutions, pooling, reductions, softmax and selections for the WASM engine.
 */
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { Dim } from '../ir/dim.ts';
import { multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf, activations } from '../ops/activation-table.ts';
import { addressOf } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { f32, Unsupported } from './wasm-context.ts';
import { emitExpression } from './wasm-elementwise.ts';
import { activationIds, call, input, number } from './wasm-expression.ts';
import { axisOf, broadcastTo, move, sizesOf, stridesOf } from './wasm-movement.ts';

/** A window over two axes; one axis is a window of height 1. */
interface Window {
  readonly kernel: readonly [number, number];
  readonly strides: readonly [number, number];
  readonly dilations: readonly [number, number];
  /** top, left, bottom, right. */
  readonly pads: readonly [number, number, number, number];
  readonly planes: { readonly in: readonly [Dim, Dim]; readonly out: readonly [Dim, Dim] };
}

function windowOf(lowering: Lowering, node: Node, kernel: readonly number[]): Window {
  const x = lowering.shapeOf(node.input(0)).slice(2);
  const y = lowering.shapeOf(node.output()).slice(2);
  const axes = kernel.length;
  if (axes !== 1 && axes !== 2) throw new Unsupported(`windows over ${axes} axes`);
  const two = (values: readonly number[], fill: number): [number, number] =>
    axes === 1 ? [fill, values[0] ?? fill] : [values[0] ?? fill, values[1] ?? fill];
  const strides = two(node.ints('strides') ?? [], 1);
  const dilations = two(node.ints('dilations') ?? [], 1);
  const size = two(kernel, 1);
  const image = (shape: readonly Dim[]): [Dim, Dim] =>
    axes === 1 ? [1, shape[0] ?? 1] : [shape[0] ?? 1, shape[1] ?? 1];
  const planes = { in: image(x), out: image(y) };
  const given = node.ints('pads') ?? [];
  const explicit: [number, number, number, number] =
    axes === 1
      ? [0, given[0] ?? 0, 0, given[1] ?? 0]
      : [given[0] ?? 0, given[1] ?? 0, given[2] ?? 0, given[3] ?? 0];
  const auto = node.string('auto_pad', 'NOTSET');
  const pads =
    auto === 'SAME_UPPER' || auto === 'SAME_LOWER'
      ? samePads(lowering, planes, size, strides, dilations, auto === 'SAME_LOWER')
      : explicit;
  return { kernel: size, strides, dilations, pads, planes };
}

function samePads(
  lowering: Lowering,
  planes: Window['planes'],
  kernel: readonly [number, number],
  strides: readonly [number, number],
  dilations: readonly [number, number],
  lower: boolean,
): [number, number, number, number] {
  const [first, second] = ([0, 1] as const).map((axis) => {
    const into = lowering.fixed(planes.in[axis], 'the size of an image with SAME padding');
    const out = lowering.fixed(planes.out[axis], 'the size of an image with SAME padding');
    const total = Math.max(
      0,
      (out - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - into,
    );
    const before = lower ? Math.ceil(total / 2) : Math.floor(total / 2);
    return [before, total - before] as const;
  });
  const [top, bottom] = first ?? [0, 0];
  const [left, right] = second ?? [0, 0];
  return [top, left, bottom, right];
}

/** Most positions of a panel. */
const PANEL_POSITIONS = 64;
/** A panel that the second cache of any machine holds beside the filters. */
const PANEL_BYTES = 160 << 10;

/** Bytes of the panel of a convolution (abi-tensors.ts, CONV). */
export function convPanel(lowering: Lowering, taps: number, image: readonly [Dim, Dim]): number {
  const positions = lowering.largest(multiplyDims(...image));
  const { threads } = lowering.sizes;
  // two panels a thread at least, if there is enough
  const share = threads === 1 ? positions : Math.ceil(positions / (2 * threads));
  const fitting = Math.floor(PANEL_BYTES / (taps * 4));
  const most = Math.min(PANEL_POSITIONS, share, Math.max(16, fitting));
  return taps * 4 * Math.ceil(most / 8) * 8;
}

function depthwisePanel(lowering: Lowering, window: Window): number {
  const [kh, kw] = window.kernel;
  const beyond = Math.floor(((kw - 1) * window.dilations[1]) / window.strides[1]);
  const [columns, rows, height] = [
    lowering.largest(window.planes.out[1]),
    lowering.largest(window.planes.out[0]),
    lowering.largest(window.planes.in[0]),
  ];
  const up = (count: number): number => Math.ceil(count / 4) * 4;
  const run = up(columns) + Math.floor((beyond + 4) / 4) * 4;
  const band = Math.min(abi.DEPTHWISE_BAND, rows);
  const held = Math.min(
    height,
    (band - 1) * window.strides[0] + (kh - 1) * window.dilations[0] + 1,
  );
  return (up(kw) + held * run * window.strides[1]) * 4;
}

/** Conv of ONNX, and fettle.Conv with what follows it. */
export function lowerConv(lowering: Lowering, node: Node): void {
  const [x, w, bias, residual] = [node.input(0), node.input(1), node.inputs[2], node.inputs[3]];
  const shape = w.shape as readonly number[] | undefined;
  if (shape === undefined) throw new Unsupported('filters of unknown size');
  const fused = node.domain !== '';
  const window = windowOf(lowering, node, shape.slice(2));
  const groups = node.int('group', 1);
  const from = lowering.floats(x);
  const [batch = 1, channels = 1] = from.shape;
  const cin = lowering.fixed(channels, 'the number of channels');
  const name = fused ? activationNameOf(node) : 'none';
  const { alpha, beta } = activations[name];
  const y = lowering.output(node);
  const depthwise = groups === cin && groups === shape[0];
  const panelBytes = depthwise
    ? depthwisePanel(lowering, window)
    : convPanel(lowering, (cin / groups) * window.kernel[0] * window.kernel[1], window.planes.out);
  const panel = addressOf(lowering.panel(panelBytes));
  const [scale, shift] = fused ? [node.float('scale', 1), node.float('shift', 0)] : [1, 0];
  const scaled = scale !== 1 || shift !== 0;
  const late = scaled && node.int('residualFirst', 0) === 0 ? residual : undefined;
  lowering.emit(
    'CONV',
    {
      X: from.address,
      Y: y.address,
      BATCH: batch,
      CIN: cin,
      HIN: window.planes.in[0],
      WIN: window.planes.in[1],
      COUT: shape[0] ?? 1,
      HOUT: window.planes.out[0],
      WOUT: window.planes.out[1],
      KH: window.kernel[0],
      KW: window.kernel[1],
      STRIDEH: window.strides[0],
      STRIDEW: window.strides[1],
      DILATIONH: window.dilations[0],
      DILATIONW: window.dilations[1],
      PADTOP: window.pads[0],
      PADLEFT: window.pads[1],
      GROUPS: groups,
      W: lowering.floats(w).address,
      BIAS: lowering.optional(bias),
      ACTIVATION: activationIds[name],
      ALPHA: f32(node.float('alpha', alpha ?? 0)),
      BETA: f32(node.float('beta', beta ?? 0)),
      RESIDUAL: lowering.optional(late === undefined ? residual : undefined),
      RESIDUALFIRST: fused ? node.int('residualFirst', 0) : 0,
      PANEL: panel,
      PANELBYTES: panelBytes,
    },
    { why: depthwise ? 'depthwise, padded rows' : 'im2col panels' },
  );
  if (!scaled) return;
  const affine = call('add', call('mul', input(0), number(scale)), number(shift));
  const last = late === undefined ? [] : [lowering.floats(late)];
  emitExpression(
    lowering,
    last.length === 0 ? affine : call('add', affine, input(1)),
    [y, ...last],
    y,
    'scale and shift behind a convolution',
  );
}

/** MaxPool and AveragePool. */
export function lowerPool(lowering: Lowering, node: Node): void {
  if (node.outputs.length > 1) throw new Unsupported('MaxPool with indices');
  const window = windowOf(lowering, node, node.ints('kernel_shape') ?? []);
  const x = lowering.floats(node.input(0));
  const y = lowering.output(node);
  const average = node.op === 'AveragePool';
  lowering.emit('POOL', {
    X: x.address,
    Y: y.address,
    PLANES: multiplyDims(x.shape[0] ?? 1, x.shape[1] ?? 1),
    HIN: window.planes.in[0],
    WIN: window.planes.in[1],
    HOUT: window.planes.out[0],
    WOUT: window.planes.out[1],
    KH: window.kernel[0],
    KW: window.kernel[1],
    STRIDEH: window.strides[0],
    STRIDEW: window.strides[1],
    DILATIONH: window.dilations[0],
    DILATIONW: window.dilations[1],
    PADTOP: window.pads[0],
    PADLEFT: window.pads[1],
    KIND: average ? (node.int('count_include_pad', 0) === 1 ? 2 : 1) : 0,
    PADBOTTOM: window.pads[2],
    PADRIGHT: window.pads[3],
  });
}

/** [OUTER, LENGTH, INNER] around neighbouring axes. */
function around(
  shape: readonly Dim[],
  first: number,
  count = 1,
): Record<'OUTER' | 'LENGTH' | 'INNER', Dim> {
  return {
    OUTER: multiplyDims(...shape.slice(0, first)),
    LENGTH: multiplyDims(...shape.slice(first, first + count)),
    INNER: multiplyDims(...shape.slice(first + count)),
  };
}

const reductions: Readonly<Record<string, number>> = {
  ReduceSum: abi.REDUCE_SUM,
  ReduceMean: abi.REDUCE_MEAN,
  ReduceMax: abi.REDUCE_MAX,
  ReduceMin: abi.REDUCE_MIN,
  ReduceProd: abi.REDUCE_PROD,
  ReduceL1: abi.REDUCE_L1,
  ReduceL2: abi.REDUCE_L2,
  ReduceSumSquare: abi.REDUCE_SUMSQUARE,
  ReduceLogSum: abi.REDUCE_SUM,
  ReduceLogSumExp: abi.REDUCE_SUM,
};

/** Names of the reductions. */
export const reduceOps: readonly string[] = Object.keys(reductions);

/** A reduction over neighbouring axes; other sets of axes are brought together first. */
export function lowerReduce(lowering: Lowering, node: Node): void {
  let x = lowering.floats(node.input(0));
  const rank = x.shape.length;
  const listed = sizesOf(lowering, node.inputs[1]) ?? node.ints('axes') ?? [];
  const all = listed.length === 0;
  if (all && node.int('noop_with_empty_axes', 0) === 1) {
    lowering.alias(node.output(), x);
    return;
  }
  const axes = (all ? x.shape.map((_, axis) => axis) : listed)
    .map((axis) => axisOf(lowering.fixed(axis, 'an axis'), rank))
    .sort((a, b) => a - b);
  let first = axes[0] ?? 0;
  if (!axes.every((axis, index) => axis === first + index)) {
    const kept = x.shape.map((_, axis) => axis).filter((axis) => !axes.includes(axis));
    const order = [...kept, ...axes];
    const shape = order.map((axis) => x.shape[axis] ?? 1);
    const own = stridesOf(x.shape);
    const turned = lowering.fresh('turned', shape);
    move(
      lowering,
      shape,
      { place: x, strides: order.map((axis) => own[axis] ?? 0) },
      { place: turned, strides: stridesOf(shape) },
      'axes to reduce brought together',
    );
    x = turned;
    first = kept.length;
  }
  const y = lowering.output(node);
  const parts = around(x.shape, first, axes.length);
  const reduce = (from: Place, to: Place, kind: number): void => {
    lowering.emit('REDUCE', { X: from.address, Y: to.address, ...parts, KIND: kind });
  };
  if (node.op === 'ReduceLogSumExp') {
    // the largest goes first, so that no e^x is infinite
    const whole = [parts.OUTER, parts.LENGTH, parts.INNER];
    const flat = [parts.OUTER, 1, parts.INNER];
    const largest = lowering.fresh('largest', flat);
    const powers = lowering.fresh('powers', whole);
    reduce(x, largest, abi.REDUCE_MAX);
    const power = call('exp', call('sub', input(0), input(1)));
    emitExpression(lowering, power, [{ ...x, shape: whole }, largest], powers);
    reduce(powers, y, abi.REDUCE_SUM);
    const sum = { ...y, shape: flat };
    emitExpression(lowering, call('add', call('log', input(0)), input(1)), [sum, largest], sum);
    return;
  }
  reduce(x, y, reductions[node.op] ?? abi.REDUCE_SUM);
  if (node.op === 'ReduceLogSum') emitExpression(lowering, call('log', input(0)), [y], y);
}

/** GlobalAveragePool and GlobalMaxPool. */
export function lowerGlobalPool(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const y = lowering.output(node);
  lowering.emit('REDUCE', {
    X: x.address,
    Y: y.address,
    ...around(x.shape, 2, x.shape.length - 2),
    KIND: node.op === 'GlobalAveragePool' ? abi.REDUCE_MEAN : abi.REDUCE_MAX,
  });
}

/** Softmax and LogSoftmax over one axis. */
export function lowerSoftmax(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const old = lowering.model.opset < 13;
  const axis = axisOf(node.int('axis', old ? 1 : -1), x.shape.length);
  const y = lowering.output(node);
  // before opset 13 it ran over all axes from `axis` on
  const count = old ? x.shape.length - axis : 1;
  lowering.emit(
    'SOFTMAX',
    {
      X: x.address,
      Y: y.address,
      ...around(x.shape, axis, count),
      LOG: node.op === 'LogSoftmax' ? 1 : 0,
    },
    { inPlace: [[y, x]] },
  );
}

/** ArgMax and ArgMin. */
export function lowerArgMax(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const axis = axisOf(node.int('axis', 0), x.shape.length);
  const y = lowering.output(node, 0, 'i32');
  lowering.emit('ARGMAX', {
    X: x.address,
    Y: y.address,
    YTYPE: abi.TYPE_I32,
    ...around(x.shape, axis),
    SMALLEST: node.op === 'ArgMin' ? 1 : 0,
    LAST: node.int('select_last_index', 0),
  });
}

/** TopK; along another axis than the last over a transposed copy. */
export function lowerTopK(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const rank = x.shape.length;
  const axis = axisOf(node.int('axis', -1), rank);
  const [given = 1] = sizesOf(lowering, node.inputs[1]) ?? [node.int('k', 1)];
  const results = [
    partOrScratch(lowering, node, 0, 'f32'),
    partOrScratch(lowering, node, 1, 'i32'),
  ] as const;
  const last = axis === rank - 1;
  const order = [...x.shape.keys()].filter((at) => at !== axis);
  order.push(axis);
  /** A place with `axis` last, and the strides of both. */
  const turned = (place: Place): { place: Place; strides: Dim[]; own: Dim[]; shape: Dim[] } => {
    const own = stridesOf(place.shape);
    const shape = order.map((at) => place.shape[at] ?? 1);
    return {
      place: last ? place : lowering.fresh('turned', shape, place.type),
      strides: stridesOf(shape),
      own: order.map((at) => own[at] ?? 0),
      shape,
    };
  };
  const from = turned(x);
  if (!last)
    move(lowering, from.shape, { place: x, strides: from.own }, from, 'axis brought to the end');
  const [values, indices] = [turned(results[0]), turned(results[1])];
  lowering.emit('TOPK', {
    X: from.place.address,
    ROWS: multiplyDims(...from.shape.slice(0, -1)),
    N: from.shape.at(-1) ?? 1,
    K: given,
    VALUES: values.place.address,
    INDICES: indices.place.address,
    INDEXTYPE: abi.TYPE_I32,
    SMALLEST: node.int('largest', 1) === 1 ? 0 : 1,
  });
  if (last) return;
  for (const [index, result] of results.entries()) {
    const part = index === 0 ? values : indices;
    move(lowering, part.shape, part, { place: result, strides: part.own }, 'and back');
  }
}

function partOrScratch(lowering: Lowering, node: Node, index: number, type: 'f32' | 'i32'): Place {
  if (node.outputs[index] !== undefined) return lowering.output(node, index, type);
  const shape = lowering.shapeOf(node.output(1 - index));
  return lowering.fresh(`${node.name} unused`, shape, type);
}

/** BatchNormalization that follows nothing it could be folded into: one multiply-add per channel. */
export function lowerBatchNorm(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const parts = [1, 2, 3, 4].map((index) => node.input(index).constant());
  const [gain, bias, mean, variance] = parts.map((part) =>
    part === undefined ? undefined : Array.from(part.data as ArrayLike<number>, Number),
  );
  if (gain === undefined || bias === undefined || mean === undefined || variance === undefined)
    throw new Unsupported('a BatchNormalization whose statistics are computed');
  const epsilon = node.float('epsilon', 1e-5);
  const scale = gain.map((g, i) => g / Math.sqrt((variance[i] ?? 1) + epsilon));
  const shift = bias.map((b, i) => b - (mean[i] ?? 0) * (scale[i] ?? 0));
  const channels = [gain.length, ...x.shape.slice(2).map(() => 1)];
  const table = (name: string, values: readonly number[]): Place => ({
    address: lowering.table(`${node.name}.${name}`, Float32Array.from(values)),
    shape: channels,
    type: 'f32',
    segment: undefined,
  });
  const y = lowering.output(node);
  const formula = call('add', call('mul', input(0), input(1)), input(2));
  emitExpression(
    lowering,
    formula,
    [x, table('scale', scale), table('shift', shift)],
    y,
    'batch norm',
  );
}

/** InstanceNormalization and GroupNormalization: rows of a group normed, then one multiply-add per channel. */
export function lowerGroupNorm(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const [batch = 1, channels = 1, ...spatial] = x.shape;
  const count = lowering.fixed(channels, 'the number of channels');
  const groups = node.op === 'InstanceNormalization' ? count : node.int('num_groups', 1);
  const n = multiplyDims(count / groups, ...spatial);
  const y = lowering.output(node);
  lowering.emit(
    'NORM',
    {
      X: x.address,
      XROW: multiplyDims(4, n),
      Y: y.address,
      YROW: multiplyDims(4, n),
      ROWS: multiplyDims(batch, groups),
      HEADS: 1,
      N: n,
      KIND: 1,
      EPSILON: f32(node.float('epsilon', 1e-5)),
      GAIN: 0,
      BIAS: 0,
      SKIP: 0,
      SKIPBIAS: 0,
      SUM: 0,
    },
    { why: `${groups} groups of channels`, inPlace: [[y, x]] },
  );
  const perChannel = (value: Value): Place => {
    const place = lowering.floats(value);
    const one = spatial.map(() => 1);
    if (multiplyDims(...place.shape) === count) return { ...place, shape: [count, ...one] };
    // before opset 21, one for each group
    const shape = [groups, count / groups, ...one];
    const spread = broadcastTo(lowering, { ...place, shape: [groups, 1, ...one] }, shape);
    return { ...spread, shape: [count, ...one] };
  };
  const formula = call('add', call('mul', input(0), input(1)), input(2));
  const parts = [y, perChannel(node.input(1)), perChannel(node.input(2))];
  emitExpression(lowering, formula, parts, y, 'gain and bias of each channel');
}

/** LpNormalization: x over its L1 or L2 norm along an axis. */
export function lowerLpNorm(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const axis = axisOf(node.int('axis', -1), x.shape.length);
  const shape = x.shape.map((dim, at) => (at === axis ? 1 : dim));
  const norm = lowering.fresh(`${node.name} norm`, shape);
  lowering.emit('REDUCE', {
    X: x.address,
    Y: norm.address,
    ...around(x.shape, axis),
    KIND: node.int('p', 2) === 1 ? abi.REDUCE_L1 : abi.REDUCE_L2,
  });
  emitExpression(lowering, call('div', input(0), input(1)), [x, norm], lowering.output(node));
}
