/**
 * Divisors of channels for the pass `scale-channels`, from the statistics of what units are multiplied
 * with.
 *
 *   logarithmic  s_j = a_j / log2(2 + a_j), a_j = max |x_j|, where 15 < max a < 150: activations fit one
 *                static 8-bit scale afterwards (FPTQ)
 *   smooth       s_j = a_j^α / w_j^(1-α), w_j the largest weight that reads channel j (SmoothQuant)
 *   awq          s_j = (rms x_j)^α, α by the loss of rounding the scaled weights, Σ_j mean x_j² e_j²
 *
 * All but the first are normalised to a geometric mean of 1.
 * Sources: Li et al., FPTQ, arXiv:2308.15987; Xiao et al., SmoothQuant, arXiv:2211.10438; Lin et al.,
 * AWQ, arXiv:2306.00978; ../shared/ALGORITHMS.md Q9.
 */
import type { Algebra } from '../algebra/algebra.ts';
import type { Node, Value } from '../ir/graph.ts';
import { whyNotScalable } from '../passes/scale-channels.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import { unitRows } from '../passes/weight-units.ts';
import type { IntegerFormat } from '../quant/formats.ts';
import { dequantizeMatrix, quantizeMatrix } from '../quant/matrix.ts';
import type { Statistics } from './collect.ts';
import type { UnitStatistics } from './statistics.ts';
import type { Subject } from './subject.ts';

/** How divisors are found. */
export type ScaleMethod =
  | { readonly name: 'logarithmic' }
  | {
      readonly name: 'smooth';
      /** How much moves to the weights, 0..1. Default 0.5. */
      readonly alpha?: number;
    }
  | {
      readonly name: 'awq';
      /** Format that the weights are going to have. */
      readonly format: IntegerFormat;
      /** Values of α that are tried, 0 among them. Default 20. */
      readonly steps?: number;
    };

/** Largest magnitude up to which one static scale is good as it is, and from which it never is. */
export const staticLimits = { good: 15, hopeless: 150 } as const;

/** Rows of each unit that the search for α looks at, at most. */
const SEARCH_ROWS = 128;

/**
 * Divisors by name of the value, for every value that can be scaled and gains from it.
 *
 * @example
 * const scales = channelScales(subject, statistics, { name: 'awq', format }, algebra);
 * await runPasses(model, [scaleChannels({ scales })]);
 */
export function channelScales(
  { model, units }: Pick<Subject, 'model' | 'units'>,
  statistics: Statistics,
  method: ScaleMethod,
  algebra: Algebra,
): Readonly<Record<string, readonly number[]>> {
  const scales: Record<string, readonly number[]> = {};
  for (const node of model.graph.nodes()) {
    const value = node.outputs[0];
    if (value === undefined || !isScalable(node, value)) continue;
    const readers = units.filter(({ inputs }) => inputs.includes(value));
    const [first] = readers;
    const known = first && statistics.units.get(first.name);
    if (known === undefined) continue;
    const found = scalesOf(readers, known, method, algebra);
    if (found !== undefined) scales[value.name] = Array.from(found);
  }
  return scales;
}

function isScalable(node: Node, value: Value): boolean {
  return value.users.size > 0 && whyNotScalable(node) === undefined;
}

function scalesOf(
  units: readonly WeightUnit[],
  statistics: UnitStatistics,
  method: ScaleMethod,
  algebra: Algebra,
): Float64Array | undefined {
  switch (method.name) {
    case 'logarithmic':
      return logarithmicScales(statistics.absmax);
    case 'smooth':
      return smoothScales(statistics.absmax, largestWeights(units), method.alpha);
    case 'awq':
      return searchedScales(units, statistics, method, algebra);
  }
}

/**
 * Logarithmic equalisation; undefined where it is not needed or does not help.
 *
 * @param absmax - largest magnitude of each channel
 */
export function logarithmicScales(absmax: ArrayLike<number>): Float64Array | undefined {
  const most = Array.from(absmax).reduce((a, b) => Math.max(a, b), 0);
  if (!(most > staticLimits.good && most < staticLimits.hopeless)) return undefined;
  return Float64Array.from(absmax, (a) => (a > 0 ? a / Math.log2(2 + a) : 1));
}

/**
 * SmoothQuant's factors.
 *
 * @param absmax - largest magnitude of each channel
 * @param weights - largest weight that reads each channel
 */
export function smoothScales(
  absmax: ArrayLike<number>,
  weights: ArrayLike<number>,
  alpha = 0.5,
): Float64Array {
  return normalized(
    Float64Array.from(absmax, (a, j) => {
      const w = weights[j] ?? 0;
      return a > 0 && w > 0 ? a ** alpha / w ** (1 - alpha) : 1;
    }),
  );
}

function searchedScales(
  units: readonly WeightUnit[],
  { meanSquare }: UnitStatistics,
  { format, steps = 20 }: Extract<ScaleMethod, { readonly name: 'awq' }>,
  algebra: Algebra,
): Float64Array | undefined {
  const samples = units.map(sampleRows);
  let best: { readonly loss: number; readonly scales: Float64Array | undefined } | undefined;
  for (let step = 0; step < steps; step++) {
    const alpha = step / steps;
    const scales = normalized(
      Float64Array.from(meanSquare, (square) => (square > 0 ? Math.sqrt(square) ** alpha : 1)),
    );
    const loss = samples.reduce(
      (sum, sample) => sum + roundingLoss(sample, scales, meanSquare, format, algebra),
      0,
    );
    if (best === undefined || loss < best.loss)
      best = { loss, scales: step === 0 ? undefined : scales };
  }
  return best?.scales;
}

interface SampledRows {
  readonly rows: number;
  readonly columns: number;
  readonly values: Float32Array;
}

/** Some rows of a unit, evenly spread. */
function sampleRows(unit: WeightUnit): SampledRows {
  const { rows, columns } = unit;
  const source = unitRows(unit);
  const count = Math.min(rows, SEARCH_ROWS);
  const values = new Float32Array(count * columns);
  for (let i = 0; i < count; i++) {
    const row = Math.floor((i * rows) / count);
    values.set(source.read(row, 1).subarray(0, columns), i * columns);
  }
  return { rows: count, columns, values };
}

/** Σ mean x_j² e_ij² of rounding scaled weights. */
export function roundingLoss(
  { rows, columns, values }: SampledRows,
  scales: Float64Array,
  meanSquare: ArrayLike<number>,
  format: IntegerFormat,
  algebra: Algebra,
): number {
  const scaled = values.map((value, i) => value * (scales[i % columns] ?? 1));
  const read = (start: number, count: number): Float32Array =>
    scaled.subarray(start * columns, (start + count) * columns);
  const result = quantizeMatrix({ rows, columns, read }, format, algebra, false);
  if ('refused' in result) return Infinity;
  const rounded = dequantizeMatrix(result.matrix);
  let loss = 0;
  for (let i = 0; i < rounded.length; i++) {
    const column = i % columns;
    const error = (values[i] ?? 0) - (rounded[i] ?? 0) / (scales[column] ?? 1);
    loss += (meanSquare[column] ?? 0) * error * error;
  }
  return loss;
}

function largestWeights(units: readonly WeightUnit[]): Float64Array {
  const columns = units[0]?.columns ?? 0;
  const largest = new Float64Array(columns);
  for (const unit of units) {
    const values = unitRows(unit).read(0, unit.rows);
    for (let i = 0; i < unit.rows * columns; i++)
      largest[i % columns] = Math.max(largest[i % columns] ?? 0, Math.abs(values[i] ?? 0));
  }
  return largest;
}

/** Divided by their geometric mean. */
function normalized(scales: Float64Array): Float64Array {
  const logs = scales.reduce((sum, scale) => sum + Math.log(scale), 0);
  const mean = Math.exp(logs / Math.max(1, scales.length));
  return scales.map((scale) => scale / mean);
}
