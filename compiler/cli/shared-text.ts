/**
 * Whether two texts have passages in common, however their lines are broken: runs of words of the one
 * that are somewhere in the other.
 */

/** Words of a run: long enough that two texts do not share it by chance. */
const RUN_WORDS = 12;

/** A passage that two texts share, and how much of the second is such passages. */
export interface SharedText {
  /** Share of the second text's runs that the first has too, 0..1. */
  readonly share: number;
  /** The first of them. */
  readonly example: string;
}

/**
 * Compares two texts.
 *
 * @returns undefined when no run of words is in both
 */
export function sharedText(first: string, second: string): SharedText | undefined {
  const words = wordsOf(first);
  const runs = new Set<string>();
  for (let at = 0; at + RUN_WORDS <= words.length; at++) runs.add(runAt(words, at));
  const others = wordsOf(second);
  let [count, shared, example] = [0, 0, ''];
  for (let at = 0; at + RUN_WORDS <= others.length; at += RUN_WORDS) {
    const run = runAt(others, at);
    count++;
    if (!runs.has(run)) continue;
    if (shared++ === 0) example = run;
  }
  return shared === 0 ? undefined : { share: shared / count, example };
}

function runAt(words: readonly string[], at: number): string {
  return words.slice(at, at + RUN_WORDS).join(' ');
}

function wordsOf(text: string): readonly string[] {
  return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
}
