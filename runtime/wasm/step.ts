/**
 * Typed encoders for the steps of a plan, derived from the names in kernels/abi.ts: a kernel is the
 * constant `NAME`, its parameters the constants `NAME_PARAMETER`, so a misspelt one does not compile.
 *
 *   encodeStep('FILL', { Y: 4096, COUNT: 8, ELEMENT: 4, VALUE: floatBits(1), HIGH: 0 })
 */
import * as abi from './kernels/abi.ts';

/** Names of the kernels whose steps have a fixed number of words. */
export type KernelName = keyof {
  [Name in keyof typeof abi as Name extends `${infer Kernel}_END` ? Kernel : never]: never;
};

/** Constants of a kernel that are no parameters; the kinds of REDUCE share its prefix. */
type NotParameter<Kernel> = Kernel extends 'REDUCE' ? 'END' | (typeof reduceKinds)[number] : 'END';
const reduceKinds = ['SUM', 'MEAN', 'MAX', 'MIN', 'PROD', 'L1', 'L2', 'SUMSQUARE'] as const;

/** Parameter names of a kernel. */
export type ParameterName<Kernel extends KernelName> = keyof {
  [
    Name in keyof typeof abi as Name extends `${Kernel}_${infer Parameter}`
      ? Parameter extends NotParameter<Kernel>
        ? never
        : Parameter
      : never
  ]: never;
};

/** Word index of a parameter inside its step. */
export function parameterWord<Kernel extends KernelName>(
  kernel: Kernel,
  parameter: ParameterName<Kernel>,
): number {
  return constant(`${kernel}_${parameter as string}`);
}

/** Number of words of a step, its two header words included. */
export function stepWords(kernel: KernelName): number {
  return constant(`${kernel}_END`);
}

/**
 * The words of a step. Every parameter must be given; pass floats through {@link floatBits}.
 *
 * @throws RangeError when a value is no 32-bit integer
 */
export function encodeStep<Kernel extends KernelName>(
  kernel: Kernel,
  parameters: Readonly<Record<ParameterName<Kernel>, number>>,
): Int32Array<ArrayBuffer> {
  const words = new Int32Array(stepWords(kernel));
  words[0] = constant(kernel);
  words[1] = words.length;
  for (const [name, value] of Object.entries<number>(parameters)) {
    if (!Number.isInteger(value) || value < -(2 ** 31) || value >= 2 ** 32)
      throw new RangeError(`${kernel}_${name} must be a 32-bit integer, got ${value}.`);
    words[constant(`${kernel}_${name}`)] = value;
  }
  return words;
}

const float = new Float32Array(1);
const bits = new Int32Array(float.buffer);

/** The i32 word that holds an f32. */
export function floatBits(value: number): number {
  float[0] = value;
  return bits[0] ?? 0;
}

function constant(name: string): number {
  const value = (abi as Readonly<Record<string, number>>)[name];
  if (value === undefined) throw new RangeError(`The kernel ABI has no ${name}.`);
  return value;
}
