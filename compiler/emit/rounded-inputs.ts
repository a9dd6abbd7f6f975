/**
 * What the integer kernels of the `wasm` engine do to their input, for the reference evaluator: int8 with
 * one scale per block, in the f32 arithmetic that runtime/wasm/kernels/quantize.ts states:
 *
 *   peak = max|x|, code = round half to even(f32(x * f32(127 / peak))), value = code * f32(peak / 127)
 *
 * Rounding is a step function: a value half way between two codes goes up or down by the last bit of the
 * sums before it, and one code more or less moves all that follows by the noise of 8 bits.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { PlanLayout } from '../../runtime/plan.ts';
import { evaluate } from '../ir/evaluate.ts';
import type { Model, Node } from '../ir/graph.ts';
import { isDequantize, readDequantize } from '../ops/quantized.ts';

/** How the input of a node is rounded. */
export interface InputRounding {
  /** Values of a row. */
  readonly columns: number;
  /** Values that share a scale. */
  readonly block: number;
}

/** How a node's first input is rounded; undefined when it multiplies no codes. */
export function roundingOf(node: Node): InputRounding | undefined {
  const codes = node.inputs[1]?.producer;
  if (!['Linear', 'GatedLinear'].includes(node.op) || !isDequantize(codes)) return undefined;
  const { columns, group } = readDequantize(codes);
  return { columns, block: group >= columns || group % 32 === 0 ? 32 : 16 };
}

/** Chooses a code: what the arithmetic says, and the exact number it rounds; `at` counts values. */
export type ChooseCode = (code: number, exact: number, at: number) => number;

/** Rows as the kernels see them. */
export function roundRows(
  { data, shape }: Tensor,
  { columns, block }: InputRounding,
  choose: ChooseCode = (code) => code,
): Tensor {
  const x = data as Float32Array;
  const rounded = new Float32Array(x.length);
  for (let row = 0; row < x.length; row += columns)
    for (let start = row; start < row + columns; start += block) {
      const end = Math.min(start + block, row + columns);
      const { inverse, scale } = scalesOf(x, start, end);
      for (let i = start; i < end; i++) {
        const exact = Math.fround((x[i] ?? 0) * inverse);
        rounded[i] = choose(halfToEven(exact), exact, i) * scale;
      }
    }
  return { dtype: 'f32', shape, data: rounded };
}

/** What a block is multiplied with on its way to codes, and back. */
export function scalesOf(
  x: Float32Array,
  start: number,
  end: number,
): { readonly inverse: number; readonly scale: number } {
  let peak = 0;
  for (let i = start; i < end; i++) peak = Math.max(peak, Math.abs(x[i] ?? 0));
  return { inverse: peak > 0 ? Math.fround(127 / peak) : 0, scale: Math.fround(peak / 127) };
}

/** The nearest whole number, the even one of two. */
export function halfToEven(x: number): number {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/**
 * Codes around a boundary between two that an engine may round to either: sums in f32 in another order
 * move 99% of the values of nib by less.
 */
const TIE = 4e-5;

/** What a model gives with rounded inputs. */
export interface RoundedOutputs {
  readonly outputs: ReadonlyMap<string, Tensor>;
  /** Values that may be rounded either way. */
  readonly ties: number;
}

/**
 * Evaluates a model as the engine computes it.
 *
 * @param other - whether values that may be rounded either way are rounded the other way
 */
export function evaluateRounded(
  model: Model,
  feeds: ReadonlyMap<string, Tensor>,
  other: boolean,
  signal: AbortSignal | undefined,
): RoundedOutputs {
  let ties = 0;
  const choose: ChooseCode = (code, exact) => {
    const rest = exact - code;
    if (0.5 - Math.abs(rest) > TIE) return code;
    ties++;
    return other ? code + Math.sign(rest) : code;
  };
  const outputs = evaluate(model, feeds, {
    ...(signal === undefined ? {} : { signal }),
    read: (node, inputs) => {
      const rounding = roundingOf(node);
      const [x, ...rest] = inputs;
      if (rounding === undefined || x === undefined) return inputs;
      return [roundRows(x, rounding, choose), ...rest];
    },
  });
  return { outputs, ties };
}

/** Whether a plan rounds the inputs of those nodes that {@link roundingOf} tells, and no others. */
export function roundsAsTold({ graph }: Model, { steps }: PlanLayout): boolean {
  const nameOf = (node: Node): string => node.name || node.op;
  const told = new Set(
    [...graph.nodes()].filter((node) => roundingOf(node) !== undefined).map(nameOf),
  );
  const stepped = (kernel: string): string[] =>
    steps.flatMap((step) => (step.kernel === kernel ? [step.node] : []));
  const linear = new Set(stepped('LINEAR'));
  return (
    stepped('QUANTIZE').every((node) => told.has(node)) &&
    linear.size === told.size &&
    [...told].every((node) => linear.has(node))
  );
}
