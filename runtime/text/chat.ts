/**
 * Chat templates, through `@huggingface/jinja`, which is loaded only when a template is rendered.
 */
import { FettleError } from '../errors.ts';

/** What is used of the package. */
export interface JinjaModule {
  /** A parsed template. */
  readonly Template: new (source: string) => { render(items: Record<string, unknown>): string };
}

/** One turn of a conversation. Templates may use more keys (`tool_calls`, …). */
export interface ChatMessage {
  /** `system`, `user`, `assistant`, … */
  readonly role: string;
  /** What was said. */
  readonly content: string;
  readonly [key: string]: unknown;
}

/**
 * Renders a conversation as the text a model was trained on, ending where its answer begins.
 *
 * @param template - Jinja source
 * @param messages - the whole conversation, oldest first
 * @param config - `tokenizer_config.json`: its special tokens are variables of the template
 * @param load - the package, for pages that bring their own copy
 * @throws {@link FettleError} USAGE when the template refuses the messages, ENGINE_UNAVAILABLE when the package cannot be loaded
 */
export async function renderChat(
  template: string,
  messages: readonly ChatMessage[],
  config: Readonly<Record<string, unknown>>,
  load: () => Promise<JinjaModule> = importJinja,
): Promise<string> {
  const { Template } = await load().catch((cause: unknown) => {
    throw new FettleError('ENGINE_UNAVAILABLE', 'Cannot load @huggingface/jinja.', {
      at: { package: '@huggingface/jinja' },
      fix: 'Install it, pass { text: { jinja } }, or render the prompt yourself.',
      cause,
    });
  });
  try {
    return new Template(template).render({
      ...specialTokens(config),
      messages: [...messages],
      add_generation_prompt: true,
    });
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new FettleError('USAGE', `The model's chat template refused the messages: ${why}`, {
      at: { messages: messages.length },
      fix: 'Check the roles and their order against the model card.',
      cause,
    });
  }
}

/** `bos_token: '<s>'` or `bos_token: { content: '<s>', … }` -> `{ bos_token: '<s>' }`. */
function specialTokens(config: Readonly<Record<string, unknown>>): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const [name, value] of Object.entries(config)) {
    if (!name.endsWith('_token')) continue;
    const text =
      typeof value === 'object' && value !== null && 'content' in value ? value.content : value;
    if (typeof text === 'string') tokens[name] = text;
  }
  return tokens;
}

async function importJinja(): Promise<JinjaModule> {
  return import('@huggingface/jinja');
}
