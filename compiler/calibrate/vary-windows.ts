/**
 * Makes windows that formats are compared on unlike the text they come from.
 *
 *   of every four   one as it is
 *                   two with names: strings of a few random tokens that come back all through the window
 *                   one of nothing but a string of tokens of the text, again and again
 *
 * Text a model meets later has words that calibration text has not (names, markup, code), and predicts them by
 * copying from before. Nothing in a text of one kind tells a choice of formats to spare what copies. Names are of any
 * tokens, for a text of one kind has few. Figures: decisions/004-choosing-formats.md.
 */
import { createRandom } from '../../runtime/text/random.ts';

/** What becomes of windows, in turn. */
const kinds = ['plain', 'names', 'repeated', 'names'] as const;

/** Different names of a window. */
const NAMES = 2;
/** Tokens of a name. */
const NAME_TOKENS = [3, 5] as const;
/** Tokens from the end of a name to the next one. */
const NAME_DISTANCE = [6, 25] as const;
/** Tokens of a string that fills a window. */
const REPEATED_TOKENS = [24, 63] as const;

/**
 * Varies the last windows.
 *
 * @param windows - token ids
 * @param count - how many are varied
 * @param vocabulary - how many tokens there are; Infinity: as many as the text shows
 * @param seed - which random tokens
 * @returns as many, as long
 */
export function varyWindows(
  windows: readonly (readonly number[])[],
  count: number,
  vocabulary: number,
  seed: number,
): readonly (readonly number[])[] {
  const random = createRandom(seed);
  const within = ([least, most]: readonly [number, number]): number =>
    least + Math.floor(random() * (most - least + 1));
  const text = windows.flat();
  const shown = text.reduce((most, id) => Math.max(most, id), 0) + 1;
  const most = Number.isFinite(vocabulary) ? vocabulary : shown;
  const anyToken = (): number => Math.floor(random() * most);
  const tokenOfText = (): number => text[Math.floor(random() * text.length)] ?? 0;

  const withNames = (window: readonly number[]): readonly number[] => {
    const names = Array.from({ length: NAMES }, () =>
      Array.from({ length: within(NAME_TOKENS) }, anyToken),
    );
    const varied = [...window];
    let at = within(NAME_DISTANCE);
    while (at < varied.length) {
      const name = names[Math.floor(random() * NAMES)] ?? [];
      const fits = name.slice(0, varied.length - at);
      varied.splice(at, fits.length, ...fits);
      at += name.length + within(NAME_DISTANCE);
    }
    return varied;
  };
  const repeated = (window: readonly number[]): readonly number[] => {
    const string = Array.from({ length: within(REPEATED_TOKENS) }, tokenOfText);
    return window.map((_, index) => string[index % string.length] ?? 0);
  };
  const first = windows.length - count;
  return windows.map((window, index) => {
    const kind = index < first ? 'plain' : kinds[(index - first) % kinds.length];
    return kind === 'names' ? withNames(window) : kind === 'repeated' ? repeated(window) : window;
  });
}
