/**
 * What changes the size of images on the WASM engine: transposed convolution, Resize in every mode, pixels to
 * channels and back, and padding by what is inside.
 *
 *   ConvTranspose(x, w)  ->  a 1x1 convolution to [cout * kh * kw] channels, then COLUMNS adds windows up
 *   Resize(x)            ->  RESAMPLE, one axis at a time, by tables made here
 */
import { Weight } from '../ir/weight.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { Dim } from '../ir/dim.ts';
import { multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf, activations } from '../ops/activation-table.ts';
import { transposedWindow } from '../ops/conv-transpose.ts';
import { convInputs, isFusedConv } from '../ops/fused-conv.ts';
import type { AxisTable } from '../ops/resize.ts';
import { resampling } from '../ops/resize.ts';
import { windowAttributes } from '../ops/window.ts';
import { floatsOf } from './pack-weights.ts';
import type { Address } from './plan.ts';
import { addressOf } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { f32, Unsupported } from './wasm-context.ts';
import { emitExpression } from './wasm-elementwise.ts';
import { activated, call, input } from './wasm-expression.ts';
import { dequantized } from './wasm-linear.ts';
import { axisOf, lowerPadConstant, move, sizesOf, stridesOf } from './wasm-movement.ts';
import { dequantizeBehind } from './wasm-unpack.ts';
import { convPanel } from './wasm-vision.ts';

/** ConvTranspose over one or two axes. */
export function lowerConvTranspose(lowering: Lowering, node: Node): void {
  const [x, w, bias] = [lowering.floats(node.input(0)), node.input(1), node.inputs[2]];
  const shape = w.shape as readonly number[] | undefined;
  const axes = x.shape.length - 2;
  if (shape === undefined || (axes !== 1 && axes !== 2))
    throw new Unsupported(`transposed windows over ${axes} axes`);
  const fixed = (dim: Dim | undefined): number => lowering.fixed(dim, 'the size of an image');
  const image = x.shape.slice(2).map(fixed);
  const attributes = windowAttributes(node, shape.slice(2));
  const window = transposedWindow(node, attributes, image);
  const two = (values: readonly number[], fill: number): readonly [number, number] =>
    axes === 1 ? [fill, values[0] ?? fill] : [values[0] ?? fill, values[1] ?? fill];
  const [[kh, kw], [hin, win], [hout, wout]] = [
    two(shape.slice(2), 1),
    two(image, 1),
    two(window.input, 1),
  ];
  const [[strideH, strideW], [dilationH, dilationW], [top, left]] = [
    two(window.strides, 1),
    two(window.dilations, 1),
    two(window.padsBegin, 0),
  ];
  const groups = node.int('group', 1);
  const batch = x.shape[0] ?? 1;
  const [cin = 1, perGroup = 1] = shape;
  const taps = perGroup * kh * kw;
  const wide = groups * taps;
  const product = lowering.fresh(`${node.name} windows`, [batch, wide, hin * win]);
  const panelBytes = convPanel(lowering, cin / groups, [1, hin * win]);
  lowering.emit(
    'CONV',
    {
      X: x.address,
      Y: product.address,
      BATCH: batch,
      CIN: cin,
      HIN: 1,
      WIN: hin * win,
      COUT: wide,
      HOUT: 1,
      WOUT: hin * win,
      KH: 1,
      KW: 1,
      STRIDEH: 1,
      STRIDEW: 1,
      DILATIONH: 1,
      DILATIONW: 1,
      PADTOP: 0,
      PADLEFT: 0,
      GROUPS: groups,
      W: turnedFilters(lowering, w, groups, cin / groups, taps),
      BIAS: 0,
      ACTIVATION: abi.ACT_NONE,
      ALPHA: 0,
      BETA: 0,
      RESIDUAL: 0,
      RESIDUALFIRST: 0,
      PANEL: addressOf(lowering.panel(panelBytes)),
      PANELBYTES: panelBytes,
    },
    { why: 'what each input adds to its window' },
  );
  const y = lowering.output(node);
  lowering.emit(
    'COLUMNS',
    {
      X: product.address,
      Y: y.address,
      BATCH: batch,
      COUT: groups * perGroup,
      HIN: hin,
      WIN: win,
      HOUT: hout,
      WOUT: wout,
      KH: kh,
      KW: kw,
      STRIDEH: strideH,
      STRIDEW: strideW,
      DILATIONH: dilationH,
      DILATIONW: dilationW,
      PADTOP: top,
      PADLEFT: left,
      BIAS: lowering.optional(bias),
    },
    { why: 'windows added up' },
  );
  if (isFusedConv(node)) finishConv(lowering, node, y);
}

/** Activation and residual of a fused transposed convolution, in place. */
function finishConv(lowering: Lowering, node: Node, y: Place): void {
  const name = activationNameOf(node);
  const { alpha = 0, beta = 0 } = activations[name];
  const residual = node.inputs[convInputs.residual];
  const first = node.int('residualFirst', 0) === 1;
  const summed = call('add', input(0), input(1));
  const sum = residual !== undefined && first ? summed : input(0);
  const active = activated(sum, name, node.float('alpha', alpha), node.float('beta', beta));
  const formula = residual !== undefined && !first ? call('add', active, input(1)) : active;
  if (formula.kind === 'input') return;
  const places = residual === undefined ? [y] : [y, lowering.floats(residual)];
  emitExpression(lowering, formula, places, y, 'behind a transposed convolution');
}

/** Filters [cin, taps] of each group as [taps, cin]. */
function turnedFilters(
  lowering: Lowering,
  value: Value,
  groups: number,
  cin: number,
  taps: number,
): Address {
  const node = dequantizeBehind(value);
  // one group: the codes are unpacked where they belong
  if (node !== undefined && groups === 1) return lowering.unpackedTurned(node);
  const { weight } = value;
  if (weight === undefined && node === undefined)
    throw new Unsupported('filters of a ConvTranspose that are computed');
  const key = `turned filters ${lowering.idOf(weight ?? value)}`;
  const count = groups * cin * taps;
  const made = Weight.lazy('f32', [groups, taps, cin], (start, length) => {
    const source = node === undefined ? weight && floatsOf(weight) : dequantized(node);
    const turned = new Float32Array(count);
    for (let g = 0; g < groups; g++)
      for (let c = 0; c < cin; c++)
        for (let tap = 0; tap < taps; tap++)
          turned[(g * taps + tap) * cin + c] = source?.[(g * cin + c) * taps + tap] ?? 0;
    return new Uint8Array(turned.buffer, start, length);
  });
  return addressOf(lowering.weight(key, value.name, () => ({ weight: made, format: 'f32' })));
}

/** Resize and Upsample: whole pixels repeated by a copy, anything else by weighted sums. */
export function lowerResize(lowering: Lowering, node: Node): void {
  let x = lowering.floats(node.input(0));
  if (repeats(lowering, node, x)) return;
  const from = x.shape.map((dim) => lowering.fixed(dim, 'the size of an image'));
  const listed = (index: number): readonly number[] | undefined => {
    const sizes = sizesOf(lowering, node.inputs[index])?.map((dim) =>
      lowering.fixed(dim, 'a size to resize to'),
    );
    return sizes?.length === 0 ? undefined : sizes;
  };
  const { axes, extrapolation } = resampling({ node }, lowering.model.opset, from, listed);
  if (axes.length === 0) {
    lowering.alias(node.output(), x);
    return;
  }
  // the last axis first: it is the slow one, and has fewer rows then
  const order = axes.toReversed();
  for (const [index, { plan, table }] of order.entries()) {
    const shape = x.shape.map((dim, axis) => (axis === plan.axis ? plan.output : dim));
    const y =
      index === order.length - 1 ? lowering.output(node) : lowering.fresh('resampled', shape);
    lowering.emit(
      'RESAMPLE',
      {
        X: x.address,
        Y: y.address,
        OUTER: multiplyDims(...shape.slice(0, plan.axis)),
        LENGTH: plan.input,
        INNER: multiplyDims(...shape.slice(plan.axis + 1)),
        COUNT: plan.output,
        TAPS: table.taps,
        TABLE: lowering.code(tableWords(table)),
        FILL: f32(extrapolation),
      },
      { why: `axis ${plan.axis}, ${node.string('mode', 'nearest')}` },
    );
    x = y;
  }
}

function tableWords({ cells, weights }: AxisTable): Int32Array<ArrayBuffer> {
  const words = new Int32Array(cells.length * 2);
  cells.forEach((cell, index) => words.set([cell, f32(weights[index] ?? 0)], index * 2));
  return words;
}

/** Whether nearest pixels by whole factors are a copy that repeats; makes it. */
function repeats(lowering: Lowering, node: Node, x: Place): boolean {
  const y = lowering.shapeOf(node.output());
  if (node.string('mode', 'nearest') !== 'nearest') return false;
  const legacy = node.op === 'Upsample';
  const nearest = node.string('nearest_mode', legacy ? 'floor' : 'round_prefer_floor');
  const coordinates = node.string('coordinate_transformation_mode', 'half_pixel');
  const exact =
    (coordinates === 'asymmetric' && nearest === 'floor') ||
    legacy ||
    (/^(pytorch_)?half_pixel(_symmetric)?$/.test(coordinates) && nearest.startsWith('round'));
  const factors = x.shape.map((size, axis) =>
    typeof size === 'number' && typeof y[axis] === 'number' ? y[axis] / size : Number.NaN,
  );
  if (!exact || !factors.every(Number.isInteger)) return false;
  const to = lowering.output(node);
  const [own, strides] = [stridesOf(x.shape), stridesOf(y)];
  move(
    lowering,
    x.shape.flatMap((size, axis) => [size, factors[axis] ?? 1]),
    { place: x, strides: own.flatMap((stride) => [stride, 0]) },
    {
      place: to,
      strides: strides.flatMap((stride, axis): Dim[] => [
        multiplyDims(stride, factors[axis] ?? 1),
        stride,
      ]),
    },
    'pixels repeated',
  );
  return true;
}

/** DepthToSpace and SpaceToDepth: a transpose of six axes. */
export function lowerDepth(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const size = node.int('blocksize', 1);
  const y = lowering.output(node);
  const toSpace = node.op === 'DepthToSpace';
  const [batch = 1, channels = 1, height = 1, width = 1] = (toSpace ? y : x).shape;
  const [h, w] = [height, width].map((dim) => lowering.fixed(dim, 'the size of an image') / size);
  const crd = toSpace && node.string('mode', 'DCR') === 'CRD';
  // axes in the order of space: batch, channel, row, row in block, column, column in block
  const shape = [batch, channels, h ?? 1, size, w ?? 1, size];
  const space = stridesOf([
    batch,
    channels,
    multiplyDims(h ?? 1, size),
    multiplyDims(w ?? 1, size),
  ]);
  const [sb = 0, sc = 0, sh = 0, sw = 0] = space;
  const inSpace = [sb, sc, multiplyDims(sh, size), sh, multiplyDims(sw, size), sw];
  const deep = crd
    ? stridesOf([batch, channels, size, size, h ?? 1, w ?? 1])
    : stridesOf([batch, size, size, channels, h ?? 1, w ?? 1]);
  const at = (axis: number): Dim => deep[axis] ?? 0;
  const inDepth = crd
    ? [at(0), at(1), at(4), at(2), at(5), at(3)]
    : [at(0), at(3), at(4), at(1), at(5), at(2)];
  const [from, to] = toSpace ? [inDepth, inSpace] : [inSpace, inDepth];
  move(lowering, shape, { place: x, strides: from }, { place: y, strides: to }, node.op);
}

/** Pad in every mode. */
export function lowerPad(lowering: Lowering, node: Node): void {
  const mode = node.string('mode', 'constant');
  if (mode === 'constant') lowerPadConstant(lowering, node);
  else lowerPadInside(lowering, node, mode);
}

/** Pad by reflection, by the edge or around: rows chosen by a table along each axis. */
function lowerPadInside(lowering: Lowering, node: Node, mode: string): void {
  let x = lowering.floats(node.input(0));
  const pads = sizesOf(lowering, node.inputs[1]) ?? node.ints('pads') ?? [];
  const axes = (sizesOf(lowering, node.inputs[3]) ?? x.shape.map((_, axis) => axis)).map((axis) =>
    axisOf(lowering.fixed(axis, 'an axis'), x.shape.length),
  );
  const changed = axes
    .map((axis, index) => ({
      axis,
      before: lowering.fixed(pads[index] ?? 0, 'a padding'),
      after: lowering.fixed(pads[index + axes.length] ?? 0, 'a padding'),
    }))
    .filter(({ before, after }) => before !== 0 || after !== 0);
  if (changed.length === 0) {
    lowering.alias(node.output(), x);
    return;
  }
  for (const [index, { axis, before, after }] of changed.entries()) {
    const size = lowering.fixed(x.shape[axis], 'the size of what is padded');
    const count = before + size + after;
    const shape = x.shape.map((dim, at) => (at === axis ? count : dim));
    const y =
      index === changed.length - 1 ? lowering.output(node) : lowering.fresh('padded', shape);
    const ids = Int32Array.from({ length: count }, (_, i) => insideOf(i - before, size, mode));
    lowering.emit(
      'GATHER',
      {
        X: x.address,
        IDS: lowering.table(`${node.name} padding of axis ${axis}`, ids),
        IDTYPE: abi.TYPE_I32,
        Y: y.address,
        OUTER: multiplyDims(...shape.slice(0, axis)),
        LENGTH: size,
        INNER: multiplyDims(4, ...shape.slice(axis + 1)),
        COUNT: count,
      },
      { why: `pad by ${mode}` },
    );
    x = y;
  }
}

/** Which of `size` elements stands at a place outside of them. */
function insideOf(index: number, size: number, mode: string): number {
  if (mode === 'edge') return Math.min(size - 1, Math.max(0, index));
  if (mode === 'wrap') return ((index % size) + size) % size;
  if (mode !== 'reflect') throw new Unsupported(`Pad in mode ${mode}`);
  const period = Math.max(1, 2 * (size - 1));
  const at = ((index % period) + period) % period;
  return at < size ? at : period - at;
}
