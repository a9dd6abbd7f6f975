/**
 * Removes ops that hand on their input unchanged, bit for bit.
 *
 *     Identity(x), Cast(x: f32, to f32), Transpose(x, [0, 1]), Reshape(x, its own shape),
 *     Slice(x, everything), Pad(x, 0), Expand/Tile(x, its own shape), Concat([x]), Dropout(x),
 *     Transpose(Transpose(x)), Squeeze(Unsqueeze(x)), Mul(x, 1), Sub(x, 0), Where(true, x, y)   ->   x
 *
 * `Add(x, 0)` of floats stays, because -0 + 0 is +0. What stays because a public name or a subgraph
 * needs the node is refused by name.
 */
import { sameShape } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import { isInteger } from '../ops/numbers.ts';
import { integersOf, listOf, numbersOf, uniformValueOf } from './constants.ts';
import type { Pass, PassContext } from './pass.ts';
import { obstacle, replaceValue } from './replace.ts';
import { permutationOf, throughViews, viewOps } from './views.ts';

/** What a node hands on unchanged, a sentence why it looks as if it did but does not, or nothing. */
type Finding = Value | string | undefined;

/** Makes the pass. It has no options. */
export function eliminateIdentity(): Pass {
  return {
    name: 'eliminate-identity',
    options: {},
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes()) visit(node, model.opset, context);
      return context.rewriter.changes > before;
    },
  };
}

function visit(node: Node, opset: number, context: PassContext): void {
  if (node.domain !== '' || node.graph === undefined) return;
  const rule = ruleNames.get(node.op);
  if (rule === undefined) return;
  const found = handedOn(node, opset);
  if (found === undefined) return;
  if (typeof found === 'string') {
    context.refuse(rule, node, found);
    return;
  }
  const output = node.output(0);
  const why = obstacle(context.rewriter.model.graph, output, found);
  if (why !== undefined) {
    context.refuse(rule, node, why);
    return;
  }
  context.rewriter.before(node);
  replaceValue(context.rewriter, output, found);
  context.count(rule);
}

const arithmetic = ['Add', 'Sub', 'Mul', 'Div', 'Pow', 'Or', 'And', 'BitwiseOr'];
const others = [
  'Identity',
  'Dropout',
  'Cast',
  'Transpose',
  'Slice',
  'Pad',
  'Expand',
  'Tile',
  'Concat',
];
const variadic = ['Sum', 'Max', 'Min', 'Mean'];
/** Op -> name of its rule. */
const ruleNames: ReadonlyMap<string, string> = new Map(
  [...arithmetic, ...others, ...variadic, ...viewOps, 'Where'].map((op) => [
    op,
    op.replace(/(?<=[a-z])(?=[A-Z])/g, '-').toLowerCase(),
  ]),
);

function handedOn(node: Node, opset: number): Finding {
  const [x] = node.inputs;
  if (x === undefined) return undefined;
  if (viewOps.has(node.op)) return sourceWithShape(node.output(0), x);
  switch (node.op) {
    case 'Identity':
      return x;
    case 'Dropout':
      return dropout(node, x, opset);
    case 'Cast':
      return x.dtype !== undefined &&
        node.int('to') !== undefined &&
        x.dtype === node.output(0).dtype
        ? x
        : undefined;
    case 'Transpose':
      return transpose(node, x);
    case 'Slice':
      return slice(node, x);
    case 'Pad':
      return zeroList(listOf(node, opset < 2 ? 'paddings' : 'pads', 1)) ? x : undefined;
    case 'Expand':
    case 'Tile':
      return keepsShape(node, x) ? x : undefined;
    case 'Where':
      return where(node);
    case 'Concat':
    case 'Sum':
    case 'Max':
    case 'Min':
    case 'Mean':
      return node.inputs.length === 1 ? x : undefined;
    default:
      return neutral(node);
  }
}

function keepsShape(node: Node, x: Value): boolean {
  const output = node.output(0);
  return x.dtype === output.dtype && sameShape(x.shape, output.shape);
}

/** The value behind a chain of views that already has the shape the chain ends with. */
function sourceWithShape(output: Value, x: Value): Value | undefined {
  for (const value of throughViews(x)) if (sameShape(value.shape, output.shape)) return value;
  return undefined;
}

function dropout(node: Node, x: Value, opset: number): Finding {
  if ((node.outputs[1]?.useCount ?? 0) > 0) return 'its mask is used';
  if (opset < 7 && node.int('is_test', 0) === 0) return 'it is in training mode';
  const training = node.inputs[2];
  if (training !== undefined && uniformValueOf(training) !== 0)
    return 'its training mode is not known to be off';
  return x;
}

function transpose(node: Node, x: Value): Value | undefined {
  const outer = permutationOf(node);
  if (outer === undefined) return undefined;
  // axes of size 1 may move freely as long as the shape stays
  const wide = x.shape === undefined ? outer : outer.filter((axis) => x.shape?.[axis] !== 1);
  const ordered = wide.every((axis, index) => index === 0 || axis > (wide[index - 1] ?? 0));
  const exact = outer.every((axis, index) => axis === index);
  if (exact || (ordered && sameShape(x.shape, node.output(0).shape))) return x;
  const inner = x.producer;
  if (inner?.op !== 'Transpose' || inner.domain !== '') return undefined;
  const first = permutationOf(inner);
  return first?.length === outer.length && outer.every((axis, index) => first[axis] === index)
    ? inner.input(0)
    : undefined;
}

/** A slice that keeps the shape and walks forwards keeps everything. */
function slice(node: Node, x: Value): Finding {
  if (!keepsShape(node, x)) return undefined;
  const steps = node.inputs[4];
  if (steps === undefined) return x;
  return integersOf(steps)?.every((step) => step === 1) === true
    ? x
    : 'its steps are not known to be 1';
}

function zeroList(values: readonly number[] | 'absent' | undefined): boolean {
  return Array.isArray(values) && values.every((value) => value === 0);
}

function where(node: Node): Finding {
  const [condition, whenTrue, whenFalse] = node.inputs;
  const known = uniformValueOf(condition);
  const chosen = known === undefined ? undefined : known === 0 ? whenFalse : whenTrue;
  return chosen !== undefined && sameShape(chosen.shape, node.output(0).shape) ? chosen : undefined;
}

/** `x op neutral element`, when broadcasting does not enlarge x. */
function neutral(node: Node): Finding {
  const [a, b] = node.inputs;
  if (a === undefined || b === undefined) return undefined;
  if (b.weight !== undefined && isNeutral(node.op, b, 'right') && keepsShape(node, a))
    return exactly(node, a);
  const commutes = node.op !== 'Sub' && node.op !== 'Div' && node.op !== 'Pow';
  if (commutes && a.weight !== undefined && isNeutral(node.op, a, 'left') && keepsShape(node, b))
    return exactly(node, b);
  return undefined;
}

function isNeutral(op: string, value: Value, _side: 'left' | 'right'): boolean {
  const numbers = numbersOf(value);
  if (numbers === undefined || numbers.length === 0) return false;
  const wanted = op === 'Add' || op === 'Sub' || op === 'Or' || op === 'BitwiseOr' ? 0 : 1;
  return numbers.every((number) => number === wanted);
}

function exactly(node: Node, x: Value): Finding {
  const { dtype } = x;
  if (dtype === undefined) return undefined;
  const zero = node.inputs.find((input) => input !== x && input?.weight !== undefined);
  if (node.op === 'Add' && !isInteger(dtype))
    return numbersOf(zero)?.every((number) => Object.is(number, -0)) === true
      ? x
      : 'adding 0 turns -0 into 0';
  if (node.op === 'Sub' && !isInteger(dtype))
    return numbersOf(zero)?.every((number) => Object.is(number, 0)) === true
      ? x
      : 'subtracting -0 turns -0 into 0';
  return x;
}
