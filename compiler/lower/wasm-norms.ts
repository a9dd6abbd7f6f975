/** Norms of rows for the WASM engine. */
import type { Dim } from '../ir/dim.ts';
import { multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { normInputs, normKind } from '../ops/fused-norm.ts';
import type { Word } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { f32, rowsOf, Unsupported } from './wasm-context.ts';
import * as movement from './wasm-movement.ts';

/** fettle.Norm. */
export function lowerNorm(lowering: Lowering, node: Node): void {
  const { gain, bias, skip, skipBias } = normInputs;
  const sum = node.outputs[1];
  emitNorm(lowering, node, {
    kind: normKind(node) === 'rms' ? 0 : 1,
    epsilon: node.float('epsilon', 1e-5),
    gain: node.inputs[gain],
    bias: node.inputs[bias],
    skip: node.inputs[skip],
    skipBias: node.inputs[skipBias],
    sum: sum !== undefined && sum.useCount > 0 ? 1 : undefined,
  });
}

interface NormParts {
  readonly kind: number;
  readonly epsilon: number;
  readonly gain: Value | undefined;
  readonly bias: Value | undefined;
  readonly skip?: Value | undefined;
  readonly skipBias?: Value | undefined;
  /** Output that receives the sum. */
  readonly sum?: number | undefined;
  /** First axis that is normed. Default: the last one. */
  readonly axis?: number;
}

function emitNorm(lowering: Lowering, node: Node, parts: NormParts): void {
  const given = lowering.floats(node.input(0));
  const { axis = given.shape.length - 1 } = parts;
  // the axes that are normed as one
  const x = {
    ...given,
    shape: [...given.shape.slice(0, axis), multiplyDims(...given.shape.slice(axis))],
  };
  const [rows, columns] = rowsOf(x.shape);
  const n = lowering.fixed(columns, 'the size of a row');
  const skip = parts.skip === undefined ? undefined : lowering.floats(parts.skip);
  if (skip !== undefined && multiplyDims(...skip.shape) !== multiplyDims(...x.shape))
    throw new Unsupported('a norm whose second input is broadcast');
  const y = lowering.output(node);
  const sum = parts.sum === undefined ? undefined : lowering.output(node, parts.sum);
  // the sum takes over the residual stream; else the result may
  const inPlace: (readonly [Place, Place])[] =
    sum === undefined
      ? [[y, x]]
      : [
          [sum, skip ?? x],
          [sum, x],
          [y, x],
        ];
  lowering.emit(
    'NORM',
    {
      X: x.address,
      XROW: n * 4,
      Y: y.address,
      YROW: n * 4,
      ROWS: rows,
      HEADS: 1,
      N: n,
      KIND: parts.kind,
      EPSILON: f32(parts.epsilon),
      GAIN: lowering.optional(parts.gain),
      BIAS: lowering.optional(parts.bias),
      SKIP: skip?.address ?? 0,
      SKIPBIAS: lowering.optional(parts.skipBias),
      SUM: sum?.address ?? 0,
    },
    { why: skip === undefined ? 'norm' : 'sum and norm in one step', inPlace },
  );
}

/** LayerNormalization and RMSNormalization from any axis on. */
export function lowerLayerNorm(lowering: Lowering, node: Node): void {
  const rank = node.input(0).shape?.length ?? 0;
  const axis = movement.axisOf(node.int('axis', -1), rank);
  if (node.outputs.slice(1).some((output) => output !== undefined && output.useCount > 0))
    throw new Unsupported('a norm that gives its statistics');
  emitNorm(lowering, node, {
    kind: node.op === 'LayerNormalization' ? 1 : 0,
    epsilon: node.float('epsilon', 1e-5),
    gain: node.inputs[1],
    bias: node.inputs[2],
    axis,
  });
}

/** x over its mean square or variance along some axes, without gain: MeanVarianceNormalization. */
export function lowerMeanVariance(lowering: Lowering, node: Node): void {
  const x = lowering.floats(node.input(0));
  const axes = node.ints('axes') ?? [0, 2, 3];
  const rank = x.shape.length;
  const normed = axes.map((axis) => movement.axisOf(axis, rank)).sort((a, b) => a - b);
  const kept = x.shape.map((_, axis) => axis).filter((axis) => !normed.includes(axis));
  const order = [...kept, ...normed];
  const shape = order.map((axis) => x.shape[axis] ?? 1);
  const own = movement.stridesOf(x.shape);
  const turned = lowering.fresh('turned', shape);
  const outside = { strides: order.map((axis) => own[axis] ?? 0) };
  const inside = { place: turned, strides: movement.stridesOf(shape) };
  movement.move(lowering, shape, { place: x, ...outside }, inside, 'axes to norm brought together');
  const n = multiplyDims(...shape.slice(kept.length));
  lowering.emit('NORM', {
    ...normWords(turned, turned, multiplyDims(...shape.slice(0, kept.length)), n),
    KIND: 1,
    EPSILON: f32(1e-9),
  });
  movement.move(lowering, shape, inside, { place: lowering.output(node), ...outside }, 'and back');
}

/** Words of a norm of plain rows with nothing added. */
function normWords(
  x: Place,
  y: Place,
  rows: Dim,
  n: Dim,
): Record<'X' | 'Y' | ZeroOfNorm, Word> & Record<'XROW' | 'YROW' | 'ROWS' | 'HEADS' | 'N', Dim> {
  const row = multiplyDims(4, n);
  const none = { GAIN: 0, BIAS: 0, SKIP: 0, SKIPBIAS: 0, SUM: 0 };
  return { X: x.address, XROW: row, Y: y.address, YROW: row, ROWS: rows, HEADS: 1, N: n, ...none };
}

type ZeroOfNorm = 'GAIN' | 'BIAS' | 'SKIP' | 'SKIPBIAS' | 'SUM';
