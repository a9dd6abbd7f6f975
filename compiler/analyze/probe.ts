/**
 * Computes interior values of a model for chosen sizes and chosen contents of other values, without
 * running the model: only what lies between is evaluated, and shapes are taken from inference.
 *
 * Fusion asks with it what a piece of graph means (which keys a mask hides, which position a rotary
 * table stands for) instead of comparing it with every way exporters are known to write it.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import { substituteDim } from '../ir/dim.ts';
import { evaluateNode } from '../ir/evaluate.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { int64s, isFloat, readNumbers, writeNumbers } from '../ops/numbers.ts';

/** Sizes by symbol, and contents by value. */
export interface ProbeInputs {
  /** Sizes of the symbols. */
  readonly sizes: ReadonlyMap<string, number>;
  /** Contents of values; what they are computed from is not looked at. */
  readonly given: ReadonlyMap<Value, Tensor>;
  /**
   * Whether to compute in doubles whatever the model computes in, so that what a piece of graph means is
   * not blurred by its rounding. Given contents of floats have to be f64 then. Default false.
   */
  readonly exact?: boolean;
}

/**
 * Computes a value.
 *
 * @returns undefined when it depends on something that is not given, or cannot be evaluated
 */
export function probe(model: Model, wanted: Value, inputs: ProbeInputs): Tensor | undefined {
  const known = new Map(inputs.given);
  try {
    return compute(model, wanted, inputs, known);
  } catch {
    // sizes that an op refuses (an index outside its table) are an answer too: not computable
    return undefined;
  }
}

/** A shape with its symbols filled in; undefined when one of them is not known. */
export function knownShape(
  shape: Shape | undefined,
  sizes: ReadonlyMap<string, Dim>,
): number[] | undefined {
  const result: number[] = [];
  for (const dim of shape ?? []) {
    const size = substituteDim(dim, sizes);
    if (typeof size !== 'number') return undefined;
    result.push(size);
  }
  return shape === undefined ? undefined : result;
}

function compute(
  model: Model,
  value: Value,
  inputs: ProbeInputs,
  known: Map<Value, Tensor>,
): Tensor | undefined {
  const { sizes, exact = false } = inputs;
  const done = known.get(value);
  if (done !== undefined) return done;
  if (value.weight !== undefined) {
    const tensor = exact ? widened(value.weight.tensor()) : value.weight.tensor();
    known.set(value, tensor);
    return tensor;
  }
  const node = value.producer;
  if (node === undefined) return undefined;
  const shape = isShape(node) ? knownShape(node.input(0).shape, sizes) : undefined;
  if (shape !== undefined) {
    const tensor = int64s(sliceOf(node, shape));
    known.set(value, tensor);
    return tensor;
  }
  const tensors: (Tensor | undefined)[] = [];
  for (const input of node.inputs) {
    const tensor = input && compute(model, input, inputs, known);
    if (input !== undefined && tensor === undefined) return undefined;
    tensors.push(tensor);
  }
  const [only] = tensors;
  if (exact && isCast(node) && only?.dtype === 'f64' && isFloat(value.dtype ?? 'f64')) {
    known.set(value, only);
    return only;
  }
  const results = evaluateNode(node, model, tensors);
  node.outputs.forEach((output, index) => {
    const tensor = results[index];
    if (output !== undefined && tensor !== undefined) known.set(output, tensor);
  });
  return known.get(value);
}

function isCast(node: Node): boolean {
  return node.op === 'Cast' && node.domain === '';
}

function widened(tensor: Tensor): Tensor {
  if (!isFloat(tensor.dtype) || tensor.dtype === 'f64') return tensor;
  return writeNumbers('f64', tensor.shape, Float64Array.from(readNumbers(tensor)));
}

function isShape(node: Node): boolean {
  return node.op === 'Shape' && node.domain === '';
}

function sliceOf(node: Node, shape: readonly number[]): number[] {
  const place = (axis: number): number => (axis < 0 ? axis + shape.length : axis);
  return shape.slice(place(node.int('start', 0)), place(node.int('end', shape.length)));
}
