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
import { rowsOf, tokenize, windowsOf } from './calibration-data.ts';
import { readTensor } from './data.ts';
import type { Outputs } from './measure-outputs.ts';
import { outputsOn, relativeDistance } from './measure-outputs.ts';
import { openAsIs } from './opening.ts';
import type { Output } from './output.ts';

/** Tokens of text that a compilation measures on: about 10 s for the built-in model. */
const MEASURED_TOKENS = 8192;

/** A part of the data; undefined for what a bundle is measured on when nothing was chosen by it. */
type Part = 'first' | 'second' | undefined;

/** Measures a session on a part of the data; smaller is better. */
interface Metric<T> {
  /** Measures. */
  readonly of: (session: Session, part: Part) => Promise<T>;
  /** Quality of the original and of a bundle. */
  readonly compare: (original: T, bundle: T) => Omit<Quality, 'dataSha256'>;
}

/**
 * What a compilation measures: perplexity on text and token ids, on other samples how often the best class
 * is another one than that of the original, or how far the outputs are from its. The second part of the data is for a second look at what was chosen by
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
        arraysOn(async () => data.arrays ?? data.array, data.name, output),
        source,
        data,
        output,
      );
    case 'images':
      return measured(
        arraysOn(async (session) => imagesOf(data.files, session), data.name, output),
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
    return { ...metric.compare(original, bundle), dataSha256: data.sha256 };
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
    compare: (before, after) => ({ metric: 'perplexity', before, after }),
  };
}

/** Tokens below which a text is not halved. */
const SHORTEST_PART = 256;

/** What was measured of a session on arrays. */
type Measured =
  | { readonly kind: 'perplexity'; readonly value: number }
  | { readonly kind: 'classes'; readonly best: readonly number[] }
  | { readonly kind: 'outputs'; readonly outputs: Outputs };

/** Samples of a model: one array for its only input, or one by name for each. */
type Samples = Tensor | ReadonlyMap<string, Tensor>;

/**
 * On arrays a decoder of token ids is measured by perplexity, a classifier by how often its best class is
 * another one, anything else by the distance of its outputs.
 */
function arraysOn(
  samples: (session: Session) => Promise<Samples>,
  name: string,
  output: Output,
): Metric<Measured> {
  const { signal, progress } = output;
  return {
    of: async (session, part) => {
      const { inputs, outputs } = session.manifest;
      const given = await samples(session);
      const all = given instanceof Map ? (given as ReadonlyMap<string, Tensor>) : undefined;
      const [only = given as Tensor] = all?.values() ?? [];
      const halves = (array: Tensor): Tensor => partOf(array, part);
      if (session.manifest.decoder !== undefined) {
        const ids = windowsOf(halves(only), name).flat();
        const { perplexity: value } = await perplexity(logitsModel(session), ids, {
          signal,
          progress,
        });
        return { kind: 'perplexity', value };
      }
      const [scores] = outputs;
      const isClassifier =
        inputs.length === 1 && outputs.length === 1 && scores?.shape.length === 2;
      if (isClassifier) {
        return { kind: 'classes', best: await bestClasses(session, halves(only), output) };
      }
      const arrays = all ?? new Map([[inputs[0]?.name ?? '', only]]);
      const taken = new Map([...arrays].map(([input, array]) => [input, halves(array)]));
      return { kind: 'outputs', outputs: await outputsOn(session, taken, output) };
    },
    compare: (original, bundle) => {
      if (original.kind === 'perplexity' && bundle.kind === 'perplexity')
        return { metric: 'perplexity', before: original.value, after: bundle.value };
      if (original.kind === 'classes' && bundle.kind === 'classes') {
        const wrong = bundle.best.filter((best, index) => best !== original.best[index]).length;
        return {
          metric: 'top-1 disagreement',
          before: 0,
          after: wrong / Math.max(1, bundle.best.length),
        };
      }
      if (original.kind === 'outputs' && bundle.kind === 'outputs')
        return {
          metric: 'relative distance',
          before: 0,
          after: relativeDistance(original.outputs, bundle.outputs),
        };
      throw new TypeError('the original and the bundle are measured in different ways');
    },
  };
}

/** A half of the samples; all of them when there is only one, or no part is asked for. */
function partOf(all: Tensor, part: Part): Tensor {
  const count = all.shape[0] ?? 0;
  const half = Math.ceil(count / 2);
  if (part === undefined || count < 2) return all;
  return part === 'first' ? rowsOf(all, 0, half) : rowsOf(all, half, count);
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
