/**
 * What the files beside a model say (`config.json`, `generation_config.json`, `tokenizer.json`,
 * `tokenizer_config.json` in the hub layout), read defensively: every field may be absent or wrong.
 */

/** Parsed JSON files of the hub layout; each absent when there is no such file. */
export interface ModelConfig {
  /** `config.json`. */
  readonly config?: Readonly<Record<string, unknown>> | undefined;
  /** `generation_config.json`. */
  readonly generationConfig?: Readonly<Record<string, unknown>> | undefined;
  /** `tokenizer_config.json`. */
  readonly tokenizerConfig?: Readonly<Record<string, unknown>> | undefined;
  /** `tokenizer.json`. */
  readonly tokenizer?: Readonly<Record<string, unknown>> | undefined;
}

/** Context length assumed when nothing states one. */
export const DEFAULT_CONTEXT_LENGTH = 2048;

const contextFields = [
  'max_position_embeddings',
  'n_positions',
  'n_ctx',
  'max_seq_len',
  'max_sequence_length',
  'seq_length',
];

/**
 * Most tokens, past and present together.
 *
 * @param files - what lies beside the model
 * @param tableRows - rows of the position tables found in the graph
 * @param warnings - told when the length had to be assumed
 */
export function contextLengthOf(
  files: ModelConfig,
  tableRows: readonly number[],
  warnings: string[],
): number {
  const stated = contextLengthIn(files);
  if (stated !== undefined) return stated;
  if (tableRows.length > 0) return Math.min(...tableRows);
  // tokenizers of models without a limit state 1e30
  const length = wholeNumber(files.tokenizerConfig?.['model_max_length']);
  if (length !== undefined && length > 0 && length <= 1 << 24) return length;
  warnings.push(
    `No file states the context length of the model; ${DEFAULT_CONTEXT_LENGTH} tokens are assumed.`,
  );
  return DEFAULT_CONTEXT_LENGTH;
}

/** Most tokens, when the files say so. */
export function contextLengthIn(files: ModelConfig): number | undefined {
  for (const field of contextFields) {
    const length = wholeNumber(textConfig(files)[field]) ?? wholeNumber(files.config?.[field]);
    if (length !== undefined && length > 0) return length;
  }
  return undefined;
}

/** Ids that end a generation; the generation config knows more of them than the config. */
export function endIdsOf(files: ModelConfig, warnings: string[]): readonly number[] {
  const places = [files.generationConfig, files.config, textConfig(files)];
  for (const place of places) {
    const value = place?.['eos_token_id'];
    const ids = (Array.isArray(value) ? value : [value]).flatMap((id) => wholeNumber(id) ?? []);
    if (ids.length > 0) return ids;
  }
  warnings.push('No file names an end-of-text token; generation stops at its length limit only.');
  return [];
}

/**
 * The id that goes in front of a prompt: only where the tokenizer's settings ask for one and its own
 * post-processing does not put it there.
 */
export function startIdOf(files: ModelConfig): number | undefined {
  if (files.tokenizerConfig?.['add_bos_token'] !== true) return undefined;
  if (JSON.stringify(files.tokenizer?.['post_processor'] ?? null).includes('SpecialToken'))
    return undefined;
  return (
    wholeNumber(files.generationConfig?.['bos_token_id']) ??
    wholeNumber(files.config?.['bos_token_id']) ??
    wholeNumber(textConfig(files)['bos_token_id'])
  );
}

/** The language part of a config with several parts; the config itself otherwise. */
function textConfig(files: ModelConfig): Readonly<Record<string, unknown>> {
  const part = files.config?.['text_config'];
  if (typeof part === 'object' && part !== null && !Array.isArray(part))
    return part as Record<string, unknown>;
  return files.config ?? {};
}

function wholeNumber(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : undefined;
}
