/**
 * A small seeded generator, so that the same seed samples the same text on every host.
 * sfc32 (Chris Doty-Humphrey, PractRand): 128 bits of state, passes BigCrush; seeded through its own
 * output as its author advises.
 */

/** Makes a generator of numbers in [0, 1) from a whole number in 0 … 2^53 - 1. */
export function createRandom(seed: number): () => number {
  let a = 0;
  let b = seed | 0;
  let c = Math.floor(seed / 2 ** 32) | 0;
  let counter = 1;
  const next = (): number => {
    const sum = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return sum >>> 0;
  };
  for (let i = 0; i < 16; i++) next();
  return () => next() / 2 ** 32;
}

/** A seed nobody chose. */
export function randomSeed(): number {
  return globalThis.crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
}
