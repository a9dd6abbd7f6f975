/** `fettle generate`: text from a decoder. */
import type { GenerateOptions } from '../../runtime/node.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { openRunnable } from './opening.ts';

/** Streams generated text to stdout. */
export const generate: Command = command({
  usage: 'generate <bundle>',
  summary: 'generate text with a bundle (or a model as it is)',
  options: (parser) =>
    parser
      .positional('bundle', { type: 'string', demandOption: true, describe: 'a bundle or a model' })
      .option('prompt', { type: 'string', demandOption: true, describe: 'text to continue' })
      .option('chat', {
        type: 'boolean',
        default: false,
        describe: 'answer it, with the chat template',
      })
      .option('max-tokens', { type: 'number', default: 64, describe: 'most tokens to generate' })
      .option('temperature', {
        type: 'number',
        describe: 'randomness; 0 always takes the best token',
      })
      .option('top-k', { type: 'number', describe: 'choose among the k best tokens' })
      .option('top-p', {
        type: 'number',
        describe: 'choose among the tokens that make up this share',
      })
      .option('min-p', {
        type: 'number',
        describe: 'leave out tokens below this share of the best',
      })
      .option('repetition-penalty', {
        type: 'number',
        describe: 'divide scores of used tokens by this',
      })
      .option('seed', { type: 'number', describe: 'the same seed gives the same text' })
      .option('stop', { type: 'string', array: true, describe: 'end at this text' }),
  run: async (args, output) => {
    const { session } = await openRunnable(args.bundle, output);
    try {
      const options: GenerateOptions = {
        maxTokens: args.maxTokens,
        signal: output.signal,
        ...defined({
          temperature: args.temperature,
          topK: args.topK,
          topP: args.topP,
          minP: args.minP,
          repetitionPenalty: args.repetitionPenalty,
          seed: args.seed,
          stop: args.stop,
        }),
      };
      const generation = args.chat
        ? session.chat([{ role: 'user', content: args.prompt }], options)
        : session.generate(args.prompt, options);
      for await (const { text } of generation) output.stream(text);
      const result = await generation.result();
      output.stream('\n');
      const { text, tokens, finish, prefillTokensPerSecond, decodeTokensPerSecond } = result;
      output.info(
        `${tokens.length} tokens (${finish}), ${decodeTokensPerSecond.toFixed(1)} tokens/s, prompt ${prefillTokensPerSecond.toFixed(1)} tokens/s, seed ${result.seed}`,
      );
      if (!output.json) return;
      output.result(
        {
          text,
          tokens,
          finish,
          prefillTokensPerSecond,
          decodeTokensPerSecond,
          promptTokens: result.promptTokens,
          firstTokenMs: result.firstTokenMs,
          seed: result.seed,
        },
        '',
      );
    } finally {
      await session.dispose();
    }
  },
});

/** The options that were given. */
function defined<T extends object>(options: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given) as { [K in keyof T]?: Exclude<T[K], undefined> };
}
