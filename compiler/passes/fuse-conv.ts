/**
 * Puts what follows a convolution into it.
 *
 *     Relu(Conv(x, w, b))                      ->   fettle.Conv(x, w, b) {activation = relu}
 *     Add(Relu(Conv(x, w, b)), r)              ->   fettle.Conv(x, w, b, r) {activation = relu}
 *     Relu(Add(Conv(x, w, b), r))              ->   fettle.Conv(x, w, b, r) {…, residualFirst = 1}
 *
 * Every Conv and ConvTranspose becomes a fused one, so that whatever comes after knows only that form.
 * Activations spelt out in several ops have become one before (`fuse-activation`). Batch norms and scales per channel have gone into the weights before (`fold-batch-norm`).
 * Refuses what is read elsewhere too, residuals that would broadcast and a second residual.
 * Rounding differs: what was rounded after each op is rounded once.
 */
import type { Attribute } from '../ir/attribute.ts';
import { int } from '../ir/attribute.ts';
import { sameShape } from '../ir/dim.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { convInputs, isFusedConv } from '../ops/fused-conv.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { internalDomain } from '../ops/quantized.ts';
import { applyRules } from '../rewrite/apply.ts';
import type { Pattern } from '../rewrite/pattern.ts';
import { op, value } from '../rewrite/pattern.ts';
import type { Rule } from '../rewrite/rule.ts';
import { passRules, refuse, rule } from '../rewrite/rule.ts';
import { activationAttributes } from './fuse-activation.ts';
import type { Pass } from './pass.ts';
import { removeIfUnused, replaceByNew } from './replace.ts';
import { activationOf, activationOps } from './single-activation.ts';

/** Makes the pass. It has no options. */
export function fuseConv(): Pass {
  return {
    name: 'fuse-conv',
    options: {},
    rules: passRules(rules),
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes())
        if (isPlainConv(node)) wrap(node, context.rewriter);
      applyRules(model, rules, context);
      removeUnused(model, context.rewriter);
      return context.rewriter.changes > before;
    },
  };
}

function isPlainConv(node: Node): boolean {
  return node.domain === '' && (node.op === 'Conv' || node.op === 'ConvTranspose');
}

function wrap(node: Node, rewriter: Rewriter): void {
  rewriter.before(node);
  const attributes = Object.fromEntries(node.attributes);
  const options = { domain: internalDomain, from: node.from };
  replaceByNew(rewriter, node.output(0), rewriter.op(node.op, node.inputs, attributes, options));
}

/** Convolutions whose work another one has taken over. */
function removeUnused(model: Model, rewriter: Rewriter): void {
  for (const node of [...model.graph.allNodes()].reverse())
    if (isFusedConv(node)) removeIfUnused(rewriter, node);
}

/** How far a fused convolution has got. */
interface Stage {
  readonly activated: boolean;
  readonly residual: 'none' | 'first' | 'last';
}

function stageOf(conv: Node): Stage {
  const activated = activationNameOf(conv) !== 'none';
  const present = conv.inputs[convInputs.residual] !== undefined;
  // before an activation comes, the two places are the same
  const residual = !present ? 'none' : conv.int('residualFirst', 0) === 1 ? 'first' : 'last';
  return { activated, residual };
}

const convAt =
  (test: (stage: Stage) => boolean) =>
  ({ producer }: Value): boolean =>
    isFusedConv(producer) && test(stageOf(producer));

/** Room for an activation: nothing there yet that comes after it. */
const unactivated: Pattern<{ readonly x: Value }> = value(
  'x',
  convAt(({ activated }) => !activated),
  'a convolution without an activation',
);
/** Room for a residual. */
const withoutResidual: Pattern<{ readonly x: Value }> = value(
  'x',
  convAt(({ residual }) => residual === 'none'),
  'a convolution without a residual',
);

/** The convolution behind `x`, or why it cannot take over the nodes of a match. */
function convOf(x: Value, nodes: readonly Node[]): Node | string {
  const { producer } = x;
  const [root] = nodes;
  if (producer === undefined || producer.graph !== root?.graph) return 'it is in another graph';
  if (x.isOutput) return 'the sum before it is an output of the model';
  const other = [...x.users.keys()].find((user) => !nodes.includes(user));
  return other === undefined ? producer : `the sum before it is read by ${other.describe()} too`;
}

/** A convolution like `conv` with more attributes and, if given, a residual. */
function grown(
  rewriter: Rewriter,
  conv: Node,
  nodes: readonly Node[],
  attributes: Readonly<Record<string, Attribute>>,
  residual?: Value,
): Value {
  const inputs = [...conv.inputs];
  while (residual !== undefined && inputs.length < convInputs.residual) inputs.push(undefined);
  if (residual !== undefined) inputs[convInputs.residual] = residual;
  const all = { ...Object.fromEntries(conv.attributes), ...attributes };
  const from = [...new Set([...conv.from, ...nodes.flatMap((node) => node.from)])];
  return rewriter.op(conv.op, inputs, all, { domain: internalDomain, name: conv.name, from });
}

const activation: Rule = rule({
  name: 'activation',
  pattern: op(activationOps, [unactivated], { moreInputs: true }).as('node'),
  build: ({ x, node }, rewriter, { nodes }) => {
    const found = activationOf(node);
    if (typeof found === 'string') return refuse(found, node);
    const conv = convOf(x, nodes);
    if (typeof conv === 'string') return refuse(conv, node);
    return grown(rewriter, conv, nodes, {
      ...activationAttributes(found),
      // a residual that was there is now in front of the activation
      ...(stageOf(conv).residual === 'none' ? {} : { residualFirst: int(1) }),
    });
  },
});

const residual: Rule = rule({
  name: 'residual',
  pattern: op('Add', [
    value('x', hasRoom, 'a convolution without a residual, an addend of its shape behind it'),
    value('other'),
  ]).as('node'),
  build: ({ x, other, node }, rewriter, { nodes }) => {
    const conv = convOf(x, nodes);
    if (typeof conv === 'string') return refuse(conv, node);
    return grown(rewriter, conv, nodes, {}, other);
  },
});

/** Whether a value is a convolution's that can take a residual and that only one node reads. */
function hasRoom(x: Value): boolean {
  const root = x.onlyUser;
  if (!convAt(({ residual: place }) => place === 'none')(x) || root === undefined) return false;
  const other = root.inputs.find((input) => input !== x);
  return root.graph === x.producer?.graph && sameShape(other?.shape, x.shape);
}

/** Says why a sum behind a convolution is left; the rule before it takes those that fit. */
const residualLeft: Rule = rule({
  name: 'residual',
  pattern: op('Add', [withoutResidual, value('other')]).as('node'),
  build: ({ x, other, node }, _rewriter, { nodes }) => {
    const conv = convOf(x, nodes);
    if (typeof conv === 'string') return refuse(conv, node);
    return refuse(
      `the addend is [${other.shape}], not known to be like the sum [${x.shape}]`,
      node,
    );
  },
});

/** Says why a second sum behind a convolution is left. */
const secondResidual: Rule = rule({
  name: 'residual',
  pattern: op('Add', [
    value(
      'x',
      convAt(({ residual: place }) => place !== 'none'),
      'a convolution with a residual',
    ),
    value('other'),
  ]).as('node'),
  build: ({ node }) => refuse('the convolution has a residual already', node),
});

/** Says why an activation behind an activation is left. */
const secondActivation: Rule = rule({
  name: 'activation',
  pattern: op(
    activationOps,
    [
      value(
        'x',
        convAt((stage) => stage.activated),
        'a convolution with an activation',
      ),
    ],
    {
      moreInputs: true,
    },
  ).as('node'),
  build: ({ node }) => refuse('the convolution has an activation already', node),
});

const rules: readonly Rule[] = [
  activation,
  secondActivation,
  residual,
  residualLeft,
  secondResidual,
];
