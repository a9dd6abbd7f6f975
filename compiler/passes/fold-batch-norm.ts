/**
 * Puts a scale and a shift per channel behind a convolution into its weights and bias.
 *
 *     BatchNormalization(Conv(x, w), scale, shift, mean, variance)    ->   Conv(x, w', b')
 *     Add(Mul(Conv(x, w, b), s), t)                                   ->   Conv(x, w·s, b·s + t)
 *     Add(Mul(BatchNormalization(x, g, b, m, v), s), t)    ->    BatchNormalization(x, g·s, b·s + t, m, v)
 *
 * Weights are multiplied in doubles and rounded once to f32, so outputs differ from the original's by
 * rounding: about 1e-6 of their range for a layer. The only clean-up that is not bit-exact.
 * Refuses weights that something else reads, dtypes narrower than f32 and results that overflow.
 * Source: Jacob et al., Quantization and Training of Neural Networks, arXiv:1712.05877, section 3.2.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Node, Value } from '../ir/graph.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import { KEPT_CODES } from './linear-site.ts';
import type { Pass, PassContext } from './pass.ts';
import { perChannel } from './per-channel.ts';
import { obstacle, replaceValue } from './replace.ts';

/** y·scale + shift, per output channel. */
interface Affine {
  readonly scale: Float64Array;
  readonly shift: Float64Array;
}

/** Makes the pass. It has no options. */
export function foldBatchNorm(): Pass {
  return {
    name: 'fold-batch-norm',
    options: {},
    rules: ['batch-norm', 'mul', 'add', 'sub', 'div'].map((name) => ({
      name,
      starts: [...roots],
    })),
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes())
        if (node.domain === '' && roots.has(node.op)) visit(node, model.opset, context);
      return context.rewriter.changes > before;
    },
  };
}

/** Ops whose inputs 1 and 2 are a scale (or a kernel, which scales) and a bias per output channel. */
const roots: ReadonlySet<string> = new Set(['Conv', 'ConvTranspose', 'BatchNormalization']);

function visit(conv: Node, opset: number, context: PassContext): void {
  const weight = conv.inputs[1];
  const channels = weight?.shape === undefined ? undefined : channelsOf(conv, weight.shape);
  const miss = (why: string): void => context.miss('fold-batch-norm', conv, why);
  if (weight === undefined || channels === undefined) return miss('its channels are not known');
  const training = conv.op === 'BatchNormalization' ? trainingReason(conv, opset) : undefined;
  if (training !== undefined) return miss(training);
  const affine: Affine = {
    scale: new Float64Array(channels).fill(1),
    shift: new Float64Array(channels),
  };
  const bias = conv.inputs[2]?.constant();
  if (bias !== undefined) affine.shift.set(readNumbers(bias));

  const chain: Node[] = [];
  for (let value = conv.output(0); ; value = chain.at(-1)?.output(0) ?? value) {
    const user = value.onlyUser;
    if (user === undefined || user.graph !== conv.graph || user.domain !== '') break;
    const step = stepOf(user, value, conv, opset);
    if (step === undefined) break;
    const why = typeof step === 'string' ? step : reasonToKeep(conv, weight);
    if (why !== undefined) {
      context.refuse(ruleOf(user), user, why);
      break;
    }
    if (typeof step !== 'string') apply(affine, step);
    chain.push(user);
  }
  if (chain.length > 0) rewrite(conv, weight, affine, chain, context);
  else
    miss('what reads it is no factor, shift or norm per channel, or more than one node reads it');
}

function ruleOf(node: Node): string {
  return node.op === 'BatchNormalization' ? 'batch-norm' : node.op.toLowerCase();
}

function reasonToKeep(conv: Node, weight: Value): string | undefined {
  const bias = conv.inputs[2];
  if (weight.weight === undefined || (bias !== undefined && bias.weight === undefined))
    return `the weights of the ${conv.op} are not constant`;
  if (weight.weight.grid !== undefined) return KEPT_CODES;
  if (weight.useCount > 1 && weight.weight.byteLength > SMALL_BYTES)
    return `the weights of the ${conv.op} are used elsewhere`;
  if (weight.dtype !== 'f32' && weight.dtype !== 'f64')
    return `weights of ${weight.dtype} would lose too much`;
  return undefined;
}

/** Weights up to this size may be copied for the sake of one of their readers. */
const SMALL_BYTES = 65_536;

/** Output channels, from [M, C/group, …] for Conv and [C, M/group, …] for ConvTranspose; [M] for a norm. */
function channelsOf(conv: Node, shape: readonly (number | string)[]): number | undefined {
  const [first, second] = shape;
  if (conv.op !== 'ConvTranspose') return typeof first === 'number' ? first : undefined;
  return typeof second === 'number' ? second * conv.int('group', 1) : undefined;
}

/** What a node does to each channel; a sentence when it cannot be folded; undefined for another op. */
function stepOf(node: Node, value: Value, conv: Node, opset: number): Affine | string | undefined {
  const rank = value.shape?.length ?? (conv.op === 'Conv' ? (conv.input(1).shape?.length ?? 0) : 0);
  const channels = channelsOf(conv, conv.inputs[1]?.shape ?? []) ?? 0;
  if (node.op === 'BatchNormalization') return batchNorm(node, value, channels, opset);
  if (!['Add', 'Sub', 'Mul', 'Div'].includes(node.op)) return undefined;
  const [left, right] = node.inputs;
  const isLeft = left === value;
  const other = (isLeft ? right : left)?.constant();
  if (other === undefined) return undefined;
  const terms = perChannel(other, channels, rank, 1);
  if (terms === undefined) return 'the constant differs within a channel';
  if (node.op === 'Mul') return scaled(terms);
  if (node.op === 'Div') return isLeft ? scaled(terms.map((term) => 1 / term)) : undefined;
  if (node.op === 'Add') return shifted(terms);
  return isLeft ? shifted(terms.map((term) => -term)) : undefined;
}

function scaled(scale: Float64Array): Affine {
  return { scale, shift: new Float64Array(scale.length) };
}

function shifted(shift: Float64Array): Affine {
  return { scale: new Float64Array(shift.length).fill(1), shift };
}

function batchNorm(
  node: Node,
  value: Value,
  channels: number,
  opset: number,
): Affine | string | undefined {
  if (node.inputs[0] !== value) return undefined;
  const training = trainingReason(node, opset);
  if (training !== undefined) return training;
  const constants = [1, 2, 3, 4].map((index) => node.inputs[index]?.constant());
  const numbers = constants.flatMap((constant) =>
    constant === undefined ? [] : [readNumbers(constant)],
  );
  const [gain, beta, mean, variance] = numbers;
  if (gain === undefined || beta === undefined || mean === undefined || variance === undefined)
    return 'its parameters are not constant';
  if (numbers.some((list) => list.length !== channels)) return 'its parameters have another size';
  const epsilon = Math.fround(node.float('epsilon', 1e-5));
  const scale = Float64Array.from(gain, (g, c) => g / Math.sqrt((variance[c] ?? 0) + epsilon));
  const shift = Float64Array.from(beta, (b, c) => b - (mean[c] ?? 0) * (scale[c] ?? 0));
  return { scale, shift };
}

/** Why a BatchNormalization is more than a scale and a shift per channel. */
function trainingReason(node: Node, opset: number): string | undefined {
  if (node.int('training_mode', 0) !== 0 || (opset < 7 && node.int('is_test', 0) === 0))
    return 'it is in training mode';
  if (node.outputs.slice(1).some((output) => (output?.useCount ?? 0) > 0))
    return 'its statistics are used';
  return node.int('spatial', 1) === 0 ? 'it normalizes each place by itself' : undefined;
}

/** `affine` followed by `step`, in place. */
function apply(affine: Affine, step: Affine): void {
  for (let channel = 0; channel < affine.scale.length; channel++) {
    const factor = step.scale[channel] ?? 1;
    affine.scale[channel] = (affine.scale[channel] ?? 1) * factor;
    affine.shift[channel] = (affine.shift[channel] ?? 0) * factor + (step.shift[channel] ?? 0);
  }
}

function rewrite(
  conv: Node,
  weight: Value,
  affine: Affine,
  chain: readonly Node[],
  context: PassContext,
): void {
  const { rewriter } = context;
  const last = chain.at(-1)?.output(0);
  const original = weight.constant();
  if (last === undefined || original === undefined) return;
  const kernel = scaleKernel(conv, original, affine.scale);
  const bias = writeNumbers(original.dtype, [affine.shift.length], Float64Array.from(affine.shift));
  const finite = [kernel, bias].every((tensor) => readNumbers(tensor).every(Number.isFinite));
  const why = finite
    ? obstacle(rewriter.model.graph, last, conv.output(0))
    : 'the folded weights would not be finite';
  if (why !== undefined) {
    context.refuse(ruleOf(chain[0] ?? conv), conv, why);
    return;
  }
  rewriter.setInput(conv, 1, rewriter.constant(`${weight.name}_scaled`, kernel));
  const oldBias = conv.inputs[2];
  if (oldBias !== undefined || affine.shift.some((shift) => shift !== 0)) {
    const name = oldBias?.name ?? `${weight.name}_bias`;
    rewriter.setInput(conv, 2, rewriter.constant(`${name}_shifted`, bias));
  }
  replaceValue(rewriter, last, conv.output(0));
  for (const node of [...chain].reverse()) if (node.graph !== undefined) rewriter.remove(node);
  conv.from = [...new Set([...conv.from, ...chain.flatMap((node) => node.from)])];
  for (const node of chain) context.count(ruleOf(node));
}

function scaleKernel(conv: Node, kernel: Tensor, scale: Float64Array): Tensor {
  const numbers = Float64Array.from(readNumbers(kernel));
  const [first = 1, second = 1] = kernel.shape;
  const inner = elementCount(kernel.shape.slice(2));
  const groups = conv.int('group', 1);
  for (let i = 0; i < numbers.length; i++) {
    const row = Math.floor(i / (inner * second));
    const column = Math.floor(i / inner) % second;
    const channel =
      conv.op === 'ConvTranspose' ? Math.floor(row / (first / groups)) * second + column : row;
    numbers[i] = (numbers[i] ?? 0) * (scale[channel] ?? 1);
  }
  return writeNumbers(kernel.dtype, kernel.shape, numbers);
}
