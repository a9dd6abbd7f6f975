/**
 * Makes one op of the two products of a gated feed-forward layer.
 *
 *     Mul(Linear(x, wg) {activation}, Linear(x, wu))       ->   fettle.GatedLinear(x, wg, wu) {activation}
 *     a, b = Split(Linear(x, w)); Mul(Activation(a), b)    ->   the same with the halves of w
 *
 * Refuses products that something else reads, and matrices of which only one is transposed.
 *
 * Source: https://arxiv.org/abs/2002.05202.
 */
import type { Attribute, Attributes } from '../ir/attribute.ts';
import { int } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import type { ActivationChoice } from '../ops/fused-activation.ts';
import { isLinear } from '../ops/fused-linear.ts';
import { internalDomain } from '../ops/quantized.ts';
import { integersOf } from './constants.ts';
import { activationAttributes, removeAll } from './fuse-activation.ts';
import { activationOfNode } from './fuse-linear.ts';
import type { Pass, PassContext } from './pass.ts';
import { replaceByNew } from './replace.ts';
import { columnsOf } from './weight-columns.ts';

/** Makes the pass. It has no options. */
export function fuseGatedMlp(): Pass {
  return {
    name: 'fuse-gated-mlp',
    options: {},
    rules: [
      { name: 'gate-up', starts: ['Mul'] },
      { name: 'halves', starts: ['Mul'] },
    ],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes())
        if (node.op === 'Mul' && node.domain === '' && !fromPair(node, context))
          fromHalves(node, context);
      return context.rewriter.changes > before;
    },
  };
}

function fromPair(node: Node, context: PassContext): boolean {
  const [a, b] = node.inputs;
  const [left, right] = [a?.producer, b?.producer];
  const miss = (why: string): false => {
    context.miss('gate-up', node, why);
    return false;
  };
  if (!isLinear(left) || !isLinear(right) || left === right)
    return miss('its operands are not two linear layers');
  if (left.input(0) !== right.input(0)) return miss('the two linear layers read different values');
  // the one with an activation is the gate; without any, the product is bilinear and either will do
  const gate = activationNameOf(right) === 'none' ? left : right;
  const up = gate === left ? right : left;
  if (activationNameOf(up) !== 'none') return miss('both linear layers have an activation');
  const why =
    gate.inputs[3] !== undefined || up.inputs[3] !== undefined
      ? 'one of the products has a residual'
      : gate.output(0).onlyUser !== node || up.output(0).onlyUser !== node
        ? 'one of the products is used elsewhere'
        : gate.int('transposed', 0) !== up.int('transposed', 0)
          ? 'one of the matrices is transposed'
          : undefined;
  if (why !== undefined) {
    context.refuse('gate-up', node, why);
    return true;
  }
  const attributes: Record<string, Attribute> = Object.fromEntries(gate.attributes);
  gated(
    node,
    [gate.input(0), gate.input(1), up.input(1), gate.inputs[2], up.inputs[2]],
    attributes,
    [node, gate, up],
    context,
  );
  context.count('gate-up');
  return true;
}

/** One half of the columns of a Linear. */
interface Half {
  readonly linear: Node;
  readonly from: number;
  readonly to: number;
  readonly nodes: readonly Node[];
}

function fromHalves(node: Node, context: PassContext): void {
  for (const [index, value] of node.inputs.entries()) {
    const actor = value?.producer;
    const activation = actor === undefined ? undefined : activationOfNode(actor);
    const gate = activation === undefined ? undefined : halfOf(actor?.inputs[0]);
    const up = halfOf(node.inputs[1 - index]);
    if (actor === undefined || activation === undefined || gate === undefined || up === undefined)
      continue;
    if (gate.linear !== up.linear || gate.to - gate.from !== up.to - up.from) continue;
    rewriteHalves(node, actor, activation, gate, up, context);
    return;
  }
  context.miss(
    'halves',
    node,
    'it is no product of a half of a linear layer and the other, activated',
  );
}

function rewriteHalves(
  node: Node,
  actor: Node,
  activation: ActivationChoice,
  gate: Half,
  up: Half,
  context: PassContext,
): void {
  const { linear } = gate;
  const weight = linear.input(1).weight;
  const inner = new Set([...gate.nodes, ...up.nodes]);
  const why =
    weight?.dtype !== 'f32'
      ? 'the weight of both halves is no f32 constant'
      : linear.inputs[3] !== undefined || activationNameOf(linear) !== 'none'
        ? 'the product has an activation or a residual'
        : actor.output(0).onlyUser !== node ||
            actor.input(0).onlyUser !== actor ||
            node.inputs.some((value) => value?.onlyUser !== node) ||
            ![...linear.output(0).users.keys()].every((user) => inner.has(user))
          ? 'one of the halves is used elsewhere'
          : undefined;
  if (why !== undefined || weight === undefined) {
    context.refuse('halves', node, why ?? 'the weight is no constant');
    return;
  }
  const { rewriter } = context;
  const turned = linear.int('transposed', 0) === 1;
  const part = (value: Value | undefined, { from, to }: Half, axis: number): Value | undefined =>
    value?.weight === undefined
      ? undefined
      : rewriter.constant(`${value.name}_${from}`, columnsOf(value.weight, axis, from, to));
  const axis = turned ? 0 : 1;
  const w = linear.input(1);
  gated(
    node,
    [
      linear.input(0),
      part(w, gate, axis),
      part(w, up, axis),
      part(linear.inputs[2], gate, 0),
      part(linear.inputs[2], up, 0),
    ],
    { transposed: int(turned ? 1 : 0), ...activationAttributes(activation) },
    [node, actor, ...inner, linear],
    context,
  );
  context.count('halves');
}

/** The columns of a Linear that a value is, by Split or Slice of the last axis. */
function halfOf(value: Value | undefined): Half | undefined {
  const node = value?.producer;
  const source = node?.inputs[0]?.producer;
  if (value === undefined || node === undefined || !isLinear(source) || node.domain !== '')
    return undefined;
  const rank = node.input(0).shape?.length ?? 0;
  const columns = node.input(0).shape?.at(-1);
  if (typeof columns !== 'number') return undefined;
  if (node.op === 'Split' && (node.int('axis', 0) + rank) % rank === rank - 1) {
    let from = 0;
    for (const output of node.outputs) {
      const width = output?.shape?.at(-1);
      if (typeof width !== 'number') return undefined;
      if (output === value) return { linear: source, from, to: from + width, nodes: [node] };
      from += width;
    }
  }
  if (node.op !== 'Slice') return undefined;
  const [starts, stops, axes, steps] = [1, 2, 3, 4].map((index) => integersOf(node.inputs[index]));
  if (starts?.length !== 1 || stops?.length !== 1 || axes?.length !== 1) return undefined;
  if (((axes[0] ?? 0) + rank) % rank !== rank - 1 || (steps?.[0] ?? 1) !== 1) return undefined;
  const at = (place: number): number =>
    Math.max(0, Math.min(columns, place < 0 ? place + columns : place));
  return { linear: source, from: at(starts[0] ?? 0), to: at(stops[0] ?? 0), nodes: [node] };
}

function gated(
  node: Node,
  inputs: readonly (Value | undefined)[],
  attributes: Attributes,
  replaced: readonly Node[],
  context: PassContext,
): void {
  const { rewriter } = context;
  const given = [...inputs];
  while (given.at(-1) === undefined) given.pop();
  rewriter.before(node);
  const from = [...new Set(replaced.flatMap((one) => one.from))];
  const made = rewriter.op('GatedLinear', given, attributes, { domain: internalDomain, from });
  replaceByNew(rewriter, node.output(0), made);
  removeAll(replaced, context);
}
