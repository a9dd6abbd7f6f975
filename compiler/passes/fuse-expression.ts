/**
 * Makes one expression of elementwise ops in a row, so that memory is passed over once.
 *
 *     Mul(a, Sigmoid(Add(b, 3)))   ->   fettle.Expression(a, b) {expression = "mul(a, sigmoid(add(b, 3)))"}
 *
 * An op joins the one that reads it when nothing else does and its result is as large as the final one,
 * so that nothing is computed twice. Inputs may broadcast; constants of one number become part of the
 * text. Up to 8 inputs and 16 functions; f32 only. Rounded once instead of after each op.
 */
import { string } from '../ir/attribute.ts';
import { sameShape } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { ActivationName } from '../ops/activation-table.ts';
import type { Expression, ExpressionFunction } from '../ops/fused-expression.ts';
import { expressionLimits, functionCount, printExpression } from '../ops/fused-expression.ts';
import { internalDomain } from '../ops/quantized.ts';
import { uniformValueOf } from './constants.ts';
import { removeAll } from './fuse-activation.ts';
import type { Pass, PassContext } from './pass.ts';
import { replaceByNew } from './replace.ts';
import { activationOf, activationOps } from './single-activation.ts';

/** Makes the pass. It has no options. */
export function fuseExpression(): Pass {
  return {
    name: 'fuse-expression',
    options: {},
    rules: [{ name: 'elementwise', starts: [...Object.keys(functions), ...activationOps] }],
    run(model, context) {
      // before opset 7 binary ops broadcast by an attribute
      if (model.opset < 7) return false;
      const before = context.rewriter.changes;
      const refused = new Set<Node>();
      const refuseOnce: PassContext = {
        ...context,
        refuse: (rule, at, why) => {
          if (typeof at === 'object' && 'op' in at && refused.has(at)) return;
          if (typeof at === 'object' && 'op' in at) refused.add(at);
          context.refuse(rule, at, why);
        },
      };
      for (const node of [...model.graph.allNodes()].reverse())
        if (node.graph !== undefined) visit(node, refuseOnce);
      return context.rewriter.changes > before;
    },
  };
}

/** Ops that are one function of the language. */
const functions: Readonly<Record<string, ExpressionFunction>> = {
  Add: 'add',
  Sub: 'sub',
  Mul: 'mul',
  Div: 'div',
  Pow: 'pow',
  Min: 'min',
  Max: 'max',
  Neg: 'neg',
  Abs: 'abs',
  Sqrt: 'sqrt',
  Reciprocal: 'reciprocal',
  Exp: 'exp',
  Log: 'log',
  Erf: 'erf',
  Round: 'round',
  Sin: 'sin',
  Cos: 'cos',
};

/** Activations of the table as functions, with the parameters they take along. */
const activationFunctions: Readonly<
  Partial<Record<ActivationName, readonly [ExpressionFunction, ...('alpha' | 'beta')[]]>>
> = {
  relu: ['relu'],
  relu6: ['relu6'],
  'leaky-relu': ['leaky-relu', 'alpha'],
  clip: ['clip', 'alpha', 'beta'],
  sigmoid: ['sigmoid'],
  'hard-sigmoid': ['hard-sigmoid', 'alpha', 'beta'],
  'hard-swish': ['hard-swish'],
  silu: ['silu'],
  gelu: ['gelu'],
  'gelu-tanh': ['gelu-tanh'],
  'quick-gelu': ['quick-gelu', 'alpha'],
  mish: ['mish'],
  tanh: ['tanh'],
  softplus: ['softplus'],
  elu: ['elu', 'alpha'],
};

/** What a node is in the language; its operands are the node's inputs, its numbers follow them. */
interface Step {
  readonly name: ExpressionFunction;
  readonly operands: readonly Value[];
  readonly numbers: readonly number[];
}

function stepOf(node: Node): Step | undefined {
  if (node.outputs[0]?.dtype !== 'f32' || node.subgraphs.length > 0) return undefined;
  const name = node.domain === '' ? functions[node.op] : undefined;
  if (name !== undefined) {
    const operands = node.inputs.filter((input) => input !== undefined);
    const wanted = unaryFunctions.has(name) ? 1 : 2;
    return operands.length === wanted ? { name, operands, numbers: [] } : undefined;
  }
  if (!activationOps.includes(node.op)) return undefined;
  const found = activationOf(node);
  if (typeof found === 'string') return undefined;
  const [applied, ...parameters] = activationFunctions[found.name] ?? [];
  if (applied === undefined) return undefined;
  const numbers = parameters.map((parameter) =>
    parameter === 'alpha' ? (found.alpha ?? -Infinity) : (found.beta ?? Infinity),
  );
  return { name: applied, operands: [node.input(0)], numbers };
}

const unaryFunctions: ReadonlySet<ExpressionFunction> = new Set(
  (
    ['neg', 'abs', 'sqrt', 'reciprocal', 'exp', 'log', 'erf', 'round', 'sin', 'cos'] as const
  ).slice(),
);

function visit(root: Node, context: PassContext): void {
  const output = root.outputs[0];
  if (output?.shape === undefined || stepOf(root) === undefined) {
    if (activationOps.includes(root.op) || (root.domain === '' && functions[root.op] !== undefined))
      context.miss('elementwise', root, 'it is no f32 function of known shape');
    return;
  }
  const region = regionOf(root, context);
  if (region.size < 2)
    return context.miss('elementwise', root, 'nothing elementwise leads to it alone');
  const inputs: Value[] = [];
  const build = (value: Value): Expression => {
    const number = literalOf(value, output);
    if (number !== undefined) return { kind: 'number', value: number };
    const step = value.producer === undefined ? undefined : region.get(value.producer);
    if (step !== undefined)
      return {
        kind: 'call',
        name: step.name,
        arguments: [
          ...step.operands.map(build),
          ...step.numbers.map((value): Expression => ({ kind: 'number', value })),
        ],
      };
    let index = inputs.indexOf(value);
    if (index < 0) index = inputs.push(value) - 1;
    return { kind: 'input', index };
  };
  const expression = build(output);
  const nodes = [...region.keys()];
  const from = [...new Set(nodes.flatMap((node) => node.from))];
  const { rewriter } = context;
  rewriter.before(root);
  const attributes = { expression: string(printExpression(expression)) };
  const made = rewriter.op('Expression', inputs, attributes, { domain: internalDomain, from });
  replaceByNew(rewriter, output, made);
  removeAll(nodes, context);
  context.count('elementwise', functionCount(expression));
}

/** The root and the ops that only lead to it, within the limits of one expression. */
function regionOf(root: Node, context: PassContext): Map<Node, Step> {
  const output = root.output(0);
  const region = new Map<Node, Step>();
  const open = new Set<Value>();
  const enter = (node: Node, step: Step): void => {
    region.set(node, step);
    open.delete(node.output(0));
    for (const operand of step.operands)
      if (literalOf(operand, output) === undefined) open.add(operand);
  };
  const first = stepOf(root);
  if (first !== undefined) enter(root, first);
  const work = [...open];
  for (let value = work.shift(); value !== undefined; value = work.shift()) {
    const { producer } = value;
    if (producer === undefined || producer.graph !== root.graph || region.has(producer)) continue;
    const step = stepOf(producer);
    if (step === undefined) continue;
    if (value.isOutput || value.useCount > 1) {
      if (!value.isOutput)
        context.refuse('elementwise', producer, 'its result is used more than once');
      continue;
    }
    if (!sameShape(value.shape, output.shape)) {
      context.refuse('elementwise', producer, 'its result is smaller than the one it goes into');
      continue;
    }
    const added = step.operands.filter(
      (operand) => literalOf(operand, output) === undefined && !open.has(operand),
    );
    if (
      open.size - 1 + new Set(added).size > expressionLimits.inputs ||
      region.size === expressionLimits.functions
    ) {
      context.refuse('elementwise', producer, 'the expression would be too long');
      continue;
    }
    enter(producer, step);
    work.push(...added);
  }
  return region;
}

/** The number of a constant that can stand in the text: one that does not raise the rank. */
function literalOf(value: Value, output: Value): number | undefined {
  if (value.weight === undefined || value.weight.shape.some((dim) => dim !== 1)) return undefined;
  if (value.weight.shape.length > (output.shape?.length ?? 0)) return undefined;
  if (value.dtype !== 'f32' && value.dtype !== 'i32' && value.dtype !== 'i64') return undefined;
  const number = uniformValueOf(value);
  return number === undefined || Number.isNaN(number) ? undefined : number;
}
