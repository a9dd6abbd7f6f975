/**
 * Recognises an activation that is spread over several nodes.
 *
 *     Mul(Mul(x, Add(Erf(Div(x, 1.414)), 1)), 0.5)     ->   fettle.Activation(x) {activation = "gelu"}
 *     Mul(x, Sigmoid(x))                               ->   … "silu"
 *     Div(Mul(x, Clip(Add(x, 3), 0, 6)), 6)            ->   … "hard-swish"
 *
 * Works by meaning, not by spelling: a piece of graph that computes each element from the same element
 * of one value and scalars is evaluated at sample points and compared with the table of activations.
 * So every order of factors, x·x·x for Pow(x, 3), 1/√2 for √2 and so on is one case. Refuses what is
 * close to an activation and is not it.
 *
 * Source: the definitions in `ops/activation-table.ts`.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Attributes } from '../ir/attribute.ts';
import { float, string } from '../ir/attribute.ts';
import { sameShape } from '../ir/dim.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { NodeOrder, dominators, escapingValue } from '../analyze/dominators.ts';
import { probe } from '../analyze/probe.ts';
import type { ActivationName } from '../ops/activation-table.ts';
import { activations } from '../ops/activation-table.ts';
import type { ActivationChoice } from '../ops/fused-activation.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import { internalDomain } from '../ops/quantized.ts';
import { uniformValueOf } from './constants.ts';
import type { Pass, PassContext } from './pass.ts';
import { replaceByNew } from './replace.ts';

/** Makes the pass. It has no options. */
export function fuseActivation(): Pass {
  return {
    name: 'fuse-activation',
    options: {},
    rules: names.map((name) => ({ name, starts: [...roots] })),
    run(model, context) {
      const before = context.rewriter.changes;
      const order = new NodeOrder();
      // from the back, so that the whole activation is met before its parts
      for (const node of [...model.graph.allNodes()].reverse())
        if (node.graph !== undefined && roots.has(node.op) && node.domain === '')
          visit(model, node, order, context);
      return context.rewriter.changes > before;
    },
  };
}

/** Attributes of a fused node that carries an activation. */
export function activationAttributes({ name, alpha, beta }: ActivationChoice): Attributes {
  return {
    activation: string(name),
    ...(alpha === undefined ? {} : { alpha: float(alpha) }),
    ...(beta === undefined ? {} : { beta: float(beta) }),
  };
}

/** Activations that are looked for without numbers, and with numbers of the graph. */
const plain: readonly ActivationName[] = [
  'silu',
  'gelu',
  'gelu-tanh',
  'hard-swish',
  'mish',
  'relu',
  'relu6',
  'sigmoid',
  'tanh',
  'softplus',
];
const names: readonly ActivationName[] = [
  ...plain,
  'hard-sigmoid',
  'quick-gelu',
  'leaky-relu',
  'elu',
  'clip',
];

/** Ops an activation can end with. */
const roots: ReadonlySet<string> = new Set([
  'Mul',
  'Div',
  'Add',
  'Sub',
  'Min',
  'Max',
  'Clip',
  'Where',
]);

/** Ops that compute an element from the same elements. */
const elementwise: ReadonlySet<string> = new Set([
  'Mul',
  'Div',
  'Add',
  'Sub',
  'Min',
  'Max',
  'Pow',
  'Neg',
  'Abs',
  'Reciprocal',
  'Sqrt',
  'Exp',
  'Log',
  'Erf',
  'Tanh',
  'Sigmoid',
  'Softplus',
  'HardSigmoid',
  'Clip',
  'Relu',
  'LeakyRelu',
  'Elu',
  'Softsign',
  'Where',
  'Greater',
  'GreaterOrEqual',
  'Less',
  'LessOrEqual',
  'Identity',
  'Gelu',
  'HardSwish',
]);

/** Ops that make a piece of graph worth comparing: without one it is a polynomial. */
const telling: ReadonlySet<string> = new Set([
  'Erf',
  'Tanh',
  'Sigmoid',
  'Softplus',
  'HardSigmoid',
  'Clip',
  'Relu',
  'Exp',
  'Min',
  'Max',
  'Where',
  'LeakyRelu',
]);

function visit(model: Model, node: Node, order: NodeOrder, context: PassContext): void {
  const root = node.output(0);
  if (root.dtype !== 'f32' && root.dtype !== 'f16') {
    context.miss('fuse-activation', node, `it computes ${root.dtype}`);
    return;
  }
  const candidates = dominators(root, order, elementInputs).filter(
    ({ value, nodes }) =>
      value.weight === undefined &&
      nodes.size > 1 &&
      value.dtype === root.dtype &&
      sameShape(value.shape, root.shape) &&
      [...nodes].some((inner) => telling.has(inner.op)),
  );
  let closest: { readonly name: string; readonly by: number } | undefined;
  // the farthest first: more of the graph in one
  for (const { value, nodes } of [...candidates].reverse()) {
    const result = compare(model, value, root, nodes);
    if (result === undefined) continue;
    if ('by' in result) {
      if (closest === undefined || result.by < closest.by) closest = result;
      continue;
    }
    const escaping = escapingValue(nodes, root);
    if (escaping !== undefined) {
      context.refuse(result.name, node, `its part "${escaping.name}" is used elsewhere`);
      return;
    }
    context.rewriter.before(node);
    const from = [...new Set([...nodes].flatMap((inner) => inner.from))];
    const options = { domain: internalDomain, from };
    const attributes = activationAttributes(result);
    replaceByNew(
      context.rewriter,
      root,
      context.rewriter.op('Activation', [value], attributes, options),
    );
    removeAll(nodes, context);
    context.count(result.name);
    return;
  }
  if (closest !== undefined)
    context.refuse(
      closest.name,
      node,
      `it differs from ${closest.name} by up to ${closest.by.toPrecision(2)}`,
    );
  else
    context.miss(
      'fuse-activation',
      node,
      candidates.length === 0
        ? 'what leads to it is no bent function of one value of its shape'
        : `as a function of ${candidates.map(({ value }) => `"${value.name}"`).join(' or ')} it is no known activation`,
    );
}

/** Takes out the nodes of a match that nothing needs any more, users before producers. */
export function removeAll(nodes: Iterable<Node>, { rewriter }: PassContext): void {
  let left = [...new Set(nodes)].filter((node) => node.graph !== undefined);
  for (let before = -1; left.length !== before;) {
    before = left.length;
    left = left.filter((node) => {
      if (node.outputs.some((output) => (output?.useCount ?? 0) > 0)) return true;
      rewriter.remove(node);
      return false;
    });
  }
}

/** Inputs that are no scalar constants; undefined when the op mixes elements. */
function elementInputs(node: Node): readonly Value[] | undefined {
  if (node.domain !== '' || !elementwise.has(node.op)) return undefined;
  const inputs: Value[] = [];
  for (const input of node.inputs) {
    if (input === undefined) continue;
    if (input.weight === undefined) inputs.push(input);
    else if (uniformValueOf(input) === undefined || input.weight.shape.some((dim) => dim !== 1))
      return undefined;
  }
  return inputs;
}

/** Where activations are compared: both tails, the bends, and densely around 0. */
const points: readonly number[] = [
  -60,
  -20,
  -11,
  -8,
  -6.5,
  -6,
  -5.5,
  -4,
  -3.25,
  -3,
  -2.75,
  ...Array.from({ length: 41 }, (_, i) => (i - 20) / 8 + 0.01),
  2.75,
  3,
  3.25,
  4,
  5.5,
  6,
  6.5,
  8,
  11,
  20,
  60,
];

/** Largest difference at the points, relative to 1 or the value; f32 spellings differ by 1e-6. */
const SAME = 2e-5;
const SAME_HALF = 6e-3;
/** Differences up to here are worth telling. */
const NEAR = 0.05;

function compare(
  model: Model,
  x: Value,
  root: Value,
  nodes: ReadonlySet<Node>,
): ActivationChoice | { readonly name: string; readonly by: number } | undefined {
  const shape = [...(x.shape ?? []).slice(1).map(() => 1), points.length];
  const samples = writeNumbers(x.dtype ?? 'f32', shape, Float64Array.from(points));
  const got = probe(model, root, { sizes: new Map(), given: new Map([[x, samples]]) });
  if (got === undefined || got.data.length !== points.length) return undefined;
  const bound = x.dtype === 'f16' ? SAME_HALF : SAME;
  let closest: { readonly name: string; readonly by: number } | undefined;
  for (const choice of choices(scalarsOf(nodes))) {
    const by = distance(got, choice);
    if (by <= bound) return choice;
    if (by <= NEAR && (closest === undefined || by < closest.by))
      closest = { name: choice.name, by };
  }
  return closest;
}

function distance(got: Tensor, { name, alpha, beta }: ActivationChoice): number {
  const entry = activations[name];
  const wanted = entry.of(alpha ?? entry.alpha ?? 0, beta ?? entry.beta ?? 0);
  const numbers = readNumbers(got);
  let worst = 0;
  points.forEach((point, index) => {
    const expected = wanted(point);
    const by = Math.abs((numbers[index] ?? NaN) - expected) / Math.max(1, Math.abs(expected));
    worst = Number.isNaN(by) ? Infinity : Math.max(worst, by);
  });
  return worst;
}

/** Activations to compare with; numbers they may have are those that occur in the piece of graph. */
function* choices(scalars: readonly number[]): Generator<ActivationChoice, void> {
  for (const name of plain) yield { name };
  yield { name: 'hard-sigmoid', alpha: 1 / 6, beta: 0.5 };
  for (const alpha of scalars) {
    yield { name: 'quick-gelu', alpha };
    yield { name: 'leaky-relu', alpha };
    yield { name: 'elu', alpha };
    for (const beta of scalars) if (alpha < beta) yield { name: 'clip', alpha, beta };
  }
}

function scalarsOf(nodes: ReadonlySet<Node>): readonly number[] {
  const scalars = new Set<number>();
  for (const node of nodes)
    for (const input of node.inputs) {
      const number = input?.weight === undefined ? undefined : uniformValueOf(input);
      if (number !== undefined) scalars.add(number);
    }
  return [...scalars];
}
