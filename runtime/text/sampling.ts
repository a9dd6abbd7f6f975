/**
 * Chooses the next token from logits: greedy, or sampling after repetition penalty, temperature, top-k,
 * top-p and min-p, in this order (the order of Hugging Face transformers).
 *
 * Sources: repetition penalty, Keskar et al. 2019 (CTRL), section 4.1; top-p, Holtzman et al. 2020;
 * min-p, Nguyen et al. 2024.
 */
import { outOfRange } from '../errors.ts';
import { createRandom, randomSeed } from './random.ts';

/** How tokens are chosen. */
export interface SamplingOptions {
  /** 0 is greedy: always the likeliest token. Default: the model's, else 0. */
  readonly temperature?: number;
  /** Sample among this many likeliest tokens; 0 is all. Default: the model's, else 0. */
  readonly topK?: number;
  /** Sample among the likeliest tokens that make up this much probability, 0 … 1. Default 1: all. */
  readonly topP?: number;
  /** Drop tokens less likely than this times the likeliest, 0 … 1. Default 0: none. */
  readonly minP?: number;
  /** Divides the (positive) logits of tokens already in the context. Default 1: off. */
  readonly repetitionPenalty?: number;
  /** Whole number, 0 … 2^53 - 1; the same seed gives the same text. Default: a random one. */
  readonly seed?: number;
}

/** Chooses tokens. */
export interface Sampler {
  /** The seed in use, to repeat what was random. */
  readonly seed: number;
  /** Whether it always chooses the likeliest token, whatever the context. */
  readonly greedy: boolean;
  /**
   * Chooses one token.
   *
   * @param logits - one per token of the vocabulary; changed in place
   * @param context - tokens so far, for the repetition penalty
   */
  choose(logits: Float32Array, context: Iterable<number>): number;
}

/** Beyond this many natural-log units below the best, a token's probability is under 1e-13: left out. */
const NEGLIGIBLE = 30;

/**
 * Makes a sampler.
 *
 * @throws RangeError when an option is outside its range
 */
export function createSampler(options: SamplingOptions): Sampler {
  const { temperature = 0, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
  const seed = options.seed ?? randomSeed();
  within('temperature', temperature, 0, 1e4);
  if (!Number.isInteger(topK) || topK < 0) throw outOfRange('topK', 'a whole number >= 0', topK);
  within('topP', topP, 0, 1);
  within('minP', minP, 0, 1);
  if (!(repetitionPenalty > 0 && repetitionPenalty < 1e4))
    throw outOfRange('repetitionPenalty', 'a number > 0', repetitionPenalty);
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw outOfRange('seed', 'a whole number from 0 to 2^53 - 1', seed);
  const random = createRandom(seed);
  return {
    seed,
    greedy: temperature === 0 && repetitionPenalty === 1,
    choose(logits, context) {
      if (repetitionPenalty !== 1) penalize(logits, context, repetitionPenalty);
      const best = largest(logits);
      if (temperature === 0) return best;
      const most = logits[best] as number;
      // Whatever min-p or rounding would drop anyway is dropped first, which keeps the rest short.
      const reach = Math.min(NEGLIGIBLE, -Math.log(minP)) * temperature;
      const ids = topK > 0 ? largestFew(logits, topK, most - reach) : above(logits, most - reach);
      const weights = new Float64Array(ids.length);
      for (let i = 0; i < ids.length; i++)
        weights[i] = Math.exp(((logits[ids[i] as number] as number) - most) / temperature);
      if (topP < 1) cutTail(weights, topP);
      return ids[draw(weights, random())] ?? best;
    },
  };
}

function within(name: string, value: number, least: number, most: number): void {
  if (!(value >= least && value <= most)) throw outOfRange(name, `${least} to ${most}`, value);
}

function penalize(logits: Float32Array, context: Iterable<number>, penalty: number): void {
  for (const id of new Set(context)) {
    const logit = logits[id];
    if (logit !== undefined) logits[id] = logit > 0 ? logit / penalty : logit * penalty;
  }
}

/** Index of the largest logit, the first among equals; NaN is never chosen. */
function largest(logits: Float32Array): number {
  let best = 0;
  let most = -Infinity;
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i] as number;
    if (logit > most) [best, most] = [i, logit];
  }
  return best;
}

/** Ids with at least this logit, in their own order. */
function above(logits: Float32Array, floor: number): number[] {
  const ids: number[] = [];
  for (let i = 0; i < logits.length; i++) if ((logits[i] as number) >= floor) ids.push(i);
  return ids;
}

/** The `count` ids with the largest logits, of those with at least `floor`; the lower id among equals. */
function largestFew(logits: Float32Array, count: number, floor: number): number[] {
  if (count > 1000) {
    const sorted = above(logits, floor).sort(
      (a, b) => (logits[b] as number) - (logits[a] as number) || a - b,
    );
    return sorted.slice(0, count);
  }
  const ids: number[] = [];
  let least = floor;
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i] as number;
    if (!(logit >= least) || (ids.length === count && logit === least)) continue;
    // Few candidates survive the comparison above, so inserting into a short list beats sorting all.
    let at = ids.length;
    while (at > 0 && (logits[ids[at - 1] as number] as number) < logit) at--;
    ids.splice(at, 0, i);
    if (ids.length > count) ids.pop();
    if (ids.length === count) least = logits[ids[count - 1] as number] as number;
  }
  return ids;
}

/** Sets all weights to 0 but the smallest likely set with the fraction `topP` of the whole; at least one. */
function cutTail(weights: Float64Array, topP: number): void {
  const sorted = weights.toSorted();
  const limit = topP * sum(weights);
  let least = sorted.length - 1;
  for (let reached = sorted[least] ?? 0; reached < limit && least > 0;)
    reached += sorted[--least] as number;
  const cut = sorted[least] ?? 0;
  // Of those equal to the last one that fits, the lower ids stay.
  let equals = 0;
  for (let i = least; i < sorted.length && sorted[i] === cut; i++) equals++;
  for (let i = 0; i < weights.length; i++) {
    const weight = weights[i] as number;
    if (weight < cut || (weight === cut && equals-- <= 0)) weights[i] = 0;
  }
}

function draw(weights: Float64Array, random: number): number {
  let left = random * sum(weights);
  const at = weights.findIndex((weight) => (left -= weight) < 0);
  // Rounding may leave a little: then the last that can be drawn.
  return at >= 0 ? at : weights.findLastIndex((weight) => weight > 0);
}

function sum(values: Float64Array): number {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += values[i] as number;
  return total;
}
