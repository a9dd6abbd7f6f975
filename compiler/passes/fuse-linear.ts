/**
 * Makes one op of a matrix product, its bias, the activation behind it and the addition of a residual.
 *
 *     MatMul(x, w), Gemm(x, w, b), MatMul(x, Transpose(w))     ->   fettle.Linear(x, w, b)
 *     Add(Linear(x, w), b)                                     ->   fettle.Linear(x, w, b)
 *     Add(Reshape(Linear(x, w)), b)                            ->   Reshape(fettle.Linear(x, w, b))
 *     Activation(Linear(x, w, b))                              ->   fettle.Linear(x, w, b) {activation}
 *     Add(Linear(x, w, b), r)                                  ->   fettle.Linear(x, w, b, r)
 *
 * w is a constant matrix or one behind fettle.Dequantize. Refuses products whose factors are not 1,
 * biases that differ between rows and residuals that are broadcast.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__Gemm.html, onnx__MatMul.html.
 */
import { int } from '../ir/attribute.ts';
import type { Attributes } from '../ir/attribute.ts';
import { sameShape } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { ActivationChoice } from '../ops/fused-activation.ts';
import { activationChoice, isActivation } from '../ops/fused-activation.ts';
import { isLinear } from '../ops/fused-linear.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { internalDomain, isDequantize } from '../ops/quantized.ts';
import { biasBehindView } from './bias-behind-view.ts';
import { uniformValueOf } from './constants.ts';
import { activationAttributes } from './fuse-activation.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused, replaceByNew } from './replace.ts';
import { activationOps } from './single-activation.ts';
import { permutationOf } from './views.ts';

/** Makes the pass. It has no options. */
export function fuseLinear(): Pass {
  return {
    name: 'fuse-linear',
    options: {},
    rules: [
      { name: 'mat-mul', starts: ['MatMul'] },
      { name: 'gemm', starts: ['Gemm'] },
      { name: 'bias', starts: ['Add'] },
      { name: 'residual', starts: ['Add'] },
      { name: 'activation', starts: ['fettle.Activation', ...activationOps] },
    ],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes()) {
        if (node.op === 'MatMul' && node.domain === '') fromMatMul(node, context);
        else if (node.op === 'Gemm' && node.domain === '') fromGemm(node, context);
        else if (node.op === 'Add' && node.domain === '') fromAdd(node, context);
        else fromActivation(node, context);
      }
      return context.rewriter.changes > before;
    },
  };
}

/** A matrix of weights: constant, widened from a constant of halves, or unpacked from codes. */
function isMatrix(value: Value | undefined): boolean {
  if (value?.shape?.length !== 2) return false;
  const { producer, weight } = value;
  if (weight !== undefined) return true;
  const widened = producer?.op === 'Cast' && producer.inputs[0]?.weight !== undefined;
  return widened || isDequantize(producer);
}

/** A weight as MatMul reads it, [K, N]: itself, or what is transposed in front. */
function weightOf(value: Value | undefined): { matrix: Value; transposed: boolean } | undefined {
  if (value !== undefined && isMatrix(value)) return { matrix: value, transposed: false };
  const turn = value?.producer;
  if (turn?.op !== 'Transpose' || turn.domain !== '') return undefined;
  const perm = permutationOf(turn);
  const [matrix] = turn.inputs;
  return matrix !== undefined && isMatrix(matrix) && perm?.[0] === 1 && perm[1] === 0
    ? { matrix, transposed: true }
    : undefined;
}

function fromMatMul(node: Node, context: PassContext): void {
  const x = node.input(0);
  const weight = weightOf(node.input(1));
  const why =
    weight === undefined
      ? 'its second factor is no matrix of weights'
      : x.weight !== undefined
        ? 'its first factor is constant too'
        : (x.shape?.length ?? 0) < 2
          ? 'its first factor is one row, or of unknown rank'
          : undefined;
  if (weight === undefined || why !== undefined) {
    // a product of two activations is nothing that a linear layer is
    if (weight === undefined || x.weight !== undefined) context.miss('mat-mul', node, why ?? '');
    else context.refuse('mat-mul', node, why ?? '');
    return;
  }
  linear(node, [x, weight.matrix], { transposed: int(weight.transposed ? 1 : 0) }, [node], context);
  context.count('mat-mul');
}

function fromGemm(node: Node, context: PassContext): void {
  const x = node.input(0);
  const w = node.input(1);
  if (!isMatrix(w) || x.weight !== undefined) {
    context.miss('gemm', node, 'its factors are not activations and a matrix of weights');
    return;
  }
  const bias = node.inputs[2];
  const columns = node.output(0).shape?.[1];
  const row = bias === undefined ? undefined : rowOf(bias, columns, context);
  const why =
    node.int('transA', 0) !== 0
      ? 'its left matrix is transposed'
      : node.float('alpha', 1) !== 1 || (bias !== undefined && node.float('beta', 1) !== 1)
        ? 'its factors are not 1'
        : bias !== undefined && row === undefined
          ? 'its bias is no constant row'
          : undefined;
  if (why !== undefined) {
    context.refuse('gemm', node, why);
    return;
  }
  const inputs = row === undefined ? [x, w] : [x, w, row];
  linear(node, inputs, { transposed: int(node.int('transB', 0)) }, [node], context);
  context.count('gemm');
}

/** A constant of one row of `columns` numbers, as a vector; undefined when it is something else. */
function rowOf(
  bias: Value,
  columns: number | string | undefined,
  { rewriter }: PassContext,
): Value | undefined {
  const weight = bias.weight;
  if (weight === undefined || typeof columns !== 'number') return undefined;
  const { shape } = weight;
  if (shape.at(-1) !== columns || shape.slice(0, -1).some((dim) => dim !== 1)) return undefined;
  return shape.length === 1 ? bias : rewriter.constant(bias.name, weight.reshaped([columns]));
}

function fromAdd(node: Node, context: PassContext): void {
  const [a, b] = node.inputs;
  if (a === undefined || b === undefined) return;
  const sides = [
    [a, b],
    [b, a],
  ] as const;
  let met = false;
  for (const [value, other] of sides) {
    const inner = value.producer;
    if (!isLinear(inner) || inner.graph !== node.graph) continue;
    met = true;
    if (other.weight !== undefined) {
      if (addBias(node, inner, other, context)) return;
    } else if (addResidual(node, inner, other, context)) return;
  }
  if (met || biasBehindView(node, context)) return;
  const rule = a.weight === undefined && b.weight === undefined ? 'residual' : 'bias';
  context.miss(rule, node, 'neither operand is a fused linear layer');
}

function addBias(node: Node, inner: Node, bias: Value, context: PassContext): boolean {
  const value = inner.output(0);
  if (value.onlyUser !== node)
    return refused('bias', node, 'the product is used elsewhere', context);
  if (inner.inputs[2] !== undefined || inner.inputs[3] !== undefined)
    return refused('bias', node, 'the linear layer has a bias or a residual already', context);
  if (activationNameOf(inner) !== 'none')
    return refused('bias', node, 'there is an activation between', context);
  context.rewriter.before(node);
  const row = rowOf(bias, value.shape?.at(-1), context);
  if (row === undefined)
    return refused('bias', node, 'the constant is no row of the result', context);
  linear(node, [inner.input(0), inner.input(1), row], attributesOf(inner), [inner, node], context);
  context.count('bias');
  return true;
}

function addResidual(node: Node, inner: Node, residual: Value, context: PassContext): boolean {
  const value = inner.output(0);
  if (inner.inputs[3] !== undefined)
    return refused('residual', node, 'the linear layer has a residual already', context);
  if (value.onlyUser !== node)
    return refused('residual', node, 'the product is used elsewhere', context);
  if (!sameShape(value.shape, residual.shape))
    return refused(
      'residual',
      node,
      `a residual of shape [${residual.shape}] is broadcast`,
      context,
    );
  const inputs = [inner.input(0), inner.input(1), inner.inputs[2], residual];
  linear(node, inputs, attributesOf(inner), [inner, node], context);
  context.count('residual');
  return true;
}

function refused(rule: string, node: Node, why: string, context: PassContext): false {
  context.refuse(rule, node, why);
  return false;
}

function fromActivation(node: Node, context: PassContext): void {
  const activation = activationOfNode(node);
  if (activation === undefined) return;
  const inner = node.inputs[0]?.producer;
  if (!isLinear(inner) || inner.graph !== node.graph) {
    context.miss('activation', node, 'what it acts on is no fused linear layer');
    return;
  }
  const why =
    inner.inputs[3] !== undefined
      ? 'there is a residual between'
      : activationNameOf(inner) !== 'none'
        ? 'the linear layer has an activation already'
        : inner.output(0).onlyUser !== node
          ? 'the product is used elsewhere'
          : undefined;
  if (why !== undefined) {
    context.refuse('activation', node, why);
    return;
  }
  const attributes = { ...attributesOf(inner), ...activationAttributes(activation) };
  linear(node, inner.inputs, attributes, [inner, node], context);
  context.count('activation');
}

/** The activation that one node is, whichever domain writes it. */
export function activationOfNode(node: Node): ActivationChoice | undefined {
  if (isActivation(node)) return activationChoice(node);
  if (node.domain !== '' && node.domain !== 'com.microsoft') return undefined;
  switch (node.op) {
    case 'Relu':
      return { name: 'relu' };
    case 'Sigmoid':
      return { name: 'sigmoid' };
    case 'Tanh':
      return { name: 'tanh' };
    case 'Softplus':
      return { name: 'softplus' };
    case 'Mish':
      return { name: 'mish' };
    case 'HardSwish':
      return { name: 'hard-swish' };
    case 'Gelu':
      return { name: node.string('approximate', 'none') === 'tanh' ? 'gelu-tanh' : 'gelu' };
    case 'FastGelu':
      return node.inputs[1] === undefined ? { name: 'gelu-tanh' } : undefined;
    case 'QuickGelu':
      return sigmoidTimes(node.float('alpha', 1.702));
    case 'Swish':
      return sigmoidTimes(node.float('alpha', 1));
    case 'LeakyRelu':
      return { name: 'leaky-relu', alpha: node.float('alpha', 0.01) };
    case 'Elu':
      return { name: 'elu', alpha: node.float('alpha', 1) };
    case 'HardSigmoid':
      return {
        name: 'hard-sigmoid',
        alpha: node.float('alpha', 0.2),
        beta: node.float('beta', 0.5),
      };
    case 'Clip':
      return clip(node);
    default:
      return undefined;
  }
}

function sigmoidTimes(alpha: number): ActivationChoice {
  return alpha === 1 ? { name: 'silu' } : { name: 'quick-gelu', alpha };
}

function clip(node: Node): ActivationChoice | undefined {
  const bound = (index: number, name: string, fallback: number): number | undefined =>
    node.inputs[index] === undefined
      ? node.float(name, fallback)
      : uniformValueOf(node.inputs[index]);
  const alpha = bound(1, 'min', -Infinity);
  const beta = bound(2, 'max', Infinity);
  if (alpha === undefined || beta === undefined) return undefined;
  if (alpha === 0 && beta === 6) return { name: 'relu6' };
  return alpha === 0 && beta === Infinity ? { name: 'relu' } : { name: 'clip', alpha, beta };
}

function attributesOf(node: Node): Attributes {
  return Object.fromEntries(node.attributes);
}

/** Puts a Linear in the place of a node and of the Linear it takes up. */
function linear(
  node: Node,
  inputs: readonly (Value | undefined)[],
  attributes: Attributes,
  replaced: readonly Node[],
  { rewriter }: PassContext,
): void {
  const from = [...new Set(replaced.flatMap((one) => one.from))];
  rewriter.before(node);
  const options = { domain: internalDomain, from, name: replaced[0]?.name ?? node.name };
  const turn = node.inputs[1]?.producer;
  replaceByNew(rewriter, node.output(0), rewriter.op('Linear', inputs, attributes, options));
  for (const one of [...replaced].reverse()) removeIfUnused(rewriter, one);
  if (turn?.op === 'Transpose') removeIfUnused(rewriter, turn);
}
