/**
 * The tokenizer of a bundle, through `@huggingface/tokenizers`, which is loaded only when a bundle
 * carries a tokenizer and a string has to be handled.
 */
import { FettleError } from '../errors.ts';

/** What is used of the package. */
export interface TokenizersModule {
  /** A tokenizer from its two files. */
  readonly Tokenizer: new (
    tokenizer: object,
    config: object,
  ) => {
    encode(text: string, options: { add_special_tokens: boolean }): { ids: readonly number[] };
    decode(
      ids: number[],
      options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean },
    ): string;
  };
}

/** Text to ids and back. */
export interface TextTokenizer {
  /**
   * Ids of a text.
   *
   * @param special - let the tokenizer add its own special tokens, such as a start token. Default true.
   */
  readonly encode: (text: string, special?: boolean) => number[];
  /** Text of ids, special tokens left out. */
  readonly decode: (ids: readonly number[]) => string;
}

/**
 * Makes a tokenizer from its files.
 *
 * @param json - contents of `tokenizer.json`
 * @param config - contents of `tokenizer_config.json`, or `{}`
 * @param load - the package, for pages that bring their own copy
 * @throws {@link FettleError} ENGINE_UNAVAILABLE when the package cannot be loaded, BUNDLE_CORRUPT when the files do not make a tokenizer
 */
export async function createTokenizer(
  json: object,
  config: object,
  load: () => Promise<TokenizersModule> = importTokenizers,
): Promise<TextTokenizer> {
  const { Tokenizer } = await load().catch((cause: unknown) => {
    throw new FettleError('ENGINE_UNAVAILABLE', 'Cannot load @huggingface/tokenizers.', {
      at: { package: '@huggingface/tokenizers' },
      fix: 'Install it, pass { text: { tokenizers } }, or use token ids instead of text.',
      cause,
    });
  });
  let tokenizer: InstanceType<TokenizersModule['Tokenizer']>;
  try {
    tokenizer = new Tokenizer(json, config);
  } catch (cause) {
    throw new FettleError('BUNDLE_CORRUPT', 'The tokenizer files do not make a tokenizer.', {
      at: { package: '@huggingface/tokenizers' },
      fix: 'Compile the bundle again with the tokenizer.json of the model.',
      cause,
    });
  }
  return {
    encode: (text, special = true) => [
      ...tokenizer.encode(text, { add_special_tokens: special }).ids,
    ],
    // Cleaning up spaces looks across tokens, which streaming cannot undo.
    decode: (ids) =>
      ids.length === 0
        ? ''
        : tokenizer.decode([...ids], {
            skip_special_tokens: true,
            clean_up_tokenization_spaces: false,
          }),
  };
}

async function importTokenizers(): Promise<TokenizersModule> {
  return import('@huggingface/tokenizers');
}

/**
 * Text of a growing list of ids, piece by piece. A token may be part of a character, and its text may
 * depend on the one before (leading spaces), so pieces are differences of decoded tails, and a tail that
 * ends inside a character waits. Method: text-generation-inference's incremental decoding.
 */
export class TextStream {
  readonly #tokenizer: TextTokenizer;
  readonly #ids: number[] = [];
  /** Ids before this are settled; the tail from here is decoded for context. */
  #from = 0;
  /** Ids before this have been handed out. */
  #done = 0;

  constructor(tokenizer: TextTokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** Adds a token; returns the text that is complete now. */
  push(id: number): string {
    this.#ids.push(id);
    const [before, now] = this.#tails();
    if (now.length <= before.length || now.endsWith('\ufffd')) return '';
    this.#from = this.#done;
    this.#done = this.#ids.length;
    return now.slice(before.length);
  }

  /** What is left, incomplete characters as U+FFFD. */
  flush(): string {
    const [before, now] = this.#tails();
    this.#from = this.#done = this.#ids.length;
    return now.slice(before.length);
  }

  #tails(): [before: string, now: string] {
    const { decode } = this.#tokenizer;
    return [decode(this.#ids.slice(this.#from, this.#done)), decode(this.#ids.slice(this.#from))];
  }
}
