/**
 * Linear ops with constant weights, as one thing to rewrite: which elements of the weights belong to
 * which input and which output channel.
 *
 *     MatMul(x, w [K, N])      Gemm(x, w, b?)      fettle.Linear(x, w, b?, …)
 *     Conv(x, w [M, C/g, …], b?)      ConvTranspose(x, w [C, M/g, …], b?)      and fettle's
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { isFusedConv } from '../ops/fused-conv.ts';
import { gatedLinearInputs, isGatedLinear, isLinear } from '../ops/fused-linear.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';

/** A linear op with constant weights, of input 0 of a node. */
export interface LinearSite {
  /** The node. */
  readonly node: Node;
  /** Its inputs that are the weights and the bias. */
  readonly places: { readonly weight: number; readonly bias: number };
  /** Its weights. */
  readonly weight: Value;
  /** Its constant bias; undefined when it has none. */
  readonly bias: Value | undefined;
  /** Whether it has a place for a bias. */
  readonly takesBias: boolean;
  /** Input channels. */
  readonly inputs: number;
  /** Output channels. */
  readonly outputs: number;
  /** Axis of the input channels: 1, or the last. */
  readonly axis: 1 | -1;
  /** Whether the weights of one output lie together: [outputs, inputs, …]. */
  readonly outputsFirst: boolean;
  /** Whether zeros are put around the data, so that a shift of the data is no shift of the sums. */
  readonly padded: boolean;
  /** Input channel of an element of the weights. */
  inputOf(index: number): number;
  /** Output channel of an element of the weights. */
  outputOf(index: number): number;
}

/** Weights up to this size may be copied for the sake of one of their readers. */
const SMALL_BYTES = 65_536;

/**
 * The linear ops a node is, or a sentence why they cannot be rewritten; undefined for another op. All but
 * GatedLinear are one.
 */
export function linearSites(node: Node): readonly LinearSite[] | string | undefined {
  const layout = layoutOf(node);
  if (layout === undefined) return undefined;
  const sites: LinearSite[] = [];
  for (const places of isGatedLinear(node) ? gatedPlaces : plainPlaces) {
    const weight = node.inputs[places.weight];
    const bias = node.inputs[places.bias];
    const shape = weight?.weight?.shape;
    if (weight === undefined || shape === undefined) return 'its weights are not constant';
    if (bias !== undefined && bias.weight === undefined) return 'its bias is not constant';
    const found = layout(node, shape);
    if (found === undefined) return undefined;
    if (bias !== undefined && !isRow(bias, found.outputs)) return 'its bias differs between rows';
    if (weight.dtype !== 'f32' && weight.dtype !== 'f64')
      return `weights of ${weight.dtype} would lose too much`;
    if (weight.useCount > 1 && (weight.weight?.byteLength ?? 0) > SMALL_BYTES)
      return 'its weights are used elsewhere';
    sites.push({ node, places, weight, bias, ...found });
  }
  return sites;
}

/**
 * The linear ops that read a value, when nothing else does.
 *
 * @returns a sentence when something else reads it too, undefined when no linear op does
 */
export function readersOf(
  value: Value,
): readonly [LinearSite, ...LinearSite[]] | string | undefined {
  const found: LinearSite[] = [];
  let why: string | undefined;
  let linear = false;
  for (const user of value.users.keys()) {
    const sites = layoutOf(user) === undefined ? undefined : linearSites(user);
    // as weights, as a bias, or as a residual it is not what the weights are multiplied with
    const asData = user.inputs.every((input, index) => (input === value) === (index === 0));
    if (sites === undefined || !asData) why ??= `${user.describe()} reads it too`;
    else if (typeof sites === 'string') [linear, why] = [true, sites];
    else [linear] = [true, found.push(...sites)];
  }
  if (!linear) return undefined;
  if (value.isOutput) why = 'it is an output of the model';
  const [first, ...rest] = found;
  return why ?? (first === undefined ? undefined : [first, ...rest]);
}

const plainPlaces = [{ weight: 1, bias: 2 }] as const;
const gatedPlaces = [
  { weight: gatedLinearInputs.gate, bias: gatedLinearInputs.gateBias },
  { weight: gatedLinearInputs.up, bias: gatedLinearInputs.upBias },
] as const;

function layoutOf(node: Node): (typeof layouts)[string] | undefined {
  const fused = isLinear(node) || isGatedLinear(node) || isFusedConv(node);
  return node.domain === '' || fused ? layouts[node.op] : undefined;
}

/** Whether a bias has one number per output, or one for all. */
function isRow(bias: Value, outputs: number): boolean {
  const shape = (bias.shape ?? []) as readonly number[];
  const size = elementCount(shape);
  return size === 1 || (size === outputs && shape.at(-1) === outputs);
}

type Layout = Omit<LinearSite, 'node' | 'places' | 'weight' | 'bias'>;

const layouts: Readonly<
  Record<string, (node: Node, shape: readonly number[]) => Layout | undefined>
> = {
  MatMul: (_, shape) => matrix(shape, false, false),
  Linear: (node, shape) => matrix(shape, node.int('transposed', 0) === 1, true),
  GatedLinear: (node, shape) => matrix(shape, node.int('transposed', 0) === 1, true),
  Gemm: (node, shape) =>
    node.int('transA', 0) === 0 && node.float('alpha', 1) === 1 && node.float('beta', 1) === 1
      ? matrix(shape, node.int('transB', 0) === 1, true)
      : undefined,
  Conv: convolution,
  ConvTranspose: transposedConvolution,
};

function matrix(
  shape: readonly number[],
  transposed: boolean,
  takesBias: boolean,
): Layout | undefined {
  const [first, second] = shape;
  if (first === undefined || second === undefined || shape.length !== 2) return undefined;
  const row = (index: number): number => Math.floor(index / second);
  const column = (index: number): number => index % second;
  return {
    takesBias,
    axis: -1,
    padded: false,
    outputsFirst: transposed,
    ...(transposed
      ? { inputs: second, outputs: first, inputOf: column, outputOf: row }
      : { inputs: first, outputs: second, inputOf: row, outputOf: column }),
  };
}

function convolution(node: Node, shape: readonly number[]): Layout {
  const [outputs = 1, perGroup = 1] = shape;
  const taps = elementCount(shape.slice(2));
  const groups = node.int('group', 1);
  const outputOf = (index: number): number => Math.floor(index / (taps * perGroup));
  return {
    takesBias: true,
    axis: 1,
    outputsFirst: true,
    padded:
      (node.ints('pads') ?? []).some((pad) => pad !== 0) ||
      node.string('auto_pad', 'NOTSET').startsWith('SAME'),
    inputs: perGroup * groups,
    outputs,
    inputOf: (index) =>
      Math.floor(outputOf(index) / (outputs / groups)) * perGroup +
      (Math.floor(index / taps) % perGroup),
    outputOf,
  };
}

function transposedConvolution(node: Node, shape: readonly number[]): Layout {
  const [inputs = 1, perGroup = 1] = shape;
  const taps = elementCount(shape.slice(2));
  const groups = node.int('group', 1);
  const inputOf = (index: number): number => Math.floor(index / (taps * perGroup));
  return {
    takesBias: true,
    axis: 1,
    outputsFirst: false,
    // places at the border are reached by fewer taps
    padded: true,
    inputs,
    outputs: perGroup * groups,
    inputOf,
    outputOf: (index) =>
      Math.floor(inputOf(index) / (inputs / groups)) * perGroup +
      (Math.floor(index / taps) % perGroup),
  };
}

/** New contents of a site. */
export interface NewWeights {
  /** Like the old weights. */
  readonly weight: Tensor;
  /** One number per output channel; undefined when there is no bias. */
  readonly bias: Tensor | undefined;
}

/**
 * The weights of a site that takes `x` instead of `x * scale + shift`.
 *
 * @param scale - per input channel
 * @param shift - per input channel
 * @returns undefined when a number overflows f32
 */
export function takingAffine(
  site: LinearSite,
  scale: Float64Array,
  shift: Float64Array,
): NewWeights | undefined {
  const old = site.weight.constant();
  if (old === undefined) return undefined;
  const numbers = Float64Array.from(readNumbers(old));
  const sums = biasOf(site);
  let shifted = site.bias !== undefined;
  for (let i = 0; i < numbers.length; i++) {
    const [input, output] = [site.inputOf(i), site.outputOf(i)];
    const value = numbers[i] ?? 0;
    const by = shift[input] ?? 0;
    if (by !== 0) {
      shifted = true;
      sums[output] = (sums[output] ?? 0) + value * by;
    }
    numbers[i] = value * (scale[input] ?? 1);
  }
  return checked(site, old, numbers, shifted ? sums : undefined);
}

/** Why weights that came as codes are left alone: what is folded into them has no codes. */
export const KEPT_CODES = 'its weights are kept in the codes they came in';

/** The weights of a site whose sums are to be multiplied by `scale`, per output channel. */
export function givingScaled(site: LinearSite, scale: Float64Array): NewWeights | undefined {
  const old = site.weight.constant();
  if (old === undefined) return undefined;
  const numbers = Float64Array.from(readNumbers(old));
  for (let i = 0; i < numbers.length; i++)
    numbers[i] = (numbers[i] ?? 0) * (scale[site.outputOf(i)] ?? 1);
  const sums = biasOf(site).map((value, output) => value * (scale[output] ?? 1));
  return checked(site, old, numbers, site.bias === undefined ? undefined : sums);
}

/** One number per output channel, 0 where there is no bias. */
function biasOf(site: LinearSite): Float64Array {
  const sums = new Float64Array(site.outputs);
  const bias = site.bias?.constant();
  if (bias === undefined) return sums;
  const numbers = readNumbers(bias);
  return sums.map((_, output) => numbers[numbers.length === 1 ? 0 : output] ?? 0);
}

function checked(
  site: LinearSite,
  old: Tensor,
  numbers: Float64Array,
  sums: Float64Array | undefined,
): NewWeights | undefined {
  const weight = writeNumbers(old.dtype, old.shape, numbers);
  const bias = sums && writeNumbers(old.dtype, [site.outputs], sums);
  const finite = [weight, bias].every(
    (tensor) => tensor === undefined || readNumbers(tensor).every(Number.isFinite),
  );
  return finite ? { weight, bias } : undefined;
}

/** Gives a site new contents. */
export function setWeights(rewriter: Rewriter, site: LinearSite, made: NewWeights): void {
  const { node, places, weight } = site;
  rewriter.setInput(node, places.weight, rewriter.constant(`${weight.name}_folded`, made.weight));
  if (made.bias === undefined) return;
  const name = site.bias?.name ?? `${weight.name}_bias`;
  rewriter.setInput(node, places.bias, rewriter.constant(`${name}_folded`, made.bias));
}
