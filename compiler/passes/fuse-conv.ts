/**
 * Puts what follows a convolution into it.
 *
 *     Relu(Conv(x, w, b))                      ->   fettle.Conv(x, w, b) {activation = relu}
 *     Add(Relu(Conv(x, w, b)), r)              ->   fettle.Conv(x, w, b, r) {activation = relu}
 *     Relu(Add(Conv(x, w, b), r))              ->   fettle.Conv(x, w, b, r) {…, residualFirst = 1}
 *     Add(Mul(HardSwish(Conv(x, w)), s), t)    ->   fettle.Conv(x, w) {…, scale = s, shift = t}
 *
 * Every Conv and ConvTranspose becomes a fused one, so that whatever comes after knows only that form.
 * Batch norms and scales per channel have gone into the weights before (`fold-batch-norm`).
 * Refuses what is read elsewhere too, residuals that would broadcast and a second residual.
 * Rounding differs: what was rounded after each op is rounded once.
 */
import type { Attribute } from '../ir/attribute.ts';
import { float, int, string } from '../ir/attribute.ts';
import { sameShape } from '../ir/dim.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { convInputs, isFusedConv } from '../ops/fused-conv.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { internalDomain } from '../ops/quantized.ts';
import { applyRules } from '../rewrite/apply.ts';
import type { Pattern } from '../rewrite/pattern.ts';
import { op, value } from '../rewrite/pattern.ts';
import type { Replacement, Rule } from '../rewrite/rule.ts';
import { refuse, rule } from '../rewrite/rule.ts';
import type { FoundActivation } from './activation-forms.ts';
import { activationForms, activationOf, activationOps } from './activation-forms.ts';
import { uniformValueOf } from './constants.ts';
import type { Pass } from './pass.ts';
import { removeIfUnused, replaceByNew } from './replace.ts';

/** Makes the pass. It has no options. */
export function fuseConv(): Pass {
  return {
    name: 'fuse-conv',
    options: {},
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes())
        if (isPlainConv(node)) wrap(node, context.rewriter);
      // spelt-out forms before their parts: Mul(x, Sigmoid(x)) is no sigmoid
      applyRules(model, spelledRules, context);
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
  const activated =
    activationNameOf(conv) !== 'none' ||
    conv.attributes.has('scale') ||
    conv.attributes.has('shift');
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
);
/** Room for a scale and a shift: activated, and no residual behind that. */
const activated: Pattern<{ readonly x: Value }> = value(
  'x',
  convAt(({ activated, residual }) => activated && residual !== 'last'),
);
/** Room for a residual. */
const withoutResidual: Pattern<{ readonly x: Value }> = value(
  'x',
  convAt(({ residual }) => residual === 'none'),
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

function withActivation(
  x: Value,
  root: Node,
  nodes: readonly Node[],
  found: FoundActivation | string,
  rewriter: Rewriter,
): Replacement {
  if (typeof found === 'string') return refuse(found, root);
  const conv = convOf(x, nodes);
  if (typeof conv === 'string') return refuse(conv, root);
  return grown(rewriter, conv, nodes, {
    activation: string(found.name),
    ...(found.alpha === undefined ? {} : { alpha: float(found.alpha) }),
    ...(found.beta === undefined ? {} : { beta: float(found.beta) }),
    // a residual that was there is now in front of the activation
    ...(stageOf(conv).residual === 'none' ? {} : { residualFirst: int(1) }),
  });
}

const spelledRules: readonly Rule[] = activationForms.map((form) =>
  rule({
    name: form.name,
    pattern: form.pattern(unactivated),
    build: ({ x }, rewriter, { nodes }) => {
      const [root] = nodes;
      if (root === undefined) return refuse('the match is empty', x);
      return withActivation(x, root, nodes, form, rewriter);
    },
  }),
);

const activation: Rule = rule({
  name: 'activation',
  pattern: op(activationOps, [unactivated], { moreInputs: true }).as('node'),
  build: ({ x, node }, rewriter, { nodes }) =>
    withActivation(x, node, nodes, activationOf(node), rewriter),
});

const affineOps: readonly string[] = ['Add', 'Sub', 'Mul', 'Div'];

/** y · factor + term for an op with one scalar operand; undefined when it is something else. */
function affineOf(node: Node, x: Value): { factor: number; term: number } | undefined {
  const isLeft = node.inputs[0] === x;
  const other = node.inputs[isLeft ? 1 : 0];
  const number = uniformValueOf(other);
  if (number === undefined || !Number.isFinite(number)) return undefined;
  if ((other?.shape?.length ?? 9) > (x.shape?.length ?? 0)) return undefined;
  if (node.op === 'Add') return { factor: 1, term: number };
  if (node.op === 'Mul') return { factor: number, term: 0 };
  if (node.op === 'Sub')
    return isLeft ? { factor: 1, term: -number } : { factor: -1, term: number };
  return isLeft && number !== 0 ? { factor: 1 / number, term: 0 } : undefined;
}

const affine: Rule = rule({
  name: 'affine',
  pattern: op(
    affineOps,
    [activated, value('k', (k) => k.weight !== undefined && uniformValueOf(k) !== undefined)],
    { commutes: true },
  ).as('node'),
  build: ({ x, node }, rewriter, { nodes }) => {
    const found = affineOf(node, x);
    if (found === undefined) return refuse('it is no scale or shift by one number', node);
    const conv = convOf(x, nodes);
    if (typeof conv === 'string') return refuse(conv, node);
    const { factor, term } = found;
    return grown(rewriter, conv, nodes, {
      scale: float(Math.fround(conv.float('scale', 1) * factor)),
      shift: float(Math.fround(conv.float('shift', 0) * factor + term)),
    });
  },
});

const residual: Rule = rule({
  name: 'residual',
  pattern: op('Add', [value('x', hasRoom), value('other')]).as('node'),
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
      ),
    ],
    {
      moreInputs: true,
    },
  ).as('node'),
  build: ({ node }) => refuse('the convolution has an activation already', node),
});

const rules: readonly Rule[] = [
  ...spelledRules,
  activation,
  secondActivation,
  affine,
  residual,
  residualLeft,
  secondResidual,
];
