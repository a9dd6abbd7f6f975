/**
 * What the products of a bundle multiply weights with, from what the manifest says about its passes:
 *
 *     activations: 8 bits in 49 of 49 products, rounded as they come (a scale per 32 inputs), …
 */
import type { Manifest } from '../../runtime/manifest.ts';

/** Counts of products, and why it is so. */
export interface ActivationSummary {
  /** Products of activations in 8 bits. */
  readonly int8: number;
  /** Products of activations in f32, as far as they are known. */
  readonly f32: number;
  /** How activations become integers; absent when none do. */
  readonly how?: string;
  /** Why. */
  readonly why: string;
}

/** The summary of a bundle. */
export function activationSummary({
  engine,
  passes,
}: Pick<Manifest, 'engine' | 'passes'>): ActivationSummary {
  if (engine !== 'ort') {
    const { int8 = 0, f32 = 0 } = numbersIn(reportOf(passes, 'lower-wasm'), 'notes', 'products');
    return int8 === 0
      ? { int8, f32, why: 'no matrix that is multiplied is in codes' }
      : {
          int8,
          f32,
          how: 'rounded as they come, a scale per 32 inputs',
          why: 'the kernels multiply codes by 8-bit integers',
        };
  }
  const report = reportOf(passes, 'quantize-activations');
  if (report === undefined)
    return { int8: 0, f32: 0, why: 'onnxruntime-web is faster with f32; --activations int8' };
  const counts = numbersIn(report, 'rewrites');
  const { static: fixed = 0, dynamic = 0, convolution = 0 } = counts;
  const refusals: unknown = isObject(report) ? report['refusals'] : [];
  return {
    int8: fixed + dynamic + convolution,
    f32: Array.isArray(refusals) ? refusals.length : 0,
    how: `${fixed + convolution} in ranges that calibration found, ${dynamic} rounded as they come`,
    why: 'the recipe asks for it',
  };
}

/** The same as a line for people. */
export function activationText({ int8, f32, how, why }: ActivationSummary): string {
  if (how === undefined) return `activations: f32 (${why})`;
  return `activations: 8 bits in ${int8} of ${int8 + f32} products, ${how} (${why})`;
}

function reportOf(passes: readonly unknown[], name: string): unknown {
  return passes.find((report) => isObject(report) && report['pass'] === name);
}

/** The numbers of an object somewhere inside another one. */
function numbersIn(value: unknown, ...path: readonly string[]): Partial<Record<string, number>> {
  const found = path.reduce((at, key) => (isObject(at) ? at[key] : undefined), value);
  if (!isObject(found)) return {};
  return Object.fromEntries(
    Object.entries(found).filter(
      (entry): entry is [string, number] => typeof entry[1] === 'number',
    ),
  );
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
