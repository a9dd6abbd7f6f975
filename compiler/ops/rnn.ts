/**
 * Recurrent layers: RNN, GRU, LSTM in all directions and layouts, with sequence lengths, peepholes,
 * clipping and any activations.
 *
 * The input projections of all steps are one matrix product; then each sequence is walked on its own.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import type { Node, ValueType } from '../ir/graph.ts';
import { activationNamed } from './attribute-activation.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { floatsOf, integersOf, optionalFloats } from './dense.ts';
import type { Unary } from './elementwise.ts';
import type { Floats } from './gemm.ts';
import { dot, multiplyRows } from './gemm.ts';
import { writeNumbers } from './numbers.ts';
import { expectRank, opError } from './support.ts';

/** What a cell works on: one direction, one sequence at a time. */
interface Cell {
  /** Width of the state. */
  readonly hidden: number;
  /** Recurrent weights of this direction. // [gates * hidden, hidden] */
  readonly recurrent: Floats;
  /** Index of the first of them. */
  readonly recurrentAt: number;
  /** Biases of this direction, input part then recurrent part; zeros when absent. */
  readonly bias: Floats;
  /** Activations of this direction. */
  readonly activations: readonly Unary[];
  /** Peephole weights of this direction, when given. // [3 * hidden] */
  readonly peephole: Floats | undefined;
  /** The node, for its attributes. */
  readonly node: Node;
}

/**
 * One step of one sequence.
 *
 * @param x - input projection of this step, from `at` on // [gates * hidden]
 * @param h - state, replaced in place // [hidden]
 * @param c - cell state of an LSTM, replaced in place // [hidden]
 */
type Step = (cell: Cell, x: Floats, at: number, h: Float64Array, c: Float64Array) => void;

interface Recurrence {
  readonly op: string;
  readonly gates: number;
  /** Outputs: 2, or 3 with a cell state. */
  readonly outputs: number;
  readonly activations: readonly string[];
  readonly step: Step;
}

const takesAlpha = new Set([
  'affine',
  'leakyrelu',
  'thresholdedrelu',
  'scaledtanh',
  'hardsigmoid',
  'elu',
]);
const takesBeta = new Set(['affine', 'scaledtanh', 'hardsigmoid']);

/** Activations of all directions; alpha and beta lists are used up in order. */
function activationsOf(node: Node, defaults: readonly string[], directions: number): Unary[] {
  const given = node.attributes.get('activations');
  const names =
    given?.kind === 'strings' && given.value.length > 0
      ? given.value
      : Array.from({ length: directions }, () => defaults).flat();
  const alphas = [...(node.floats('activation_alpha') ?? [])];
  const betas = [...(node.floats('activation_beta') ?? [])];
  return names.map((name) => {
    const key = name.toLowerCase();
    const alpha = takesAlpha.has(key) ? alphas.shift() : undefined;
    return activationNamed(node, name, alpha, takesBeta.has(key) ? betas.shift() : undefined);
  });
}

function directionsOf(node: Node): readonly boolean[] {
  const direction = node.string('direction', 'forward');
  if (direction === 'bidirectional') return [false, true];
  return [direction === 'reverse'];
}

/** Pre-activation of gate rows `from` … of a cell: input part + biases + recurrent part. */
function preactivation(cell: Cell, x: Floats, at: number, row: number, h: Floats): number {
  const { hidden, bias, recurrent, recurrentAt } = cell;
  const half = bias.length / 2;
  return (
    (x[at + row] ?? 0) +
    (bias[row] ?? 0) +
    (bias[half + row] ?? 0) +
    dot(hidden, h, 0, recurrent, recurrentAt + row * hidden)
  );
}

function clipper(node: Node): Unary {
  const clip = node.float('clip');
  return clip === undefined || clip === 0 ? (x) => x : (x) => Math.min(clip, Math.max(-clip, x));
}

const rnnStep: Step = (cell, x, at, h) => {
  const [activation = Math.tanh] = cell.activations;
  const clip = clipper(cell.node);
  const previous = h.slice();
  for (let i = 0; i < cell.hidden; i++)
    h[i] = activation(clip(preactivation(cell, x, at, i, previous)));
};

/** Gates in the order update (z), reset (r), hidden (h). */
const gruStep: Step = (cell, x, at, h) => {
  const { hidden, bias, recurrent, recurrentAt } = cell;
  const [gate = Math.tanh, candidate = Math.tanh] = cell.activations;
  const clip = clipper(cell.node);
  const after = cell.node.int('linear_before_reset', 0) !== 0;
  const previous = h.slice();
  const reset = previous.map((_, i) =>
    gate(clip(preactivation(cell, x, at, hidden + i, previous))),
  );
  const damped = previous.map((value, i) => value * (reset[i] ?? 0));
  for (let i = 0; i < hidden; i++) {
    const update = gate(clip(preactivation(cell, x, at, i, previous)));
    const row = 2 * hidden + i;
    const weights = recurrentAt + row * hidden;
    const recurrentBias = bias[3 * hidden + row] ?? 0;
    const memory = after
      ? (reset[i] ?? 0) * (dot(hidden, previous, 0, recurrent, weights) + recurrentBias)
      : dot(hidden, damped, 0, recurrent, weights) + recurrentBias;
    const next = candidate(clip((x[at + row] ?? 0) + (bias[row] ?? 0) + memory));
    h[i] = (1 - update) * next + update * (previous[i] ?? 0);
  }
};

/** Gates in the order input, output, forget, cell; peepholes input, output, forget. */
const lstmStep: Step = (cell, x, at, h, c) => {
  const { hidden, peephole, node } = cell;
  const [gate = Math.tanh, candidate = Math.tanh, squash = Math.tanh] = cell.activations;
  const clip = clipper(node);
  const coupled = node.int('input_forget', 0) !== 0;
  const previous = h.slice();
  const peep = (index: number, i: number, state: number): number =>
    (peephole?.[index * hidden + i] ?? 0) * state;
  for (let i = 0; i < hidden; i++) {
    const old = c[i] ?? 0;
    const part = (index: number): number =>
      preactivation(cell, x, at, index * hidden + i, previous);
    const input = gate(clip(part(0) + peep(0, i, old)));
    const forget = coupled ? 1 - input : gate(clip(part(2) + peep(2, i, old)));
    const state = forget * old + input * candidate(clip(part(3)));
    const output = gate(clip(part(1) + peep(1, i, state)));
    c[i] = state;
    h[i] = output * squash(state);
  }
};

function inferRecurrence(context: InferContext, outputs: number): ValueType[] {
  const { node } = context;
  const { dtype, shape } = context.input(0);
  expectRank(context, 'X', shape, 3);
  const layout = node.int('layout', 0);
  const directions = directionsOf(node).length;
  const hidden = node.int('hidden_size') ?? context.input(2).shape?.[2] ?? context.fresh();
  const steps = shape?.[layout === 0 ? 0 : 1] ?? context.fresh();
  const batch = shape?.[layout === 0 ? 1 : 0] ?? context.fresh();
  const state: Dim[] = layout === 0 ? [directions, batch, hidden] : [batch, directions, hidden];
  const all: Dim[] =
    layout === 0 ? [steps, directions, batch, hidden] : [batch, steps, directions, hidden];
  const types = [all, state, state].map((dims) => ({ dtype, shape: dims }));
  return types.slice(0, outputs);
}

function evaluateRecurrence(context: EvaluateContext, recurrence: Recurrence): Tensor[] {
  const { node } = context;
  const [x, w, r] = [context.input(0), context.input(1), context.input(2)];
  const batchFirst = node.int('layout', 0) !== 0;
  const [first = 1, second = 1, width = 1] = x.shape;
  const [steps, batch] = batchFirst ? [second, first] : [first, second];
  const hidden = r.shape[2] ?? 1;
  const reversals = directionsOf(node);
  const directions = reversals.length;
  const rows = recurrence.gates * hidden;
  if (w.shape[0] !== directions || w.shape[1] !== rows || w.shape[2] !== width)
    throw opError(context, `W is [${w.shape}], wanted [${directions}, ${rows}, ${width}]`);
  const data = floatsOf(x);
  const lengths = context.inputs[4] && integersOf(context.inputs[4]);
  const [bias, h0, c0] = [3, 5, 6].map((i) => optionalFloats(context.inputs[i]));
  const peephole = optionalFloats(context.inputs[7]);
  const activations = activationsOf(node, recurrence.activations, directions);
  const perDirection = activations.length / directions;
  const all = new Float64Array(steps * directions * batch * hidden);
  const [lastH, lastC] = [0, 1].map(() => new Float64Array(directions * batch * hidden));
  const projected = new Float64Array(steps * batch * rows);
  const stateAt = (d: number, b: number): number =>
    (batchFirst ? b * directions + d : d * batch + b) * hidden;
  reversals.forEach((reverse, d) => {
    multiplyRows(
      steps * batch,
      rows,
      width,
      { data, offset: 0 },
      { data: floatsOf(w), offset: d * rows * width },
      { data: projected, offset: 0 },
    );
    const cell: Cell = {
      hidden,
      recurrent: floatsOf(r),
      recurrentAt: d * rows * hidden,
      bias: bias?.subarray(2 * rows * d, 2 * rows * (d + 1)) ?? new Float64Array(2 * rows),
      activations: activations.slice(d * perDirection, (d + 1) * perDirection),
      peephole: peephole?.subarray(3 * hidden * d, 3 * hidden * (d + 1)),
      node,
    };
    for (let b = 0; b < batch; b++) {
      const at = stateAt(d, b);
      const initial = (state: Floats | undefined): Float64Array =>
        state === undefined
          ? new Float64Array(hidden)
          : Float64Array.from(state.subarray(at, at + hidden));
      const [h, c] = [initial(h0), initial(c0)];
      const length = Math.min(steps, lengths?.[b] ?? steps);
      for (let step = 0; step < length; step++) {
        const t = reverse ? length - 1 - step : step;
        recurrence.step(cell, projected, (batchFirst ? b * steps + t : t * batch + b) * rows, h, c);
        all.set(
          h,
          (batchFirst ? (b * steps + t) * directions + d : (t * directions + d) * batch + b) *
            hidden,
        );
      }
      lastH?.set(h, at);
      lastC?.set(c, at);
    }
  });
  const state = batchFirst ? [batch, directions, hidden] : [directions, batch, hidden];
  const shape = batchFirst
    ? [batch, steps, directions, hidden]
    : [steps, directions, batch, hidden];
  const outputs = [
    writeNumbers(x.dtype, shape, all),
    writeNumbers(x.dtype, state, lastH ?? []),
    writeNumbers(x.dtype, state, lastC ?? []),
  ];
  return outputs.slice(0, recurrence.outputs);
}

function recurrentOp(recurrence: Recurrence, inputs: number): OpDefinition {
  return {
    op: recurrence.op,
    domain: '',
    inputs: [3, inputs],
    outputs: [0, recurrence.outputs],
    infer: (context) => inferRecurrence(context, recurrence.outputs),
    evaluate: (context) => evaluateRecurrence(context, recurrence),
    cost(node, shapeOf) {
      const [x, w, r] = [0, 1, 2].map((index) => shapeOf(node.input(index)));
      const positions = (x?.[0] ?? 1) * (x?.[1] ?? 1);
      const weights = [w, r].reduce(
        (sum, shape) => sum + (shape ?? []).reduce((product, size) => product * size, 1),
        0,
      );
      return { flops: 2 * positions * weights, bytes: 4 * (weights + positions * (x?.[2] ?? 1)) };
    },
  };
}

/** Recurrent layers. */
export const rnnOps: readonly OpDefinition[] = [
  recurrentOp({ op: 'RNN', gates: 1, outputs: 2, activations: ['Tanh'], step: rnnStep }, 6),
  recurrentOp(
    { op: 'GRU', gates: 3, outputs: 2, activations: ['Sigmoid', 'Tanh'], step: gruStep },
    6,
  ),
  recurrentOp(
    { op: 'LSTM', gates: 4, outputs: 3, activations: ['Sigmoid', 'Tanh', 'Tanh'], step: lstmStep },
    8,
  ),
];
