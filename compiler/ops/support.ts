/**
 * What op definitions share: errors that name the node, axes, attributes that became inputs.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { dtypeOfOnnx, dtypes, elementCount } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import type { Node } from '../ir/graph.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { isWide, readNumbers } from './numbers.ts';

/** Anything that knows its node. */
export interface OpPlace {
  /** The node. */
  readonly node: Node;
}

/** MODEL_INVALID at a node: `Op "name": what is wrong.` */
export function opError(context: OpPlace, problem: string): FettleError {
  const { node } = context;
  return new FettleError('MODEL_INVALID', `${node.describe()}: ${problem}.`, {
    at: { node: node.name, op: node.op },
    fix: `Compare the node with the definition of ${node.op} at https://onnx.ai/onnx/operators and export the model again.`,
  });
}

/** OP_UNSUPPORTED at a node, for what the reference evaluator does not do. */
export function unsupported(context: OpPlace, what: string): FettleError {
  const { node } = context;
  return new FettleError('OP_UNSUPPORTED', `${node.describe()}: ${what} is not supported.`, {
    at: { node: node.name, op: node.op },
    fix: 'Leave the node out of what is folded or evaluated; engines may still run it.',
  });
}

/**
 * An axis in 0 … rank - 1.
 *
 * @param axis - counted from the end when negative
 * @throws FettleError MODEL_INVALID when out of range
 */
export function normalizeAxis(context: OpPlace, axis: number, rank: number): number {
  const result = axis < 0 ? axis + rank : axis;
  if (!(result >= 0 && result < rank))
    throw opError(context, `axis ${axis} is outside a tensor of rank ${rank}`);
  return result;
}

/** Axes in 0 … rank - 1, each at most once. */
export function normalizeAxes(context: OpPlace, axes: readonly number[], rank: number): number[] {
  const result = axes.map((axis) => normalizeAxis(context, axis, rank));
  if (new Set(result).size !== result.length)
    throw opError(context, `axes [${axes.join(', ')}] repeat an axis`);
  return result;
}

/** Throws unless a shape has one of the ranks; unknown shapes pass. */
export function expectRank(
  context: OpPlace,
  name: string,
  shape: Shape | undefined,
  ...ranks: readonly number[]
): void {
  if (shape !== undefined && !ranks.includes(shape.length))
    throw opError(
      context,
      `${name} must have rank ${ranks.join(' or ')}, got [${shape.join(', ')}]`,
    );
}

/** Throws unless a dtype is of one of the kinds; unknown dtypes pass. */
export function expectKind(
  context: OpPlace,
  name: string,
  dtype: DType | undefined,
  ...kinds: readonly (typeof dtypes)[DType]['kind'][]
): void {
  if (dtype !== undefined && !kinds.includes(dtypes[dtype].kind))
    throw opError(context, `${name} must be ${kinds.join(' or ')}, got ${dtype}`);
}

/** Throws unless two dtypes agree; unknown ones pass. */
export function expectSameDType(
  context: InferContext,
  ...inputs: readonly number[]
): DType | undefined {
  let seen: DType | undefined;
  for (const index of inputs) {
    const { dtype } = context.input(index);
    if (seen !== undefined && dtype !== undefined && dtype !== seen)
      throw opError(context, `inputs must have one dtype, got ${seen} and ${dtype}`);
    seen ??= dtype;
  }
  return seen;
}

/** Throws unless two sizes could be equal; symbols pass. Returns the better known one. */
export function sameDim(context: OpPlace, what: string, a: Dim, b: Dim): Dim {
  if (typeof a === 'number' && typeof b === 'number' && a !== b)
    throw opError(context, `${what} must agree, got ${a} and ${b}`);
  return typeof a === 'number' ? a : b;
}

/**
 * A list of integers that older opsets give as an attribute and newer ones as an input.
 *
 * @returns 'absent' when neither is given, undefined when the input is not known
 */
export function intsOf(
  context: InferContext,
  attribute: string,
  input: number,
): readonly number[] | 'absent' | undefined {
  const listed = context.node.ints(attribute);
  if (listed !== undefined) return listed;
  if (!context.has(input)) return 'absent';
  const elements = context.elements(input);
  return elements?.every((dim) => typeof dim === 'number') === true ? elements : undefined;
}

/** The same when evaluating; undefined when neither is given. */
export function evaluatedInts(
  context: EvaluateContext,
  attribute: string,
  input: number,
): readonly number[] | undefined {
  const tensor: Tensor | undefined = context.inputs[input];
  return context.node.ints(attribute) ?? (tensor && Array.from(readNumbers(tensor)));
}

/** The dtype an int attribute names. */
export function dtypeAttribute(context: OpPlace, name: string): DType | undefined {
  const number = context.node.int(name);
  if (number === undefined) return undefined;
  const dtype = dtypeOfOnnx(number);
  if (dtype === undefined) throw opError(context, `${name} = ${number} is not a dtype`);
  return dtype;
}

/** Elements picked by index; undefined when they or one of the indices are not known. */
export function pickElements(
  elements: readonly Dim[] | undefined,
  indices: ArrayLike<number>,
): readonly Dim[] | undefined {
  if (elements === undefined) return undefined;
  const picked: Dim[] = [];
  for (let i = 0; i < indices.length; i++) {
    const dim = elements[indices[i] ?? -1];
    if (dim === undefined) return undefined;
    picked.push(dim);
  }
  return picked;
}

/** An ONNX op; `domain` is ''. */
export function onnxOp(
  op: string,
  inputs: OpDefinition['inputs'],
  outputs: OpDefinition['outputs'],
  rest: Omit<OpDefinition, 'op' | 'domain' | 'inputs' | 'outputs'>,
): OpDefinition {
  return { op, domain: '', inputs, outputs, ...rest };
}

/** `count` anonymous sizes. */
export function freshShape(context: InferContext, count: number): Shape {
  return Array.from({ length: count }, () => context.fresh());
}

/** The rank that a one-dimensional tensor of sizes describes, when known. */
export function describedRank(context: InferContext, input: number): number | undefined {
  const { shape } = context.input(input);
  return typeof shape?.[0] === 'number' ? shape[0] : undefined;
}

/** Tensors with more elements than this are not followed as dimensions. */
export const MAX_ELEMENTS = 256;

/**
 * Contents of a small tensor of whole numbers, as dimensions. Integers past 2^53, with which slices
 * say "to the end", become 2^53 - 1.
 */
export function wholeNumbers(tensor: Tensor): readonly Dim[] | undefined {
  const { kind } = dtypes[tensor.dtype];
  if (kind === 'string' || kind === 'complex' || elementCount(tensor.shape) > MAX_ELEMENTS)
    return undefined;
  const limit = Number.MAX_SAFE_INTEGER;
  const numbers = Array.from(readNumbers(tensor), (x) =>
    isWide(tensor.dtype) ? Math.max(-limit, Math.min(limit, x)) : x,
  );
  return numbers.every(Number.isSafeInteger) ? numbers : undefined;
}
