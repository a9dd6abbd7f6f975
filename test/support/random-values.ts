/** Seeded random values of a few distributions. */

/** Uniform numbers in (0, 1): xorshift on 32 bits, scrambled by a multiplication. */
export function uniform(seed: number): () => number {
  let state = Math.imul(seed + 1, 0x9e3779b1) | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((Math.imul(state, 0x2545f491) >>> 0) + 0.5) / 2 ** 32;
  };
}

/** Independent values of N(0, 1). */
export function normalValues(count: number, seed: number): Float32Array<ArrayBuffer> {
  const next = uniform(seed);
  return Float32Array.from(
    { length: count },
    () => Math.sqrt(-2 * Math.log(next())) * Math.cos(2 * Math.PI * next()),
  );
}

/** Independent values of the Laplace distribution with scale 1. */
export function laplaceValues(count: number, seed: number): Float32Array<ArrayBuffer> {
  const next = uniform(seed);
  return Float32Array.from({ length: count }, () => {
    const centred = next() - 0.5;
    return -Math.sign(centred) * Math.log(1 - 2 * Math.abs(centred));
  });
}
