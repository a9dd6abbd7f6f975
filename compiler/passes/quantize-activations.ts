/**
 * Products in 8 bits for engines that multiply integers: activations u8, weights s8 with one scale per
 * output channel, in ONNX's own spelling, which onnxruntime turns into its integer kernels.
 *
 *   linear, static    MatMul(DQ(Q(x)), DQ(w s8))                           range of x known and small
 *   linear, dynamic   DynamicQuantizeLinear(x) -> MatMulInteger -> Mul      any other
 *   convolution       DQ(Q(Conv(DQ(Q(x)), DQ(w s8), DQ(b s32))))            ranges of x and product known
 *
 * A static range costs nothing at run time and is exact enough while no value stands far out; FPTQ's
 * limit decides. Convolutions whose ranges are not known, weights that something else reads and
 * products smaller than `minElements` stay as they are. Instead of `quantize-weights`, not before it.
 *
 * Sources: Krishnamoorthi, arXiv:1806.08342; Li et al., FPTQ, arXiv:2308.15987;
 * https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
 */
import { FettleError } from '../../runtime/errors.ts';
import { elementCount, tensor } from '../../runtime/tensor.ts';
import { int } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { writeActivation } from '../lower/expand-activation.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { convInputs, epilogueAttributes, isFusedConv } from '../ops/fused-conv.ts';
import { isGatedLinear, isLinear, linearInputs } from '../ops/fused-linear.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import type { LinearSite } from './linear-site.ts';
import { linearSites } from './linear-site.ts';
import type { Pass, PassContext } from './pass.ts';
import { isSkipped } from './skip-list.ts';

/** Options of {@link quantizeActivations}. */
export interface QuantizeActivationsOptions {
  /**
   * Least and greatest value, by name of the value; of a convolution's product before its activation
   * under the name of its output and {@link PRODUCT}. Default none.
   */
  readonly ranges?: Readonly<Record<string, readonly number[]>>;
  /** Whether linear ops without a range quantize their inputs as they come. Default true. */
  readonly dynamic?: boolean;
  /** Largest magnitude that one static range is used for. Default 15. */
  readonly staticLimit?: number;
  /** Constants or nodes to touch: names, or patterns with `*`. Default all. */
  readonly only?: readonly string[];
  /** Constants or nodes to leave alone: names, or patterns with `*`. Default none. */
  readonly skip?: readonly string[];
  /** Smallest weights that are touched, in elements. Default 256. */
  readonly minElements?: number;
}

/** Defaults of {@link QuantizeActivationsOptions}. */
export const quantizeActivationsDefaults: Required<QuantizeActivationsOptions> = {
  ranges: {},
  dynamic: true,
  staticLimit: 15,
  only: ['*'],
  skip: [],
  minElements: 256,
};

/** Why a convolution is left alone that calibration has not seen. */
export const UNKNOWN_RANGES = 'its ranges are not known';

/** What follows the name of a convolution's output in the name of its product's range. */
export const PRODUCT = ':product';

type Settings = Required<QuantizeActivationsOptions>;

const rules = {
  linear: 'linear',
  static: 'static',
  dynamic: 'dynamic',
  convolution: 'convolution',
} as const;

const linearOps = ['fettle.Linear', 'fettle.GatedLinear', 'MatMul', 'Gemm'] as const;

/** Makes the pass. @throws FettleError USAGE for a range that is none */
export function quantizeActivations(options: QuantizeActivationsOptions = {}): Pass {
  const settings = { ...quantizeActivationsDefaults, ...options };
  for (const [name, [least = Number.NaN, greatest = Number.NaN]] of Object.entries(settings.ranges))
    if (!(Number.isFinite(least) && Number.isFinite(greatest) && least <= greatest))
      throw new FettleError('USAGE', `The range of "${name}" is ${least} to ${greatest}.`, {
        at: { pass: 'quantize-activations', value: name },
        fix: 'Give the least and the greatest value, both finite.',
      });
  return {
    name: 'quantize-activations',
    options: settings,
    rules: [
      { name: rules.linear, starts: linearOps },
      { name: rules.static, starts: linearOps },
      { name: rules.dynamic, starts: linearOps },
      { name: rules.convolution, starts: ['fettle.Conv', 'Conv'] },
    ],
    run(model, context) {
      const before = context.rewriter.changes;
      const run = new Run(settings, context);
      for (const node of model.graph.nodes()) {
        const sites = productOf(node, settings);
        if (sites === undefined) continue;
        if (typeof sites === 'string') context.refuse(ruleOf(node), node, sites);
        else if (node.op === 'Conv') convolution(node, sites[0], run);
        else linear(node, sites, run);
      }
      return context.rewriter.changes > before;
    },
  };
}

/** One run of the pass. */
class Run {
  readonly settings: Settings;
  readonly context: PassContext;
  /** What values were called that have taken another's place. */
  private readonly names = new Map<Value, string>();

  constructor(settings: Settings, context: PassContext) {
    this.settings = settings;
    this.context = context;
  }

  /** Range of a value of the original graph. */
  rangeOf(value: Value): readonly number[] | undefined {
    return this.settings.ranges[this.names.get(value) ?? value.name];
  }

  /** Puts a value in the place of a node's. */
  replace(node: Node, value: Value): void {
    const { rewriter } = this.context;
    const output = node.output(0);
    this.names.set(value, output.name);
    rewriter.replace(output, value);
    rewriter.remove(node);
  }
}

/** Whether a node is a product in 8 bits could be made of: its weights, or why not. */
export function productOf(
  node: Node,
  { only, skip, minElements }: Pick<Settings, 'only' | 'skip' | 'minElements'>,
): readonly [LinearSite, LinearSite?] | string | undefined {
  const isKnown =
    isLinear(node) ||
    isGatedLinear(node) ||
    (isFusedConv(node) && node.op === 'Conv') ||
    (node.domain === '' && ['MatMul', 'Gemm', 'Conv'].includes(node.op));
  if (!isKnown) return undefined;
  const sites = linearSites(node);
  if (sites === undefined || typeof sites === 'string') return sites;
  const [site, second] = sites;
  if (site === undefined || sites.some(({ weight }) => weight.dtype !== 'f32')) return undefined;
  const { weight } = site;
  if (elementCount((weight.shape ?? []) as readonly number[]) < minElements) return undefined;
  const names = [...sites.map((one) => one.weight.name), node.name, ...node.from];
  if (isSkipped(names, skip)) return 'the skip list names it';
  if (!isSkipped(names, only)) return 'it is not among those that are wanted';
  return second === undefined ? [site] : [site, second];
}

function ruleOf(node: Node): string {
  return node.op === 'Conv' ? rules.convolution : rules.linear;
}

/** Scale and zero point of u8 for a range that holds 0. */
export function gridOf(range: readonly number[]): {
  readonly scale: number;
  readonly zero: number;
} {
  const least = Math.min(0, range[0] ?? 0);
  const greatest = Math.max(0, range[1] ?? 0);
  const scale = Math.fround((greatest - least) / 255) || 1;
  return { scale, zero: Math.min(255, Math.max(0, Math.round(-least / scale))) };
}

/** DQ(Q(x)). */
function quantized(rewriter: Rewriter, x: Value, range: readonly number[]): Value {
  const { scale, zero } = gridOf(range);
  const parts = [
    rewriter.constant(`${x.name}_scale`, tensor('f32', [], Float32Array.of(scale))),
    rewriter.constant(`${x.name}_zero`, tensor('u8', [], Uint8Array.of(zero))),
  ];
  const codes = rewriter.op('QuantizeLinear', [x, ...parts]);
  return rewriter.op('DequantizeLinear', [codes, ...parts]);
}

/** Scale of a value that has been rounded to u8 already; rounding it again would cost and lose. */
function knownScale({ producer }: Value): number | undefined {
  const isRounded = producer?.op === 'DequantizeLinear' && producer.inputs[0]?.dtype === 'u8';
  const scale = isRounded ? producer.inputs[1]?.constant() : undefined;
  return scale?.shape.length === 0 ? Number(readNumbers(scale)[0]) : undefined;
}

interface SignedWeights {
  /** In the order of storage. */
  readonly codes: Int8Array;
  /** By output channel. */
  readonly scales: Float32Array;
}

/** Weights in s8, symmetric, one scale per output channel. */
function signedWeights(site: LinearSite): SignedWeights | undefined {
  const stored = site.weight.constant();
  if (stored === undefined) return undefined;
  const values = readNumbers(stored);
  const scales = new Float32Array(site.outputs);
  for (let i = 0; i < values.length; i++) {
    const output = site.outputOf(i);
    scales[output] = Math.max(scales[output] ?? 0, Math.abs(Number(values[i])));
  }
  for (let i = 0; i < scales.length; i++) scales[i] = (scales[i] ?? 0) / 127 || 1;
  const codes = Int8Array.from({ length: values.length }, (_, i) =>
    Math.round(Number(values[i]) / (scales[site.outputOf(i)] ?? 1)),
  );
  return { codes, scales };
}

function linear(node: Node, sites: readonly [LinearSite, LinearSite?], run: Run): void {
  const { context } = run;
  const { rewriter } = context;
  const { dynamic, staticLimit } = run.settings;
  const x = node.input(0);
  const range = run.rangeOf(x);
  const most = range === undefined ? Infinity : Math.max(...range.map(Math.abs));
  const rounded = knownScale(x) !== undefined;
  const isStatic = rounded || most <= staticLimit;
  if (!isStatic && !dynamic) {
    const why = range === undefined ? 'its range is not known' : `its range reaches ${most}`;
    context.refuse(rules.linear, node, `${why}, and dynamic ranges are not wanted`);
    return;
  }
  rewriter.before(node);
  const given = isStatic && !rounded ? quantized(rewriter, x, range ?? []) : x;
  const parts = isStatic
    ? undefined
    : rewriter.node('DynamicQuantizeLinear', [x], {}, { outputs: 3 });
  const products = sites.flatMap((site): Value[] => {
    const made = site && constantsOf(site, rewriter);
    if (site === undefined || made === undefined) return [];
    const product =
      parts === undefined
        ? staticProduct(rewriter, given, made)
        : dynamicProduct(rewriter, parts, made);
    const bias = node.inputs[site.places.bias];
    return [bias === undefined ? product : rewriter.op('Add', [product, bias])];
  });
  finish(node, products, run);
  context.count(isStatic ? rules.static : rules.dynamic);
}

interface IntegerWeights {
  /** s8 [K, N], as integer products read them. */
  readonly codes: Value;
  /** f32 [N]. */
  readonly scales: Value;
}

function constantsOf(site: LinearSite, rewriter: Rewriter): IntegerWeights | undefined {
  const made = signedWeights(site);
  if (made === undefined) return undefined;
  const { inputs, outputs } = site;
  const codes = new Int8Array(made.codes.length);
  for (let i = 0; i < codes.length; i++)
    codes[site.inputOf(i) * outputs + site.outputOf(i)] = made.codes[i] ?? 0;
  const { name } = site.weight;
  return {
    codes: rewriter.constant(`${name}_s8`, tensor('i8', [inputs, outputs], codes)),
    scales: rewriter.constant(`${name}_scales`, tensor('f32', [outputs], made.scales)),
  };
}

function staticProduct(rewriter: Rewriter, x: Value, { codes, scales }: IntegerWeights): Value {
  const zeros = rewriter.constant(
    `${codes.name}_zeros`,
    tensor('i8', scales.shape as readonly number[], new Int8Array(Number(scales.shape?.[0] ?? 1))),
  );
  const w = rewriter.op('DequantizeLinear', [codes, scales, zeros], { axis: int(1) });
  return rewriter.op('MatMul', [x, w]);
}

/** @param x - DynamicQuantizeLinear of the data */
function dynamicProduct(rewriter: Rewriter, x: Node, { codes, scales }: IntegerWeights): Value {
  const sums = rewriter.op('MatMulInteger', [x.output(0), codes, x.output(2)]);
  // onnxruntime makes one kernel of this chain, in this order
  const scale = rewriter.op('Mul', [x.output(1), scales]);
  const floats = rewriter.op('Cast', [sums], { to: int(1) });
  return rewriter.op('Mul', [floats, scale]);
}

/** Activation, gate and residual behind products; the node goes. */
function finish(node: Node, [first, second]: readonly Value[], run: Run): void {
  const { rewriter } = run.context;
  if (first === undefined) return;
  let value = first;
  if (isLinear(node) || isGatedLinear(node)) {
    const [alpha, beta] = [node.float('alpha'), node.float('beta')];
    value = writeActivation(rewriter, activationNameOf(node), value, alpha, beta);
  }
  if (second !== undefined) value = rewriter.op('Mul', [value, second]);
  const residual = isLinear(node) ? node.inputs[linearInputs.residual] : undefined;
  if (residual !== undefined) value = rewriter.op('Add', [value, residual]);
  run.replace(node, value);
}

function convolution(node: Node, site: LinearSite, run: Run): void {
  const { context } = run;
  const { rewriter } = context;
  const x = node.input(0);
  const range = run.rangeOf(x);
  const given = run.settings.ranges[`${node.output(0).name}${PRODUCT}`];
  const known = knownScale(x);
  const scale = known ?? (range === undefined ? undefined : gridOf(range).scale);
  if (scale === undefined || given === undefined) {
    context.refuse(rules.convolution, node, UNKNOWN_RANGES);
    return;
  }
  const made = signedWeights(site);
  if (made === undefined) return;
  rewriter.before(node);
  const name = site.weight.name;
  const shape = site.weight.weight?.shape ?? [];
  const channels = (values: Float32Array, suffix: string): Value =>
    rewriter.constant(`${name}_${suffix}`, tensor('f32', [values.length], values));
  const zeros = rewriter.constant(
    `${name}_zeros`,
    tensor('i8', [site.outputs], new Int8Array(site.outputs)),
  );
  const weight = rewriter.op(
    'DequantizeLinear',
    [
      rewriter.constant(`${name}_s8`, tensor('i8', shape, made.codes)),
      channels(made.scales, 'scales'),
      zeros,
    ],
    { axis: int(0) },
  );
  const inputs = [known === undefined ? quantized(rewriter, x, range ?? []) : x, weight];
  const bias = site.bias?.constant();
  if (bias !== undefined) inputs.push(biasOf(site, made, scale, rewriter));
  const attributes = Object.fromEntries(
    [...node.attributes].filter(([key]) => !isFusedConv(node) || !epilogueAttributes.includes(key)),
  );
  let value = rewriter.op('Conv', inputs, attributes);
  const activation = isFusedConv(node) ? activationNameOf(node) : 'none';
  const residual = isFusedConv(node) ? node.inputs[convInputs.residual] : undefined;
  const first = node.int('residualFirst', 0) === 1;
  const add = (sum: Value): Value =>
    residual === undefined ? sum : rewriter.op('Add', [sum, residual]);
  const [alpha, beta] = [node.float('alpha'), node.float('beta')];
  // what lies outside of a grid becomes its end: a range from 0 on is a Relu
  const limits =
    activation === 'relu' ? [0, Infinity] : activation === 'relu6' ? [0, 6] : undefined;
  if (limits !== undefined && !(residual !== undefined && first)) {
    const [least = 0, greatest = Infinity] = limits;
    value = add(
      quantized(rewriter, value, [least, Math.min(greatest, Math.max(0, given[1] ?? 0))]),
    );
  } else {
    value = quantized(rewriter, value, given);
    if (first) value = add(value);
    value = writeActivation(rewriter, activation, value, alpha, beta);
    if (!first) value = add(value);
  }
  run.replace(node, value);
  context.count(rules.convolution);
}

/** The bias in s32, at the scale of the sums. */
function biasOf(
  site: LinearSite,
  { scales }: SignedWeights,
  inputScale: number,
  rewriter: Rewriter,
): Value {
  const bias = site.bias?.constant();
  const numbers = bias === undefined ? [0] : readNumbers(bias);
  const steps = scales.map((scale) => scale * inputScale);
  const codes = Float64Array.from(steps, (step, channel) =>
    Math.round(Number(numbers[numbers.length === 1 ? 0 : channel] ?? 0) / step),
  );
  const name = site.bias?.name ?? site.weight.name;
  const parts = [
    rewriter.constant(`${name}_s32`, writeNumbers('i32', [site.outputs], codes)),
    rewriter.constant(`${name}_steps`, tensor('f32', [site.outputs], steps)),
  ];
  return rewriter.op('DequantizeLinear', parts, { axis: int(0) });
}
