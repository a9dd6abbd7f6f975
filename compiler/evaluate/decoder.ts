/** A session as evaluation sees it: token ids in, logits of every position out. */
import { FettleError } from '../../runtime/errors.ts';
import type { Session } from '../../runtime/session.ts';
import type { LogitsModel } from './perplexity.ts';

/**
 * The decoder of a session.
 *
 * @throws {@link FettleError} USAGE when the model is no decoder
 */
export function logitsModel(session: Session): LogitsModel {
  const { decoder, model } = session.manifest;
  if (decoder === undefined)
    throw new FettleError('USAGE', `"${model.name}" is no decoder: it has no perplexity.`, {
      at: { model: model.name, kind: model.kind },
      fix: 'Use --task distance or classify.',
    });
  return {
    vocabulary: decoder.vocabulary,
    contextLength: decoder.contextLength,
    logits: async (ids) => {
      const { data } = await session.logits(ids);
      if (!(data instanceof Float32Array))
        throw new FettleError('MODEL_INVALID', 'The logits are not f32.', {
          at: { model: model.name },
          fix: 'Export the model with f32 logits.',
        });
      return data;
    },
  };
}
