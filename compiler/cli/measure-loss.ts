/** The loss of quality that `--max-loss` is about: perplexity of a bundle beside that of the original. */
import { openBundle } from '../../runtime/node.ts';
import type { Session } from '../../runtime/node.ts';
import type { QualityMeasure } from '../compile-options.ts';
import { logitsModel } from '../evaluate/decoder.ts';
import { perplexity } from '../evaluate/perplexity.ts';
import type { ModelSource } from '../source.ts';
import { readText } from './data.ts';
import { openAsIs } from './opening.ts';
import type { Output } from './output.ts';

/** Tokens of text that a compilation measures on: about 10 s for the built-in model. */
const MEASURED_TOKENS = 8192;

/**
 * Measures perplexity on a text file.
 *
 * @param source - the original
 * @param data - path of the text
 */
export function measureLoss(source: ModelSource, data: string, output: Output): QualityMeasure {
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
