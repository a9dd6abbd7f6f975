/**
 * The compression function of SHA-256 over whole blocks.
 *
 * @see https://nvlpubs.nist.gov/nistpubs/FIPS/NIST.FIPS.180-4.pdf
 */

/** Words of the message schedule that are at hand, written by `compress`. */
const schedule: usize = memory.data(256, 16);

/** The first 32 bits of the fractions of the cube roots of the first 64 primes. */
const round: usize = memory.data<u32>(
  [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
  ],
  16,
);

/** What round `i` adds to the word that leaves. */
@inline
function mixed(e: u32, f: u32, g: u32, h: u32, i: usize): u32 {
  const sum = rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25);
  return h + sum + (g ^ (e & (f ^ g))) + load<u32>(round + i) + load<u32>(schedule + i);
}

@inline
function majority(a: u32, b: u32, c: u32): u32 {
  return (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) | (c & (a | b)));
}

/** `state`: 8 words, changed in place; `data`: `blocks` x 64 bytes. */
export function compress(state: usize, data: usize, blocks: i32): void {
  let h0 = load<u32>(state);
  let h1 = load<u32>(state, 4);
  let h2 = load<u32>(state, 8);
  let h3 = load<u32>(state, 12);
  let h4 = load<u32>(state, 16);
  let h5 = load<u32>(state, 20);
  let h6 = load<u32>(state, 24);
  let h7 = load<u32>(state, 28);
  for (; blocks > 0; blocks--, data += 64) {
    for (let i: usize = 0; i < 64; i += 4) store<u32>(schedule + i, bswap(load<u32>(data + i)));
    for (let at = schedule; at < schedule + 192; at += 4) {
      const x = load<u32>(at, 4);
      const y = load<u32>(at, 56);
      const s0 = rotr(x, 7) ^ rotr(x, 18) ^ (x >> 3);
      const s1 = rotr(y, 17) ^ rotr(y, 19) ^ (y >> 10);
      store<u32>(at, load<u32>(at) + s0 + load<u32>(at, 36) + s1, 64);
    }
    let a = h0;
    let b = h1;
    let c = h2;
    let d = h3;
    let e = h4;
    let f = h5;
    let g = h6;
    let h = h7;
    // eight rounds at a time: the words trade places by name, not by moves
    for (let i: usize = 0; i < 256; i += 32) {
      h = mixed(e, f, g, h, i);
      d += h;
      h += majority(a, b, c);
      g = mixed(d, e, f, g, i + 4);
      c += g;
      g += majority(h, a, b);
      f = mixed(c, d, e, f, i + 8);
      b += f;
      f += majority(g, h, a);
      e = mixed(b, c, d, e, i + 12);
      a += e;
      e += majority(f, g, h);
      d = mixed(a, b, c, d, i + 16);
      h += d;
      d += majority(e, f, g);
      c = mixed(h, a, b, c, i + 20);
      g += c;
      c += majority(d, e, f);
      b = mixed(g, h, a, b, i + 24);
      f += b;
      b += majority(c, d, e);
      a = mixed(f, g, h, a, i + 28);
      e += a;
      a += majority(b, c, d);
    }
    h0 += a;
    h1 += b;
    h2 += c;
    h3 += d;
    h4 += e;
    h5 += f;
    h6 += g;
    h7 += h;
  }
  store<u32>(state, h0);
  store<u32>(state, h1, 4);
  store<u32>(state, h2, 8);
  store<u32>(state, h3, 12);
  store<u32>(state, h4, 16);
  store<u32>(state, h5, 20);
  store<u32>(state, h6, 24);
  store<u32>(state, h7, 28);
}
