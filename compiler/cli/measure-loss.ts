/** The loss of quality that `--max-loss` is about: of a bundle, beside the original. */
import { extname } from 'node:path';
import { readNpy } from '../../models/npy.ts';
import { openBundle } from '../../runtime/node.ts';
import type { Session } from '../../runtime/node.ts';
import type { QualityMeasure } from '../compile-options.ts';
import { bestClasses } from '../evaluate/classify.ts';
import { logitsModel } from '../evaluate/decoder.ts';
import { perplexity } from '../evaluate/perplexity.ts';
import type { ModelSource } from '../source.ts';
import { readData, readText, sha256Of } from './data.ts';
import { openAsIs } from './opening.ts';
import type { Output } from './output.ts';

/** Tokens of text that a compilation measures on: about 10 s for the built-in model. */
const MEASURED_TOKENS = 8192;

/**
 * What a compilation measures: perplexity on a text file, or, on samples as `.npy`, how often the best
 * class is another one than that of the original.
 *
 * @param source - the original
 * @param data - path of the data
 */
export function measureLoss(source: ModelSource, data: string, output: Output): QualityMeasure {
  return extname(data) === '.npy'
    ? measureDisagreement(source, data, output)
    : measurePerplexity(source, data, output);
}

function measureDisagreement(source: ModelSource, data: string, output: Output): QualityMeasure {
  const bytes = readData(data);
  const samples = readNpy(bytes, data);
  const dataSha256 = sha256Of(bytes);
  const measure = async (session: Session): Promise<readonly number[]> => {
    try {
      const { signal, progress } = output;
      return await bestClasses(session, samples, { signal, progress });
    } finally {
      await session.dispose();
    }
  };
  let wanted: readonly number[] | undefined;
  return async (folder) => {
    wanted ??= await measure(await openAsIs(source, output));
    const found = await measure(await openBundle(folder, { signal: output.signal }));
    const wrong = found.filter((best, index) => best !== wanted?.[index]).length;
    return { metric: 'top-1 disagreement', before: 0, after: wrong / found.length, dataSha256 };
  };
}

function measurePerplexity(source: ModelSource, data: string, output: Output): QualityMeasure {
  const { text, sha256 } = readText(data);
  const measure = async (session: Session): Promise<number> => {
    try {
      const ids = (await session.tokenizer()).encode(text, false);
      const { signal, progress } = output;
      const options = { maxTokens: MEASURED_TOKENS, signal, progress };
      return (await perplexity(logitsModel(session), ids, options)).perplexity;
    } finally {
      await session.dispose();
    }
  };
  let before: number | undefined;
  return async (folder) => {
    before ??= await measure(await openAsIs(source, output));
    const after = await measure(await openBundle(folder, { signal: output.signal }));
    return { metric: 'perplexity', before, after, dataSha256: sha256 };
  };
}
