/** Distance between two runnable models: decoders on a text, anything else on equal inputs. */
import type { TensorSpec } from '../../runtime/manifest.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { Session } from '../../runtime/session.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { dtypes } from '../../runtime/tensor.ts';
import type { Progress } from '../passes/pass.ts';
import type { Distance } from './distance.ts';
import { DistanceMeter } from './distance.ts';
import { toF32 } from './numbers.ts';
import type { LogitsModel } from './perplexity.ts';
import { randomFeeds } from './random-feeds.ts';

/** Told and asked between steps. */
interface Watching {
  readonly progress?: Progress;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Distance of the logits over a text, in windows that do not overlap.
 *
 * @param ids - token ids, at least 1
 */
export async function compareDecoders(
  reference: LogitsModel,
  candidate: LogitsModel,
  ids: readonly number[],
  options: Watching & { readonly windowTokens: number },
): Promise<Distance> {
  const meter = new DistanceMeter();
  const windowTokens = Math.min(
    options.windowTokens,
    reference.contextLength,
    candidate.contextLength,
  );
  for (let start = 0; start < ids.length; start += windowTokens) {
    options.signal?.throwIfAborted();
    const window = ids.slice(start, start + windowTokens);
    // the first result may live in memory that the second call reuses when both are one engine
    const expected = Float32Array.from(await reference.logits(window));
    meter.add(expected, await candidate.logits(window), reference.vocabulary);
    options.progress?.('distance', start + window.length, ids.length);
  }
  return meter.result();
}

/** Inputs of {@link compareOutputs}. */
export interface CompareOptions extends Watching {
  /** Inputs to use; default: random ones that fit the first model. */
  readonly feeds?: readonly Readonly<Record<string, Tensor>>[];
  /** How many random inputs. Default 8. */
  readonly samples?: number;
  /** Seed of random inputs. Default 1. */
  readonly seed?: number;
}

/**
 * Distance over all outputs that both models have.
 *
 * @throws {@link FettleError} USAGE when they share no output
 */
export async function compareOutputs(
  reference: Session,
  candidate: Session,
  options: CompareOptions = {},
): Promise<Distance> {
  const feeds =
    options.feeds ?? randomFeeds(reference.manifest, options.samples ?? 8, options.seed ?? 1);
  const meter = new DistanceMeter();
  const shared = reference.manifest.outputs.filter(({ name, dtype }) =>
    candidate.manifest.outputs.some(
      (other) => other.name === name && isReal(other) && dtypes[dtype].kind !== 'string',
    ),
  );
  if (shared.length === 0)
    throw new FettleError('USAGE', 'The two models have no output in common.', {
      at: { model: reference.manifest.model.name, against: candidate.manifest.model.name },
      fix: 'Compare a model with a bundle made from it.',
    });
  for (const [index, feed] of feeds.entries()) {
    options.signal?.throwIfAborted();
    const expected = await reference.run(feed);
    const actual = await candidate.run(feed);
    for (const { name } of shared) {
      const [a, b] = [expected[name], actual[name]];
      if (a === undefined || b === undefined) continue;
      meter.add(toF32(a), toF32(b), a.shape.at(-1) ?? 1);
    }
    options.progress?.('distance', index + 1, feeds.length);
  }
  return meter.result();
}

function isReal({ dtype }: TensorSpec): boolean {
  return !['string', 'complex'].includes(dtypes[dtype].kind);
}
