/**
 * Puts factors and shifts around a linear op into its weights.
 *
 *     Conv(Add(Mul(x, s), t), w, b)        ->   Conv(x, w·s, b + w·t)        without padding
 *     Conv(Add(Mul(x, s), t), w, b)        ->   Conv(Add(x, t/s), w·s, b)    with it
 *     Mul(Linear(x, w, b), s)              ->   Linear(x, w·s, b·s)
 *     Mul(Add(MatMul(x, w), b), s)         ->   Add(MatMul(x, w·s), b·s)
 *
 * s and t are constants with one number for all or one per channel. What comes before is folded when
 * linear ops are all that read it; what comes after when nothing else reads the sums.
 * Computed in doubles and rounded once to f32, as `fold-batch-norm` does for what follows a Conv.
 */
import type { Graph, Node, Value } from '../ir/graph.ts';
import { isLinear, linearInputs } from '../ops/fused-linear.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import type { LinearSite, NewWeights } from './linear-site.ts';
import {
  givingScaled,
  KEPT_CODES,
  linearSites,
  readersOf,
  setWeights,
  takingAffine,
} from './linear-site.ts';
import type { Pass, PassContext } from './pass.ts';
import { perChannel } from './per-channel.ts';
import { obstacle, removeIfUnused, replaceByNew, replaceValue } from './replace.ts';

/** Makes the pass. It has no options. */
export function foldScalars(): Pass {
  return {
    name: 'fold-scalars',
    options: {},
    rules: [
      { name: 'before', starts: [...scalarOps] },
      { name: 'after', starts: ['Mul', 'Div'] },
    ],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of [...model.graph.allNodes()].reverse())
        if (isScalarOp(node)) foldBefore(node, context);
      for (const node of model.graph.allNodes())
        if (isScalarOp(node) && node.op !== 'Add' && node.op !== 'Sub') foldAfter(node, context);
      return context.rewriter.changes > before;
    },
  };
}

/** x · scale + shift per channel. */
interface Affine {
  readonly scale: Float64Array;
  readonly shift: Float64Array;
}

function isScalarOp(node: Node): boolean {
  return node.graph !== undefined && node.domain === '' && scalarOps.has(node.op);
}

const scalarOps: ReadonlySet<string> = new Set(['Add', 'Sub', 'Mul', 'Div']);

/** The operand of a scalar op that is data; undefined when both or neither is constant. */
function dataOf(node: Node): Value | undefined {
  const [left, right] = node.inputs;
  if (left === undefined || right === undefined) return undefined;
  if (left.weight === undefined && right.weight !== undefined) return left;
  // a constant divided by the data is no factor
  const isFactor = right.weight === undefined && left.weight !== undefined && node.op !== 'Div';
  return isFactor ? right : undefined;
}

/** What a scalar op does to each of `channels` along an axis. */
function affineOf(node: Node, channels: number, axis: 1 | -1): Affine | undefined {
  const x = dataOf(node);
  const rank = x?.shape?.length;
  const isLeft = node.inputs[0] === x;
  const constant = node.inputs[isLeft ? 1 : 0]?.constant();
  if (x === undefined || rank === undefined || constant === undefined) return undefined;
  const terms = perChannel(constant, channels, rank, axis === 1 ? 1 : rank - 1);
  if (terms === undefined) return undefined;
  const ones = new Float64Array(channels).fill(1);
  const zeros = new Float64Array(channels);
  if (node.op === 'Mul') return { scale: terms, shift: zeros };
  if (node.op === 'Div') return { scale: terms.map((term) => 1 / term), shift: zeros };
  if (node.op === 'Add') return { scale: ones, shift: terms };
  return isLeft
    ? { scale: ones, shift: terms.map((term) => -term) }
    : { scale: ones.map((one) => -one), shift: terms };
}

/** Scalar ops in a row, the last one first, and what they do together. */
interface Chain {
  readonly nodes: readonly Node[];
  readonly source: Value;
  readonly affine: Affine;
}

function chainBefore(last: Node, channels: number, axis: 1 | -1): Chain | undefined {
  const nodes: Node[] = [];
  let affine: Affine = {
    scale: new Float64Array(channels).fill(1),
    shift: new Float64Array(channels),
  };
  let source: Value = last.output(0);
  for (let node: Node | undefined = last; node !== undefined; node = source.producer) {
    if (!isScalarOp(node) || node.graph !== last.graph) break;
    if (node !== last && (source.useCount > 1 || source.isOutput)) break;
    const step = affineOf(node, channels, axis);
    const x = dataOf(node);
    if (step === undefined || x === undefined || x.dtype !== source.dtype) break;
    const after = affine;
    affine = {
      scale: after.scale.map((scale, channel) => scale * (step.scale[channel] ?? 1)),
      shift: after.shift.map(
        (shift, channel) => shift + (after.scale[channel] ?? 1) * (step.shift[channel] ?? 0),
      ),
    };
    nodes.push(node);
    source = x;
  }
  return nodes.length === 0 ? undefined : { nodes, source, affine };
}

/** Folds scalar ops into the linear ops that read them. */
function foldBefore(last: Node, context: PassContext): void {
  if (dataOf(last) === undefined) {
    context.miss('before', last, 'it has no constant operand, or no other');
    return;
  }
  const output = last.output(0);
  const found = readersOf(output);
  if (found === undefined) {
    context.miss('before', last, 'no linear op reads it');
    return;
  }
  if (typeof found === 'string') {
    context.refuse('before', last, found);
    return;
  }
  const [{ inputs, axis }] = found;
  const chain = chainBefore(last, inputs, axis);
  if (chain === undefined) {
    context.refuse('before', last, 'the constant differs within a channel');
    return;
  }
  const obstacles = reasonToKeep(last, chain, found);
  if (obstacles !== undefined) {
    context.refuse('before', last, obstacles);
    return;
  }
  const { scale, shift } = chain.affine;
  const shifts = shift.some((by) => by !== 0);
  const fits = found.every((site) => !shifts || (!site.padded && site.takesBias));
  const zeros = new Float64Array(inputs);
  const made = found.map((site) => takingAffine(site, scale, fits ? shift : zeros));
  if (made.some((weights) => weights === undefined)) {
    context.refuse('before', last, 'the folded weights would not be finite');
    return;
  }
  found.forEach((site, index) => setWeights(context.rewriter, site, made[index] as NewWeights));
  if (fits) replaceValue(context.rewriter, output, chain.source);
  else replaceByShift(last, chain, axis, context);
  for (const node of chain.nodes) removeIfUnused(context.rewriter, node);
  for (const { node } of found)
    node.from = [...new Set([...node.from, ...chain.nodes.flatMap(({ from }) => from)])];
  context.count('before');
}

function reasonToKeep(
  last: Node,
  { nodes, affine }: Chain,
  sites: readonly LinearSite[],
): string | undefined {
  const output = last.output(0);
  const [{ inputs, axis }] = sites as readonly [LinearSite];
  if (output.isOutput) return 'it is an output of the model';
  if (sites.some(({ weight }) => weight.weight?.grid !== undefined)) return KEPT_CODES;
  if (output.dtype !== 'f32' && output.dtype !== 'f64')
    return `${output.dtype} would lose too much`;
  if (sites.some((site) => site.inputs !== inputs || site.axis !== axis))
    return 'its readers see different channels';
  if (affine.shift.every((by) => by === 0)) return undefined;
  if (sites.some(({ takesBias }) => !takesBias))
    return 'a product without a bias cannot take a shift';
  if (!sites.some(({ padded }) => padded)) return undefined;
  if (affine.scale.some((factor) => factor === 0)) return 'a factor is 0';
  return nodes.length > 1 && affine.scale.some((factor) => factor !== 1)
    ? undefined
    : 'zeros are padded behind the shift';
}

/** (x + t/s) · s: the shift stays in front of the padding, the factor goes into the weights. */
function replaceByShift(last: Node, chain: Chain, axis: 1 | -1, { rewriter }: PassContext): void {
  const output = last.output(0);
  const { scale, shift } = chain.affine;
  const terms = shift.map((by, channel) => by / (scale[channel] ?? 1));
  const uniform = terms.every((term) => term === terms[0]);
  const rank = output.shape?.length ?? 0;
  const shape = uniform ? [] : [terms.length, ...(axis === 1 ? Array(rank - 2).fill(1) : [])];
  const constant = rewriter.constant(
    `${output.name}_shift`,
    writeNumbers(output.dtype ?? 'f32', shape as number[], uniform ? terms.slice(0, 1) : terms),
  );
  rewriter.before(last);
  const from = [...new Set(chain.nodes.flatMap((node) => node.from))];
  replaceByNew(rewriter, output, rewriter.op('Add', [chain.source, constant], {}, { from }));
}

/** Folds a factor behind a linear op, or behind its bias, into the weights. */
function foldAfter(node: Node, context: PassContext): void {
  const miss = (why: string): void => context.miss('after', node, why);
  const sums = dataOf(node);
  if (sums === undefined) return miss('it has no constant operand, or no other');
  const bias = biasBehindProduct(sums);
  const { producer } = bias?.product ?? sums;
  const sites =
    producer === undefined || producer.graph !== node.graph ? undefined : linearSites(producer);
  if (sites === undefined || sites.length === 2) return miss('it multiplies no linear op');
  const site = typeof sites === 'string' ? sites : sites[0];
  if (site === undefined) return miss('it multiplies no linear op');
  // convolutions have taken theirs: fold-batch-norm
  if (typeof site !== 'string' && site.axis === 1)
    return miss('what follows a convolution is for fold-batch-norm');
  const why =
    typeof site === 'string'
      ? site
      : reasonAgainst(context.rewriter.model.graph, node, sums, site, bias?.product ?? sums);
  const affine = typeof site === 'string' ? undefined : affineOf(node, site.outputs, -1);
  if (why !== undefined || affine === undefined || typeof site === 'string') {
    context.refuse('after', node, why ?? 'the constant differs within a channel');
    return;
  }
  const made = givingScaled(site, affine.scale);
  if (made === undefined) {
    context.refuse('after', node, 'the folded weights would not be finite');
    return;
  }
  const { rewriter } = context;
  setWeights(rewriter, site, made);
  if (bias !== undefined) {
    const scaled = scaledBias(bias.constant, affine.scale);
    const constant = rewriter.constant(`${bias.constant.name}_folded`, scaled);
    rewriter.setInput(bias.node, bias.index, constant);
  }
  site.node.from = [...new Set([...site.node.from, ...node.from])];
  replaceValue(rewriter, node.output(0), sums);
  context.count('after');
}

/** A sum of a product and a constant, for MatMul, which has no place for a bias. */
function biasBehindProduct(
  sums: Value,
): { node: Node; product: Value; constant: Value; index: number } | undefined {
  const node = sums.producer;
  if (node?.op !== 'Add' || node.domain !== '') return undefined;
  const product = dataOf(node);
  const index = node.inputs[0] === product ? 1 : 0;
  const constant = node.inputs[index];
  if (product?.producer?.op !== 'MatMul' || constant === undefined) return undefined;
  return { node, product, constant, index };
}

function scaledBias(bias: Value, scale: Float64Array): ReturnType<typeof writeNumbers> {
  const tensor = bias.constant();
  const numbers = tensor === undefined ? [] : readNumbers(tensor);
  const values = scale.map(
    (factor, output) => (numbers[numbers.length === 1 ? 0 : output] ?? 0) * factor,
  );
  return writeNumbers(bias.dtype ?? 'f32', [scale.length], values);
}

function reasonAgainst(
  graph: Graph,
  node: Node,
  sums: Value,
  site: LinearSite,
  product: Value,
): string | undefined {
  if (sums.useCount > 1 || product.useCount > 1 || sums.isOutput || product.isOutput)
    return 'the sums are read elsewhere too';
  if (site.weight.weight?.grid !== undefined) return KEPT_CODES;
  if (isLinear(site.node) && activationNameOf(site.node) !== 'none')
    return 'there is an activation between';
  if (isLinear(site.node) && site.node.inputs[linearInputs.residual] !== undefined)
    return 'there is a residual between';
  if (sums !== product) {
    const bias = biasBehindProduct(sums)?.constant;
    const size = bias?.shape?.at(-1);
    const long = bias?.shape?.slice(0, -1).some((dim) => dim !== 1) === true;
    if (long || (size !== site.outputs && size !== 1 && size !== undefined))
      return 'the bias differs between rows';
  }
  return obstacle(graph, node.output(0), sums);
}
