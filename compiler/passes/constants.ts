/** Reading small constants, the way passes ask for them. */
import type { Value } from '../ir/graph.ts';
import { readNumbers } from '../ops/numbers.ts';

/** Constants longer than this are weights, not axes, sizes or scalars. */
const MOST_ELEMENTS = 1024;

/**
 * The elements of a small integer value that are known without running the model, row-major.
 *
 * @returns undefined when the value is absent, unknown, symbolic or long
 */
export function integersOf(value: Value | undefined): readonly number[] | undefined {
  if (value === undefined) return undefined;
  if (value.weight !== undefined) return numbersOf(value);
  return value.elements?.every((dim) => typeof dim === 'number') === true
    ? value.elements
    : undefined;
}

/** The elements of a small constant; undefined when the value is no constant, or long. */
export function numbersOf(value: Value | undefined): readonly number[] | undefined {
  const weight = value?.weight;
  if (weight === undefined || weight.dtype === 'string') return undefined;
  if (weight.shape.reduce((product, dim) => product * dim, 1) > MOST_ELEMENTS) return undefined;
  return Array.from(readNumbers(weight.tensor()));
}

/** The value every element of a small constant has; undefined when they differ or are not known. */
export function uniformValueOf(value: Value | undefined): number | undefined {
  const numbers = numbersOf(value);
  const [first] = numbers ?? [];
  return first !== undefined && numbers?.every((number) => Object.is(number, first)) === true
    ? first
    : undefined;
}

/**
 * A list of integers that older opsets give as an attribute and newer ones as an input.
 *
 * @returns 'absent' when neither is given, undefined when the input is not known
 */
export function listOf(
  node: {
    ints(name: string): number[] | undefined;
    readonly inputs: readonly (Value | undefined)[];
  },
  attribute: string,
  input: number,
): readonly number[] | 'absent' | undefined {
  const listed = node.ints(attribute);
  if (listed !== undefined) return listed;
  const value = node.inputs[input];
  return value === undefined ? 'absent' : integersOf(value);
}
