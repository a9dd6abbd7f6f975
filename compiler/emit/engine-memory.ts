/**
 * What a session of the `wasm` engine takes beside its linear memory: constants that were measured, not
 * computed (`npm run bench:memory`: Node 20, Node 22 and Chromium, the first session of a process, pages of
 * the host's own executable left out). They hold to 10% of a session as small as nib's.
 */

/** Kernels' machine code, JavaScript, manifest and plan as objects: 2.1 to 2.6 MB everywhere. */
export const ENGINE_BYTES = 2_300_000;

/** A worker of Node: 7.5 MB with Node 20, 9 with Node 22. Chromium's takes 1 to 2. */
export const THREAD_BYTES = 8_500_000;

/** The tokenizer's code. */
const TOKENIZER_BYTES = 1_500_000;

/** Bytes of heap for each byte of `tokenizer.json`: 22 to 27 with Node, 17 in Chromium. */
const TEXT_FACTOR = 25.5;

/** What `@huggingface/tokenizers` takes for a `tokenizer.json` of so many bytes. */
export function tokenizerBytes(fileBytes: number): number {
  return Math.round(TOKENIZER_BYTES + TEXT_FACTOR * fileBytes);
}
