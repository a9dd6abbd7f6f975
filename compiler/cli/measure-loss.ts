/** The loss of quality that `--max-loss` is about: of a bundle, beside the original. */
import { openBundle } from '../../runtime/node.ts';
import type { Session } from '../../runtime/node.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { tensor } from '../../runtime/tensor.ts';
import { toF32 } from '../evaluate/numbers.ts';
import type { Quality, QualityMeasure } from '../compile-options.ts';
import { bestClasses } from '../evaluate/classify.ts';
import { logitsModel } from '../evaluate/decoder.ts';
import { perplexity } from '../evaluate/perplexity.ts';
import type { ModelSource } from '../source.ts';
import type { NamedData } from './calibration-data.ts';
import { rowsOf, tokenize } from './calibration-data.ts';
import { readTensor } from './data.ts';
import { openAsIs } from './opening.ts';
import type { Output } from './output.ts';

/** Tokens of text that a compilation measures on: about 10 s for the built-in model. */
const MEASURED_TOKENS = 8192;

/** A part of the data; undefined for what a bundle is measured on when nothing was chosen by it. */
type Part = 'first' | 'second' | undefined;

/** Measures a session on a part of the data; smaller is better. */
interface Metric<T> {
  readonly name: string;
  /** Measures. */
  readonly of: (session: Session, part: Part) => Promise<T>;
  /** Quality of the original and of a bundle. */
  readonly compare: (original: T, bundle: T) => Pick<Quality, 'before' | 'after'>;
}

/**
 * What a compilation measures: perplexity on text, or, on samples, how often the best class is another
 * one than that of the original. The second part of the data is for a second look at what was chosen by
 * the first; short data is its own second part.
 *
 * @param source - the original
 * @param data - never what was calibrated on; undefined when it cannot be measured on
 */
export function measureLoss(
  source: ModelSource,
  data: NamedData,
  output: Output,
): QualityMeasure | undefined {
  switch (data.kind) {
    case 'text':
      return measured(perplexityOn(source, data.text, data.name, output), source, data, output);
    case 'array':
      return measured(
        classesOn(async () => data.array, output),
        source,
        data,
        output,
      );
    case 'images':
      return measured(
        classesOn(async (session) => imagesOf(data.files, session), output),
        source,
        data,
        output,
      );
    case 'self':
      return undefined;
  }
}

function measured<T>(
  metric: Metric<T>,
  source: ModelSource,
  data: NamedData,
  output: Output,
): QualityMeasure {
  const originals = new Map<Part, T>();
  const measure = async (session: Session, part: Part): Promise<T> => {
    try {
      return await metric.of(session, part);
    } finally {
      await session.dispose();
    }
  };
  return async (folder, _target, part) => {
    const original = originals.get(part) ?? (await measure(await openAsIs(source, output), part));
    originals.set(part, original);
    const bundle = await measure(await openBundle(folder, { signal: output.signal }), part);
    return { metric: metric.name, ...metric.compare(original, bundle), dataSha256: data.sha256 };
  };
}

function perplexityOn(
  source: ModelSource,
  text: string,
  name: string,
  { signal, progress }: Output,
): Metric<number> {
  let ids: readonly number[] | undefined;
  return {
    name: 'perplexity',
    of: async (session, part) => {
      ids ??= await tokenize(source, text, name);
      const most = Math.min(MEASURED_TOKENS, Math.ceil(ids.length / 2));
      const isShort = ids.length < 2 * SHORTEST_PART;
      const taken = isShort
        ? ids
        : part === 'second'
          ? ids.slice(most, 2 * most)
          : ids.slice(0, most);
      return (await perplexity(logitsModel(session), taken, { signal, progress })).perplexity;
    },
    compare: (before, after) => ({ before, after }),
  };
}

/** Tokens below which a text is not halved. */
const SHORTEST_PART = 256;

function classesOn(
  samples: (session: Session) => Promise<Tensor>,
  { signal, progress }: Output,
): Metric<readonly number[]> {
  return {
    name: 'top-1 disagreement',
    of: async (session, part) => {
      const all = await samples(session);
      const count = all.shape[0] ?? 0;
      const half = Math.ceil(count / 2);
      const isWhole = part === undefined || count < 2;
      const taken = isWhole
        ? all
        : part === 'first'
          ? rowsOf(all, 0, half)
          : rowsOf(all, half, count);
      return bestClasses(session, taken, { signal, progress });
    },
    compare: (original, bundle) => {
      const wrong = bundle.filter((best, index) => best !== original[index]).length;
      return { before: 0, after: wrong / Math.max(1, bundle.length) };
    },
  };
}

async function imagesOf(files: readonly string[], session: Session): Promise<Tensor> {
  const [input] = session.manifest.inputs;
  const images: Tensor[] = [];
  if (input !== undefined) for (const file of files) images.push(await readTensor(file, input));
  const size = images[0]?.data.length ?? 0;
  const values = new Float32Array(images.length * size);
  for (const [index, image] of images.entries())
    values.set(toF32(image).subarray(0, size), index * size);
  return tensor('f32', [images.length, ...(images[0]?.shape.slice(1) ?? [])], values);
}
