/**
 * SHA-256 that takes its input in pieces, for what the platform's own cannot serve: models larger than
 * memory (`crypto.subtle` wants everything at once and copies it), pages without a secure context (no
 * `crypto.subtle`), and views of shared buffers, which it refuses. Blocks are hashed in WebAssembly
 * (wasm/kernels/sha256.ts): about a fifth of the speed of hardware, twice that of JavaScript.
 *
 * @see https://nvlpubs.nist.gov/nistpubs/FIPS/NIST.FIPS.180-4.pdf
 */
import { binary } from './wasm/generated/sha256.ts';

/** The first 32 bits of the fractions of the square roots of the first 8 primes. */
const START: readonly number[] = [
  0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
];

/** Where the kernel finds the state, and the blocks behind it, in its only page. */
const STATE_AT = 1024;
const BLOCKS_AT = 2048;
const BLOCKS = (65536 - BLOCKS_AT) / 64;

/** The kernel and its memory, which hold nothing between two calls. */
interface Kernel {
  readonly compress: (state: number, data: number, blocks: number) => void;
  readonly state: Int32Array;
  readonly blocks: Uint8Array;
}

let kernel: Kernel | undefined;

/** Made when first needed: a module of 2 KB, which hosts compile at once. */
function kernelOf(): Kernel {
  if (kernel !== undefined) return kernel;
  const text = atob(binary);
  const bytes = new Uint8Array(text.length);
  // no iterator over characters: it leaves garbage
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } });
  const { compress } = exports as unknown as Pick<Kernel, 'compress'>;
  const state = new Int32Array(memory.buffer, STATE_AT, START.length);
  kernel = { compress, state, blocks: new Uint8Array(memory.buffer, BLOCKS_AT) };
  return kernel;
}

/** One hash being computed. */
export class Sha256 {
  private readonly state = Int32Array.from(START);
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
      this.compress(this.block);
    }
    const whole = bytes.length - ((bytes.length - at) % 64);
    for (; at < whole; at += 64 * BLOCKS)
      this.compress(bytes.subarray(at, Math.min(at + 64 * BLOCKS, whole)));
    this.block.set(bytes.subarray(whole));
    this.filled = bytes.length - whole;
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

  /** Whole blocks, at most {@link BLOCKS}. */
  private compress(bytes: Uint8Array): void {
    const { compress, state, blocks } = kernelOf();
    state.set(this.state);
    blocks.set(bytes);
    compress(STATE_AT, BLOCKS_AT, bytes.length / 64);
    this.state.set(state);
  }
}

/** The hash of bytes at hand, lower-case hex. */
export function sha256(bytes: Uint8Array): string {
  return new Sha256().update(bytes).hex();
}
