/** Accuracy of a classifier: the share of samples whose best class is the label. */
import { FettleError } from '../../runtime/errors.ts';
import type { Session } from '../../runtime/session.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount, tensor } from '../../runtime/tensor.ts';
import type { Progress } from '../passes/pass.ts';
import { toF32 } from './numbers.ts';

/** Samples run per call. */
const BATCH = 50;

/** Options of {@link accuracy}. */
export interface AccuracyOptions {
  /** Told after each batch. */
  readonly progress?: Progress;
  /** Aborts between batches. */
  readonly signal?: AbortSignal | undefined;
}

/** Result of {@link accuracy}. */
export interface Accuracy {
  /** Correct / samples, 0 to 1. */
  readonly accuracy: number;
  /** Samples run. */
  readonly samples: number;
}

/**
 * Measures accuracy.
 *
 * @param session - a model with one input [n, …] and scores [n, classes] as its first output
 * @param samples - [n, …]; u8 images are scaled to 0..1 for an f32 input
 * @param labels - class numbers, as many as samples
 * @throws {@link FettleError} USAGE when the shapes do not fit
 */
export async function accuracy(
  session: Session,
  samples: Tensor,
  labels: ArrayLike<number | bigint>,
  options: AccuracyOptions = {},
): Promise<Accuracy> {
  const count = samples.shape[0] ?? 0;
  if (labels.length !== count || count === 0)
    throw new FettleError('USAGE', `There are ${count} samples and ${labels.length} labels.`, {
      at: { samples: count, labels: labels.length },
      fix: 'Give one label for each sample.',
    });
  const classes = await bestClasses(session, samples, options);
  const correct = classes.filter((best, index) => best === Number(labels[index])).length;
  return { accuracy: correct / count, samples: count };
}

/**
 * The best class of each sample.
 *
 * @param session - a model with one input [n, …] and scores [n, classes] as its first output
 * @param samples - [n, …]; u8 images are scaled to 0..1 for an f32 input
 * @throws {@link FettleError} USAGE when the model has another number of inputs
 */
export async function bestClasses(
  session: Session,
  samples: Tensor,
  options: AccuracyOptions = {},
): Promise<number[]> {
  const [input, second] = session.manifest.inputs;
  const [output] = session.manifest.outputs;
  const [count = 0, ...rest] = samples.shape;
  if (input === undefined || second !== undefined || output === undefined)
    throw new FettleError('USAGE', 'Classification needs a model with one input.', {
      at: { model: session.manifest.model.name, inputs: session.manifest.inputs.length },
      fix: 'Use --task distance.',
    });
  const values = samples.dtype === 'u8' && input.dtype === 'f32' ? scaled(samples) : toF32(samples);
  const size = elementCount(rest);
  const batch = typeof input.shape[0] === 'number' ? input.shape[0] : BATCH;
  const found: number[] = [];
  for (let start = 0; start < count; start += batch) {
    options.signal?.throwIfAborted();
    const taken = Math.min(batch, count - start);
    const feed = tensor(
      'f32',
      [taken, ...rest],
      values.slice(start * size, (start + taken) * size),
    );
    const scores = (await session.run({ [input.name]: feed }))[output.name];
    if (scores === undefined) continue;
    const classes = scores.shape.at(-1) ?? 0;
    const numbers = toF32(scores);
    for (let i = 0; i < taken; i++) found.push(bestOf(numbers, i * classes, classes));
    options.progress?.('classify', start + taken, count);
  }
  return found;
}

function scaled(samples: Tensor): Float32Array {
  return toF32(samples).map((value) => value / 255);
}

function bestOf(scores: Float32Array, start: number, classes: number): number {
  let best = 0;
  for (let i = 1; i < classes; i++)
    if ((scores[start + i] ?? 0) > (scores[start + best] ?? 0)) best = i;
  return best;
}
