/**
 * SHA-256 that takes its input in pieces. `crypto.subtle` wants everything at once, and models are
 * larger than memory.
 *
 * @see https://nvlpubs.nist.gov/nistpubs/FIPS/NIST.FIPS.180-4.pdf
 */

/** The first 32 bits of the fractions of the cube roots of the first 64 primes. */
const ROUND = fractions(64, Math.cbrt);

/** The first 32 bits of the fractions of the square roots of the first 8 primes. */
const START = fractions(8, Math.sqrt);

/** One hash being computed. */
export class Sha256 {
  private readonly state = Int32Array.from(START);
  private readonly schedule = new Int32Array(64);
  private readonly block = new Uint8Array(64);
  private filled = 0;
  private byteCount = 0;

  /** Appends bytes. */
  update(bytes: Uint8Array): this {
    this.byteCount += bytes.length;
    let at = 0;
    if (this.filled > 0) {
      at = Math.min(64 - this.filled, bytes.length);
      this.block.set(bytes.subarray(0, at), this.filled);
      this.filled += at;
      if (this.filled < 64) return this;
      this.compress(this.block, 0);
    }
    for (; at + 64 <= bytes.length; at += 64) this.compress(bytes, at);
    this.block.set(bytes.subarray(at));
    this.filled = bytes.length - at;
    return this;
  }

  /** The hash of everything so far, lower-case hex. The object is of no use afterwards. */
  hex(): string {
    const bits = BigInt(this.byteCount) * 8n;
    const padding = new Uint8Array(64 - ((this.filled + 8) % 64) + 8);
    padding[0] = 0x80;
    new DataView(padding.buffer).setBigUint64(padding.length - 8, bits);
    this.update(padding);
    return Array.from(this.state, (word) => (word >>> 0).toString(16).padStart(8, '0')).join('');
  }

  private compress(bytes: Uint8Array, offset: number): void {
    const { state, schedule: w } = this;
    for (let i = 0, at = offset; i < 16; i++, at += 4)
      w[i] =
        (at0(bytes, at) << 24) |
        (at0(bytes, at + 1) << 16) |
        (at0(bytes, at + 2) << 8) |
        at0(bytes, at + 3);
    for (let i = 16; i < 64; i++) {
      const x = at0(w, i - 15);
      const y = at0(w, i - 2);
      const s0 = rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3);
      const s1 = rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10);
      w[i] = (at0(w, i - 16) + s0 + at0(w, i - 7) + s1) | 0;
    }
    let [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0] = state;
    for (let i = 0; i < 64; i++) {
      const s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + at0(ROUND, i) + at0(w, i)) | 0;
      const s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => (state[i] = (at0(state, i) + word) | 0));
  }
}

/** The hash of bytes at hand, lower-case hex. */
export function sha256(bytes: Uint8Array): string {
  return new Sha256().update(bytes).hex();
}

function rotate(word: number, by: number): number {
  return (word >>> by) | (word << (32 - by));
}

function at0(words: Uint8Array | Int32Array, index: number): number {
  return words[index] ?? 0;
}

function fractions(count: number, root: (prime: number) => number): Int32Array {
  const primes: number[] = [];
  for (let n = 2; primes.length < count; n++)
    if (primes.every((prime) => n % prime !== 0)) primes.push(n);
  return Int32Array.from(primes, (prime) => (root(prime) % 1) * 2 ** 32);
}
