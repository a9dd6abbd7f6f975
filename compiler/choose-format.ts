/**
 * Which uniform weight formats are worth trying under a size budget, best first: the model's own
 * dtypes, then every format the target runs by falling bits. A format whose bare codes are already
 * larger than the budget is not tried; the exact size of the others is found by writing the bundle.
 */
import { FettleError } from '../runtime/errors.ts';
import { dtypes, elementCount } from '../runtime/tensor.ts';
import type { Target } from '../targets/target.ts';
import type { Model } from './ir/graph.ts';
import type { Weight } from './ir/weight.ts';
import type { NumberFormat } from './quant/formats.ts';
import { bitsPerWeight, numberFormats, parseFormat } from './quant/formats.ts';
import type { Recipe } from './recipe.ts';
import { isAuto } from './recipe.ts';

/** Inputs of an output channel that bits per weight are compared at. */
const TYPICAL_COLUMNS = 1024;

/** Group sizes tried: the usual one, and the one that saves most of its scales. */
const GROUPS: readonly number[] = [32, 128];

/** A format to try; undefined keeps the model's own dtypes. */
export type Candidate = string | undefined;

/**
 * Checks that a target runs the format a recipe asks for.
 *
 * @throws {@link FettleError} USAGE when it does not
 */
export function checkTargetFormat(target: Target, recipe: Recipe): void {
  const { weights, embeddings } = recipe;
  for (const name of [weights, embeddings])
    if (name !== undefined && name !== 'same' && name !== 'keep' && !isAuto(name)) {
      if (runs(target, parseFormat(name))) continue;
      throw new FettleError('USAGE', `Target "${target.id}" does not run weights in ${name}.`, {
        at: { option: 'weights', target: target.id },
        fix: `Use one of ${targetFormats(target).join(', ')}.`,
      });
    }
}

/**
 * Checks that a target keeps the KV cache in the format a recipe asks for.
 *
 * @throws {@link FettleError} USAGE when it does not
 */
export function checkTargetKv({ id, kvFormats = [] }: Target, { kv }: Recipe): void {
  if (kv === 'source' || kvFormats.includes(kv)) return;
  throw new FettleError('USAGE', `Target "${id}" does not keep the KV cache in ${kv}.`, {
    at: { option: 'kv', target: id },
    fix: kvFormats.length === 0 ? 'Leave it out.' : `Use one of ${kvFormats.join(', ')}.`,
  });
}

/** The formats to try for a target, best first. */
export function candidateFormats(target: Target): readonly Candidate[] {
  // onnxruntime stores fewer bits in 4: quality would be lost and no byte gained
  const least = target.engine === 'ort' ? 4 : 0;
  const worthwhile = targetFormats(target).filter((name) => parseFormat(name).bits >= least);
  return [undefined, ...worthwhile.filter((name) => name !== 'f32')];
}

/**
 * Bytes that the weights of a model take at least in a format: the elements alone, without scales.
 *
 * @param model - after clean-up, so that tied weights count once
 */
export function leastWeightBytes(model: Model, candidate: Candidate): number {
  const bits = candidate === undefined ? Infinity : parseFormat(candidate).bits;
  let sum = 0;
  for (const weight of weightsOf(model)) {
    const own = dtypes[weight.dtype];
    const smallest = own.kind === 'float' ? Math.min(own.bits, bits) : own.bits;
    sum += (elementCount(weight.shape) * smallest) / 8;
  }
  return Math.floor(sum);
}

/** Elements of the constants that hold numbers: weights of any precision, no shapes or indices. */
export function countParameters(model: Model): number {
  let count = 0;
  for (const weight of weightsOf(model)) {
    const { kind, bits } = dtypes[weight.dtype];
    if (kind === 'float' || (bits <= 8 && (kind === 'int' || kind === 'uint')))
      count += elementCount(weight.shape);
  }
  return count;
}

/** The constants of all graphs, each storage once. */
function weightsOf(model: Model): ReadonlySet<Weight> {
  const weights = new Set<Weight>();
  for (const graph of model.graph.allGraphs())
    for (const { weight, useCount } of graph.constants)
      if (weight !== undefined && useCount > 0) weights.add(weight);
  return weights;
}

function targetFormats(target: Target): readonly string[] {
  const listed = numberFormats.filter(
    (format) =>
      runs(target, format) &&
      (format.kind === 'float' || (format.kind === 'integer' && isUniform(format.name))),
  );
  const bits = (format: NumberFormat): number => bitsPerWeight(format, TYPICAL_COLUMNS);
  return listed.toSorted((a, b) => bits(b) - bits(a)).map(({ name }) => name);
}

function isUniform(name: string): boolean {
  return GROUPS.some((group) => name.endsWith(`g${group}`));
}

function runs(target: Target, format: NumberFormat): boolean {
  if (!format.supported) return false;
  if (format.kind === 'float') return target.weightFormats.includes(format.dtype);
  if (format.kind === 'kv') return false;
  if (format.kind === 'codebook')
    return target.weightFormats.includes('c4') && target.groupSizes.includes(format.group);
  const grouped = format.group === 'channel' || target.groupSizes.includes(format.group);
  return grouped && target.weightFormats.includes(`w${format.bits}`);
}
