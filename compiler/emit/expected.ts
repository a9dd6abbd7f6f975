/**
 * Canaries with the outputs of the emitted program: computed by its own engine where the caller can
 * run it, else by the reference evaluator when the model is small enough for that.
 */
import { compareCanary } from '../../runtime/canaries.ts';
import { FettleError, throwIfAborted } from '../../runtime/errors.ts';
import { dtypes, elementCount } from '../../runtime/tensor.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { halfToFloat } from '../../runtime/half.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import { evaluate } from '../ir/evaluate.ts';
import type { Model } from '../ir/graph.ts';
import type { Canary, Tensors } from './canaries.ts';
import { canaryInputs, stepSizes } from './canaries.ts';
import type { RoundedOutputs } from './rounded-inputs.ts';
import { evaluateRounded } from './rounded-inputs.ts';

/**
 * Runs a bundle that lies in a folder on its own engine.
 *
 * @param folder - the bundle, complete but for canaries
 * @param inputs - every input of the model, once per call; calls are independent
 * @returns the outputs of each call
 */
export type BundleRunner = (
  folder: string,
  inputs: readonly Tensors[],
  signal: AbortSignal | undefined,
) => Promise<readonly Tensors[]>;

/** What canaries are made from. */
export interface ExpectedOptions {
  /** The lowered model. */
  readonly program: Model;
  /** How it is driven. */
  readonly decoder: DecoderSpec | undefined;
  /** Whether the caller feeds the cache; else the engine keeps it, and only first calls can be checked. */
  readonly keepsCache: boolean;
  /** Seed of the inputs. */
  readonly seed: number;
  /** Elements of all weights. */
  readonly parameters: number;
  /** The written bundle. */
  readonly folder: string;
  /** Runs it. */
  readonly run: BundleRunner | undefined;
  /** Whether the engine rounds what it multiplies by codes, as {@link evaluateRounded} does. */
  readonly rounds: boolean;
  /** Stops. */
  readonly signal: AbortSignal | undefined;
}

/** Parameters up to which the reference evaluator is used; it takes about a second for as many. */
const EVALUATOR_PARAMETERS = 20_000_000;

/** Inputs that are tried for canaries whose values round the same way everywhere. */
const ROUNDED_ATTEMPTS = 4;

/** Outputs larger than this many elements are left out; a bundle should not grow by its checks. */
const OUTPUT_ELEMENTS = 1 << 20;

const broken: ReadonlySet<string> = new Set(['OP_UNSUPPORTED', 'BUNDLE_CORRUPT']);

/** Cases, and how far apart two right engines may be. */
export interface Canaries {
  readonly cases: readonly Canary[];
  /** Largest difference as a fraction of an output's range, from values that round either way. */
  readonly spread: number;
}

/**
 * The canaries, or why there are none.
 *
 * @throws {@link FettleError} OP_UNSUPPORTED when the engine does not accept the program
 */
export async function makeCanaries(options: ExpectedOptions): Promise<Canaries | string> {
  const { decoder, parameters, run, rounds, signal } = options;
  if (run === undefined && parameters > EVALUATOR_PARAMETERS)
    return 'the model is too large for the reference evaluator, and no engine was given';
  let why = '';
  for (const steps of decoder === undefined ? stepSizes : stepSizes.slice(0, 1))
    try {
      if (rounds && run === undefined) return roundedCases(options, steps);
      return { cases: await casesFor(options, steps), spread: 0 };
    } catch (error) {
      throwIfAborted(signal);
      // the engine refuses the program itself: that is no matter of inputs
      if (error instanceof FettleError && broken.has(error.code)) throw error;
      if (why === '') why = error instanceof Error ? error.message : String(error);
    }
  return `made-up inputs did not run: ${why.trim().replace(/\.+$/, '')}`;
}

async function casesFor(options: ExpectedOptions, steps: number): Promise<readonly Canary[]> {
  const { program, decoder, keepsCache, seed, folder, run, signal } = options;
  const calls = canaryInputs(program, decoder, seed, steps).slice(0, keepsCache ? undefined : 1);
  const inputs = keepsCache ? calls : calls.map((call) => withoutCaches(call, decoder));
  const outputs =
    run === undefined
      ? calls.map((feeds) => evaluate(program, feeds, signal === undefined ? {} : { signal }))
      : await run(folder, inputs, signal);
  return inputs.map((feeds, index) => ({
    inputs: feeds,
    outputs: worthKeeping(outputs[index] ?? new Map(), decoder),
  }));
}

/**
 * Cases computed with rounded inputs. A value half way between two codes is rounded by the last bits of sums,
 * which differ from engine to engine; so a few inputs are tried until there is no such value, else
 * the difference that they make is measured.
 */
function roundedCases(options: ExpectedOptions, steps: number): Canaries {
  const { program, decoder, keepsCache, seed, signal } = options;
  let best: { readonly calls: readonly Tensors[]; readonly results: RoundedOutputs[] } | undefined;
  const tiesOf = (results: readonly RoundedOutputs[]): number =>
    results.reduce((sum, { ties }) => sum + ties, 0);
  for (let attempt = 0; attempt < ROUNDED_ATTEMPTS; attempt++) {
    const calls = canaryInputs(program, decoder, seed + 2 * attempt, steps).slice(
      0,
      keepsCache ? undefined : 1,
    );
    const results = calls.map((feeds) => evaluateRounded(program, feeds, false, signal));
    if (best === undefined || tiesOf(results) < tiesOf(best.results)) best = { calls, results };
    if (tiesOf(results) === 0) break;
  }
  const { calls, results } = best ?? { calls: [], results: [] };
  const cases = calls.map((feeds, index) => ({
    inputs: keepsCache ? feeds : withoutCaches(feeds, decoder),
    outputs: worthKeeping(results[index]?.outputs ?? new Map(), decoder),
  }));
  if (tiesOf(results) === 0) return { cases, spread: 0 };
  const spreads = calls.flatMap((feeds, index) => {
    const other = Object.fromEntries(evaluateRounded(program, feeds, true, signal).outputs);
    const expected = Object.fromEntries(cases[index]?.outputs ?? []);
    return compareCanary(index, expected, other, { file: '', tolerance: 1 });
  });
  return { cases, spread: Math.max(...spreads.map(({ maxError, range }) => maxError / range)) };
}

/** What an engine is fed that keeps the cache itself. */
function withoutCaches(call: Tensors, decoder: DecoderSpec | undefined): Tensors {
  const caches = new Set(decoder?.state.map(({ input }) => input));
  return new Map([...call].filter(([name]) => !caches.has(name)));
}

/** Logits of a decoder, every finite output of reasonable size of other models. */
function worthKeeping(outputs: Tensors, decoder: DecoderSpec | undefined): Tensors {
  const kept = [...outputs].filter(([name, tensor]) => {
    if (decoder !== undefined && name !== decoder.logits) return false;
    return elementCount(tensor.shape) <= OUTPUT_ELEMENTS && isFinite(tensor);
  });
  if (kept.length === 0) throw new Error('no output is finite and small enough to compare');
  return new Map(kept);
}

function isFinite({ dtype, data }: Tensor): boolean {
  if (dtype === 'f32' || dtype === 'f64') return (data as Float32Array).every(Number.isFinite);
  if (dtype === 'f16')
    return (data as Uint16Array).every((half) => Number.isFinite(halfToFloat(half)));
  const { kind } = dtypes[dtype];
  return kind === 'int' || kind === 'uint' || kind === 'bool';
}
