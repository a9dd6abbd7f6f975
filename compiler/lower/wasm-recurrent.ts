/**
 * LSTM, GRU and RNN for the WASM engine: the projections of all inputs as one product, then one step that
 * walks the sequences.
 *
 *   LSTM(x, w, r, b)  ->  p = x · wᵀ + (b of w + b of r)   for all directions and steps
 *                         RECURRENT(p, r)
 */
import { multiplyDims } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { ActivationName } from '../ops/activation-table.ts';
import { activations } from '../ops/activation-table.ts';
import type { Address } from './plan.ts';
import { addressOf } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';
import { f32, Unsupported } from './wasm-context.ts';
import { activationIds } from './wasm-expression.ts';
import { lowerRows } from './wasm-linear.ts';

/** What is special about each op. */
const kinds: Readonly<
  Record<
    string,
    { readonly id: number; readonly gates: number; readonly defaults: readonly string[] }
  >
> = {
  RNN: { id: 0, gates: 1, defaults: ['Tanh'] },
  GRU: { id: 1, gates: 3, defaults: ['Sigmoid', 'Tanh'] },
  LSTM: { id: 2, gates: 4, defaults: ['Sigmoid', 'Tanh', 'Tanh'] },
};

/** Functions by their ONNX name in lower case, and whether they take alpha and beta from the lists. */
const functions: ReadonlyMap<string, readonly [name: ActivationName, constants: number]> = new Map([
  ['relu', ['relu', 0]],
  ['tanh', ['tanh', 0]],
  ['sigmoid', ['sigmoid', 0]],
  ['leakyrelu', ['leaky-relu', 1]],
  ['hardsigmoid', ['hard-sigmoid', 2]],
  ['elu', ['elu', 1]],
  ['softplus', ['softplus', 0]],
  ['hardswish', ['hard-swish', 0]],
  ['gelu', ['gelu', 0]],
] as const);

/** Lowers LSTM, GRU and RNN. */
export function lowerRecurrent(lowering: Lowering, node: Node): void {
  const kind = kinds[node.op];
  if (kind === undefined) throw new Unsupported(node.op);
  const x = lowering.floats(node.input(0));
  const batchFirst = node.int('layout', 0) !== 0;
  const [first = 1, second = 1] = x.shape;
  const [steps, batch] = batchFirst ? [second, first] : [first, second];
  const direction = node.string('direction', 'forward');
  const directions = direction === 'bidirectional' ? 2 : 1;
  const recurrent = node.input(2);
  const hidden = lowering.fixed(lowering.shapeOf(recurrent)[2], 'the size of a state');
  const width = kind.gates * hidden;
  const wide = directions * width;
  const after = node.op === 'GRU' && node.int('linear_before_reset', 0) !== 0;
  const biases = biasesOf(node, directions, width, hidden, after);
  const table = (part: string, values: Float32Array<ArrayBuffer> | undefined): Address | 0 =>
    values === undefined ? 0 : lowering.table(`${node.name}.${part}`, values);
  const projected = lowering.fresh(`${node.name} projections`, [first, second, wide]);
  lowerRows(lowering, x, node.input(1), wide, table('bias', biases.input), projected);

  const row = hidden * 4;
  const state = batchFirst
    ? { SDIRECTION: row, SBATCH: directions * row }
    : { SDIRECTION: multiplyDims(batch, row), SBATCH: row };
  const [step, item] = batchFirst
    ? [wide * 4, multiplyDims(steps, wide * 4)]
    : [multiplyDims(batch, wide * 4), wide * 4];
  const all = node.outputs[0];
  const kept = all !== undefined && (all.useCount > 0 || all.isOutput);
  const y = kept ? lowering.output(node, 0) : undefined;
  const last = (index: number): Place =>
    node.outputs[index] === undefined
      ? lowering.fresh(`${node.name} state`, [directions, batch, hidden])
      : lowering.output(node, index);
  const lengths = node.inputs[4];
  lowering.emit(
    'RECURRENT',
    {
      KIND: kind.id,
      X: projected.address,
      XSTEP: step,
      XBATCH: item,
      R: lowering.floats(recurrent).address,
      RBIAS: table('recurrent bias', biases.candidate),
      H0: lowering.optional(node.inputs[5]),
      C0: lowering.optional(node.inputs[6]),
      ...state,
      PEEPHOLE: lowering.optional(node.inputs[7]),
      LENGTHS: lengths === undefined ? 0 : lowering.ints(lengths).address,
      Y: y?.address ?? 0,
      ...(batchFirst
        ? {
            YSTEP: directions * row,
            YDIRECTION: row,
            YBATCH: multiplyDims(steps, directions * row),
          }
        : {
            YSTEP: multiplyDims(batch, directions * row),
            YDIRECTION: multiplyDims(batch, row),
            YBATCH: row,
          }),
      H: last(1).address,
      C: node.op === 'LSTM' ? last(2).address : 0,
      STEPS: steps,
      BATCH: batch,
      DIRECTIONS: directions,
      HIDDEN: hidden,
      REVERSE: direction === 'bidirectional' ? 2 : direction === 'reverse' ? 1 : 0,
      ACTIVATIONS: lowering.code(activationTable(node, kind.defaults, directions)),
      CLIP: f32(node.float('clip', 0)),
      LINEARBEFORE: after ? 1 : 0,
      INPUTFORGET: node.int('input_forget', 0),
      GATES: addressOf(lowering.panel(2 * width * 4)),
    },
    { why: `${directions === 2 ? 'both directions' : direction}, all steps` },
  );
}

/** Biases: of the projections // [directions * width], and of a GRU's candidate // [directions * hidden]. */
function biasesOf(
  node: Node,
  directions: number,
  width: number,
  hidden: number,
  after: boolean,
): {
  readonly input: Float32Array<ArrayBuffer> | undefined;
  readonly candidate: Float32Array<ArrayBuffer> | undefined;
} {
  const given: Value | undefined = node.inputs[3];
  if (given === undefined) return { input: undefined, candidate: undefined };
  const constant = given.constant();
  if (constant === undefined) throw new Unsupported(`a ${node.op} whose biases are computed`);
  const values = Float32Array.from(constant.data as ArrayLike<number>, Number);
  const input = new Float32Array(directions * width);
  const candidate = new Float32Array(directions * hidden);
  for (let d = 0; d < directions; d++)
    for (let i = 0; i < width; i++) {
      const [own, recurrent] = [
        values[2 * d * width + i] ?? 0,
        values[(2 * d + 1) * width + i] ?? 0,
      ];
      const late = after && i >= 2 * hidden;
      input[d * width + i] = late ? own : own + recurrent;
      if (late) candidate[d * hidden + i - 2 * hidden] = recurrent;
    }
  return { input, candidate: after ? candidate : undefined };
}

/** Three functions of each direction as the kernel reads them. */
function activationTable(
  node: Node,
  defaults: readonly string[],
  directions: number,
): Int32Array<ArrayBuffer> {
  const given = node.attributes.get('activations');
  const names =
    given?.kind === 'strings' && given.value.length > 0
      ? given.value
      : Array.from({ length: directions }, () => defaults).flat();
  const alphas = [...(node.floats('activation_alpha') ?? [])];
  const betas = [...(node.floats('activation_beta') ?? [])];
  const words = new Int32Array(directions * 9);
  names.forEach((name, index) => {
    const [known, constants] = functions.get(name.toLowerCase()) ?? [];
    if (known === undefined || constants === undefined)
      throw new Unsupported(`a ${node.op} with ${name}`);
    const { alpha = 0, beta = 0 } = activations[known];
    const each = defaults.length;
    const at = (Math.floor(index / each) * 3 + (index % each)) * 3;
    words[at] = activationIds[known];
    words[at + 1] = f32((constants > 0 ? alphas.shift() : undefined) ?? alpha);
    words[at + 2] = f32((constants > 1 ? betas.shift() : undefined) ?? beta);
  });
  return words;
}
